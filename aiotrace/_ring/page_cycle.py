"""The life of a page: pool, ring and deliveries of one recording, under one guard.

          take                seal                swap            acknowledge (all sinks)
    pool -------> writer ------------> ring ------------> reader ------------> sinks ---+
     ^                                  |                                               |
     |                                  | overrun (drop_oldest)                         |
     +----------------------------------+------------- give back -----------------------+

Invariants (held by tests/recording/test_model.py):
1. Conservation: `free + filling + full + in flight = pages` at any moment. A page has one owner. When a recording
   has closed, all pages are free.
2. Ledger: `written = delivered + overrun + abandoned + in flight`, in events, where *delivered* means acknowledged by
   at least one sink. This file counts everything after `written`.

A KeyboardInterrupt, or any exception of a signal handler, may end `turn` and `seal` after any call in them. The
descriptors still say who owns which page, and `recover` rebuilds pool and ring from them.

This module knows no event, clock or task. A `PageListener` is called about what happened, without the guard held.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, Protocol

from .._base.backend import c_module
from .._base.reentrancy import Guard
from .._page import layout as L
from .arena import Arena
from .delivery import CommittedPrefix, Delivery, Part, Position
from .pool import Pool
from .ring import Ring

_c_turn_page: Final = getattr(c_module, "turn_page", None)

InternalEvent = tuple[str, int, int, int]
"""The name of one of aiotrace's own events, and its fields."""


class PageListener(Protocol):
    """Who acts on what happens to pages: a recording's service. All calls are made without a guard held, in the thread
    that caused them."""

    def page_full(self) -> None:
        """A page is in the ring, ready for the reader."""

    def pages_freed(self) -> None:
        """One or more pages are back in the pool."""

    def pages_scarce(self) -> None:
        """A writer took one of the last pages."""

    def writer_leased(self) -> None:
        """The calling thread was given a writer."""

    def happened(self, kind: str, *values: int | str) -> None:
        """What an internal event (`_events/internal_events.py`) reports, and its fields."""


class NoListener(PageListener):
    """For pages that no service reads, as in tests and trials."""

    def page_full(self) -> None:
        return

    def pages_freed(self) -> None:
        return

    def pages_scarce(self) -> None:
        return

    def writer_leased(self) -> None:
        return

    def happened(self, kind: str, *values: int | str) -> None:
        return


class PageWriter(Protocol):
    """Who fills pages."""

    slot: int
    sequence: int
    """Number of its next page."""
    page: int | None
    """The page that it fills."""
    first_event: int
    """Number of the first event on it, among all that the writer was called with."""
    first_written: int
    """The same among those that it wrote."""
    pending_events: list[InternalEvent]
    """What happened in `turn`, to be reported when no guard is held."""

    def leave(self) -> None:
        """Have no page."""


class PageCycle:
    """
    Args:
        arena: The memory of the pages.
        overrun: Whether a writer that finds no free page takes the oldest full one (drop_oldest).
        listener: Is called about what happens to pages.
        keeps_memory: Whether a page that is given back keeps its memory. False shows what that saves.
    """

    def __init__(
        self, arena: Arena, *, overrun: bool, listener: PageListener | None = None, keeps_memory: bool = True
    ) -> None:
        self.arena = arena
        self.pool = Pool(arena, keeps_memory=keeps_memory)
        self.ring = Ring(arena)
        self.deliveries: list[Delivery] = []
        self.writers: list[PageWriter] = []
        """All that may fill a page; each adds itself."""
        self.listener: Final = NoListener() if listener is None else listener
        self.can_overrun = overrun
        self.guard = Guard()
        self.delivered = 0
        self.abandoned = 0
        self.overrun: dict[int, int] = {}
        """Events overwritten in the ring, by writer."""

    # --- the writers' side ----------------------------------------------------------------------

    def turn(self, writer: PageWriter, full: int | None, first_event: int, first_written: int = 0) -> int | None:
        """Seal the page that the writer has filled, if it has one, and take the next, with its descriptor set.

        The writer owns the new page in the same step. If the guard refused (re-entry) there is no effect, and the
        writer's page is what it was.

        Returns:
            The page to fill, or None: there is none, or the guard refused.
        """
        guard = self.guard
        with guard.lock:
            if guard.busy:
                return None
            guard.busy = True
            try:
                taken = self._turn(writer, full, first_event, first_written)
            finally:
                guard.busy = False
        if full is not None:
            self.listener.page_full()
        return taken

    def _turn(self, writer: PageWriter, full: int | None, first_event: int, first_written: int) -> int | None:
        # The common case, in one step.
        taken = None
        if full is not None:
            taken = self._turn_in_c(writer, full, first_event)
            if taken is None:
                self.ring.seal(full)
                writer.leave()
                writer.page = None

        if taken is None:
            taken = self._find_page(writer, first_event)

        # No call from here on: an interrupt finds the page owned, or not taken.
        if taken is not None:
            writer.sequence += 1
            writer.first_event = first_event
            writer.first_written = first_written
            writer.page = taken
        return taken

    def _turn_in_c(self, writer: PageWriter, full: int, first_event: int) -> int | None:
        """None, without effect, unless there is a free page that was used before."""
        arena = self.arena
        if _c_turn_page is None or arena.memory is None:
            return None
        return _c_turn_page(  # type: ignore[no-any-return]  # C has no types
            arena.descriptors, arena.memory, arena.first_page, arena.page_size,
            full, self.ring.full, self.pool.free, writer.slot, writer.sequence, first_event,
        )  # fmt: skip

    def _find_page(self, writer: PageWriter, first_event: int) -> int | None:
        """A page from the pool, or the oldest of the ring if that may be overrun, with its descriptor set."""
        pool, arena = self.pool, self.arena
        allocated = pool.allocated
        page = pool.take()

        if page is None and self.can_overrun:
            page = self.ring.overrun()
            if page is not None:
                writer.pending_events.append(("overrun", page, arena.get(page, L.WRITER), self._undelivered(page)))
                self._count_overrun(page)
                arena.clear(page)

        if page is not None:
            if pool.allocated != allocated:
                writer.pending_events.append(("page_alloc", page, writer.slot, writer.sequence))
            arena.give(page, writer.slot, writer.sequence, first_event)
        return page

    @property
    def is_scarce(self) -> bool:
        """Whether less than a quarter of the pages is free now, and writers depend on what sinks give back. (With no
        sink and drop_oldest the oldest page is overwritten instead.)"""
        return 4 * len(self.pool) < self.arena.pages and bool(self.deliveries or not self.can_overrun)

    @property
    def can_take(self) -> bool:
        """Whether `turn` would find a page now."""
        return bool(len(self.pool) or (self.can_overrun and len(self.ring)))

    def seal(self, page: int) -> None:
        """Put a page that its writer has finished into the ring, when the writer closes."""
        with self.guard:
            self.ring.seal(page)
        self.listener.page_full()

    def return_empty(self, page: int) -> None:
        """Give back a page that was taken and holds nothing."""
        with self.guard:
            self.arena.move(page, L.FILLING, L.FREE)
            self.pool.give_back(page)

    def _count_overrun(self, page: int) -> None:
        writer = self.arena.get(page, L.WRITER)
        total = self.overrun.get(writer, 0) + self._undelivered(page)
        events = page * L.DESCRIPTOR_WORDS + L.EVENTS
        delivered = page * L.DESCRIPTOR_WORDS + L.DELIVERED
        descriptors = self.arena.descriptors
        # No call from here on: whatever interrupts, the events are counted once.
        self.overrun[writer] = total
        descriptors[events] = descriptors[delivered] = 0

    def _undelivered(self, page: int) -> int:
        descriptors, start = self.arena.descriptors, page * L.DESCRIPTOR_WORDS
        return descriptors[start + L.EVENTS] - descriptors[start + L.DELIVERED]

    def recover(self) -> None:
        """After an interrupt in `turn` or `seal`: every page goes where its descriptor says."""
        with self.guard:
            owned = {writer.page for writer in tuple(self.writers)}
            for page in range(self.arena.pages):
                state = self.arena.get(page, L.STATE)
                if state == L.FILLING and page not in owned:
                    self._count_overrun(page)
                    self.arena.move(page, L.FILLING, L.FREE)
                    state = L.FREE
                (self.ring.keep if state == L.FULL else self.ring.drop)(page)
                (self.pool.keep if state == L.FREE else self.pool.drop)(page)

    # --- the reader's side ----------------------------------------------------------------------

    @property
    def room(self) -> int:
        """How many full pages the reader may take: none while a "wait" sink is full."""
        waiting: list[int] = []
        others = [0]
        for delivery in self.deliveries:
            if not delivery.closed:
                (waiting if delivery.on_full == "wait" else others).append(delivery.quota - delivery.held)
        return max(0, min(waiting)) if waiting else max(others)

    def swap(self, most: int = 1) -> int:
        """Take up to `most` of the oldest full pages out of the ring, and offer them to every sink.

        Returns:
            How many pages were taken: no more than there is room for.
        """
        freed: list[int] = []
        try:
            with self.guard:
                pages = self.ring.swap(min(most, len(self.ring), self.room))
                try:
                    for delivery in self.deliveries:
                        if not delivery.closed:
                            delivery.offer_sealed(pages)
                finally:
                    # Also if an offer failed: a page without a holder would never be given back otherwise.
                    freed += [page for page in pages if not self.arena.get(page, L.HOLDERS)]
                    for page in freed:
                        self._empty(page)
                    self._give_back(freed)
        finally:
            self._report_freed(freed)
        return len(pages)

    def offer_prefix(self, prefix: CommittedPrefix) -> None:
        """Offer what a page that is still being filled holds so far, to the sinks that take prefixes and have room.

        The caller holds the writer's guard, so the page cannot be sealed during the call. Does nothing while an older
        page of this writer is in the ring (because a "wait" sink is full): that one comes first.
        """
        with self.guard:
            words = self.arena.get_all(prefix.page)
            if any(self.arena.get(page, L.WRITER) == words[L.WRITER] for page in self.ring):
                return
            words = words[: L.EVENTS] + prefix[1:]
            for delivery in self.deliveries:
                if delivery.prefixes and not delivery.closed and delivery.has_room and not delivery.holds(prefix.page):
                    delivery.offer(prefix.page, words, complete=False)

    # --- the sinks' side ------------------------------------------------------------------------

    def attach(self, delivery: Delivery, next_events: dict[int, int]) -> None:
        """From now on pages are offered to this sink.

        Args:
            next_events: For each writer the number of the oldest event that is not swapped yet; losses before it do
                not count as this sink's.
        """
        with self.guard:
            delivery.positions.update((writer, Position(number)) for writer, number in next_events.items())
            self.deliveries.append(delivery)

    def detach(self, delivery: Delivery) -> None:
        """Offer no more pages to this sink; what it still holds is abandoned."""
        with self.guard:
            freed: list[int] = []
            for part in delivery.abandon():
                self._release(part, freed)
            self.deliveries.remove(delivery)
            self._give_back(freed)
        self._report_freed(freed)

    def acknowledge(self, delivery: Delivery, parts: list[Part]) -> None:
        """The sink is done with some parts. A page is given back with its last holder."""
        freed: list[int] = []
        done = 0

        # C settles runs of parts that are the only ones of their pages; Python settles the part where it stopped.
        with self.guard:
            while done < len(parts):
                count, delivered, abandoned = delivery.settle(parts, done, freed)
                self.delivered += delivered
                self.abandoned += abandoned
                done += count
                if done < len(parts):
                    for part in delivery.acknowledge(parts[done]):
                        self._count_delivered(part)
                        self._release(part, freed)
                    done += 1
            self._give_back(freed)

        for part in parts:
            self.listener.happened("sink_ack", delivery.name, part.page, part.events)
        self._report_freed(freed)

    def _count_delivered(self, part: Part) -> None:
        descriptors, word = self.arena.descriptors, part.page * L.DESCRIPTOR_WORDS + L.DELIVERED
        before = descriptors[word]
        if part.page_events > before:
            descriptors[word] = part.page_events
            self.delivered += part.page_events - before

    def _report_freed(self, pages: Sequence[int]) -> None:
        for page in pages:
            self.listener.happened("page_recycle", page)
        if pages:
            self.listener.pages_freed()

    def _release(self, part: Part, freed: list[int]) -> None:
        descriptors, start = self.arena.descriptors, part.page * L.DESCRIPTOR_WORDS
        holders = descriptors[start + L.HOLDERS] = descriptors[start + L.HOLDERS] - 1
        if not holders and descriptors[start + L.STATE] == L.IN_FLIGHT:
            self._empty(part.page)
            freed.append(part.page)

    def _empty(self, page: int) -> None:
        self.abandoned += self._undelivered(page)
        self.arena.empty(page)  # so that a page that is taken again holds nothing from the first moment
        self.arena.move(page, L.IN_FLIGHT, L.FREE)

    def _give_back(self, pages: Sequence[int]) -> None:
        for page in pages:
            self.pool.give_back(page)

    # --- the account ----------------------------------------------------------------------------

    def events_in_flight(self) -> int:
        """Events on sealed pages that are not settled yet. The caller holds the guard."""
        return sum(
            self.arena.get(page, L.EVENTS) - self.arena.get(page, L.DELIVERED)
            for page in range(self.arena.pages)
            if self.arena.get(page, L.STATE) in (L.FULL, L.IN_FLIGHT)
        )

    def clear_ring(self) -> None:
        """On close: abandon what is in the ring."""
        with self.guard:
            for page in self.ring.clear():
                self.abandoned += self.arena.get(page, L.EVENTS) - self.arena.get(page, L.DELIVERED)
                self.pool.give_back(page)
        self.listener.pages_freed()
