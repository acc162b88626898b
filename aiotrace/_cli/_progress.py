"""How far a command is in long files, if stderr is a terminal."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from typing import Final, TypeVar

from ..decode import Trace

SIZE: Final = 16 << 20
"""Bytes from which on files are long enough to show progress."""
INTERVAL: Final = 0.25
"""Seconds."""

_T = TypeVar("_T")


def with_progress(items: Iterable[_T], traces: Sequence[Trace]) -> Iterator[_T]:
    """The same items; meanwhile stderr, if it is a terminal, says how far the reading of the traces is."""
    total = sum(trace.bytes_total for trace in traces)
    if total < SIZE or not sys.stderr.isatty():
        yield from items
        return
    due = time.monotonic() + INTERVAL
    for item in items:
        yield item
        if time.monotonic() > due:
            done = sum(trace.bytes_read for trace in traces)
            print(f"\r{100 * done // total:3d} % of {total >> 20} MiB", end="", file=sys.stderr, flush=True)
            due = time.monotonic() + INTERVAL
    print("\r\x1b[K", end="", file=sys.stderr, flush=True)
