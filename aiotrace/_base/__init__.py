"""What everything stands on: errors, the choice of implementation, clocks, crc32, warnings. The standard library alone."""
