"""What is restored of a busy asyncio server that is killed: every event whose call had returned, but a thread's last.

A server answers connections on a Unix socket, its tasks traced where they can be; in half of the runs three threads
write events beside it. Each writer of events tells over a pipe what it wrote, after the call returned. At a random
moment the program is killed, or (every fifth) it dies by a segmentation fault, SIGABRT or os._exit of its own. Then its
arena is restored, and each thread's events must be there, numbered without a gap, up to the last one that was told, or
one more.
"""

from __future__ import annotations

import os
import random
import signal
import struct
import subprocess
import sys
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from aiotrace import open_trace
from aiotrace._arena.restore import restore_arena

from .table import Table

RUNS: Final = 200
ROOT: Final = Path(__file__).resolve().parent.parent
_TOLD: Final = struct.Struct("<IQ")
_DEATHS: Final = {"segv": -signal.SIGSEGV, "abort": -signal.SIGABRT, "exit": 3}

PROGRAM: Final = """
import asyncio, contextlib, ctypes, itertools, os, signal, struct, sys, threading
import aiotrace

arena, socket, pipe, threads, death = sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4]), sys.argv[5]
last = 100 if death != "kill" else None
number = aiotrace.event("kills:number", writer="u32", n="u64", text="str", kind="symbol")

def write(writer, n):
    number(writer, n, "x" * (n % 60), f"kind {n % 20}")
    os.write(pipe, struct.pack("<IQ", writer, n))

def work(writer):
    for n in itertools.count():
        write(writer, n)

async def answer(reader, writer):
    while line := await reader.readline():
        write(0, n := next(requests))
        if n == last:
            die()
        writer.write(line)
        await writer.drain()

async def ask():
    reader, writer = await asyncio.open_unix_connection(socket)
    while True:
        writer.write(b"a request\\n")
        await reader.readline()

def die():
    if death == "segv":
        ctypes.string_at(8)
    os.abort() if death == "abort" else os._exit(3)

async def main():
    server = await asyncio.start_unix_server(answer, socket)
    clients = [asyncio.create_task(ask()) for _ in range(4)]
    for writer in range(1, threads + 1):
        threading.Thread(target=work, args=(writer,), daemon=True).start()
    await asyncio.gather(*clients)

requests = itertools.count()
with aiotrace.recording(arena=arena, overrun="drop_oldest", page_size=4096, pages=256) as recording:
    with contextlib.suppress(aiotrace.ConfigurationError):
        recording.enable("task")
    asyncio.run(main())
"""


@dataclass(slots=True)
class Outcome:
    """What a run, or several, came to."""

    runs: int = 0
    told: int = 0
    """Events whose calls had returned."""
    restored: int = 0
    """Numbered events in the traces."""
    forgotten: int = 0
    """Told, and overwritten in the ring before the program died: all older than any that is restored."""
    unfinished: int = 0
    """Threads whose last event that was told is not there."""
    extra: int = 0
    """Threads with an event more than was told."""
    missing: int = 0
    """Told, not forgotten, and not there: must be 0."""
    torn: int = 0
    """Pages that are damaged: must be 0."""
    wrong: int = 0
    """Events that are not what was written, twice there, or out of order: must be 0."""
    faults: list[str] = field(default_factory=list)

    def add(self, other: Outcome) -> None:
        for name in ("runs", "told", "restored", "forgotten", "unfinished", "extra", "missing", "torn", "wrong"):
            setattr(self, name, getattr(self, name) + getattr(other, name))
        self.faults += other.faults


def kill_once(folder: Path, seed: int, *, threads: int, death: str = "kill", most: int = 20_000) -> Outcome:
    """One program, from its start to its restored trace.

    Args:
        most: Events that it has told before it is killed, at most.
    """
    generator = random.Random(seed)
    arena, trace = folder / f"arena{seed}", folder / f"trace{seed}.dat"
    read_end, write_end = os.pipe()
    socket = folder / f"socket{seed}"
    command = [sys.executable, "-c", PROGRAM, str(arena), str(socket), str(write_end), str(threads), death]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    with subprocess.Popen(command, pass_fds=[write_end], env=environment, stderr=subprocess.DEVNULL) as program:
        os.close(write_end)
        told: dict[int, int] = {}
        left = generator.randrange(1, most)
        with os.fdopen(read_end, "rb") as pipe:
            while entry := pipe.read(_TOLD.size):
                writer, n = _TOLD.unpack(entry)
                told[writer] = n
                left -= 1
                if not left and death == "kill":
                    program.send_signal(signal.SIGKILL)
    expected = _DEATHS.get(death, -signal.SIGKILL)
    assert program.returncode == expected, f"seed {seed}: the program ended with {program.returncode}"
    outcome = _compare(arena, trace, told, seed)
    for path in (trace, socket):
        path.unlink(missing_ok=True)
    return outcome


def _compare(arena: Path, trace: Path, told: dict[int, int], seed: int) -> Outcome:
    report = restore_arena(str(arena), str(trace))
    outcome = check_trace(trace, told, seed)
    outcome.torn += len(report.damaged) + len(report.definitions_damage)
    return outcome


def check_trace(trace: Path, told: dict[int, int], seed: int) -> Outcome:
    """What a trace has of the events that were told."""
    outcome = Outcome(runs=1, told=sum(last + 1 for last in told.values()))
    first: dict[int, int] = {}
    following: dict[int, int] = {}
    with open_trace(trace) as opened:
        for event in opened:
            if event.is_loss:
                outcome.faults.append(f"seed {seed}: {event}")
                outcome.missing += 1
            if event.name != "kills:number":
                continue
            writer, n = event.fields["writer"], event.fields["n"]
            first.setdefault(writer, n)
            if (
                n != following.get(writer, n)
                or event.fields["text"] != "x" * (n % 60)
                or event.fields["kind"] != f"kind {n % 20}"
            ):
                outcome.wrong += 1
                outcome.faults.append(f"seed {seed}: {event} where {following.get(writer)} should be")
            following[writer] = n + 1
            outcome.restored += 1
        outcome.torn += opened.damage_count
    for writer, last in told.items():
        outcome.forgotten += first.get(writer, 0)
        missing = last + 1 - following.get(writer, 0)
        outcome.unfinished += missing == 1
        outcome.extra += missing == -1
        if missing > 1 or missing < -1:
            outcome.missing += abs(missing)
            outcome.faults.append(
                f"seed {seed}: writer {writer} has {following.get(writer, 0)} events, {last + 1} told"
            )
    return outcome


def run(runs: int = RUNS) -> Table:
    """Kill so many servers."""
    table = Table(
        f"{runs} busy asyncio servers killed at random moments, and restored from their arenas",
        (
            "server",
            "death",
            "runs",
            "told",
            "restored",
            "forgotten",
            "one more",
            "last missing",
            "missing",
            "torn",
            "wrong",
        ),
        notes=(
            "told: events whose calls had returned; forgotten: of those, overwritten in the ring before the death.",
            "last missing, one more: threads whose last event was told and is not there, or is there and was not told.",
            "missing: told, not forgotten, not there. torn: damaged pages. wrong: altered, doubled, or out of order.",
        ),
    )
    outcomes: dict[tuple[str, str], Outcome] = {}
    with tempfile.TemporaryDirectory(dir="/dev/shm" if os.path.isdir("/dev/shm") else None) as folder:
        for seed in range(runs):
            threads = 3 * (seed % 2)
            death = ("segv", "abort", "exit")[seed // 10 % 3] if seed % 10 > 7 else "kill"
            outcome = kill_once(Path(folder), seed, threads=threads, death=death)
            outcomes.setdefault(("with threads" if threads else "one thread", death), Outcome()).add(outcome)
    for (server, death), o in sorted(outcomes.items()):
        numbers = (o.runs, o.told, o.restored, o.forgotten, o.extra, o.unfinished, o.missing, o.torn, o.wrong)
        table.rows.append((server, death, *numbers))
    faults = [fault for outcome in outcomes.values() for fault in outcome.faults]
    table.notes += tuple(faults[:20])
    return table
