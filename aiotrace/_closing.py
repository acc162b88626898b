"""Closing and restoring: how the files of a trace become one trace.dat. Blocking file I/O.

    closing         append the spools to NAME, write the sections, write the options offset, unlink the rest
                                                                   ^ commit point
    restoring       the same, from the journal alone, after checking each page's crc32

The law: **the commit point is the last write**. Until then the journal is the truth, and closing can begin again from
nothing; from then on NAME is, and the rest is litter. Damage costs what it hit: a page that is not what was written is
left empty, and its events are counted as lost before the page that follows it. Of a page that came in parts, those
before the damaged one stay.

Both go in steps, so that whoever waits can stop between two.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Final

from . import _layout as L
from . import _tracedat as T
from ._errors import TraceFormatError
from ._files import BLOCK, TraceFiles, copy_range, journal_path, sync_folder, write_all
from ._frames import Damage
from ._growing import read_journal
from ._journal import PLACED_SIZE, JournalReader, JournalWriter, Placed, Positions
from ._page import pack_header, pack_lost_count
from .abc import StreamInfo

_STEP: Final = 16 << 20
"""Bytes that one step of closing copies or checks: some 10 ms, so that whoever waits can stop soon."""


@dataclass(slots=True)
class RestoreReport:
    """What was found and done."""

    pages: int = 0
    """In the trace.dat, intact, or at least their beginning."""
    events: int = 0
    """On these pages."""
    damaged: list[Placed] = field(default_factory=list)
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
class _Slot:
    """A page's place in the trace.dat: what is intact of it."""

    first: Placed | None = None
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

    def goes_on_with(self, part: Placed) -> bool:
        return self.first is not None and part.start > 0 and part.place == self.first.place

    def add(self, part: Placed) -> bool:
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
class _Column:
    """The pages of one writer, in order."""

    writer: int
    spooled: bool
    slots: list[_Slot] = field(default_factory=list)
    offset: int = 0
    """Of the first page, in the trace.dat."""
    lost_at_end: int = 0

    def add(self, part: Placed, intact: bool) -> bool:
        """Take a page, or a part of one; false if its events are lost."""
        if not (self.slots and self.slots[-1].goes_on_with(part)):
            self.slots.append(_Slot(part))
            self.lost_at_end = _add_lost(self.lost_at_end, part.entry.lost_before)
        slot = self.slots[-1]
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
    columns: dict[int, _Column] = {}
    done = 0
    stored: Positions = {}
    for batch in read_journal(files.journal, journal, final=True):
        for placed in batch:
            done += _add_page(files, columns, placed, verify, report, journal, stored)
            if done >= _STEP:
                yield done
                done = 0
    if journal.info is None:
        raise TraceFormatError("no intact hello: nothing can be restored", path=journal_path(files.path), offset=0)
    report.journal_damage = journal.damage
    info = journal.info
    for ledger in journal.ledger.writers if journal.ledger else ():
        if ledger.lost_after:  # a writer that never got a page stands there too: else nothing tells of its losses
            columns.setdefault(ledger.writer, _Column(ledger.writer, spooled=True))
    order = _arrange(columns, info.page_size)
    in_place = sum(len(column.slots) for column in order if not column.spooled)
    os.ftruncate(files.data, (1 + in_place) * info.page_size)  # nothing stale in holes, or at the end
    journal.stored.update(stored)
    yield from _copy(files, order, info.page_size, verify)
    _write_tail(files, journal, info, order, fsync)


def _add_page(
    files: TraceFiles,
    columns: dict[int, _Column],
    placed: Placed,
    verify: bool,
    report: RestoreReport,
    journal: JournalReader,
    stored: Positions,
) -> int:
    """Take a page, or a part of one, into its writer's column, and note in `stored` how far that goes; returns the
    bytes that were checked."""
    assert journal.info is not None, "a page before hello is damage"
    writer = placed.entry.writer
    column = columns.get(writer) or _Column(writer, placed.spooled)
    goes_on = bool(column.slots) and column.slots[-1].goes_on_with(placed)
    gap = 0 if placed.spooled or goes_on else placed.place // journal.info.page_size - 1 - len(column.slots)
    intact = not verify or is_intact(files, placed)
    if placed.spooled != column.spooled or (gap and not 0 < gap <= _frames_lost(journal)):
        report.damaged.append(placed)  # it cannot be where it says
        return 0
    is_first = not column.slots
    if is_first and not placed.spooled and any(not other.spooled for other in columns.values()):
        report.damaged.append(placed)
        return 0
    columns[writer] = column
    column.slots += [_Slot() for _ in range(gap)]
    if column.add(placed, intact):
        report.pages += column.slots[-1].first is placed
        report.events += placed.entry.events_count
        stored[writer] = placed.end
    else:
        report.damaged.append(placed)
    return placed.entry.committed if verify else 0


def _frames_lost(journal: JournalReader) -> int:
    """Frames of pages that damage to the journal can have cost, so far."""
    return sum(1 + damage.length // PLACED_SIZE for damage in journal.damage)


def is_intact(files: TraceFiles, placed: Placed) -> bool:
    """Whether a page, or a part of one, is what was written."""
    fd = files.spool(placed.entry.writer) if placed.spooled else files.data
    try:
        return placed.check(os.pread(fd, placed.entry.committed, placed.records_place))
    except OSError:
        return False


def _arrange(columns: dict[int, _Column], page_size: int) -> list[_Column]:
    """The columns in the order in which they lie in the file: the one that is there already comes first."""
    order = sorted(columns.values(), key=lambda column: (column.spooled, column.writer))
    offset = page_size
    for column in order:
        column.offset = offset
        offset += len(column.slots) * page_size
    return order


def _copy(files: TraceFiles, order: list[_Column], page_size: int, verify: bool) -> Iterator[int]:
    """Bring the pages of the spools to their places. The headers of pages in parts are written now, and after a check
    those of all: no crc32 covers them while a trace grows, and the losses may be more."""
    done = 0
    for column in order:
        for source, target, size in _runs(column, page_size, verify) if column.spooled else ():
            copy_range(files.spool(column.writer), source, files.data, target, size)
            done += size
            if done >= _STEP:
                yield done
                done = 0
        time = 0
        for number, slot in enumerate(column.slots):
            target = column.offset + number * page_size
            time = slot.timestamp or time
            if slot.first is None or not slot.parts:
                write_all(files.data, [pack_header(time, 0)], target)
                continue
            if verify or not slot.whole:
                write_all(files.data, [slot.header()], target)
                write_all(files.data, [pack_lost_count(slot.lost)], target + L.PAGE_HEADER_SIZE + slot.committed)
    yield done


def _runs(column: _Column, page_size: int, verify: bool) -> Iterator[tuple[int, int, int]]:
    """Where it is in the spool, where it goes in the trace, and bytes: pages without a hole between them together."""
    source = target = size = 0
    for number, slot in enumerate(column.slots):
        if slot.first is None or not slot.parts:
            continue
        place, goal = slot.first.place, column.offset + number * page_size
        length = L.PAGE_HEADER_SIZE + slot.committed
        if slot.whole and not verify:
            length += len(pack_lost_count(slot.lost))
            length += -length % BLOCK
        if not (size < _STEP and (place, goal) == (source + size, target + size)):
            if size:
                yield source, target, size
            source, target, size = place, goal, 0
        size += length
    if size:
        yield source, target, size


def _write_tail(files: TraceFiles, journal: JournalReader, info: StreamInfo, order: list[_Column], fsync: bool) -> None:
    """The sections, and then the commit point."""
    size = info.page_size
    regions = [T.Region(column.writer, column.offset, len(column.slots) * size) for column in order]
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


def _options(journal: JournalReader, info: StreamInfo, order: list[_Column]) -> Iterator[tuple[int, bytes]]:
    writer = JournalWriter(info)
    frames = writer.hello() + writer.definitions(journal.definitions, len(journal.definitions))
    frames += writer.stored(journal.stored)
    if journal.ledger is not None:
        frames += writer.end(journal.ledger)
    yield T.OPTION_STREAM, frames
    yield T.OPTION_PAGES, T.pack_page_rows(row for column in order for row in _rows(column))
    yield T.OPTION_VERSION, b"aiotrace\0"
    yield T.OPTION_TRACEID, info.stream_id[:8]
    ledgers = {ledger.writer: ledger for ledger in journal.ledger.writers} if journal.ledger else {}
    for column in order:
        intact = [slot for slot in column.slots if slot.parts]
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


def _rows(column: _Column) -> Iterator[T.PageRow]:
    # A page that follows tells of the loss: a reader must not count it twice.
    told = max((number for number, slot in enumerate(column.slots) if slot.parts), default=-1)
    for number, slot in enumerate(column.slots):
        yield _row(column, slot, is_told=number < told)


def _row(column: _Column, slot: _Slot, *, is_told: bool) -> T.PageRow:
    if slot.first is None:
        return T.PageRow(0, column.writer, 0, 0, T.PAGE_DAMAGED)
    entry = slot.first.entry
    if not slot.parts:
        return T.PageRow(entry.sequence, column.writer, 0 if is_told else entry.events_count, 0, T.PAGE_DAMAGED)
    crc = T.page_crc(slot.crc, slot.header(), pack_lost_count(slot.lost))
    return T.PageRow(entry.sequence, column.writer, slot.events, crc, 0)
