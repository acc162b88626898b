"""The ring: full pages, oldest first. Sans-IO: no await, no clock, no file.

    seal -> | newest ... oldest | -> swap (the reader takes the oldest)
                         |
                         +-> overrun (drop_oldest: a writer takes the oldest for new events)

The law: pages of one writer leave in the order in which they were sealed. A page that a sink still looks at in
part (`HOLDERS` is not 0) cannot be overrun; the next oldest is.

Callers hold the recording's guard.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from itertools import islice

from .._page import layout as L
from .arena import Arena


class Ring:
    def __init__(self, arena: Arena) -> None:
        self._arena = arena
        self.full: deque[int] = deque()
        """The pages, oldest first."""

    def __len__(self) -> int:
        return len(self.full)

    def __iter__(self) -> Iterator[int]:
        return iter(self.full)

    def seal(self, page: int) -> None:
        """Mark the page as full, and append it."""
        self._arena.move(page, L.FILLING, L.FULL)
        self.full.append(page)

    def keep(self, page: int) -> None:
        """After an interrupt: append a page that is full by its descriptor, if it is not here."""
        if page not in self.full:
            self.full.append(page)

    def drop(self, page: int) -> None:
        """After an interrupt: remove a page that is not full by its descriptor."""
        if page in self.full:
            self.full.remove(page)

    def swap(self, count: int) -> list[int]:
        """Take the `count` oldest pages out; they are in flight then. There must be that many."""
        pages = list(islice(self.full, count))
        for page in pages:
            self._arena.move(page, L.FULL, L.IN_FLIGHT)
            self.full.popleft()
        return pages

    def overrun(self) -> int | None:
        """Take the oldest page that no sink holds, to be filled again; None if there is none."""
        for page in self.full:
            if self._arena.get(page, L.HOLDERS) == 0:
                self._arena.move(page, L.FULL, L.FILLING)
                self.full.remove(page)
                return page
        return None

    def clear(self) -> list[int]:
        """On close: take all pages out, oldest first; they are free then."""
        pages = list(self.full)
        self.full.clear()
        for page in pages:
            self._arena.move(page, L.FULL, L.FREE)
        return pages
