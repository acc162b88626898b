"""Pages and records in the Linux ring buffer's format: encode, decode, and the state word. Sans-IO.

    offset 0   u64 timestamp   ns, the base that the first record's delta counts from
    offset 8   u64 commit      bits 0-19: bytes of records; bit 31: events are missing before this page;
                               bit 30: how many, as a u64 after the records
    offset 16  records         u32 (type_len: 5 low bits, time_delta: 27 bits), then by type_len:
                               1..28  a payload of type_len * 4 bytes
                               0      u32 length (payload + 4), then the payload
                               29     padding: u32 length (of what follows the header, itself included);
                                      with time_delta 0 the rest of the page is empty
                               30     time extend: u32 with the bits 27 and up of a delta
                               31     absolute timestamp: the same, 59 bits

The law: **a record is visible when `commit` covers it**, and `commit` is advanced last. So a committed prefix
of a page can be copied at any moment, by anyone, and never holds a torn record.

`transition` is the only thing that changes a page's state word; `_csrc/ring/delivery.c` calls what it calls. This
module knows no event, no pool, no clock.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import NamedTuple

from .._base.backend import c_module
from .._base.errors import TraceFormatError
from . import layout as L

__all__ = [
    "PageHeader",
    "Record",
    "encode_absolute_timestamp",
    "encode_padding",
    "encode_record",
    "encode_time_extend",
    "pack_header",
    "pack_lost_count",
    "transition",
    "unpack_header",
    "walk",
]

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


def transition(descriptors: memoryview, page: int, old: int, new: int) -> bool:
    """Change the state of a page from `old` to `new`; the one place where a page's owner changes.

    With the C module it is one atomic step, for another process that has the arena mapped too (`_handover`).

    Args:
        descriptors: The arena's descriptors as u64 words (`memoryview.cast("Q")`).
        page: Index of the page.

    Returns:
        False, without effect, if the page is not in state `old`.
    """
    if c_module is not None:
        return c_module.page_transition(descriptors, page, old, new)  # type: ignore[no-any-return]  # C has no types
    assert (old, new) in L.TRANSITIONS, f"{L.STATE_NAMES[old]} -> {L.STATE_NAMES[new]}"
    word = page * L.DESCRIPTOR_WORDS + L.STATE
    if descriptors[word] != old:
        return False
    descriptors[word] = new
    return True


def pack_header(timestamp: int, committed: int, lost: int = 0) -> bytes:
    """The 16 bytes before the records; `lost` as in `PageHeader`."""
    flags = 0 if not lost else L.COMMIT_MISSED_EVENTS | (L.COMMIT_MISSED_STORED if lost > 0 else 0)
    return _HEADER.pack(timestamp, committed | flags)


def pack_lost_count(lost: int) -> bytes:
    """The u64 after the records: empty if there is nothing to count."""
    return _U64.pack(lost) if lost > 0 else b""


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


def encode_record(delta: int, payload: bytes) -> bytes:
    """A data record: `delta` ns after the one before, with a time extend in front where it needs one.

    Args:
        delta: Nanoseconds, 0 to 2**59 - 1.
        payload: At least one byte; padded here to a multiple of 4.
    """
    size = len(payload)
    if size & 3:
        payload += bytes(-size & 3)
        size = len(payload)
    prefix = b""
    if delta > L.TIME_DELTA_MAX:
        prefix, delta = encode_time_extend(delta), 0
    if size <= L.SHORT_PAYLOAD_MAX:
        return prefix + _U32.pack(size >> 2 | delta << L.TYPE_LEN_BITS) + payload
    return prefix + _U32_PAIR.pack(delta << L.TYPE_LEN_BITS, size + 4) + payload


def encode_time_extend(delta: int) -> bytes:
    """Eight bytes that add `delta` ns (up to 59 bits) to the time of what follows."""
    return _time_record(L.TYPE_TIME_EXTEND, delta)


def encode_absolute_timestamp(timestamp: int) -> bytes:
    """Eight bytes that set the low 59 bits of the time of what follows."""
    return _time_record(L.TYPE_TIME_STAMP, timestamp & ((1 << L.TIME_STAMP_BITS) - 1))


def _time_record(kind: int, value: int) -> bytes:
    assert 0 <= value < 1 << L.TIME_STAMP_BITS, value
    return _U32_PAIR.pack(kind | (value & L.TIME_DELTA_MAX) << L.TYPE_LEN_BITS, value >> L.TIME_DELTA_BITS)


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
