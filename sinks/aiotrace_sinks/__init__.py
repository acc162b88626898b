"""The sinks that come with aiotrace: each an async callable over an `aiotrace.abc.PageStream`.

FileSink    a trace.dat, for trace-cmd, KernelShark and `aiotrace report`
TextSink    one line an event, like trace_pipe
MemorySink  the last pages, for tests and notebooks
NullSink    nothing
"""

from __future__ import annotations

from ._file import FileSink
from ._memory import MemorySink
from ._null import NullSink
from ._text import TextSink

__all__ = ["FileSink", "MemorySink", "NullSink", "TextSink"]
