"""Makes a trace.dat of an arena, of a program that was killed or of one that lives. Blocking file I/O.

    PATH, an arena --copies of pages (`_arena/scan`)--> a trace store (`_store`) --close--> FILE, a trace.dat

Invariants (held by tests/arena/test_restore.py):

* An arena is removed only when all of it is in a trace.dat on the disk; if pages were damaged, it stays.
* A living program is not disturbed: its arena is neither locked nor changed.
* A failure leaves no partial trace; it can be made again from the arena.
"""

from __future__ import annotations

import errno
import fcntl
import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Final

from .._base.errors import TraceFormatError
from .._formats.frames import Damage
from .._page.entry import PageCopy
from .._store.store import TraceStore
from .._store.trace_files import remove
from .._store.unfinished import UnfinishedTrace
from .file_reader import ArenaReader
from .scan import DamagedPage, Position

BATCH_BYTES: Final = 1 << 20
"""Bytes of pages that are collected before they are written."""


@dataclass(slots=True)
class RescueReport:
    """What was restored, and what could not be."""

    pages: int = 0
    """Pages in the trace.dat, including those that were still being filled."""
    events: int = 0
    """Events on these pages."""
    lost: int = 0
    """Events that are missing between them: refused or overwritten while the program ran, or on damaged pages."""
    damaged: list[DamagedPage] = field(default_factory=list)
    """Pages that failed their checks."""
    definitions_damage: list[Damage] = field(default_factory=list)
    definitions_refused: int = 0
    """Definitions that did not fit into the arena: names of events, symbols or functions are missing."""


def restore_arena(path: str, output: str, *, progress: Callable[[int], None] | None = None) -> RescueReport:
    """Make a trace.dat of the arena of a killed program; then remove the arena, unless some of it was damaged.

    Args:
        progress: Called repeatedly with the bytes that were copied since the last call.

    Raises:
        BlockingIOError: The program is still running.
        FileExistsError: `output` exists.
        TraceFormatError: The arena cannot be read.
        OSError: A file cannot be read or written.
    """
    with ArenaReader(path) as reader:
        try:
            fcntl.flock(reader.fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            text = f"process {reader.header.pid} records into it: `aiotrace snapshot {path}` reads it as it is"
            raise BlockingIOError(errno.EWOULDBLOCK, text, path) from None
        report = save(reader, output, fsync=True, progress=progress)
        if not report.damaged and not report.definitions_damage:
            os.unlink(path)
    return report


def save(
    reader: ArenaReader, output: str, *, fsync: bool = False, progress: Callable[[int], None] | None = None
) -> RescueReport:
    """Make a trace.dat of what is in an arena now.

    Raises:
        FileExistsError: `output` exists.
        TraceFormatError: The arena cannot be read.
        OSError: A file cannot be read or written.
    """
    found = reader.scan()
    store = TraceStore(output, reader.info, fsync=fsync)
    try:
        return _fill(store, reader, found, progress)
    except BaseException:
        store.close()
        remove(output)
        raise


def complete(
    reader: ArenaReader, output: str, *, fsync: bool = False, progress: Callable[[int], None] | None = None
) -> RescueReport:
    """Finish the trace that a recorder, which was killed, left unfinished: what is not in it yet is in the arena.

    Returns:
        What was added.

    Raises:
        FileNotFoundError: There is no unfinished trace.
        BlockingIOError: A running process is writing it.
        TraceFormatError: The arena or the journal cannot be read, or they are not of one recording.
        OSError: A file cannot be read or written; the trace is still unfinished, and nothing is lost.
    """
    with UnfinishedTrace(output) as begun:
        if begun.info.stream_id != reader.header.stream_id:
            raise TraceFormatError("the unfinished trace is of another recording than the arena", path=output)
        seen = _positions(begun)
    found = reader.scan(seen)
    store = TraceStore.resume(output, fsync=fsync)
    try:
        return _fill(store, reader, found, progress)
    finally:
        store.close()


def _positions(begun: UnfinishedTrace) -> dict[int, Position]:
    """By writer, how far a trace has come."""
    positions: dict[int, Position] = {}
    for placed in begun.pages:
        entry = placed.entry
        before = positions.get(entry.writer)
        if before is None:
            before = Position(-1 if entry.writer in begun.earlier_writers else 0)
        begins = not entry.offset
        next_event = -1 if before.next_event < 0 else before.next_event + max(0, entry.lost_before) + entry.events_count
        positions[entry.writer] = Position(
            next_event,
            entry.sequence,
            entry.offset + entry.committed,
            entry.events_count + (0 if begins else before.events),
            timestamp=-1,
        )
    return positions


def _fill(
    store: TraceStore,
    reader: ArenaReader,
    found: Iterable[PageCopy | DamagedPage],
    progress: Callable[[int], None] | None,
) -> RescueReport:
    """Write what was found, and make the trace.dat."""
    report = RescueReport()
    _write(store, reader, report, found, progress)
    store.end(reader.definitions, None)
    for done in store.finish():
        if progress is not None:
            progress(done)
    report.definitions_damage = reader.damage
    report.definitions_refused = reader.refused
    return report


def _write(
    store: TraceStore,
    reader: ArenaReader,
    report: RescueReport,
    found: Iterable[PageCopy | DamagedPage],
    progress: Callable[[int], None] | None,
) -> None:
    batch: list[PageCopy] = []
    size = 0

    def flush() -> None:
        nonlocal size
        store.write(batch, reader.definitions)
        if progress is not None:
            progress(size)
        batch.clear()
        size = 0

    for each in found:
        if isinstance(each, DamagedPage):
            report.damaged.append(each)
            continue
        report.pages += 1
        report.events += each.events_count
        report.lost += each.lost_before
        batch.append(each)
        size += len(each.data)
        if size >= BATCH_BYTES:
            flush()
    flush()


# --- a process ------------------------------------------------------------------------------------


def find_arenas(pid: int) -> list[str]:
    """The arenas that a process has mapped, as paths that can be opened here.

    Raises:
        OSError: There is no such process, or no permission to read its maps.
    """
    with open(f"/proc/{pid}/maps", encoding="utf-8", errors="surrogateescape") as file:
        lines = [line.rstrip("\n").split(maxsplit=5) for line in file]
    paths = dict.fromkeys(parts[5] for parts in lines if len(parts) == 6 and parts[1][3] == "s")
    found = []
    for path in paths:
        # As the process sees it, which may be in a container.
        for name in (f"/proc/{pid}/root{path}", path):
            try:
                with ArenaReader(name) as reader:
                    alive = reader.is_alive
            except (OSError, TraceFormatError):
                continue
            if alive:
                found.append(name)
                break
    return found
