"""Real faults under a real recording into a file: a full disk (R8), I/O errors and short writes (R9), SIGKILL (R4).

The deterministic ones, at every call, are in test_store.py and test_file.py.
"""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import anyio
import anyio.lowlevel
import pytest

import aiotrace
from aiotrace.formats import restore
from aiotrace_sinks import FileSink, NullSink
from support.programs import environment


def count(trace_cmd: str, path: Path) -> list[int]:
    """The numbers that the events of this file have, as trace-cmd prints them."""
    done = subprocess.run([trace_cmd, "report", path], capture_output=True, check=True, text=True)
    return [int(line.partition(" n=")[2].split()[0]) for line in done.stdout.splitlines() if " n=" in line]


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    folder = tmp_path / "small"
    folder.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", folder], check=True)
    yield folder
    subprocess.run(["umount", folder], check=True)


def fill(balloon: Path) -> None:
    """Take all the room that is left."""
    try:
        with balloon.open("wb", buffering=0) as file:
            while True:
                file.write(bytes(4096))
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise


@pytest.mark.root
@pytest.mark.anyio
async def test_full_disk_loses_no_delivered_events(trace_cmd: str, small_disk: Path) -> None:
    """R8. The disk is filled by somebody else, and freed again."""
    happened = aiotrace.event("full_disk:happened", n="u64", filling="str")
    path = small_disk / "trace.dat"
    balloon = small_disk / "balloon"
    sink = aiotrace.sink(FileSink(path), quota=8)
    async with aiotrace.record(sink, NullSink(), page_size=4096, pages=32, flush_interval=0.01) as recording:
        for n in range(500):
            await happened.send(n, "x" * 60)
        fill(balloon)
        refused = recording.statistics().events_dropped
        n = 500
        while recording.statistics().events_dropped == refused:  # until the pool is full of what cannot be written
            happened(n, "x" * 60)
            n += 1
            if n % 100 == 0:
                await anyio.lowlevel.checkpoint()
        while recording.statistics().sinks[0].failures < 6:  # now the pauses between two attempts are the longest
            await anyio.lowlevel.checkpoint()
        stuck = recording.statistics().sinks[0].events_delivered
        balloon.unlink()
        began = anyio.current_time()
        while recording.statistics().sinks[0].events_delivered == stuck:
            await anyio.lowlevel.checkpoint()
        print(f"resumes {anyio.current_time() - began:.3f} s after space was freed")
        with anyio.fail_after(60):
            for later in range(n, n + 2000):
                await happened.send(later, "x" * 60)
    statistics = recording.statistics()
    assert statistics.events_dropped > 0
    assert statistics.events_written == statistics.events_delivered
    found = count(trace_cmd, path)
    assert len(found) == statistics.events_delivered
    assert found == sorted(set(found))
    assert os.listdir(small_disk) == ["trace.dat"]


FAULTY = """
import asyncio, ctypes, json, os, sys
import aiotrace
from aiotrace._store import batch_write, store, trace_files
from aiotrace_sinks import FileSink

fiu = ctypes.CDLL("libfiu.so.0")

class Os:
    # CPython calls pwritev2 and C pwritev, which libfiu does not know.
    def __getattr__(self, name):
        return getattr(os, name)

    def pwritev(self, fd, buffers, offset):
        return os.pwrite(fd, b"".join(buffers), offset)

async def main():
    happened = aiotrace.event("faulty:happened", n="u64", filling="str")
    sink = FileSink(sys.argv[1], max_size=30 * 4096, fsync=sys.argv[2] == "fsync")
    async with aiotrace.record(sink, page_size=4096, pages=64, flush_interval=0.01, drain_timeout=60) as recording:
        # Not before: a file that cannot be opened is refused at once, and that is another test.
        trace_files.os = Os()
        store.write_whole = batch_write.python_write_whole
        for name, probability in json.loads(sys.argv[4]).items():
            assert not fiu.fiu_enable_random(name.encode(), 1, ctypes.c_void_p(5), 0, ctypes.c_float(probability))
        n = 0
        while n < int(sys.argv[3]) or recording.statistics().sinks[0].failures < 5:
            await happened.send(n, "x" * 40)
            n += 1
    statistics = recording.statistics()
    print(json.dumps([statistics.events_written, statistics.events_delivered]))

import warnings
warnings.simplefilter("ignore")
asyncio.run(main())
"""


@pytest.mark.parametrize(
    ("fsync", "events"), [("fsync", 3000), ("no fsync", 3000), pytest.param("fsync", 100_000, marks=pytest.mark.long)]
)
def test_errors_and_short_writes_lose_and_double_nothing(
    trace_cmd: str, fiu_run: str, tmp_path: Path, fsync: str, events: int
) -> None:
    """R9: 10 % EIO, 20 % short; 2 % of the fsyncs fail."""
    path = tmp_path / "trace.dat"
    faults = {"posix/io/rw/pwrite": 0.1, "posix/io/rw/pwrite/reduce": 0.2, "posix/io/sync/fdatasync": 0.02}
    command = [fiu_run, "-x", sys.executable, "-c", FAULTY, str(path), fsync, str(events), json.dumps(faults)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment(), timeout=600)
    assert done.returncode == 0, done.stderr
    written, delivered = json.loads(done.stdout.splitlines()[-1])
    for journal in tmp_path.glob("*.journal"):  # of a file that could not be closed in ten attempts, which happens
        restore(str(journal.with_suffix("")))
    numbers = [number for file in tmp_path.iterdir() for number in count(trace_cmd, file)]
    assert written == delivered >= events
    assert sorted(numbers) == list(range(written))


KILLED = """
import asyncio, sys
import aiotrace
from aiotrace_sinks import FileSink

async def main():
    happened = aiotrace.event("killed:happened", n="u64", filling="str")
    async with aiotrace.record(FileSink(sys.argv[1]), page_size=4096, pages=32, flush_interval=0.01) as recording:
        n = 0
        while True:
            for _ in range(2000):
                await happened.send(n, "x" * 40)
                n += 1
            print(recording.statistics().events_delivered, flush=True)

asyncio.run(main())
"""


QUIET = """
import asyncio, sys
import aiotrace
from aiotrace_sinks import FileSink

async def main():
    happened = aiotrace.event("quiet:happened", n="u64")
    async with aiotrace.record(FileSink(sys.argv[1]), flush_interval=0.01) as recording:
        for n in range(10):
            happened(n)
            while recording.statistics().events_delivered <= n:
                await asyncio.sleep(0)
        print("ten", flush=True)
        await asyncio.sleep(1000)

asyncio.run(main())
"""


def test_events_of_a_quiet_killed_program_are_restored(trace_cmd: str, tmp_path: Path) -> None:
    path = tmp_path / "trace.dat"
    command = [sys.executable, "-c", QUIET, str(path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment()) as program:
        assert program.stdout is not None
        assert program.stdout.readline() == "ten\n"
        program.send_signal(signal.SIGKILL)
    with aiotrace.open_trace(path) as trace:
        assert [event.fields["n"] for event in trace] == list(range(10))
    assert restore(str(path)).pages == 1
    assert count(trace_cmd, path) == list(range(10))


@pytest.mark.parametrize("lines", [1, 3])
def test_pages_acknowledged_by_a_killed_program_are_restored(trace_cmd: str, tmp_path: Path, lines: int) -> None:
    """R4, as far as a file reaches: each page that was acknowledged is there, and the events are without a gap."""
    path = tmp_path / "trace.dat"
    command = [sys.executable, "-c", KILLED, str(path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment()) as program:
        assert program.stdout is not None
        delivered = [int(program.stdout.readline()) for _ in range(lines)][-1]
        program.send_signal(signal.SIGKILL)
    report = restore(str(path))
    assert (report.damaged, report.journal_damage) == ([], [])
    found = count(trace_cmd, path)
    assert found == list(range(report.events))
    assert report.events >= delivered > 0
