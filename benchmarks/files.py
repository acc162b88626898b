"""How fast FileSink writes pages, beside a bare loop of `os.writev`.

    bare writev     16 pages of 64 KiB at a time (1 MiB), into a fresh file; nothing else
    reserved        the same, and blocks are reserved 4 MiB ahead, as FileSink does
    with crc32      bare, and the crc32 of every page: what telling damage costs
    FileSink        the same pages from a stream that always has as many as are asked for; to the finished trace.dat
    4 writers       pages of four writers by turns: they go to a spool each, and at the end into one file

All rows are measured in one run, interleaved, in random order, into the same folder; nobody fsyncs. The ratio is the
median over the rounds of a row's throughput to the bare loop's in the same round. CPU is the process's, of all
threads: what a second of it writes; it says more than the clock where others use the machine, too, as FileSink has two
threads. Set TMPDIR to choose the disk; on a tmpfs it is the memory that is measured.
"""

from __future__ import annotations

import functools
import os
import random
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

import anyio

import aiotrace
from aiotrace._base.clock import take_anchor
from aiotrace._base.crc32 import crc32
from aiotrace._page import layout as L
from aiotrace._page.definitions import DEFINITIONS
from aiotrace._page.encode import encode_record, pack_header
from aiotrace._page.entry import PageEntry
from aiotrace._store.trace_files import RESERVED, reserve
from aiotrace.abc import Definition, Ledger, Page, StreamInfo, WriterLedger
from aiotrace.formats import StoredPage
from aiotrace_sinks import FileSink

from .table import Cell, Table

MIB: Final = 1 << 20
SIZE: Final = 256 * MIB
"""Bytes of one file."""
ROUNDS: Final = 9
BATCH: Final = MIB // L.PAGE_SIZE_DEFAULT
BUFFERS: Final = 4 * BATCH
"""Pages in memory, used again and again, as a pool's are."""


def make_records() -> bytes:
    """A page full of records of three numbers."""
    record = encode_record(1000, bytes(28))
    return record * ((L.PAGE_SIZE_DEFAULT - L.PAGE_HEADER_SIZE - L.LOST_COUNT_SIZE) // len(record))


RECORDS: Final = make_records()
EVENTS: Final = len(RECORDS) // 32
WHOLE: Final = [
    pack_header(1, len(RECORDS)) + RECORDS + bytes(L.PAGE_SIZE_DEFAULT - L.PAGE_HEADER_SIZE - len(RECORDS))
    for _ in range(BUFFERS)
]


@functools.cache
def make_pages(count: int, writers: int) -> list[Page]:
    """Made before the clock starts: in a recording they are the reader's work, not the sink's."""
    return [
        StoredPage(
            PageEntry(number % writers, number // writers, 0, True, EVENTS, 0, 1, 1, len(RECORDS)),
            memoryview(WHOLE[number % BUFFERS])[L.PAGE_HEADER_SIZE : L.PAGE_HEADER_SIZE + len(RECORDS)],
        )
        for number in range(count)
    ]


class FullStream:
    """A page stream that always has pages, until so many bytes were taken."""

    def __init__(self, pages: list[Page], writers: int) -> None:
        self._pages = pages
        self._next = 0
        self._held = 0
        self._writers = writers
        self.info = StreamInfo(
            os.urandom(16), L.PAGE_SIZE_DEFAULT, writers, "mono", take_anchor(time.monotonic_ns), 1, "", "benchmark"
        )

    @property
    def definitions(self) -> Sequence[Definition]:
        return DEFINITIONS

    @property
    def ledger(self) -> Ledger:
        each = self._next * EVENTS // self._writers
        return Ledger(tuple(WriterLedger(writer, each, 0, 0, 0, 0) for writer in range(self._writers)))

    def accept_prefixes(self) -> None:
        pass

    def __aiter__(self) -> FullStream:
        return self

    async def __anext__(self) -> Page:
        pages = await self.next_batch(1)
        if not pages:
            raise StopAsyncIteration
        return pages[0]

    async def next_batch(self, pages: int) -> list[Page]:
        await anyio.lowlevel.checkpoint_if_cancelled()  # as the stream of a recording
        count = min(pages, len(self._pages) - self._next, BUFFERS - self._held)
        found = self._pages[self._next : self._next + count]
        self._next += count
        self._held += count
        return found

    def acknowledge(self, page: Page) -> None:
        self._held -= 1

    def acknowledge_all(self, pages: Sequence[Page]) -> None:
        self._held -= len(pages)


def bare(path: Path, pages: int, *, crc: bool = False, reserved: bool = False) -> None:
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        for first in range(0, pages, BATCH):
            if reserved and not first * L.PAGE_SIZE_DEFAULT % RESERVED:
                reserve(fd, first * L.PAGE_SIZE_DEFAULT, RESERVED)
            batch = [WHOLE[(first + index) % BUFFERS] for index in range(min(BATCH, pages - first))]
            if crc:
                for page in batch:
                    crc32(page)
            written = os.writev(fd, batch)
            assert written == len(batch) * L.PAGE_SIZE_DEFAULT, "a short write: is the disk full?"
    finally:
        os.close(fd)


def file_sink(path: Path, pages: int, *, writers: int = 1) -> None:
    async def write() -> None:
        await FileSink(path)(FullStream(make_pages(pages, writers), writers))

    anyio.run(write)


ROWS: Final[dict[str, Callable[[Path, int], None]]] = {
    "bare writev": bare,
    "reserved": lambda path, pages: bare(path, pages, reserved=True),
    "with crc32": lambda path, pages: bare(path, pages, crc=True),
    "FileSink": file_sink,
    "FileSink, 4 writers": lambda path, pages: file_sink(path, pages, writers=4),
}


def measure(write: Callable[[Path, int], None], path: Path, pages: int) -> tuple[float, float]:
    """Seconds on the clock, and of the processor. The file is deleted after them."""
    began, cpu = time.perf_counter(), time.process_time()
    write(path, pages)
    took = time.perf_counter() - began, time.process_time() - cpu
    assert path.stat().st_size >= pages * L.PAGE_SIZE_DEFAULT
    path.unlink()
    return took


def run(size: int | None = None, rounds: int | None = None) -> Table:
    """
    Args:
        size: Bytes of each file.
        rounds: How often each row is measured.
    """
    pages = (size or SIZE) // L.PAGE_SIZE_DEFAULT
    took: dict[str, list[tuple[float, float]]] = {name: [] for name in ROWS}
    with tempfile.TemporaryDirectory() as folder:
        for name, write in ROWS.items():  # once for the caches
            measure(write, Path(folder) / name, pages)
        for number in range(rounds or ROUNDS):
            for name in random.sample(list(ROWS), len(ROWS)):
                took[name].append(measure(ROWS[name], Path(folder) / f"{number}.dat", pages))
    lines: list[tuple[Cell, ...]] = []
    for name, times in took.items():
        rates = [pages * L.PAGE_SIZE_DEFAULT / seconds / 1e9 for seconds, _ in times]
        cpu = [pages * L.PAGE_SIZE_DEFAULT / max(seconds, 1e-9) / 1e9 for _, seconds in times]
        bare_seconds = [seconds for seconds, _ in took["bare writev"]]
        ratio = statistics.median(other / mine for (mine, _), other in zip(times, bare_seconds, strict=True))
        pairs = zip(times, took["bare writev"], strict=True)
        cpu_ratio = statistics.median(other / max(mine, 1e-9) for (_, mine), (_, other) in pairs)
        lines.append((name, min(rates), statistics.median(rates), max(rates), ratio, statistics.median(cpu), cpu_ratio))
    return Table(
        title=f"{pages * L.PAGE_SIZE_DEFAULT // MIB} MiB of pages into a file; back end {aiotrace.__backend__!r}",
        columns=("what", "GB/s min", "median", "max", "x bare", "GB/s of CPU", "x bare, CPU"),
        rows=lines,
        notes=(
            "x bare: the median over the rounds of the ratio within a round, by the clock and by CPU;",
            "goal of FileSink: >= 0.85 by the clock.",
        ),
    )
