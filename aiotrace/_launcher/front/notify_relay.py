"""systemd's NOTIFY_SOCKET for a program that is not the service's main process: what it sends is sent on from here.

    program --NOTIFY_SOCKET=@aiotrace-...--> this process, which systemd knows --> the socket of systemd

Descriptors that come with a message go with it. Messages of other users' processes are dropped: anybody can write to an
abstract socket.
"""

from __future__ import annotations

import array
import fcntl
import os
import socket
import struct
from typing import Final

from ..._base.high_fds import out_of_the_way

VARIABLE: Final = "NOTIFY_SOCKET"
_CREDENTIALS: Final = struct.Struct("=iII")
_FDS_MAX: Final = 253
"""What the kernel lets one message carry: SCM_MAX_FD."""
_SIZE: Final = 65536


class NotifyRelay:
    """A socket for the program, whose messages go on to systemd's.

    Args:
        target: The value of NOTIFY_SOCKET here.

    Raises:
        OSError: The socket cannot be made.
    """

    def __init__(self, target: str) -> None:
        self._target = "\0" + target[1:] if target.startswith("@") else target
        made = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC)
        self._socket = socket.socket(fileno=out_of_the_way(made.detach()))
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
        self._socket.bind(f"\0aiotrace-notify-{os.getpid()}-{os.urandom(8).hex()}")
        self._socket.setblocking(False)
        self._users = {0, os.geteuid()}

        # SIGIO tells this process that a message has come.
        fd = self._socket.fileno()
        fcntl.fcntl(fd, fcntl.F_SETOWN, os.getpid())
        fcntl.fcntl(fd, fcntl.F_SETFL, fcntl.fcntl(fd, fcntl.F_GETFL) | os.O_ASYNC)

    @property
    def address(self) -> str:
        """NOTIFY_SOCKET for the program."""
        return f"@{self._socket.getsockname()[1:].decode()}"

    def fileno(self) -> int:
        return self._socket.fileno()

    def send_on(self, program: int) -> None:
        """Send on what has come."""
        while True:
            try:
                data, ancillary, _, _ = self._socket.recvmsg(
                    _SIZE, socket.CMSG_SPACE(_CREDENTIALS.size) + socket.CMSG_SPACE(4 * _FDS_MAX)
                )
            except OSError:
                return
            fds, user = _unpack(ancillary)
            try:
                if user in self._users or user == _user_of(program):
                    self._send(data, fds)
            finally:
                for fd in fds:
                    os.close(fd)

    def _send(self, data: bytes, fds: list[int]) -> None:
        rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))] if fds else []
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as out:
            try:
                out.sendmsg([data], rights, 0, self._target)
            except OSError:
                pass  # what notifies has to live with a service manager that is gone


def _unpack(ancillary: list[tuple[int, int, bytes]]) -> tuple[list[int], int]:
    """The descriptors, and the sender's user."""
    fds = array.array("i")
    user = -1
    for level, kind, data in ancillary:
        if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
            fds.frombytes(data[: len(data) - len(data) % fds.itemsize])
        elif level == socket.SOL_SOCKET and kind == socket.SCM_CREDENTIALS:
            user = _CREDENTIALS.unpack(data[: _CREDENTIALS.size])[1]
    return list(fds), user


def _user_of(pid: int) -> int:
    try:
        return os.stat(f"/proc/{pid}").st_uid
    except OSError:
        return -2
