"""What everything stands on: errors, clocks, crc32, warnings, C or Python. The standard library alone."""
