"""What flight mode takes of memory and descriptors while it goes on and on: a row for each part of the run.

An asyncio program in flight mode, its arena a file on tmpfs, writes 50,000 events of three numbers a second and spawns
100 tasks of a name each, with all task events on. After each part a snapshot is written, read back, and removed. Flat
means: the last row is like the second (the first still has all that is loaded once).

    resident: VmRSS, the arena's pages included; private: of that, what is no shared page (RssAnon); files: descriptors
"""

from __future__ import annotations

import asyncio
import os
import tempfile
import time
from pathlib import Path
from typing import Final

import aiotrace

from .table import Table

SECONDS: Final = 60.0
RATE: Final = 50_000
PERIOD: Final = 0.01
PARTS: Final = 12
EVENT: Final = aiotrace.event("benchmarks:flat", a="u64", b="s64", c="f64")


def run(seconds: float = SECONDS) -> Table:
    """Run for that long, in twelve parts."""
    table = Table(
        f"Flight mode for {seconds:,.0f} s: {RATE:,} events and {1 / PERIOD:.0f} tasks a second",
        ("after s", "events", "dropped", "CPU %", "resident KiB", "private KiB", "files", "threads", "in snapshot"),
    )
    with tempfile.TemporaryDirectory(dir="/dev/shm") as folder:
        asyncio.run(_fly(Path(folder), seconds, table))
    return table


async def _fly(folder: Path, seconds: float, table: Table) -> None:
    async with aiotrace.record(overrun="drop_oldest", arena=folder / "arena", thread=True) as recording:
        recording.enable("task:*")
        turns = round(seconds / PERIOD)
        began, cpu_before = time.monotonic(), time.process_time()
        for part in range(PARTS):
            await _work(began, turns * part // PARTS, turns * (part + 1) // PARTS)
            cpu = time.process_time() - cpu_before
            path = folder / "now.dat"
            await recording.snapshot(path)
            with aiotrace.open_trace(path) as trace:
                held = sum(1 for event in trace if event.name == EVENT.name)
            path.unlink()
            counted = recording.statistics()
            resident, private = _memory("VmRSS"), _memory("RssAnon")
            row = time.monotonic() - began, counted.events_written, counted.events_dropped
            share = 100 * cpu / (seconds / PARTS)
            table.rows.append((*row, share, resident, private, _count("fd"), _count("task"), held))
            print(table.rows[-1], flush=True)
            cpu_before = time.process_time()


async def _work(began: float, first: int, end: int) -> None:
    """Events and tasks at their rates, turn by turn; who is late makes up for it."""
    loop = asyncio.get_running_loop()
    for turn in range(first, end):
        for number in range(int(RATE * PERIOD)):
            EVENT(turn, -number, 0.5)
        await loop.create_task(asyncio.sleep(0), name=f"request {turn}")
        await asyncio.sleep(max(0.0, began + (turn + 1) * PERIOD - time.monotonic()))


def _memory(key: str) -> int:
    """KiB."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(key))


def _count(what: str) -> int:
    return len(os.listdir(f"/proc/self/{what}"))
