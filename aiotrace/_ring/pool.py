"""The pool: free pages, as a stack.

The page that was returned last is taken first: it is still in the cache, so with a fast sink the same two or three
pages are used again and again, and the rest of the arena is never touched. That is the idea of the kernel change that
aiotrace started from, and `allocated` shows it: it stops growing after the warm-up, at any depth.

Callers hold the page cycle's guard. Calls that wait for a page are kept by their writer.
"""

from __future__ import annotations

from .._page import layout as L
from .arena import Arena


class Pool:
    def __init__(self, arena: Arena, *, keeps_memory: bool = True) -> None:
        self._arena = arena
        self.free = list(reversed(range(arena.pages)))
        """The pages; the last is taken first."""
        self.allocated = 0
        """Times that a page's memory was allocated: once for each page, when it is first taken, if memory is kept."""
        self._keeps_memory = keeps_memory
        self.recycled = 0
        """Times that a page was given back."""

    def __len__(self) -> int:
        return len(self.free)

    def take(self) -> int | None:
        """A page to fill, with nothing on it; None, without effect, if there is none."""
        if not self.free:
            return None
        page = self.free.pop()
        arena = self._arena
        word = page * L.DESCRIPTOR_WORDS + L.TAKES
        takes = arena.descriptors[word]
        if not takes and not arena.allocate(page):
            self.free.append(page)
            return None
        arena.clear(page)
        arena.move(page, L.FREE, L.FILLING)
        arena.descriptors[word] = takes + 1
        self.allocated += not takes
        return page

    def keep(self, page: int) -> None:
        """After an interrupt: add a page that is free by its descriptor, if it is not here."""
        if page not in self.free:
            self.free.append(page)

    def drop(self, page: int) -> None:
        """After an interrupt: remove a page that is not free by its descriptor."""
        if page in self.free:
            self.free.remove(page)

    def give_back(self, page: int) -> None:
        """Return a page, which is free already by its descriptor."""
        assert self._arena.get(page, L.STATE) == L.FREE
        if not self._keeps_memory:
            self._arena.forget(page)
            self._arena.set(page, L.TAKES, 0)
        self.free.append(page)
        self.recycled += 1
