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

from ._base.backend import BACKEND
from ._base.errors import AcknowledgeError, AiotraceError, ConfigurationError, DefinitionError, TraceFormatError
from ._events.event import Event, event
from ._events.open_recordings import strict
from ._events.span import span, span_type

TYPE_CHECKING = False  # importing it from `typing` would double the time of `import aiotrace`
if TYPE_CHECKING:
    from typing import Any, Final

    from . import abc
    from ._collector.collect import collect
    from ._recording.recording import Recording, record
    from ._recording.sinks import SinkOptions, sink
    from ._recording.snapshot import SnapshotStatistics
    from ._recording.statistics import SinkStatistics, Statistics, WriterStatistics
    from ._recording.sync_recording import SyncRecording, recording
    from .decode import open_trace

__version__: Final = "0.1.0"
__backend__: Final = BACKEND
"""Which implementation runs per event: "c" or "python"."""

_LAZY: Final = {
    "Recording": "._recording.recording",
    "SinkOptions": "._recording.service",
    "SinkStatistics": "._recording.statistics",
    "SnapshotStatistics": "._recording.snapshot",
    "Statistics": "._recording.statistics",
    "SyncRecording": "._recording.sync_recording",
    "WriterStatistics": "._recording.statistics",
    "abc": ".abc",
    "collect": "._collector.collect",
    "open_trace": ".decode",
    "record": "._recording.recording",
    "recording": "._recording.sync_recording",
    "sink": "._recording.sinks",
}
"""Names that are imported when they are first used, and from where: a program that only emits events pays for neither
recording nor reading."""


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    import importlib

    module = importlib.import_module(_LAZY[name], __name__)
    value = module if name == "abc" else getattr(module, name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


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
