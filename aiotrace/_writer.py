"""Writers: each fills one page at a time and turns it when it is full.

    event -> payload -> write: | record | record | record | ............ |   commit advances last
                                                          turn: seal this page, take the next

A writer belongs to a thread, so that writing contends with nobody; slots are bounded, and when there are more
threads than slots, threads share one (a record's common_pid says which thread it was). A thread that ends leaves its
slot, with the half-full page, to the next. A slot is a CPU to trace-cmd and KernelShark.

Laws:
* Only the writer's own side, under its guard, seals its page. Others read `mark`, and copy the committed prefix.
* No call stands between the stores that make a record visible and count it, so neither a signal handler nor another
  thread sees one without the other.
* Every event asked for has a number, `written + dropped`; a page remembers that of its first, so losses are gaps.
"""

from __future__ import annotations

import struct
from collections import deque
from collections.abc import Callable, Sized

from . import _layout as L
from ._clock import Clock
from ._delivery import Mark
from ._guard import Guard
from ._page import encode_record
from ._pages import Pages

_U32 = struct.Struct(L.BYTE_ORDER + "I")
_COMMIT_WORD = 1

CAUSES = ("no_page", "reentrant", "wrong_type", "too_long", "fork")
"""Why an event is refused."""


class Writer:
    """
    Args:
        pages: The recording's.
        slot: Number of this writer.
        clock: Gives nanoseconds.
        definitions: The table whose length a sealed page remembers.
        first_sequence: Number of its first page.
    """

    def __init__(self, pages: Pages, slot: int, clock: Clock, definitions: Sized, first_sequence: int = 0) -> None:
        self.slot = slot
        self.guard = Guard()
        self.payload_max = payload_max(pages.arena.page_size)
        self.written = 0
        self.dropped = dict.fromkeys(CAUSES, 0)
        self.cut = 0
        """Events written with a string that was too long."""
        self.page: int | None = None
        self.waiters: deque[Callable[[], object]] = deque()
        """Wakes of those that wait for room here, in `send`."""
        self.closed = False
        self._pages = pages
        self._clock = clock
        self._definitions = definitions
        self._sequence = first_sequence
        self._refused: deque[str] = deque()  # appended to by re-entrant calls, which own nothing: it is atomic
        self._first_event = 0
        self._first_written = 0
        self._no_page()

    def _no_page(self) -> None:
        self.page = None
        self._view = memoryview(b"")
        self._words = memoryview(bytearray(2 * 8)).cast("Q")
        self._end = 0
        self._limit = 0
        self._last = 0

    # --- events ---------------------------------------------------------------------------------

    def write(self, payload: bytes) -> bool:
        """Write one event.

        Args:
            payload: Whole; a multiple of 4 bytes, at most `payload_max`.

        Returns:
            False if it was refused and counted.
        """
        if not self.guard.enter():
            self._refused.append("reentrant")
            return False
        try:
            if self.closed:
                return False
            now = self._clock()
            delta = now - self._last
            size = len(payload)
            if size <= L.SHORT_PAYLOAD_MAX and 0 <= delta <= L.TIME_DELTA_MAX:
                record = _U32.pack(size >> 2 | delta << L.TYPE_LEN_BITS) + payload
            else:
                if size > self.payload_max:
                    self.dropped["too_long"] += 1
                    return False
                if delta < 0:  # a clock that went backwards
                    now, delta = self._last, 0
                record = encode_record(delta, payload)
            end = self._end + len(record)
            if end > self._limit:
                if not self._turn():
                    self.dropped["no_page"] += 1
                    return False
                record = encode_record(0, payload)
                end = L.PAGE_HEADER_SIZE + len(record)
                now = self._last
            cut = size > L.SHORT_PAYLOAD_MAX and payload[2] & L.FLAG_CUT
            # No call from here on.
            self._view[self._end : end] = record
            self._last = now
            self._end = end
            if cut:
                self.cut += 1
            self.written += 1
            self._words[_COMMIT_WORD] = end - 16
            return True
        finally:
            self.guard.leave()

    def refuse(self, cause: str) -> None:
        """Count an event that was not written."""
        self._refused.append(cause)

    def has_room(self, size: int) -> bool:
        """Whether a payload of `size` bytes would find room (a time extend in front included), as of now."""
        return self._fits(size) or self._pages.can_take

    def make_room(self, size: int) -> bool:
        """Turn the page if a payload of `size` bytes needs that. Returns whether there is room now."""
        if not self.guard.enter():
            return True  # a re-entrant call is refused by `write`, not made to wait
        try:
            return self.closed or self._fits(size) or (self._turn() and self._fits(size))
        finally:
            self.guard.leave()

    def would_turn(self, size: int) -> bool:
        """Whether a payload of `size` bytes needs the next page."""
        return not self._fits(size)

    def _fits(self, size: int) -> bool:
        return self._end + size + 16 <= self._limit

    @property
    def number(self) -> int:
        """How many events it was asked to write so far."""
        return self.written + self.dropped_total

    @property
    def dropped_total(self) -> int:
        return sum(self.dropped.values()) + len(self._refused)

    def dropped_by_cause(self) -> dict[str, int]:
        counts = dict(self.dropped)
        for cause in tuple(self._refused):
            counts[cause] += 1
        return counts

    # --- pages ----------------------------------------------------------------------------------

    def _turn(self) -> bool:
        """Seal the page and take the next. Returns False if there is none; then no page is being filled."""
        if not self._seal():
            return False
        number = self.number
        page = self._pages.take(self.slot, self._sequence, number)
        if page is None:
            return False
        self._sequence += 1
        self._first_event = number
        self._first_written = self.written
        arena = self._pages.arena
        view = arena.page(page)
        words = view[: L.PAGE_HEADER_SIZE].cast("Q")
        now = self._clock()
        words[_COMMIT_WORD] = 0
        words[0] = now
        self._last = now
        self._words = words
        self._view = view
        self._end = L.PAGE_HEADER_SIZE
        self._limit = arena.page_size - L.LOST_COUNT_SIZE
        self.page = page
        return True

    def _seal(self) -> bool:
        while self._refused:
            self.dropped[self._refused.popleft()] += 1
        page = self.page
        if page is None:
            return True
        arena = self._pages.arena
        for field, value in (
            (L.EVENTS, self.written - self._first_written),
            (L.COMMITTED, self._end - L.PAGE_HEADER_SIZE),
            (L.LAST_TIME, self._last),
            (L.DEFINITIONS, len(self._definitions)),
        ):
            arena.set(page, field, value)
        if not self._pages.seal(page):
            arena.set(page, L.EVENTS, 0)
            return False
        self._no_page()
        return True

    def mark(self) -> Mark | None:
        """How far the page that it fills has come; None if it fills none. The caller holds the guard."""
        if self.page is None:
            return None
        committed = self._end - L.PAGE_HEADER_SIZE
        events = self.written - self._first_written
        return Mark(self.page, committed, events, self._last, len(self._definitions), False)

    @property
    def events_on_page(self) -> int:
        """Events on the page that it fills."""
        return self.written - self._first_written if self.page is not None else 0

    @property
    def first_unsealed(self) -> int:
        """Number of the first event that is on no sealed page."""
        return self._first_event if self.page is not None else self.number

    def close(self) -> None:
        """Write no more; the page, if anything is on it, goes into the ring."""
        with self.guard:
            self.closed = True
            if self.page is not None and not self.events_on_page:
                self._pages.return_empty(self.page)
                self._no_page()
            sealed = self._seal()
            assert sealed

    # --- waiting for room -----------------------------------------------------------------------

    def wake_one(self) -> None:
        """Let the first that waits for room here try again."""
        try:
            wake = self.waiters.popleft()
        except IndexError:
            return
        wake()


class Writers:
    """The writer slots of one recording, and which of them are free. Slot 0 is there from the start."""

    def __init__(self, pages: Pages, slots: int, clock: Clock, definitions: Sized, first_sequence: int = 0) -> None:
        self.slots = slots
        self.all: list[Writer] = []
        self._arguments = (clock, definitions, first_sequence)
        self._pages = pages
        self.all.append(Writer(pages, 0, *self._arguments))
        self._free = [self.all[0]]
        self._shared = 0
        self._closed = False
        self._guard = Guard()

    def lease(self) -> tuple[Writer, bool]:
        """A writer for a thread, and whether it is the thread's own: then it comes back by `give_back`."""
        if not self._guard.enter():  # a finaliser that ran while this thread was just here
            return self.all[0], False
        try:
            if self._closed:
                return self.all[0], False
            if self._free:
                return self._free.pop(), True
            if len(self.all) < self.slots:
                writer = Writer(self._pages, len(self.all), *self._arguments)
                self.all.append(writer)
                return writer, True
            self._shared += 1
            return self.all[self._shared % len(self.all)], False
        finally:
            self._guard.leave()

    def give_back(self, writer: Writer) -> None:
        """The thread that had it ended; the page that it fills stays for the next thread."""
        self._free.append(writer)

    def close(self) -> None:
        """Every writer closes, and no new one is made for a thread that comes late."""
        with self._guard:
            self._closed = True
        for writer in tuple(self.all):  # without the guard: a finaliser that runs in a write may ask for a lease
            writer.close()


def payload_max(page_size: int) -> int:
    """The longest payload, in bytes, that fits on an empty page: less the page's header and room for a lost count,
    the record's two words and a time extend."""
    return page_size - L.PAGE_HEADER_SIZE - L.LOST_COUNT_SIZE - 8 - 8
