"""The stream protocol between a producer and a collector. Sans-IO."""
