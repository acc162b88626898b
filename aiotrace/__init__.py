"""aiotrace: the ftrace of async Python.

request_done = aiotrace.event("http:request_done", status="u16", latency_ns="u64", path="str")

async with aiotrace.record(FileSink("trace.dat")) as recording:
    request_done(200, 1_250_000, "/index")             # synchronous; never blocks
    await request_done.send(200, 1_250_000, "/index")  # waits for a free page instead of dropping
    with aiotrace.span("db.query", table="users"):     # begin and end, nested per task
        ...
print(recording.statistics())
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from . import abc
from ._base.backend import BACKEND
from ._base.errors import AcknowledgeError, AiotraceError, ConfigurationError, DefinitionError, TraceFormatError
from ._events.event import Event, event
from ._events.open_recordings import strict
from ._events.span import span, span_type
from ._recording.recording import Recording, record
from ._recording.sinks import SinkOptions, sink
from ._recording.snapshot import SnapshotStatistics
from ._recording.statistics import SinkStatistics, Statistics, WriterStatistics
from ._recording.sync_recording import SyncRecording, recording

__version__: Final = "0.1.0"
__backend__: Final = BACKEND
"""Which implementation runs per event: "c" or "python"."""

if TYPE_CHECKING:
    from ._collector.collect import collect
    from .decode import open_trace


def __getattr__(name: str) -> Any:
    """Reading and collecting are imported when they are first used: a program that only records does not pay for it."""
    if name == "collect":
        from ._collector.collect import collect

        return collect
    if name == "open_trace":
        from .decode import open_trace

        return open_trace
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


__all__ = [
    "AcknowledgeError",
    "AiotraceError",
    "ConfigurationError",
    "DefinitionError",
    "Event",
    "Recording",
    "SinkOptions",
    "SinkStatistics",
    "SnapshotStatistics",
    "Statistics",
    "SyncRecording",
    "TraceFormatError",
    "WriterStatistics",
    "abc",
    "collect",
    "event",
    "open_trace",
    "record",
    "recording",
    "sink",
    "span",
    "span_type",
    "strict",
]
