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

import os
from collections.abc import Iterator, Sequence

from ._arena.file import is_arena
from ._decode.event import LOST, Event, Tables, format_line, make_lost
from ._decode.event_format import parse_format
from ._decode.report_lines import format_time
from ._page import kernel_events
from ._page.definitions import Definition
from ._page.walk import walk
from ._store.unfinished import is_unfinished
from ._traces.arena_file import ArenaTrace
from ._traces.page_sources import Damage
from ._traces.statistics import EventCount, Loss, TraceStatistics, WriterCount
from ._traces.trace import Trace
from ._traces.tracedat_file import TraceFile
from ._traces.unfinished_file import UnfinishedFile
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


def open_trace(path: str | os.PathLike[str]) -> Trace:
    """Open a trace: ours or the kernel's (trace.dat, version 6 or 7), complete or not; or an arena.

    Returns:
        A context manager over the events; see `Trace`.

    Raises:
        OSError: The file cannot be opened.
        TraceFormatError: It is not a trace, or its beginning is damaged; says the file, the place and what was
            expected there.
    """
    name = os.fspath(path)
    if is_arena(name):
        return Trace(ArenaTrace(name))
    return Trace(UnfinishedFile(name) if is_unfinished(name) else TraceFile(name))


class Decoder:
    """Reads the pages that a sink is given.

    Args:
        definitions: The stream's: append-only, read as far as each page needs.
    """

    def __init__(self, definitions: Sequence[Definition]) -> None:
        self._definitions = definitions
        self._known = 0
        known = [parse_format(event.format, event.system) for event in kernel_events.EVENTS]
        self._tables = Tables({format.id: format for format in known}, {}, {}, None)

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
            yield make_lost(count, "overrun, dropped or missed", timestamp, cpu, tables)
        for now, id, pid, start, length in walk(data, timestamp):
            yield Event(tables.kind(id), now, pid, cpu, data[start : start + length], tables)

    def _define(self, needed: int) -> None:
        for definition in self._definitions[self._known : needed]:
            self._tables.define(definition)
        self._known = max(self._known, needed)
