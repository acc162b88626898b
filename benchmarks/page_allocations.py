"""How many pages are allocated for each page streamed: none kept, one kept (the kernel), all kept (ours).

The change to the Linux ring buffer that aiotrace descends from keeps the page that a reader returns for the next
swap. The kernel keeps one for each CPU; so a reader that takes several at once still allocates almost every one.

    a sink takes N pages at once, writes them into a trace.dat, and acknowledges all N:
      free each      all of the next N pages are allocated               1.0 a page
      one slot       the first of the next N is there, N - 1 are not     (N - 1) / N
      free-list      all N are there                                     0, after the first few

The first two are pools in place of aiotrace's own, in the same recording with the same FileSink. "Allocated" means
that a page's memory came from the operating system: those pools really give it back (MADV_DONTNEED), so the minor
page faults that the kernel counted meanwhile say the same (and some more, of the interpreter's own).
"""

from __future__ import annotations

import mmap
import resource
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar, NamedTuple
from unittest import mock

import anyio

import aiotrace
from aiotrace._page import layout as L
from aiotrace._ring import page_cycle
from aiotrace._ring.pool import Pool
from aiotrace.abc import Definition, Ledger, Page, PageStream, Sink, StreamInfo
from aiotrace_sinks import FileSink

from .table import Table

PAGES = 10_000
PAGE_SIZE = mmap.PAGESIZE
"""Bytes: the operating system's own page, as in the kernel's experiment, so that an allocation is one page fault."""
DEPTHS = (1, 16, 64)
SPARE_PAGES = 2
"""Pages of the pool beyond those in flight: one that the writer fills, one that is full and waits in the ring."""
KERNEL = {1: "0.001", 16: "0.94", 64: "1.0 (at 256)"}
"""Allocations a page by Linux 6.18's own tracing reader when it splices so many pages at a time (its cache has
one slot). The numbers of docs/internals/architecture.md; 64 was not measured."""

filled = aiotrace.event("benchmark:page", body="bytes")
BODY = bytes(PAGE_SIZE * 3 // 4)
"""One such event fills a page: a second does not fit."""


class FreeingPool(Pool):
    """A pool that gives back to the operating system what comes home, but for so many pages."""

    kept: ClassVar[int]

    def give_back(self, page: int) -> None:
        super().give_back(page)
        resident = sum(self._arena.get(free, L.TAKES) > 0 for free in self.free)
        if resident > self.kept:
            self.free.insert(0, self.free.pop())  # below the kept one, which is taken first
            self._arena.forget(page)
            self._arena.set(page, L.TAKES, 0)  # its next use is its first, which is the pool's to count


class FreeEach(FreeingPool):
    kept = 0


class OneSlot(FreeingPool):
    kept = 1


POOLS: dict[str, type[Pool]] = {"free each": FreeEach, "one slot": OneSlot, "free-list": Pool}


class FullBatches:
    """A page stream whose batches are of `depth` pages, or of as many as are asked for, but for the last."""

    def __init__(self, stream: PageStream, depth: int) -> None:
        self._stream = stream
        self._depth = depth
        self._batch: list[Page] = []
        """What came already: a sink may be called away while it waits for the others."""

    @property
    def info(self) -> StreamInfo:
        return self._stream.info

    @property
    def definitions(self) -> Sequence[Definition]:
        return self._stream.definitions

    @property
    def ledger(self) -> Ledger:
        return self._stream.ledger

    def accept_prefixes(self) -> None:
        self._stream.accept_prefixes()

    def __aiter__(self) -> PageStream:
        return self

    async def __anext__(self) -> Page:
        return await self._stream.__anext__()

    async def next_batch(self, pages: int) -> list[Page]:
        depth = min(self._depth, pages)
        while len(self._batch) < depth and (more := await self._stream.next_batch(depth - len(self._batch))):
            self._batch += more
        batch, self._batch = self._batch, []
        return batch

    def acknowledge(self, page: Page) -> None:
        self._stream.acknowledge(page)

    def acknowledge_all(self, pages: Sequence[Page]) -> None:
        self._stream.acknowledge_all(pages)


def in_batches(sink: Sink, depth: int) -> Sink:
    async def batched(stream: PageStream) -> None:
        await sink(FullBatches(stream, depth))

    return batched


class Outcome(NamedTuple):
    """What streaming PAGES pages took."""

    allocations: int
    late_allocations: int
    """Those while the second half of the pages was streamed."""
    faults: int
    """Minor page faults of the process meanwhile."""


async def stream_pages(pool: type[Pool], depth: int, trace: Path) -> Outcome:
    """Stream the pages into a file, through a recording with this pool."""
    sink = aiotrace.sink(in_batches(FileSink(trace), depth), quota=depth)
    with mock.patch.object(page_cycle, "Pool", pool):
        async with aiotrace.record(sink, page_size=PAGE_SIZE, pages=depth + SPARE_PAGES) as recording:
            faults = -resource.getrusage(resource.RUSAGE_SELF).ru_minflt
            for _ in range(PAGES // 2):
                await filled.send(BODY)
            early = recording.statistics().pages_allocated
            for _ in range(PAGES - PAGES // 2):
                await filled.send(BODY)
            faults += resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    statistics = recording.statistics()
    assert statistics.events_delivered == PAGES, statistics
    return Outcome(statistics.pages_allocated, statistics.pages_allocated - early, faults)


def run() -> Table:
    table = Table(
        title=f"Page allocations, {PAGES:,} pages of {PAGE_SIZE} bytes through a FileSink",
        columns=("pool", "in flight", "pages", "allocations", "a page", "in 2nd half", "faults a page", "the kernel's"),
        notes=(
            f"in flight: pages that the sink takes, writes and acknowledges at once; {SPARE_PAGES} more are out of the",
            "pool: one that the writer fills, one that is full and waits",
            "the kernel's: allocations a page read by Linux 6.18's tracing reader, which keeps one page",
        ),
    )
    for depth in DEPTHS:
        for name, pool in POOLS.items():
            print(f"{name}, {depth} in flight ...", file=sys.stderr, flush=True)
            with tempfile.TemporaryDirectory() as directory:
                allocations, late, faults = anyio.run(stream_pages, pool, depth, Path(directory) / "trace.dat")
            table.rows.append(
                (name, depth, PAGES, allocations, allocations / PAGES, late, faults / PAGES, KERNEL[depth])
            )
    return table
