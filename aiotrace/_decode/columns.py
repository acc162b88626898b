"""A page as columns: one array for each property of its events, instead of one object for each event.

    columns.timestamp  s64 ns  ----+---- one row for each record of the page
    columns.id         u16         |
    columns.pid        s32         |
    columns.writer     one for the page
    columns.events["http:request_done"].row                 u32: which of those rows are this event's
                                       ["latency_ns"]       u64, one for each of them
                                       ["path"]             Texts: strings stay on the page until one is read

Columns are typed memoryviews, which numpy accepts without copying (`numpy.asarray(columns.timestamp)`); numpy is not
required. A page is decoded in one call by `ColumnPlan.decode` in columns.c, or by the Python implementation below.

Damage ends the page, and what came before it is kept: `columns.damage` has the reason and the place. A record that is
shorter than its event, or whose string is outside of it, is damage too, since a column has no holes.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, overload

from .._base.backend import c_module
from .._base.errors import TraceFormatError
from .._page import layout as L
from .._page.walk import Buffer, PythonWalk, Walk, walk
from .event_format import EventFormat, FieldKind, FormatField, Place, Value, compile_convert

__all__ = ["ColumnPlan", "Columns", "EventColumns", "Texts", "decode_columns"]

NUMBER, TRUTH, DATA_LOC, REL_LOC, ARRAY, TAIL = range(6)
"""How a field becomes a column: the same numbers as in records.h."""

_PLACES: Final = {
    Place.DATA_LOC: DATA_LOC,
    Place.REL_LOC: REL_LOC,
    Place.ARRAY: ARRAY,
    Place.TAIL: TAIL,
}

PlannedField = tuple[int, int, int]
"""(kind, offset, size)."""
PlannedEvent = tuple[int, int, tuple[PlannedField, ...]]
"""(id, bytes that its payload has at least, fields)."""
Raw = tuple[Buffer, Buffer, Buffer, Buffer, Buffer, tuple[tuple[Buffer, tuple[Any, ...]], ...], tuple[str, int] | None]
"""What both implementations return: see `_PythonPlan.decode`."""


class Texts(Sequence[Value]):
    """A column of values without a fixed size: strings, bytes, arrays. A value is decoded when it is read."""

    def __init__(
        self, data: Buffer, offset: memoryview, length: memoryview, field: FormatField, plan: ColumnPlan
    ) -> None:
        self.data = data
        """The page that they lie on."""
        self.offset = offset
        """u32: bytes from the beginning of `data`."""
        self.length = length
        """u32: bytes."""
        self._convert = compile_convert(field, plan.byte_order, plan.c_strings)

    def __len__(self) -> int:
        return len(self.offset)

    @overload
    def __getitem__(self, index: int) -> Value: ...
    @overload
    def __getitem__(self, index: slice) -> list[Value]: ...
    def __getitem__(self, index: int | slice) -> Value | list[Value]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        start = self.offset[index]
        value: Value = self._convert(bytes(self.data[start : start + self.length[index]]))
        return value


@dataclass(frozen=True, slots=True)
class EventColumns(Mapping[str, "memoryview | Texts"]):
    """The fields of one event, by name: as many values in each as `row` has."""

    row: memoryview
    """u32: the rows of the page that are this event's."""
    columns: dict[str, memoryview | Texts]

    def __getitem__(self, name: str) -> memoryview | Texts:
        return self.columns[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.columns)

    def __len__(self) -> int:
        return len(self.columns)


@dataclass(frozen=True, slots=True)
class Columns:
    """A page."""

    writer: int
    """The CPU in a kernel's trace."""
    timestamp: memoryview
    """s64: nanoseconds."""
    id: memoryview
    """u16: common_type."""
    pid: memoryview
    """s32: the task."""
    start: memoryview
    """u32: where the payload is, in bytes from the beginning of the data."""
    length: memoryview
    """u32: bytes of payload."""
    events: dict[str, EventColumns]
    """The chosen events, by "system:event"; those that the page has none of are empty."""
    damage: TraceFormatError | None
    """What ended the page before its end."""

    def __len__(self) -> int:
        return len(self.timestamp)


class ColumnPlan:
    """Which events' fields become columns. Constant, so that threads may share it.

    Args:
        formats: The chosen events. Two with the same id: the last one counts.
        byte_order: "<" or ">", of the pages.
        c_strings: Whether strings end at their first NUL, as the kernel's do.
    """

    def __init__(
        self, formats: Iterable[EventFormat], *, byte_order: str = L.BYTE_ORDER, c_strings: bool = False
    ) -> None:
        self.formats = tuple({format.id: format for format in formats}.values())
        self.byte_order = byte_order
        self.c_strings = c_strings
        events = tuple(
            (format.id, max(format.size, L.RECORD_COMMON_SIZE), tuple(map(_planned, format.own_fields)))
            for format in self.formats
        )
        self._plan: Any = _PythonPlan(events) if c_module is None else c_module.ColumnPlan(events)

    def decode(self, walk: Walk) -> Raw:
        """The bare columns, with no names yet."""
        return self._plan.decode(walk)  # type: ignore[no-any-return]  # the C module has no types

    def name(self, raw: Raw, data: Buffer, writer: int) -> Columns:
        """The same columns, typed and named."""
        timestamp, id, pid, start, length, events, damage = raw
        return Columns(
            writer,
            _typed(timestamp, "q"),
            _typed(id, "H"),
            _typed(pid, "i"),
            _typed(start, "I"),
            _typed(length, "I"),
            {
                format.full_name: EventColumns(
                    _typed(row, "I"),
                    {
                        field.name: self._column(column, field, data)
                        for field, column in zip(format.own_fields, columns, strict=True)
                    },
                )
                for format, (row, columns) in zip(self.formats, events, strict=True)
            },
            None if damage is None else TraceFormatError(damage[0], offset=damage[1]),
        )

    def _column(self, column: Any, field: FormatField, data: Buffer) -> memoryview | Texts:
        if isinstance(column, tuple):
            return Texts(data, _typed(column[0], "I"), _typed(column[1], "I"), field, self)
        return _typed(column, _code(field))


def decode_columns(
    data: Buffer,
    timestamp: int,
    plan: ColumnPlan,
    *,
    start: int = 0,
    end: int | None = None,
    offset: int = 0,
    writer: int = 0,
) -> Columns:
    """The records in `data[start:end]` as columns; `Texts` keep the data.

    Args:
        timestamp: Nanoseconds: the page's own, from which the first delta counts.
        offset: Nanoseconds, added to every timestamp.
    """
    records = walk(data, timestamp, start, end, offset=offset, byte_order=plan.byte_order)
    return plan.name(plan.decode(records), data, writer)


def _planned(field: FormatField) -> PlannedField:
    if field.place is Place.DATA_LOC and field.size != 4:
        raise TraceFormatError(f"field {field.name!r} is no column: strings of the oldest kernels have no length")
    if field.place is not Place.SCALAR:
        return _PLACES[field.place], field.offset, field.size
    return TRUTH if field.kind is FieldKind.BOOL else NUMBER, field.offset, field.size


_CODES: Final = {1: "b", 2: "h", 4: "i", 8: "q"}


def _code(field: FormatField) -> str:
    """As in `struct`: what one number of the column is. A symbol is its key."""
    if field.kind is FieldKind.FLOAT:
        return "f" if field.size == 4 else "d"
    if field.kind is FieldKind.BOOL:
        return "?"
    return _CODES[field.size] if field.signed else _CODES[field.size].upper()


def _typed(column: Buffer, code: str) -> memoryview:
    return memoryview(column).cast("B").cast(code)  # type: ignore[call-overload,no-any-return]  # one of its literals


# --- in pure Python -------------------------------------------------------------------------------


class _PythonPlan:
    """The pure-Python implementation of the C module's ColumnPlan."""

    def __init__(self, events: tuple[PlannedEvent, ...]) -> None:
        self._events = events
        self._index = {event[0]: number for number, event in enumerate(events)}

    def decode(self, walk: PythonWalk) -> Raw:
        """
        Returns:
            timestamp, id, pid, start, length; for each event its rows and its columns, of which those of no fixed size
            are two, offsets and lengths; (message, offset) of the damage that ended the page.
        """
        timestamps, ids, pids, starts, lengths = array("q"), array("H"), array("i"), array("I"), array("I")
        rows = [array("I") for _ in self._events]
        data = memoryview(walk.data).cast("B")
        damage: tuple[str, int] | None = None
        for time, id, pid, start, length in walk.until_damage():
            number = self._index.get(id)
            if number is not None:
                problem = _problem(self._events[number], data[start : start + length], walk.byte_order)
                if problem:
                    damage = problem, start
                    break
                rows[number].append(len(timestamps))
            timestamps.append(time)
            ids.append(id)
            pids.append(pid)
            starts.append(start)
            lengths.append(length)
        if walk.damage is not None and damage is None:
            damage = walk.damage.message, walk.damage.offset or 0
        events = tuple(
            (memoryview(row), tuple(_fill(field, row, data, starts, lengths, walk.byte_order) for field in event[2]))
            for event, row in zip(self._events, rows, strict=True)
        )
        view = memoryview
        return view(timestamps), view(ids), view(pids), view(starts), view(lengths), events, damage


def _problem(event: PlannedEvent, payload: memoryview, byte_order: str) -> str:
    _, size, fields = event
    if len(payload) < size:
        return f"a record of {len(payload)} bytes, where its event needs {size}"
    for field in fields:
        if field[0] in (DATA_LOC, REL_LOC):
            at, count = _place(field, payload, byte_order)
            if at + count > len(payload):
                return f"a field lies at {at}..{at + count} of a record of {len(payload)} bytes"
    return ""


def _place(field: PlannedField, payload: memoryview, byte_order: str) -> tuple[int, int]:
    """(offset in the payload, bytes) of a field of no fixed size."""
    kind, offset, size = field
    if kind == ARRAY:
        return offset, size
    if kind == TAIL:
        return offset, max(len(payload) - offset, 0)
    location = int.from_bytes(payload[offset : offset + 4], "little" if byte_order == "<" else "big")
    return (location & 0xFFFF) + (offset + 4 if kind == REL_LOC else 0), location >> 16


def _fill(
    field: PlannedField,
    rows: array[int],
    data: memoryview,
    starts: array[int],
    lengths: array[int],
    byte_order: str,
) -> Any:
    kind, offset, size = field
    if kind in (NUMBER, TRUTH):
        raw = b"".join(data[starts[row] + offset : starts[row] + offset + size] for row in rows)
        if kind == TRUTH:
            return bytes(map(bool, raw))
        numbers = array({1: "B", 2: "H", 4: "I", 8: "Q"}[size], raw)
        if byte_order != L.BYTE_ORDER:
            numbers.byteswap()
        return memoryview(numbers)
    offsets, counts = array("I"), array("I")
    for row in rows:
        start = starts[row]
        at, count = _place(field, data[start : start + lengths[row]], byte_order)
        offsets.append(start + at)
        counts.append(count)
    return memoryview(offsets), memoryview(counts)
