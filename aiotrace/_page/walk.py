"""The records of a page, one after the other: which events are on it, when, whose, and where.

    data[start:end]  --walk-->  (timestamp, id, pid, start of the payload, its length), ...

Written for speed, in C (`_csrc/decode/walk.c`) and in pure Python. Records that the caller did not select are skipped
by id, pid and time. tests/support/page_oracle.py has a short implementation for comparison.

Held by tests/page/test_walk.py: **nothing outside of the data is read**, whatever the data says; **the records before
damage are returned**, and the next call reports the damage. Times are signed 64 bits and wrap around: C and Python
agree on any bytes.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable, Iterable, Iterator
from typing import Final, Protocol

from .._base.backend import c_module
from .._base.errors import TraceFormatError
from . import layout as L

__all__ = ["ALL", "Found", "PythonWalk", "RecordFilter", "Walk", "new_totals", "tally", "walk"]

Found = tuple[int, int, int, int, int]
"""(timestamp, id, pid, start of the payload, length of the payload)."""

TIME_MIN: Final = -(1 << 63)
TIME_MAX: Final = (1 << 63) - 1
IDS: Final = 65536
"""An id has 16 bits."""

Buffer = bytes | bytearray | memoryview


class Walk(Protocol):
    """An iterator over records."""

    def __iter__(self) -> Iterator[Found]: ...

    def __next__(self) -> Found: ...


class RecordFilter:
    """Which records a walk returns.

    Args:
        ids, pids: Those to return; None: all.
        start_ns: The first time, included.
        end_ns: The last time, included.
    """

    __slots__ = ("bounds",)

    def __init__(
        self,
        ids: Iterable[int] | None = None,
        pids: Iterable[int] | None = None,
        start_ns: int | None = None,
        end_ns: int | None = None,
    ) -> None:
        self.bounds: Final = (
            None if ids is None else _bits(ids),
            None if pids is None else frozenset(pids),
            TIME_MIN if start_ns is None else min(max(start_ns, TIME_MIN), TIME_MAX),
            TIME_MAX if end_ns is None else min(max(end_ns, TIME_MIN), TIME_MAX),
        )


ALL: Final = RecordFilter()


def walk(
    data: Buffer,
    timestamp: int,
    start: int = 0,
    end: int | None = None,
    *,
    offset: int = 0,
    byte_order: str = L.BYTE_ORDER,
    select: RecordFilter = ALL,
) -> Walk:
    """The selected events among the records in `data[start:end]`. The iterator keeps the buffer alive.

    Args:
        timestamp: Nanoseconds: of the page, from which the first delta counts.
        start: Bytes; a multiple of 4.
        offset: Nanoseconds, added to every timestamp before it is compared with the filter.
        byte_order: Of the data, "<" or ">".

    The iterator raises TraceFormatError, with the offset in `data`, at an invalid record. The records before it are
    valid as far as their structure shows.
    """
    make: Callable[..., Walk] = PythonWalk if c_module is None else c_module.Walk
    timestamp &= (1 << 64) - 1
    return make(
        data, timestamp, start, len(data) if end is None else end, _wrapped(offset), byte_order == ">", *select.bounds
    )


def _wrapped(time: int) -> int:
    return (time - TIME_MIN & (1 << 64) - 1) + TIME_MIN


def _bits(ids: Iterable[int]) -> bytes:
    """One bit for each possible id."""
    bits = bytearray(IDS // 8)
    for id in ids:
        bits[id >> 3] |= 1 << (id & 7)
    return bytes(bits)


class PythonWalk:
    """The pure-Python implementation."""

    def __init__(
        self,
        data: Buffer,
        timestamp: int,
        start: int,
        end: int,
        offset: int,
        big: bool,
        ids: bytes | None,
        pids: frozenset[int] | None,
        first: int,
        last: int,
    ) -> None:
        if start < 0 or start & 3 or end < start or end > len(data):
            raise ValueError(f"records at {start} to {end} of {len(data)} bytes")
        self.data = data
        self.byte_order = ">" if big else "<"
        self.damage: TraceFormatError | None = None
        """The damage at which the walk stopped."""
        self._records = self._walk(timestamp, start, end, offset, big, ids, pids, first, last)

    def __iter__(self) -> Iterator[Found]:
        return self

    def __next__(self) -> Found:
        if self.damage is not None:
            raise self.damage
        try:
            return next(self._records)
        except TraceFormatError as error:
            self.damage = error
            raise

    def until_damage(self) -> Iterator[Found]:
        """The records before the first damage."""
        try:
            yield from self._records
        except TraceFormatError as error:
            self.damage = error

    def _walk(
        self,
        timestamp: int,
        start: int,
        end: int,
        offset: int,
        big: bool,
        ids: bytes | None,
        pids: frozenset[int] | None,
        first: int,
        last: int,
    ) -> Iterator[Found]:
        words = array("I")
        words.frombytes(memoryview(self.data)[: end & ~3])
        if self.byte_order != L.BYTE_ORDER:
            words.byteswap()
        position, limit = start >> 2, end >> 2
        time = _wrapped(timestamp + offset)
        while position < limit:
            word = words[position]

            # The size of the record. The kernel's bit fields begin at the high end on big-endian machines.
            kind, delta = (word >> 27, word & L.TIME_DELTA_MAX) if big else (word & 31, word >> 5)
            if 0 < kind <= L.TYPE_DATA_MAX:
                body, next_position = position + 1, position + 1 + kind
            elif kind == L.TYPE_PADDING and not delta:
                return
            elif position + 1 >= limit:
                raise TraceFormatError("4 bytes where a record needs 8", offset=position * 4)
            else:
                second = words[position + 1]
                if kind == L.TYPE_TIME_EXTEND:
                    time = _wrapped(time + delta + (second << L.TIME_DELTA_BITS))
                    position += 2
                    continue
                if kind == L.TYPE_TIME_STAMP:
                    # The kernel stores 59 bits; the page's own timestamp gives the ones above.
                    above = timestamp >> L.TIME_STAMP_BITS << L.TIME_STAMP_BITS
                    time = _wrapped((delta + (second << L.TIME_DELTA_BITS) | above) + offset)
                    position += 2
                    continue
                if kind == L.TYPE_PADDING:
                    if second < 4 or second & 3 or position + 1 + (second >> 2) > limit:
                        raise TraceFormatError(f"padding of {second} bytes", offset=position * 4)
                    time += delta
                    position += 1 + (second >> 2)
                    continue
                if second <= 4:
                    raise TraceFormatError(f"a record of length {second}", offset=position * 4)
                body, next_position = position + 2, position + 2 + ((second - 1) >> 2)
            if next_position > limit or body + 2 > next_position:
                size, left = (next_position - body) * 4, (limit - body) * 4
                raise TraceFormatError(f"a record of {size} bytes where {left} are left", offset=position * 4)

            time += delta
            if time > TIME_MAX:
                time = _wrapped(time)
            common = words[body]
            id = common >> 16 if big else common & 0xFFFF
            pid = words[body + 1]
            if pid >= 0x80000000:
                pid -= 0x100000000

            if (
                (ids is None or ids[id >> 3] >> (id & 7) & 1)
                and (pids is None or pid in pids)
                and first <= time <= last
            ):
                yield time, id, pid, body * 4, (next_position - body) * 4
            position = next_position


# --- counts -------------------------------------------------------------------------------------


def new_totals() -> array[int]:
    """An array of counts: `totals[2 * id]` events with `totals[2 * id + 1]` bytes of payload, for every id."""
    return array("Q", bytes(2 * 8 * IDS))


def tally(walk: Walk, totals: array[int]) -> tuple[int, int, int, int]:
    """Add up all records before the first damage; `next(walk, None)` raises that afterwards.

    Returns:
        (events, bytes of their payloads, time of the first, time of the last).
    """
    if isinstance(walk, PythonWalk):
        return _tally(walk, totals)
    assert c_module is not None
    return c_module.tally(walk, totals)  # type: ignore[no-any-return]  # the C module has no types


def _tally(walk: PythonWalk, totals: array[int]) -> tuple[int, int, int, int]:
    count = size = first = last = 0
    for last, id, _, _, length in walk.until_damage():
        if not count:
            first = last
        count += 1
        size += length
        totals[2 * id] += 1
        totals[2 * id + 1] += length
    return count, size, first, last
