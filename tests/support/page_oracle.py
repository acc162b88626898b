"""Pages as tests read them: a second implementation of the record format, written apart from the one under test.

`walk` and `unpack_header` say what is on a page; `encode_padding` and `encode_absolute_timestamp` make the records that
aiotrace reads and never writes.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import NamedTuple

from aiotrace._base.errors import TraceFormatError
from aiotrace._page import layout as L

_HEADER = struct.Struct(L.BYTE_ORDER + "QQ")
_U32 = struct.Struct(L.BYTE_ORDER + "I")
_U32_PAIR = struct.Struct(L.BYTE_ORDER + "II")
_U64 = struct.Struct(L.BYTE_ORDER + "Q")


class PageHeader(NamedTuple):
    """The first 16 bytes of a page, and the count that may follow its records."""

    timestamp: int
    """Nanoseconds: the time from which the first record's delta counts."""
    committed: int
    """Bytes of records."""
    lost: int
    """Events missing before this page: 0 none, -1 some, not said how many."""


class Record(NamedTuple):
    """One event's place on a page."""

    timestamp: int
    """Nanoseconds, absolute."""
    start: int
    """Offset of its payload in the buffer that was walked."""
    length: int
    """Bytes of payload, padding included (always a multiple of 4)."""


def unpack_header(page: bytes | bytearray | memoryview) -> PageHeader:
    """Read the header of a whole page.

    Raises:
        TraceFormatError: The page is shorter than its header, or than `commit` says.
    """
    if len(page) < L.PAGE_HEADER_SIZE:
        raise TraceFormatError(f"a page of {len(page)} bytes has no room for its 16 byte header", offset=0)
    timestamp, commit = _HEADER.unpack_from(page)
    committed = commit & L.COMMIT_MASK
    end = L.PAGE_HEADER_SIZE + committed
    if end > len(page):
        raise TraceFormatError(f"commit is {committed}, but the page has {len(page) - 16} bytes after it", offset=8)
    lost = 0
    if commit & L.COMMIT_MISSED_EVENTS:
        stored = commit & L.COMMIT_MISSED_STORED and end + L.LOST_COUNT_SIZE <= len(page)
        lost = _U64.unpack_from(page, end)[0] if stored else -1
    return PageHeader(timestamp, committed, lost)


def encode_absolute_timestamp(timestamp: int) -> bytes:
    """Eight bytes that set the low 59 bits of the time of what follows."""
    low = timestamp & ((1 << L.TIME_STAMP_BITS) - 1)
    return _U32_PAIR.pack(L.TYPE_TIME_STAMP | (low & L.TIME_DELTA_MAX) << L.TYPE_LEN_BITS, low >> L.TIME_DELTA_BITS)


def encode_padding(size: int) -> bytes:
    """A record of `size` bytes (at least 8, a multiple of 4) that a reader passes over (a discarded event)."""
    assert size >= 8 and size % 4 == 0, size
    return _U32_PAIR.pack(L.TYPE_PADDING | 1 << L.TYPE_LEN_BITS, size - 4) + bytes(size - 8)


def walk(
    data: bytes | bytearray | memoryview, timestamp: int, start: int = 0, end: int | None = None
) -> Iterator[Record]:
    """The events among the records in `data[start:end]`.

    Args:
        data: Any buffer that holds the records.
        timestamp: Nanoseconds: the page's own timestamp, the base of the first delta.

    Raises:
        TraceFormatError: A record reaches over the end, or says an impossible length. What was yielded
            before is intact as far as structure can tell; nothing after it can be trusted.
    """
    position = start
    if end is None:
        end = len(data)
    time = timestamp
    while position < end:
        if position + 4 > end:
            raise TraceFormatError(f"{end - position} bytes where a record needs 4", offset=position)
        word = _U32.unpack_from(data, position)[0]
        kind = word & L.TYPE_LEN_MASK
        delta = word >> L.TYPE_LEN_BITS
        if kind <= L.TYPE_DATA_MAX and kind:
            size, body = kind * 4, position + 4
        elif position + 8 > end:
            if kind == L.TYPE_PADDING and not delta:
                return
            raise TraceFormatError(f"{end - position} bytes where a record of kind {kind} needs 8", offset=position)
        else:
            second = _U32.unpack_from(data, position + 4)[0]
            if kind == L.TYPE_TIME_EXTEND:
                time += delta + (second << L.TIME_DELTA_BITS)
                position += 8
                continue
            if kind == L.TYPE_TIME_STAMP:
                # The kernel stores 59 bits; the page's own timestamp gives the ones above.
                time = (delta + (second << L.TIME_DELTA_BITS)) | timestamp >> L.TIME_STAMP_BITS << L.TIME_STAMP_BITS
                position += 8
                continue
            if kind == L.TYPE_PADDING:
                if not delta:
                    return
                if second < 4 or second & 3 or position + 4 + second > end:
                    raise TraceFormatError(f"padding of {second} bytes", offset=position)
                time += delta
                position += 4 + second
                continue
            size, body = (second - 4 + 3) & ~3, position + 8
            if second <= 4:
                raise TraceFormatError(f"a record of length {second}", offset=position)
        if body + size > end:
            raise TraceFormatError(f"a record of {size} bytes where {end - body} are left", offset=position)
        time += delta
        yield Record(time, body, size)
        position = body + size
