"""The file of an arena, for the process that owns it: created, locked, filled, and removed at the end. Blocking.

    PATH, 0600, new --flock, allocate, map--> header | descriptors | definitions | pages  (docs/reference/arena.md)

The file is complete at any moment: pages are in it because they are in the arena, and a definition is written before
anything can use it. So `aiotrace restore PATH` recovers everything, whatever killed the program.

Invariants (held by tests/arena/test_file.py):

* No memory is touched that was not allocated: a full tmpfs refuses a page, instead of killing the program by SIGBUS.
* An existing file is never overwritten; the error says what to do.
* The header's magic is written last: until then the file is not an arena.
* A forked child has a private copy, and holds no lock.

`_arena/file_reader` reads what this module writes.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import mmap
import os
import struct
import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

from .._base.crc32 import crc32
from .._base.errors import TraceFormatError
from .._base.high_fds import out_of_the_way
from .._page import layout as L
from .._page.definitions import Definition
from .._ring.arena import Shape
from ..abc import StreamInfo
from .definitions_area import DefinitionsArea

DEFINITIONS_SIZE: Final = 16 << 20
"""Bytes for definitions. All tables of a process full, with names of ordinary length, take 12 MiB."""
_HEADER: Final = struct.Struct("<8sIIIIIIQQQQQ16sQQ40sII")
"""Magic, version, bytes of header, byte order, page size, pages, bytes of a descriptor, offsets of descriptors,
definitions (and their size) and pages, size of the file, stream id, anchor (monotonic, wall), boot id, pid, writers.
A crc32 of all this follows."""
_CRC: Final = struct.Struct("<I")
_BYTE_ORDER_MARK: Final = 0x01020304
HEADER_SIZE: Final = _HEADER.size + _CRC.size
_PAGES_MAX: Final = 1 << 20
_DEFINITIONS_MAX: Final = 1 << 28
"""A sparse file can claim any size, and reading it would take as long."""
_NEW: Final = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
_OLD: Final = os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC
READ: Final = os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK


# --- the header -----------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Header:
    """The header of an arena's file."""

    shape: Shape
    stream_id: bytes
    monotonic_ns: int
    realtime_ns: int
    boot_id: str
    pid: int
    writers: int


def pack_header(shape: Shape, info: StreamInfo) -> bytes:
    """The header, with its crc."""
    anchor = info.anchor
    head = _HEADER.pack(
        L.ARENA_MAGIC, L.ARENA_VERSION, L.ARENA_HEADER_SIZE, _order_mark(), shape.page_size, shape.pages,
        L.DESCRIPTOR_SIZE, shape.descriptors, shape.definitions, shape.definitions_size, shape.first_page, shape.size,
        info.stream_id, anchor.monotonic_ns, anchor.realtime_ns, anchor.boot_id.encode()[:40], info.pid, info.writers,
    )  # fmt: skip
    return head + _CRC.pack(crc32(head))


def unpack_header(data: bytes, file_size: int) -> Header:
    """
    Raises:
        TraceFormatError: Not an arena, of another version or byte order, damaged, or longer than the file.
    """
    if not data.startswith(L.ARENA_MAGIC) or len(data) < HEADER_SIZE:
        raise TraceFormatError("no arena begins here", offset=0)
    (
        _, version, header_size, order, page_size, pages, descriptor_size, descriptors, definitions, definitions_size,
        first_page, size, stream_id, monotonic, realtime, boot_id, pid, writers,
    ) = _HEADER.unpack_from(data)  # fmt: skip
    if version != L.ARENA_VERSION:
        raise TraceFormatError(f"an arena of version {version}; this aiotrace reads {L.ARENA_VERSION}", offset=8)
    if crc32(data[: _HEADER.size]) != _CRC.unpack_from(data, _HEADER.size)[0]:
        raise TraceFormatError("the crc32 of the arena's header is wrong", offset=0)
    if order != _order_mark():
        raise TraceFormatError("an arena of a machine of the other byte order", offset=16)
    is_power = page_size and not page_size & (page_size - 1)
    if not is_power or not L.PAGE_SIZE_MIN <= page_size <= L.PAGE_SIZE_MAX or not 0 < writers <= 1 << 16:
        raise TraceFormatError(f"an arena of pages of {page_size} bytes and {writers} writers cannot be", offset=20)
    if pages > _PAGES_MAX or definitions_size > _DEFINITIONS_MAX:
        raise TraceFormatError(f"an arena of {pages} pages and {definitions_size} bytes of definitions", offset=24)
    shape = Shape(page_size, pages, definitions_size)
    offsets = (header_size, descriptor_size, descriptors, definitions, first_page, size)
    theirs = (
        L.ARENA_HEADER_SIZE, L.DESCRIPTOR_SIZE, shape.descriptors, shape.definitions, shape.first_page, shape.size,
    )  # fmt: skip
    if offsets != theirs:
        raise TraceFormatError(f"the arena's parts should lie at {theirs}, its header says {offsets}", offset=28)
    if size > file_size:
        raise TraceFormatError(f"an arena of {size} bytes in a file of {file_size}: it was cut", offset=file_size)
    text = boot_id.rstrip(b"\0").decode("ascii", "replace")
    return Header(shape, stream_id, monotonic, realtime, text, pid, writers)


def _order_mark() -> int:
    """A number that shows the machine's byte order, which everything after the header has."""
    return int(struct.unpack("<I", struct.pack("=I", _BYTE_ORDER_MARK))[0])


def is_arena(path: str) -> bool:
    """Whether a file begins as arenas do."""
    try:
        fd = os.open(path, READ)
    except OSError:
        return False
    try:
        return os.pread(fd, len(L.ARENA_MAGIC), 0) == L.ARENA_MAGIC
    except OSError:  # a folder, a pipe
        return False
    finally:
        os.close(fd)


def is_owned(fd: int) -> bool:
    """Whether a living process records into this file."""
    try:
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    fcntl.flock(fd, fcntl.LOCK_UN)
    return False


def is_abandoned(path: str) -> bool:
    """Whether a file is the arena of a process that has ended."""
    if not is_arena(path):
        return False
    fd = os.open(path, READ)
    try:
        return not is_owned(fd)
    finally:
        os.close(fd)


# --- the file -------------------------------------------------------------------------------------


class ArenaFile:
    """The file, created and mapped, until its recording ends."""

    def __init__(self, path: str, shape: Shape, info: StreamInfo, definitions: Sequence[Definition]) -> None:
        """
        Args:
            definitions: The append-only table; `definitions.follow` writes new ones to the file.

        Raises:
            FileExistsError: Something has this name; the message says what would do.
            OSError: It cannot be created, or there is no room for its header and definitions.
        """
        self.path = os.path.abspath(path)
        self.shape = shape
        self._pid = os.getpid()
        self._map_fd = -1
        self._fd = _create(self.path)
        try:
            self._status = os.fstat(self._fd)
            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            os.ftruncate(self._fd, shape.size)
            _allocate(self._fd, 0, shape.definitions)

            # A second open file description: the map of a forked child must not keep the lock.
            self._map_fd = out_of_the_way(os.open(self.path, _OLD))
            self.memory = mmap.mmap(self._map_fd, shape.size, flags=mmap.MAP_SHARED)
            self.definitions = DefinitionsArea(self, info, definitions)
            self.definitions.follow()

            # The magic comes last: until then this is not an arena.
            header = pack_header(shape, info)
            magic = len(L.ARENA_MAGIC)
            self.memory[magic : len(header)] = header[magic:]
            self.memory[:magic] = header[:magic]
        except BaseException as error:
            self._close()
            os.unlink(self.path)
            if isinstance(error, OSError):
                text = f"{error.strerror}: an arena needs {shape.definitions >> 10} KiB at once, and a page at a time"
                raise OSError(error.errno, text, self.path) from None
            raise
        self._remap = _remapper(self.memory, shape.size)
        _files.add(self)

    def allocate(self, offset: int, size: int) -> bool:
        """Allocate disk space. Blocks for some microseconds, on a disk perhaps longer. False: no space."""
        try:
            _allocate(self._fd, offset, size)
        except OSError:
            return False
        return True

    def remove(self) -> None:
        """Close and delete the file: the recording has ended normally. Without effect in a forked child; a different
        file of this name is not deleted."""
        if self._fd < 0 or os.getpid() != self._pid:
            return
        _files.discard(self)
        try:
            if os.path.samestat(os.stat(self.path, follow_symlinks=False), self._status):
                os.unlink(self.path)
        except OSError:
            pass
        self._close()

    def leave(self) -> None:
        """Close the file, and leave its removal to the process that reads it."""
        _files.discard(self)
        self._close()

    def _detach_in_child(self) -> None:
        """Replace the shared map by a private copy. Only in a forked child."""
        self._remap(self._map_fd)
        self._close()

    def _close(self) -> None:
        for fd in (self._fd, self._map_fd):
            if fd >= 0:
                with contextlib.suppress(OSError):  # the program closed what it did not open
                    os.close(fd)
        self._fd = self._map_fd = -1


def _create(path: str) -> int:
    try:
        return out_of_the_way(os.open(path, _NEW, 0o600))
    except FileExistsError:
        refuse_existing(path)
        raise


def refuse_existing(path: str) -> None:
    """
    Raises:
        FileExistsError: The path exists; the message says what to do.
    """
    if os.path.lexists(path):
        raise FileExistsError(errno.EEXIST, _why_there(path), path) from None


def _why_there(path: str) -> str:
    if not is_arena(path):
        return "the file exists, and is no arena: choose another name for the arena, or remove it"
    fd = os.open(path, READ)
    try:
        if is_owned(fd):
            return "a running process has its arena there: choose another name"
    finally:
        os.close(fd)
    return (
        "the arena of a process that was killed is there: "
        f"`aiotrace restore {path} -o FILE` makes a trace of it and removes it"
    )


def _allocate(fd: int, offset: int, size: int) -> None:
    """
    Raises:
        OSError: No space.
    """
    os.posix_fallocate(fd, offset, size)


# --- fork -----------------------------------------------------------------------------------------

_files: weakref.WeakSet[ArenaFile] = weakref.WeakSet()


_MAP_FIXED: Final = 0x10  # Linux: asm-generic/mman-common.h; the module mmap does not have it


def _remapper(memory: mmap.mmap, size: int) -> Callable[[int], object]:
    """A function that gives a forked child a private copy of the map at the same address: MAP_PRIVATE over MAP_SHARED.
    It is prepared before the fork, so that the child has as little to do as possible."""
    import ctypes  # 5 ms, not needed for reading arenas

    remap = ctypes.CDLL(None).mmap
    remap.restype = ctypes.c_void_p
    remap.argtypes = ctypes.c_void_p, ctypes.c_size_t, *[ctypes.c_int] * 3, ctypes.c_ssize_t
    first = ctypes.c_char.from_buffer(memory)
    address = ctypes.addressof(first)
    del first  # or the map could not be closed
    protection, flags = mmap.PROT_READ | mmap.PROT_WRITE, mmap.MAP_PRIVATE | _MAP_FIXED
    return lambda fd: remap(address, size, protection, flags, fd, 0)


def _after_fork_in_child() -> None:
    for file in list(_files):
        file._detach_in_child()
    _files.clear()


os.register_at_fork(after_in_child=_after_fork_in_child)
