"""Traces as they are read: a trace.dat, an unfinished one or an arena, as one stream of events."""
