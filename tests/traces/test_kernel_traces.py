"""Traces that the kernel makes now, against what trace-cmd says of them: every event, time, cpu, pid and field.

The recordings are made in a tracefs instance of their own, so that other tracing is not disturbed.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from aiotrace.decode import open_trace
from support import kernel
from support.kernel_recordings import EVENTS_WANTED, RECORDINGS, WORK, instance, record


def check_recording(trace_cmd: str, kind: str, path: Path, wanted: int) -> None:
    record(trace_cmd, *RECORDINGS[kind], path, wanted)
    with open_trace(path) as trace:
        count = kernel.compare(trace, kernel.raw_report(trace_cmd, str(path)))
        assert not trace.damage
    assert count >= wanted


@pytest.mark.root
@pytest.mark.parametrize("kind", RECORDINGS)
def test_every_event_of_the_kernels_agrees_with_trace_cmd(kind: str, trace_cmd: str, tmp_path: Path) -> None:
    check_recording(trace_cmd, kind, tmp_path / "trace.dat", 25_000)


@pytest.mark.long
@pytest.mark.root
@pytest.mark.parametrize("kind", RECORDINGS)
def test_every_event_of_a_large_kernel_trace_agrees_with_trace_cmd(kind: str, trace_cmd: str, tmp_path: Path) -> None:
    check_recording(trace_cmd, kind, tmp_path / "trace.dat", EVENTS_WANTED)


@pytest.mark.root
def test_events_refused_by_the_kernel_are_reported_after_the_last_page(trace_cmd: str, tmp_path: Path) -> None:
    """Pages report overwritten events only; events that found no room are counted in trace-cmd's file."""
    path = tmp_path / "trace.dat"
    with instance() as folder:
        (folder / "options" / "overwrite").write_text("0")
        (folder / "buffer_size_kb").write_text("16")
        (folder / "events" / "kmem" / "enable").write_text("1")
        subprocess.run([sys.executable, "-I", "-c", WORK], check=True)
        (folder / "tracing_on").write_text("0")
        dropped = {
            int(stats.parent.name.removeprefix("cpu")): int(stats.read_text().split("dropped events:")[1].split()[0])
            for stats in folder.glob("per_cpu/cpu*/stats")
        }
        subprocess.run([trace_cmd, "extract", "-B", folder.name, "-o", str(path)], check=True, capture_output=True)
    assert max(dropped.values()) > 1000
    with open_trace(path) as trace:
        events = list(trace)
        assert {loss.cpu: loss.count for loss in trace.losses} == {cpu: n for cpu, n in dropped.items() if n}
    assert [event.fields["count"] for event in events if event.is_loss] != []
    for cpu in {event.cpu for event in events if event.is_loss}:
        assert [event.is_loss for event in events if event.cpu == cpu][-2:] == [False, True]


BETWEEN = """
import os, sys
import aiotrace
from aiotrace_sinks import FileSink

between = aiotrace.event("merge:between", n="u32")
with aiotrace.recording(FileSink(sys.argv[1])):
    for n in range(20):
        os.getsid(0)
        between(n)
        os.getpgrp()
"""
GETSID, GETPGRP = 124, 111
"""Numbers of system calls, on x86-64."""


@pytest.mark.root
@pytest.mark.skipif(os.uname().machine != "x86_64", reason="NOT RUN: the numbers of system calls are of x86-64")
def test_our_trace_and_a_kernel_trace_merge_event_by_event(trace_cmd: str, tmp_path: Path) -> None:
    ours, kernels = tmp_path / "ours.dat", tmp_path / "kernels.dat"
    with instance() as folder:
        (folder / "trace_clock").write_text("mono")
        enter = folder / "events" / "raw_syscalls" / "sys_enter"
        if not enter.exists():
            pytest.skip("NOT RUN: this kernel has no raw_syscalls events")
        (enter / "filter").write_text(f"id == {GETSID} || id == {GETPGRP}")
        (enter / "enable").write_text("1")
        subprocess.run([sys.executable, "-c", BETWEEN, str(ours)], check=True)
        (folder / "tracing_on").write_text("0")
        subprocess.run([trace_cmd, "extract", "-B", folder.name, "-o", str(kernels)], check=True, capture_output=True)
    merged = subprocess.run(
        [trace_cmd, "report", "-i", kernels, "-i", ours], capture_output=True, text=True, check=True
    )
    found = re.findall(r"NR (?:124|111) |between: +n=\d+", merged.stdout)
    first = found.index("between:              n=0") - 1
    assert found[first : first + 60] == [
        each for n in range(20) for each in (f"NR {GETSID} ", f"between:              n={n}", f"NR {GETPGRP} ")
    ]
