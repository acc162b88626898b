"""`--keep` and `--max-size`: how many finished traces with names of one pattern are kept. Blocking file I/O.

    the pattern's folder --name, magic, no journal--> finished traces, oldest first --over the limits--> removed

Invariant (tests/launcher/test_retention.py): **only a finished trace of aiotrace is removed**, by its name and by its
first bytes, and none of the files in `running`. Nothing else counts: neither what is unfinished (it has a journal,
which a living writer locks), nor a link, nor another program's file.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from typing import Final

from .._formats import tracedat as T
from .._store.trace_files import READ, journal_path
from .names import name_filter
from .plan import Plan

_BEGINNING: Final = T.initial_header(0)[: len(T.MAGIC) + len("7\0") + 2]
"""Of each trace that aiotrace finishes: format 7, of this machine's byte order. Others are by other programs."""


@dataclass(frozen=True, slots=True)
class RemovedTrace:
    """A trace that was removed."""

    path: str
    size: int
    """Bytes."""


@dataclass(frozen=True, slots=True)
class Retention:
    """What became of the finished traces of a pattern."""

    removed: tuple[RemovedTrace, ...]
    """The oldest first."""
    kept: int
    """Finished traces that are still there."""
    failed: tuple[OSError, ...]
    """What could not be read or removed, each with its file name; such files count for nothing."""

    def lines(self) -> Iterator[str]:
        """Lines for people: none if nothing was removed and nothing failed."""
        if self.removed:
            size = _amount(sum(each.size for each in self.removed))
            name = os.path.basename(self.removed[0].path)
            yield f"removed {name}{_and_more(self.removed)} ({size}), kept {self.kept}"
        if self.failed:
            error = self.failed[0]
            yield f"not removed: {error.filename}{_and_more(self.failed)}: {error.strerror}"


@dataclass(frozen=True, slots=True, order=True)
class _Finished:
    """A finished trace. In their order the oldest comes first; in one tick of the clock, the names decide."""

    mtime_ns: int
    path: str
    size: int
    file_id: tuple[int, int]
    """Device and inode."""


def retain_for(plan: Plan, running: Collection[str]) -> Iterator[str]:
    """Keep of a plan's traces what it says. Yields lines for people.

    Args:
        running: As for `retain`.
    """
    if plan.pattern and (plan.keep is not None or plan.max_bytes is not None):
        yield from retain(
            plan.pattern,
            host=os.uname().nodename,
            program=plan.program,
            keep=plan.keep,
            max_size=plan.max_bytes,
            running=running,
        ).lines()


def retain(
    pattern: str, *, host: str, program: str, keep: int | None, max_size: int | None, running: Collection[str]
) -> Retention:
    """Remove the oldest finished traces whose names the pattern makes for this host and program, until at most `keep`
    of them are left, with at most `max_size` bytes in all. A single trace that is larger is removed too.

    Args:
        pattern: A checked pattern of names; its folder is searched.
        keep: None: any number.
        max_size: Bytes; None: any size.
        running: Paths that this run writes, which are neither removed nor counted, finished or not.
    """
    failed: list[OSError] = []
    traces = sorted(_finished(pattern, host, program, _ids(running), failed))
    total = sum(each.size for each in traces)
    keep = len(traces) if keep is None else keep
    max_size = total if max_size is None else max_size

    # What cannot be removed no longer counts: else newer ones would be removed in its place, down to the last.
    removed: list[RemovedTrace] = []
    start = 0
    while start < len(traces) and (len(traces) - start > keep or total > max_size):
        oldest = traces[start]
        start += 1
        total -= oldest.size
        try:
            if _remove(oldest):
                removed.append(RemovedTrace(oldest.path, oldest.size))
        except OSError as error:
            failed.append(error)
    return Retention(tuple(removed), len(traces) - start, tuple(failed))


def _finished(
    pattern: str, host: str, program: str, running: set[tuple[int, int]], failed: list[OSError]
) -> Iterator[_Finished]:
    folder = os.path.dirname(pattern)
    accepts = name_filter(pattern, host=host, program=program)
    try:
        with os.scandir(folder or ".") as entries:
            names = [entry.name for entry in entries if entry.is_file(follow_symlinks=False) and accepts(entry.name)]
    except OSError as error:
        failed.append(error)
        return

    for name in names:
        try:
            trace = _examine(os.path.join(folder, name))
        except FileNotFoundError:  # another process removed it
            continue
        except OSError as error:
            failed.append(error)
            continue
        if trace is not None and trace.file_id not in running:
            yield trace


def _examine(path: str) -> _Finished | None:
    """The finished trace of this path; None if it is something else.

    Raises:
        OSError: It cannot be read.
    """
    fd = os.open(path, READ | os.O_NONBLOCK)  # a pipe that took the name meanwhile would wait for a writer
    try:
        found = os.fstat(fd)
        header = os.pread(fd, T.INITIAL_HEADER_SIZE, 0) if stat.S_ISREG(found.st_mode) else b""
    except OSError as error:
        error.filename = path  # a failed read does not know it
        raise
    finally:
        os.close(fd)

    # The header says that it was finished; a journal beside it, that its writer is not done yet.
    if not header.startswith(_BEGINNING) or not T.unpack_options_offset(header) or os.path.lexists(journal_path(path)):
        return None
    return _Finished(found.st_mtime_ns, path, found.st_size, (found.st_dev, found.st_ino))


def _remove(trace: _Finished) -> bool:
    """Whether it was removed: another process may have been first, or have begun a new trace of that name.

    Raises:
        OSError: It cannot be removed.
    """
    try:
        if _examine(trace.path) != trace:
            return False
        os.unlink(trace.path)
    except FileNotFoundError:
        return False
    return True


def _ids(paths: Collection[str]) -> set[tuple[int, int]]:
    """Device and inode of the files that exist: one file has several paths, through links of folders."""
    found: set[tuple[int, int]] = set()
    for path in paths:
        try:
            status = os.stat(path, follow_symlinks=False)
        except OSError:  # it is not there (yet), so it is not among the finished ones
            continue
        found.add((status.st_dev, status.st_ino))
    return found


def _and_more(them: Collection[object]) -> str:
    return f" and {len(them) - 1} more" if len(them) > 1 else ""


def _amount(size: int) -> str:
    return f"{size / (1 << 20):.1f} MiB" if size >= 1 << 20 else f"{-(-size // 1024)} KiB"
