"""The service that receives streams from many programs and stores each."""
