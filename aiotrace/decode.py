"""Reading events: from a file with `open_trace`, from pages that a sink is given with `Decoder`.

    with aiotrace.open_trace("trace.dat") as trace:
        for event in trace:
            print(event.timestamp_ns, event.name, event.fields)

    pages of CPU 0   --walk-->  e e e  --+
    pages of CPU 1   --walk-->  e   e  --+--heap-->  events in the order of time
    pages of CPU 2   --walk-->    e e  --+

The laws: **one page of each CPU is in memory**, whatever the file's size. **A loss is an event**: where events are
missing, one with the name "aiotrace:lost" stands in their place. **Nothing is decoded that nobody asked for**: a record
is passed over by its id and pid, and its fields are read when they are looked at.
"""

from __future__ import annotations

import bisect
import fnmatch
import heapq
import html
import itertools
import os
import time
from array import array
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Final, TypeVar

from . import _ftrace
from . import _layout as L
from ._clock import Anchor
from ._definitions import CommandDefinition, Definition, EventDefinition, FunctionDefinition, SymbolDefinition
from ._errors import TraceFormatError
from ._escape import escape, format_pairs
from ._filter import Filter, compile_filter
from ._format import EventFormat, Reader, Value, compile_reader, parse_format
from ._found import Buffer, CpuData, Damage, FoundPage, PageShape
from ._growing import is_unfinished
from ._lines import Chunk, Lines, chunk_of, format_time, merge
from ._print import compile_print
from ._printf import Names, Printer
from ._records import ALL, Selection, Walk, new_totals, tally, walk
from ._tracefile import TraceFile
from ._unfinished import UnfinishedFile
from .abc import Page

__all__ = [
    "LOST",
    "Damage",
    "Decoder",
    "Event",
    "EventCount",
    "Loss",
    "Trace",
    "TraceStatistics",
    "WriterCount",
    "format_line",
    "format_time",
    "open_trace",
]

LOST: Final = "aiotrace:lost"
"""The name of the event that stands where events are missing. Its fields: `count` (None if it is not known) and
`reason`."""

UNKNOWN_COMMAND: Final = "<...>"
"""The name of a task whose name is not known, as trace-cmd has it."""


class _Kind:
    """What is known of one event id; its reader and its printer are made when they are first needed."""

    __slots__ = ("_make_printer", "_make_reader", "format", "name", "print", "read")

    def __init__(
        self,
        name: str,
        format: EventFormat | None,
        make_reader: Callable[[], Reader],
        make_printer: Callable[[], Printer],
    ) -> None:
        self.name = name
        self.format = format
        self._make_reader = make_reader
        self._make_printer = make_printer
        self.read: Reader = self._first_read
        self.print: Printer = self._first_print

    def _first_read(self, data: bytes, start: int, length: int) -> dict[str, Value]:
        self.read = self._make_reader()
        return self.read(data, start, length)

    def _first_print(self, values: Mapping[str, Value]) -> str:
        self.print = self._make_printer()
        return self.print(values)


def _read_unknown(data: bytes, start: int, length: int) -> dict[str, Value]:
    return {"payload": bytes(data[start + L.RECORD_COMMON_SIZE : start + length])}


def _print_lost(values: Mapping[str, Any]) -> str:
    return f"{values['count'] or 'some'} events lost: {escape(str(values['reason']))}"


_LOST_KIND: Final = _Kind(LOST, None, lambda: _read_unknown, lambda: _print_lost)


class Event:
    """One event, or a loss.

    Equal to another one with the same time, name, pid, cpu and fields.
    """

    __slots__ = ("_fields", "_kind", "_payload", "_tables", "buffer", "cpu", "pid", "timestamp_ns")

    timestamp_ns: int
    """Nanoseconds of the trace's clock."""
    pid: int
    """The task, or the thread where tasks are not traced."""
    cpu: int
    """The writer: the CPU in a kernel's trace."""
    buffer: str
    """The instance that it was recorded in; "" for the main one."""

    def __init__(
        self, kind: _Kind, timestamp_ns: int, pid: int, cpu: int, payload: bytes, tables: _Tables, buffer: str = ""
    ) -> None:
        self._kind = kind
        self._payload = payload
        self._tables = tables
        self._fields: dict[str, Any] | None = None
        self.timestamp_ns = timestamp_ns
        self.pid = pid
        self.cpu = cpu
        self.buffer = buffer

    @property
    def name(self) -> str:
        """`system:event`."""
        return self._kind.name

    @property
    def fields(self) -> dict[str, Any]:
        """The values by name, without the common fields.

        A record that is too short for its event has the one field "damaged".
        """
        if self._fields is None:
            try:
                self._fields = self._kind.read(self._payload, 0, len(self._payload))
            except TraceFormatError as error:
                self._fields = {"damaged": error.message}
        return self._fields

    @property
    def format(self) -> EventFormat | None:
        """What is known of the event: None for a loss, and for an id that the trace does not explain."""
        return self._kind.format

    @property
    def comm(self) -> str:
        """The name of the task; "<...>" if it is not known."""
        return self._tables.command(self.pid)

    @property
    def flags(self) -> int:
        """common_flags: 0x80 says that a string was too long and was cut (in traces of ours)."""
        return self._payload[2] if len(self._payload) > 2 else 0

    @property
    def is_loss(self) -> bool:
        """Whether this stands for events that are missing."""
        return self._kind is _LOST_KIND

    def text(self) -> str:
        """The fields as the event's own print fmt shows them, control characters escaped."""
        return self._kind.print(self.fields)

    def _key(self) -> tuple[object, ...]:
        return self.timestamp_ns, self.name, self.pid, self.cpu, self.buffer, self.fields

    def __eq__(self, other: object) -> bool:
        return self._key() == other._key() if isinstance(other, Event) else NotImplemented

    def __hash__(self) -> int:
        return hash((self.timestamp_ns, self.name, self.pid, self.cpu))

    def __repr__(self) -> str:
        return f"<{self.name} at {self.timestamp_ns} pid={self.pid} cpu={self.cpu} {format_pairs(self.fields)}>"


def _lost(
    count: int | None, reason: str, timestamp: int, cpu: int, tables: _Tables, pid: int = 0, buffer: str = ""
) -> Event:
    event = Event(_LOST_KIND, timestamp, pid, cpu, b"", tables, buffer)
    event._fields = {"count": count, "reason": reason}
    return event


class _Tables:
    """Everything that gives an id, an address or a pid its meaning."""

    def __init__(
        self,
        formats: dict[int, EventFormat],
        symbols: dict[int, str],
        commands: dict[int, str],
        functions: Names | None,
        *,
        byte_order: str = L.BYTE_ORDER,
        long_size: int = 8,
        c_strings: bool = False,
    ) -> None:
        self.formats = formats
        self.symbols = symbols
        self.commands = commands
        self.functions = _FunctionNames(functions, symbols)
        self.byte_order = byte_order
        self.long_size = long_size
        self.c_strings = c_strings
        self._kinds: dict[int, _Kind] = {}

    def kind(self, id: int) -> _Kind:
        """What the event with this id is."""
        kind = self._kinds.get(id)
        if kind is None:
            kind = self._kinds[id] = self._make_kind(id)
        return kind

    def _make_kind(self, id: int) -> _Kind:
        format = self.formats.get(id)
        if format is None:
            return _Kind(f"unknown:{id}", None, lambda: _read_unknown, lambda: format_pairs)
        return _Kind(
            format.full_name,
            format,
            lambda: compile_reader(
                format.own_fields, byte_order=self.byte_order, symbols=self.symbols, c_strings=self.c_strings
            ),
            lambda: compile_print(format, self.functions, long_size=self.long_size),
        )

    def define(self, definition: Definition) -> None:
        """Add a definition, or replace the one before it.

        Raises:
            TraceFormatError: An event's format is not one.
        """
        match definition:
            case EventDefinition():
                format = parse_format(definition.format, definition.system, long_size=self.long_size)
                self.formats[definition.id] = format
                self._kinds.pop(definition.id, None)
            case SymbolDefinition(key, text):
                self.symbols[key] = text
            case CommandDefinition(pid, name):
                self.commands[pid] = name
            case FunctionDefinition():
                self.functions.define(definition)

    def name(self, id: int) -> str:
        """`system:event`."""
        return self.kind(id).name

    def format(self, id: int) -> EventFormat | None:
        """None if the event is not known."""
        return self.formats.get(id)

    def show(self, id: int, payload: bytes) -> str:
        """The fields as text."""
        return Event(self.kind(id), 0, 0, 0, payload, self).text()

    def command(self, pid: int) -> str:
        """The name of a task."""
        name = self.commands.get(pid)
        return name if name is not None else "<idle>" if pid == 0 else UNKNOWN_COMMAND


class _FunctionNames:
    """Functions, by our own definitions before those of kallsyms, and interned strings, each at its key alone."""

    def __init__(self, functions: Names | None, symbols: Mapping[int, str]) -> None:
        self._functions = functions
        self._symbols = symbols
        self._defined: dict[int, FunctionDefinition] = {}
        self._addresses: list[int] = []

    def define(self, definition: FunctionDefinition) -> None:
        if definition.address not in self._defined:
            bisect.insort(self._addresses, definition.address)
        self._defined[definition.address] = definition

    def find(self, address: int) -> tuple[str, int] | None:
        text = self._symbols.get(address)
        if text is not None:
            return text, 0
        own = self._find_own(address)
        if own is not None:
            return own.name, address - own.address
        return self._functions.find(address) if self._functions is not None else None

    def locate(self, address: int) -> str | None:
        own = self._find_own(address)
        return None if own is None else f"{os.path.basename(own.file)}:{own.line + address - own.address}"

    def _find_own(self, address: int) -> FunctionDefinition | None:
        index = bisect.bisect_right(self._addresses, address) - 1
        own = self._defined[self._addresses[index]] if index >= 0 else None
        return own if own is not None and address < own.address + own.lines else None


# --- a page -------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Wanted:
    """What a caller asked for."""

    names: tuple[str, ...]
    pids: frozenset[int] | None
    cpus: frozenset[int] | None
    start_ns: int | None
    end_ns: int | None
    where: Filter | None


COMMIT_MASK: Final = (1 << 27) - 1
"""Later kernels' pages may be larger than ours: libtraceevent takes 27 bits for the length."""


@dataclass(frozen=True, slots=True)
class _Header:
    timestamp: int
    start: int
    end: int
    """Bytes: where the records are."""
    lost: int | None
    """Events missing before the page: None for some."""


def _read_header(data: bytes, shape: PageShape) -> _Header:
    order = "little" if shape.byte_order == "<" else "big"
    start = shape.data_offset
    if len(data) < start:
        raise TraceFormatError(f"a page of {len(data)} bytes has no room for its header", offset=0)
    commit = int.from_bytes(data[8:start], order)  # type: ignore[arg-type]  # one of the two literals
    end = start + (commit & COMMIT_MASK & ~L.COMMIT_MISSED_STORED)
    if end > len(data):
        raise TraceFormatError(f"commit is {end - start}, the page has {len(data) - start} bytes after it", offset=8)
    lost: int | None = 0
    if commit & L.COMMIT_MISSED_EVENTS:
        lost = None
        if commit & L.COMMIT_MISSED_STORED and end + shape.commit_size <= len(data):
            lost = int.from_bytes(data[end : end + shape.commit_size], order)  # type: ignore[arg-type]  # as above
    return _Header(int.from_bytes(data[:8], order), start, end, lost)  # type: ignore[arg-type]  # as above


# --- a file -------------------------------------------------------------------------------------

_T = TypeVar("_T")
_Read = Callable[[FoundPage, Walk, str, int], Iterator[tuple[int, _T]]]
"""(page, its records, buffer, cpu) -> what becomes of them, each with its time."""


@dataclass(slots=True)
class Loss:
    """Events of one CPU that are missing."""

    buffer: str
    cpu: int
    count: int = 0
    """Events that are counted."""
    uncounted: int = 0
    """Places where events are missing and nobody knows how many."""


@dataclass(slots=True)
class EventCount:
    """What a trace holds of one kind of event."""

    count: int = 0
    bytes: int = 0
    """Of payload."""


@dataclass(slots=True)
class WriterCount:
    """What a trace holds of one writer (CPU)."""

    buffer: str
    cpu: int
    size: int
    """Bytes in the file."""
    pages: int = 0
    count: int = 0
    bytes: int = 0
    """Of payload."""
    lost: int = 0
    uncounted_losses: int = 0
    first_ns: int | None = None
    last_ns: int | None = None


@dataclass(slots=True)
class TraceStatistics:
    """What a trace holds."""

    path: str
    size: int
    """Bytes of the file."""
    clock: str
    writers: list[WriterCount] = field(default_factory=list)
    events: dict[str, EventCount] = field(default_factory=dict)
    damage: int = 0

    @property
    def count(self) -> int:
        return sum(writer.count for writer in self.writers)

    @property
    def lost(self) -> int:
        """Events that are known to be missing."""
        return sum(writer.lost for writer in self.writers)

    @property
    def first_ns(self) -> int | None:
        return min((w.first_ns for w in self.writers if w.first_ns is not None), default=None)

    @property
    def last_ns(self) -> int | None:
        return max((w.last_ns for w in self.writers if w.last_ns is not None), default=None)


class Trace:
    """The events of a file, in the order of time; made by `open_trace`.

    May be iterated over more than once; each time the file is read again.
    """

    def __init__(self, file: TraceFile | UnfinishedFile) -> None:
        self._file = file
        self._tables = _Tables(
            file.formats,
            file.symbols,
            file.commands,
            file.functions,
            byte_order=file.byte_order,
            long_size=file.shape.commit_size,
            c_strings=not file.is_ours,
        )
        self._defined = 0
        self._define()
        self._losses: dict[tuple[str, int], Loss] = {}
        self._reached: dict[tuple[str, int], int] = {}
        """The last time of each CPU: a file that grows goes on from there."""
        self.bytes_read = 0
        """Bytes of pages that the last iteration has read, out of `bytes_total`."""

    def _define(self) -> None:
        """Take over the definitions that have come since."""
        for definition in self._file.definitions[self._defined :]:
            self._defined += 1
            try:
                self._tables.define(definition)
            except TraceFormatError as error:
                self._file.note_damage(0, f"a definition: {error.message}")

    def __enter__(self) -> Trace:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the file. Events that are at hand stay good."""
        self._file.close()

    @property
    def path(self) -> str:
        return self._file.path

    @property
    def complete(self) -> bool:
        """False if the recording has not ended, or was killed: what is there is read."""
        return self._file.complete

    @property
    def clock(self) -> str:
        """The clock of the timestamps, as in /sys/kernel/tracing/trace_clock; "" if it is not known."""
        return self._file.buffers[0].clock if self._file.buffers else ""

    @property
    def anchor(self) -> Anchor | None:
        """The moment that ties the clock to the time of day, and the boot; None if the file does not say."""
        return self._file.info.anchor if self._file.info is not None else None

    @property
    def formats(self) -> list[EventFormat]:
        """The events that the trace explains, whether it has any or not."""
        return sorted(self._file.formats.values(), key=lambda format: (format.system, format.name))

    def find_function(self, address: int) -> tuple[str, int] | None:
        """The function that an address is in, and how far from its beginning; None if the trace names none."""
        return self._tables.functions.find(address)

    @property
    def cpus(self) -> list[tuple[str, int]]:
        """(buffer, cpu) of each writer."""
        return [(buffer.name, cpu.cpu) for buffer in self._file.buffers for cpu in buffer.cpus]

    @property
    def buffers(self) -> list[str]:
        return [buffer.name for buffer in self._file.buffers]

    @property
    def losses(self) -> list[Loss]:
        """Where events are missing, as far as the last iteration came."""
        return list(self._losses.values())

    @property
    def damage(self) -> Sequence[Damage]:
        """Parts of the file that could not be read: those of its tables at once, those of pages when they are come
        to. At most 1000 are kept; `damage_count` counts all."""
        return tuple(self._file.damage)

    @property
    def damage_count(self) -> int:
        return self._file.damage_count

    @property
    def bytes_total(self) -> int:
        """Bytes of pages in the file."""
        return sum(cpu.size for buffer in self._file.buffers for cpu in buffer.cpus)

    def __iter__(self) -> Iterator[Event]:
        return self.events()

    def events(
        self,
        names: Iterable[str] | str = (),
        *,
        start_ns: int | None = None,
        end_ns: int | None = None,
        cpus: Iterable[int] | None = None,
        pids: Iterable[int] | None = None,
        where: str | Filter | None = None,
    ) -> Iterator[Event]:
        """The chosen events, in the order of time. Losses are always among them.

        Args:
            names: Globs, each matched with "system:event"; one without a colon with the system or the event.
                Without any, all.
            start_ns: The first time, included; the trace's own clock.
            end_ns: The last time, included.
            where: A filter over the fields: `'status >= 500 && path ~ "/api/*"'`. Events without its fields are left
                out.

        Raises:
            ConfigurationError: The filter is not one.
        """
        wanted = self._wanted(names, start_ns, end_ns, cpus, pids, where)
        self._restart()
        return self._events(wanted)

    def follow(
        self,
        names: Iterable[str] | str = (),
        *,
        start_ns: int | None = None,
        end_ns: int | None = None,
        cpus: Iterable[int] | None = None,
        pids: Iterable[int] | None = None,
        where: str | Filter | None = None,
        interval: float = 0.2,
    ) -> Iterator[Event]:
        """The same of a file that grows: first what is there, then what comes, until the recording ends. Blocks.

        Only what came at once is put in the order of time: a quiet writer's page comes late.

        Args:
            interval: Seconds between two looks at the file.
        """
        wanted = self._wanted(names, start_ns, end_ns, cpus, pids, where)
        self._restart()
        yield from self._events(wanted)
        file = self._file
        while isinstance(file, UnfinishedFile):
            ended = file.ended  # before the look: what was written until then is seen by it
            if file.refresh() or ended:
                self._define()
                yield from self._events(wanted)
            elif not ended:
                time.sleep(interval)
            if ended:
                return

    def _wanted(
        self,
        names: Iterable[str] | str,
        start_ns: int | None,
        end_ns: int | None,
        cpus: Iterable[int] | None,
        pids: Iterable[int] | None,
        where: str | Filter | None,
    ) -> _Wanted:
        return _Wanted(
            (names,) if isinstance(names, str) else tuple(names),
            None if pids is None else frozenset(pids),
            None if cpus is None else frozenset(cpus),
            start_ns,
            end_ns,
            compile_filter(where) if isinstance(where, str) else where,
        )

    def _ids(self, patterns: tuple[str, ...]) -> frozenset[int] | None:
        if not patterns:
            return None
        return frozenset(
            id for id, format in self._file.formats.items() if any(_matches(pattern, format) for pattern in patterns)
        )

    def _events(self, wanted: _Wanted) -> Iterator[Event]:
        tables = self._tables

        def read(found: FoundPage, records: Walk, buffer: str, cpu: int) -> Iterator[tuple[int, Event]]:
            kind_of, data = tables.kind, found.data
            for now, id, pid, start, length in records:
                yield now, Event(kind_of(id), now, pid, cpu, data[start : start + length], tables, buffer)

        streams = [_keyed(order, stream) for order, stream in self._streams(wanted, read)]
        merged = heapq.merge(*streams) if len(streams) > 1 else (streams[0] if streams else iter(()))
        test = wanted.where
        for _, _, event in merged:
            if test is None or event.is_loss or test(event.fields, event):
                yield event

    def text(
        self,
        names: Iterable[str] | str = (),
        *,
        start_ns: int | None = None,
        end_ns: int | None = None,
        cpus: Iterable[int] | None = None,
        pids: Iterable[int] | None = None,
    ) -> Iterator[str]:
        """The same events as lines: the `format_line` of each, ended by a newline, many lines at a time.

        Several times as quick as one event at a time.

        Args:
            names, start_ns, end_ns, cpus, pids: As for `events`.
        """
        self._restart()
        lines = Lines(self._tables)

        def read(found: FoundPage, records: Walk, buffer: str, cpu: int) -> Iterator[tuple[int, Chunk]]:
            while (chunk := lines.format(records, cpu)).ends:
                yield chunk.timestamps[-1], chunk

        def chunks(stream: Iterator[tuple[int, Chunk | Event]]) -> Iterator[Chunk]:
            for now, item in stream:
                yield chunk_of(format_line(item), now) if isinstance(item, Event) else item

        wanted = self._wanted(names, start_ns, end_ns, cpus, pids, None)
        return merge([chunks(stream) for _, stream in self._streams(wanted, read)])

    def _restart(self) -> None:
        self.bytes_read = 0
        self._losses = {}
        self._reached = {}
        self._file.forget_page_damage()

    def _streams(self, wanted: _Wanted, read: _Read[_T]) -> list[tuple[int, Iterator[tuple[int, _T | Event]]]]:
        """(order among equal times, what `read` finds) of each CPU."""
        select = Selection(self._ids(wanted.names), wanted.pids, wanted.start_ns, wanted.end_ns)
        return [
            (order, self._stream(buffer, cpu, select, read))
            for order, (buffer, cpu) in enumerate(
                (b, c) for b in self._file.buffers for c in sorted(b.cpus, key=lambda c: c.cpu)
            )
            if wanted.cpus is None or cpu.cpu in wanted.cpus
        ]

    def _stream(
        self, buffer: Buffer, cpu: CpuData, select: Selection, read: _Read[_T]
    ) -> Iterator[tuple[int, _T | Event]]:
        """What `read` makes of one CPU's records, and a loss where some are missing, each with its time."""
        shape, name, number = self._file.shape, buffer.name, cpu.cpu
        now = self._reached.get((name, number), 0)

        def lost(count: int | None, reason: str) -> tuple[int, Event]:
            self._count_loss(name, number, count)
            return now, _lost(count, reason, now, number, self._tables, buffer=name)

        for found in self._file.pages(buffer, cpu):
            self.bytes_read += len(found.data)
            try:
                header, records = self._walk(found, shape, select)
                if header.lost != 0:
                    now = max(now, header.timestamp + self._file.time_offset)
                    yield lost(header.lost, "overrun or dropped")
                for now, item in read(found, records, name, number):
                    yield now, item
            except TraceFormatError as error:
                self._file.note_damage(found.offset + (error.offset or 0), f"CPU {number}: {error.message}")
                yield lost(found.events_count, f"damage at {found.offset}: {error.message}")
        for count, reason in self._file.losses_after(buffer, cpu):
            yield lost(count, reason)
        self._reached[name, number] = now

    def _walk(self, found: FoundPage, shape: PageShape, select: Selection) -> tuple[_Header, Walk]:
        """
        Raises:
            TraceFormatError: The page's header is damaged, or more than that.
        """
        if found.problem:
            raise TraceFormatError(found.problem, offset=0)
        header = _read_header(found.data, shape)
        return header, walk(
            found.data,
            header.timestamp,
            header.start,
            header.end,
            offset=self._file.time_offset,
            byte_order=shape.byte_order,
            select=select,
        )

    def _count_loss(self, buffer: str, cpu: int, count: int | None) -> None:
        loss = self._losses.setdefault((buffer, cpu), Loss(buffer, cpu))
        if count is None:
            loss.uncounted += 1
        else:
            loss.count += count

    def statistics(self) -> TraceStatistics:
        """Count everything: reads the whole file, decodes no field."""
        self._restart()
        result = TraceStatistics(self.path, self._file.size, self.clock)
        totals = new_totals()
        for buffer in self._file.buffers:
            for cpu in buffer.cpus:
                result.writers.append(self._count_writer(buffer, cpu, totals))
        counts = totals[::2]
        for id in itertools.compress(range(len(counts)), counts):
            result.events[self._tables.kind(id).name] = EventCount(counts[id], totals[2 * id + 1])
        result.damage = self.damage_count
        return result

    def _count_writer(self, buffer: Buffer, cpu: CpuData, totals: array[int]) -> WriterCount:
        writer = WriterCount(buffer.name, cpu.cpu, cpu.size)
        for found in self._file.pages(buffer, cpu):
            self.bytes_read += len(found.data)
            writer.pages += 1
            try:
                header, records = self._walk(found, self._file.shape, ALL)
                if header.lost != 0:
                    self._count_loss(buffer.name, cpu.cpu, header.lost)
                count, size, first, last = tally(records, totals)
                if count:
                    writer.first_ns = first if writer.first_ns is None else writer.first_ns
                    writer.last_ns = last
                writer.count += count
                writer.bytes += size
                next(records, None)
            except TraceFormatError as error:
                self._file.note_damage(found.offset + (error.offset or 0), f"CPU {cpu.cpu}: {error.message}")
                self._count_loss(buffer.name, cpu.cpu, found.events_count)
        for lost, _ in self._file.losses_after(buffer, cpu):
            self._count_loss(buffer.name, cpu.cpu, lost)
        loss = self._losses.get((buffer.name, cpu.cpu))
        if loss is not None:
            writer.lost, writer.uncounted_losses = loss.count, loss.uncounted
        return writer

    def __repr__(self) -> str:
        return f"<Trace {self.path!r} with {len(self.cpus)} writers, clock {self.clock!r}>"

    def _repr_html_(self) -> str:
        """The first events as a table, for a notebook."""
        rows: list[str] = []
        more = False
        for event in self.events():
            if len(rows) == 20:
                more = True
                break
            cells = (format_time(event.timestamp_ns), event.cpu, f"{event.comm}-{event.pid}", event.name, event.text())
            rows.append("<tr>" + "".join(f"<td>{html.escape(escape(str(cell)))}</td>" for cell in cells) + "</tr>")
        if more:
            rows.append('<tr><td colspan="5">…</td></tr>')
        head = "".join(f"<th>{name}</th>" for name in ("time", "cpu", "task", "event", "fields"))
        return f"<table><caption>{html.escape(escape(self.path))}</caption><tr>{head}</tr>{''.join(rows)}</table>"


def _keyed(order: int, stream: Iterator[tuple[int, Event]]) -> Iterator[tuple[int, tuple[int, int], Event]]:
    """(time, place in the order of equals, event)."""
    return ((now, (order, serial), event) for serial, (now, event) in enumerate(stream))


def _matches(pattern: str, format: EventFormat) -> bool:
    if ":" in pattern:
        return fnmatch.fnmatchcase(format.full_name, pattern)
    return fnmatch.fnmatchcase(format.name, pattern) or fnmatch.fnmatchcase(format.system, pattern)


def open_trace(path: str | os.PathLike[str]) -> Trace:
    """Open a trace: ours or the kernel's (trace.dat, version 6 or 7), complete or not.

    Returns:
        A context manager over the events; see `Trace`.

    Raises:
        OSError: The file cannot be opened.
        TraceFormatError: It is not a trace, or its beginning is damaged; says the file, the place and what was
            expected there.
    """
    name = os.fspath(path)
    return Trace(UnfinishedFile(name) if is_unfinished(name) else TraceFile(name))


# --- pages of a sink ----------------------------------------------------------------------------


class Decoder:
    """Reads the pages that a sink is given.

    Args:
        definitions: The stream's: append-only, read as far as each page needs.
    """

    def __init__(self, definitions: Sequence[Definition]) -> None:
        self._definitions = definitions
        self._known = 0
        known = [parse_format(event.format, event.system) for event in _ftrace.EVENTS]
        self._tables = _Tables({format.id: format for format in known}, {}, {}, None)

    def events(self, page: Page) -> Iterator[Event]:
        """The events of a page, oldest first; a loss before it comes first. They stay good after the page is
        acknowledged.

        Raises:
            TraceFormatError: The page is damaged.
        """
        self._define(page.definitions_needed)
        data = bytes(page.data)
        timestamp, cpu = page.timestamp, page.writer
        tables = self._tables
        if page.lost_before:
            count = page.lost_before if page.lost_before > 0 else None
            yield _lost(count, "overrun, dropped or missed", timestamp, cpu, tables)
        for now, id, pid, start, length in walk(data, timestamp):
            yield Event(tables.kind(id), now, pid, cpu, data[start : start + length], tables)

    def _define(self, needed: int) -> None:
        for definition in self._definitions[self._known : needed]:
            self._tables.define(definition)
        self._known = max(self._known, needed)


# --- text ---------------------------------------------------------------------------------------


def format_line(event: Event, *, raw: bool = False) -> str:
    """An event in the layout of `trace-cmd report`, control characters escaped.

        comm-pid     [cpu]  secs.usecs: event:                fields

    Args:
        raw: Print name=value for each field, not what the event's print fmt makes of them.
    """
    if event.is_loss:
        count = event.fields["count"]
        number = f"{count} " if count is not None else ""
        where = f"{escape(event.buffer)}: " if event.buffer else ""
        return f"{where}CPU:{event.cpu} [{number}EVENTS DROPPED] {escape(event.fields['reason'])}"
    name = escape(event.name.partition(":")[2])
    fields = format_pairs(event.fields) if raw else event.text()
    return (
        f"{escape(event.comm):>16}-{event.pid:<5} [{event.cpu:03d}] {format_time(event.timestamp_ns)}: "
        f"{name + ': ':<22}{fields}"
    )
