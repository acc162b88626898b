"""A collector on a socket, in the loop of the test: it keeps what it gets in memory, and does what a test tells it.

async with collecting(tmp_path) as collector:
    async with aiotrace.record(SocketSink(collector.url)): ...
    assert collector.stored ...
"""

from __future__ import annotations

import os
import shutil
import ssl
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import anyio
import anyio.abc
from anyio.streams.tls import TLSListener

from aiotrace.abc import Ledger, StreamInfo
from aiotrace.protocol import (
    Broken,
    Collector,
    CollectorEvent,
    Defined,
    Finished,
    Grant,
    Greeted,
    PageReceived,
    Refused,
    Request,
)
from support.laws import numbers_on
from support.peers import Stored


@dataclass
class TestCollector:
    """What it has, by stream; and what it is to do."""

    __test__ = False
    url: str
    streams: dict[bytes, Stored] = field(default_factory=dict)
    infos: dict[bytes, StreamInfo] = field(default_factory=dict)
    requests: list[Request] = field(default_factory=list)
    connections: int = 0
    broken: list[str] = field(default_factory=list)
    credit: int = 8
    refusal: str | None = None
    """What the next hellos are answered with."""
    cut_after: list[int] = field(default_factory=list)
    """For the next connections: bytes after which each is cut."""
    holds: anyio.Event | None = None
    """Pages are not acknowledged before it is set."""
    held: int = 0
    """Pages that are not acknowledged."""
    stalls: anyio.Event | None = None
    """Until it is set, nothing is read and nothing is said."""
    dies_at: int | None = None
    """Once it has stored that many pages, it closes the connection without a word, and accepts none; with the ledger,
    if it is 0."""
    open: list[anyio.abc.ByteStream] = field(default_factory=list)

    async def cut(self) -> None:
        """All connections, at once."""
        for stream in self.open:
            await anyio.aclose_forcefully(stream)

    @property
    def stored(self) -> Stored:
        (stored,) = self.streams.values()
        return stored

    async def serve(self, stream: anyio.abc.ByteStream) -> None:
        self.connections += 1
        self.open.append(stream)
        try:
            await _Connection(self, stream).run()
        except* (OSError, anyio.BrokenResourceError, anyio.EndOfStream, anyio.ClosedResourceError):
            pass
        finally:
            self.open.remove(stream)
            with anyio.CancelScope(shield=True):
                await anyio.aclose_forcefully(stream)


class _Connection:
    def __init__(self, owner: TestCollector, stream: anyio.abc.ByteStream) -> None:
        self.owner = owner
        self.stream = stream
        self.machine = Collector(anyio.current_time())
        self.left = owner.cut_after.pop(0) if owner.cut_after else None
        self.pages: list[PageReceived] = []
        self.ledger: Ledger | None = None

    async def run(self) -> None:
        async with anyio.create_task_group() as group:
            group.start_soon(self._watch)
            while not self.machine.is_over:
                data = await self.stream.receive(1 << 16)
                if self.owner.stalls is not None:
                    await self.owner.stalls.wait()
                if self.left is not None:
                    if len(data) >= self.left:
                        break
                    self.left -= len(data)
                while data and not self.machine.is_over:
                    buffer = self.machine.buffer()
                    count = min(len(buffer), len(data))
                    buffer[:count] = data[:count]
                    data = data[count:]
                    self._take(self.machine.received(count, anyio.current_time()))
                self.owner.held = len(self.pages)
                await self._flush()
                if self.owner.holds is not None and self.pages:
                    await self.owner.holds.wait()
                self._store()
                if self._dies():
                    self.owner.refusal = "it is dead"
                    break
                await self._flush()
            group.cancel_scope.cancel()

    def _dies(self) -> bool:
        at = self.owner.dies_at
        if at is None or self.owner.refusal is not None:
            return False
        return len(self.stored.pages) == at if at else self.stored.ledger is not None

    async def _watch(self) -> None:
        while not self.machine.is_over:
            await anyio.sleep_until(self.machine.deadline)
            if self.owner.stalls is not None:
                await self.owner.stalls.wait()
            self._take(self.machine.tick(anyio.current_time()))
            await self._flush()
        await self.stream.aclose()

    def _take(self, events: list[CollectorEvent]) -> None:
        owner = self.owner
        for event in events:
            match event:
                case Greeted(info, request):
                    owner.requests.append(request)
                    if owner.refusal is not None:
                        self.machine.refuse(owner.refusal)
                        return
                    owner.infos[info.stream_id] = info
                    self.stored = stored = owner.streams.setdefault(info.stream_id, Stored())
                    ended = stored.ledger is not None
                    grant = Grant(owner.credit, request.check_bodies, len(stored.definitions), ended)
                    self.machine.accept(grant, stored.positions)
                case Defined(_, definitions):
                    self.stored.definitions += definitions
                case PageReceived():
                    self.pages.append(event)
                case Finished(ledger):
                    self.ledger = ledger
                case Broken(reason) | Refused(reason):
                    owner.broken.append(reason)

    def _store(self) -> None:
        for page in self.pages:
            self.stored.store(page)
            self.machine.acknowledge({page.entry.writer: page.end})
            page.release()
        self.pages.clear()
        self.owner.held = 0
        if self.ledger is not None and not self.machine.is_over:
            self.stored.ledger = self.ledger
            self.machine.acknowledge_end()

    async def _flush(self) -> None:
        while buffers := self.machine.pending():
            data = b"".join(buffers)
            self.machine.sent(len(data))
            await self.stream.send(data)


@asynccontextmanager
async def collecting(
    scheme: str = "unix", context: ssl.SSLContext | None = None, *, again: TestCollector | None = None
) -> AsyncIterator[TestCollector]:
    """A collector that listens until the end of the block.

    Args:
        again: The one that was at this address, and whose streams it continues; at "unix" alone.
    """
    # A short path, whatever the test's name is.
    folder = Path(tempfile.mkdtemp() if again is None else again.url.removeprefix("unix:")[: -len("/socket")])
    os.makedirs(folder, mode=0o700, exist_ok=True)
    try:
        listener: anyio.abc.Listener[anyio.abc.ByteStream]
        if scheme == "unix":
            path = folder / "socket"
            listener, url = await anyio.create_unix_listener(path), f"unix:{path}"
        else:
            listener = await anyio.create_tcp_listener(local_host="127.0.0.1")
            port = listener.extra(anyio.abc.SocketAttribute.local_port)  # type: ignore[attr-defined]
            url = f"{scheme}://localhost:{port}"
        if context is not None:
            listener = TLSListener(listener, context)  # type: ignore[arg-type]
        collector = TestCollector(url, streams=again.streams if again is not None else {})
        async with listener, anyio.create_task_group() as group:
            group.start_soon(listener.serve, collector.serve)
            yield collector
            group.cancel_scope.cancel()
    finally:
        shutil.rmtree(folder)


def numbers_in(stored: Stored) -> list[int]:
    """The numbers of all events that a collector stored, in the order of its pages."""
    return [n for data in stored.data for n in numbers_on(memoryview(data), 0)]
