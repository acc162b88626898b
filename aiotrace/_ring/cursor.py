"""The cursor: a writer's position on the page that it fills, and the one step that puts a record there.

    page   | header | record | record | record |            | 8 bytes kept free |
                                               end          limit

This runs per event, so there is a C implementation too (`_csrc/ring/cursor.c`); `Cursor` is that one if the C module
is there. In both, **`put` is one step** (held by tests/events/test_reentrancy.py): no signal handler, finaliser or
other thread sees a record that is visible and not counted, or counted and not visible. Code that is about to touch the
page in another way calls `freeze` first, after which `put` finds no room.

Sans-IO: the clock is an argument. The writer decides what to do when a page is full.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from .._base.backend import c_module
from .._base.clock import Clock
from .._page import layout as L
from .._page.encode import encode_record

_SHORT_MAX: Final = L.SHORT_PAYLOAD_MAX  # looked up once, not with each event
_DELTA_MAX: Final = L.TIME_DELTA_MAX
_DELTA_BITS: Final = L.TYPE_LEN_BITS
_NO_PAGE: Final = memoryview(bytearray(L.PAGE_HEADER_SIZE))


class PythonCursor:
    """The pure-Python implementation.

    Args:
        clock: Returns nanoseconds.
    """

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self.written = 0
        """Events written, over all pages."""
        self.cut = 0
        """Events among them with a string that was cut."""
        self.leave()

    def enter(self, page: memoryview) -> None:
        """Start on an empty page: write its header, with the time of now."""
        self._view = page
        self._words = page[: len(page) & ~3].cast("I")
        self._commit = page[: L.PAGE_HEADER_SIZE].cast("Q")
        self._commit[1] = 0
        self._last = self._commit[0] = self._clock()
        self._end = L.PAGE_HEADER_SIZE
        self.thaw()

    def leave(self) -> None:
        """Have no page."""
        self._view = _NO_PAGE
        self._words = _NO_PAGE.cast("I")
        self._commit = _NO_PAGE.cast("Q")
        self._end = self._limit = 0
        self._last = 0

    def freeze(self) -> None:
        """Let `put` find no room from now on."""
        self._limit = 0

    def thaw(self) -> None:
        """Undo `freeze`, for a page that is kept."""
        self._limit = len(self._view) - L.LOST_COUNT_SIZE if self._end else 0

    def state(self) -> tuple[int, int, int]:
        """Bytes of records on the page, time of the last one in nanoseconds, and `written`, all read at one moment."""
        return max(self._end - L.PAGE_HEADER_SIZE, 0), self._last, self.written

    def fits(self, size: int) -> bool:
        """Whether a payload of `size` bytes has room, with a time extend in front if it needs one."""
        return self._end + size + 16 <= self._limit

    def put(self, payload: bytes) -> bool:
        """Write one record. Returns False, without effect, if there is no room.

        Args:
            payload: Whole; a multiple of 4 bytes.
        """
        if not self._limit:
            return False
        now = self._clock()
        delta = now - self._last
        size = len(payload)

        if size <= _SHORT_MAX and 0 <= delta <= _DELTA_MAX:
            # No call until the record is committed: signal handlers and other threads run at calls only.
            begin = self._end
            end = begin + 4 + size
            if end > self._limit:
                return False
            self._words[begin >> 2] = size >> 2 | delta << _DELTA_BITS
            self._view[begin + 4 : end] = payload
            cut = 0
        else:
            if delta < 0:  # a clock that went backwards
                now, delta = self._last, 0
            record = encode_record(delta, payload)
            cut = size > _SHORT_MAX and payload[2] & L.FLAG_CUT
            # No call from here either.
            begin = self._end
            end = begin + len(record)
            if end > self._limit:
                return False
            self._view[begin:end] = record

        # The event is on the page when its commit is stored: that comes last.
        self._last = now
        self._end = end
        if cut:
            self.cut += 1
        self.written += 1
        self._commit[1] = end - 16
        return True


if TYPE_CHECKING or c_module is None:
    Cursor = PythonCursor
else:
    Cursor = c_module.Cursor
