"""The life of a page: pool, ring and deliveries of one recording, under one guard.

          take                seal                swap            acknowledge (all sinks)
    pool -------> writer ------------> ring ------------> reader ------------> sinks ---+
     ^                                  |                                               |
     |                                  | overrun (drop_oldest)                         |
     +----------------------------------+------------- give back -----------------------+

Laws:
1. Conservation: `free + filling + full + in flight = pages`, always; a page has one owner; at close all are home.
2. Ledger: `written = delivered + overrun + abandoned + in flight`, in events, where *delivered* is acknowledged by
   at least one sink. What is counted here is everything after `written`.

A KeyboardInterrupt, or whatever a signal handler raises, may end `take` and `seal` after any call in them. The
descriptors say all the same who owns which page, and `recover` brings the views back to what they say.

This module knows no event, clock or task. What happens outside is told by callbacks, called without the guard:
`on_full` (a page is in the ring), `on_free` (a page came home) and `on_scarce` (a writer took one of the last pages).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final, Protocol

from .._base.backend import c_module
from .._base.reentrancy import Guard
from .._page import layout as L
from .arena import Arena
from .delivery import Delivery, Mark, Part, Position
from .pool import Pool
from .ring import Ring

_c_turn_page: Final = getattr(c_module, "turn_page", None)

Told = tuple[str, int, int, int]
"""One of aiotrace's own events, and its fields."""


class Owner(Protocol):
    """Who fills pages: a writer."""

    slot: int
    sequence: int
    """Number of its next page."""
    page: int | None
    """The page that it fills."""
    first_event: int
    """Number of the first event on it, among all that it was asked to write."""
    first_written: int
    """The same among those that it wrote."""
    untold: list[Told]
    """What happened in `take`, to be told to `on_event` when no guard is held."""

    def leave(self) -> None:
        """Have no page."""


def _nothing(*_: object) -> None:
    pass


def _nobody() -> Sequence[Owner]:
    return ()


class PageCycle:
    """
    Args:
        arena: Where the pages lie.
        overrun: Whether a writer that finds no free page takes the oldest full one (drop_oldest).
    """

    def __init__(self, arena: Arena, *, overrun: bool) -> None:
        self.arena = arena
        self.pool = Pool(arena)
        self.ring = Ring(arena)
        self.deliveries: list[Delivery] = []
        self.can_overrun = overrun
        self.guard = Guard()
        self.delivered = 0
        self.abandoned = 0
        self.overrun: dict[int, int] = {}
        """Events overwritten in the ring, by writer."""
        self.on_full: Callable[[], object] = _nothing
        self.on_free: Callable[[], object] = _nothing
        self.on_scarce: Callable[[], object] = _nothing
        self.on_event: Callable[..., object] = _nothing
        """Called with the name of one of aiotrace's own events and its fields."""
        self.owners: Callable[[], Sequence[Owner]] = _nobody
        """All that may fill a page."""

    # --- the writers' side ----------------------------------------------------------------------

    def take(self, owner: Owner, first_event: int, first_written: int = 0) -> int | None:
        """A page to fill, with its descriptor set; None if there is none, or the guard refused (re-entry).

        It is the owner's, in the same step.
        """
        guard = self.guard
        with guard.lock:
            if guard.busy:
                return None
            guard.busy = True
            try:
                taken = self._take(owner, None, first_event, first_written)
            finally:
                guard.busy = False
        return taken

    def turn(self, owner: Owner, page: int, first_event: int, first_written: int) -> int | None:
        """`seal` the page that the owner has filled, and `take` the next.

        If the guard refused (re-entry) there is no effect, and the owner's page is what it was.
        """
        guard = self.guard
        with guard.lock:
            if guard.busy:
                return None
            guard.busy = True
            try:
                taken = self._take(owner, page, first_event, first_written)
            finally:
                guard.busy = False
        self.on_full()
        return taken

    def _take(self, owner: Owner, full: int | None, first_event: int, first_written: int) -> int | None:
        """
        Args:
            full: The page that the owner fills, which goes into the ring.
        """
        taken = None
        if full is not None:
            taken = self._turn_as_usual(owner, full, first_event)
            if taken is None:
                self.ring.seal(full)
                owner.leave()
                owner.page = None
        if taken is None:
            taken = self._find(owner, first_event)
        if taken is not None:
            # No call from here on.
            owner.sequence += 1
            owner.first_event = first_event
            owner.first_written = first_written
            owner.page = taken
        return taken

    def _turn_as_usual(self, owner: Owner, full: int, first_event: int) -> int | None:
        """In C, where there is a page that was used before; else None, without effect."""
        arena = self.arena
        if _c_turn_page is None or arena.memory is None:
            return None
        return _c_turn_page(  # type: ignore[no-any-return]  # C has no types
            arena.descriptors, arena.memory, arena.first_page, arena.page_size,
            full, self.ring.full, self.pool.free, owner.slot, owner.sequence, first_event,
        )  # fmt: skip

    def _find(self, owner: Owner, first_event: int) -> int | None:
        """A page out of the pool, or the oldest of the ring if that may be overrun, with its descriptor set."""
        pool, arena = self.pool, self.arena
        allocated = pool.allocated
        page = pool.take()
        if page is None and self.can_overrun:
            page = self.ring.overrun()
            if page is not None:
                owner.untold.append(("overrun", page, arena.get(page, L.WRITER), self._undelivered(page)))
                self._count_overrun(page)
                arena.clear(page)
        if page is not None:
            if pool.allocated != allocated:
                owner.untold.append(("page_alloc", page, owner.slot, owner.sequence))
            arena.give(page, owner.slot, owner.sequence, first_event)
        return page

    @property
    def is_scarce(self) -> bool:
        """Whether less than a quarter of the pages is free, as of now, and writers need what sinks give back: where no
        sink is, the oldest page gives way."""
        return 4 * len(self.pool) < self.arena.pages and bool(self.deliveries or not self.can_overrun)

    @property
    def can_take(self) -> bool:
        """Whether `take` would find a page, as of now."""
        return bool(len(self.pool) or (self.can_overrun and len(self.ring)))

    def seal(self, page: int) -> bool:
        """A page that its writer has finished goes into the ring.

        Returns:
            False, without effect, if the guard refused (re-entry).
        """
        guard = self.guard
        with guard.lock:
            if guard.busy:
                return False
            guard.busy = True
            try:
                self.ring.seal(page)
            finally:
                guard.busy = False
        self.on_full()
        return True

    def return_empty(self, page: int) -> None:
        """A page that was taken and holds nothing goes home."""
        with self.guard:
            self.arena.move(page, L.FILLING, L.FREE)
            self.pool.give_back(page)

    def _count_overrun(self, page: int) -> None:
        writer = self.arena.get(page, L.WRITER)
        total = self.overrun.get(writer, 0) + self._undelivered(page)
        events = page * L.DESCRIPTOR_WORDS + L.EVENTS
        delivered = page * L.DESCRIPTOR_WORDS + L.DELIVERED
        descriptors = self.arena.descriptors
        # No call from here on: counted once, whatever interrupts.
        self.overrun[writer] = total
        descriptors[events] = descriptors[delivered] = 0

    def _undelivered(self, page: int) -> int:
        descriptors, start = self.arena.descriptors, page * L.DESCRIPTOR_WORDS
        return descriptors[start + L.EVENTS] - descriptors[start + L.DELIVERED]

    def recover(self) -> None:
        """After an interrupt in `take` or `seal`: every page goes where its descriptor says."""
        with self.guard:
            owned = {owner.page for owner in self.owners()}
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
        """How many full pages the reader may take: none while somebody who waits is full."""
        waiting: list[int] = []
        others = [0]
        for delivery in self.deliveries:
            if not delivery.closed:
                (waiting if delivery.on_full == "wait" else others).append(delivery.quota - delivery.held)
        return max(0, min(waiting)) if waiting else max(others)

    def swap(self, most: int = 1) -> int:
        """Take the oldest full pages out of the ring, at most so many, and offer them to every sink.

        Returns:
            How many: not more than there is room for.
        """
        home: list[int] = []
        try:
            with self.guard:
                pages = self.ring.swap(min(most, len(self.ring), self.room))
                try:
                    for delivery in self.deliveries:
                        if not delivery.closed:
                            delivery.offer_sealed(pages)
                finally:  # also if that failed: nobody else takes home what nobody holds
                    home += [page for page in pages if not self.arena.get(page, L.HOLDERS)]
                    for page in home:
                        self._empty(page)
                    self._take_home(home)
        finally:
            self._tell_free(home)
        return len(pages)

    def offer_prefix(self, mark: Mark) -> None:
        """Offer what a page that still fills holds so far, to the sinks that take prefixes and have room.

        The caller holds the writer's guard, so the page cannot be sealed meanwhile. Without effect while an older page
        of this writer is in the ring (a sink that waits is full): it comes first.
        """
        with self.guard:
            words = self.arena.get_all(mark.page)
            if any(self.arena.get(page, L.WRITER) == words[L.WRITER] for page in self.ring):
                return
            words = words[: L.EVENTS] + mark[1:]
            for delivery in self.deliveries:
                if delivery.prefixes and not delivery.closed and delivery.has_room and not delivery.holds(mark.page):
                    delivery.offer(mark.page, words, complete=False)

    # --- the sinks' side ------------------------------------------------------------------------

    def attach(self, delivery: Delivery, next_events: dict[int, int]) -> None:
        """From now on pages are offered to this sink.

        Args:
            next_events: For each writer the number of the oldest event that is not swapped yet; losses before
                it are not this sink's.
        """
        with self.guard:
            delivery.positions.update((writer, Position(number)) for writer, number in next_events.items())
            self.deliveries.append(delivery)

    def detach(self, delivery: Delivery) -> None:
        """The sink has no more to do with these pages; what it still holds is abandoned."""
        with self.guard:
            freed: list[int] = []
            for part in delivery.abandon():
                self._release(part, freed)
            self.deliveries.remove(delivery)
            self._take_home(freed)
        self._tell_free(freed)

    def acknowledge(self, delivery: Delivery, parts: list[Part]) -> None:
        """The sink is done with some parts; with its last holder a page goes home."""
        freed: list[int] = []
        done = 0
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
            self._take_home(freed)
        for part in parts:
            self.on_event("sink_ack", delivery.name, part.page, part.events)
        self._tell_free(freed)

    def _count_delivered(self, part: Part) -> None:
        descriptors, word = self.arena.descriptors, part.page * L.DESCRIPTOR_WORDS + L.DELIVERED
        before = descriptors[word]
        if part.page_events > before:
            descriptors[word] = part.page_events
            self.delivered += part.page_events - before

    def _tell_free(self, pages: Sequence[int]) -> None:
        for page in pages:
            self.on_event("page_recycle", page)
        if pages:
            self.on_free()

    def _release(self, part: Part, freed: list[int]) -> None:
        descriptors, start = self.arena.descriptors, part.page * L.DESCRIPTOR_WORDS
        holders = descriptors[start + L.HOLDERS] = descriptors[start + L.HOLDERS] - 1
        if not holders and descriptors[start + L.STATE] == L.IN_FLIGHT:
            self._empty(part.page)
            freed.append(part.page)

    def _empty(self, page: int) -> None:
        self.abandoned += self._undelivered(page)
        self.arena.empty(page)  # when it is taken again, it holds nothing from the first moment
        self.arena.move(page, L.IN_FLIGHT, L.FREE)

    def _take_home(self, pages: Sequence[int]) -> None:
        for page in pages:
            self.pool.give_back(page)

    # --- the account ----------------------------------------------------------------------------

    def events_in_flight(self) -> int:
        """Events sealed and not settled yet (those on pages that still fill are their writers'). Hold the guard."""
        return sum(
            self.arena.get(page, L.EVENTS) - self.arena.get(page, L.DELIVERED)
            for page in range(self.arena.pages)
            if self.arena.get(page, L.STATE) in (L.FULL, L.IN_FLIGHT)
        )

    def clear_ring(self) -> None:
        """Close: what nobody will have any more is abandoned."""
        with self.guard:
            for page in self.ring.clear():
                self.abandoned += self.arena.get(page, L.EVENTS) - self.arena.get(page, L.DELIVERED)
                self.pool.give_back(page)
        self.on_free()
