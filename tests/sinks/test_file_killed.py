"""R4: a program that streams to a file is killed at any moment; the file opens, and what it holds is exact.

Two threads number their events. After the kill the unfinished trace and the restored one must be the same: of each
thread the numbers from 0 on, with as many missing as the losses in their places say, and at least the events
that the program had seen delivered. So no page is torn, doubled, lost or in a wrong place.
"""

from __future__ import annotations

import random
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from aiotrace.decode import Event, open_trace
from aiotrace.formats import is_unfinished, restore
from support.programs import environment

pytestmark = pytest.mark.pure_too

PROGRAM = """
import itertools, sys, threading
import aiotrace
from aiotrace_sinks import FileSink

number = aiotrace.event("killed:number", n="u64", text="str")

def work():
    for n in itertools.count():
        number(n, "x" * (n % 50))

with aiotrace.recording(FileSink(sys.argv[1]), page_size=4096, pages=32, flush_interval=0.01) as recording:
    for _ in range(2):
        threading.Thread(target=work, daemon=True).start()
    while True:
        print(recording.statistics().events_delivered, flush=True)
"""


def run_and_kill(path: Path, generator: random.Random) -> int:
    """Returns the events that the program had seen delivered."""
    with subprocess.Popen(
        [sys.executable, "-c", PROGRAM, str(path)], stdout=subprocess.PIPE, text=True, env=environment()
    ) as program:
        assert program.stdout is not None
        delivered = 0
        while not delivered:
            delivered = int(program.stdout.readline())
        for _ in range(generator.randrange(100)):
            delivered = int(program.stdout.readline())
        try:
            program.wait(generator.random() / 100)
        except subprocess.TimeoutExpired:
            pass
        program.send_signal(signal.SIGKILL)
        for line in program.stdout:
            delivered = int(line) if line.endswith("\n") else delivered
    assert program.returncode == -signal.SIGKILL
    return delivered


def read(path: Path) -> list[Event]:
    with open_trace(path) as trace:
        events = list(trace)
        assert trace.damage_count == 0, trace.damage
    return events


def check_killed(path: Path, trace_cmd: str, seed: int) -> None:
    delivered = run_and_kill(path, random.Random(seed))
    assert is_unfinished(str(path))
    events = read(path)
    numbered = [event for event in events if not event.is_loss]
    assert len(numbered) >= delivered > 0, seed
    following: dict[int, int] = {}
    for event in events:
        if event.is_loss:
            following[event.cpu] = following.get(event.cpu, 0) + event.fields["count"]
            continue
        n = event.fields["n"]
        assert n == following.get(event.cpu, 0), (seed, event)
        assert event.fields["text"] == "x" * (n % 50)
        following[event.cpu] = n + 1
    report = restore(str(path))
    assert (report.damaged, report.events) == ([], len(numbered)), seed
    assert read(path) == events, seed
    done = subprocess.run([trace_cmd, "report", str(path)], capture_output=True, check=True, text=True)
    assert done.stdout.count(" number: ") == len(numbered), seed


@pytest.mark.parametrize("seed", range(10))
def test_a_program_killed_at_any_moment_leaves_an_exact_trace(tmp_path: Path, trace_cmd: str, seed: int) -> None:
    check_killed(tmp_path / "trace.dat", trace_cmd, seed)


@pytest.mark.long
@pytest.mark.parametrize("seed", range(10, 200))
def test_two_hundred_killed_programs_leave_exact_traces(tmp_path: Path, trace_cmd: str, seed: int) -> None:
    check_killed(tmp_path / "trace.dat", trace_cmd, seed)
