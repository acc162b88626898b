"""The pages of each writer, collected from the journal: what is intact, and what damage has cost.

    PagePlacement --add_page--> WriterPages of its writer: PageSlot, Run, Run, PageSlot ...

Whole pages that lie side by side are taken together, as `journal_runs.Run`. Pages in parts, and pages that restoring
checks, get a `PageSlot` each.

Damage costs only what it hit: a page that is not what was written is left empty, and its events count as lost before
the page that follows it. Of a page that came in parts, those before the damaged one stay.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from typing import ClassVar

from .._formats.frames import Damage
from .._formats.journal import PLACED_SIZE, JournalReader, PagePlacement, Positions
from .._formats.journal_runs import Expected, Run
from .._page.encode import pack_header
from .trace_files import TraceFiles


@dataclass(slots=True)
class RestoreReport:
    """What was found and done."""

    pages: int = 0
    """In the trace.dat, intact, or at least their beginning."""
    events: int = 0
    """On these pages."""
    damaged: list[PagePlacement] = field(default_factory=list)
    """Pages that are not what was written, and what came after them on the same page; their events are counted as lost
    with the page that follows."""
    journal_damage: list[Damage] = field(default_factory=list)
    """Of the journal; a torn tail is among it."""
    was_complete: bool = False
    """The trace.dat was complete already, only the journal had not been removed."""


@dataclass(slots=True)
class PageSlot:
    """A page's place in the trace.dat: what is intact of it."""

    pages: ClassVar[int] = 1

    first: PagePlacement | None = None
    """The page, or its first part; None: the journal lost the frame of the page that is here."""
    lost: int = 0
    """As in `PageEntry.lost_before`, with what damage before it has cost."""
    parts: int = 0
    """0: the page is damaged from its beginning."""
    committed: int = 0
    """Bytes of records."""
    events: int = 0
    crc: int = 0
    """crc32 of the records."""
    whole: bool = False
    """The page came in one piece, so its header is in the file already."""

    @property
    def timestamp(self) -> int:
        return self.first.entry.timestamp if self.first is not None else 0

    def header(self) -> bytes:
        return pack_header(self.timestamp, self.committed, self.lost)

    def is_continued_by(self, part: PagePlacement) -> bool:
        return self.first is not None and part.start > 0 and part.place == self.first.place

    def add(self, part: PagePlacement) -> bool:
        """Take an intact part; false if one before it is missing, so that it does not follow on what is there."""
        if part.start != self.committed:
            return False
        self.whole = not self.parts and part.entry.complete
        self.parts += 1
        self.committed += part.entry.committed
        self.events += part.entry.events_count
        self.crc = part.crc
        return True


@dataclass(slots=True)
class WriterPages:
    """The pages of one writer, in order."""

    writer: int
    spooled: bool
    slots: list[PageSlot | Run] = field(default_factory=list)
    pages: int = 0
    """Of all slots."""
    offset: int = 0
    """Of the first page, in the trace.dat."""
    lost_at_end: int = 0

    def slot_of(self, part: PagePlacement) -> PageSlot | None:
        """The page of which it is another part."""
        last = self.slots[-1] if self.slots else None
        return last if isinstance(last, PageSlot) and last.is_continued_by(part) else None

    def append(self, slot: PageSlot | Run) -> None:
        self.slots.append(slot)
        self.pages += slot.pages

    def add(self, part: PagePlacement, intact: bool) -> bool:
        """Take a page, or a part of one; false if its events are lost."""
        slot = self.slot_of(part)
        if slot is None:
            self.append(slot := PageSlot(part))
            self.lost_at_end = _add_lost(self.lost_at_end, part.entry.lost_before)
        if not (intact and slot.add(part)):
            self.lost_at_end = _add_lost(self.lost_at_end, part.entry.events_count)
            return False
        if slot.first is part:
            slot.lost, self.lost_at_end = self.lost_at_end, 0
        return True


def _add_lost(first: int, second: int) -> int:
    return -1 if first < 0 or second < 0 else first + second


def add_page(
    files: TraceFiles,
    columns: dict[int, WriterPages],
    placed: PagePlacement,
    verify: bool,
    report: RestoreReport,
    journal: JournalReader,
    stored: Positions,
) -> int:
    """Take a page, or a part of one, into its writer's column, and note in `stored` how far that goes; returns the
    bytes that were checked."""
    assert journal.info is not None, "a page before hello is damage"
    writer = placed.entry.writer
    column = columns.get(writer) or WriterPages(writer, placed.spooled)
    goes_on = column.slot_of(placed) is not None
    gap = 0 if placed.spooled or goes_on else placed.place // journal.info.page_size - 1 - column.pages
    intact = not verify or is_intact(files, placed)
    if placed.spooled != column.spooled or (gap and not 0 < gap <= _frames_lost(journal)):
        report.damaged.append(placed)  # it cannot be where it says
        return 0
    is_first = not column.slots
    if is_first and not placed.spooled and any(not other.spooled for other in columns.values()):
        report.damaged.append(placed)
        return 0
    columns[writer] = column
    for _ in range(gap):
        column.append(PageSlot())
    if column.add(placed, intact):
        report.pages += not goes_on
        report.events += placed.entry.events_count
        stored[writer] = placed.end
    else:
        report.damaged.append(placed)
    return placed.entry.committed if verify else 0


def expect_next(
    expected: Expected, columns: dict[int, WriterPages], placed: PagePlacement, journal: JournalReader
) -> None:
    """From now on whole pages of its writer that follow side by side are taken together, unless the next has a loss of
    ours to tell of."""
    assert journal.info is not None
    if not expected:
        expected.frombytes(bytes(expected.itemsize * journal.info.writers))
    column = columns.get(placed.entry.writer)
    if column is not None and column.spooled == placed.spooled:
        last = column.slots[-1]
        is_there = isinstance(last, PageSlot) and last.first is not None and last.first.place == placed.place
        place = placed.place + journal.info.page_size + column.spooled
        expected[column.writer] = place if is_there and not column.lost_at_end else 0


def _frames_lost(journal: JournalReader) -> int:
    """Frames of pages that damage to the journal can have cost, so far."""
    return sum(1 + damage.length // PLACED_SIZE for damage in journal.damage)


def is_intact(files: TraceFiles, placed: PagePlacement) -> bool:
    """Whether a page, or a part of one, is what was written."""
    fd = files.spool(placed.entry.writer) if placed.spooled else files.data
    try:
        return placed.check(os.pread(fd, placed.entry.committed, placed.records_place))
    except OSError:
        return False
