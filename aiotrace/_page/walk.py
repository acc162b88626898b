"""The records of a page, one after the other: which events are on it, when, whose, and where.

    data[start:end]  --walk-->  (timestamp, id, pid, start of the payload, its length), ...

`_page.walk` says what a record is, in fewer words; here each costs as little as it can, in C (`Walk` in records.c) or
in Python. What a reader did not ask for is passed over by its id, pid and time.

The laws: **nothing outside of the data is read**, whatever the data says. **Who takes records keeps what came before
damage**, and the next one who asks is told of it. Times are signed 64 bits, and what is beyond that wraps around: the
twins agree on any bytes.
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
"""(timestamp, id, pid, start of the payload, its length)."""

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
    """Which records are worth more than being passed over.

    Args:
        ids, pids: The chosen ones; None: all.
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
    """The chosen events among the records in `data[start:end]`; it holds the buffer while it lives.

    Args:
        timestamp: Nanoseconds: the page's own, from which the first delta counts.
        start: Bytes; a multiple of 4.
        offset: Nanoseconds, added to every timestamp before it is compared with the selection.
        byte_order: "<" or ">", of the data.

    The iterator raises TraceFormatError, with the offset in `data`, where a record cannot be. What came before it is
    right as far as structure can tell.
    """
    make: Callable[..., Walk] = PythonWalk if c_module is None else c_module.Walk
    timestamp &= (1 << 64) - 1
    return make(
        data, timestamp, start, len(data) if end is None else end, _wrapped(offset), byte_order == ">", *select.bounds
    )


def _wrapped(time: int) -> int:
    return (time - TIME_MIN & (1 << 64) - 1) + TIME_MIN


def _bits(ids: Iterable[int]) -> bytes:
    """A bit for each id that may be."""
    bits = bytearray(IDS // 8)
    for id in ids:
        bits[id >> 3] |= 1 << (id & 7)
    return bytes(bits)


class PythonWalk:
    """The twin of the C module's Walk."""

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
        """What the walk stopped in front of."""
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
        """The records in front of damage."""
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
            # The kernel's bit fields begin at the high end where bytes do.
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
    """A place for counts: `totals[2 * id]` events with `totals[2 * id + 1]` bytes of payload, for every id."""
    return array("Q", bytes(2 * 8 * IDS))


def tally(walk: Walk, totals: array[int]) -> tuple[int, int, int, int]:
    """Add up all records in front of damage: call `next(walk, None)` to be told of it.

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
