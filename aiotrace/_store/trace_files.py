"""The files of a trace in the making: their names, their creation, their lock, and writes that are whole. Blocking.

    NAME            initial header (options offset 0) | pages of the first writer, at their final place
    NAME.cpu7       pages of writer 7: a spool for each writer but the first
    NAME.journal    hello, definitions, and for each page where it is and its crc32 (`_formats/journal`)

The laws. **Files are created 0600, new, and never through a link**; what is there already is left alone, with an error
that says what would do. **The journal is made first and removed last**: whoever finds NAME without one may take it for
finished. **It is locked while a writer lives**, so that nobody restores or deletes a trace that still grows.

This module knows no page and no event.
"""

from __future__ import annotations

import errno
import fcntl
import os
from collections.abc import Callable, Iterator, Sequence
from typing import Final, cast

from .._base.backend import c_module
from .._base.high_fds import out_of_the_way
from .._formats.journal import JournalReader

Buffer = bytes | memoryview

_NEW: Final = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
_OLD: Final = os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC
READ: Final = os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC
_MODE: Final = 0o600
_BUFFERS_MAX: Final = os.sysconf("SC_IOV_MAX")
"""More of them in one pwritev are an error."""
RESERVED: Final = 4 << 20
RESERVE_FROM: Final = 1 << 18
"""Bytes of a file that are reserved at once, by whoever writes so many at once: a quiet program takes no more than it
writes, and a kill leaves little behind that nobody uses."""
JOURNAL_CHUNK: Final = 1 << 20
"""Bytes of a journal that are read at once."""
_NO_COPY: Final = frozenset({errno.EXDEV, errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP, errno.EPERM})


def journal_path(path: str) -> str:
    return path + ".journal"


def journal_chunks(fd: int, journal: JournalReader) -> Iterator[bytes]:
    """The bytes of a journal file that `journal` was not fed yet, 1 MiB at a time. The caller feeds each."""
    while chunk := os.pread(fd, JOURNAL_CHUNK, journal.fed):
        yield chunk


def spool_path(path: str, writer: int) -> str:
    return f"{path}.cpu{writer}"


def spool_paths(path: str) -> list[str]:
    """Those that exist."""
    folder, name = os.path.split(path)
    prefix = name + ".cpu"
    entries = [entry for entry in os.listdir(folder or ".") if entry.startswith(prefix)]
    return sorted(os.path.join(folder, entry) for entry in entries if entry[len(prefix) :].isdecimal())


class TraceFiles:
    """The open files of one trace."""

    def __init__(self, path: str) -> None:
        self.path = path
        self.data = -1
        self.journal = -1
        self._spools: dict[int, int] = {}

    @classmethod
    def create(cls, path: str) -> TraceFiles:
        files = cls(path)
        refuse_existing(path)
        try:
            # The journal first: whoever finds NAME without one may take it for finished.
            files.journal = out_of_the_way(os.open(journal_path(path), _NEW, _MODE))
            fcntl.flock(files.journal, fcntl.LOCK_EX | fcntl.LOCK_NB)
            files.data = out_of_the_way(os.open(path, _NEW, _MODE))
        except BaseException:
            if files.journal >= 0:
                os.unlink(journal_path(path))
            files.close()
            raise
        return files

    def open_existing(self) -> None:
        """
        Raises:
            FileNotFoundError: There is no journal.
            BlockingIOError: A writer lives.
        """
        try:
            self._open()
        except BaseException:
            self.close()
            raise

    def _open(self) -> None:
        self.journal = out_of_the_way(os.open(journal_path(self.path), _OLD))
        try:
            fcntl.flock(self.journal, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            text = "a running program is still writing this trace: end it first, or read the trace as it is"
            raise BlockingIOError(errno.EWOULDBLOCK, text, self.path) from None
        self.data = out_of_the_way(os.open(self.path, _OLD))

    @property
    def closed(self) -> bool:
        return self.journal < 0

    def spool(self, writer: int) -> int:
        """The spool of a writer, created when it is first asked for."""
        if writer not in self._spools:
            path = spool_path(self.path, writer)
            # After a failed batch, or in a later process, it may be there without a page that counts.
            self._spools[writer] = out_of_the_way(os.open(path, _OLD | os.O_CREAT, _MODE))
        return self._spools[writer]

    def close(self) -> None:
        for fd in (self.data, self.journal, *self._spools.values()):
            if fd >= 0:
                os.close(fd)
        self.data = self.journal = -1
        self._spools.clear()

    def unlink_litter(self) -> None:
        """What NAME does not need any more; the journal last, because it is what says that there is litter."""
        for path in (*spool_paths(self.path), journal_path(self.path)):
            try:
                os.unlink(path)
            except FileNotFoundError:
                pass
        self.close()

    def move(self, path: str) -> None:
        """Give all files another name. At any moment they are complete under one of the two.

        Raises:
            OSError: They are still complete under the old name.
        """
        names = (self.path, *spool_paths(self.path), journal_path(self.path))
        ends = [name[len(self.path) :] for name in names if os.path.lexists(name)]
        linked: list[str] = []
        try:
            for end in ends:
                os.link(self.path + end, path + end, follow_symlinks=False)
                linked.append(end)
        except OSError:
            for end in reversed(linked):
                os.unlink(path + end)
            raise
        for end in reversed(ends):
            os.unlink(self.path + end)
        self.path = path

    def unlink(self) -> None:
        os.unlink(self.path)
        self.unlink_litter()


def refuse_existing(path: str) -> None:
    if os.path.lexists(journal_path(path)):
        text = f"an unfinished trace is there: complete it with `aiotrace restore {path}`, or choose another name"
        raise FileExistsError(errno.EEXIST, text, path)
    if os.path.lexists(path):
        text = "the file exists: choose another name, remove it, or say overwrite=True"
        raise FileExistsError(errno.EEXIST, text, path)
    if spools := spool_paths(path):
        text = f"a trace that has this name in use left {spools[0]}: remove it, or choose another name"
        raise FileExistsError(errno.EEXIST, text, path)


def remove(path: str) -> None:
    """Delete a trace, finished or not, and whatever belongs to it. Without effect if there is none.

    Raises:
        BlockingIOError: A running program is writing it.
        FileExistsError: What has this name is no file: a folder, a device, a pipe.
        OSError: It cannot be deleted.
    """
    if os.path.exists(path) and not os.path.isfile(path):  # root could delete /dev/null
        raise FileExistsError(errno.EEXIST, "what is there is no file: choose another name", path)
    try:
        journal = os.open(journal_path(path), READ)
    except FileNotFoundError:
        journal = -1
    try:
        if journal >= 0:
            try:
                fcntl.flock(journal, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                text = "a running program is writing this trace: choose another name"
                raise BlockingIOError(errno.EWOULDBLOCK, text, path) from None
        for each in (path, *spool_paths(path), journal_path(path)):
            try:
                os.unlink(each)
            except FileNotFoundError:
                pass
    finally:
        if journal >= 0:
            os.close(journal)


# --- system calls -------------------------------------------------------------------------------


def write_all(fd: int, buffers: Sequence[Buffer], offset: int) -> None:
    """Write everything.

    Raises:
        OSError: It could not be written; its beginning may be there.
    """
    _, error = write_most(fd, buffers, offset)
    if error is not None:
        raise error


def write_most(fd: int, buffers: Sequence[Buffer], offset: int) -> tuple[int, OSError | None]:
    """pwritev until everything is written: a short write is no error to the kernel.

    Returns:
        Bytes written, and what kept it from writing the others.
    """
    left = [buffer for buffer in buffers if buffer]
    end = offset
    goal = offset + sum(map(len, left))
    rest: memoryview | None = None
    try:
        while left:
            count = os.pwritev(fd, left[:_BUFFERS_MAX], end)
            if count == 0:
                raise OSError(errno.EIO, "a write wrote nothing")
            end += count
            if end == goal:
                break
            whole = 0
            while whole < len(left) and count >= len(left[whole]):
                count -= len(left[whole])
                whole += 1
            del left[:whole]
            if count:
                rest = left[0] = memoryview(left[0])[count:]
    except OSError as error:
        return end - offset, error
    finally:
        if rest is not None:  # an exception's traceback must not keep a page's memory
            rest.release()
    return end - offset, None


def _reserve_nothing(fd: int, offset: int, size: int) -> bool:
    return False


reserve: Final = cast("Callable[[int, int, int], bool]", getattr(c_module, "reserve", _reserve_nothing))
"""Have the file system get blocks ready, (fd, offset, bytes), without a longer file; false, without effect, if it
cannot. It is for speed alone: an ext4 writes in three quarters of the time then. Only in C: what Python has for it
writes into every block where the file system cannot."""


def reserve_for(fd: int, place: int, end: int, reserved: int) -> int:
    """While much is written, blocks are ready before they are needed; closing gives back what is too many.

    Returns:
        Up to where they are now.
    """
    if end - place < RESERVE_FROM or end <= reserved:
        return reserved
    reserve(fd, place, RESERVED)
    return place + RESERVED


def copy_range(source: int, place: int, target: int, offset: int, size: int) -> None:
    end = place + size
    if size >= RESERVE_FROM:
        reserve(target, offset, size)
    while place < end:
        try:
            count = os.copy_file_range(source, target, end - place, place, offset)
        except OSError as error:
            if error.errno not in _NO_COPY:
                raise
            data = os.pread(source, min(end - place, 1 << 20), place)
            write_all(target, [data], offset)
            count = len(data)
        if count == 0:
            raise OSError(errno.EIO, f"a spool ends at {place}, {end - place} bytes before its last page does")
        place += count
        offset += count


def sync_folder(path: str) -> None:
    """New names are on the disk when their folder is."""
    fd = os.open(os.path.dirname(path) or ".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
