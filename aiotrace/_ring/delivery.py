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

What is as usual is done in C for many pages at once (`_csrc/ring/delivery.c`); what it all means is said here.

This module does not know how a sink waits (`_stream`), nor when pages are offered (`_reader`).
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from typing import Final, Literal, NamedTuple

from .._base.backend import c_module
from .._page import layout as L
from .._page.entry import PageEntry
from .arena import Arena

OnFull = Literal["wait", "skip"]
OnError = Literal["retry", "detach"]


_new: Final = tuple.__new__
_c_offer_sealed: Final = getattr(c_module, "offer_sealed", None)
_c_settle: Final = getattr(c_module, "settle", None)


class CommittedPrefix(NamedTuple):
    """How far a page that still fills has come at one moment: what its descriptor would say if it were sealed."""

    page: int
    events: int
    committed: int
    last_time: int
    definitions: int


class Part(NamedTuple):
    """A page, or a stretch of its records, as one sink holds it. Whole pages are the case of offset 0 to the end.

    It begins with the fields of a `PageEntry`, in their order: what is told of it.
    """

    writer: int
    sequence: int
    offset: int
    """Bytes of records before this part."""
    complete: bool
    """Whether the page is sealed and ends here."""
    events: int
    lost_before: int
    definitions: int
    timestamp: int
    """Nanoseconds: the base of its first delta."""
    committed: int
    """Bytes of records."""
    page: int
    page_events: int
    """Events of the page up to the end of this part."""
    number: int
    """Among the parts that the sink was offered."""

    @property
    def end(self) -> int:
        """Bytes of records up to its end."""
        return self.offset + self.committed

    @property
    def entry(self) -> PageEntry:
        """What frames say of it: a sink's thread asks for all of it at once."""
        return _new(PageEntry, self[: len(PageEntry._fields)])


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


# C reads a Part by index and a Position by name.
assert c_module is None or (Part._fields, Position.__slots__) == (c_module.PART_FIELDS, c_module.POSITION_FIELDS)


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
        self._looked: dict[int, Part] = {}
        self._by_page: dict[int, list[Part]] = {}
        self._early: set[int] = set()
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
        return self.held < self.quota

    @property
    def events_in_flight(self) -> int:
        return sum(part.events for parts in self._by_page.values() for part in parts)

    def next_event(self, writer: int) -> int:
        """Number of the event of this writer that the sink expects next."""
        position = self.positions.get(writer)
        return position.next_event if position is not None else 0

    def holds(self, page: int) -> bool:
        return page in self._by_page

    def offer(self, page: int, words: tuple[int, ...], *, complete: bool = True) -> None:
        """Put what this sink has not had of a page into the queue; the page has one holder more then.

        If the sink is full (it said "skip") that is counted instead, and told with the next page as a gap.

        Args:
            words: The page's descriptor. EVENTS to DEFINITIONS say how far it has come, also if it still fills.
            complete: It is sealed.
        """
        _, writer, sequence, first, events, committed, last_time, definitions = words[: L.DEFINITIONS + 1]
        position = self.positions.get(writer)
        if position is None:
            position = self.positions[writer] = Position(0)
        if position.sequence == sequence:
            offset, before, timestamp, lost = position.offset, position.events, position.timestamp, 0
        else:
            offset, before, timestamp = 0, 0, self._arena.timestamp(page)
            lost = first - position.next_event
        assert lost >= 0, f"writer {writer}: page {sequence} out of order"
        count = events - before
        if not count:
            return
        self.offered += count
        if not self.has_room:
            self.missed += count
            self.missed_by_writer[writer] = self.missed_by_writer.get(writer, 0) + count
            return
        part = _new(
            Part,
            (
                writer, sequence, offset, complete, count, lost, definitions, timestamp, committed - offset,
                page, events, self.pages_offered,
            ),
        )  # fmt: skip
        position.next_event = first + events
        position.sequence, position.offset, position.events, position.timestamp = sequence, committed, events, last_time
        self._queue.append(part)
        if page in self._by_page:
            self._by_page[page].append(part)
        else:
            self._by_page[page] = [part]
        self._arena.descriptors[page * L.DESCRIPTOR_WORDS + L.HOLDERS] += 1
        self.pages_offered += 1

    def offer_sealed(self, pages: list[int]) -> None:
        """Offer pages that are sealed, in order: in C those that it has had nothing of and has room for."""
        done = 0
        while done < len(pages):
            done += self._offer_whole(pages, done)
            if done < len(pages):
                self.offer(pages[done], self._arena.get_all(pages[done]))
                done += 1

    def _offer_whole(self, pages: list[int], start: int) -> int:
        arena = self._arena
        if _c_offer_sealed is None or arena.memory is None:
            return 0
        parts, events = _c_offer_sealed(
            arena.descriptors, arena.memory, arena.first_page, arena.page_size, pages, start,
            self.positions, self._by_page, self.pages_offered, min(self.quota - self.held, len(pages)), Part,
        )  # fmt: skip
        self._queue.extend(parts)
        self.offered += events
        self.pages_offered += len(parts)
        return len(parts)

    def look(self, count: int) -> list[Part]:
        """The next parts, at most `count`; they stay held."""
        parts = [self._queue.popleft() for _ in range(min(count, len(self._queue)))]
        self._looked.update([(part.number, part) for part in parts])
        return parts

    def acknowledge(self, part: Part) -> list[Part]:
        """Returns the parts that are settled by this, in order (an earlier part of the page comes first)."""
        del self._looked[part.number]
        self.pages_acknowledged += 1
        self._early.add(part.number)
        of_page = self._by_page[part.page]
        settled: list[Part] = []
        while of_page and of_page[0].number in self._early:
            self._early.remove(of_page[0].number)
            self.delivered += of_page[0].events
            settled.append(of_page.pop(0))
        if not of_page:
            del self._by_page[part.page]
        return settled

    def settle(self, parts: list[Part], start: int, freed: list[int]) -> tuple[int, int, int]:
        """Acknowledge parts[start:] in C, up to the first that is not the only one of its page.

        Args:
            freed: Gets the pages that nobody holds any more: by their descriptors they are free.

        Returns:
            How many parts; their events that no sink had acknowledged before; and the events on those pages that none
            ever did.
        """
        if _c_settle is None:
            return 0, 0, 0
        count, events, delivered, abandoned = _c_settle(
            self._arena.descriptors, parts, start, self._looked, self._by_page, freed
        )
        self.pages_acknowledged += count
        self.delivered += events
        return count, delivered, abandoned

    def rewind(self) -> None:
        """The sink failed: what it looked at and did not acknowledge is offered again, first and in order."""
        self._queue.extendleft(reversed(self._looked.values()))
        self._looked.clear()

    def abandon(self) -> list[Part]:
        """The sink gave up all that it holds. Returns the parts, whose holders go now."""
        settled = [part for parts in self._by_page.values() for part in parts]
        self.abandoned += sum(part.events for part in settled)
        self._looked.clear()
        self._queue.clear()
        self._by_page.clear()
        self._early.clear()
        self.closed = True
        return settled
