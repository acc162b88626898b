"""Writers: each fills one page at a time and turns it when it is full.

    event -> payload -> write: | record | record | record | ............ |   commit advances last
                                                          turn: seal this page, take the next

A writer belongs to a thread, so that threads do not contend. The number of slots is bounded; if there are more threads
than slots, threads share one (a record's common_pid says which thread it was). The slot of a thread that ends, with its
half-full page, goes to the next thread. trace-cmd and KernelShark show a slot as a CPU.

Invariants (held by tests/recording/test_model.py):
* Only the writer seals its page, under its guard. Others ask for `committed_prefix`, and copy that.
* Every event that the writer is called with has a number, `written + dropped`. A page remembers the number of its first
  event, so losses are gaps.
* What is refused is counted in the arena too, before the call returns: after a kill nobody else knows of it.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sized
from typing import TypeVar

from .._base.clock import Clock
from .._base.reentrancy import Guard
from .._page import layout as L
from .cursor import Cursor
from .delivery import CommittedPrefix
from .page_cycle import InternalEvent, PageCycle

CAUSES = ("no_page", "reentrant", "wrong_type", "too_long", "fork")
"""The reasons for which an event is refused."""


class Writer(Cursor):
    """
    Args:
        pages: The recording's.
        slot: Number of this writer.
        clock: Returns nanoseconds.
        definitions: The table whose length is stored with a sealed page.
        first_sequence: Number of its first page.
    """

    def __init__(self, pages: PageCycle, slot: int, clock: Clock, definitions: Sized, first_sequence: int = 0) -> None:
        super().__init__(clock)

        # who writes, and what it refused
        self.slot = slot
        self.guard = Guard()
        self._lock = self.guard.lock
        self.payload_max = payload_max(pages.arena.page_size)
        self.dropped = dict.fromkeys(CAUSES, 0)
        self.page: int | None = None
        self.waiters: deque[Callable[[], object]] = deque()
        """Functions that wake the `send` calls that wait for room here."""
        self.closed = False

        # the pages: where they come from, and where the next one begins
        self._pages = pages
        self._definitions = definitions
        self.sequence = first_sequence
        """Number of its next page."""

        # what happens inside a call, and is reported after it
        self.pending_events: list[InternalEvent] = []
        self._turning = False
        self._refused: deque[str] = deque()  # re-entrant calls append to it without the guard: that is atomic
        self.first_event = 0
        self.first_written = 0
        pages.writers.append(self)

    # --- events ---------------------------------------------------------------------------------

    def write(self, payload: bytes) -> bool:
        """Write one event.

        Args:
            payload: Whole; a multiple of 4 bytes, at most `payload_max`.

        Returns:
            False if it was refused and counted.
        """
        guard = self.guard
        with self._lock:
            # a signal handler or a finalizer, inside another call of this thread
            if guard.busy:
                self._refused.append("reentrant")
                return False
            guard.busy = True

            try:
                # the common case: there is room on the page
                if self.put(payload):
                    return True

                if self.closed:
                    return False
                if len(payload) > self.payload_max:
                    self._count("too_long")
                    return False

                # the page is full
                if not self._turn():
                    self._count("no_page")
                    return False
                written = self.put(payload)
            finally:
                guard.busy = False

        # Only without the guard: a listener may record events itself.
        if self.pending_events:
            self._tell()
        if self._pages.is_scarce:
            self._pages.listener.pages_scarce()
        return written

    def _tell(self) -> None:
        """Report what a turn did. This may write an event here, and turn again."""
        while self.pending_events:
            self._pages.listener.happened(*self.pending_events.pop(0))

    def refuse(self, cause: str) -> None:
        """Count an event that was not written."""
        self._refused.append(cause)
        guard = self.guard
        with self._lock:
            if guard.busy or self.closed:
                return  # inside another call of this thread: counted at the next turn
            guard.busy = True
            try:
                self._count_refused()
            finally:
                guard.busy = False

    def refuse_without_lock(self, cause: str) -> None:
        """Count an event that was not written, while a lock may belong to a thread that is gone: around a fork."""
        self._refused.append(cause)

    def _count(self, cause: str) -> None:
        """The caller has the guard."""
        self.dropped[cause] += 1
        self.publish_refused()

    def publish_refused(self) -> None:
        """Have the counts in the arena, where a reader after a kill finds them."""
        self._pages.arena.set_refused(self.slot, self.dropped_by_cause().values())

    def has_room(self, size: int) -> bool:
        """Whether a payload of `size` bytes would find room now, with a time extend in front."""
        return self.fits(size) or self._pages.can_take

    def make_room(self, size: int) -> bool:
        """Turn the page if a payload of `size` bytes needs that. Returns whether there is room now."""
        guard = self.guard
        with guard.lock:
            if guard.busy:
                return True  # a re-entrant call is refused by `write`, not made to wait
            guard.busy = True
            try:
                has_room = self.closed or self.fits(size) or (self._turn() and self.fits(size))
            finally:
                guard.busy = False
        if self.pending_events:
            self._tell()
        return has_room

    def would_turn(self, size: int) -> bool:
        """Whether a payload of `size` bytes needs the next page."""
        return not self.fits(size)

    @property
    def number(self) -> int:
        """The number of events that it was called with so far."""
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
        """Seal the page and take the next. Returns False if there is none; then no page is being filled.

        If a signal handler raises in here, the exception goes to the program; the next turn sees `_turning` and repairs
        the interrupted one by the descriptors.
        """
        if self._turning:
            self._recover()
        self._turning = True
        if self._refused:
            self._count_refused()

        # The first page is only taken; any other is described and sealed in the same step.
        pages = self._pages
        page = self.page
        if page is None:
            taken = pages.turn(self, None, self.number, self.written)
        else:
            self.freeze()
            written = self._describe(page)
            taken = pages.turn(self, page, written + sum(self.dropped.values()) + len(self._refused), written)
            if taken is None and self.page is not None:
                self._keep(page)

        if taken is not None:
            self.enter(pages.arena.page(taken))
        self._turning = False
        return taken is not None

    def _recover(self) -> None:
        self._pages.recover()
        if self.page is not None and self._pages.arena.get(self.page, L.STATE) != L.FILLING:
            self.leave()
            self.page = None

    def _count_refused(self) -> None:
        refused = self._refused
        for _ in range(len(refused)):  # no longer: a handler that records events may append to it meanwhile
            self.dropped[refused[0]] += 1
            del refused[0]  # not popleft: without a call in between an interrupt finds it counted once
        self.publish_refused()

    def _describe(self, page: int) -> int:
        """Fill in the descriptor of the page, which is frozen. Returns `written`."""
        committed, last, written = self.state()
        self._pages.arena.set_sealed(page, written - self.first_written, committed, last, len(self._definitions))
        return written

    def _keep(self, page: int) -> None:
        """Undo `freeze` and `_describe`."""
        self._pages.arena.set(page, L.EVENTS, 0)
        self.thaw()

    def committed_prefix(self) -> CommittedPrefix | None:
        """What the page that it fills holds now; None if it fills none. The caller holds the guard."""
        if self.page is None:
            return None
        committed, last, written = self.state()
        return CommittedPrefix(self.page, written - self.first_written, committed, last, len(self._definitions))

    @property
    def events_on_page(self) -> int:
        """Events on the page that it fills."""
        return self.written - self.first_written if self.page is not None else 0

    def account(self) -> tuple[int, int | None, int]:
        """Events written, the page that it fills, and the events on that page, all read at one moment.

        The caller holds the page cycle's guard, so that no page turns during the call. A page that is full by its
        descriptor belongs to the ring already.
        """
        written, page = self.state()[2], self.page
        return written, page, written - self.first_written if page is not None else 0

    @property
    def first_unsealed(self) -> int:
        """Number of the first event that is not on a sealed page."""
        return self.first_event if self.page is not None else self.number

    def close(self) -> None:
        """Stop writing, and put the page into the ring if anything is on it."""
        with self.guard:
            self.closed = True
            self.freeze()
            if self._turning:
                self._recover()

            if self.page is not None and not self.events_on_page:
                self.leave()
                self._pages.return_empty(self.page)
                self.page = None

            self._count_refused()
            if self.page is not None:
                self._describe(self.page)
                self._pages.seal(self.page)
                self.leave()
                self.page = None

    # --- waiting for room -----------------------------------------------------------------------

    def wake_one(self) -> None:
        """Let the first `send` that waits for room here try again."""
        try:
            wake = self.waiters.popleft()
        except IndexError:
            return
        wake()


W = TypeVar("W", bound=Writer)


class Writers:
    """The writer slots of one recording, and which of them are free. Slot 0 exists from the start."""

    def __init__(self, pages: PageCycle, slots: int, clock: Clock, definitions: Sized, first_sequence: int = 0) -> None:
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
        """A writer for a thread, and whether it is exclusive to the thread: then it is returned by `give_back`."""
        if not self._guard.enter():  # a finaliser ran while this thread was in here
            return self.all[0], False
        try:
            self._pages.listener.writer_leased()
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

    def reserve(self, make: type[W]) -> W | None:
        """A writer of a subclass, which is never leased to a thread; None if there is no slot left."""
        with self._guard:
            if self._closed or len(self.all) >= self.slots:
                return None
            writer = make(self._pages, len(self.all), *self._arguments)
            self.all.append(writer)
            return writer

    def give_back(self, writer: Writer) -> None:
        """Its thread ended. The page that it fills is kept for the next thread."""
        self._free.append(writer)

    def close(self) -> None:
        """Close all writers, and make no new ones."""
        with self._guard:
            self._closed = True
        for writer in tuple(self.all):  # without the guard: a finaliser during a write may ask for a lease
            writer.close()


def payload_max(page_size: int) -> int:
    """The longest payload, in bytes, that fits on an empty page: without the page's header, a lost count, the record's
    two words and a time extend."""
    return page_size - L.PAGE_HEADER_SIZE - L.LOST_COUNT_SIZE - 8 - 8
