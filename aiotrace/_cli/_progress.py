"""Progress of reading long files, shown on stderr if it is a terminal."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from typing import Final, TypeVar

from ..decode import Trace

SIZE: Final = 16 << 20
"""Bytes of pages; progress is shown for more than this."""
INTERVAL: Final = 0.25
"""Seconds between two updates."""

_T = TypeVar("_T")


def with_progress(items: Iterable[_T], traces: Sequence[Trace]) -> Iterator[_T]:
    """The same items, while the percentage of bytes read is shown on stderr."""
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
