"""Who may send to a collector, and where it listens. No event loop; sockets that do not block.

    unix:PATH          0600, and the peer's user is ours, or root
    tcp://HOST:PORT    loopback alone
    tls://HOST:PORT    loopback; or anywhere, with a token or certificates of clients

The law: **what others can reach is not opened without TLS and a way to know who is there**; whoever asks for less is
told why not. A token is compared in constant time, and stands in a file or an environment variable: what is in a URL or
in an argument is seen by every user of the machine.

This module knows no page and no stream.
"""

from __future__ import annotations

import errno
import hmac
import ipaddress
import os
import socket
import ssl
import stat
import struct
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Final
from urllib.parse import urlsplit

from .._base.errors import ConfigurationError
from .._protocol.messages import TOKEN_MAX

__all__ = ["Access", "Listener", "listen", "make_access", "peer_of"]

BACKLOG: Final = 256
TOKEN_MIN: Final = 16
"""Characters: what is shorter can be guessed."""
_CREDENTIALS: Final = struct.Struct("3i")
_EXAMPLES: Final = "unix:PATH, tcp://127.0.0.1:PORT or tls://HOST:PORT"


@dataclass(frozen=True, slots=True)
class Access:
    """What a client must have."""

    token: str | None = field(default=None, repr=False)
    """None: it needs none."""
    tls: ssl.SSLContext | None = None
    knows_clients: bool = False
    """TLS asks clients for certificates."""

    def admits(self, token: str | None) -> bool:
        """Whether this is the token; takes as long for a wrong one as for a right one."""
        if self.token is None:
            return True
        return hmac.compare_digest((token or "").encode("utf-8", "replace"), self.token.encode("utf-8", "replace"))


@dataclass(frozen=True, slots=True)
class Listener:
    """A socket that clients connect to."""

    socket: socket.socket
    address: str
    """As a client writes it; with the port, where the system chose one."""
    is_tls: bool = False
    is_local: bool = False
    """Clients are on this machine, so that what they send goes through memory alone."""
    path: str | None = None
    inode: tuple[int, int] | None = None
    """Of the Unix socket's name: somebody else may have taken it since."""

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


def make_access(
    *,
    token_file: str | None = None,
    token_env: str | None = None,
    tls_cert: str | None = None,
    tls_key: str | None = None,
    tls_client_ca: str | None = None,
) -> Access:
    """
    Raises:
        ConfigurationError: They do not go together, or cannot be read; the message says what would do.
    """
    if token_file is not None and token_env is not None:
        raise ConfigurationError("token_file and token_env: one of them says where the token is")
    token = None
    if token_file is not None:
        token = read_token(token_file)
    elif token_env is not None and (token := os.environ.get(token_env)) is None:
        raise ConfigurationError(f"there is no token in the environment variable {token_env}")
    if token is not None and not TOKEN_MIN <= len(token) <= TOKEN_MAX:
        raise ConfigurationError(f"a token of {len(token)} characters: {TOKEN_MIN} to {TOKEN_MAX} are needed")
    if tls_key is not None and tls_cert is None:
        raise ConfigurationError("tls_key without tls_cert: a server needs its certificate too")
    if tls_client_ca is not None and tls_cert is None:
        raise ConfigurationError("tls_client_ca without tls_cert: clients are asked in TLS alone")
    if tls_cert is None:
        return Access(token)
    return Access(token, _make_context(tls_cert, tls_key, tls_client_ca), knows_clients=tls_client_ca is not None)


def read_token(path: str) -> str:
    """The first line of a file.

    Raises:
        ConfigurationError: It cannot be read, or others may read it too, or it is no text.
    """
    try:
        file = open(path, "rb")  # noqa: SIM115  # below
    except OSError as error:
        raise ConfigurationError(f"the token cannot be read: {error}") from None
    with file:
        status = os.fstat(file.fileno())
        if stat.S_ISREG(status.st_mode) and status.st_mode & 0o077:
            raise ConfigurationError(f"{path}: others may read the token: chmod 600 {path}")
        data = file.readline(8 * TOKEN_MAX)
    try:
        return data.decode("utf-8").strip()
    except UnicodeDecodeError:
        raise ConfigurationError(f"{path}: a token is a line of text") from None


def _make_context(certificate: str, key: str | None, client_ca: str | None) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    try:
        context.load_cert_chain(certificate, key)
    except (OSError, ssl.SSLError) as error:
        raise ConfigurationError(f"{certificate}{f', {key}' if key else ''}: no certificate and key: {error}") from None
    if client_ca is not None:
        try:
            context.load_verify_locations(client_ca)
        except (OSError, ssl.SSLError) as error:
            raise ConfigurationError(f"{client_ca}: no certificate authority: {error}") from None
        context.verify_mode = ssl.CERT_REQUIRED
    return context


# --- addresses ----------------------------------------------------------------------------------


def listen(addresses: Sequence[str], access: Access) -> list[Listener]:
    """Open all of them, or none.

    Raises:
        ConfigurationError: One is none, or is not safe; the message says why and what would do.
        OSError: One cannot be had.
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
    """A collector that was killed leaves its socket; one that lives has it."""
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
    """Who it is: an IP address, or "uid N".

    Args:
        allowed: Users whose programs may connect to a Unix socket; None: ours and root.

    Raises:
        PermissionError: It is another user's.
        OSError: It is gone.
    """
    if sock.family != socket.AF_UNIX:
        return str(sock.getpeername()[0])
    _, uid, _ = _CREDENTIALS.unpack(sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size))
    users = (os.geteuid(), 0) if allowed is None else allowed
    if uid not in users:
        raise PermissionError(errno.EACCES, f"user {uid} may not send to a collector of user {os.geteuid()}")
    return f"uid {uid}"
