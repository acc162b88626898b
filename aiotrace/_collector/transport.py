"""The bytes of a connection: a non-blocking socket, with or without TLS, on asyncio and trio.

wait_readable()      --> receive_now(buffer)    number of bytes; 0 at the end, None if nothing has arrived
send_now(buffers)    --> wait_writable()        number of bytes that the kernel accepted
"""

from __future__ import annotations

import select
import socket
import ssl
from collections.abc import Sequence
from typing import Final

import anyio

__all__ = ["TlsTransport", "Transport"]

Buffer = bytes | bytearray | memoryview
_OVER: Final = select.POLLRDHUP | select.POLLHUP | select.POLLERR
_USER_TIMEOUT_MS: Final = 30_000
"""Milliseconds that sent bytes may stay unacknowledged by the peer's kernel; heartbeats usually notice earlier."""


class Transport:
    """Raises OSError when the connection is lost; ssl.SSLError is one."""

    def __init__(self, sock: socket.socket) -> None:
        self.socket = sock
        sock.setblocking(False)
        self._poll = select.poll()  # select has no room for a descriptor over 1023
        self._poll.register(sock, select.POLLIN | select.POLLRDHUP)
        if sock.family != socket.AF_UNIX:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, _USER_TIMEOUT_MS)

    async def start(self) -> None:
        """Do the handshake, if there is one."""

    def receive_now(self, buffer: memoryview) -> int | None:
        """Receive into a buffer; None if nothing has arrived."""
        try:
            return self.socket.recv_into(buffer)
        except BlockingIOError:
            return None

    def send_now(self, buffers: Sequence[Buffer]) -> int:
        """How many bytes the kernel accepted; 0 if its buffer is full."""
        try:
            return self.socket.sendmsg(buffers)
        except BlockingIOError:
            return 0

    def has_bytes(self) -> bool:
        """Whether there is something to receive, or the end of the connection."""
        return bool(self._poll.poll(0))

    def is_over(self) -> bool:
        """Whether the peer has closed or reset the connection, though bytes of it may still be read."""
        return any(found & _OVER for _, found in self._poll.poll(0))

    async def wait_readable(self) -> None:
        await anyio.wait_readable(self.socket)

    async def wait_writable(self) -> None:
        await anyio.wait_writable(self.socket)

    def close(self) -> None:
        anyio.notify_closing(self.socket)
        self.socket.close()


class TlsTransport(Transport):
    """The server's side of TLS."""

    def __init__(self, sock: socket.socket, context: ssl.SSLContext) -> None:
        super().__init__(sock)
        self._tls = context.wrap_socket(sock, server_side=True, do_handshake_on_connect=False)
        self.socket = self._tls

    async def start(self) -> None:
        while True:
            try:
                self._tls.do_handshake()
            except ssl.SSLWantReadError:
                await self.wait_readable()
            except ssl.SSLWantWriteError:
                await self.wait_writable()
            else:
                return

    def receive_now(self, buffer: memoryview) -> int | None:
        try:
            return self._tls.recv_into(buffer)
        except (ssl.SSLWantReadError, ssl.SSLWantWriteError):
            return None

    def send_now(self, buffers: Sequence[Buffer]) -> int:
        # Later handshake messages are read by `receive_now`, so only buffer space has to be waited for here.
        try:
            return self._tls.send(b"".join(buffers))
        except (ssl.SSLWantWriteError, ssl.SSLWantReadError):
            return 0
