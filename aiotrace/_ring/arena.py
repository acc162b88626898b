"""The arena: all page memory and all page state of one recording, reserved once.

    header (4 KiB) | descriptors (128 bytes a page) | definitions | page 0 | page 1 | ... | page n-1

It is anonymous memory, or a file (`_arena/file.py`) that outlives the program; all else is the same. Reserved memory
costs nothing until it is touched, so pages that were never taken do not count in the resident size. Anonymous memory is
MAP_PRIVATE: what a forked child writes is not seen by its parent.

This module knows where pages are, not who owns them: the pool, the ring and the deliveries are views of the
descriptors, and every change of owner goes through `transition` (`state.py`).
"""

from __future__ import annotations

import mmap
import struct
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final, Protocol

from .._base.crc32 import crc32
from .._page import layout as L
from .state import transition

_WORDS: Final = tuple(struct.Struct(f"={count}Q") for count in range(L.DESCRIPTOR_WORDS + 1))
_WHOLE: Final = _WORDS[L.DESCRIPTOR_WORDS]
_TAKEN: Final = _WORDS[L.DELIVERED + 1 - L.WRITER]
_IDENTITY: Final = _WORDS[L.FIRST_EVENT + 1 - L.WRITER]
_SEALED: Final = _WORDS[L.DEFINITIONS + 1 - L.EVENTS]
_NOTHING: Final = (0,) * (L.DELIVERED + 1 - L.EVENTS)
REFUSED: Final = struct.Struct("=5Q")
"""A writer's counts of refused events, by cause."""
_NONE_REFUSED: Final = REFUSED.unpack(bytes(REFUSED.size))


def _round_up(size: int, to: int) -> int:
    return -(-size // to) * to


@dataclass(frozen=True, slots=True)
class Shape:
    """The offsets and sizes of an arena's parts."""

    page_size: int
    """Bytes; a power of two, at least 4096."""
    pages: int
    definitions_size: int = 0
    """Bytes for definitions; 0 in anonymous memory."""

    @property
    def descriptors(self) -> int:
        """Offset of the first descriptor, in bytes."""
        return L.ARENA_HEADER_SIZE

    @property
    def definitions(self) -> int:
        """Offset of the definitions, in bytes."""
        return _round_up(self.descriptors + self.pages * L.DESCRIPTOR_SIZE, L.ARENA_ALIGNMENT)

    @property
    def first_page(self) -> int:
        """Offset of page 0, in bytes."""
        return _round_up(self.definitions + self.definitions_size, self.page_size)

    @property
    def size(self) -> int:
        """Bytes of the whole arena."""
        return self.first_page + self.pages * self.page_size


class Backing(Protocol):
    """The memory of an arena that is not anonymous."""

    memory: mmap.mmap
    shape: Shape

    def allocate(self, offset: int, size: int) -> bool:
        """Make sure that these bytes exist before they are touched. Returns False if there is no room for them now."""


class Arena:
    """Descriptors and pages.

    Args:
        page_size: Bytes; a power of two.
        pages: Number of pages.
        backing: Their memory; None: anonymous memory.
    """

    def __init__(self, page_size: int, pages: int, backing: Backing | None = None) -> None:
        shape = Shape(page_size, pages) if backing is None else backing.shape
        self.page_size = page_size
        self.pages = pages
        self.first_page = first = shape.first_page
        """Offset of page 0 in the memory, in bytes."""
        self._backing = backing
        if backing is None:
            self._memory = mmap.mmap(-1, shape.size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        else:
            self._memory = backing.memory
        self._view = memoryview(self._memory)
        self.memory: memoryview | None = self._view
        """The memory of descriptors and pages; None if they are not in one piece."""
        self._words = self._view.cast("Q")
        start = shape.descriptors
        self.descriptors = self._view[start : start + pages * L.DESCRIPTOR_SIZE].cast("Q")
        """All descriptors as u64 words: word `page * DESCRIPTOR_WORDS + FIELD`."""
        self._pages = tuple(self._view[first + i * page_size : first + (i + 1) * page_size] for i in range(pages))

    def page(self, index: int) -> memoryview:
        """The bytes of a page."""
        return self._pages[index]

    def get(self, page: int, field: int) -> int:
        """A word of a page's descriptor."""
        return self.descriptors[page * L.DESCRIPTOR_WORDS + field]

    def get_all(self, page: int) -> tuple[int, ...]:
        """All words of a page's descriptor; costs about as much as reading two."""
        return _WHOLE.unpack_from(self.descriptors, page * L.DESCRIPTOR_SIZE)

    def timestamp(self, page: int) -> int:
        """Nanoseconds: the base of the page's first delta, from the page itself."""
        return self._words[(self.first_page + page * self.page_size) // 8]

    def set(self, page: int, field: int, value: int) -> None:
        self.descriptors[page * L.DESCRIPTOR_WORDS + field] = value

    def set_from(self, page: int, field: int, *values: int) -> None:
        """Set a field and those that follow it; costs about as much as setting one."""
        _WORDS[len(values)].pack_into(self.descriptors, (page * L.DESCRIPTOR_WORDS + field) * 8, *values)

    def give(self, page: int, writer: int, sequence: int, first_event: int) -> None:
        """Give the page to a writer: set WRITER, SEQUENCE and FIRST_EVENT, the fields after them up to DELIVERED to 0,
        and last CHECK, the crc of those three."""
        descriptors, start = self.descriptors, page * L.DESCRIPTOR_WORDS
        _TAKEN.pack_into(descriptors, (start + L.WRITER) * 8, writer, sequence, first_event, 0, 0, 0, 0, 0, 0)
        descriptors[start + L.CHECK] = crc32(_IDENTITY.pack(writer, sequence, first_event))

    def empty(self, page: int) -> None:
        """Set the fields EVENTS to DELIVERED to 0: nothing is on the page, and no sink holds it."""
        self.set_from(page, L.EVENTS, *_NOTHING)

    def set_sealed(self, page: int, events: int, committed: int, last_time: int, definitions: int) -> None:
        """Set what a sealed page holds: EVENTS, COMMITTED, LAST_TIME and DEFINITIONS."""
        place = page * L.DESCRIPTOR_SIZE + L.EVENTS * 8
        _SEALED.pack_into(self.descriptors, place, events, committed, last_time, definitions)

    def move(self, page: int, old: int, new: int) -> None:
        """Change a page's state. The caller has made sure that it is in state `old`."""
        moved = transition(self.descriptors, page, old, new)
        assert moved, f"page {page} is {L.STATE_NAMES[self.get(page, L.STATE)]}, not {L.STATE_NAMES[old]}"

    def states(self) -> tuple[int, int, int, int]:
        """The numbers of pages that are free, filling, full and in flight."""
        counts = [0, 0, 0, 0]
        for state in self.descriptors[L.STATE :: L.DESCRIPTOR_WORDS].tolist():
            counts[state] += 1
        return counts[0], counts[1], counts[2], counts[3]

    def get_refused(self, writer: int) -> tuple[int, ...]:
        """The events that a writer has refused, by cause."""
        if writer >= L.ARENA_COUNTED_WRITERS:
            return _NONE_REFUSED
        return REFUSED.unpack_from(self._view, L.ARENA_REFUSED_EVENTS + writer * REFUSED.size)

    def set_refused(self, writer: int, counts: Iterable[int]) -> None:
        """Set how many events a writer has refused, by cause, where a reader after a kill finds it."""
        if writer < L.ARENA_COUNTED_WRITERS:
            REFUSED.pack_into(self._view, L.ARENA_REFUSED_EVENTS + writer * REFUSED.size, *counts)

    # --- a page's memory --------------------------------------------------------------------------

    def allocate(self, page: int) -> bool:
        """Make sure that a page's memory exists, before its first use: if the file system has no room for it, touching
        it would kill the program (SIGBUS).

        Returns:
            False if there is no room now.
        """
        return self._backing is None or self._backing.allocate(self.first_page + page * self.page_size, self.page_size)

    def clear(self, page: int) -> None:
        """Remove all records, so that a reader after a kill does not take old events for those of the new writer."""
        self._words[(self.first_page + page * self.page_size) // 8 + 1] = 0

    def forget(self, page: int) -> None:
        """Return a page's memory to the operating system; it reads as zeros afterwards."""
        advice = mmap.MADV_DONTNEED if self._backing is None else mmap.MADV_REMOVE
        self._memory.madvise(advice, self.first_page + page * self.page_size, self.page_size)

    # --- for readers of pages that may change at the same time -----------------------------------------

    def descriptor(self, page: int) -> tuple[int, ...]:
        """All words of a page's descriptor."""
        start = page * L.DESCRIPTOR_WORDS
        return tuple(self.descriptors[start : start + L.DESCRIPTOR_WORDS].tolist())

    def read(self, page: int, offset: int, size: int) -> bytes:
        """A copy of some bytes of a page."""
        return bytes(self._pages[page][offset : offset + size])

    def close(self) -> bool:
        """Unmap the memory.

        Returns:
            False if a view of a page is still in use: then the memory goes with the last view.
        """
        self.descriptors.release()
        self._words.release()
        for page in self._pages:
            try:
                page.release()
            except BufferError:
                return False
        try:
            self._view.release()
            self._memory.close()
        except BufferError:
            return False
        return True
