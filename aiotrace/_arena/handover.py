"""Hand-over between two processes: the writers of an arena are in one process, its reader in another. Sans-IO.

    the writers' process                                                    the reader's process
    HandedPool: finds FREE, takes it       FREE -> FILLING
    HandedRing: seals, overruns            FILLING -> FULL  ------------->  TakenRing: FULL -> IN_FLIGHT, in order
                                           FULL -> FILLING  (one of the two wins)
                                           FREE  <------------------------  TakenPool: IN_FLIGHT -> FREE

The states in the descriptors are authoritative, and each change is a compare-and-swap in C (`_csrc/ring/page_state.c`
lists what is released and acquired). Pool and ring store only what they can rebuild from the descriptors. So neither
process waits for the other, and either may die at any moment.

Invariants (held by tests/arena/test_handover.py, and by spin on models/handover.pml: `./dev model`):

* Whoever wins the compare-and-swap owns the page. A read that is not followed by a successful swap is only a hint.
* The pages of a writer are taken in the order in which they were sealed. A first scan of all pages finds how far each
  writer has come; a second one then finds every page up to there that was not overrun. A page that was overrun and
  sealed again between scan and swap is kept until its turn.
* Once the writers are dead, the pages that they were filling are taken too (`TakenRing.finish`).
* Damage is local: a damaged page is reported in `bad`, and its events count as lost before the next page.
* A page that still fills is copied, not taken, and its state does not change: up to its `commit`, discarded if the
  page's numbers have changed after copying, and only after all pages that its writer sealed before.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from operator import attrgetter
from typing import Final, NamedTuple

from .._base.backend import c_module
from .._base.crc32 import crc32
from .._base.errors import ConfigurationError, TraceFormatError
from .._page import layout as L
from .._page.walk import new_totals, tally, walk
from .._ring.arena import Arena
from .._ring.delivery import CommittedPrefix
from .._ring.page_cycle import PageCycle, PageListener
from .._ring.pool import Pool
from .._ring.ring import Ring
from .._ring.state import transition
from .foreign_arena import TakenArena
from .scan import DamagedPage

_IDENTITY: Final = struct.Struct("=QQQ")
_RECORD_MIN: Final = 4 + L.RECORD_COMMON_SIZE
"""Bytes of the shortest record."""
_TAKEN_SHARE: Final = 16
"""The reader takes at most one in this many of all pages before sinks have room for them: the rest can be overrun."""
_STAND_INS: Final = 2
"""Stand-ins per writer. A slow sink may still hold the stand-in for an overwritten page while the writer fills the
next."""


def check_atomic() -> None:
    """
    Raises:
        ConfigurationError: There is no compare-and-swap, because the C module is missing.
    """
    if c_module is None:
        raise ConfigurationError(
            "the recorder process needs aiotrace's C module, and this is pure Python: `pip install .` with a C "
            "compiler builds it, and AIOTRACE_PURE must not be set"
        )


def _pages_in(arena: Arena, state: int) -> list[int]:
    states = arena.descriptors[L.STATE :: L.DESCRIPTOR_WORDS].tolist()
    return [page for page, found in enumerate(states) if found == state]


# --- the writers' side --------------------------------------------------------------------------------


class HandedPool(Pool):
    """The free pages according to the descriptors; the reader frees them. The first one is taken, so that with a fast
    reader the same few pages are reused."""

    def __len__(self) -> int:
        return len(_pages_in(self._arena, L.FREE))

    def take(self) -> int | None:
        self.free = _pages_in(self._arena, L.FREE)[::-1]
        return super().take()


class HandedRing(Ring):
    """Sealed pages, oldest first. The reader may have taken some of them since."""

    def __len__(self) -> int:
        return len(_pages_in(self._arena, L.FULL))

    def seal(self, page: int) -> None:
        self.drop(page)  # a stale entry, if the reader took it the last time
        super().seal(page)

    def overrun(self) -> int | None:
        while self.full:
            page = self.full.popleft()
            if transition(self._arena.descriptors, page, L.FULL, L.FILLING):
                return page
        return None


def hand_over(pages: PageCycle) -> None:
    """Let another process read these pages from now on; none of them may be in use yet.

    Raises:
        ConfigurationError: There is no compare-and-swap.
    """
    check_atomic()
    pages.pool = HandedPool(pages.arena)
    pages.ring = HandedRing(pages.arena)


# --- the reader's side --------------------------------------------------------------------------------


class _Found(NamedTuple):
    """A page that was full or is taken, as its descriptor described it."""

    page: int
    writer: int
    sequence: int
    timestamp: int


@dataclass(slots=True)
class _StandIn:
    """A page of the reader that holds a copy of one that its writer still fills."""

    page: int
    theirs: int
    writer: int
    sequence: int


class TakenPool(Pool):
    """Returns pages to the other process."""

    def __init__(self, arena: TakenArena) -> None:
        super().__init__(arena)
        self._taken = arena

    def __len__(self) -> int:
        return 0

    def give_back(self, page: int) -> None:
        self._taken.release(page)
        self.recycled += 1


class TakenRing(Ring):
    """Full pages of another process's writers, taken just before they are needed.

    Args:
        writers: Number of writer slots; a page of another slot is damaged.
        refresh_definitions: Reads new definitions and returns how many are known. Called after pages were taken, so
            that none of them needs one that is missing.
    """

    def __init__(self, arena: TakenArena, writers: int, refresh_definitions: Callable[[], int]) -> None:
        check_atomic()
        super().__init__(arena)
        self._taken = arena
        self._theirs = arena.theirs
        self._writers = writers
        self._refresh_definitions = refresh_definitions
        self._max_taken = max(1, self._theirs.pages // _TAKEN_SHARE)
        self._early: dict[int, _Found] = {}
        self._filling: dict[int, _StandIn] = {}
        self._totals = new_totals()
        self._sequence: dict[int, int] = {}
        self.numbers: dict[int, int] = {}
        """Per writer, the number of the event after the last page that was taken."""
        self.lost: dict[int, int] = {}
        """Per writer, how many events are missing before and between the pages that were taken."""
        self.saved: dict[int, int] = {}
        """Per writer, how many events were copied from pages that were overrun later."""
        self.bad: list[DamagedPage] = []
        """Damaged pages: their content cannot be a writer's."""
        self.is_paused = False
        """No more pages are taken: they stay in the arena."""

    def __len__(self) -> int:
        if not self.full and not self.is_paused:
            self._take()
        return len(self.full)

    def keep_pages(self) -> None:
        """From now on pages stay in the arena as they are, also those that were delivered."""
        self._taken.keeps = True

    def clear(self) -> list[int]:
        """Close; returns all pages that were taken, for the caller to give back."""
        for page in self._early:
            self._taken.adopt(page)
            self.full.append(page)
        self._early.clear()
        for stand_in in self._filling.values():
            self._taken.discard(stand_in.page)
        self._filling.clear()
        return super().clear()

    # --- taking ---------------------------------------------------------------------------------

    def _take(self) -> None:
        plan = self._plan()
        taken: list[int] = []
        for found in plan:
            if len(taken) >= self._max_taken:
                break

            # Take it, unless an earlier call did. What was sealed there since may not be its writer's turn yet.
            if self._early.pop(found.page, None) is None:
                if not transition(self._theirs.descriptors, found.page, L.FULL, L.IN_FLIGHT):
                    continue  # its writer took it for new events
                now = self._identify(found.page)
                if now is not None and now != found:
                    self._early[now.page] = now
                    continue
            taken += self._accept(found.page)

        # After the pages, so that no page needs a definition that is not read yet.
        if taken:
            known = self._refresh_definitions()
            for page in taken:
                self._arena.set(page, L.DEFINITIONS, min(known, self._arena.get(page, L.DEFINITIONS)))
            self.full.extend(taken)

    def _plan(self) -> list[_Found]:
        """Full pages, each writer's in stream order, without gaps except where pages were overrun."""
        came: dict[int, int] = {}
        for found in [*self._scan_full(), *self._early.values()]:
            came[found.writer] = max(found.sequence, came.get(found.writer, 0))
        if not came:
            return []
        assert c_module is not None
        c_module.fence()
        plan = [found for found in self._scan_full() if found.sequence <= came.get(found.writer, -1)]
        return sorted([*plan, *self._early.values()], key=attrgetter("timestamp", "sequence"))

    def _scan_full(self) -> list[_Found]:
        """The pages that are full now."""
        pages = map(self._identify, _pages_in(self._theirs, L.FULL))
        return [found for found in pages if found is not None]

    def _identify(self, page: int) -> _Found | None:
        """The page as its descriptor describes it; None: it is being changed, or damaged."""
        words = self._theirs.get_all(page)
        if not self._is_sound(words):
            return None
        return _Found(page, words[L.WRITER], words[L.SEQUENCE], self._theirs.timestamp(page))

    def _is_sound(self, words: tuple[int, ...]) -> bool:
        identity = _IDENTITY.pack(*words[L.WRITER : L.FIRST_EVENT + 1])
        return words[L.WRITER] < self._writers and crc32(identity) == words[L.CHECK]

    def _accept(self, page: int) -> Iterator[int]:
        """The pages to offer for a page that was taken: none, if it is damaged or not after its predecessors."""
        words = self._theirs.get_all(page)
        writer, sequence, first, events = words[L.WRITER : L.EVENTS + 1]
        try:
            self._check(page, words)
        except TraceFormatError as error:
            yield from self._refuse(page, L.IN_FLIGHT, error.message)
            return

        # An older stand-in is all that remains of an overwritten page.
        stand_in = self._filling.pop(writer, None)
        if stand_in is not None and stand_in.sequence != sequence:
            yield self._end(stand_in, overrun=True)
            stand_in = None

        # A stand-in of this page gets the rest of its records, and is offered in its place.
        if stand_in is not None:
            self._taken.complete(stand_in.page, page)
        else:
            self._taken.adopt(page)
        self._count(writer, sequence, first, events)
        yield page if stand_in is None else stand_in.page

    def _count(self, writer: int, sequence: int, first: int, events: int) -> None:
        """Account for the next page of a writer."""
        self.lost[writer] = self.lost.get(writer, 0) + first - self.numbers.get(writer, 0)
        self.numbers[writer] = first + events
        self._sequence[writer] = sequence

    def _check(self, page: int, words: tuple[int, ...]) -> None:
        """
        Raises:
            TraceFormatError: The page is damaged.
        """
        if not self._is_sound(words):
            raise TraceFormatError("the crc32 of its numbers is wrong")
        writer, sequence, first, events, committed = words[L.WRITER : L.COMMITTED + 1]
        if sequence <= self._sequence.get(writer, -1) or first < self.numbers.get(writer, 0):
            raise TraceFormatError(f"it comes after page {self._sequence.get(writer)} of its writer")

        found = self._committed(page)
        if committed != found or events * _RECORD_MIN > committed:
            raise TraceFormatError(f"it was sealed with {events} events in {committed} bytes, it has {found} bytes")

        # It can only have grown since it was copied.
        stand_in = self._filling.get(writer)
        if stand_in is not None and stand_in.sequence == sequence:
            seen = self._arena.get_all(stand_in.page)[L.EVENTS : L.COMMITTED + 1]
            if events < seen[0] or committed < seen[1]:
                raise TraceFormatError(f"it has {events} events in {committed} bytes, and had {seen}")

    def _committed(self, page: int) -> int:
        """
        Raises:
            TraceFormatError: More than fits a page.
        """
        committed = int.from_bytes(self._theirs.read(page, 8, 8), "little" if L.BYTE_ORDER == "<" else "big")
        committed &= L.COMMIT_MASK
        if committed > self._theirs.page_size - L.PAGE_HEADER_SIZE:
            raise TraceFormatError(f"commit is {committed}, more than the page has", offset=8)
        return committed

    def _refuse(self, page: int, state: int, reason: str) -> list[int]:
        """Report and free a damaged page. Returns what can still be offered: what was copied from it before."""
        words = self._theirs.get_all(page)
        self.bad.append(DamagedPage(page, words[L.WRITER], words[L.SEQUENCE], reason))
        self._theirs.empty(page)
        self._theirs.move(page, state, L.FREE)
        copied = [each for each in self._filling.values() if each.theirs == page]
        return [self._end(self._filling.pop(each.writer), overrun=False) for each in copied]

    # --- pages that still fill ------------------------------------------------------------------

    def filling_writers(self) -> set[int]:
        """The writers that are filling a page now."""
        found = map(self._identify, _pages_in(self._theirs, L.FILLING))
        return {each.writer for each in found if each is not None}

    def committed_prefix(self, writer: int) -> CommittedPrefix | None:
        """Copy what a writer has committed on the page that it fills, and return how far that is; None: nothing, or
        pages that it sealed before come first."""
        if self.is_paused:
            return None
        found = self._find_filling(writer)
        if found is None:
            return None
        stand_in = self._filling.get(writer)
        if stand_in is not None and stand_in.sequence != found.sequence:
            self.full.append(self._end(self._filling.pop(writer), overrun=True))
            return None
        try:
            stand_in = self._copy(found, stand_in)
        except TraceFormatError:
            return None  # reported when the page is taken
        if stand_in is None:
            return None
        return CommittedPrefix(stand_in.page, *self._arena.get_all(stand_in.page)[L.EVENTS : L.DEFINITIONS + 1])

    def _find_filling(self, writer: int) -> _Found | None:
        """The page that a writer fills; None: no page, or another one comes first."""
        pages = map(self._identify, _pages_in(self._theirs, L.FILLING))
        mine = [found for found in pages if found is not None and found.writer == writer]
        if not mine:
            return None

        # A page that is just being overrun may still have its old numbers.
        found = max(mine, key=attrgetter("sequence"))
        assert c_module is not None
        c_module.fence()

        # Pages that it sealed before were full by then, and still are, unless taken or overrun.
        before = [*self._scan_full(), *self._early.values()]
        is_next = found.sequence > self._sequence.get(writer, -1)
        if not is_next or any(each.writer == writer and each.sequence < found.sequence for each in before):
            return None
        return found

    def _copy(self, found: _Found, stand_in: _StandIn | None) -> _StandIn | None:
        """Copy what was committed on a page since the last copy.

        Raises:
            TraceFormatError: The page is damaged.
        """
        assert c_module is not None
        done, last = 0, found.timestamp
        if stand_in is not None:
            done, last = self._arena.get_all(stand_in.page)[L.COMMITTED : L.LAST_TIME + 1]
        committed = self._committed(found.page)
        if committed <= done:
            return stand_in

        # Between two fences: if the page still has the same numbers after it, the copy is of that page.
        c_module.fence()
        data = self._theirs.read(found.page, L.PAGE_HEADER_SIZE + done, committed - done)
        c_module.fence()
        if self._identify(found.page) != found:
            return None  # sealed, then overrun or reused

        # Append it to the stand-in.
        events, last = self._tally(data, last)
        if stand_in is None:
            page = self._taken.stand_in(found.page)
            if page is None:
                return None
            stand_in = self._filling[found.writer] = _StandIn(page, found.page, found.writer, found.sequence)
        self._taken.add(stand_in.page, data, events, last, self._refresh_definitions())
        return stand_in

    def _end(self, stand_in: _StandIn, *, overrun: bool) -> int:
        """The page of this stand-in is gone, so the copy is all that remains of it. Returns the page to offer."""
        first, events = self._arena.get_all(stand_in.page)[L.FIRST_EVENT : L.EVENTS + 1]
        self._count(stand_in.writer, stand_in.sequence, first, events)
        if overrun:
            self.saved[stand_in.writer] = self.saved.get(stand_in.writer, 0) + events
        self._taken.complete(stand_in.page, None)
        return stand_in.page

    # --- the end --------------------------------------------------------------------------------

    def finish(self) -> None:
        """The writers are dead or have closed, and no longer change pages: seal the pages that they were filling."""
        self._max_taken = self._theirs.pages
        known = self._refresh_definitions()

        # Every page that is neither free nor sound is sealed or reported.
        for page in range(self._theirs.pages):
            state = self._theirs.get(page, L.STATE)
            if state == L.FILLING:
                self._seal(page, known)
            elif state == L.FULL and self._identify(page) is None:
                self.full += self._refuse(page, L.FULL, "the crc32 of its numbers is wrong")
            elif state >= len(L.STATE_NAMES):
                words = self._theirs.get_all(page)
                self.bad.append(DamagedPage(page, words[L.WRITER], words[L.SEQUENCE], f"its state is {state}"))

        # Stand-ins whose page was overrun are all that remains of it.
        for stand_in in list(self._filling.values()):
            found = self._identify(stand_in.theirs)
            if found is None or (found.writer, found.sequence) != (stand_in.writer, stand_in.sequence):
                self.full.append(self._end(self._filling.pop(stand_in.writer), overrun=True))

    def _tally(self, data: bytes, timestamp: int) -> tuple[int, int]:
        """The number of events among records, and the time of the last.

        Raises:
            TraceFormatError: The records are damaged.
        """
        records = walk(data, timestamp, 0)
        events, _, _, last = tally(records, self._totals)
        next(records, None)  # raises the error at which it stopped
        return events, last

    def _seal(self, page: int, known: int) -> None:
        """Seal a page in its dead writer's place."""
        found = self._identify(page)
        try:
            committed = self._committed(page)
            if committed and found is None:
                raise TraceFormatError("the crc32 of its numbers is wrong")
            is_old = found is None or found.sequence <= self._sequence.get(found.writer, -1)
            if not committed or is_old:  # empty, or with the old content of an overrun that was not finished
                self._theirs.move(page, L.FILLING, L.FREE)
                return

            # Count the events, as the writer's seal would have.
            data = self._theirs.read(page, L.PAGE_HEADER_SIZE, committed)
            events, last = self._tally(data, self._theirs.timestamp(page))
        except TraceFormatError as error:
            self.full += self._refuse(page, L.FILLING, error.message)
            return
        self._theirs.set_from(page, L.EVENTS, events, committed, last, known, 0, 0)
        self._theirs.move(page, L.FILLING, L.FULL)


def taken_over(
    arena: Arena, writers: int, refresh_definitions: Callable[[], int], listener: PageListener | None = None
) -> tuple[PageCycle, TakenRing]:
    """A page cycle over another process's arena, for a reader here, and its ring.

    Raises:
        ConfigurationError: There is no compare-and-swap.
    """
    taken = TakenArena(arena, min(_STAND_INS * writers, arena.pages))
    pages = PageCycle(taken, overrun=False, listener=listener)
    pages.pool = TakenPool(taken)
    pages.ring = ring = TakenRing(taken, writers, refresh_definitions)
    return pages, ring
