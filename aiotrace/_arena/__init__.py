"""The pages of an arena file, seen from another process."""
