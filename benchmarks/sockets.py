"""How fast SocketSink streams pages to a collector on this machine, beside a bare loop of `sendmsg`.

    bare sendmsg    an asyncio loop that sends 16 buffers of a page's records at a time, as long as the socket takes
                    them, and reads an acknowledgement of 8 bytes for each portion that arrives; no window, no frames
    SocketSink      the same buffers as pages from a stream that always has as many as are asked for, until the
                    collector has acknowledged the last one and the ledger; level `received`, no crc32 of bodies
    on trio         the same, on trio

The other side is a process of its own, with blocking calls: it receives into memory that it uses again, and keeps
nothing. The collector's is `aiotrace.protocol.Collector`, which checks what it checks everywhere else.

All rows are measured in one run, interleaved, in random order. The ratio is the median over the rounds of a row's
throughput to the bare loop's in the same round. CPU is the sender's: what a second of it sends.
"""

from __future__ import annotations

import asyncio
import multiprocessing
import os
import random
import socket
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from multiprocessing.connection import Connection
from typing import Final

import anyio

import aiotrace
from aiotrace._base.clock import take_anchor
from aiotrace._page import layout as L
from aiotrace._page.definitions import DEFINITIONS
from aiotrace.abc import Definition, Ledger, Page, StreamInfo, WriterLedger
from aiotrace.protocol import Collector, Finished, Grant, Greeted, PageReceived
from aiotrace_sinks import SocketSink

from .files import BUFFERS, EVENTS, MIB, RECORDS, make_pages
from .table import Cell, Table

SIZE: Final = 512 * MIB
"""Bytes of one measurement."""
ROUNDS: Final = 9
BATCH: Final = 16
PORTION: Final = BATCH << 16
"""Bytes that the bare receiver takes at once: as many as fit into a block of the collector's."""
DEADLINE: Final = 120.0
"""Seconds after which the other process is given up."""


class EndlessStream:
    """A page stream that has as many pages as it has memory for, until so many were taken."""

    def __init__(self, pages: list[Page]) -> None:
        self._pages = pages
        self._next = 0
        self._held = 0
        self._room = anyio.Event()
        self.info = StreamInfo(
            os.urandom(16), L.PAGE_SIZE_DEFAULT, 1, "mono", take_anchor(time.monotonic_ns), 1, "", "benchmark"
        )

    @property
    def definitions(self) -> Sequence[Definition]:
        return DEFINITIONS

    @property
    def ledger(self) -> Ledger:
        return Ledger((WriterLedger(0, self._next * EVENTS, 0, 0, 0, 0),))

    def accept_prefixes(self) -> None:
        pass

    def __aiter__(self) -> EndlessStream:
        return self

    async def __anext__(self) -> Page:
        pages = await self.next_batch(1)
        if not pages:
            raise StopAsyncIteration
        return pages[0]

    async def next_batch(self, pages: int) -> list[Page]:
        await anyio.lowlevel.checkpoint_if_cancelled()
        while self._held >= BUFFERS and self._next < len(self._pages):
            self._room = anyio.Event()
            await self._room.wait()
        count = min(pages, len(self._pages) - self._next, BUFFERS - self._held)
        found = self._pages[self._next : self._next + count]
        self._next += count
        self._held += count
        return found

    def acknowledge(self, page: Page) -> None:
        self.acknowledge_all([page])

    def acknowledge_all(self, pages: Sequence[Page]) -> None:
        self._held -= len(pages)
        self._room.set()


# --- the other process --------------------------------------------------------------------------


def receive_bare(sock: socket.socket) -> None:
    buffer = bytearray(PORTION)
    while count := sock.recv_into(buffer):
        sock.send(count.to_bytes(8, "little"))


def receive_pages(sock: socket.socket) -> None:
    collector = Collector(0.0)
    while not collector.is_over:
        count = sock.recv_into(collector.buffer())
        if not count:
            return
        for event in collector.received(count, 0.0):
            match event:
                case PageReceived():
                    collector.acknowledge({event.entry.writer: event.end})
                    event.release()
                case Greeted(_, request):
                    collector.accept(Grant(BUFFERS, check_bodies=request.check_bodies), {})
                case Finished():
                    collector.acknowledge_end()
        while buffers := collector.pending():
            collector.sent(sock.sendmsg(buffers))


def serve(family: int, place: str, ready: Connection) -> None:
    """Take one connection after another; the first byte of each says which of the two it is for."""
    with socket.socket(family, socket.SOCK_STREAM) as listener:
        listener.bind(place if family == socket.AF_UNIX else ("127.0.0.1", 0))
        listener.listen()
        ready.send(listener.getsockname())
        while True:
            sock, _ = listener.accept()
            with sock:
                receive = receive_bare if sock.recv(1, socket.MSG_PEEK) == b"b" else receive_pages
                receive(sock)


# --- the senders --------------------------------------------------------------------------------


def send_bare(url: str, place: str | tuple[str, int], pages: list[Page]) -> None:
    async def send() -> None:
        loop = asyncio.get_running_loop()
        done = loop.create_future()
        buffers = [page.data for page in pages]
        left = sum(map(len, buffers))
        index, rest = 0, memoryview(b"")
        acknowledgements = b""

        def write() -> None:
            nonlocal index, rest
            batch = buffers[index : index + BATCH]
            if rest:
                batch[0] = rest
            try:
                sent = sock.sendmsg(batch)
            except BlockingIOError:
                return
            for buffer in batch:
                if sent < len(buffer):
                    rest = buffer[sent:]
                    return
                sent -= len(buffer)
                index += 1
                rest = memoryview(b"")
            if index == len(buffers):
                loop.remove_writer(sock)

        def read() -> None:
            nonlocal left, acknowledgements
            acknowledgements += sock.recv(1 << 16)
            whole = len(acknowledgements) & ~7
            for start in range(0, whole, 8):
                left -= int.from_bytes(acknowledgements[start : start + 8], "little")
            acknowledgements = acknowledgements[whole:]
            if left <= 0 and not done.done():
                done.set_result(None)

        with socket.socket(socket.AF_UNIX if isinstance(place, str) else socket.AF_INET, socket.SOCK_STREAM) as sock:
            sock.connect(place)
            sock.setblocking(False)
            sock.send(b"b")
            left += 1
            loop.add_writer(sock, write)
            loop.add_reader(sock, read)
            await done
            loop.remove_reader(sock)

    asyncio.run(send())


def send_pages(url: str, place: str | tuple[str, int], pages: list[Page], backend: str = "asyncio") -> None:
    async def send() -> None:
        await SocketSink(url, level="received")(EndlessStream(pages))

    anyio.run(send, backend=backend)


Sender = Callable[[str, str | tuple[str, int], list[Page]], None]
ROWS: Final[dict[str, Sender]] = {
    "bare sendmsg": send_bare,
    "SocketSink": send_pages,
    "SocketSink on trio": lambda url, place, pages: send_pages(url, place, pages, "trio"),
}


def measure(send: Sender, url: str, place: str | tuple[str, int], pages: list[Page]) -> tuple[float, float]:
    """Seconds on the clock, and of this process's processor."""
    began, cpu = time.perf_counter(), time.process_time()
    send(url, place, pages)
    return time.perf_counter() - began, time.process_time() - cpu


def run(size: int | None = None, rounds: int | None = None) -> Table:
    """
    Args:
        size: Bytes of each measurement.
        rounds: How often each row is measured.
    """
    pages = make_pages((size or SIZE) // L.PAGE_SIZE_DEFAULT, 1)
    bytes_sent = len(pages) * len(RECORDS)
    lines: list[tuple[Cell, ...]] = []
    with tempfile.TemporaryDirectory() as folder:
        took: dict[tuple[str, str], list[tuple[float, float]]] = {}
        servers = [start(socket.AF_UNIX, os.path.join(folder, "socket")), start(socket.AF_INET, "")]
        try:
            for way, (process, url, place) in zip(("Unix", "TCP"), servers, strict=True):
                for name, send in ROWS.items():  # once for the caches
                    measure(send, url, place, pages)
                    took[way, name] = []
                for _ in range(rounds or ROUNDS):
                    for name in random.sample(list(ROWS), len(ROWS)):
                        took[way, name].append(measure(ROWS[name], url, place, pages))
                assert process.is_alive()
        finally:
            for process, _, _ in servers:
                process.kill()
                process.join(DEADLINE)
    for (way, name), times in took.items():
        rates = [bytes_sent / seconds / 1e9 for seconds, _ in times]
        cpu = [bytes_sent / max(seconds, 1e-9) / 1e9 for _, seconds in times]
        bare = [seconds for seconds, _ in took[way, "bare sendmsg"]]
        ratio = statistics.median(other / mine for (mine, _), other in zip(times, bare, strict=True))
        lines.append((way, name, min(rates), statistics.median(rates), max(rates), statistics.median(cpu), ratio))
    return Table(
        title=f"{len(pages)} pages of 64 KiB over a socket; back end {aiotrace.__backend__!r}",
        columns=("way", "what", "GB/s min", "median", "max", "GB/s of CPU", "x bare"),
        rows=lines,
        notes=("x bare: the median over the rounds of the ratio within a round; goal of SocketSink: >= 0.85.",),
    )


def start(family: int, path: str) -> tuple[multiprocessing.Process, str, str | tuple[str, int]]:
    """The other process, and where it listens."""
    ours, theirs = multiprocessing.Pipe()
    process = multiprocessing.Process(target=serve, args=(family, path, theirs), daemon=True)
    process.start()
    assert ours.poll(DEADLINE), "the other process does not start"
    place = ours.recv()
    return process, f"unix:{place}" if family == socket.AF_UNIX else f"tcp://127.0.0.1:{place[1]}", place
