"""Another process's arena in its reader, with local descriptors and some local pages. Sans-IO.

    page   0 ... n-1      theirs (the other process's), mapped; the descriptor is a copy, made when the page was taken
           n ... n+m-1    local: stand-ins for pages that their writers still fill

A page that still fills cannot be held: with drop_oldest it may be overrun at any moment. So its content so far is
copied to a stand-in, and the sinks get parts of that. When the page is taken, the rest is copied too, and the stand-in
is offered in its place.

Invariants (held by tests/arena/test_handover.py):

* Of the other process's memory only states are changed, and the numbers of a page that is released.
* A page is released together with its stand-in: until then a restore of the arena finds it.

This module does not know which page is next; `_arena/handover` does.
"""

from __future__ import annotations

from .._page import layout as L
from .._ring.arena import Arena


class TakenArena(Arena):
    """
    Args:
        theirs: Their pages and descriptors, mapped.
        stand_ins: How many there may be at once; only those in use take memory.
    """

    def __init__(self, theirs: Arena, stand_ins: int) -> None:
        super().__init__(theirs.page_size, theirs.pages + stand_ins)
        self.memory = None
        self.theirs = theirs
        self.keeps = False
        """The writers are dead: their pages stay as they are, so that what the sinks here do not finish can be."""
        self._spare = list(range(theirs.pages, self.pages))[::-1]
        self._originals: dict[int, int] = {}

    def page(self, index: int) -> memoryview:
        return self.theirs.page(index) if index < self.theirs.pages else super().page(index)

    def timestamp(self, page: int) -> int:
        return self.theirs.timestamp(page) if page < self.theirs.pages else super().timestamp(page)

    def adopt(self, page: int) -> None:
        """One of their pages was taken: here it is full, and not offered yet."""
        self.set_from(page, L.STATE, *self.theirs.get_all(page))
        self.set_from(page, L.STATE, L.FULL)
        self.set_from(page, L.HOLDERS, 0, 0)

    def release(self, page: int) -> None:
        """Free a page there, as it is free here; of a stand-in, the page that it replaces."""
        is_theirs = page < self.theirs.pages
        original = page if is_theirs else self._originals.pop(page, None)
        if original is not None and not self.keeps:
            self.theirs.empty(original)
            self.theirs.move(original, L.IN_FLIGHT, L.FREE)
        if not is_theirs:
            self._spare.append(page)

    # --- stand-ins ----------------------------------------------------------------------------------

    def stand_in(self, page: int) -> int | None:
        """A local page, still empty, to replace one of theirs; None: all are in use."""
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
        """Append records to a stand-in."""
        committed = self.get(own, L.COMMITTED)
        start = L.PAGE_HEADER_SIZE + committed
        self.page(own)[start : start + len(data)] = data
        events += self.get(own, L.EVENTS)
        self.set_from(own, L.EVENTS, events, committed + len(data), last_time, definitions)

    def complete(self, own: int, page: int | None) -> None:
        """Seal a stand-in, after copying the rest of its page.

        Args:
            page: The page that it replaces; None if that was overrun.
        """
        if page is not None:
            events, committed, last_time, definitions = self.theirs.get_all(page)[L.EVENTS : L.DEFINITIONS + 1]
            done = self.get(own, L.COMMITTED)
            rest = self.theirs.page(page)[L.PAGE_HEADER_SIZE + done : L.PAGE_HEADER_SIZE + committed]
            self.add(own, rest, events - self.get(own, L.EVENTS), last_time, definitions)
            self._originals[own] = page
        self.move(own, L.FILLING, L.FULL)

    def discard(self, own: int) -> None:
        """Free a stand-in that still fills; its content is not needed any more."""
        self.empty(own)
        self.move(own, L.FILLING, L.FREE)
        self._spare.append(own)
