"""The bytes of trace.dat, of stream frames and of journals. Sans-IO."""
