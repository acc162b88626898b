"""A `trace-cmd listen` of the test's own, in its loop: it keeps what it gets in memory.

async with faking() as listener:
    async with aiotrace.record(TraceCmdSink(listener.url)): ...
assert listener.traces ...
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import anyio
import anyio.abc
from anyio.streams.buffered import BufferedByteReceiveStream

from aiotrace._page.layout import COMMIT_MASK
from aiotrace_sinks import _tracecmd_messages as M
from support.laws import numbers_on


@dataclass
class FakeTrace:
    """What became of one connection."""

    cpus: int = 0
    page_size: int = 0
    headers: bytes = b""
    has_headers: bool = False
    """They were said to be complete."""
    raw: list[bytearray] = field(default_factory=list)
    """By data connection."""
    ended: bool = False
    """The client said that it is."""
    reading: int = 0
    """Data connections that are being read."""
    unread: int = 0
    """Data connections that were not read to their end then."""

    @property
    def pages(self) -> list[bytes]:
        size = self.page_size
        assert all(len(data) % size == 0 for data in self.raw), [len(data) for data in self.raw]
        return [bytes(data[at : at + size]) for data in self.raw for at in range(0, len(data), size)]

    @property
    def numbers(self) -> list[int]:
        """Of the events `laws.number`, page by page."""
        return [n for page in self.pages for n in numbers_on(memoryview(page)[16 : 16 + _committed(page)], 0)]


def _committed(page: bytes) -> int:
    return int.from_bytes(page[8:16], "little") & COMMIT_MASK


@dataclass
class FakeListener:
    url: str = ""
    traces: list[FakeTrace] = field(default_factory=list)
    answers: Sequence[bytes] = (M.GREETING, M.VERSION_TAKEN, M.AGREED)
    """What it says first, and to the first words of a client."""
    ports: bytes | None = None
    """The RINIT that it sends, whatever the request."""
    reads: anyio.Event = field(default_factory=anyio.Event)
    """Nothing is read from data connections before it is set."""
    controls: list[anyio.abc.ByteStream] = field(default_factory=list)
    open: set[anyio.abc.ByteStream] = field(default_factory=set)
    """Connections of both kinds."""
    _data_port: int = 0

    async def control(self, stream: anyio.abc.ByteStream) -> None:
        self.controls.append(stream)
        trace = FakeTrace()
        self.traces.append(trace)
        async with self._opened(stream):
            try:
                await self._hear(stream, BufferedByteReceiveStream(stream), trace)
            except (anyio.IncompleteRead, anyio.BrokenResourceError, anyio.EndOfStream, anyio.ClosedResourceError):
                pass

    async def _hear(self, stream: anyio.abc.ByteStream, reader: BufferedByteReceiveStream, trace: FakeTrace) -> None:
        await stream.send(self.answers[0])
        for expected, answer in zip((M.VERSION_WANTED, M.MAGIC), self.answers[1:], strict=False):
            found = await reader.receive_exactly(len(expected))
            assert found == expected
            await stream.send(answer)
        while True:
            command, size = M.unpack_header(await reader.receive_exactly(M.HEADER_SIZE))
            body = await reader.receive_exactly(size) if size else b""
            if command == M.TINIT:
                assert body.endswith(b"tcp\0")
                trace.cpus, trace.page_size = int.from_bytes(body[:4], "big"), int.from_bytes(body[4:8], "big")
                await stream.send(self.ports if self.ports is not None else rinit([self._data_port] * trace.cpus))
            elif command == M.SEND_DATA:
                assert not trace.has_headers
                trace.headers += body
            elif command == M.FIN_DATA:
                trace.has_headers = True
            else:
                assert command == M.unpack_header(M.CLOSE)[0], command
                trace.ended = True
                trace.unread = trace.reading
                return

    @asynccontextmanager
    async def _opened(self, stream: anyio.abc.ByteStream) -> AsyncIterator[None]:
        self.open.add(stream)
        try:
            async with stream:
                yield
        finally:
            self.open.remove(stream)

    async def data(self, stream: anyio.abc.ByteStream) -> None:
        trace = self.traces[-1]
        raw = bytearray()
        trace.raw.append(raw)
        trace.reading += 1
        async with self._opened(stream):
            await self.reads.wait()
            try:
                async for portion in stream:
                    raw += portion
                trace.reading -= 1
            except (anyio.BrokenResourceError, anyio.ClosedResourceError):
                pass


def rinit(ports: Sequence[int], count: int | None = None) -> bytes:
    """The message that names the ports."""
    data = b"".join(b"%d\0" % port for port in ports)
    head = (16 + len(data)).to_bytes(4, "big") + (M.RINIT).to_bytes(4, "big") + (4).to_bytes(4, "big")
    return head + (len(ports) if count is None else count).to_bytes(4, "big") + data


@asynccontextmanager
async def faking() -> AsyncIterator[FakeListener]:
    """One port for the data of all CPUs: a connection is a CPU's all the same."""
    fake = FakeListener()
    fake.reads.set()
    async with (
        await anyio.create_tcp_listener(local_host="127.0.0.1") as control,
        await anyio.create_tcp_listener(local_host="127.0.0.1") as data,
        anyio.create_task_group() as group,
    ):
        fake.url = f"tcp://127.0.0.1:{control.extra(anyio.abc.SocketAttribute.local_port)}"
        fake._data_port = data.extra(anyio.abc.SocketAttribute.local_port)
        group.start_soon(control.serve, fake.control)
        group.start_soon(data.serve, fake.data)
        yield fake
        group.cancel_scope.cancel()
