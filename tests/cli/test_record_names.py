"""`aiotrace record` for services: names by a pattern, how many traces are kept, and a disk that is full."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import aiotrace
from aiotrace._base.backend import c_module

PROGRAM = """
import aiotrace, os, sys
step = aiotrace.event("app:step", n="u32")
step(1)
"""


def record(folder: Path, *words: str, program: str = PROGRAM) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "aiotrace", "record", *words, "-c", program],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=120,
    )


def events(path: Path) -> int:
    with aiotrace.open_trace(path) as trace:
        return sum(event.name == "app:step" for event in trace.events())


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_service_starts_again_and_again_and_keeps_its_newest_traces(tmp_path: Path) -> None:
    starts = [record(tmp_path, "--service", "--keep", "2") for _ in range(3)]
    assert [start.returncode for start in starts] == [0, 0, 0]
    found = [re.search(r"(trace-\d+-\d{8}-\d{6}\.\d{6}\.dat): 1 events", start.stderr) for start in starts]
    assert names(tmp_path) == sorted(match[1] for match in found[1:] if match)
    assert found[0]
    assert re.search(rf"aiotrace record: removed {found[0][1]} \(.*\), kept 2\n", starts[2].stderr)
    assert [events(path) for path in tmp_path.iterdir()] == [1, 1]


def test_children_of_a_pattern_with_their_pid_add_nothing_else(tmp_path: Path) -> None:
    fork = PROGRAM + "print(os.getpid(), os.fork() or step(2) or os.getpid())\nif os.getppid() > 1: os.wait\n"
    fork = (
        PROGRAM
        + "child = os.fork()\nif not child:\n    step(2)\n    sys.exit()\nos.wait()\nprint(os.getpid(), child)\n"
    )
    done = record(tmp_path, "-o", "%n-%p.dat", program=fork)
    assert done.returncode == 0, done.stderr
    assert names(tmp_path) == sorted(f"python-{pid}.dat" for pid in done.stdout.split())


def test_name_in_use_gets_a_number(tmp_path: Path) -> None:
    assert [record(tmp_path, "-o", "%n.dat").returncode for _ in range(2)] == [0, 0]
    assert names(tmp_path) == ["python.2.dat", "python.dat"]


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (["-o", "t-%x.dat"], "unknown '%x' in the name of a trace"),
        (["--keep", "3"], "--keep: traces are kept by names that differ: give -o a name with %t or %p"),
        (["--keep", "0", "--service"], "'0' should be a number, at least 1"),
        (["--max-size", "0", "--service"], "'0' should be a size"),
        (["--exec", "--external"], "not allowed with"),
    ],
)
def test_wrong_names_are_refused(tmp_path: Path, options: list[str], reason: str) -> None:
    done = record(tmp_path, *options)
    assert done.returncode == 2
    assert reason in done.stderr
    assert names(tmp_path) == []


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 1 MiB."""
    disk = tmp_path / "disk"
    disk.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1M", "tmpfs", disk], check=True)
    yield disk
    subprocess.run(["umount", disk], check=True)


@pytest.mark.root
@pytest.mark.skipif(os.geteuid() != 0, reason="NOT RUN: needs root")
@pytest.mark.skipif(c_module is None, reason="pure Python records with --exec")
def test_full_disk_is_reported_at_once_and_nothing_is_lost(tmp_path: Path, small_disk: Path) -> None:
    program = PROGRAM + "for n in range(100_000): step(n)\n"
    done = record(tmp_path, "-o", str(small_disk / "t.dat"), program=program)
    assert done.returncode == 0
    lines = done.stderr.splitlines()
    assert "No space left on device" in lines[0]
    found = re.search(
        r"t\.dat: unfinished after (\d+) events .*; the others are in (\S+), and `aiotrace restore", done.stderr
    )
    assert found, done.stderr
    arena = Path(found[2])
    assert arena.exists()

    # With room, the next command in the folder finishes it.
    subprocess.run(["mount", "-o", "remount,size=20M", small_disk], check=True)
    again = subprocess.run(
        [sys.executable, "-m", "aiotrace", "restore", "t.dat"],
        cwd=small_disk,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert again.returncode == 0, again.stderr
    assert events(small_disk / "t.dat") == 100_001
    assert not arena.parent.exists()
