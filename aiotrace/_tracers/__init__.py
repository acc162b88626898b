"""Tracers: what produces events by itself. Each module has `start()` and `stop()`; `_tracing` calls them."""
