"""Where a collector is, and a connection to it: a plain socket that never blocks, or TLS over one.

    unix:PATH    tcp://HOST:PORT    tls://HOST:PORT

    channel.send(buffers)     --> how many bytes went, 0 if it would block
    channel.receive(buffer)   --> how many bytes came, None if it would block
    channel.watching(...)     --> calls back when it would not

The socket is used here only, so one code serves asyncio, uvloop and trio, and pages go from where they are (`sendmsg`);
TLS has to copy them to encrypt them.

A connection that is given up is reset, not closed: what is still on its way is worth nothing, since it is sent again.
"""

from __future__ import annotations

import errno
import fcntl
import os
import socket
import struct
import termios
import weakref
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from ipaddress import ip_address
from typing import TYPE_CHECKING, Final, Literal, cast

import anyio

from aiotrace import ConfigurationError

from ._socket_watch import Watch, watching

if TYPE_CHECKING:
    import ssl

Buffer = bytes | bytearray | memoryview
Place = str | tuple[str, int] | tuple[str, int, int, int] | tuple[int, bytes]
Scheme = Literal["unix", "tcp", "tls"]

CONNECT_TIMEOUT: Final = 5.0
"""Seconds for a connection, and as many for TLS to agree."""
USER_TIMEOUT: Final = 10.0
"""Seconds after which a connection is dead whose peer's system confirms nothing of what was sent: without it the kernel
tries for a quarter of an hour. As long as two of the protocol's heartbeats."""
UNIX_PATH_MAX: Final = 107
"""Bytes: sun_path in unix(7), and its zero."""
UNIX_BUFFER: Final = 1 << 20
"""Bytes; the system takes net.core.wmem_max for more than that, 212,992 by default."""
TLS_CHUNK: Final = 1 << 16


@dataclass(frozen=True, slots=True)
class Address:
    """Where a collector listens."""

    scheme: Scheme
    host: str
    """The path of a Unix socket."""
    port: int = 0

    def __str__(self) -> str:
        if self.scheme == "unix":
            return f"unix:{self.host}"
        return f"{self.scheme}://{f'[{self.host}]' if ':' in self.host else self.host}:{self.port}"

    @property
    def is_local(self) -> bool:
        """Whether what is sent there stays in this machine's memory."""
        if self.scheme == "unix" or self.host == "localhost":
            return True
        try:
            return ip_address(self.host).is_loopback
        except ValueError:
            return False


def parse_address(text: str) -> Address:
    """
    Raises:
        ConfigurationError: Not an address; the message says what would be.
    """
    scheme, _, rest = text.partition(":")
    if scheme == "unix":
        if not rest or len(os.fsencode(rest)) > UNIX_PATH_MAX:
            raise ConfigurationError(f"{text!r}: a path of 1 to {UNIX_PATH_MAX} bytes was expected, as in unix:/run/x")
        return Address("unix", os.path.abspath(rest))
    if scheme not in ("tcp", "tls") or not rest.startswith("//"):
        raise ConfigurationError(f"{text!r} is no address: unix:PATH, tcp://HOST:PORT or tls://HOST:PORT")
    if "@" in rest:
        raise ConfigurationError(f"an address with a name or a token in it: {SAFER}")
    host, _, port = rest[2:].rpartition(":")
    if host.startswith("[") and host.endswith("]"):
        host = host[1:-1]
    if not host or "/" in host or not (port.isascii() and port.isdigit() and 0 < int(port) < 65536):
        raise ConfigurationError(
            f"{text!r}: a host and a port from 1 to 65535 were expected, as in {scheme}://host:7007"
        )
    return Address("tcp" if scheme == "tcp" else "tls", host, int(port))


SAFER: Final = "others can read it there (ps, logs); use token_file= or token_env="


class Channel:
    """A connection, or a socket that is about to be one. `send` and `receive` never block.

    In a forked child it is unusable: it sends and receives nothing, and the child's copy of the socket is closed.
    """

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self._is_foreign = False
        _channels.add(self)

    async def connect(self, place: Place) -> None:
        """
        Raises:
            OSError: It cannot be made.
        """
        failed = self._sock.connect_ex(place)
        if failed == errno.EINPROGRESS:
            await anyio.wait_writable(self._sock)
            failed = self._sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        if failed:
            raise OSError(failed, os.strerror(failed))

    async def agree(self) -> None:
        """After `connect`, what both sides do before anything is sent.

        Raises:
            OSError: They did not agree; `ssl.SSLError` is one.
        """

    def watching(
        self, on_readable: Callable[[], object], on_writable: Callable[[], object]
    ) -> AbstractAsyncContextManager[Watch]:
        """Call back when `receive` and `send` would not block, for the length of a block."""
        return watching(self._sock, on_readable, on_writable)

    @property
    def has_unread(self) -> bool:
        """Whether there is more to receive that the socket does not tell of."""
        return False

    @property
    def has_unsent(self) -> bool:
        """Whether bytes that `send` took have not left yet: send again, nothing if need be."""
        return False

    def send(self, buffers: Sequence[Buffer]) -> int:
        """
        Raises:
            OSError: The connection is gone.
        """
        if self._is_foreign:
            return 0
        try:
            # A program may have let SIGPIPE end it: that is meant for its own pipes.
            return self._sock.sendmsg(buffers, (), socket.MSG_NOSIGNAL)
        except BlockingIOError:
            return 0

    def receive(self, buffer: Buffer) -> int | None:
        """0: the peer has closed the connection.

        Raises:
            OSError: The connection is gone.
        """
        if self._is_foreign:
            return None
        try:
            return self._sock.recv_into(buffer)
        except BlockingIOError:
            return None

    async def wait_readable(self) -> None:
        """Until `receive` would not block.

        Raises:
            OSError: The connection is gone.
        """
        await self._wait(anyio.wait_readable)

    async def wait_writable(self) -> None:
        """Until `send` would not block.

        Raises:
            OSError: The connection is gone.
        """
        await self._wait(anyio.wait_writable)

    async def _wait(self, wait: Callable[[socket.socket], Awaitable[None]]) -> None:
        if self._sock.fileno() < 0:
            raise OSError(errno.EBADF, "the connection is closed here")
        await wait(self._sock)

    def count_unreceived(self) -> int:
        """Bytes that the peer's system has not said to have, of all that `send` took: SIOCOUTQ in tcp(7).

        Raises:
            OSError: The connection is gone.
        """
        if self._is_foreign:
            return 0
        count: int = struct.unpack("i", fcntl.ioctl(self._sock, termios.TIOCOUTQ, bytes(4)))[0]
        return count

    def end_sending(self) -> None:
        """What was sent arrives, and then the peer reads the end.

        Raises:
            OSError: The connection is gone.
        """
        self._sock.shutdown(socket.SHUT_WR)

    def reset(self) -> None:
        """Close it at once: nothing that is still on its way arrives, as far as that can be helped."""
        if self._sock.family != socket.AF_UNIX:
            try:
                self._sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            except OSError:
                pass  # it is gone already
        self.close()

    def close(self) -> None:
        """Close it: what was sent arrives."""
        self._sock.close()

    def abandon(self) -> None:
        """In a forked child. The descriptor is closed, so that the parent's connection ends with the parent."""
        self._is_foreign = True
        self.close()


class TlsChannel(Channel):
    """TLS between two pieces of memory, and a socket that never blocks."""

    def __init__(self, sock: socket.socket, context: ssl.SSLContext, host: str) -> None:
        import ssl

        super().__init__(sock)
        self._incoming = ssl.MemoryBIO()
        self._outgoing = ssl.MemoryBIO()
        self._tls = context.wrap_bio(self._incoming, self._outgoing, server_hostname=host)
        self._want_read = ssl.SSLWantReadError
        self._over: tuple[type[Exception], ...] = (ssl.SSLZeroReturnError, ssl.SSLEOFError)
        self._left = b""
        """Encrypted, and not taken by the socket."""

    async def agree(self) -> None:
        while True:
            try:
                self._tls.do_handshake()
            except self._want_read:
                await self._flush_all()
                await anyio.wait_readable(self._sock)
                if self._feed() == 0:
                    raise ConnectionResetError(errno.ECONNRESET, "closed while TLS was agreed on") from None
            else:
                await self._flush_all()
                return

    async def _flush_all(self) -> None:
        while not self._flush():
            await anyio.wait_writable(self._sock)

    def _flush(self) -> bool:
        """Whether nothing is left to send."""
        while self._left or self._outgoing.pending:
            self._left = self._left or self._outgoing.read(TLS_CHUNK)
            sent = super().send([self._left])
            self._left = self._left[sent:]
            if self._left:
                return False
        return True

    def _feed(self) -> int | None:
        if self._is_foreign:
            return None
        try:
            data = self._sock.recv(TLS_CHUNK)
        except BlockingIOError:
            return None
        self._incoming.write(data) if data else self._incoming.write_eof()
        return len(data)

    @property
    def has_unread(self) -> bool:
        return bool(self._incoming.pending or self._tls.pending())

    @property
    def has_unsent(self) -> bool:
        return bool(self._left or self._outgoing.pending)

    def send(self, buffers: Sequence[Buffer]) -> int:
        taken = 0
        for buffer in buffers:
            left = memoryview(buffer)
            while left:
                if not self._flush():
                    return taken
                count = self._tls.write(left[:TLS_CHUNK])
                left = left[count:]
                taken += count
        self._flush()
        return taken

    def receive(self, buffer: Buffer) -> int | None:
        while True:
            try:
                return cast(int, self._tls.read(len(buffer), cast(bytearray, buffer)))
            except self._want_read:
                self._flush()  # what TLS itself has to say
                if self._feed() is None:
                    return None
            except self._over:
                return 0


async def connect(address: Address, context: ssl.SSLContext | None) -> Channel:
    """
    Args:
        context: For an address that asks for TLS.

    Raises:
        OSError: There is no connection; the message says why.
    """
    try:
        with anyio.fail_after(CONNECT_TIMEOUT):
            channel = await _connect(address, context)
    except TimeoutError:
        raise TimeoutError(errno.ETIMEDOUT, f"no connection within {CONNECT_TIMEOUT:g} s") from None
    try:
        with anyio.fail_after(CONNECT_TIMEOUT):
            await channel.agree()
    except TimeoutError:
        channel.reset()
        raise TimeoutError(errno.ETIMEDOUT, f"no TLS within {CONNECT_TIMEOUT:g} s: is it a plain tcp port?") from None
    except BaseException:
        channel.reset()
        raise
    return channel


async def _connect(address: Address, context: ssl.SSLContext | None) -> Channel:
    error: OSError = OSError(errno.EADDRNOTAVAIL, f"{address.host!r} has no address")
    for family, place in await _look_up(address):
        sock = socket.socket(family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
        channel = Channel(sock) if context is None else TlsChannel(sock, context, address.host)
        try:
            _set_up(sock)
            await channel.connect(place)
        except OSError as failed:
            channel.close()
            error = failed
        except BaseException:
            channel.close()
            raise
        else:
            return channel
    raise error


async def _look_up(address: Address) -> list[tuple[int, Place]]:
    if address.scheme == "unix":
        return [(socket.AF_UNIX, address.host)]
    where = address.host, address.port
    try:
        found = socket.getaddrinfo(*where, type=socket.SOCK_STREAM, flags=socket.AI_NUMERICHOST)
        return [(each[0], each[4]) for each in found]
    except socket.gaierror:
        pass  # it is a name, and looking that up may take a while
    try:
        return [(each[0], each[4]) for each in await anyio.getaddrinfo(*where, type=socket.SOCK_STREAM)]
    except RuntimeError as error:  # the interpreter is going down: no thread can be started for it
        raise OSError(errno.EADDRNOTAVAIL, f"{address.host!r} cannot be looked up: {error}") from None


def _set_up(sock: socket.socket) -> None:
    """On TCP a peer that is gone is noticed, whether we send or wait. On a Unix socket there is room for as many pages
    as the system allows, so that a collector finds several each time."""
    if sock.family == socket.AF_UNIX:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, UNIX_BUFFER)
        return
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, int(USER_TIMEOUT * 1000))
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, int(USER_TIMEOUT / 2))
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, 1)


_channels: weakref.WeakSet[Channel] = weakref.WeakSet()


def _abandon_in_child() -> None:
    for channel in list(_channels):
        channel.abandon()
    _channels.clear()


os.register_at_fork(after_in_child=_abandon_in_child)
