"""The producer's side of the stream protocol: it keeps pages until the collector has them. Sans-IO.

                  add                  connect: all that is kept, again             acknowledged by the collector
    page ------------------> kept ------------------------------------> sent ---------------------------> event
                              ^                                           |
                              +-------------- disconnect -----------------+

One `Producer` lasts as long as its stream, over any number of connections::

    producer.connect(now)
    while connected:
        producer.sent(sock.sendmsg(producer.pending()))
        for event in producer.received(sock.recv_into(producer.buffer()), now): ...
        for event in producer.tick(now): ...                    # at `producer.deadline`, after reading what is there

The laws. **A page leaves `kept` by the collector's word alone**: for a page that went out whole, at the level that was
asked for, once. A word that says more ends the connection, and none of what stands in the same frame counts.
**Definitions go before the page that needs them**, on each connection from where the collector says that it is.

It knows no socket, no clock and no stream: the pages are whatever has the attributes of `aiotrace.abc.Page`.
"""

from __future__ import annotations

import enum
from collections import deque
from collections.abc import Sequence
from operator import itemgetter
from typing import Final, NamedTuple

from .._base.errors import TraceFormatError
from .._base.terminal_text import escape
from .._formats.frames import Buffer, Kind, pack_definitions, pack_end, pack_entry, pack_error, unpack_error
from .._page.definitions import Definition
from ..abc import Ledger, Page, StreamInfo
from .framing import Arrived, Inbox, Outbox
from .messages import (
    ERROR_MAX,
    HANDSHAKE_MAX,
    Broken,
    Grant,
    Position,
    Positions,
    Refused,
    Request,
    acknowledgement_size,
    pack_request,
    unpack_acknowledgement,
    unpack_grant,
)


class Granted(NamedTuple):
    """The collector takes the stream; pages go out from now on."""

    grant: Grant


class Acknowledged(NamedTuple):
    """The collector has these pages: they are not kept any more, and their memory may be used again."""

    pages: list[Page]


class Ended(NamedTuple):
    """The collector has all pages and the ledger: there is nothing left to do."""


_NOWHERE: Final[Position] = (-1, 0)
"""Before the first page."""
ProducerEvent = Granted | Acknowledged | Ended | Broken | Refused


class _State(enum.Enum):
    APART = "no connection"
    GREETING = "its hello"
    RESUMING = "what it has of the stream"
    OPEN = "acknowledgements"
    OVER = "nothing"


_Sent = tuple[Position, int, Page]
"""A page that this connection was given: its end, the bytes that are sent when it is out whole, and itself."""


class Producer:
    """The producer's side of one stream. Not for two threads at once; nothing blocks."""

    def __init__(self, info: StreamInfo, definitions: Sequence[Definition], request: Request) -> None:
        """
        Args:
            definitions: All of the stream's, append-only; it may grow while this is used.

        Raises:
            ValueError: The request's token is too long.
        """
        self.info = info
        self.request = request
        self._definitions = definitions
        self._hello = pack_request(info, request)
        self._unsent: deque[Page] = deque()
        """What is kept and was not put out on this connection: nothing, as long as there is credit."""
        self._sent: dict[int, deque[_Sent]] = {}
        """By writer, what is kept and was put out on this connection."""
        self._in_flight = 0
        """How many those are."""
        self._reached: dict[int, Position] = {}
        """By writer, the end of what ever went out whole, on any connection: nobody has more."""
        self._definitions_reached = 0
        """Definitions that were ever put out."""
        self._end_reached = False
        """Whether the closing account ever went out whole."""
        self._ledger: Ledger | None = None
        self._state = _State.APART
        self._begin(0.0)

    @property
    def kept_count(self) -> int:
        """Pages that are kept."""
        return len(self._unsent) + self._in_flight

    @property
    def is_open(self) -> bool:
        """Whether the collector has granted the stream on this connection, and nothing has ended it since."""
        return self._state is _State.OPEN

    # --- connections ----------------------------------------------------------------------------

    def connect(self, now: float) -> None:
        """A connection is there: begin with a hello. What is kept will be sent on it, first and in order.

        Args:
            now: Seconds, by any clock that does not go back.
        """
        self.disconnect()
        self._begin(now)
        self._state = _State.GREETING
        self._outbox.put(Kind.HELLO, self._hello)

    def disconnect(self) -> None:
        """The connection is gone, or about to be. No view of a page is left in `pending`."""
        self._note_reached()
        self._outbox.clear()
        self._take_back()
        self._state = _State.APART

    def _begin(self, now: float) -> None:
        limits: dict[int, int] = {Kind.HELLO: HANDSHAKE_MAX, Kind.ERROR: ERROR_MAX}
        self._inbox = Inbox(limits, self.info.stream_id)
        self._outbox = Outbox(self.info.stream_id)
        self._grant = Grant(0)
        self._has: dict[int, Position] = {}
        """By writer, how far the collector was when it granted this connection, until a page lies behind that."""
        self._definitions_sent = 0
        self._end_out_at = 0
        """As in `_Sent`, of the closing account; 0: it was not put out."""
        self._heard = now
        self._said_total = 0
        self._next_beat = now + self.request.heartbeat / 2

    def _note_reached(self) -> None:
        for writer, sent in self._sent.items():
            for end, out_at, _ in sent:
                if not self._is_out(out_at):
                    break
                self._reached[writer] = max(end, self._reached.get(writer, end))
        self._end_reached |= self._is_out(self._end_out_at)

    def _take_back(self) -> None:
        """What was put out is to be put out again, in the same order."""
        sent = sorted((each for queue in self._sent.values() for each in queue), key=itemgetter(1))
        self._unsent.extendleft(page for _, _, page in reversed(sent))
        self._sent.clear()
        self._in_flight = 0

    def _is_out(self, out_at: int) -> bool:
        """Whether the transport has taken all up to there."""
        return 0 < out_at <= self._outbox.sent_total

    # --- pages ----------------------------------------------------------------------------------

    def add(self, page: Page) -> bool:
        """Keep a page, and send it when the collector has room. Pages of a writer come in the order of its stream.

        Returns:
            True: The collector said on this connection that it has it already. It is not kept: acknowledge it.
        """
        if self._has and self._is_there(page):
            return True
        if self._state is _State.OPEN and self._in_flight < self._grant.credit:
            self._put(page)
        else:
            self._unsent.append(page)
        return False

    def _is_there(self, page: Page) -> bool:
        has = self._has.get(page.writer)
        if has is None:
            return False
        if (page.sequence, page.offset + len(page.data)) <= has:
            return True
        del self._has[page.writer]  # and so it is for all that follow
        return False

    def end(self, ledger: Ledger) -> bool:
        """No page will be added: send the closing account after the last one.

        Returns:
            True: The collector said on this connection that it has the end already; no `Ended` will come.
        """
        self._ledger = ledger
        self._fill()
        return self.is_open and self._grant.ended and not self.kept_count

    def forget(self) -> None:
        """Keep nothing any more: whoever gave the pages takes them back, and will add them again. Disconnects."""
        self.disconnect()
        self._unsent.clear()
        self._ledger = None
        self._begin(0.0)

    def _fill(self) -> None:
        """Put out what the collector has room for."""
        if self._state is not _State.OPEN:
            return
        while self._unsent and self._in_flight < self._grant.credit:
            self._put(self._unsent.popleft())
        if self._ledger is not None and not (self._unsent or self._end_out_at or self._grant.ended):
            self._define(len(self._definitions))
            self._outbox.put(Kind.END, pack_end(self._ledger))
            self._end_out_at = self._outbox.put_total

    def _put(self, page: Page) -> None:
        needed = page.definitions_needed
        if needed > self._definitions_sent:
            self._define(needed)
        writer, sequence, offset, data = page.writer, page.sequence, page.offset, page.data
        end = offset + len(data)
        entry = pack_entry(
            writer, page.complete, sequence, page.timestamp, page.lost_before,
            offset, page.events_count, needed, len(data),
        )  # fmt: skip
        out_at = self._outbox.put_page(entry, data, check_body=self._grant.check_bodies)
        sent = self._sent.get(writer)
        if sent is None:
            sent = self._sent[writer] = deque()
        sent.append(((sequence, end), out_at, page))
        self._in_flight += 1

    def _define(self, count: int) -> None:
        first = self._definitions_sent
        if count <= first:
            return
        for body in pack_definitions(first, self._definitions[first:count]):
            self._outbox.put(Kind.DEFINITIONS, body)
        self._definitions_sent = count
        self._definitions_reached = max(self._definitions_reached, count)

    # --- bytes ----------------------------------------------------------------------------------

    def pending(self) -> list[Buffer]:
        """The next buffers to send, for one gathering write; empty if there is nothing."""
        return self._outbox.pending()

    @property
    def is_sending(self) -> bool:
        """Whether there is something `pending`."""
        return bool(self._outbox)

    def sent(self, count: int) -> None:
        """The transport has taken so many bytes of `pending`."""
        self._outbox.sent(count)

    def buffer(self) -> memoryview:
        """Where to receive the next bytes; at least one fits."""
        return self._inbox.buffer()

    def received(self, count: int, now: float) -> list[ProducerEvent]:
        """So many bytes came into `buffer`. Nothing happens after `Broken` or `Refused`."""
        if self._state in (_State.APART, _State.OVER):
            return []
        self._heard = now
        self._inbox.fed(count)
        events: list[ProducerEvent] = []
        try:
            while (arrived := self._next_frame()) is not None:
                events += self._handle(arrived)
        except TraceFormatError as error:
            events.append(self._break(f"the collector broke the protocol: {error}"))
        return events

    def _next_frame(self) -> Arrived | None:
        return None if self._state is _State.OVER else self._inbox.frame()

    def tick(self, now: float) -> list[ProducerEvent]:
        """Time has passed: send a heartbeat if one is due, or find that the collector is silent. Before it, read what
        is there: whoever slept must not call the other silent."""
        if self._state in (_State.APART, _State.OVER):
            return []
        silence = 2 * self.request.heartbeat
        if now >= self._heard + silence:
            return [self._break(f"the collector was silent for {silence:g} s")]
        if now >= self._next_beat:
            if not self._outbox and self._outbox.put_total == self._said_total:
                self._outbox.put(Kind.HEARTBEAT)
            self._said_total = self._outbox.put_total
            self._next_beat = now + self.request.heartbeat / 2
        return []

    @property
    def deadline(self) -> float:
        """When `tick` is due next."""
        return min(self._next_beat, self._heard + 2 * self.request.heartbeat)

    # --- what the collector says ------------------------------------------------------------------

    def _handle(self, arrived: Arrived) -> list[ProducerEvent]:
        kind, body, _ = arrived
        match kind:
            case Kind.ACKNOWLEDGE:
                return self._hear(*unpack_acknowledgement(body))
            case Kind.HELLO:
                self._greet(unpack_grant(body))
            case Kind.END:
                if not self._is_out(self._end_out_at):
                    raise TraceFormatError("it has the end of the stream, which was not sent")
                return self._close()
            case Kind.ERROR:
                self._state = _State.OVER
                return [Refused(escape(unpack_error(body)))]
            case _:
                assert kind == Kind.HEARTBEAT, kind
        return []

    def _greet(self, grant: Grant) -> None:
        if not grant.check_bodies and self.request.check_bodies:
            raise TraceFormatError("it waives the crc32 of bodies, which was not asked for")
        if grant.definitions > self._definitions_reached:
            raise TraceFormatError(f"it has {grant.definitions} definitions; {self._definitions_reached} were sent")
        if grant.ended and not self._end_reached:
            raise TraceFormatError("it has the end of the stream, which was not sent")
        self._grant = grant
        self._definitions_sent = grant.definitions
        self._inbox.limits = {Kind.ACKNOWLEDGE: acknowledgement_size(self.info.writers), Kind.ERROR: ERROR_MAX}
        self._state = _State.RESUMING

    def _hear(self, level: int, positions: Positions) -> list[ProducerEvent]:
        if level != self.request.level:
            raise TraceFormatError(f"an acknowledgement of level {level}; {int(self.request.level)} was asked for")
        events: list[ProducerEvent] = []
        if self._state is _State.RESUMING:
            pages = self._resume(positions)
            events.append(Granted(self._grant))
        else:
            pages = self._settle(positions)
        if pages:
            events.append(Acknowledged(pages))
        if self._grant.ended and self._ledger is not None:
            return [*events, *self._close()]
        self._fill()
        return events

    def _resume(self, positions: Positions) -> list[Page]:
        """What it has of the stream: those that are kept and lie before these positions have arrived."""
        for writer, position in positions.items():
            if position > self._reached.get(writer, _NOWHERE):
                raise TraceFormatError(f"it has {_place(writer, position)}, which was not sent")
        arrived, left = [], deque[Page]()
        for page in self._unsent:
            position = positions.get(page.writer, _NOWHERE)
            if (page.sequence, page.offset + len(page.data)) <= position:
                arrived.append(page)
            elif (page.sequence, page.offset) < position:
                raise TraceFormatError(f"it has {_place(page.writer, position)}, where no part ends")
            else:
                left.append(page)
        self._unsent = left
        self._has = dict(positions)
        self._state = _State.OPEN
        self._inbox.limits = {**self._inbox.limits, Kind.HEARTBEAT: 0, Kind.END: 0}
        return arrived

    def _settle(self, positions: Positions) -> list[Page]:
        """Pages of this connection that have reached the level."""
        counts = {writer: self._count_settled(writer, position) for writer, position in positions.items()}
        pages: list[Page] = []
        for writer, count in counts.items():
            take = self._sent[writer].popleft
            pages += [take()[2] for _ in range(count)]
            self._in_flight -= count
            self._reached[writer] = positions[writer]
        return pages

    def _count_settled(self, writer: int, position: Position) -> int:
        """How many pages a position settles.

        Raises:
            TraceFormatError: It is not the end of a page that went out whole and is not acknowledged yet.
        """
        for count, (end, out_at, _) in enumerate(self._sent.get(writer, ()), 1):
            if end >= position:
                if end == position and self._is_out(out_at):
                    return count
                break
        raise TraceFormatError(
            f"an acknowledgement of {_place(writer, position)}, where no page ends that was sent and not acknowledged"
        )

    def _close(self) -> list[ProducerEvent]:
        """The collector has the end."""
        if self.kept_count:
            raise TraceFormatError(f"it has the end of the stream; {self.kept_count} pages are not acknowledged")
        self._state = _State.OVER
        return [Ended()]

    def _break(self, reason: str) -> Broken:
        if self._outbox:
            self._outbox.clear()  # in the middle of a frame nothing can be said
        else:
            self._outbox.put(Kind.ERROR, pack_error(reason))
        self._state = _State.OVER
        return Broken(reason)


def _place(writer: int, position: Position) -> str:
    sequence, end = position
    return f"writer {writer} up to page {sequence}, byte {end}"
