"""The sinks that come with aiotrace: each an async callable over an `aiotrace.abc.PageStream`.

FileSink    a trace.dat, for trace-cmd, KernelShark and `aiotrace report`
TextSink    one line an event, like trace_pipe
MemorySink  the last pages, for tests and notebooks
NullSink    nothing
SocketSink  a collector, over a Unix socket, TCP or TLS: it keeps a page until the collector has it
TraceCmdSink
            a `trace-cmd listen`, which makes a trace.dat; its protocol has no acknowledgements
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from ._file import FileSink
    from ._memory import MemorySink
    from ._null import NullSink
    from ._socket import SocketSink
    from ._text import TextSink
    from ._tracecmd import TraceCmdSink

__all__ = ["FileSink", "MemorySink", "NullSink", "SocketSink", "TextSink", "TraceCmdSink"]

_MODULES: Final = {
    "FileSink": "_file",
    "MemorySink": "_memory",
    "NullSink": "_null",
    "SocketSink": "_socket",
    "TextSink": "_text",
    "TraceCmdSink": "_tracecmd",
}

SCHEMES: Final = {
    "file": "FileSink",
    "null": "NullSink",
    "tcp": "SocketSink",
    "text": "TextSink",
    "tls": "SocketSink",
    "trace-cmd": "TraceCmdSink",
    "unix": "SocketSink",
}
"""The sink of each URL scheme, as the entry points say: these are found without reading those of all packages."""


def __getattr__(name: str) -> Any:
    """Each is imported when it is first used: a program that writes a file does not pay for decoding."""
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    sink = getattr(importlib.import_module(f".{_MODULES[name]}", __name__), name)
    globals()[name] = sink
    return sink


def __dir__() -> list[str]:
    return [*globals(), *__all__]
