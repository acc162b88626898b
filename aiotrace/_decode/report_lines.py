"""A page as lines of text, in the layout of `trace-cmd report`.

        comm-pid     [cpu]  secs.usecs: event:                fields
    `-- once a task --'  |               `-- once an event    `-- its print fmt

A print fmt whose arguments are plain fields (`"status=%u path=%s", REC->status, __get_str(path)`, as all of aiotrace's
are) becomes a list of parts, each a literal or one conversion of one field, which `Lines` in report_lines.c prints by
itself. Any other is printed by the interpreter of `print_fmt`, as is a string that is not printable ASCII and a record
that does not fit its format.

Invariant (tests/decode/test_report_lines.py): both print the same text, byte for byte.
"""

from __future__ import annotations

import bisect
import heapq
import operator
import re
from array import array
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Final, NamedTuple, Protocol

from .._base.backend import c_module
from .._base.errors import TraceFormatError
from .._base.terminal_text import escape, escape_literal
from .._page import layout as L
from .._page.walk import PythonWalk, Walk
from .c_tokens import unquoted
from .event_format import EventFormat, FieldKind, FormatField, Place, text_of
from .printf import CONVERSION, INTEGER_BITS, WIDTH_MAX

__all__ = ["Chunk", "LineTables", "Lines", "chunk_of", "format_time", "merge"]

CHUNK_SIZE: Final = 1 << 16
"""Bytes after which a chunk of text ends with its line: the same number as in lines.c."""

LITERAL, INTEGER, BOOLEAN, FLOATING, TEXT_LOC, TEXT_REL, TEXT_ARRAY, TEXT_TAIL, SYMBOL, HEX_LOC = range(10)
"""What a part is: the same numbers as in line_parts.c."""

_FLAGS: Final = {"-": 1, "0": 2, "+": 4, " ": 8, "#": 16}
_TEXTS: Final = {
    Place.DATA_LOC: TEXT_LOC,
    Place.REL_LOC: TEXT_REL,
    Place.ARRAY: TEXT_ARRAY,
    Place.TAIL: TEXT_TAIL,
}

LinePart = tuple[int, int, int, int, int, int, int, int, int, bytes]
"""(kind, offset, size, is signed, conversion, flags, bits, width, precision or -1, literal)."""
Definition = tuple[bytes, int, tuple[LinePart, ...] | None]
"""(the padded name, bytes that a payload has at least, parts)."""


class LineTables(Protocol):
    """What gives ids, addresses and pids their meaning."""

    symbols: dict[int, str]
    c_strings: bool
    long_size: int

    def command(self, pid: int) -> str:
        """The name of a task."""

    def name(self, id: int) -> str:
        """`system:event`."""

    def format(self, id: int) -> EventFormat | None:
        """None if the event is not known."""

    def show(self, id: int, payload: bytes) -> str:
        """The fields as the event's print fmt shows them, control characters escaped."""


class Chunk(NamedTuple):
    """Some lines, each with its newline."""

    text: bytes
    """utf-8."""
    timestamps: list[int]
    """Nanoseconds: of each line's event."""
    ends: list[int]
    """Bytes: where each line ends."""
    in_order: bool
    """Whether no time is below the one before."""


def chunk_of(line: str, timestamp_ns: int) -> Chunk:
    """A line of somebody else's."""
    text = (line + "\n").encode()
    return Chunk(text, [timestamp_ns], [len(text)], True)


class Lines:
    """Formats records as lines. The tables must not change any more for a task, event or symbol that was printed."""

    def __init__(self, tables: LineTables) -> None:
        self._tables = tables
        make: Any = _PythonLines if c_module is None else c_module.Lines
        self._lines = make(self._define, self._name_task, _show_text, tables.show, tables.symbols, tables.c_strings)

    def format(self, walk: Walk, cpu: int) -> Chunk:
        """The next lines: without any, the walk is at its end.

        Raises:
            TraceFormatError: The next record is damaged.
        """
        text, timestamps, ends, in_order = self._lines.format(walk, f" [{cpu:03d}] ".encode())
        times, places = memoryview(timestamps).cast("B").cast("q"), memoryview(ends).cast("B").cast("Q")
        return Chunk(text, times.tolist(), places.tolist(), in_order)

    def _define(self, id: int) -> Definition:
        head = escape(self._tables.name(id).partition(":")[2]) + ": "
        format = self._tables.format(id)
        parts = None if format is None else parts_of(format, long_size=self._tables.long_size)
        size = 0 if format is None else max((field.offset + field.size for field in format.own_fields), default=0)
        return f"{head:<22}".encode(), size, parts

    def _name_task(self, pid: int) -> bytes:
        return f"{escape(self._tables.command(pid)):>16}-{pid:<5}".encode()


def format_time(timestamp_ns: int) -> str:
    """Seconds and microseconds, rounded, as trace-cmd shows a time."""
    seconds, microseconds = divmod((timestamp_ns + 500) // 1000, 1_000_000)
    return f"{seconds:5d}.{microseconds:06d}"


def _show_text(text: str | bytes, precision: int) -> str:
    if isinstance(text, bytes):
        text = text_of(text)
    return escape(text[:precision] if precision >= 0 else text)


def merge(streams: Iterable[Iterator[Chunk]]) -> Iterator[str]:
    """All lines in the order of time, as text in pieces of some lines each.

    As `heapq.merge` does with one line at a time: of equal times, an earlier stream's comes first, and the order within
    a stream is kept whatever its times are.
    """
    heap: list[tuple[int, int, int, Chunk, Iterator[Chunk]]] = []
    for order, stream in enumerate(streams):
        _push(heap, order, stream)
    pieces: list[bytes] = []
    size = 0
    while heap:
        _, order, first, chunk, stream = heapq.heappop(heap)
        end = len(chunk.ends)
        if heap:
            end = _run_end(chunk, first, heap[0][0] + (order < heap[0][1]))
        pieces.append(chunk.text[chunk.ends[first - 1] if first else 0 : chunk.ends[end - 1]])
        if end < len(chunk.ends):
            heapq.heappush(heap, (chunk.timestamps[end], order, end, chunk, stream))
        else:
            _push(heap, order, stream)
        size += len(pieces[-1])
        if size >= CHUNK_SIZE:
            yield b"".join(pieces).decode()
            pieces.clear()
            size = 0
    yield b"".join(pieces).decode()


def _push(heap: list[tuple[int, int, int, Chunk, Iterator[Chunk]]], order: int, stream: Iterator[Chunk]) -> None:
    chunk = next(stream, None)
    if chunk is not None:
        heapq.heappush(heap, (chunk.timestamps[0], order, 0, chunk, stream))


def _run_end(chunk: Chunk, first: int, limit: int) -> int:
    """Where the lines from `first` on, which comes first, reach a time of `limit` or more."""
    timestamps = chunk.timestamps
    end = first + 1
    if end == len(timestamps) or timestamps[end] >= limit:  # half of all, where two threads write at one pace
        return end
    if chunk.in_order:
        return bisect.bisect_left(timestamps, limit, end)
    while end < len(timestamps) and timestamps[end] < limit:
        end += 1
    return end


# --- parts --------------------------------------------------------------------------------------

_STRING: Final = r'"(?:[^"\\]|\\.)*"'
_PRINT_FORMAT: Final = re.compile(rf"\s*({_STRING}(?:\s*{_STRING})*)\s*(,.*)?", re.DOTALL)
_ARGUMENT: Final = re.compile(
    r"""\s*,\s*(?:
        REC->(?P<field>\w+)
      | __get_str\(\s*(?P<text>\w+)\s*\)
      | __print_hex\(\s*__get_dynamic_array\((?P<hex>\w+)\),\s*__get_dynamic_array_len\((?P=hex)\)\s*\)
    )\s*(?=,|$)""",
    re.VERBOSE | re.ASCII,
)


def parts_of(format: EventFormat, *, long_size: int = 8) -> tuple[LinePart, ...] | None:
    """The parts of an event's print fmt; None if there is more to it."""
    if format.system == "ftrace" or len(format.print_format) > L.PAGE_SIZE_MIN:
        return None
    match = _PRINT_FORMAT.fullmatch(format.print_format)
    if match is None:
        return None
    text = "".join(unquoted(literal) for literal in re.findall(_STRING, match.group(1), re.DOTALL)).rstrip("\n")
    arguments = _arguments(match.group(2) or "")
    fields = {field.name: field for field in format.own_fields}
    if arguments is None or any(field.declared for field in format.own_fields):
        return None
    parts: list[LinePart] = []
    used: list[FormatField] = []
    position = 0
    for mark in _conversions(text):
        if mark is None:
            return None
        parts.append(_literal(text[position : mark.start()]))
        position = mark.end()
        if mark["conversion"] == "%":
            parts.append(_literal("%"))
            continue
        kind, name = arguments.pop(0) if arguments else ("", "")
        field = fields.get(name)
        part = None if field is None else _conversion(mark, kind, field, long_size)
        if part is None or field is None:
            return None
        if part[0] == FLOATING:  # trace-cmd can only show its bits, after a 0x; here it is a number
            parts[-1] = (*parts[-1][:-1], parts[-1][-1].removesuffix(b"0x"))
        used.append(field)
        parts.append(part)
    # A string that lies outside of its record makes the whole record's fields unreadable, printed or not.
    if any(field.place in (Place.DATA_LOC, Place.REL_LOC) and field not in used for field in format.own_fields):
        return None
    parts.append(_literal(text[position:]))
    return tuple(part for part in parts if part[0] != LITERAL or part[-1])


def _arguments(text: str) -> list[tuple[str, str]] | None:
    """(how it is named, the field), for each."""
    found, position = [], 0
    while position < len(text):
        match = _ARGUMENT.match(text, position)
        if match is None:
            return None
        found.append((match.lastgroup or "", match.group(match.lastgroup or "")))
        position = match.end()
    return found


def _conversions(text: str) -> list[re.Match[str] | None]:
    """printf's conversions; None where one is not known."""
    found: list[re.Match[str] | None] = []
    position = text.find("%")
    while position >= 0:
        match = CONVERSION.match(text, position)
        found.append(match)
        if match is None:
            break
        position = text.find("%", match.end())
    return found


def _literal(text: str) -> LinePart:
    return (LITERAL, 0, 0, 0, 0, 0, 8, 0, -1, escape_literal(text).encode())


def _conversion(mark: re.Match[str], named: str, field: FormatField, long_size: int) -> LinePart | None:
    conversion = mark["conversion"].replace("i", "d")
    if "*" in (mark["width"], mark["precision"]):
        return None
    width = min(int((mark["width"] or "0")[:6]), WIDTH_MAX)
    precision = -1 if mark["precision"] is None else int(mark["precision"][:6] or "0")
    flags = sum({_FLAGS[flag] for flag in mark["flags"]})
    bits = INTEGER_BITS.get(mark["length"] or "", long_size * 8)
    if conversion == "s":
        kind = _text_kind(named, field, precision)
    elif conversion in "duxXo" and named == "field":
        kind, precision = _number_kind(field), min(precision, WIDTH_MAX)
    else:
        return None
    if kind is None:
        return None
    return kind, field.offset, field.size, int(field.signed), ord(conversion), flags, bits, width, precision, b""


def _text_kind(named: str, field: FormatField, precision: int) -> int | None:
    if named == "hex":
        return HEX_LOC if field.is_bytes and field.place is Place.DATA_LOC and precision < 0 else None
    if field.is_text:
        return _TEXTS[field.place] if field.place is not Place.DATA_LOC or field.size == 4 else None
    if field.kind is FieldKind.SYMBOL and field.place is Place.SCALAR and not field.signed and named == "field":
        return SYMBOL
    return None


def _number_kind(field: FormatField) -> int | None:
    if field.place is not Place.SCALAR:
        return None
    return {FieldKind.INT: INTEGER, FieldKind.BOOL: BOOLEAN, FieldKind.FLOAT: FLOATING}.get(field.kind)


# --- in pure Python -------------------------------------------------------------------------------


class _PythonLines:
    """The pure-Python implementation of the C module's Lines: all fields are printed by the interpreter."""

    def __init__(
        self,
        define: Callable[[int], Definition],
        name_task: Callable[[int], bytes],
        show_text: Callable[[str | bytes, int], str],
        show: Callable[[int, bytes], str],
        symbols: dict[int, str],
        c_strings: bool,
    ) -> None:
        self._define = define
        self._name_task = name_task
        self._show = show
        self._heads: dict[int, bytes] = {}
        self._tasks: dict[int, bytes] = {}

    def format(self, walk: PythonWalk, cpu: bytes) -> tuple[bytes, memoryview, memoryview, bool]:
        lines: list[bytes] = []
        timestamps, ends = array("q"), array("Q")
        size = 0
        while size < CHUNK_SIZE:
            try:
                record = next(walk, None)
            except TraceFormatError:
                if not lines:
                    raise
                break
            if record is None:
                break
            time, id, pid, start, length = record
            payload = bytes(walk.data[start : start + length])
            time_text, fields = format_time(time).encode(), self._show(id, payload).encode()
            line = b"%b%b%b: %b%b\n" % (self._task(pid), cpu, time_text, self._head(id), fields)
            lines.append(line)
            size += len(line)
            timestamps.append(time)
            ends.append(size)
        in_order = all(map(operator.le, timestamps, timestamps[1:]))
        return b"".join(lines), memoryview(timestamps), memoryview(ends), in_order

    def _head(self, id: int) -> bytes:
        if id not in self._heads:
            self._heads[id] = self._define(id)[0]
        return self._heads[id]

    def _task(self, pid: int) -> bytes:
        if pid not in self._tasks:
            if len(self._tasks) >= 65536:
                self._tasks.clear()
            self._tasks[pid] = self._name_task(pid)
        return self._tasks[pid]
