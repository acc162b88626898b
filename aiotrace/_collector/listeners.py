"""Where a collector listens, and which peers may connect. Non-blocking sockets, no event loop.

    unix:PATH          0600, and the peer runs as this user or root
    tcp://HOST:PORT    loopback only
    tls://HOST:PORT    loopback; or anywhere, with a token or client certificates

Invariant (held by tests/collector/test_access.py): no address that other machines can reach is opened without TLS and
authentication; the error says what is missing.
"""

from __future__ import annotations

import errno
import ipaddress
import os
import socket
import stat
import struct
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final
from urllib.parse import urlsplit

from .._base.errors import ConfigurationError
from .access import Access

__all__ = ["Listener", "listen", "peer_of"]

BACKLOG: Final = 256
_CREDENTIALS: Final = struct.Struct("3i")
_EXAMPLES: Final = "unix:PATH, tcp://127.0.0.1:PORT or tls://HOST:PORT"


@dataclass(frozen=True, slots=True)
class Listener:
    """A socket that clients connect to."""

    socket: socket.socket
    address: str
    """As clients write it, with the port that the system chose."""
    is_tls: bool = False
    is_local: bool = False
    """Clients are on this machine: what they send never leaves its memory."""
    path: str | None = None
    inode: tuple[int, int] | None = None
    """Device and inode of the Unix socket: its name may be another program's socket by now."""

    @property
    def needs_token(self) -> bool:
        """A Unix socket's peers are known by the kernel."""
        return self.path is None

    def close(self) -> None:
        self.socket.close()
        if self.path is not None:
            try:
                status = os.lstat(self.path)
                if (status.st_dev, status.st_ino) == self.inode:
                    os.unlink(self.path)
            except FileNotFoundError:
                pass


def listen(addresses: Sequence[str], access: Access) -> list[Listener]:
    """Open all of them, or none.

    Raises:
        ConfigurationError: An invalid or unsafe address; the message says what would work.
        OSError: An address cannot be bound.
    """
    if not addresses:
        raise ConfigurationError(f"no address to listen at: {_EXAMPLES}")
    opened: list[Listener] = []
    try:
        for address in addresses:
            opened += _listen_at(address, access)
    except BaseException:
        for listener in opened:
            listener.close()
        raise
    return opened


def _listen_at(address: str, access: Access) -> list[Listener]:
    if address.startswith("unix:"):
        return [_listen_unix(address.removeprefix("unix:").removeprefix("//"))]
    scheme, host, port = _split(address)
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    places = list(dict.fromkeys((family, place) for family, _, _, _, place in found))
    is_local = all(_is_loopback(str(place[0])) for _, place in places)
    if scheme == "tls" and access.tls is None:
        raise ConfigurationError(f"{address} needs a certificate and its key (--tls-cert, --tls-key)")
    if scheme == "tcp" and not is_local:
        raise ConfigurationError(
            f"{address} can be reached from elsewhere, and without TLS anybody on the way can read and change what "
            f"comes: use tls:// with --tls-cert and --tls-key, or listen at tcp://127.0.0.1:{port}"
        )
    if not is_local and access.token is None and not access.knows_clients:
        raise ConfigurationError(
            f"{address} can be reached from elsewhere, and anybody could send: ask for a token (--token-file or "
            "--token-env) or for certificates of clients (--tls-client-ca)"
        )
    return [_listen_tcp(scheme, family, place, is_local) for family, place in places]


def _split(address: str) -> tuple[str, str, int]:
    parts = urlsplit(address)
    try:
        port = parts.port
    except ValueError:
        port = None
    if parts.scheme not in ("tcp", "tls") or not parts.hostname or port is None:
        raise ConfigurationError(f"{address!r} is no address: {_EXAMPLES} was expected")
    if parts.username is not None or parts.password is not None or parts.query or parts.path not in ("", "/"):
        raise ConfigurationError(
            f"{parts.scheme}://{parts.hostname}:{port} takes nothing else: a token in a URL is seen by everybody"
        )
    return parts.scheme, parts.hostname, port


def _is_loopback(host: str) -> bool:
    return ipaddress.ip_address(host.partition("%")[0]).is_loopback


def _listen_tcp(scheme: str, family: int, place: tuple[str, ...] | tuple[object, ...], is_local: bool) -> Listener:
    sock = socket.socket(family, socket.SOCK_STREAM)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        sock.bind(place)
        sock.listen(BACKLOG)
        sock.setblocking(False)
    except BaseException:
        sock.close()
        raise
    host, port = sock.getsockname()[:2]
    address = f"{scheme}://[{host}]:{port}" if ":" in host else f"{scheme}://{host}:{port}"
    return Listener(sock, address, is_tls=scheme == "tls", is_local=is_local)


def _listen_unix(path: str) -> Listener:
    if not path or "\0" in path:
        raise ConfigurationError(f"{'unix:' + path!r} names no socket: unix:PATH was expected")
    path = os.path.abspath(path)
    _remove_dead(path)
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    before = os.umask(0o177)
    try:
        sock.bind(path)
    except BaseException as error:
        sock.close()
        if isinstance(error, OSError) and error.filename is None:
            raise OSError(error.errno, error.strerror, path) from None
        raise
    finally:
        os.umask(before)
    status = os.lstat(path)
    sock.listen(BACKLOG)
    sock.setblocking(False)
    return Listener(sock, f"unix:{path}", is_local=True, path=path, inode=(status.st_dev, status.st_ino))


def _remove_dead(path: str) -> None:
    """Remove the socket that a killed collector left; refuse if a program still listens at it."""
    try:
        if not stat.S_ISSOCK(os.lstat(path).st_mode):
            raise FileExistsError(errno.EEXIST, "what is there is no socket: choose another name", path)
    except FileNotFoundError:
        return
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.setblocking(False)
        try:
            probe.connect(path)
        except ConnectionRefusedError:
            os.unlink(path)
            return
        except BlockingIOError:
            pass
    raise FileExistsError(errno.EADDRINUSE, "a program listens at this socket: choose another name", path)


# --- peers --------------------------------------------------------------------------------------


def peer_of(sock: socket.socket, allowed: Iterable[int] | None = None) -> str:
    """The peer's identity: an IP address, or "uid N".

    Args:
        allowed: Users who may connect to a Unix socket; None: this process's user and root.

    Raises:
        PermissionError: The peer is another user.
        OSError: The peer has disconnected.
    """
    if sock.family != socket.AF_UNIX:
        return str(sock.getpeername()[0])
    _, uid, _ = _CREDENTIALS.unpack(sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size))
    users = (os.geteuid(), 0) if allowed is None else allowed
    if uid not in users:
        raise PermissionError(errno.EACCES, f"user {uid} may not send to a collector of user {os.geteuid()}")
    return f"uid {uid}"
