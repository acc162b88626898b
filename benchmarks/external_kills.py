"""What is left of a busy asyncio server that is killed while a recorder process reads its arena: nothing is missing.

The servers of `kills`, under `aiotrace record`: at a random moment the program, not its recorder, dies of
SIGKILL. Then the recorder finishes the trace, and each thread's events must be in it, numbered without a gap, up to the
last one that was told over a pipe after its call had returned, or one more.
"""

from __future__ import annotations

import os
import random
import signal
import struct
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Final

from .kills import PROGRAM, ROOT, Outcome, check_trace
from .table import Table

RUNS: Final = 100
_TOLD: Final = struct.Struct("<IQ")
_PID: Final = 0xFFFFFFFF
"""Stands for a writer where the program tells its pid."""
_OPEN: Final = "with aiotrace.recording("
SERVER: Final = (
    PROGRAM[: PROGRAM.index(_OPEN)] + f'os.write(pipe, struct.pack("<IQ", {_PID}, os.getpid()))\nasyncio.run(main())\n'
)
"""The same, but it records nothing by itself."""


def kill_once(folder: Path, seed: int, *, threads: int, most: int = 20_000) -> Outcome:
    """One program, from its start to its finished trace.

    Args:
        most: Events that it has told before it is killed, at most.
    """
    generator = random.Random(seed)
    trace, socket = folder / f"trace{seed}.dat", folder / f"socket{seed}"
    read_end, write_end = os.pipe()
    record = [sys.executable, "-m", "aiotrace", "record", "-q", "-b", "16M", "-o", str(trace), "--force"]
    program = ["-c", SERVER, "", str(socket), str(write_end), str(threads), "kill"]
    path = os.pathsep.join(entry for entry in (str(ROOT), os.environ.get("PYTHONPATH")) if entry)
    environment = {**os.environ, "PYTHONPATH": path}
    told: dict[int, int] = {}
    with subprocess.Popen([*record, *program], pass_fds=[write_end], env=environment) as recorder:
        os.close(write_end)
        left = generator.randrange(1, most)
        pid = 0
        with os.fdopen(read_end, "rb") as pipe:
            while entry := pipe.read(_TOLD.size):
                writer, n = _TOLD.unpack(entry)
                if writer == _PID:
                    pid = n
                    continue
                told[writer] = n
                left -= 1
                if not left:
                    os.kill(pid, signal.SIGKILL)
    assert recorder.returncode == -signal.SIGKILL, f"seed {seed}: the recorder ended with {recorder.returncode}"
    outcome = check_trace(trace, told, seed)
    if outcome.forgotten:
        outcome.faults.append(f"seed {seed}: {outcome.forgotten} events before the first are missing")
        outcome.missing += outcome.forgotten
    for each in (trace, socket):
        each.unlink(missing_ok=True)
    return outcome


def run(runs: int = RUNS) -> Table:
    """Kill so many servers."""
    table = Table(
        f"{runs} busy asyncio servers killed at random moments, recorded by another process",
        ("server", "runs", "told", "in the trace", "one more", "last missing", "missing", "torn", "wrong"),
        notes=(
            "told: events whose calls had returned. last missing, one more: threads whose last event was told and is "
            "not there, or is there and was not told.",
            "missing: told, and not there. torn: damaged pages. wrong: altered, doubled, or out of order.",
        ),
    )
    outcomes = {"one thread": Outcome(), "with threads": Outcome()}
    with tempfile.TemporaryDirectory() as folder:
        for seed in range(runs):
            threads = 3 * (seed % 2)
            outcomes["with threads" if threads else "one thread"].add(kill_once(Path(folder), seed, threads=threads))
    for server, o in outcomes.items():
        table.rows.append((server, o.runs, o.told, o.restored, o.extra, o.unfinished, o.missing, o.torn, o.wrong))
    table.notes += tuple([fault for outcome in outcomes.values() for fault in outcome.faults][:20])
    return table
