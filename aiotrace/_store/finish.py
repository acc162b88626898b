"""Closing and restoring: how the files of a trace become one trace.dat. Blocking file I/O.

    closing         append the spools to NAME, write the sections, write the options offset, unlink the rest
                                                                   ^ commit point
    restoring       the same, from the journal alone, after checking each page's crc32

The law: **the commit point is the last write**. Until then the journal is the truth, and closing can begin again from
nothing; from then on NAME is, and the rest is litter. Damage costs what it hit: a page that is not what was written is
left empty, and its events are counted as lost before the page that follows it. Of a page that came in parts, those
before the damaged one stay.

Whole pages that lie side by side are taken together, as `_wholepages.Run`; what restoring checks, and what is not as
expected, is taken by itself, as a `_PageSlot`.

Both go in steps, so that whoever waits can stop between two.
"""

from __future__ import annotations

import os
from array import array
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import ClassVar, Final

from .._base.errors import TraceFormatError
from .._formats import tracedat as T
from .._formats.frames import Damage
from .._formats.journal import PLACED_SIZE, JournalReader, JournalWriter, PagePlacement, Positions
from .._formats.journal_runs import Expected, Run
from .._page import layout as L
from .._page.encode import pack_header, pack_lost_count
from ..abc import StreamInfo
from .trace_files import TraceFiles, copy_range, journal_path, sync_folder, write_all

_JOURNAL_CHUNK: Final = 1 << 20
_STEP: Final = 16 << 20
"""Bytes that one step of closing copies or checks: some 10 ms, so that whoever waits can stop soon."""


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


def restore(path: str, *, progress: Callable[[int], None] | None = None) -> RestoreReport:
    """Make a trace.dat of what a killed program left. Blocks; killed itself, it can be begun again.

    Args:
        progress: Called now and then with the bytes that were checked or copied since.

    Raises:
        FileNotFoundError: There is no journal, so nothing to restore.
        BlockingIOError: A running program is still writing this trace.
        TraceFormatError: The journal is no journal, or lost its beginning.
        OSError: A file cannot be read or written.
    """
    report = RestoreReport()
    files = TraceFiles(path)
    files.open_existing()
    try:
        if T.unpack_options_offset(os.pread(files.data, T.INITIAL_HEADER_SIZE, 0)):
            report.was_complete = True
            files.unlink_litter()
            return report
        for done in make_trace(files, fsync=True, verify=True, report=report):
            if progress is not None:
                progress(done)
        files.unlink_litter()
        sync_folder(path)
    finally:
        files.close()
    return report


@dataclass(slots=True)
class _PageSlot:
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
class _WriterPages:
    """The pages of one writer, in order."""

    writer: int
    spooled: bool
    slots: list[_PageSlot | Run] = field(default_factory=list)
    pages: int = 0
    """Of all slots."""
    offset: int = 0
    """Of the first page, in the trace.dat."""
    lost_at_end: int = 0

    def slot_of(self, part: PagePlacement) -> _PageSlot | None:
        """The page of which it is another part."""
        last = self.slots[-1] if self.slots else None
        return last if isinstance(last, _PageSlot) and last.is_continued_by(part) else None

    def append(self, slot: _PageSlot | Run) -> None:
        self.slots.append(slot)
        self.pages += slot.pages

    def add(self, part: PagePlacement, intact: bool) -> bool:
        """Take a page, or a part of one; false if its events are lost."""
        slot = self.slot_of(part)
        if slot is None:
            self.append(slot := _PageSlot(part))
            self.lost_at_end = _add_lost(self.lost_at_end, part.entry.lost_before)
        if not (intact and slot.add(part)):
            self.lost_at_end = _add_lost(self.lost_at_end, part.entry.events_count)
            return False
        if slot.first is part:
            slot.lost, self.lost_at_end = self.lost_at_end, 0
        return True


def _add_lost(first: int, second: int) -> int:
    return -1 if first < 0 or second < 0 else first + second


def make_trace(files: TraceFiles, *, fsync: bool, verify: bool, report: RestoreReport) -> Iterator[int]:
    """Make NAME a trace.dat from what the journal says; yields bytes of work done."""
    journal = JournalReader()
    columns: dict[int, _WriterPages] = {}
    done = 0
    stored: Positions = {}
    expected: Expected = array("Q")
    for item in _read_journal(files.journal, journal, expected):
        if isinstance(item, Run):
            columns[item.writer].append(item)
            report.pages += item.pages
            report.events += item.events
            stored[item.writer] = item.end
            continue
        done += _add_page(files, columns, item, verify, report, journal, stored)
        if not verify:
            _expect_next(expected, columns, item, journal)
        if done >= _STEP:
            yield done
            done = 0
    if journal.info is None:
        raise TraceFormatError("no intact hello: nothing can be restored", path=journal_path(files.path), offset=0)
    report.journal_damage = journal.damage
    info = journal.info
    for ledger in journal.ledger.writers if journal.ledger else ():
        if ledger.lost_after:  # a writer that never got a page stands there too: else nothing tells of its losses
            columns.setdefault(ledger.writer, _WriterPages(ledger.writer, spooled=True))
    order = _arrange(columns, info.page_size)
    in_place = sum(column.pages for column in order if not column.spooled)
    os.ftruncate(files.data, (1 + in_place) * info.page_size)  # nothing stale in holes, or at the end
    journal.stored.update(stored)
    yield from _copy(files, order, info.page_size, verify)
    _write_tail(files, journal, info, order, fsync)


def _read_journal(fd: int, journal: JournalReader, expected: Expected) -> Iterator[PagePlacement | Run]:
    """To the file's end. What is `expected` may change between any two."""
    while chunk := os.pread(fd, _JOURNAL_CHUNK, journal.fed):
        yield from journal.feed_runs(chunk, expected)
    yield from journal.feed_runs(b"", expected, final=True)


def _expect_next(
    expected: Expected, columns: dict[int, _WriterPages], placed: PagePlacement, journal: JournalReader
) -> None:
    """From now on whole pages of its writer that follow side by side are taken together, unless the next has a loss of
    ours to tell of."""
    assert journal.info is not None
    if not expected:
        expected.frombytes(bytes(expected.itemsize * journal.info.writers))
    column = columns.get(placed.entry.writer)
    if column is not None and column.spooled == placed.spooled:
        last = column.slots[-1]
        is_there = isinstance(last, _PageSlot) and last.first is not None and last.first.place == placed.place
        place = placed.place + journal.info.page_size + column.spooled
        expected[column.writer] = place if is_there and not column.lost_at_end else 0


def _add_page(
    files: TraceFiles,
    columns: dict[int, _WriterPages],
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
    column = columns.get(writer) or _WriterPages(writer, placed.spooled)
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
        column.append(_PageSlot())
    if column.add(placed, intact):
        report.pages += not goes_on
        report.events += placed.entry.events_count
        stored[writer] = placed.end
    else:
        report.damaged.append(placed)
    return placed.entry.committed if verify else 0


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


def _arrange(columns: dict[int, _WriterPages], page_size: int) -> list[_WriterPages]:
    """The columns in the order in which they lie in the file: the one that is there already comes first."""
    order = sorted(columns.values(), key=lambda column: (column.spooled, column.writer))
    offset = page_size
    for column in order:
        column.offset = offset
        offset += column.pages * page_size
    return order


def _copy(files: TraceFiles, order: list[_WriterPages], page_size: int, verify: bool) -> Iterator[int]:
    """Bring the pages of the spools to their places. The headers of pages in parts are written now, and after a check
    those of all: no crc32 covers them while a trace grows, and the losses may be more."""
    done = 0
    for column in order:
        for source, target, size in _runs(column, page_size, verify) if column.spooled else ():
            for at in range(0, size, _STEP):
                part = min(_STEP, size - at)
                copy_range(files.spool(column.writer), source + at, files.data, target + at, part)
                done += part
                if done >= _STEP:
                    yield done
                    done = 0
        time = 0
        target = column.offset
        for slot in column.slots:
            time = slot.timestamp or time
            if isinstance(slot, _PageSlot):
                _write_around(files.data, slot, target, time, verify)
            target += slot.pages * page_size
    yield done


def _write_around(fd: int, slot: _PageSlot, target: int, time: int, verify: bool) -> None:
    """What of a page is not its records, if it is not there already."""
    if not slot.parts:
        write_all(fd, [pack_header(time, 0)], target)
    elif verify or not slot.whole:
        write_all(fd, [slot.header()], target)
        write_all(fd, [pack_lost_count(slot.lost)], target + L.PAGE_HEADER_SIZE + slot.committed)


def _runs(column: _WriterPages, page_size: int, verify: bool) -> Iterator[tuple[int, int, int]]:
    """Where it is in the spool, where it goes in the trace, and bytes: pages without a hole between them together."""
    source = target = size = 0
    goal = column.offset
    for slot in column.slots:
        pages, here = slot.pages, goal
        goal += pages * page_size
        if isinstance(slot, Run):
            place, length = slot.place, pages * page_size
        elif slot.first is None or not slot.parts:
            continue
        else:
            place, length = slot.first.place, L.PAGE_HEADER_SIZE + slot.committed
            if slot.whole and not verify:
                length += len(pack_lost_count(slot.lost))
                length += -length % L.BLOCK
        if not (size < _STEP and (place, here) == (source + size, target + size)):
            if size:
                yield source, target, size
            source, target, size = place, here, 0
        size += length
    if size:
        yield source, target, size


def _write_tail(
    files: TraceFiles, journal: JournalReader, info: StreamInfo, order: list[_WriterPages], fsync: bool
) -> None:
    """The sections, and then the commit point."""
    size = info.page_size
    regions = [T.Region(column.writer, column.offset, column.pages * size) for column in order]
    data_end = regions[-1].offset + regions[-1].size if regions else size
    tail, options = T.encode_tail(
        data_end,
        page_size=size,
        clock=info.clock,
        regions=regions or [T.Region(0, size, 0)],
        definitions=journal.definitions,
        options=_options(journal, info, order),
    )
    write_all(files.data, [T.initial_header(size), T.buffer_header(data_end)], 0)
    write_all(files.data, [tail], data_end)
    if fsync:
        os.fdatasync(files.data)
    write_all(files.data, [T.pack_options_offset(options)], T.OPTIONS_OFFSET_PLACE)
    if fsync:
        os.fdatasync(files.data)


def _options(journal: JournalReader, info: StreamInfo, order: list[_WriterPages]) -> Iterator[tuple[int, bytes]]:
    writer = JournalWriter(info)
    frames = writer.hello() + writer.definitions(journal.definitions, len(journal.definitions))
    frames += writer.stored(journal.stored)
    if journal.ledger is not None:
        frames += writer.end(journal.ledger)
    yield T.OPTION_STREAM, frames
    yield T.OPTION_PAGES, b"".join(rows for column in order for rows in _rows(column))
    yield T.OPTION_VERSION, b"aiotrace\0"
    yield T.OPTION_TRACEID, info.stream_id[:8]
    ledgers = {ledger.writer: ledger for ledger in journal.ledger.writers} if journal.ledger else {}
    for column in order:
        intact = [slot for slot in column.slots if _is_intact(slot)]
        lost = sum(max(slot.lost, 0) for slot in intact) + max(column.lost_at_end, 0)
        ledger = ledgers.get(column.writer)
        overrun = min(ledger.overrun, lost) if ledger else 0
        statistics = T.CpuStatistics(
            column.writer,
            sum(slot.events for slot in intact),
            overrun,
            lost - overrun + (ledger.lost_after if ledger else 0),
            sum(slot.committed for slot in intact),
        )
        yield T.OPTION_CPUSTAT, T.cpu_statistics(statistics)


def _is_intact(slot: _PageSlot | Run) -> bool:
    return isinstance(slot, Run) or slot.parts > 0


def _rows(column: _WriterPages) -> Iterator[bytes]:
    # A page that follows tells of the loss: a reader must not count it twice.
    told = max((number for number, slot in enumerate(column.slots) if _is_intact(slot)), default=-1)
    for number, slot in enumerate(column.slots):
        if isinstance(slot, Run):
            yield slot.rows
        else:
            yield T.pack_page_rows([_row(column, slot, is_told=number < told)])


def _row(column: _WriterPages, slot: _PageSlot, *, is_told: bool) -> T.PageRow:
    if slot.first is None:
        return T.PageRow(0, column.writer, 0, 0, T.PAGE_DAMAGED)
    entry = slot.first.entry
    if not slot.parts:
        return T.PageRow(entry.sequence, column.writer, 0 if is_told else entry.events_count, 0, T.PAGE_DAMAGED)
    crc = T.page_crc(slot.crc, slot.header(), pack_lost_count(slot.lost))
    return T.PageRow(entry.sequence, column.writer, slot.events, crc, 0)
