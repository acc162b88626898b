"""The collector's side of the stream protocol: one connection of one producer. Sans-IO.

    received --> Greeted --accept--> Defined, PageReceived ... --acknowledge--> ... --> Finished --acknowledge_end
                    |
                    +--refuse--> over

One `Collector` is made for each connection. What a stream has, over its connections, is its owner's business::

    collector = Collector(now)
    for event in collector.received(sock.recv_into(collector.buffer()), now):
        match event:
            case Greeted(info, request):          # who it is, what it asks: the token is compared here
                collector.accept(Grant(credit=32), positions_that_are_stored)
            case Defined(first, definitions): ...
            case PageReceived(entry, data): ...   # store it; then collector.acknowledge({writer: event.end})
            case Finished(ledger): ...            # store it; then collector.acknowledge_end()
            case Broken(reason) | Refused(reason): ...
    collector.sent(sock.sendmsg(collector.pending()))
    collector.tick(now)                           # at `collector.deadline`, after reading what is there

The laws. **Credit bounds what is held**: a producer that sends more pages than it was granted and not acknowledged is
cut off. **Each page once, in order**: of each writer a page begins where what is stored ends, or after it; a stream's
definitions have no gap. **A page's memory is the collector's** until `release`: forgetting it costs no more than that
the memory is not used again.
"""

from __future__ import annotations

import enum
from collections import deque
from dataclasses import dataclass
from typing import Final, NamedTuple

from .._base.errors import TraceFormatError
from .._base.terminal_text import escape
from .._formats.frames import (
    HEADER_SIZE,
    LENGTH_MAX,
    PAGE_ENTRY_SIZE,
    Buffer,
    Kind,
    pack_error,
    unpack_definitions,
    unpack_end,
    unpack_error,
    unpack_page,
)
from .._page import layout as L
from .._page.definitions import Definition
from .._page.entry import PageEntry
from ..abc import Ledger, StreamInfo
from .framing import Arrived, Block, Inbox, Outbox
from .messages import (
    ERROR_MAX,
    HANDSHAKE_MAX,
    HANDSHAKE_PATIENCE,
    Broken,
    Grant,
    Position,
    Positions,
    Refused,
    Request,
    pack_acknowledgement,
    pack_grant,
    unpack_request,
)

BLOCK_PAGES: Final = (2, 16)
"""Pages that fit into a block, at least and at most; in between a quarter of the credit, so that what is received with
one call and what is held are in proportion. Half a page is copied from the end of each to the next, on average."""
JUDGING_MAX: Final = 1024
"""Bytes that may come after a hello and before its answer: heartbeats."""


@dataclass(frozen=True, slots=True)
class Limits:
    """What a stream may cost, whoever sends it."""

    writers: int = 4096
    definitions: int = 1 << 20
    """In all: a process has at most 65,536 each of events, symbols, functions and names, and the names may change."""
    definitions_size: int = 1 << 26
    """Bytes of their frames, in all, on one connection."""


class Greeted(NamedTuple):
    """A producer's hello: `accept` or `refuse` it. Nothing else comes before that."""

    info: StreamInfo
    request: Request


class Defined(NamedTuple):
    """Definitions that go on where the last ones ended."""

    first: int
    """Number of the first among all of the stream's."""
    definitions: list[Definition]


class PageReceived:
    """A page, or a part of one, that is not stored yet."""

    __slots__ = ("_block", "_inbox", "data", "entry")
    __match_args__ = ("entry", "data")

    def __init__(self, entry: PageEntry, data: memoryview, block: Block, inbox: Inbox) -> None:
        self.entry = entry
        self.data = data
        """The records; valid until `release`."""
        self._block = block
        self._inbox = inbox
        block.held += 1

    @property
    def end(self) -> Position:
        """How far its writer's stream comes with it: what to acknowledge."""
        return self.entry.sequence, self.entry.offset + self.entry.committed

    def release(self) -> None:
        """Its memory may be used for other pages. Once; also after the connection is over.

        Raises:
            BufferError: Somebody has a view of `data`.
        """
        self.data.release()
        self._block.held -= 1
        self._inbox.release(self._block)

    def __repr__(self) -> str:
        return f"<PageReceived {self.entry!r}>"


class Finished(NamedTuple):
    """The producer's closing account: no page comes after it."""

    ledger: Ledger


CollectorEvent = Greeted | Defined | PageReceived | Finished | Broken | Refused


class _State(enum.Enum):
    GREETING = "a hello"
    JUDGING = "an answer to the hello"
    OPEN = "pages"
    FINISHING = "an answer to the end"
    OVER = "nothing"


class Collector:
    """The collector's side of one connection. Not for two threads at once; nothing blocks."""

    def __init__(self, now: float, *, limits: Limits = Limits()) -> None:
        """
        Args:
            now: Seconds, by any clock that does not go back.
        """
        self.info: StreamInfo | None = None
        """None until the producer's hello."""
        self.request: Request | None = None
        self._limits = limits
        self._inbox = Inbox({Kind.HELLO: HANDSHAKE_MAX, Kind.ERROR: ERROR_MAX})
        self._outbox = Outbox(bytes(16))
        self._state = _State.GREETING
        self._grant = Grant(1)
        self._heartbeat = HANDSHAKE_PATIENCE / 2
        self._heard = now
        self._said_total = 0
        self._next_beat = now + HANDSHAKE_PATIENCE
        self._ends: dict[int, Position] = {}
        """By writer, the end of what it has."""
        self._held: dict[int, deque[Position]] = {}
        """By writer, the ends of the pages that are not acknowledged."""
        self.held_count = 0
        """Pages that are not acknowledged."""
        self._settled: dict[int, Position] = {}
        """By writer, what is to be acknowledged with the next bytes that go out."""
        self._definitions = 0
        self._definitions_size = 0

    # --- answers --------------------------------------------------------------------------------

    def accept(self, grant: Grant, positions: Positions) -> None:
        """After `Greeted`: take the stream.

        Args:
            grant: `check_bodies=False` only if the request has it too, and the way is memory.
            positions: By writer, how far the stream is stored, at the level of the request. What lies behind that will
                come (again).
        """
        assert self._state is _State.JUDGING and self.request is not None
        assert grant.check_bodies or not self.request.check_bodies, "the producer did not ask to leave out the crc32"
        self._grant = grant
        self._ends = dict(positions)
        self._definitions = grant.definitions
        self._outbox.put(Kind.HELLO, pack_grant(grant))
        self._outbox.put(Kind.ACKNOWLEDGE, pack_acknowledgement(self.request.level, positions))
        self._open()

    def refuse(self, reason: str) -> None:
        """End the connection, at any time; the reason goes to the producer. Send what is `pending`, and close."""
        if self._state is not _State.OVER:
            self._put_settled()
            self._state = _State.OVER
            self._outbox.put(Kind.ERROR, pack_error(reason))

    def acknowledge(self, positions: Positions) -> None:
        """Of each writer, all pages up to its position have reached the level that the producer asked for.

        Args:
            positions: Each the `end` of a page that was received on this connection and is not acknowledged. Others of
                the same writer that came before it are acknowledged with it.

        Raises:
            ValueError: One is none of these.
        """
        if self._state is _State.OVER:
            return
        for writer, position in positions.items():
            held = self._held.get(writer, deque())
            count = held.index(position) + 1 if position in held else 0
            if not count:
                raise ValueError(f"writer {writer}, {position}: no page that is not acknowledged ends there")
            for _ in range(count):
                held.popleft()
            self.held_count -= count
            self._settled[writer] = position

    def acknowledge_end(self) -> None:
        """After `Finished`, when all pages are acknowledged and the ledger has reached the same level."""
        if self._state is _State.OVER:
            return
        assert self._state is _State.FINISHING and not self.held_count
        self._put_settled()
        self._outbox.put(Kind.END)
        self._state = _State.OVER

    @property
    def is_over(self) -> bool:
        """Whether nothing more will come of this connection: send what is `pending`, and close it."""
        return self._state is _State.OVER

    # --- bytes ----------------------------------------------------------------------------------

    def pending(self) -> list[Buffer]:
        """The next buffers to send, for one gathering write; empty if there is nothing. All that was acknowledged since
        the last call is one frame."""
        self._put_settled()
        return self._outbox.pending()

    def _put_settled(self) -> None:
        if self._settled and self.request is not None:
            self._outbox.put(Kind.ACKNOWLEDGE, pack_acknowledgement(self.request.level, self._settled))
            self._settled.clear()

    def sent(self, count: int) -> None:
        """The transport has taken so many bytes of `pending`."""
        self._outbox.sent(count)

    def buffer(self) -> memoryview:
        """Where to receive the next bytes; at least one fits."""
        return self._inbox.buffer()

    def received(self, count: int, now: float) -> list[CollectorEvent]:
        """So many bytes came into `buffer`. Nothing happens after `Broken`, `Refused` or `refuse`."""
        if self._state is _State.OVER:
            return []
        if self._state is not _State.GREETING:
            self._heard = now
        self._inbox.fed(count)
        return self._read()

    def _read(self) -> list[CollectorEvent]:
        events: list[CollectorEvent] = []
        try:
            while (arrived := self._next_frame()) is not None:
                event = self._handle(arrived)
                if event is not None:
                    events.append(event)
            if self._inbox.unread > JUDGING_MAX and self._state is _State.JUDGING:
                raise TraceFormatError(f"{self._inbox.unread} bytes before its hello was answered")
        except TraceFormatError as error:
            events.append(self._break(f"the producer broke the protocol: {error}"))
        return events

    def _next_frame(self) -> Arrived | None:
        return None if self._state in (_State.JUDGING, _State.OVER) else self._inbox.frame()

    def tick(self, now: float) -> list[CollectorEvent]:
        """Time has passed: send a heartbeat if one is due, or find that the producer is silent. Before it, read what
        is there: whoever slept must not call the other silent."""
        if self._state is _State.OVER:
            return []
        silence = 2 * self._heartbeat
        if now >= self._heard + silence:
            what = "sent no hello" if self._state is _State.GREETING else "was silent"
            return [self._break(f"the producer {what} for {silence:g} s")]
        if now >= self._next_beat:
            self._put_settled()
            if not self._outbox and self._outbox.put_total == self._said_total and self._state is not _State.JUDGING:
                self._outbox.put(Kind.HEARTBEAT)
            self._said_total = self._outbox.put_total
            self._next_beat = now + self._heartbeat / 2
        return []

    @property
    def deadline(self) -> float:
        """When `tick` is due next."""
        return min(self._next_beat, self._heard + 2 * self._heartbeat)

    # --- what the producer says -------------------------------------------------------------------

    def _handle(self, arrived: Arrived) -> CollectorEvent | None:
        kind, body, block = arrived
        match kind:
            case Kind.PAGE:
                return self._take_page(body, block)
            case Kind.HELLO:
                return self._greet(body)
            case Kind.DEFINITIONS:
                return self._define(body)
            case Kind.END:
                self._state = _State.FINISHING
                self._inbox.limits = {Kind.HEARTBEAT: 0, Kind.ERROR: ERROR_MAX}
                return Finished(unpack_end(body))
            case Kind.ERROR:
                self._state = _State.OVER
                return Refused(escape(unpack_error(body)))
        assert kind == Kind.HEARTBEAT, kind
        return None

    def _greet(self, body: memoryview) -> Greeted:
        info, request = unpack_request(body)
        if info.writers > self._limits.writers:
            raise TraceFormatError(f"{info.writers} writers; at most {self._limits.writers} are taken")
        self.info, self.request = info, request
        self._outbox.stream_id = info.stream_id
        self._heartbeat = request.heartbeat
        self._state = _State.JUDGING
        return Greeted(info, request)

    def _open(self) -> None:
        assert self.info is not None
        self._state = _State.OPEN
        if self._grant.ended:
            self._inbox.limits = {Kind.HEARTBEAT: 0, Kind.ERROR: ERROR_MAX}
            return
        page_max = PAGE_ENTRY_SIZE + self.info.page_size - L.PAGE_HEADER_SIZE
        self._inbox.limits = {
            Kind.PAGE: page_max,
            Kind.DEFINITIONS: LENGTH_MAX,
            Kind.END: LENGTH_MAX,
            Kind.HEARTBEAT: 0,
            Kind.ERROR: ERROR_MAX,
        }
        self._inbox.may_waive = not self._grant.check_bodies
        pages = min(max(self._grant.credit // 4, BLOCK_PAGES[0]), BLOCK_PAGES[1])
        self._inbox.block_size = pages * (HEADER_SIZE + page_max)

    def _take_page(self, body: memoryview, block: Block) -> PageReceived:
        assert self.info is not None
        entry, data = unpack_page(body)
        writer, start = entry.writer, (entry.sequence, entry.offset)
        if writer >= self.info.writers:
            raise TraceFormatError(f"a page of writer {writer}; the stream has {self.info.writers}")
        if not entry.committed or entry.offset + entry.committed > self.info.page_size - L.PAGE_HEADER_SIZE:
            raise TraceFormatError(f"{entry.offset} + {entry.committed} bytes on a page of {self.info.page_size}")
        has = self._ends.get(writer)
        if has is not None and start < has:
            raise TraceFormatError(f"page {start} of writer {writer} again; it has all up to {has}")
        if entry.definitions_needed > self._definitions:
            raise TraceFormatError(f"a page needs {entry.definitions_needed} definitions; {self._definitions} came")
        if self.held_count >= self._grant.credit:
            raise TraceFormatError(f"more pages than its credit of {self._grant.credit}")
        page = PageReceived(entry, data, block, self._inbox)
        end = self._ends[writer] = page.end
        held = self._held.get(writer)
        if held is None:
            held = self._held[writer] = deque()
        held.append(end)
        self.held_count += 1
        return page

    def _define(self, body: memoryview) -> Defined:
        first, definitions = unpack_definitions(body)
        if first != self._definitions:
            raise TraceFormatError(f"definitions from {first} on where {self._definitions} was expected")
        self._definitions += len(definitions)
        self._definitions_size += len(body)
        limits = self._limits
        if self._definitions > limits.definitions or self._definitions_size > limits.definitions_size:
            raise TraceFormatError(
                f"{self._definitions} definitions, {self._definitions_size} bytes of them on this connection; at most "
                f"{limits.definitions} and {limits.definitions_size} are taken"
            )
        return Defined(first, definitions)

    def _break(self, reason: str) -> Broken:
        self.refuse(reason)
        return Broken(reason)
