"""What a page holds: its layout, records, event formats and filters. Sans-IO."""
