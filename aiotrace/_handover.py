"""Hand-over between two processes: one arena, whose writers are in one process and whose reader is in another. Sans-IO.

    the writers' process                                                    the reader's process
    HandedPool: finds FREE, takes it       FREE -> FILLING
    HandedRing: seals, overruns            FILLING -> FULL  ------------->  TakenRing: FULL -> IN_FLIGHT, in order
                                           FULL -> FILLING  (one of the two wins)
                                           FREE  <------------------------  TakenPool: IN_FLIGHT -> FREE

The descriptors' states are the truth, and each change of them is a compare-and-swap in C (`_c/handover.c` has the pairs
of what is released and acquired); pool and ring keep only what they can find again. So nothing is awaited, and either
process may die at any moment:

* **Who won the swap has the page**, and nobody else looks at it but by chance: a look that is not followed by a swap is
  a hint.
* **The pages of a writer are taken in the order in which they were sealed.** A first look at all pages says how far
  each writer has come; a second one then finds every page up to there that was not overrun. What was overrun and sealed
  again between look and swap is kept back until its turn.
* **When the writers are dead, what they were filling is the reader's too** (`TakenRing.finish`).
* **Damage is local**: a page that cannot be what a writer made is told in `bad`, and counts as lost before the next.

models/handover.pml is a model of this, which spin checks (`./dev model`).
"""

from __future__ import annotations

import struct
from collections import deque
from collections.abc import Callable
from operator import attrgetter
from typing import Final, NamedTuple

from . import _layout as L
from ._arena import Arena
from ._backend import c_module
from ._crc import crc32
from ._errors import ConfigurationError, TraceFormatError
from ._look import BadPage
from ._page import transition
from ._pages import Pages
from ._pool import Pool
from ._records import new_totals, tally, walk
from ._ring import Ring

_NOTHING: Final = (0,) * (L.DELIVERED - L.FIRST_EVENT)
"""EVENTS to DELIVERED of a page with nothing on it."""
_IDENTITY: Final = struct.Struct("=QQQ")
_RECORD_MIN: Final = 4 + L.RECORD_COMMON_SIZE
"""Bytes of the shortest record."""
_HELD_BACK: Final = 16
"""A part of all pages, one in so many, that the reader has at most taken before there is room for them: the rest can
be overrun."""


def check_atomic() -> None:
    """
    Raises:
        ConfigurationError: There is no compare-and-swap: the C module is missing.
    """
    if c_module is None:
        raise ConfigurationError(
            "the recorder process needs aiotrace's C module, and this is its Python twin: `pip install .` with a C "
            "compiler builds it, and AIOTRACE_PURE must not be set"
        )


def _pages_in(arena: Arena, state: int) -> list[int]:
    states = arena.descriptors[L.STATE :: L.DESCRIPTOR_WORDS].tolist()
    return [page for page, found in enumerate(states) if found == state]


# --- the writers' side --------------------------------------------------------------------------------


class HandedPool(Pool):
    """Free pages, as the descriptors say: the reader puts them there. The first of them is taken, so that a quick
    reader keeps the same few pages going."""

    def __len__(self) -> int:
        return len(_pages_in(self._arena, L.FREE))

    def take(self) -> int | None:
        self._free = _pages_in(self._arena, L.FREE)[::-1]
        return super().take()


class HandedRing(Ring):
    """What was sealed, oldest first; some of it the reader has taken meanwhile."""

    def __len__(self) -> int:
        return len(_pages_in(self._arena, L.FULL))

    def seal(self, page: int) -> None:
        self.drop(page)  # of its last time round, if the reader took it then
        super().seal(page)

    def overrun(self) -> int | None:
        while self._full:
            page = self._full.popleft()
            if transition(self._arena.descriptors, page, L.FULL, L.FILLING):
                return page
        return None


def hand_over(pages: Pages) -> None:
    """Let another process read these pages from now on; nothing of them is used yet.

    Raises:
        ConfigurationError: There is no compare-and-swap.
    """
    check_atomic()
    pages.pool = HandedPool(pages.arena)
    pages.ring = HandedRing(pages.arena)


# --- the reader's side --------------------------------------------------------------------------------


class _Found(NamedTuple):
    """A page that was full, or is taken."""

    page: int
    writer: int
    sequence: int
    timestamp: int


class TakenPool(Pool):
    """Pages go home to the other process."""

    def __len__(self) -> int:
        return 0

    def give_back(self, page: int) -> None:
        self.recycled += 1


class TakenRing(Ring):
    """Full pages of another process's writers, taken just before they are wanted.

    Args:
        writers: Slots; a page of another is damaged.
        know: Reads the definitions that have come since, and returns how many are known: called after pages were
            taken, so that none of them lacks one.
    """

    def __init__(self, arena: Arena, writers: int, know: Callable[[], int]) -> None:
        check_atomic()
        super().__init__(arena)
        self._writers = writers
        self._know = know
        self._most = max(1, arena.pages // _HELD_BACK)
        self._early: dict[int, _Found] = {}
        self._sequence: dict[int, int] = {}
        self.numbers: dict[int, int] = {}
        """For each writer the number of the event that follows those of its last page that was taken."""
        self.lost: dict[int, int] = {}
        """For each writer how many events are missing before and between its pages that were taken."""
        self.bad: list[BadPage] = []
        """Pages that cannot be what a writer made."""

    def __len__(self) -> int:
        if not self._full:
            self._take()
        return len(self._full)

    def swap(self) -> int:
        """The oldest page. The ring must not be empty."""
        return self._full.popleft()

    def clear(self) -> list[int]:
        """Close: what was taken goes home."""
        pages = [*self._full, *self._early]
        self._full = deque()
        self._early.clear()
        for page in pages:
            self._arena.move(page, L.IN_FLIGHT, L.FREE)
        return pages

    # --- taking ---------------------------------------------------------------------------------

    def _take(self) -> None:
        plan = self._plan()
        taken: list[int] = []
        for found in plan:
            if len(taken) >= self._most:
                break
            if self._early.pop(found.page, None) is None:
                if not transition(self._arena.descriptors, found.page, L.FULL, L.IN_FLIGHT):
                    continue  # its writer took it for new events
                now = self._identify(found.page)
                if now is not None and now != found:
                    self._early[now.page] = now
                    continue
            if self._accept(found.page):
                taken.append(found.page)
        if taken:
            known = self._know()
            for page in taken:
                self._arena.set(page, L.DEFINITIONS, min(known, self._arena.get(page, L.DEFINITIONS)))
            self._full.extend(taken)

    def _plan(self) -> list[_Found]:
        """Full pages, each writer's in the order of its stream, without a hole but where pages were overrun."""
        came: dict[int, int] = {}
        for found in [*self._look(), *self._early.values()]:
            came[found.writer] = max(found.sequence, came.get(found.writer, 0))
        if not came:
            return []
        assert c_module is not None
        c_module.fence()
        plan = [found for found in self._look() if found.sequence <= came.get(found.writer, -1)]
        return sorted([*plan, *self._early.values()], key=attrgetter("timestamp", "sequence"))

    def _look(self) -> list[_Found]:
        """The pages that are full as of now."""
        pages = map(self._identify, _pages_in(self._arena, L.FULL))
        return [found for found in pages if found is not None]

    def _identify(self, page: int) -> _Found | None:
        """What a page's descriptor says it is; None: it is being changed, or damaged."""
        words = self._arena.get_all(page)
        if not self._is_sound(words):
            return None
        return _Found(page, words[L.WRITER], words[L.SEQUENCE], self._arena.timestamp(page))

    def _is_sound(self, words: tuple[int, ...]) -> bool:
        identity = _IDENTITY.pack(*words[L.WRITER : L.FIRST_EVENT + 1])
        return words[L.WRITER] < self._writers and crc32(identity) == words[L.CHECK]

    def _accept(self, page: int) -> bool:
        """Whether a page that was taken can be what a writer made, after those before it."""
        words = self._arena.get_all(page)
        writer, sequence, first, events = words[L.WRITER : L.EVENTS + 1]
        try:
            self._check(page, words)
        except TraceFormatError as error:
            self._refuse(page, L.IN_FLIGHT, error.message)
            return False
        expected = self.numbers.get(writer, 0)
        self.lost[writer] = self.lost.get(writer, 0) + first - expected
        self.numbers[writer] = first + events
        self._sequence[writer] = sequence
        return True

    def _check(self, page: int, words: tuple[int, ...]) -> None:
        """
        Raises:
            TraceFormatError: It cannot be.
        """
        if not self._is_sound(words):
            raise TraceFormatError("the crc32 of its numbers is wrong")
        writer, sequence, first, events, committed = words[L.WRITER : L.COMMITTED + 1]
        if sequence <= self._sequence.get(writer, -1) or first < self.numbers.get(writer, 0):
            raise TraceFormatError(f"it comes after page {self._sequence.get(writer)} of its writer")
        found = self._committed(page)
        if committed != found or events * _RECORD_MIN > committed:
            raise TraceFormatError(f"it was sealed with {events} events in {committed} bytes, it has {found} bytes")

    def _committed(self, page: int) -> int:
        """
        Raises:
            TraceFormatError: There is no room for so many bytes.
        """
        committed = int.from_bytes(self._arena.read(page, 8, 8), "little" if L.BYTE_ORDER == "<" else "big")
        committed &= L.COMMIT_MASK
        if committed > self._arena.page_size - L.PAGE_HEADER_SIZE:
            raise TraceFormatError(f"commit is {committed}, more than the page has", offset=8)
        return committed

    def _refuse(self, page: int, state: int, reason: str) -> None:
        words = self._arena.get_all(page)
        self.bad.append(BadPage(page, words[L.WRITER], words[L.SEQUENCE], reason))
        self._arena.set_from(page, L.EVENTS, *_NOTHING)
        self._arena.move(page, state, L.FREE)

    # --- the end --------------------------------------------------------------------------------

    def finish(self) -> None:
        """The writers are dead, or have closed: what they were filling is full now, and no page is changed by anybody
        else any more."""
        self._most = self._arena.pages
        known = self._know()
        for page in range(self._arena.pages):
            state = self._arena.get(page, L.STATE)
            if state == L.FILLING:
                self._seal(page, known)
            elif state == L.FULL and self._identify(page) is None:
                self._refuse(page, L.FULL, "the crc32 of its numbers is wrong")
            elif state >= len(L.STATE_NAMES):
                words = self._arena.get_all(page)
                self.bad.append(BadPage(page, words[L.WRITER], words[L.SEQUENCE], f"its state is {state}"))

    def _seal(self, page: int, known: int) -> None:
        """What its writer would have done."""
        found = self._identify(page)
        try:
            committed = self._committed(page)
            if committed and found is None:
                raise TraceFormatError("the crc32 of its numbers is wrong")
            is_old = found is None or found.sequence <= self._sequence.get(found.writer, -1)
            if not committed or is_old:  # nothing is on it yet, or what was overrun just then
                self._arena.move(page, L.FILLING, L.FREE)
                return
            data = self._arena.read(page, L.PAGE_HEADER_SIZE, committed)
            records = walk(data, self._arena.timestamp(page), 0)
            events, _, _, last = tally(records, new_totals())
            next(records, None)  # raises what it stopped in front of
        except TraceFormatError as error:
            self._refuse(page, L.FILLING, error.message)
            return
        self._arena.set_from(page, L.EVENTS, events, committed, last, known, 0, 0)
        self._arena.move(page, L.FILLING, L.FULL)


def taken_over(arena: Arena, writers: int, know: Callable[[], int]) -> tuple[Pages, TakenRing]:
    """The pages of another process's arena, for a reader here; and what they come from.

    Raises:
        ConfigurationError: There is no compare-and-swap.
    """
    pages = Pages(arena, overrun=False)
    pages.pool = TakenPool(arena)
    pages.ring = ring = TakenRing(arena, writers, know)
    return pages, ring
