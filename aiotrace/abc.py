"""What a sink sees: pages, a stream of them, and the word that it gives back.

A sink is an async callable over a page stream. In four lines::

    async def count(stream: aiotrace.abc.PageStream) -> None:
        async for page in stream:
            total.append(page.events_count)
            stream.acknowledge(page)

The contract:

* A sink starts with its first request for a page; an error before that is raised by `aiotrace.record()`.
* Looking at a page does not remove it: `acknowledge` does, and says that the sink's own promise is kept (written,
  fsynced, acknowledged by the peer). A sink may look at several pages, up to its quota, and acknowledge in any order.
* A page's memory is valid until it is acknowledged; then `data` is released.
* If the sink raises, it is called again (or detached, by its `on_error`) with a new stream, which offers the pages
  that it has not acknowledged again. If it returns before the stream ended, it is detached.
* At close the stream ends after the last page; what the sink has not finished after `drain_timeout` is abandoned.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from ._base.clock import Anchor
from ._page.definitions import CommandDefinition, Definition, EventDefinition, FunctionDefinition, SymbolDefinition

__all__ = [
    "Anchor",
    "CommandDefinition",
    "Definition",
    "EventDefinition",
    "FunctionDefinition",
    "Ledger",
    "Page",
    "PageStream",
    "Sink",
    "StreamInfo",
    "SymbolDefinition",
    "WriterLedger",
]


class Page(Protocol):
    """A page, or the next part of one, as it is delivered to one sink."""

    @property
    def writer(self) -> int:
        """The writer slot: the CPU number in trace-cmd and KernelShark."""

    @property
    def sequence(self) -> int:
        """Number of the page in its writer's stream; (stream id, writer, sequence, offset) is never used twice."""

    @property
    def offset(self) -> int:
        """Bytes of this page's records that were delivered before, as a prefix of it: 0 for a whole page."""

    @property
    def complete(self) -> bool:
        """Whether the page ends with this part. Always true unless the sink asked for prefixes."""

    @property
    def timestamp(self) -> int:
        """Nanoseconds: the base of the first delta in `data`."""

    @property
    def data(self) -> memoryview:
        """The records, `committed` bytes of them, read-only; valid until the page is acknowledged."""

    @property
    def events_count(self) -> int:
        """Events in `data`."""

    @property
    def lost_before(self) -> int:
        """Events of this writer that this sink does not get and that would have come before this page."""

    @property
    def definitions_needed(self) -> int:
        """The page decodes with `stream.definitions[:definitions_needed]`."""

    def header(self) -> bytes:
        """The kernel's 16 bytes for `data` as a page of its own, with the flags for `lost_before`."""

    def lost_count(self) -> bytes:
        """What follows `data` on such a page: `lost_before` as 8 bytes, or nothing."""


@dataclass(frozen=True, slots=True)
class StreamInfo:
    """What is true of a whole stream."""

    stream_id: bytes
    """16 bytes, new for each recording and process."""
    page_size: int
    """Bytes."""
    writers: int
    """Writer slots: `Page.writer` is below this."""
    clock: str
    """Name of the clock as in /sys/kernel/tracing/trace_clock."""
    anchor: Anchor
    pid: int
    host: str
    command: str
    """The program's command line, for people."""


@dataclass(frozen=True, slots=True)
class WriterLedger:
    """What became of one writer's events, for one sink, at the end."""

    writer: int
    written: int
    dropped: int
    """Refused: no page free, re-entry, wrong type, too long."""
    overrun: int
    """Overwritten in the ring."""
    missed: int
    """Not offered to this sink because it was full."""
    lost_after: int
    """Events lost after the last page that this sink was given: no later page can tell of them."""


@dataclass(frozen=True, slots=True)
class Ledger:
    """The closing account of a stream."""

    writers: tuple[WriterLedger, ...]

    @property
    def written(self) -> int:
        return sum(writer.written for writer in self.writers)

    @property
    def lost(self) -> int:
        """Events that this sink was not given, whatever the cause."""
        return sum(writer.dropped + writer.overrun + writer.missed for writer in self.writers)


class PageStream(Protocol):
    """The pages that one sink is offered, oldest first for each writer."""

    @property
    def info(self) -> StreamInfo: ...

    @property
    def definitions(self) -> Sequence[Definition]:
        """All definitions made so far: append-only, so an index into it stays good."""

    @property
    def ledger(self) -> Ledger:
        """The account of this sink so far; final once the stream has ended."""

    def accept_prefixes(self) -> None:
        """Ask for the committed part of pages that still fill, each `flush_interval`: for sinks that show or
        send events soon. Without it a sink gets whole pages only."""

    def __aiter__(self) -> PageStream: ...

    async def __anext__(self) -> Page:
        """The next page that this stream has not looked at yet. Cancelled: no page was looked at."""

    async def next_batch(self, pages: int) -> list[Page]:
        """The next pages, at least one and at most `pages`, as many as are there; waits only for the first.

        A batch that is there costs no step of the loop, but each millisecond others run first.
        Returns an empty list when the stream has ended. Cancelled: no page was looked at.
        """

    def acknowledge(self, page: Page) -> None:
        """The sink's promise for this page is kept; its memory may be used again.

        Raises:
            AcknowledgeError: The page is not one that this stream looked at and still holds.
        """

    def acknowledge_all(self, pages: Sequence[Page]) -> None:
        """The same for several, one after the other; it costs less.

        Raises:
            AcknowledgeError: As `acknowledge`, for the first of which that is so; those before it are acknowledged.
        """


Sink = Callable[[PageStream], Awaitable[None]]
"""An async callable: see the module's docstring."""
