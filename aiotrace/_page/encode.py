"""Pages and records in the Linux ring buffer's format: how they are written. Sans-IO.

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

A record is visible when `commit` covers it, and `commit` is advanced last. So a committed prefix of a page can be
copied at any moment, by any thread or process, and never holds half a record.

Whole pages are read by `walk.py`. This module knows no event, no pool, no clock.
"""

from __future__ import annotations

import struct

from . import layout as L

__all__ = ["encode_record", "encode_time_extend", "pack_header", "pack_lost_count"]

_HEADER = struct.Struct(L.BYTE_ORDER + "QQ")
_U32 = struct.Struct(L.BYTE_ORDER + "I")
_U32_PAIR = struct.Struct(L.BYTE_ORDER + "II")
_U64 = struct.Struct(L.BYTE_ORDER + "Q")


def pack_header(timestamp: int, committed: int, lost: int = 0) -> bytes:
    """The 16 bytes before the records.

    Args:
        lost: Events missing before this page: 0 none, -1 an unknown number.
    """
    flags = 0 if not lost else L.COMMIT_MISSED_EVENTS | (L.COMMIT_MISSED_STORED if lost > 0 else 0)
    return _HEADER.pack(timestamp, committed | flags)


def pack_lost_count(lost: int) -> bytes:
    """The u64 after the records: empty if there is nothing to count."""
    return _U64.pack(lost) if lost > 0 else b""


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
    assert 0 <= delta < 1 << L.TIME_STAMP_BITS, delta
    return _U32_PAIR.pack(
        L.TYPE_TIME_EXTEND | (delta & L.TIME_DELTA_MAX) << L.TYPE_LEN_BITS, delta >> L.TIME_DELTA_BITS
    )
