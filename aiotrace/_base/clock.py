"""Clocks: what a timestamp means, and the anchor that ties it to the wall clock.

Events carry CLOCK_MONOTONIC in nanoseconds, the clock that the kernel and trace-cmd call `mono`: it never
jumps, and a trace can be merged with a kernel trace of the same clock. Every stream and file has one `Anchor`, which
ties it to the time of day.

`clock="tsc"` is the same clock, read in a third of the time: the C writer reads the processor's time stamp counter and
converts it at once, anchored to CLOCK_MONOTONIC on each page and after each pause of 134 ms. So a trace always holds
nanoseconds of `mono`, and readers convert nothing.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from .backend import c_module
from .errors import ConfigurationError

Clock = Callable[[], int]
"""Returns nanoseconds; must not go backwards within a thread."""

MONO: Final = "mono"
"""The clock that a trace names for its timestamps, as in /sys/kernel/tracing/trace_clock."""
TSC_CALIBRATION: Final = 0.02
"""Seconds: CLOCK_MONOTONIC is read to some 50 ns, so the rate is known to a few millionths."""


class TscClock:
    """CLOCK_MONOTONIC, for code that is not per event. The attribute lets the C cursor read the counter itself."""

    aiotrace_tsc = True

    def __call__(self) -> int:
        return time.monotonic_ns()


def get_clock(name: str) -> Clock:
    """The clock of that name: "mono" or "tsc".

    Raises:
        ConfigurationError: There is no such clock, or not on this machine.
    """
    if name == MONO:
        return time.monotonic_ns
    if name != "tsc":
        raise ConfigurationError(f"clock={name!r} is unknown; known: 'mono', 'tsc'")
    if c_module is None:
        raise ConfigurationError("clock='tsc' needs the C module, which is not there; clock='mono' does not")
    if not c_module.tsc_calibrate(TSC_CALIBRATION):
        raise ConfigurationError("clock='tsc': this processor has no counter of constant rate; use clock='mono'")
    return TscClock()


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
    """Read both clocks as close together as possible: the best of three tries."""
    tries = []
    for _ in range(3):
        before = clock()
        realtime = time.time_ns()
        after = clock()
        tries.append((after - before, (before + after) // 2, realtime))
    _, monotonic, realtime = min(tries)
    return Anchor(monotonic, realtime, boot_id())


def boot_id() -> str:
    """The id of this boot; "" if unknown."""
    try:
        with open("/proc/sys/kernel/random/boot_id", encoding="ascii") as file:
            return file.read().strip()
    except OSError:
        return ""
