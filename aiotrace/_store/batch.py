"""A batch of pages and parts of pages: where each goes, and writing them. Blocking file I/O.

    pages --plan_batch--> contiguous writes of each file --write_plan--> how many of the first pages are whole

The general path. Batches of whole pages, the common case, go through `batch_write` instead, in one call.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final

from .._base.crc32 import crc32
from .._formats.journal import PagePlacement, Position, Positions
from .._page import layout as L
from .._page.encode import pack_header, pack_lost_count
from .._page.entry import PageEntry, page_entry
from ..abc import Page
from .trace_files import Buffer, TraceFiles, reserve_for, write_most

__all__ = ["BatchPlan", "continues", "count_first", "plan_batch", "write_plan"]

_ZEROS: Final = memoryview(bytes(L.BLOCK))


class _ContiguousWrite:
    """Pages that lie side by side in one file: one call for all costs half as much as one for each."""

    __slots__ = ("buffers", "end", "ends", "fd", "offset")

    def __init__(self, fd: int, offset: int) -> None:
        self.fd = fd
        self.offset = self.end = offset
        self.buffers: list[Buffer] = []
        self.ends: list[int] = []
        """End offset of each page, or part of one, in `buffers`."""


@dataclass(slots=True)
class BatchPlan:
    """What to write of a batch, and the state of the trace after all of it is written."""

    stored: Positions
    last: dict[int, PagePlacement]
    in_place: int | None
    placed: list[PagePlacement] = field(default_factory=list)
    """Where each page goes, in the order of the batch."""
    fds: list[int] = field(default_factory=list)
    """The file of each of these."""
    definitions: int = 0
    """Number of definitions that the pages need."""
    writes: dict[int, list[_ContiguousWrite]] = field(default_factory=dict)
    """The writes to each file, by descriptor."""
    no_spool: OSError | None = None
    """Why the plan ends before the batch does: a spool could not be opened."""


def plan_batch(pages: Sequence[Page], files: TraceFiles, page_size: int, plan: BatchPlan) -> None:
    """Extend a plan, empty but for the state before the batch, up to the first page whose spool cannot be opened."""
    stored, lasts = plan.stored, plan.last
    current: dict[int, _ContiguousWrite] = {}

    for page in pages:  # one loop and few calls: this runs for each page
        # Skip what the trace has already.
        entry = page_entry(page)
        writer, sequence, begin, _, _, lost, definitions, timestamp, committed = entry
        position = sequence, begin + committed
        if writer in stored and position <= stored[writer]:
            continue

        # The first writer's pages go into the trace itself, all others into spools.
        if plan.in_place is None:
            plan.in_place = writer
        spooled = writer != plan.in_place
        try:
            fd = files.spool(writer) if spooled else files.data
        except OSError as error:
            plan.no_spool = error
            break

        # A part follows the part before it; anything else takes the writer's next page of the file.
        records = page.data
        last = lasts.get(writer)
        if last is not None and last[0][1] == sequence and continues(last.end, entry):
            start = last.start + last.entry.committed
            placed = PagePlacement(entry, spooled, last.place, start, last.crc, crc32(records, last.crc))
            offset, size = placed.records_place, committed
            buffers: tuple[Buffer, ...] = (records,)
        else:
            offset = last.place + page_size if last is not None else 0 if spooled else page_size
            placed = PagePlacement(entry, spooled, offset, 0, 0, crc32(records))
            lost_count = pack_lost_count(lost) if lost else b""
            size = L.PAGE_HEADER_SIZE + committed + len(lost_count)
            rest = -size % L.BLOCK
            buffers = (pack_header(timestamp, committed, lost), records, lost_count, _ZEROS[:rest])
            size += rest

        # Join it to the write before it where the two touch.
        write = current.get(fd)
        if write is None or write.end != offset:
            write = current[fd] = _ContiguousWrite(fd, offset)
            plan.writes.setdefault(fd, []).append(write)
        write.buffers += buffers
        write.end = offset + size
        write.ends.append(write.end)

        plan.placed.append(placed)
        plan.fds.append(fd)
        plan.definitions = max(plan.definitions, definitions)
        lasts[writer] = placed
        stored[writer] = position


def write_plan(plan: BatchPlan, reserved: dict[int, int]) -> tuple[int, OSError | None]:
    """Write what is planned.

    Args:
        reserved: By descriptor, the offset up to which blocks are allocated; updated.

    Returns:
        How many of the first pages are whole, and what kept the others from being written.
    """
    whole = dict.fromkeys(plan.writes, 0)
    for fd, writes in plan.writes.items():
        for write in writes:
            reserved[fd] = reserve_for(fd, write.offset, write.end, reserved.get(fd, 0))
            written, error = write_most(fd, write.buffers, write.offset)
            if error is not None:
                reached = write.offset + written
                whole[fd] += sum(end <= reached for end in write.ends)
                return count_first(plan.fds, whole), error
            whole[fd] += len(write.ends)
    return len(plan.placed), None


def count_first(files: Sequence[int], whole: dict[int, int]) -> int:
    """How many of the first pages of a batch are whole.

    Args:
        files: The file of each page.
        whole: By file, the number of its pages that are whole; used up.
    """
    for count, file in enumerate(files):
        if not whole[file]:
            return count
        whole[file] -= 1
    return len(files)


def continues(end: Position | None, entry: PageEntry) -> bool:
    """Whether a part continues the page that ends there. After a loss it needs a header, and so a page, of its own."""
    return (entry.sequence, entry.offset) == end and not entry.lost_before
