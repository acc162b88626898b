"""Producers of the stream protocol for tests of a collector: given pages over a socket, without a recording."""

from __future__ import annotations

import socket
import ssl
from collections.abc import Callable, Iterable, Sequence
from typing import Any
from urllib.parse import urlsplit

import anyio

from aiotrace._protocol.messages import Broken, Refused, Request
from aiotrace._protocol.producer import Acknowledged, Ended, Granted, Producer, ProducerEvent
from aiotrace.abc import Definition, Ledger, Page, StreamInfo
from support import fakes

DEADLINE = 30.0
"""Seconds: for hangs alone."""


async def connect(address: str) -> socket.socket:
    """A socket that does not block."""
    if address.startswith("unix:"):
        sock = socket.socket(socket.AF_UNIX)
        sock.connect(address.removeprefix("unix:"))
    else:
        parts = urlsplit(address)
        assert parts.hostname is not None
        assert parts.port is not None
        sock = socket.create_connection((parts.hostname, parts.port))
    sock.setblocking(False)
    return sock


async def happens(condition: Callable[[], bool]) -> None:
    """Wait for what other threads, tasks or processes do."""
    with anyio.fail_after(DEADLINE):
        while not condition():  # noqa: ASYNC110  # there is no event to wait for
            await anyio.sleep(0.001)


class Sender:
    """A stream's producer. `acknowledged` has the pages that the collector took."""

    def __init__(
        self, info: StreamInfo, definitions: Sequence[Definition] = tuple(fakes.DEFINITIONS), **request: Any
    ) -> None:
        self.producer = Producer(info, definitions, Request(**request))
        self.acknowledged: list[Page] = []
        self.ended = False
        self.granted: list[Granted] = []
        self.over: str | None = None
        """Why the connection ended."""
        self.sock: socket.socket | None = None

    def add(self, pages: Iterable[Page]) -> None:
        for page in pages:
            if self.producer.add(page):
                self.acknowledged.append(page)

    async def connect(self, address: str, tls: ssl.SSLContext | None = None) -> None:
        """On a new connection."""
        self.disconnect()
        sock = await connect(address)
        if tls is not None:
            sock = tls.wrap_socket(sock, server_hostname="localhost", do_handshake_on_connect=False)
            await self._handshake(sock)
        self.sock, self.over = sock, None
        self.producer.connect(anyio.current_time())

    async def _handshake(self, sock: ssl.SSLSocket) -> None:
        while True:
            try:
                return sock.do_handshake()
            except ssl.SSLWantReadError:
                await anyio.wait_readable(sock)
            except ssl.SSLWantWriteError:
                await anyio.wait_writable(sock)

    def disconnect(self) -> None:
        self.producer.disconnect()
        if self.sock is not None:
            self.sock.close()
            self.sock = None

    async def until(self, done: Callable[[], bool]) -> None:
        """Send and receive until that, or until the connection is over."""
        with anyio.fail_after(DEADLINE):
            while not done() and self.over is None:
                await self._turn()

    async def until_acknowledged(self, count: int) -> None:
        await self.until(lambda: len(self.acknowledged) >= count)

    async def end(self, ledger: Ledger) -> None:
        if self.producer.end(ledger):
            self.ended = True
        await self.until(lambda: self.ended)

    async def _turn(self) -> None:
        """Wait for the socket, and do what it allows."""
        assert self.sock is not None
        try:
            self.send()
            count = self.receive()
        except OSError as error:
            self.over = str(error)
            return
        if count is None:
            deadline = self.producer.deadline
            with anyio.move_on_after(max(0, deadline - anyio.current_time())):
                if self.producer.pending():
                    await anyio.wait_writable(self.sock)
                else:
                    await anyio.wait_readable(self.sock)
            self.handle(self.producer.tick(anyio.current_time()))
        elif count == 0:
            self.over = "end of file"
        else:
            self.handle(self.producer.received(count, anyio.current_time()))
        await anyio.lowlevel.checkpoint()

    def send(self) -> None:
        assert self.sock is not None
        while buffers := self.producer.pending():
            try:
                self.producer.sent(self.sock.send(b"".join(buffers)))
            except (BlockingIOError, ssl.SSLWantWriteError, ssl.SSLWantReadError):
                return

    def receive(self) -> int | None:
        assert self.sock is not None
        try:
            return self.sock.recv_into(self.producer.buffer())
        except (BlockingIOError, ssl.SSLWantReadError):
            return None

    def handle(self, events: Iterable[ProducerEvent]) -> None:
        for event in events:
            match event:
                case Acknowledged(pages):
                    self.acknowledged += pages
                case Granted():
                    self.granted.append(event)
                case Ended():
                    self.ended = True
                case Broken(reason) | Refused(reason):
                    self.over = reason
