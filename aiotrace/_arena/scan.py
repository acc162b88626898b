"""Scans an arena: copies what is on its pages at one moment, while writers continue or after they were killed. Sans-IO.

    descriptors --plan--> pages of each writer, oldest first --copy, check--> copies, and what could not be copied

Nothing is locked and no page changes its owner. Invariants (held by tests/arena/test_scan.py):

* A copy is what the writer committed: as long as `commit` was before copying, and discarded if the descriptor shows
  afterwards that the page was reused for other events.
* A scan shows one moment, that of its plan: pages that are filled later belong to the next scan. So it has gaps only
  where events are missing.
* Losses are gaps in the numbers of a writer's events. What was overwritten before the first scan does not count.
* Damage is local: a damaged page is left out, and its events count as lost before the next page.

`Memory` hides whether the arena is in this process or in a file.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from dataclasses import dataclass, replace
from operator import attrgetter
from typing import Final, NamedTuple, Protocol

from .._base.crc32 import crc32
from .._base.errors import TraceFormatError
from .._page import layout as L
from .._page.entry import PageCopy, PageEntry
from .._page.walk import new_totals, tally, walk

_HEADER: Final = struct.Struct(L.BYTE_ORDER + "QQ")
TRIES: Final = 3
"""Retries when a writer takes the page while it is being read. Losing the race three times in a row is practically
impossible."""
_IDENTITY: Final = struct.Struct("=QQQ")
_NUMBER_MAX: Final = (1 << 62) - 1
_TIME_MASK: Final = (1 << 64) - 1


class Memory(Protocol):
    """Read access to an arena's descriptors and pages."""

    page_size: int
    pages: int

    def descriptor(self, page: int) -> tuple[int, ...]: ...

    def read(self, page: int, offset: int, size: int) -> bytes: ...


class RawPage(NamedTuple):
    """A page's content as it was read."""

    timestamp: int
    data: bytes
    sealed: tuple[int, int, int] | None
    """Events, bytes and last time from the writer's seal; None: the page still fills, or was settled since."""
    definitions: int


class PageCandidate(NamedTuple):
    """A page that was in use when the scan began."""

    page: int
    writer: int
    sequence: int
    first_event: int
    timestamp: int
    """Nanoseconds: the time of its first event."""
    raw: RawPage | None = None
    """Its content then, if its writer was filling it."""

    @property
    def number(self) -> tuple[int, int]:
        return self.writer, self.sequence

    @property
    def identity(self) -> tuple[int, int, int]:
        return self.writer, self.sequence, self.first_event


class DamagedPage(NamedTuple):
    """A page that failed its checks."""

    page: int
    """Its index in the arena."""
    writer: int
    sequence: int
    reason: str


@dataclass(slots=True)
class Position:
    """How far a writer's stream was read."""

    next_event: int
    """-1: unknown."""
    sequence: int = -1
    offset: int = 0
    events: int = 0
    timestamp: int = 0
    """Nanoseconds: of the last event that was seen, from which the next one's time is counted; -1: unknown."""


class ArenaScan:
    """Scans one arena, once or repeatedly; nothing is returned twice.

    Args:
        writers: Number of writer slots; a page of another slot is damaged.
        trusted: The arena is this process's own memory: a page's seal is believed without counting its events.
        seen: Per writer, how far its stream is stored elsewhere.
    """

    def __init__(
        self, memory: Memory, writers: int, *, trusted: bool = False, seen: Mapping[int, Position] | None = None
    ) -> None:
        self._memory = memory
        self._writers = writers
        self._positions: dict[int, Position] = dict(seen or {})
        self._totals = new_totals()
        self._trusted = trusted

    def plan(self) -> list[PageCandidate | DamagedPage]:
        """The pages that are in use now, oldest first, and each writer's in stream order. Pages that still fill are
        copied here."""
        found: dict[tuple[int, int], PageCandidate] = {}
        bad: list[PageCandidate | DamagedPage] = []
        for page in range(self._memory.pages):
            each = self._find(page)
            if isinstance(each, PageCandidate) and (other := found.get(each.number)) is not None:
                each = DamagedPage(page, *each.number, f"page {other.page} has its number")
            if isinstance(each, PageCandidate):
                found[each.number] = each
            elif each is not None:
                bad.append(each)
        return bad + _in_order(list(found.values()))

    def _find(self, page: int) -> PageCandidate | DamagedPage | None:
        """The page as a candidate; None: it is empty."""
        words = self._memory.descriptor(page)
        for _ in range(TRIES):
            timestamp, committed = self._header(page)
            if words[L.STATE] == L.FREE or (words[L.STATE] == L.FILLING and not committed):
                return None  # its numbers may be half set
            candidate = PageCandidate(page, words[L.WRITER], words[L.SEQUENCE], words[L.FIRST_EVENT], timestamp)
            try:
                self._check(words)
                if words[L.STATE] != L.FILLING:
                    return candidate
                raw = self._read(candidate)
                return None if raw is None else candidate._replace(raw=raw)
            except TraceFormatError as error:
                before, words = words, self._memory.descriptor(page)
                if words == before:
                    return DamagedPage(page, *candidate.number, error.message)
        return DamagedPage(page, *candidate.number, "its numbers changed again and again")

    def _check(self, words: tuple[int, ...]) -> None:
        """
        Raises:
            TraceFormatError: The descriptor is damaged.
        """
        if words[L.STATE] >= len(L.STATE_NAMES):
            raise TraceFormatError(f"its state is {words[L.STATE]}")
        if words[L.WRITER] >= self._writers:
            raise TraceFormatError(f"it is of writer {words[L.WRITER]}, there are {self._writers}")
        if max(words[L.SEQUENCE], words[L.FIRST_EVENT]) > _NUMBER_MAX:
            raise TraceFormatError(f"its numbers are {words[L.SEQUENCE]} and {words[L.FIRST_EVENT]}")
        if crc32(_IDENTITY.pack(*words[L.WRITER : L.FIRST_EVENT + 1])) != words[L.CHECK]:
            raise TraceFormatError("the crc32 of its numbers is wrong")

    def has_seen(self, candidate: PageCandidate | DamagedPage) -> bool:
        """Whether an earlier scan returned some of this page."""
        position = self._positions.get(candidate.writer)
        return position is not None and candidate.sequence <= position.sequence

    def copy(self, candidate: PageCandidate) -> PageCopy | DamagedPage | None:
        """What is on a page that earlier scans did not return; None: nothing, or it was reused for other events
        since."""
        position = self._positions.get(candidate.writer)
        if position is not None and candidate.sequence < position.sequence:
            return None
        try:
            raw = candidate.raw or self._read(candidate)
            if raw is None:
                return None
            return self._make(candidate, raw, position)
        except TraceFormatError as error:
            return DamagedPage(candidate.page, candidate.writer, candidate.sequence, error.message)

    def _read(self, candidate: PageCandidate) -> RawPage | None:
        """What is committed on the page now; None: nothing, or it was reused for other events."""
        before = self._memory.descriptor(candidate.page)
        timestamp, committed = self._header(candidate.page)
        if not committed:
            return None
        if committed > self._memory.page_size - L.PAGE_HEADER_SIZE:
            raise TraceFormatError(f"commit is {committed}, more than the page has", offset=8)
        data = self._memory.read(candidate.page, L.PAGE_HEADER_SIZE, committed)
        after = self._memory.descriptor(candidate.page)

        # A page's numbers change before its content does.
        if (after[L.WRITER], after[L.SEQUENCE], after[L.FIRST_EVENT]) != candidate.identity:
            return None
        sealed = before[L.EVENTS], before[L.COMMITTED], before[L.LAST_TIME]
        is_steady = sealed == (after[L.EVENTS], after[L.COMMITTED], after[L.LAST_TIME])
        is_sealed = before[L.STATE] in (L.FULL, L.IN_FLIGHT) and is_steady and any(sealed)
        return RawPage(timestamp, data, sealed if is_sealed else None, before[L.DEFINITIONS])

    def _header(self, page: int) -> tuple[int, int]:
        timestamp, commit = _HEADER.unpack(self._memory.read(page, 0, L.PAGE_HEADER_SIZE))
        return timestamp, commit & L.COMMIT_MASK

    def _make(self, candidate: PageCandidate, raw: RawPage, position: Position | None) -> PageCopy | None:
        """
        Raises:
            TraceFormatError: The page is damaged.
        """
        continues = position is not None and position.sequence == candidate.sequence
        if position is None:  # only a writer's very first page shows how many events were lost before it
            position = Position(0 if not candidate.sequence else candidate.first_event)
        before = position if continues else Position(candidate.first_event, candidate.sequence, 0, 0, raw.timestamp)
        if before.offset >= len(raw.data):
            return None
        if before.timestamp < 0:
            before = self._with_time(before, raw)

        # Losses are the gap in the numbers.
        is_known = not continues and position.next_event >= 0
        lost = candidate.first_event - position.next_event if is_known else 0
        if lost < 0:
            raise TraceFormatError(f"its first event is number {candidate.first_event}, not {position.next_event}")

        # How many events there are: by the seal, or counted and compared with it.
        if self._trusted and raw.sealed is not None:
            total, _, last = raw.sealed
            events = total - before.events
        else:
            events, last = self._count(raw, before)
            total = before.events + events
            if raw.sealed is not None and raw.sealed != (total, len(raw.data), last):
                raise TraceFormatError(f"it was sealed with {raw.sealed}, it has {(total, len(raw.data), last)}")

        # The next scan continues here.
        self._positions[candidate.writer] = Position(
            candidate.first_event + total, candidate.sequence, len(raw.data), total, last
        )
        data = memoryview(raw.data)[before.offset :]
        entry = PageEntry(
            candidate.writer, candidate.sequence, before.offset, raw.sealed is not None, events, lost,
            raw.definitions, before.timestamp, len(data),
        )  # fmt: skip
        return PageCopy(entry, data)

    def _with_time(self, before: Position, raw: RawPage) -> Position:
        """The position, with the time of the last event that was read."""
        last = tally(walk(raw.data[: before.offset], raw.timestamp, 0), self._totals)[3]
        return replace(before, timestamp=last & _TIME_MASK)

    def _count(self, raw: RawPage, before: Position) -> tuple[int, int]:
        """The number of events after `before`, and the time of the last."""
        records = walk(raw.data, before.timestamp, before.offset)
        events, _, _, last = tally(records, self._totals)
        next(records, None)  # raises the error at which it stopped
        return events, last & _TIME_MASK if events else before.timestamp


def _in_order(found: list[PageCandidate]) -> list[PageCandidate | DamagedPage]:
    """By time, but each writer's pages by number: the time on a damaged page means nothing."""
    streams: dict[int, list[PageCandidate]] = {}
    for candidate in sorted(found, key=attrgetter("number")):
        streams.setdefault(candidate.writer, []).append(candidate)
    following = {writer: iter(stream) for writer, stream in streams.items()}
    return [next(following[candidate.writer]) for candidate in sorted(found, key=attrgetter("timestamp"))]


def with_definitions(copy: PageCopy, count: int, *, complete: bool | None = None) -> PageCopy:
    """The same page for a reader that knows `count` definitions."""
    is_complete = copy.complete if complete is None else complete
    return PageCopy(copy.entry._replace(definitions_needed=count, complete=is_complete), copy.data)
