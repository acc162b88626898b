"""Tracers: what produces events by itself. Each module has `start()` and `stop()`; `tracer_switch` calls them."""
