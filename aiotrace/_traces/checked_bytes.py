"""Checked reading of a trace file's bytes: by offset, in order, and decompressed.

    Source --offset, size--> bytes --decompressor, announced size--> bytes --ByteCursor--> u16, u32, string, ...

Invariant (tests/traces/test_tracedat_file.py): no length in the file is trusted. Each is compared with the bytes that
are there, or with a limit, before anything is read or allocated.
"""

from __future__ import annotations

import errno
import os
import stat
import struct
import sys
import zlib
from collections.abc import Callable
from typing import Final

from .._base.errors import ConfigurationError, TraceFormatError
from .._decode.event_format import text_of

__all__ = ["SECTION_MAX", "ByteCursor", "Expand", "FileByteCursor", "Source", "decompressor"]

SECTION_MAX: Final = 256 << 20
"""The largest section that is read, in bytes after decompression. The largest real one, kallsyms, is about 5 MiB on
Linux 6.18, more with many modules."""

ZSTD_WINDOW_LOG_MAX: Final = 27
"""The largest window of a zstd frame that is accepted, as a power of two: 128 MiB, what `zstd` itself accepts."""
ZSTD_HINT: Final = (
    "use a Python that was built with it" if sys.version_info >= (3, 14) else "pip install backports.zstd"
)

Expand = Callable[[bytes, int], bytes]
"""(compressed bytes, announced size) -> exactly that many bytes. Raises TraceFormatError otherwise."""


class Source:
    """The bytes of a file, read by offset.

    Not a memory map: a file that is truncated while it is read would kill the program (SIGBUS).
    """

    def __init__(self, path: str) -> None:
        self.path = path
        self._fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        status = os.fstat(self._fd)
        self.size = status.st_size
        if not stat.S_ISREG(status.st_mode):
            self.close()
            if stat.S_ISDIR(status.st_mode):
                raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), path)
            raise OSError(
                errno.ESPIPE,
                "not a regular file, and a trace is not read front to back: copy it into a file first",
                path,
            )

    def read(self, offset: int, size: int) -> bytes:
        """
        Raises:
            TraceFormatError: The file does not have these bytes.
        """
        if offset < 0 or size < 0 or offset + size > self.size:
            raise TraceFormatError(f"{size} bytes should be here, the file ends at {self.size}", offset=offset)
        data = self.read_some(offset, size)
        if len(data) < size:
            raise TraceFormatError(f"{size} bytes should be here, only {len(data)} are", offset=offset)
        return data

    def read_some(self, offset: int, size: int) -> bytes:
        """Up to `size` bytes: fewer at the end of the file."""
        parts = []
        while size > 0 and offset < 1 << 63:
            part = os.pread(self._fd, min(size, 1 << 26), offset)
            if not part:
                break
            parts.append(part)
            offset += len(part)
            size -= len(part)
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


class ByteCursor:
    """Reads numbers and strings from bytes in order. Each method raises TraceFormatError if they are not there."""

    def __init__(self, data: bytes, byte_order: str, offset: int = 0) -> None:
        self.data = data
        self.position = 0
        self._order = byte_order
        self._offset = offset

    def fail(self, message: str) -> TraceFormatError:
        return TraceFormatError(message, offset=self._offset + self.position)

    def take(self, size: int) -> bytes:
        if not 0 <= size <= len(self.data) - self.position:
            raise self.fail(f"{size} bytes should follow, {len(self.data) - self.position} do")
        self.position += size
        return self.data[self.position - size : self.position]

    def _number(self, code: str, size: int) -> int:
        return int(struct.unpack(self._order + code, self.take(size))[0])

    def u8(self) -> int:
        return self._number("B", 1)

    def u16(self) -> int:
        return self._number("H", 2)

    def u32(self) -> int:
        return self._number("I", 4)

    def u64(self) -> int:
        return self._number("Q", 8)

    def string(self) -> str:
        """The text up to a NUL, which is skipped."""
        end = self.data.find(b"\0", self.position)
        if end < 0:
            raise self.fail("a string should end with a NUL")
        return text_of(self.take(end + 1 - self.position)[:-1])

    def expect(self, what: bytes) -> None:
        found = self.data[self.position : self.position + len(what)]
        if found != what:
            raise self.fail(f"{what!r} should be here, found {found!r}")
        self.position += len(what)

    @property
    def left(self) -> int:
        return len(self.data) - self.position


class FileByteCursor(ByteCursor):
    """A `ByteCursor` over a file that is not read into memory."""

    def __init__(self, source: Source, position: int, byte_order: str) -> None:
        super().__init__(b"", byte_order)
        self._source = source
        self.position = position

    def take(self, size: int) -> bytes:
        if not 0 <= size <= min(SECTION_MAX, self._source.size - self.position):
            raise self.fail(f"{size} bytes should follow, {max(self._source.size - self.position, 0)} do")
        data = self._source.read(self.position, size)
        self.position += size
        return data

    def string(self) -> str:
        data = self._source.read_some(self.position, 4096)
        end = data.find(b"\0")
        if end < 0:
            raise self.fail("a string should end with a NUL")
        self.position += end + 1
        return text_of(data[:end])

    def expect(self, what: bytes) -> None:
        found = self.take(len(what))
        if found != what:
            self.position -= len(what)
            raise self.fail(f"{what!r} should be here, found {found!r}")


def decompressor(name: str) -> Expand:
    """A function that decompresses bytes to exactly the announced size.

    Raises:
        TraceFormatError: The compression is not one that can be read.
    """
    if name == "none":
        return _refuse
    if name == "zlib":
        return _expand_zlib
    if name == "zstd":
        return _expand_zstd
    raise TraceFormatError(f"compressed with {name!r}: zstd, zlib and none can be read")


def _refuse(data: bytes, size: int) -> bytes:
    raise TraceFormatError("a compressed part in a file that says it has none")


def _expand_zlib(data: bytes, size: int) -> bytes:
    try:
        return _of_size(zlib.decompressobj().decompress(data, size + 1), size)
    except zlib.error as error:
        raise TraceFormatError(f"zlib: {error}") from None


def _expand_zstd(data: bytes, size: int) -> bytes:
    # Imported here, so that only traces compressed with zstd pay for it.
    try:
        if sys.version_info >= (3, 14):
            from compression import zstd
        else:
            from backports import zstd
    except ImportError as error:
        # Not a TraceFormatError: that would be noted as damage of a file that is intact.
        raise ConfigurationError(f"a trace compressed with zstd needs {error.name or error}: {ZSTD_HINT}") from None

    # A frame may announce any size and any window: both are limited before anything is allocated.
    options: dict[int, int] = {zstd.DecompressionParameter.window_log_max: ZSTD_WINDOW_LOG_MAX}
    try:
        return _of_size(zstd.ZstdDecompressor(options=options).decompress(data, size + 1), size)
    except zstd.ZstdError as error:
        raise TraceFormatError(f"zstd: {error}") from None


def _of_size(expanded: bytes, size: int) -> bytes:
    if len(expanded) != size:
        found = "more" if len(expanded) > size else len(expanded)
        raise TraceFormatError(f"decompressed there should be {size} bytes, there are {found}")
    return expanded
