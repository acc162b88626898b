"""How fast one thread's events come through: into a file, a null sink, and nothing.

    a busy thread: event, event, event ... ---> pages ---> the reader's thread ---> sink

The busy thread calls events as fast as it can, for a second at a time, and the rows take turns. "Events alone" is the
same loop with the reader at rest while it runs. What was not delivered is counted: the ledger stands beside the speed.

Then 1,000,000 events/s are kept up with the default pool: who calls sleeps between thousands, so what else the process
spends is the reader's and the sink's; and its resident size is compared with the pages that it used.
"""

from __future__ import annotations

import contextlib
import gc
import os
import random
import statistics
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import repeat
from pathlib import Path

import aiotrace
from aiotrace import Statistics, SyncRecording
from aiotrace_sinks import FileSink, NullSink

from .events import THREE, Recorded, three
from .table import Cell, Table

TURNS = 5
"""How often each row has its second."""
SECOND = 1.0
SUSTAINED_SECONDS = 30.0
SUSTAINED_RATE = 1_000_000
"""Events a second."""
BURST = 1000
MIB = 1 << 20

Goal = tuple[str, float]


def call_for(seconds: float) -> tuple[int, float]:
    """Call the event as fast as can be. Returns how often, and the seconds that it really took."""
    a, b, c = THREE.values()
    call = three
    count = 0
    began = now = time.perf_counter()
    while now - began < seconds:
        for _ in repeat(None, 10_000):
            call(a, b, c)
        count += 10_000
        now = time.perf_counter()
    return count, now - began


def call_at_rate(seconds: float) -> int:
    """Call the event SUSTAINED_RATE times a second, in bursts. Returns how often."""
    a, b, c = THREE.values()
    count = 0
    began = time.perf_counter()
    while (now := time.perf_counter() - began) < seconds:
        if count < now * SUSTAINED_RATE:
            for _ in repeat(None, BURST):
                three(a, b, c)
            count += BURST
        else:
            time.sleep(BURST / SUSTAINED_RATE)
    return count


@dataclass
class Turn:
    """One second of one row."""

    calls: int
    seconds: float
    cpu: float
    """Seconds of all threads, the drain at the end not included."""
    told: Statistics | None
    drained: float = 0.0
    """Seconds until the recording was closed, from the first call."""


def in_recording(recording: SyncRecording, seconds: float) -> Turn:
    with recording:
        cpu = time.process_time()
        began = time.perf_counter()
        calls, took = call_for(seconds)
        cpu = time.process_time() - cpu
    return Turn(calls, took, cpu, recording.statistics(), time.perf_counter() - began)


def alone(recorded: Recorded, seconds: float) -> Turn:
    """Events and the turning of pages; the reader works between the stretches that are counted."""
    calls, took, cpu = 0, 0.0, 0.0
    while took < seconds:
        recorded.begin()
        try:
            cpu -= time.process_time()
            more, longer = call_for(min(0.002, seconds))
            cpu += time.process_time()
        finally:
            recorded.end()
        calls += more
        took += longer
    return Turn(calls, took, cpu, None)


def disabled(seconds: float) -> Turn:
    cpu = time.process_time()
    calls, took = call_for(seconds)
    return Turn(calls, took, time.process_time() - cpu, None)


def speed(turn: Turn) -> float:
    return turn.calls / turn.seconds


def _verdict(value: float, goal: Goal | None) -> tuple[Cell, Cell]:
    if goal is None:
        return "", ""
    how, limit = goal
    return f"{how} {limit:g}", "yes" if (value <= limit if how == "<=" else value >= limit) else "no"


ALONE = "events alone"


def line(name: str, turns: list[Turn], alone: list[Turn], goal: Goal | None = None) -> tuple[Cell, ...]:
    ratio = statistics.median(speed(whole) / speed(turn) for turn, whole in zip(turns, alone, strict=True))
    told = [turn.told for turn in turns if turn.told is not None]
    delivered = sum(each.events_delivered for each in told)
    lost = sum(each.events_lost for each in told)
    calls = sum(turn.calls for turn in turns)
    assert not told or (delivered + lost == calls and not sum(each.events_in_flight for each in told)), told
    return (
        name,
        round(statistics.median(map(speed, turns))),
        ratio,
        1e9 * sum(turn.cpu for turn in turns) / calls,
        round(delivered / sum(turn.drained for turn in turns)) if told else "",
        delivered if told else "",
        lost if told else "",
        100 * lost / calls if told else "",
        *_verdict(ratio, goal),
    )


def run_flat_out(turns: int, second: float) -> list[tuple[Cell, ...]]:
    outcome: dict[str, list[Turn]] = {"nothing": [], ALONE: [], "null sink": [], "file": []}
    recorded = Recorded()
    try:
        with tempfile.TemporaryDirectory() as folder:
            for turn in range(turns):
                for name in random.sample(list(outcome), len(outcome)):
                    if name == "nothing":
                        made = disabled(second / 5)
                    elif name == ALONE:
                        made = alone(recorded, second / 5)
                    elif name == "null sink":
                        made = in_recording(aiotrace.recording(NullSink()), second)
                    else:
                        path = Path(folder) / f"{turn}.dat"
                        made = in_recording(aiotrace.recording(FileSink(path)), second)
                        path.unlink()
                    outcome[name].append(made)
    finally:
        recorded.close()
    goals: dict[str, Goal] = {"file": ("<=", 1.4)}
    return [line(name, made, outcome[ALONE], goals.get(name)) for name, made in outcome.items()]


def resident() -> int:
    """Bytes of this process's memory that are in use."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGESIZE")


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


def run_sustained(seconds: float) -> list[tuple[str, Cell, Cell, Cell]]:
    """Rate, losses, what reader and sink cost, and memory."""
    with tempfile.TemporaryDirectory() as folder, _quiet():
        three(**THREE)
        before = resident()
        recording = aiotrace.recording(FileSink(Path(folder) / "trace.dat"))
        with recording:
            began = time.perf_counter()
            others = time.process_time() - time.thread_time()
            calls = call_at_rate(seconds)
            others = time.process_time() - time.thread_time() - others
            took = time.perf_counter() - began
            used = resident() - before
            pages = recording.statistics().pages_allocated
        told = recording.statistics()
    assert told.calls == calls == told.events_delivered + told.events_lost, told
    share = 100 * others / took
    beyond = (used - pages * told.page_size) / MIB
    return [
        ("events/s", round(calls / took), *_verdict(calls / took, (">=", 0.99 * SUSTAINED_RATE))),
        ("events lost", told.events_lost, *_verdict(told.events_lost, ("<=", 0))),
        ("reader and sink, % of a core", share, *_verdict(share, ("<=", 15))),
        ("pages in use", pages, "", ""),
        ("resident beyond those pages, MiB", beyond, *_verdict(beyond, ("<=", 2))),
    ]


def run(seconds: float | None = None, turns: int | None = None, second: float | None = None) -> Table:
    """
    Args:
        seconds: How long 1,000,000 events/s are kept up.
        turns: How often each row is measured flat out.
        second: How long each time.
    """
    seconds = SUSTAINED_SECONDS if seconds is None else seconds
    sustained = run_sustained(seconds)
    rows = run_flat_out(turns or TURNS, second or SECOND)
    blank: tuple[Cell, ...] = ("",) * 7
    rows += [(f"sustained: {name}", value, *blank[:6], goal, reached) for name, value, goal, reached in sustained]
    return Table(
        title=f"Events of three numbers from one busy thread, reader in another; back end {aiotrace.__backend__!r}",
        columns=(
            "into", "calls/s", "slower", "CPU ns a call", "delivered/s", "delivered", "lost", "%", "goal", "reached",
        ),
        rows=rows,
        notes=(
            "slower: median over the turns of the speed of events alone to this row's, in the same turn; CPU: of all",
            "threads, which a machine that others use too does not change; delivered/s: until the recording is closed,",
            "drain included; lost: counted by the ledger, which is asserted to be exact.",
            f"sustained: {SUSTAINED_RATE:,} events/s for {seconds:g} s with the default pool into a file.",
        ),
    )  # fmt: skip
