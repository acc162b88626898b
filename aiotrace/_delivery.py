"""Delivery: which parts of which pages a sink holds, and its account. Sans-IO.

          offer              look               acknowledge
    page -------> [queue] ---------> [looked at] ----------> settled: holder gone, page goes home with its last
                     ^                    |
                     +---- rewind --------+   the sink failed: offered again, in order

Laws:
* Hand-over is one synchronous statement; a page in a queue or looked at has its holder counted in its descriptor.
* Per sink, since it was attached: `offered = delivered + missed + abandoned + in flight`, in events.
* Losses are gaps. Every event that a writer was asked to write has a number; a sink remembers the number that it
  expects next of each writer, so `lost_before` is a subtraction, whatever the cause was.
* The parts of one page settle in order, so what a sink has delivered of a page is always a prefix of it: a part
  acknowledged early counts when the part before it does.

This module does not know how a sink waits (`_stream`), nor when pages are offered (`_reader`).
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from typing import Literal

from . import _layout as L
from ._arena import Arena

OnFull = Literal["wait", "skip"]
OnError = Literal["retry", "detach"]


@dataclass(slots=True, eq=False)
class Part:
    """A page, or a stretch of its records, as one sink holds it. Whole pages are the case of offset 0 to the end."""

    page: int
    writer: int
    sequence: int
    offset: int
    """Bytes of records before this part."""
    end: int
    """Bytes of records up to its end."""
    complete: bool
    """Whether the page is sealed and ends here."""
    timestamp: int
    """Nanoseconds: the base of its first delta."""
    events: int
    page_events: int
    """Events of the page up to the end of this part."""
    lost_before: int
    definitions: int
    next_event: int
    """Number of the event that follows it."""
    acknowledged: bool = False


@dataclass(slots=True)
class Position:
    """How far one sink has come with one writer. A writer that began after the sink is expected from event 0."""

    next_event: int
    """Number of the event that it expects next."""
    sequence: int = -1
    """The page of which it has had a part."""
    offset: int = 0
    events: int = 0
    timestamp: int = 0


@dataclass(slots=True)
class Mark:
    """How far a page has come at one moment: what a part may reach to."""

    page: int
    committed: int
    events: int
    last_time: int
    definitions: int
    complete: bool


class Delivery:
    """One sink's queue and account."""

    def __init__(self, arena: Arena, quota: int, on_full: OnFull, name: str = "") -> None:
        self._arena = arena
        self.name = name
        self.quota = quota
        self.on_full = on_full
        self.prefixes = False
        """Whether the sink takes parts of pages that still fill."""
        self.closed = False
        """No more pages are offered; what is held is still to be settled."""
        self._queue: deque[Part] = deque()
        self._looked: dict[Part, None] = {}
        self._by_page: dict[int, deque[Part]] = {}
        self.positions: dict[int, Position] = {}
        self.offered = 0
        self.delivered = 0
        self.missed = 0
        self.abandoned = 0
        self.missed_by_writer: dict[int, int] = {}
        self.pages_offered = 0
        self.pages_acknowledged = 0

    @property
    def held(self) -> int:
        """Parts that it holds."""
        return len(self._queue) + len(self._looked)

    @property
    def waiting(self) -> int:
        """Parts that it has not looked at."""
        return len(self._queue)

    @property
    def has_room(self) -> bool:
        return len(self._queue) + len(self._looked) < self.quota

    @property
    def events_in_flight(self) -> int:
        return sum(part.events for parts in self._by_page.values() for part in parts)

    def next_event(self, writer: int) -> int:
        """Number of the event of this writer that the sink expects next."""
        position = self.positions.get(writer)
        return position.next_event if position is not None else 0

    def holds(self, page: int) -> bool:
        return page in self._by_page

    def next_part(self, mark: Mark, words: tuple[int, ...]) -> Part | None:
        """What this sink has not had of a page yet, of which these are the descriptor's words; None if it has had all
        of it."""
        page = mark.page
        _, writer, sequence, first = words[: L.FIRST_EVENT + 1]
        position = self.positions.get(writer)
        if position is not None and position.sequence == sequence:
            offset, events, timestamp, lost = position.offset, position.events, position.timestamp, 0
        else:
            offset, events, timestamp = 0, 0, self._arena.timestamp(page)
            lost = first - (position.next_event if position is not None else 0)
        assert lost >= 0, f"writer {writer}: page {sequence} out of order"
        if mark.events == events:
            return None
        return Part(
            page, writer, sequence, offset, mark.committed, mark.complete, timestamp,
            mark.events - events, mark.events, lost, mark.definitions, first + mark.events,
        )  # fmt: skip

    def offer(self, part: Part, mark: Mark) -> None:
        """Put a part into the queue; its page has one holder more."""
        self.offered += part.events
        self.positions[part.writer] = Position(
            part.next_event, part.sequence, part.end, part.page_events, mark.last_time
        )
        self._queue.append(part)
        parts = self._by_page.get(part.page)
        if parts is None:
            parts = self._by_page[part.page] = deque()
        parts.append(part)
        self._arena.descriptors[part.page * L.DESCRIPTOR_WORDS + L.HOLDERS] += 1
        self.pages_offered += 1

    def miss(self, part: Part) -> None:
        """The sink is full and said "skip": the part is counted, and told with the next page as a gap."""
        self.offered += part.events
        self.missed += part.events
        self.missed_by_writer[part.writer] = self.missed_by_writer.get(part.writer, 0) + part.events

    def look(self, count: int) -> list[Part]:
        """The next parts, at most `count`; they stay held."""
        parts = [self._queue.popleft() for _ in range(min(count, len(self._queue)))]
        self._looked.update(dict.fromkeys(parts))
        return parts

    def acknowledge(self, part: Part) -> list[Part]:
        """Returns the parts that are settled by this, in order (an earlier part of the page comes first)."""
        del self._looked[part]
        part.acknowledged = True
        self.pages_acknowledged += 1
        settled = []
        parts = self._by_page[part.page]
        while parts and parts[0].acknowledged:
            self.delivered += parts[0].events
            settled.append(parts.popleft())
        if not parts:
            del self._by_page[part.page]
        return settled

    def rewind(self) -> None:
        """The sink failed: what it looked at and did not acknowledge is offered again, first and in order."""
        self._queue.extendleft(reversed(self._looked))
        self._looked.clear()

    def abandon(self) -> list[Part]:
        """The sink gave up all that it holds. Returns the parts, whose holders go now."""
        settled = [part for parts in self._by_page.values() for part in parts]
        self.abandoned += sum(part.events for part in settled)
        self._looked.clear()
        self._queue.clear()
        self._by_page.clear()
        self.closed = True
        return settled
