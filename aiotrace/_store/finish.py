"""Closing and restoring: how the files of a trace become one trace.dat. Blocking file I/O.

    closing         append the spools to NAME, write the sections, write the options offset, unlink the rest
                                                                   ^ commit point
    restoring       the same, from the journal alone, after checking each page's crc32

The law: **the commit point is the last write**. Until then the journal is the truth, and closing can begin again from
nothing; from then on NAME is, and the rest is litter. Damage costs what it hit: a page that is not what was written is
left empty, and its events are counted as lost before the page that follows it. Of a page that came in parts, those
before the damaged one stay.

Whole pages that lie side by side are taken together, as `journal_runs.Run`; what restoring checks, and what is not as
expected, is taken by itself, as a `PageSlot`.

Both go in steps, so that whoever waits can stop between two.
"""

from __future__ import annotations

import os
from array import array
from collections.abc import Iterator
from typing import Final

from .._base.errors import TraceFormatError
from .._formats import tracedat as T
from .._formats.journal import JournalReader, JournalWriter, PagePlacement, Positions
from .._formats.journal_runs import Expected, Run
from .._page import layout as L
from .._page.encode import pack_header, pack_lost_count
from ..abc import StreamInfo
from .page_slots import PageSlot, RestoreReport, WriterPages, add_page, expect_next
from .trace_files import TraceFiles, copy_range, journal_chunks, journal_path, write_all

_STEP: Final = 16 << 20
"""Bytes that one step of closing copies or checks: some 10 ms, so that whoever waits can stop soon."""


def make_trace(files: TraceFiles, *, fsync: bool, verify: bool, report: RestoreReport) -> Iterator[int]:
    """Make NAME a trace.dat from what the journal says; yields bytes of work done."""
    journal = JournalReader()
    columns: dict[int, WriterPages] = {}
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
        done += add_page(files, columns, item, verify, report, journal, stored)
        if not verify:
            expect_next(expected, columns, item, journal)
        if done >= _STEP:
            yield done
            done = 0
    if journal.info is None:
        raise TraceFormatError("no intact hello: nothing can be restored", path=journal_path(files.path), offset=0)
    report.journal_damage = journal.damage
    info = journal.info
    for ledger in journal.ledger.writers if journal.ledger else ():
        if ledger.lost_after:  # a writer that never got a page stands there too: else nothing tells of its losses
            columns.setdefault(ledger.writer, WriterPages(ledger.writer, spooled=True))
    order = _arrange(columns, info.page_size)
    in_place = sum(column.pages for column in order if not column.spooled)
    os.ftruncate(files.data, (1 + in_place) * info.page_size)  # nothing stale in holes, or at the end
    journal.stored.update(stored)
    yield from _copy(files, order, info.page_size, verify)
    _write_tail(files, journal, info, order, fsync)


def _read_journal(fd: int, journal: JournalReader, expected: Expected) -> Iterator[PagePlacement | Run]:
    """To the file's end. What is `expected` may change between any two."""
    for chunk in journal_chunks(fd, journal):
        yield from journal.feed_runs(chunk, expected)
    yield from journal.feed_runs(b"", expected, final=True)


def _arrange(columns: dict[int, WriterPages], page_size: int) -> list[WriterPages]:
    """The columns in the order in which they lie in the file: the one that is there already comes first."""
    order = sorted(columns.values(), key=lambda column: (column.spooled, column.writer))
    offset = page_size
    for column in order:
        column.offset = offset
        offset += column.pages * page_size
    return order


def _copy(files: TraceFiles, order: list[WriterPages], page_size: int, verify: bool) -> Iterator[int]:
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
            if isinstance(slot, PageSlot):
                _write_around(files.data, slot, target, time, verify)
            target += slot.pages * page_size
    yield done


def _write_around(fd: int, slot: PageSlot, target: int, time: int, verify: bool) -> None:
    """What of a page is not its records, if it is not there already."""
    if not slot.parts:
        write_all(fd, [pack_header(time, 0)], target)
    elif verify or not slot.whole:
        write_all(fd, [slot.header()], target)
        write_all(fd, [pack_lost_count(slot.lost)], target + L.PAGE_HEADER_SIZE + slot.committed)


def _runs(column: WriterPages, page_size: int, verify: bool) -> Iterator[tuple[int, int, int]]:
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
    files: TraceFiles, journal: JournalReader, info: StreamInfo, order: list[WriterPages], fsync: bool
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


def _options(journal: JournalReader, info: StreamInfo, order: list[WriterPages]) -> Iterator[tuple[int, bytes]]:
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


def _is_intact(slot: PageSlot | Run) -> bool:
    return isinstance(slot, Run) or slot.parts > 0


def _rows(column: WriterPages) -> Iterator[bytes]:
    # A page that follows tells of the loss: a reader must not count it twice.
    told = max((number for number, slot in enumerate(column.slots) if _is_intact(slot)), default=-1)
    for number, slot in enumerate(column.slots):
        if isinstance(slot, Run):
            yield slot.rows
        else:
            yield T.pack_page_rows([_row(column, slot, is_told=number < told)])


def _row(column: WriterPages, slot: PageSlot, *, is_told: bool) -> T.PageRow:
    if slot.first is None:
        return T.PageRow(0, column.writer, 0, 0, T.PAGE_DAMAGED)
    entry = slot.first.entry
    if not slot.parts:
        return T.PageRow(entry.sequence, column.writer, 0 if is_told else entry.events_count, 0, T.PAGE_DAMAGED)
    crc = T.page_crc(slot.crc, slot.header(), pack_lost_count(slot.lost))
    return T.PageRow(entry.sequence, column.writer, slot.events, crc, 0)
