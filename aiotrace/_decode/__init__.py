"""From a page's records to values and text, by the print formats of the kernel. Sans-IO."""
