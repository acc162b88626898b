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
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Final

from .._base.errors import TraceFormatError
from .._formats.frames import Damage
from .._page.entry import PageCopy, PageEntry
from .._store.store import TraceStore
from .._store.trace_files import remove
from .._store.unfinished import UnfinishedTrace
from ..abc import Ledger, WriterLedger
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
    """Events that are missing between and after them: refused or overwritten while the program ran, or on damaged
    pages."""
    damaged: list[DamagedPage] = field(default_factory=list)
    """Pages that failed their checks."""
    definitions_damage: list[Damage] = field(default_factory=list)
    definitions_refused: int = 0
    """Definitions that did not fit into the arena: names of events, symbols or functions are missing."""


@dataclass(slots=True)
class _Counts:
    """What a trace has of each writer, to compare with the writer's own counts."""

    is_whole: bool = True
    """No earlier file has the beginning of the stream."""
    events: Counter[int] = field(default_factory=Counter)
    gaps: Counter[int] = field(default_factory=Counter)
    """Events that are missing before and between the pages."""

    def add(self, entry: PageEntry) -> None:
        self.events[entry.writer] += entry.events_count
        self.gaps[entry.writer] += max(0, entry.lost_before)

    def ledger(self, reader: ArenaReader) -> Ledger | None:
        """The account of the writers that refused events: what they refused last is in no gap. None: there are none,
        or it is not known how much of that earlier files show."""
        writers = []
        for writer in range(reader.header.writers if self.is_whole else 0):
            refused, gaps = sum(reader.refused_events(writer)), self.gaps[writer]
            if refused:
                overrun = max(0, gaps - refused)
                written = self.events[writer] + overrun
                writers.append(WriterLedger(writer, written, refused, overrun, 0, max(0, refused - gaps)))
        return Ledger(tuple(writers)) if writers else None


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
        return _fill(store, reader, found, _Counts(), progress)
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
        counts = _count(begun)
    found = reader.scan(seen)
    store = TraceStore.resume(output, fsync=fsync)
    try:
        return _fill(store, reader, found, counts, progress)
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


def _count(begun: UnfinishedTrace) -> _Counts:
    counts = _Counts(is_whole=not begun.earlier_writers)
    for placed in begun.pages:
        counts.add(placed.entry)
    return counts


def _fill(
    store: TraceStore,
    reader: ArenaReader,
    found: Iterable[PageCopy | DamagedPage],
    counts: _Counts,
    progress: Callable[[int], None] | None,
) -> RescueReport:
    """Write what was found, and make the trace.dat.

    Args:
        counts: What the trace has already.
    """
    report = RescueReport()
    _write(store, reader, report, counts, found, progress)
    ledger = counts.ledger(reader)
    report.lost += sum(writer.lost_after for writer in ledger.writers) if ledger is not None else 0
    store.end(reader.definitions, ledger)
    for done in store.finish():
        if progress is not None:
            progress(done)
    report.definitions_damage = reader.damage
    report.definitions_refused = reader.definitions_refused
    return report


def _write(
    store: TraceStore,
    reader: ArenaReader,
    report: RescueReport,
    counts: _Counts,
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
        counts.add(each.entry)
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
