"""Another process's arena as its reader has it: descriptors of our own, and some pages of our own. Sans-IO.

    page   0 ... n-1      theirs, mapped; the descriptor is a copy of theirs, made when the page was taken
           n ... n+m-1    ours: stand-ins, for pages that their writers still fill

A page that fills is not ours to hold: with drop_oldest it may be overrun at any moment. So what is on it so far is
copied to a stand-in, of which the sinks are given parts, as they are of the page itself where reader and writers are
one process. When the page is taken, what came since is copied too, and the stand-in is the page from then on.

The laws. **Nothing of theirs is changed** but the state, and of a page that goes home what its seal said. **A page goes
home when its stand-in does**: until then whoever restores the arena finds it.

This module does not know which page is next; `_arena/handover` does.
"""

from __future__ import annotations

from .._page import layout as L
from .._ring.arena import Arena


class TakenArena(Arena):
    """
    Args:
        theirs: Their pages and descriptors, mapped.
        stand_ins: How many there may be at once; memory is used by those that are.
    """

    def __init__(self, theirs: Arena, stand_ins: int) -> None:
        super().__init__(theirs.page_size, theirs.pages + stand_ins)
        self.memory = None
        self.theirs = theirs
        self._spare = list(range(theirs.pages, self.pages))[::-1]
        self._originals: dict[int, int] = {}

    def page(self, index: int) -> memoryview:
        return self.theirs.page(index) if index < self.theirs.pages else super().page(index)

    def timestamp(self, page: int) -> int:
        return self.theirs.timestamp(page) if page < self.theirs.pages else super().timestamp(page)

    def adopt(self, page: int) -> None:
        """A page of theirs was taken: here it is full, and not offered yet."""
        self.set_from(page, L.STATE, *self.theirs.get_all(page))
        self.set_from(page, L.STATE, L.FULL)
        self.set_from(page, L.HOLDERS, 0, 0)

    def release(self, page: int) -> None:
        """A page is free here: so it is there."""
        is_theirs = page < self.theirs.pages
        original = page if is_theirs else self._originals.pop(page, None)
        if original is not None:
            self.theirs.empty(original)
            self.theirs.move(original, L.IN_FLIGHT, L.FREE)
        if not is_theirs:
            self._spare.append(page)

    # --- stand-ins ----------------------------------------------------------------------------------

    def stand_in(self, page: int) -> int | None:
        """A page of ours, with nothing on it yet, that stands for one of theirs; None: there is none to spare."""
        if not self._spare:
            return None
        own = self._spare.pop()
        _, writer, sequence, first_event, *_ = self.theirs.get_all(page)
        self.give(own, writer, sequence, first_event)
        timestamp = self.theirs.timestamp(page)
        self.page(own)[:8] = timestamp.to_bytes(8, "little" if L.BYTE_ORDER == "<" else "big")
        self.set(own, L.LAST_TIME, timestamp)
        self.move(own, L.FREE, L.FILLING)
        return own

    def add(self, own: int, data: bytes | memoryview, events: int, last_time: int, definitions: int) -> None:
        """Records follow those that a stand-in has."""
        committed = self.get(own, L.COMMITTED)
        start = L.PAGE_HEADER_SIZE + committed
        self.page(own)[start : start + len(data)] = data
        events += self.get(own, L.EVENTS)
        self.set_from(own, L.EVENTS, events, committed + len(data), last_time, definitions)

    def complete(self, own: int, page: int | None) -> None:
        """A stand-in has all that it will have, and is not offered to the end yet.

        Args:
            page: That it stands for, if it was taken.
        """
        if page is not None:
            events, committed, last_time, definitions = self.theirs.get_all(page)[L.EVENTS : L.DEFINITIONS + 1]
            done = self.get(own, L.COMMITTED)
            rest = self.theirs.page(page)[L.PAGE_HEADER_SIZE + done : L.PAGE_HEADER_SIZE + committed]
            self.add(own, rest, events - self.get(own, L.EVENTS), last_time, definitions)
            self._originals[own] = page
        self.move(own, L.FILLING, L.FULL)

    def discard(self, own: int) -> None:
        """Nobody will have what a stand-in that still fills has."""
        self.empty(own)
        self.move(own, L.FILLING, L.FREE)
        self._spare.append(own)
