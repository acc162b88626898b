"""The folder of a collector: the files of each stream, the disk budget, and the lock. Blocking.

    DIR/.aiotrace-listen                          locked by the collector that writes here
    DIR/web1-4615-STREAMID.dat                    the first trace of a stream: host, pid, and its id in hex
    DIR/web1-4615-STREAMID.2.dat                  where it continues: after a rotation, or a failed fsync

Invariants (held by tests/collector/test_folder.py):

* Of what comes over the wire, only allow-listed characters go into a name, others become "_": nothing is written
  outside of the folder.
* A stream's files are found by its unique id in their names: there is no index that could be lost or wrong.
* Disk usage is counted in blocks, as the file system reports it.
"""

from __future__ import annotations

import errno
import fcntl
import os
import re
import stat
import time
from typing import Final, NamedTuple

from .._base.clock import boot_id
from .._base.errors import ConfigurationError
from .._store.trace_files import remove
from .._store.unfinished import is_unfinished
from ..abc import StreamInfo

__all__ = ["BudgetError", "Folder", "TraceName"]

LOCK: Final = ".aiotrace-listen"
HOST_MAX: Final = 48
"""Maximum characters of a host's name in a file name."""
SCAN_INTERVAL: Final = 1.0
"""Seconds for which a count of the disk's blocks is used; what was written since is added."""
_NOT_ALLOWED: Final = re.compile(r"[^A-Za-z0-9_.-]")
_NAME: Final = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*-\d+-(?P<id>[0-9a-f]{32})(?:\.(?P<number>[1-9]\d{0,8}))?\.dat")


class BudgetError(OSError):
    """The disk budget of the traces is used up."""


class TraceName(NamedTuple):
    """One of a stream's files."""

    number: int
    """1 for the first."""
    path: str


class Folder:
    """A collector's folder, locked. `scan` and `make_room` may run in any thread."""

    def __init__(self, path: str, *, budget: int | None = None, delete_oldest: bool = False) -> None:
        """
        Args:
            path: Created with mode 0700 if missing.
            budget: Bytes of disk that the traces in it may take; None: no limit.
            delete_oldest: Delete the oldest finished traces when there is no room, instead of refusing.

        Raises:
            ConfigurationError: An invalid budget, or another collector uses the folder.
            OSError: The folder cannot be created or written.
        """
        if budget is not None and budget <= 0:
            raise ConfigurationError(f"budget={budget}: bytes, more than 0, or None for no limit")
        if delete_oldest and budget is None:
            raise ConfigurationError("delete_oldest needs a budget: without one nothing is deleted")
        self.path = os.path.abspath(path)
        self.budget = budget
        self._delete_oldest = delete_oldest
        self.deleted = 0
        """Traces that were deleted to make room."""
        self.deleted_bytes = 0
        """Bytes of disk that they took."""
        self._used = 0
        self._scanned = -SCAN_INTERVAL
        os.makedirs(self.path, mode=0o700, exist_ok=True)
        self._lock = self._take_lock()
        self.was_rebooted = self._note_boot()
        """The machine was rebooted since a collector wrote here, so unsynced data may be missing."""

    def _take_lock(self) -> int:
        flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
        fd = os.open(os.path.join(self.path, LOCK), flags, 0o600)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(fd)
            raise ConfigurationError(
                f"{self.path}: another collector writes there: end it first, or choose another folder"
            ) from None
        return fd

    def _note_boot(self) -> bool:
        before = os.pread(self._lock, 100, 0).decode("ascii", "replace").strip()
        return before != boot_id()

    def trust_boot(self) -> None:
        """Record this boot, after the files of earlier ones were checked."""
        os.ftruncate(self._lock, 0)
        os.pwrite(self._lock, boot_id().encode("ascii"), 0)
        os.fsync(self._lock)

    def close(self) -> None:
        """Release the lock."""
        if self._lock >= 0:
            os.close(self._lock)
            self._lock = -1

    # --- names ----------------------------------------------------------------------------------

    def first_path(self, info: StreamInfo) -> str:
        """Where a stream's first trace goes."""
        host = _NOT_ALLOWED.sub("_", info.host[:HOST_MAX]).lstrip(".-") or "host"
        return os.path.join(self.path, f"{host}-{info.pid}-{info.stream_id.hex()}.dat")

    def next_path(self, info: StreamInfo, names: list[TraceName]) -> TraceName:
        """Where the stream continues."""
        if not names:
            return TraceName(1, self.first_path(info))
        number = names[-1].number + 1
        return TraceName(number, self.first_path(info).removesuffix(".dat") + f".{number}.dat")

    def traces_of(self, stream_id: bytes) -> list[TraceName]:
        """A stream's files, finished or not, the first one first."""
        wanted = stream_id.hex()
        return [name for each, name in self._traces() if each == wanted]

    def unfinished(self) -> dict[bytes, list[TraceName]]:
        """By stream, the files that are not finished, the first one first."""
        found: dict[bytes, list[TraceName]] = {}
        for stream, name in self._traces():
            if is_unfinished(name.path):
                found.setdefault(bytes.fromhex(stream), []).append(name)
        return found

    def _traces(self) -> list[tuple[str, TraceName]]:
        found = set()
        for entry in os.listdir(self.path):
            # A writer that was killed at its very beginning may leave only the journal.
            match = _NAME.fullmatch(entry.removesuffix(".journal"))
            if match is not None:
                name = TraceName(int(match["number"] or 1), os.path.join(self.path, match[0]))
                found.add((match["id"], name))
        return sorted(found)

    # --- the disk -------------------------------------------------------------------------------

    @property
    def used(self) -> int:
        """Bytes of disk: the last count, and what was written since."""
        return self._used

    def scan(self) -> int:
        """Count the blocks again; returns `used`."""
        used = 0
        with os.scandir(self.path) as entries:
            for entry in entries:
                try:
                    status = entry.stat(follow_symlinks=False)
                except FileNotFoundError:
                    continue
                if stat.S_ISREG(status.st_mode):
                    used += status.st_blocks * 512
        self._used = used
        self._scanned = time.monotonic()
        return used

    def wrote(self, size: int) -> None:
        """Add `size` bytes to the count."""
        self._used += size

    def make_room(self, size: int) -> None:
        """Make sure that `size` more bytes fit the budget, deleting traces if that is allowed.

        Raises:
            BudgetError: They do not fit, and nothing can be deleted.
        """
        if self.budget is None or (self._used + size <= self.budget and self._is_fresh()):
            return
        if self.scan() + size <= self.budget:
            return
        if self._delete_oldest:
            for path in self._oldest():
                self._delete(path)
                if self._used + size <= self.budget:
                    return
        text = f"the traces take {self._used} bytes of a budget of {self.budget}: make room, or allow more"
        raise BudgetError(errno.EDQUOT, text, self.path)

    def _is_fresh(self) -> bool:
        return time.monotonic() < self._scanned + SCAN_INTERVAL

    def _oldest(self) -> list[str]:
        """The finished traces, in the order in which they were finished."""
        finished = []
        for _, name in self._traces():
            if not os.path.lexists(name.path + ".journal"):
                finished.append((os.stat(name.path, follow_symlinks=False).st_mtime_ns, name.path))
        return [path for _, path in sorted(finished)]

    def _delete(self, path: str) -> None:
        size = os.stat(path, follow_symlinks=False).st_blocks * 512
        remove(path)
        self._used -= size
        self.deleted += 1
        self.deleted_bytes += size
