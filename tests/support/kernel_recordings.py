"""Recordings of this machine's kernel, each in a tracefs instance of its own: other tracing is not disturbed."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

TRACING = Path("/sys/kernel/tracing")
EVENTS_WANTED = 100_000
"""Of a large recording."""

RECORDINGS = {
    "sched": (("sched",), False),
    "syscalls": (("syscalls", "raw_syscalls"), False),
    "kmem with stacks": (("kmem",), True),
}

WORK = """
import os, subprocess, sys, threading, time
def switch(n):
    r, w = os.pipe(); s, x = os.pipe()
    def other():
        for _ in range(n):
            os.read(r, 1); os.write(x, b"x")
    thread = threading.Thread(target=other); thread.start()
    for _ in range(n):
        os.write(w, b"x"); os.read(s, 1)
    thread.join()
    for fd in (r, w, s, x): os.close(fd)
for _ in range(2):
    switch(500)
    for _ in range(300):
        fd = os.open("/proc/self/stat", os.O_RDONLY); os.read(fd, 4096); os.close(fd)
    os.listdir("/proc/self/fd")
"""


@contextmanager
def instance() -> Iterator[Path]:
    if not os.access(TRACING / "instances", os.W_OK):
        pytest.skip("NOT RUN: tracefs is not mounted: mount -t tracefs nodev /sys/kernel/tracing")
    folder = TRACING / "instances" / f"aiotrace_test_{os.getpid()}"
    try:
        folder.mkdir()
    except OSError as error:
        pytest.skip(f"NOT RUN: no tracefs instance can be made: {error}")
    try:
        (folder / "options" / "event-fork").write_text("1")
        (folder / "set_event_pid").write_text(str(os.getpid()))  # and its children's: others are not recorded
        yield folder
    finally:
        if folder.exists():  # trace-cmd extract removes it
            (folder / "events" / "enable").write_text("0")
            folder.rmdir()


def record(trace_cmd: str, systems: tuple[str, ...], stacks: bool, target: Path, events: int = EVENTS_WANTED) -> None:
    """Record this process's children until there are that many events, and some more."""
    with instance() as folder:
        (folder / "trace_clock").write_text("mono")
        (folder / "buffer_size_kb").write_text("32768")
        for system in systems:
            enable = folder / "events" / system / "enable"
            if not enable.exists():
                pytest.skip(f"NOT RUN: this kernel has no {system} events")
            enable.write_text("1")
        (folder / "options" / "stacktrace").write_text("1" if stacks else "0")
        for _ in range(200):
            subprocess.run([sys.executable, "-I", "-c", WORK], check=True)
            if sum(entries(folder)) >= events * 1.05:
                break
        (folder / "tracing_on").write_text("0")
        subprocess.run([trace_cmd, "extract", "-B", folder.name, "-o", str(target)], check=True, capture_output=True)


def entries(folder: Path) -> Iterator[int]:
    for stats in folder.glob("per_cpu/cpu*/stats"):
        yield int(stats.read_text().split("entries:")[1].split()[0])
