"""Write what the arena of a running program contains now to a trace.dat, without stopping the program.

examples:
  aiotrace record --arena /dev/shm/app.arena app.py &
  aiotrace snapshot /dev/shm/app.arena -o now.dat
  aiotrace snapshot 4615

With a PID, the arena that the process has mapped is read. Without -o the name of the trace contains the time (UTC). The
exit status is 3 if pages were damaged.
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Iterable
from typing import Final

from .._base.errors import ConfigurationError
from . import _restore_summary

NAME: Final = "snapshot"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("arena", metavar="PID|ARENA", help="a process, or the file of its arena")
    parser.add_argument(
        "-o", dest="output", metavar="FILE", help="write the trace to FILE (default: trace-TIME-snapshot.dat)"
    )


def run(arguments: argparse.Namespace) -> int:
    from .._arena.file_reader import ArenaReader
    from .._arena.restore import save

    output = arguments.output or time.strftime("trace-%Y%m%d-%H%M%S-snapshot.dat", time.gmtime())
    path = arguments.arena
    if path.isdecimal() and not os.path.exists(path):
        path = _find(int(path))
    with ArenaReader(path) as reader:
        report = save(reader, output)
    return _restore_summary.print_result(NAME, path, output, report)


def _find(pid: int) -> str:
    """
    Raises:
        ConfigurationError: The process has no arena, or several.
        OSError: There is no such process, or its arena may not be read.
    """
    from .._arena.restore import find_arenas

    try:
        found = find_arenas(pid)
        if not found:  # `aiotrace record` itself: the program is its child
            found = _distinct(path for child in _children(pid) for path in find_arenas(child))
    except FileNotFoundError:
        raise ProcessLookupError(f"there is no process {pid}") from None
    if not found:
        raise ConfigurationError(f"process {pid} has no arena: record it with `aiotrace record`, or record(arena=PATH)")
    if len(found) > 1:
        raise ConfigurationError(f"process {pid} has several arenas; give the file of one: {', '.join(found)}")
    return found[0]


def _distinct(paths: Iterable[str]) -> list[str]:
    """Without those that are another's file: the recorder has mapped what the program has."""
    files: dict[tuple[int, int], str] = {}
    for path in paths:
        status = os.stat(path)
        files.setdefault((status.st_dev, status.st_ino), path)
    return list(files.values())


def _children(pid: int) -> list[int]:
    """The processes that a process started and that are there."""
    with open(f"/proc/{pid}/task/{pid}/children", encoding="ascii") as file:
        return [int(word) for word in file.read().split()]
