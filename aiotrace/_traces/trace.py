"""A trace: the events of a file, of all its writers, in the order of time.

    stream of CPU 0     e e e  --+
    stream of CPU 1     e   e  --+--heap-->  events, or lines of text, or numbers
    stream of CPU 2       e e  --+

Invariant (tests/traces/test_trace.py): events of equal time are in the order of their CPUs, and on one CPU in the order
of the file. Ids, tasks and times are compared before an event is made, fields after it: see `Query`.

This module knows nothing of pages.
"""

from __future__ import annotations

import heapq
import html
import itertools
import time
from collections.abc import Iterable, Iterator, Sequence
from operator import itemgetter
from types import TracebackType

from .._base.clock import Anchor
from .._base.errors import TraceFormatError
from .._base.terminal_text import escape
from .._decode.event import Event, Tables, format_line
from .._decode.event_format import EventFormat
from .._decode.report_lines import Chunk, Lines, chunk_of, format_time, merge
from .._page.filter import Filter
from .._page.walk import Walk, new_totals
from .cpu_streams import CpuStreams
from .page_sources import Damage, FoundPage, PageSource
from .query import Query
from .statistics import EventCount, Loss, TraceStatistics

__all__ = ["Trace"]


class Trace:
    """The events of a file in the order of time; returned by `open_trace`.

    Iterating yields all events. It may be iterated over more than once; each time the file is read again.
    """

    def __init__(self, file: PageSource) -> None:
        self._file = file
        self._tables = Tables(
            file.formats,
            file.symbols,
            file.commands,
            file.functions,
            byte_order=file.byte_order,
            long_size=file.shape.commit_size,
            c_strings=not file.by_aiotrace,
        )
        self._defined = 0
        self._define()
        self._streams = CpuStreams(file, self._tables)

    def _define(self) -> None:
        """Apply the definitions that were added since."""
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
        """Close the file. Events that were read before stay valid."""
        self._file.close()

    @property
    def path(self) -> str:
        """As it was given to `open_trace`."""
        return self._file.path

    @property
    def complete(self) -> bool:
        """False if the recording has not ended, or was killed; what was written can be read."""
        return self._file.complete

    @property
    def clock(self) -> str:
        """The clock of the timestamps, named as in /sys/kernel/tracing/trace_clock; "" if it is not known."""
        return self._file.buffers[0].clock if self._file.buffers else ""

    @property
    def anchor(self) -> Anchor | None:
        """Ties the clock to the time of day, and names the boot; None if the file does not contain it."""
        return self._file.info.anchor if self._file.info is not None else None

    @property
    def formats(self) -> list[EventFormat]:
        """The events that the trace defines, whether any were recorded or not."""
        return sorted(self._file.formats.values(), key=lambda format: (format.system, format.name))

    def find_function(self, address: int) -> tuple[str, int] | None:
        """The function that contains an address, and the offset in it; None if the trace names none."""
        return self._tables.functions.find(address)

    @property
    def cpus(self) -> list[tuple[str, int]]:
        """(buffer, cpu) of each writer."""
        return [(buffer.name, cpu.cpu) for buffer in self._file.buffers for cpu in buffer.cpus]

    @property
    def buffers(self) -> list[str]:
        """Names of the ring buffers: "" for the main one, then the instances."""
        return [buffer.name for buffer in self._file.buffers]

    @property
    def losses(self) -> list[Loss]:
        """Missing events by writer, as far as the last iteration has read."""
        return list(self._streams.losses.values())

    @property
    def damage(self) -> Sequence[Damage]:
        """Parts of the file that could not be read: of its tables from the beginning, of pages once they are reached.

        At most 1000 are kept; `damage_count` counts all.
        """
        return tuple(self._file.damage)

    @property
    def damage_count(self) -> int:
        """Parts of the file that could not be read."""
        return self._file.damage_count

    @property
    def bytes_read(self) -> int:
        """Bytes of pages that the last iteration has read so far, out of `bytes_total`."""
        return self._streams.bytes_read

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
        """The selected events in the order of time. Losses are always included.

        Args:
            names: Globs for "system:event"; a glob without a colon matches the system or the event. Empty for all.
            start_ns: Earliest time, included, in nanoseconds of the trace's clock.
            end_ns: Latest time, included.
            cpus: Only events of these writers; None for all.
            pids: Only events of these tasks; None for all.
            where: A filter over the fields, like `'status >= 500 && path ~ "/api/*"'`. Events without its fields do not
                pass.

        Returns:
            An iterator that reads the file page by page.

        Raises:
            ConfigurationError: The filter is not valid.
            OSError: While iterating: the file cannot be read.
        """
        query = Query.of(names, start_ns, end_ns, cpus, pids, where)
        self._streams.restart()
        return self._events(query)

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
        """Like `events`, for a file that grows: continues until the recording ends. Blocks while it waits.

        Only events that are read together are in the order of time: the page of a quiet writer arrives late.

        Args:
            names, start_ns, end_ns, cpus, pids, where: As for `events`.
            interval: Seconds between two reads of the file.

        Raises:
            ConfigurationError: The filter is not valid.
            OSError: While iterating: the file cannot be read.
        """
        query = Query.of(names, start_ns, end_ns, cpus, pids, where)
        self._streams.restart()
        yield from self._events(query)

        ended = False
        while not ended:
            # Asked before the refresh, which then sees all that was written until the end.
            ended = self._file.ended
            if self._file.refresh():
                self._define()
                yield from self._events(query)
            elif not ended:
                time.sleep(interval)

    def _events(self, query: Query) -> Iterator[Event]:
        tables = self._tables

        def read(found: FoundPage, records: Walk, buffer: str, cpu: int) -> Iterator[tuple[int, Event]]:
            kind_of, data = tables.kind, found.data
            for now, id, pid, start, length in records:
                yield now, Event(kind_of(id), now, pid, cpu, data[start : start + length], tables, buffer)

        records = query.record_filter(self._file.formats)
        streams = [_keyed(order, stream) for order, stream in self._streams.streams(records, query.cpus, read)]
        merged = heapq.merge(*streams) if len(streams) > 1 else (streams[0] if streams else iter(()))

        # No generator expressions: a frame more to resume costs some percent of an event.
        events = map(itemgetter(2), merged)
        accepts = query.event_filter()
        return events if accepts is None else filter(accepts, events)

    def text(
        self,
        names: Iterable[str] | str = (),
        *,
        start_ns: int | None = None,
        end_ns: int | None = None,
        cpus: Iterable[int] | None = None,
        pids: Iterable[int] | None = None,
    ) -> Iterator[str]:
        """The selected events as text: the `format_line` of each and a newline, many lines in each string.

        Several times faster than formatting one event at a time.

        Args:
            names, start_ns, end_ns, cpus, pids: As for `events`.
        """
        self._streams.restart()
        lines = Lines(self._tables)

        def read(found: FoundPage, records: Walk, buffer: str, cpu: int) -> Iterator[tuple[int, Chunk]]:
            while (chunk := lines.format(records, cpu)).ends:
                yield chunk.timestamps[-1], chunk

        def chunks(stream: Iterator[tuple[int, Chunk | Event]]) -> Iterator[Chunk]:
            for now, item in stream:
                yield chunk_of(format_line(item), now) if isinstance(item, Event) else item

        query = Query.of(names, start_ns, end_ns, cpus, pids)
        streams = self._streams.streams(query.record_filter(self._file.formats), query.cpus, read)
        return merge([chunks(stream) for _, stream in streams])

    def statistics(self) -> TraceStatistics:
        """Count all events and losses. Reads the whole file, decodes no field."""
        self._streams.restart()
        result = TraceStatistics(self.path, self._file.size, self.clock)
        totals = new_totals()
        for buffer in self._file.buffers:
            for cpu in buffer.cpus:
                result.writers.append(self._streams.count(buffer, cpu, totals))

        # `totals` has two numbers for each id: events and bytes.
        counts = totals[::2]
        for id in itertools.compress(range(len(counts)), counts):
            result.events[self._tables.kind(id).name] = EventCount(counts[id], totals[2 * id + 1])
        result.damage = self.damage_count
        return result

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
    """(time, rank among equal times, event)."""
    return ((now, (order, serial), event) for serial, (now, event) in enumerate(stream))
