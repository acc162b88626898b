"""Pages in memory, from the pool to writers, the ring and back. Sans-IO."""
