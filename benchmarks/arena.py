"""What an event costs whose page is in a file, beside one whose page is in anonymous memory.

Recordings without a sink, whose ring overwrites the oldest page (flight mode), are opened in turn: one in anonymous
memory, one whose arena is a file on tmpfs (/dev/shm), one on the disk of the temporary folder. In each, 50,000 events
of three numbers are written, by turns of 16 pages that have been touched before. Ratios are of the same round.
"""

from __future__ import annotations

import gc
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from typing import Any, Final

import aiotrace

from .table import Table

ROUNDS: Final = 100
EVENTS: Final = 50_000
EVENT: Final = aiotrace.event("benchmarks:arena", a="u64", b="s64", c="f64")


def run() -> Table:
    """Compare."""
    table = Table(
        f"An event of three numbers, {ROUNDS} rounds of {EVENTS:,} with the turns of their pages",
        ("arena", "min ns", "median ns", "ratio of minima", "median ratio", "lowest", "highest"),
        notes=("Ratios to anonymous memory in the same round; their spread is the machine's.",),
    )
    with tempfile.TemporaryDirectory() as disk, tempfile.TemporaryDirectory(dir="/dev/shm") as memory:
        places = {"anonymous": None, "tmpfs": os.path.join(memory, "arena"), "disk": os.path.join(disk, "arena")}
        times: dict[str, list[float]] = {name: [] for name in places}
        for round in range(ROUNDS):
            names = list(places)
            for name in names[round % 3 :] + names[: round % 3]:
                times[name].append(_measure(places[name]))
    base = times["anonymous"]
    for name, each in times.items():
        ratios = [one / other for one, other in zip(each, base, strict=True)]
        numbers = min(each), statistics.median(each), min(each) / min(base), statistics.median(ratios)
        table.rows.append((name, *numbers, min(ratios), max(ratios)))
    return table


def _measure(arena: str | None) -> float:
    """Nanoseconds an event."""
    options: dict[str, Any] = {"overrun": "drop_oldest", "pages": 16, "arena": arena}
    with aiotrace.recording(**options):
        _write(EVENT, EVENTS)  # touches all pages
        gc.collect()
        gc.disable()
        try:
            return _write(EVENT, EVENTS)
        finally:
            gc.enable()


def _write(event: Callable[[int, int, float], object], count: int) -> float:
    began = time.perf_counter_ns()
    for n in range(count):
        event(n, -n, 0.5)
    return (time.perf_counter_ns() - began) / count
