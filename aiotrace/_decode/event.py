"""An event as it is read, and the tables that resolve its id, its addresses and its pid.

    payload  --kind(id).read-->  fields  --kind(id).print-->  text
                 `- Tables: formats, symbols, commands, functions

Decoding is lazy: fields are decoded on first access, and a reader is compiled for the first event of its kind. A loss
is an event, and so is a record whose id the trace does not define.

This module knows nothing of pages, files or the order of events.
"""

from __future__ import annotations

import bisect
import os
from collections.abc import Callable, Mapping
from typing import Any, Final

from .._base.errors import TraceFormatError
from .._base.terminal_text import escape, format_pairs
from .._page import layout as L
from .._page.definitions import CommandDefinition, Definition, EventDefinition, FunctionDefinition, SymbolDefinition
from .event_format import EventFormat, Reader, Value, compile_reader, parse_format
from .print_fmt import compile_print, with_byte_fields
from .printf import Names, Printer
from .report_lines import format_time

__all__ = ["LOST", "Event", "Tables", "format_line", "make_lost"]

LOST: Final = "aiotrace:lost"
"""The name of the event that takes the place of missing events. Its fields: `count` (None if unknown) and `reason`."""

UNKNOWN_COMMAND: Final = "<...>"
"""Shown for a task whose name is not known, as in trace-cmd."""


class _Kind:
    """One event id: its name and format, and its reader and printer, which are compiled on first use."""

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
    """One event, or a loss (`is_loss`).

    Two events are equal if their time, name, pid, cpu and fields are.
    """

    __slots__ = ("_fields", "_kind", "_payload", "_tables", "buffer", "cpu", "pid", "timestamp_ns")

    timestamp_ns: int
    """Nanoseconds of the trace's clock."""
    pid: int
    """The task, or the thread if tasks were not traced."""
    cpu: int
    """The writer slot; in a trace of the kernel, the CPU."""
    buffer: str
    """The ring buffer instance it was recorded in; "" for the main one."""

    def __init__(
        self, kind: _Kind, timestamp_ns: int, pid: int, cpu: int, payload: bytes, tables: Tables, buffer: str = ""
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
        """The values by name, without the common fields; decoded on first access.

        A record that is too short for its event has only the field "damaged", a message.
        """
        if self._fields is None:
            try:
                self._fields = self._kind.read(self._payload, 0, len(self._payload))
            except TraceFormatError as error:
                self._fields = {"damaged": error.message}
        return self._fields

    @property
    def format(self) -> EventFormat | None:
        """The event's format; None for a loss, and for an id that the trace does not define."""
        return self._kind.format

    @property
    def comm(self) -> str:
        """The name of the task; "<...>" if it is not known."""
        return self._tables.command(self.pid)

    @property
    def flags(self) -> int:
        """common_flags. In traces of aiotrace, 0x80 means that a string was too long and was cut."""
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


def make_lost(
    count: int | None, reason: str, timestamp: int, cpu: int, tables: Tables, pid: int = 0, buffer: str = ""
) -> Event:
    """The event that stands where `count` events are missing, None for some."""
    event = Event(_LOST_KIND, timestamp, pid, cpu, b"", tables, buffer)
    event._fields = {"count": count, "reason": reason}
    return event


class Tables:
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
        format = with_byte_fields(format, self.long_size)
        return _Kind(
            format.full_name,
            format,
            lambda: compile_reader(
                format.own_fields, byte_order=self.byte_order, symbols=self.symbols, c_strings=self.c_strings
            ),
            lambda: compile_print(format, self.functions, long_size=self.long_size, byte_order=self.byte_order),
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
    """Names of addresses: interned strings, aiotrace's own function definitions, then kallsyms."""

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


def format_line(event: Event, *, raw: bool = False) -> str:
    """An event as a line in the layout of `trace-cmd report`, without a newline; control characters are escaped.

        comm-pid     [cpu]  secs.usecs: event:                fields

    Args:
        raw: Print name=value for each field instead of using the event's print fmt.
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
