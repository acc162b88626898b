"""Opens a trace by its kind: a trace.dat, an unfinished trace, or an arena."""

from __future__ import annotations

import os

from .._arena.file import is_arena
from .._store.unfinished import is_unfinished
from .arena_file import ArenaSource
from .trace import Trace
from .tracedat_file import TraceDatSource
from .unfinished_file import UnfinishedSource

__all__ = ["open_trace"]


def open_trace(path: str | os.PathLike[str]) -> Trace:
    """Open a trace of aiotrace or of the kernel (trace.dat, version 6 or 7), complete or not, or an arena.

    Args:
        path: The trace.dat, of which an unfinished one has a journal beside it, or the arena.

    Returns:
        A context manager over the events; see `Trace`.

    Raises:
        ConfigurationError: It is compressed with zstd, and this Python has no zstd.
        OSError: The file cannot be opened.
        TraceFormatError: The file is not a trace, or its beginning is damaged. The message has the file, the offset
            and what was expected there.
    """
    name = os.fspath(path)
    if is_arena(name):
        return Trace(ArenaSource(name))
    return Trace(UnfinishedSource(name) if is_unfinished(name) else TraceDatSource(name))
