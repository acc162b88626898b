"""One stream for each CPU: the records of its pages in order, and a loss wherever something is missing.

    page  page  page   --walk-->   e e e   loss   e e   loss
            `- damaged

One page of each CPU is in memory, whatever the file's size. Damage is local: a damaged page is noted with the file and
becomes a loss; the next page is read.

The caller's `read` turns records into events or lines; merging the CPUs is left to `Trace`.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Final, TypeVar

from .._base.errors import TraceFormatError
from .._decode.event import Event, Tables, make_lost
from .._page import layout as L
from .._page.walk import ALL, RecordFilter, Walk, tally, walk
from .page_sources import CpuData, FoundPage, PageShape, PageSource, TraceBuffer
from .statistics import Loss, WriterCount

__all__ = ["CpuStreams", "Read", "read_page_header"]

COMMIT_MASK: Final = (1 << 27) - 1
"""As in libtraceevent: 27 bits, since the kernel's pages may be larger than aiotrace's."""


@dataclass(frozen=True, slots=True)
class PageHeader:
    """The header of a page, checked."""

    timestamp: int
    """Nanoseconds as stored, without the file's time offset."""
    start: int
    end: int
    """The records are the bytes from `start` to `end`."""
    lost: int | None
    """Events missing before the page; None for an unknown number."""


def read_page_header(data: bytes, shape: PageShape) -> PageHeader:
    """
    Raises:
        TraceFormatError: The page is shorter than its header states.
    """
    order = "little" if shape.byte_order == "<" else "big"
    start = shape.data_offset
    if len(data) < start:
        raise TraceFormatError(f"a page of {len(data)} bytes has no room for its header", offset=0)
    commit = int.from_bytes(data[8:start], order)  # type: ignore[arg-type]  # one of the two literals
    end = start + (commit & COMMIT_MASK & ~L.COMMIT_MISSED_STORED)
    if end > len(data):
        raise TraceFormatError(f"commit is {end - start}, the page has {len(data) - start} bytes after it", offset=8)
    lost: int | None = 0
    if commit & L.COMMIT_MISSED_EVENTS:
        lost = None
        if commit & L.COMMIT_MISSED_STORED and end + shape.commit_size <= len(data):
            lost = int.from_bytes(data[end : end + shape.commit_size], order)  # type: ignore[arg-type]  # as above
    return PageHeader(int.from_bytes(data[:8], order), start, end, lost)  # type: ignore[arg-type]  # as above


_T = TypeVar("_T")
Read = Callable[[FoundPage, Walk, str, int], Iterator[tuple[int, _T]]]
"""(page, its records, buffer, cpu) -> an item for each record or group of records, with its time."""


class CpuStreams:
    """A file's pages, read CPU by CPU."""

    def __init__(self, file: PageSource, tables: Tables) -> None:
        self._file = file
        self._tables = tables
        self.losses: dict[tuple[str, int], Loss] = {}
        """By buffer and CPU, since the last `restart`."""
        self._reached: dict[tuple[str, int], int] = {}
        """The last time of each CPU, from which a growing file continues."""
        self.bytes_read = 0
        """Bytes of pages read since the last `restart`."""

    def restart(self) -> None:
        """Read from the first page again."""
        self.bytes_read = 0
        self.losses = {}
        self._reached = {}
        self._file.forget_page_damage()

    def streams(
        self, select: RecordFilter, cpus: frozenset[int] | None, read: Read[_T]
    ) -> list[tuple[int, Iterator[tuple[int, _T | Event]]]]:
        """(rank among equal times, items of `read`) for each CPU.

        Args:
            cpus: Only these; None for all.
        """
        return [
            (order, self._stream(buffer, cpu, select, read))
            for order, (buffer, cpu) in enumerate(
                (b, c) for b in self._file.buffers for c in sorted(b.cpus, key=lambda c: c.cpu)
            )
            if cpus is None or cpu.cpu in cpus
        ]

    def _stream(
        self, buffer: TraceBuffer, cpu: CpuData, select: RecordFilter, read: Read[_T]
    ) -> Iterator[tuple[int, _T | Event]]:
        """The items of `read` for one CPU, and a loss where events are missing, each with its time."""
        shape, name, number = self._file.shape, buffer.name, cpu.cpu
        now = self._reached.get((name, number), 0)

        def lost(count: int | None, reason: str) -> tuple[int, Event]:
            self._count_loss(name, number, count)
            return now, make_lost(count, reason, now, number, self._tables, buffer=name)

        for found in self._file.pages(buffer, cpu):
            self.bytes_read += len(found.data)
            try:
                # A loss comes before the page's records.
                header, records = self._walk(found, shape, select)
                if header.lost != 0:
                    now = max(now, header.timestamp + self._file.time_offset)
                    yield lost(header.lost, "overrun or dropped")
                for now, item in read(found, records, name, number):
                    yield now, item
            except TraceFormatError as error:
                self._file.note_damage(found.offset + (error.offset or 0), f"CPU {number}: {error.message}")
                yield lost(found.events_count, f"damage at {found.offset}: {error.message}")

        # Events lost after the last page are reported by no page.
        for count, reason in self._file.losses_after(buffer, cpu):
            yield lost(count, reason)
        self._reached[name, number] = now

    def _walk(self, found: FoundPage, shape: PageShape, select: RecordFilter) -> tuple[PageHeader, Walk]:
        """
        Raises:
            TraceFormatError: The page or its header is damaged.
        """
        if found.problem:
            raise TraceFormatError(found.problem, offset=0)
        header = read_page_header(found.data, shape)
        return header, walk(
            found.data,
            header.timestamp,
            header.start,
            header.end,
            offset=self._file.time_offset,
            byte_order=shape.byte_order,
            select=select,
        )

    def _count_loss(self, buffer: str, cpu: int, count: int | None) -> None:
        loss = self.losses.setdefault((buffer, cpu), Loss(buffer, cpu))
        if count is None:
            loss.uncounted += 1
        else:
            loss.count += count

    def count(self, buffer: TraceBuffer, cpu: CpuData, totals: array[int]) -> WriterCount:
        """Count one CPU's records, and those of each id in `totals`; decodes no field."""
        writer = WriterCount(buffer.name, cpu.cpu, cpu.size)
        for found in self._file.pages(buffer, cpu):
            self.bytes_read += len(found.data)
            writer.pages += 1
            try:
                header, records = self._walk(found, self._file.shape, ALL)
                if header.lost != 0:
                    self._count_loss(buffer.name, cpu.cpu, header.lost)
                count, size, first, last = tally(records, totals)
                if count:
                    writer.first_ns = first if writer.first_ns is None else writer.first_ns
                    writer.last_ns = last
                writer.count += count
                writer.bytes += size
                next(records, None)
            except TraceFormatError as error:
                self._file.note_damage(found.offset + (error.offset or 0), f"CPU {cpu.cpu}: {error.message}")
                self._count_loss(buffer.name, cpu.cpu, found.events_count)
        for lost, _ in self._file.losses_after(buffer, cpu):
            self._count_loss(buffer.name, cpu.cpu, lost)
        loss = self.losses.get((buffer.name, cpu.cpu))
        if loss is not None:
            writer.lost, writer.uncounted_losses = loss.count, loss.uncounted
        return writer
