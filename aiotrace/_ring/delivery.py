"""Delivery: which parts of which pages a sink holds, and its event counts. Sans-IO.

          offer              look               acknowledge
    page -------> [queue] ---------> [looked at] ----------> settled: one holder less; with the last the page is free
                     ^                    |
                     +---- rewind --------+   the sink failed: offered again, in order

Invariants (held by tests/recording/test_model.py):
* A page that is in a queue or looked at has this holder counted in its descriptor.
* Per sink, since it was attached: `offered = delivered + missed + abandoned + in flight`, in events.
* Losses are gaps. Every event that a writer was called with has a number, and a sink remembers the next number that it
  expects of each writer. So `lost_before` is a subtraction, whatever the cause was.
* The parts of one page settle in order, so what a sink has delivered of a page is always a prefix of it. A part that is
  acknowledged early counts when the part before it does.

The common case runs in C for many pages at once (`_csrc/ring/delivery.c`). This file is the specification.

This module does not know how a sink waits (`_recording/page_stream.py`), nor when pages are offered
(`_recording/service.py`).
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
    """What a page that is being filled holds at one moment: what its descriptor would say if it were sealed now."""

    page: int
    events: int
    committed: int
    last_time: int
    definitions: int


class Part(NamedTuple):
    """A page, or a run of its records, as one sink holds it. A whole page has offset 0 and reaches to the end.

    The fields of a `PageEntry` come first, in the same order.
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
    """Events on the page up to the end of this part."""
    number: int
    """Its number among the parts that the sink was offered."""

    @property
    def end(self) -> int:
        """Bytes of records up to its end."""
        return self.offset + self.committed

    @property
    def entry(self) -> PageEntry:
        """What a frame stores of it, in one piece."""
        return _new(PageEntry, self[: len(PageEntry._fields)])


@dataclass(slots=True)
class Position:
    """How far one sink has come with one writer. A writer that started after the sink is expected from event 0."""

    next_event: int
    """Number of the event that it expects next."""
    sequence: int = -1
    """The page of which it was offered a part last."""
    offset: int = 0
    events: int = 0
    timestamp: int = 0


# C reads a Part by index and a Position by name.
assert c_module is None or (Part._fields, Position.__slots__) == (c_module.PART_FIELDS, c_module.POSITION_FIELDS)


class Delivery:
    """One sink's queue and counts."""

    def __init__(self, arena: Arena, quota: int, on_full: OnFull, name: str = "") -> None:
        self._arena = arena
        self.name = name
        self.quota = quota
        self.on_full = on_full
        self.prefixes = False
        """Whether the sink takes parts of pages that are still being filled."""
        self.closed = False
        """No more pages are offered; what the sink holds is still to be settled."""
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
        """Parts in the queue, which it has not looked at."""
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
        """Put what this sink has not had of a page into the queue, and count it as a holder of the page.

        If a "skip" sink is full, the events are counted as missed instead; with the next page they show as a gap.

        Args:
            words: The page's descriptor. EVENTS to DEFINITIONS are set, also if the page is still being filled.
            complete: Whether it is sealed.
        """
        _, writer, sequence, first, events, committed, last_time, definitions = words[: L.DEFINITIONS + 1]
        position = self.positions.get(writer)
        if position is None:
            position = self.positions[writer] = Position(0)

        # Has it had a part of this page? Then the next part begins where that one ended.
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
        """Offer sealed pages, in order. C does those that the sink has room for and had no part of."""
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
        """Returns the parts that are settled by this, in order: an earlier part of the page comes first."""
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
            freed: Is extended by the pages that have no holder any more: by their descriptors they are free.

        Returns:
            The number of parts, the events on them that no sink had acknowledged before, and the events on freed pages
            that no sink acknowledged.
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
        """The sink failed: queue what it looked at and did not acknowledge again, at the front and in order."""
        self._queue.extendleft(reversed(self._looked.values()))
        self._looked.clear()

    def abandon(self) -> list[Part]:
        """The sink gives up all that it holds. Returns the parts, so that the caller can remove the holders."""
        settled = [part for parts in self._by_page.values() for part in parts]
        self.abandoned += sum(part.events for part in settled)
        self._looked.clear()
        self._queue.clear()
        self._by_page.clear()
        self._early.clear()
        self.closed = True
        return settled
