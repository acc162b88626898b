"""Clocks: what a timestamp means, and the anchor that ties it to the wall clock.

Events carry CLOCK_MONOTONIC in nanoseconds, the clock that the kernel and trace-cmd call `mono`: it never
jumps, and a trace merges with a kernel trace taken by the same clock. What time of day it was is told once,
by an `Anchor` in every stream and file.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from ._errors import ConfigurationError

Clock = Callable[[], int]
"""Returns nanoseconds; must not go backwards within a thread."""

CLOCKS: Final[dict[str, Clock]] = {"mono": time.monotonic_ns}
"""Names as in /sys/kernel/tracing/trace_clock."""


def get_clock(name: str) -> Clock:
    """The clock of that name.

    Raises:
        ConfigurationError: There is none.
    """
    try:
        return CLOCKS[name]
    except KeyError:
        raise ConfigurationError(f"clock={name!r} is unknown; known: {', '.join(sorted(CLOCKS))}") from None


@dataclass(frozen=True, slots=True)
class Anchor:
    """One moment on both clocks."""

    monotonic_ns: int
    """Nanoseconds of the clock of the events."""
    realtime_ns: int
    """Nanoseconds since 1970-01-01 UTC at that moment."""
    boot_id: str
    """/proc/sys/kernel/random/boot_id: monotonic times of different boots cannot be compared. "" if unknown."""


def take_anchor(clock: Clock) -> Anchor:
    """Read both clocks as close together as can be: the best of three tries."""
    tries = []
    for _ in range(3):
        before = clock()
        realtime = time.time_ns()
        after = clock()
        tries.append((after - before, (before + after) // 2, realtime))
    _, monotonic, realtime = min(tries)
    return Anchor(monotonic, realtime, _boot_id())


def _boot_id() -> str:
    try:
        with open("/proc/sys/kernel/random/boot_id", encoding="ascii") as file:
            return file.read().strip()
    except OSError:
        return ""
