"""The contract between a recording and its sinks: pages, streams of pages, and acknowledgements.

A sink is an async callable that is given a page stream. In four lines::

    async def count(stream: aiotrace.abc.PageStream) -> None:
        async for page in stream:
            total.append(page.events_count)
            stream.acknowledge(page)

The contract:

* A sink has started when it requests its first page; `aiotrace.record()` raises an error that occurs before that.
* Reading a page does not remove it. `acknowledge` does, and states that the sink has kept its own promise: the page is
  written, fsynced, or acknowledged by the peer. A sink may hold several pages, up to its quota, and acknowledge them in
  any order.
* A page's memory is valid until the page is acknowledged; then `data` is released.
* If the sink raises, it is called again with a new stream, which offers the pages that were not acknowledged again;
  with `on_error="detach"` it is detached instead. A sink that returns before the stream has ended is detached.
* When the recording closes, the stream ends after the last page. After `drain_timeout` seconds unfinished pages are
  abandoned.
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
    """A page, or the next part of one, as one sink receives it."""

    @property
    def writer(self) -> int:
        """The writer slot: the CPU number in trace-cmd and KernelShark."""

    @property
    def sequence(self) -> int:
        """Number of the page in its writer's stream; (stream id, writer, sequence, offset) is unique."""

    @property
    def offset(self) -> int:
        """Bytes of this page's records that were delivered before as an earlier part: 0 for a whole page."""

    @property
    def complete(self) -> bool:
        """Whether the page ends with this part. Always True unless the sink called `accept_prefixes`."""

    @property
    def timestamp(self) -> int:
        """Nanoseconds of the stream's clock: the base of the first delta in `data`."""

    @property
    def data(self) -> memoryview:
        """The records, read-only; valid until the page is acknowledged."""

    @property
    def events_count(self) -> int:
        """Events in `data`."""

    @property
    def lost_before(self) -> int:
        """Events of this writer between the page before and this one that this sink does not receive; -1 for an unknown
        number."""

    @property
    def definitions_needed(self) -> int:
        """The page can be decoded with `stream.definitions[:definitions_needed]`."""

    def header(self) -> bytes:
        """The 16 bytes of a kernel page header for `data` as a page of its own, with the flags for `lost_before`."""

    def lost_count(self) -> bytes:
        """The bytes that follow `data` on such a page: `lost_before` in 8 bytes, or nothing."""


@dataclass(frozen=True, slots=True)
class StreamInfo:
    """The properties of a whole stream."""

    stream_id: bytes
    """16 bytes, new for each recording and process."""
    page_size: int
    """Bytes."""
    writers: int
    """Writer slots: `Page.writer` is below this."""
    clock: str
    """Name of the clock as in /sys/kernel/tracing/trace_clock."""
    anchor: Anchor
    """Ties the clock to the time of day."""
    pid: int
    """Of the recorded process."""
    host: str
    """Its host name."""
    command: str
    """The program's command line, for people."""


@dataclass(frozen=True, slots=True)
class WriterLedger:
    """The final count of one writer's events for one sink: received, or lost and why."""

    writer: int
    """The writer slot: `Page.writer`."""
    written: int
    """Events written into the ring."""
    dropped: int
    """Events refused: no free page, re-entry, wrong type, too long."""
    overrun: int
    """Events overwritten in the ring."""
    missed: int
    """Events not offered to this sink because it held its quota of pages."""
    lost_after: int
    """Events lost after the last page that this sink received, so that no later page can report them."""


@dataclass(frozen=True, slots=True)
class Ledger:
    """The final account of a stream: every event was received, or is counted as lost."""

    writers: tuple[WriterLedger, ...]
    """One for each writer."""

    @property
    def written(self) -> int:
        """Events written into the ring."""
        return sum(writer.written for writer in self.writers)

    @property
    def lost(self) -> int:
        """Events that this sink did not receive, whatever the cause."""
        return sum(writer.dropped + writer.overrun + writer.missed for writer in self.writers)


class PageStream(Protocol):
    """The pages that one sink is offered, oldest first for each writer."""

    @property
    def info(self) -> StreamInfo:
        """The properties of the stream."""

    @property
    def definitions(self) -> Sequence[Definition]:
        """All definitions made so far. It is only appended to, so an index into it stays valid."""

    @property
    def ledger(self) -> Ledger:
        """The counts for this sink so far; final once the stream has ended."""

    def accept_prefixes(self) -> None:
        """Request the committed part of pages that are still being filled, every `flush_interval` seconds.

        For sinks that show or send events soon. Without it a sink receives whole pages only.
        """

    def __aiter__(self) -> PageStream: ...

    async def __anext__(self) -> Page:
        """The next page. Waits for one; if it is cancelled, no page was taken from the stream.

        Raises:
            StopAsyncIteration: The stream has ended.
        """

    async def next_batch(self, pages: int) -> list[Page]:
        """The next pages: at least one, at most `pages`. Waits only for the first.

        A batch that is available is returned without a step of the event loop, except that other tasks run first
        about every millisecond. If it is cancelled, no page was taken from the stream.

        Args:
            pages: The largest number of pages to return.

        Returns:
            The pages, oldest first for each writer; an empty list when the stream has ended.
        """

    def acknowledge(self, page: Page) -> None:
        """State that the sink has kept its promise for this page; its memory may be reused.

        Raises:
            AcknowledgeError: This stream did not return the page, or it was acknowledged before.
        """

    def acknowledge_all(self, pages: Sequence[Page]) -> None:
        """Acknowledge several pages, one after the other; cheaper than one call for each.

        Raises:
            AcknowledgeError: As `acknowledge`, for the first such page; the pages before it are acknowledged.
        """


Sink = Callable[[PageStream], Awaitable[None]]
"""An async callable that is given a `PageStream`: see the contract in `aiotrace.abc`."""
