"""A recording: one ring, its reader and its sinks, from open to close."""
