"""What `aiotrace record` was asked for, as data: it travels to the program in an environment variable, as JSON."""

from __future__ import annotations

import dataclasses
import glob
import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from .._recording.options import RecordingOptions
from . import names
from .rules import Rule, rules_from

FILE: Final = "file:"
"""URLs of files: children put their pid into the name."""


@dataclass(frozen=True, slots=True)
class Plan:
    """What to record, and where to."""

    pid: int
    """The process to record; execve keeps it."""
    path: tuple[str, ...]
    """Where `record` found its modules."""
    sinks: tuple[str, ...]
    """URLs; the path of a file is absolute, because the program may have changed its folder when it makes a child."""
    rules: tuple[Rule, ...]
    options: RecordingOptions
    """Of the main process; its paths are absolute."""
    stall_ns: int | None
    """Report a step while it runs, after this time; None: as the rules say."""
    cancel_ns: int | None
    """Report a task that has not obeyed a cancellation after this time; None: as the rules say."""
    quiet: bool
    """Print nothing at the end, unless the trace is not what it should be."""
    snapshot_signal: int = 0
    """The signal that requests a snapshot; 0: none."""
    pattern: str = ""
    """Of the name of each process's trace (`names`), absolute; empty: the files are among `sinks`."""
    program: str = ""
    """The name of the program, for the pattern."""
    keep: int | None = None
    """How many finished traces with names of the pattern are kept; None: all."""
    max_bytes: int | None = None
    """The size of all of them; None: any."""
    folder: str = ""
    """The run's folder of arenas, which a recorder reads (`run_folder`); empty: reader and sinks are in the program."""

    def options_of(self, pid: int) -> RecordingOptions:
        """The options in a process: children have their own arena and snapshots."""
        if pid == self.pid:
            return self.options
        arena, snapshots = self.options.arena, self.options.snapshots
        return dataclasses.replace(
            self.options,
            arena=None if arena is None else child_path(os.fspath(arena), pid),
            snapshots=child_path(os.fspath(snapshots), pid),
        )

    def urls_of(self, pid: int, started_ns: int) -> tuple[str, ...]:
        """The sinks in a process: files of children have the child's pid in their names. A name that is in use already
        is not replaced, but for the program's FILE without a pattern.

        Args:
            started_ns: When the process began to be recorded, in nanoseconds since 1970.
        """
        is_main = pid == self.pid
        urls = self.sinks if is_main else tuple(child_url(url, pid) for url in self.sinks)
        if not self.pattern:
            return urls
        name = names.name_of(
            self.pattern,
            pid=pid,
            is_main=is_main,
            realtime_ns=started_ns,
            host=os.uname().nodename,
            program=self.program,
        )
        return f"{FILE}{names.free_name(name)}", *urls

    def to_dict(self) -> dict[str, Any]:
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Plan:
        made = {
            "path": tuple(values["path"]),
            "sinks": tuple(values["sinks"]),
            "rules": rules_from(values["rules"]),
            "options": RecordingOptions(**values["options"]),
        }
        return cls(**{**values, **made})


def child_url(url: str, pid: int) -> str:
    """The URL of a file with a pid in the name: file:/tmp/trace.dat becomes file:/tmp/trace.4615.dat. Other URLs stay
    as they are."""
    if not url.startswith(FILE):
        return url
    path, mark, query = url.partition("?")
    return f"{child_path(path, pid)}{mark}{query}"


def child_path(path: str, pid: int) -> str:
    """A path with a pid in the name."""
    stem, suffix = os.path.splitext(path)
    return f"{stem}.{pid}{suffix}"


def children_of(path: str) -> list[str]:
    """The files that have a pid in the place where `child_path` puts it."""
    stem, suffix = os.path.splitext(path)
    found = glob.glob(f"{glob.escape(stem)}.[0-9]*{glob.escape(suffix)}")
    return [child for child in found if child[len(stem) + 1 : len(child) - len(suffix)].isdecimal()]


def file_of(url: str) -> str:
    """The path in a file's URL."""
    return url.removeprefix(FILE).partition("?")[0]
