"""The arena: all page memory and all page state of one recording, reserved once.

    header (4 KiB) | descriptors (128 bytes a page) | definitions | page 0 | page 1 | ... | page n-1

It lies in anonymous memory, or in a file (`_arenafile`), which then outlives the program; nothing else is different.
Reserved is not used: neither costs anything until it is touched, so pages that were never taken do not count in the
resident size. Anonymous memory is MAP_PRIVATE: what a forked child writes stays the child's.

This module knows where pages lie, not who has them: the pool, the ring and the deliveries are views over the
descriptors, and every change of owner goes through `transition`.
"""

from __future__ import annotations

import mmap
import struct
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


def _round_up(size: int, to: int) -> int:
    return -(-size // to) * to


@dataclass(frozen=True, slots=True)
class Shape:
    """Where everything lies in an arena."""

    page_size: int
    """Bytes; a power of two, at least 4096."""
    pages: int
    definitions_size: int = 0
    """Bytes for definitions: anonymous memory has none."""

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
        """Bytes, of everything."""
        return self.first_page + self.pages * self.page_size


class Backing(Protocol):
    """What an arena lies in, if not in anonymous memory."""

    memory: mmap.mmap
    shape: Shape

    def allocate(self, offset: int, size: int) -> bool:
        """Have these bytes there for sure, before they are touched. False: there is no room for them now."""


class Arena:
    """Descriptors and pages.

    Args:
        page_size: Bytes; a power of two.
        pages: How many.
        backing: Where they lie, if not in anonymous memory.
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
        """Where descriptors and pages lie; None: not in one memory."""
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
        """All words of a page's descriptor, in the price of two."""
        return _WHOLE.unpack_from(self.descriptors, page * L.DESCRIPTOR_SIZE)

    def timestamp(self, page: int) -> int:
        """Nanoseconds: what the page itself says that its first delta counts from."""
        return self._words[(self.first_page + page * self.page_size) // 8]

    def set(self, page: int, field: int, value: int) -> None:
        self.descriptors[page * L.DESCRIPTOR_WORDS + field] = value

    def set_from(self, page: int, field: int, *values: int) -> None:
        """Set a field and those that follow it, in the price of one."""
        _WORDS[len(values)].pack_into(self.descriptors, (page * L.DESCRIPTOR_WORDS + field) * 8, *values)

    def give(self, page: int, writer: int, sequence: int, first_event: int) -> None:
        """The page is this writer's: set WRITER, SEQUENCE and FIRST_EVENT, the fields after them up to DELIVERED to 0,
        and then CHECK, which is of the three."""
        descriptors, start = self.descriptors, page * L.DESCRIPTOR_WORDS
        _TAKEN.pack_into(descriptors, (start + L.WRITER) * 8, writer, sequence, first_event, 0, 0, 0, 0, 0, 0)
        descriptors[start + L.CHECK] = crc32(_IDENTITY.pack(writer, sequence, first_event))

    def empty(self, page: int) -> None:
        """Set the fields EVENTS to DELIVERED to 0: nothing is on the page, and nobody holds it."""
        self.set_from(page, L.EVENTS, *_NOTHING)

    def set_sealed(self, page: int, events: int, committed: int, last_time: int, definitions: int) -> None:
        """Set what a page holds that is sealed: EVENTS, COMMITTED, LAST_TIME and DEFINITIONS."""
        place = page * L.DESCRIPTOR_SIZE + L.EVENTS * 8
        _SEALED.pack_into(self.descriptors, place, events, committed, last_time, definitions)

    def move(self, page: int, old: int, new: int) -> None:
        """Change a page's state; that it is in state `old` is the caller's law."""
        moved = transition(self.descriptors, page, old, new)
        assert moved, f"page {page} is {L.STATE_NAMES[self.get(page, L.STATE)]}, not {L.STATE_NAMES[old]}"

    def states(self) -> tuple[int, int, int, int]:
        """How many pages are free, filling, full, in flight."""
        counts = [0, 0, 0, 0]
        for state in self.descriptors[L.STATE :: L.DESCRIPTOR_WORDS].tolist():
            counts[state] += 1
        return counts[0], counts[1], counts[2], counts[3]

    # --- a page's memory --------------------------------------------------------------------------

    def allocate(self, page: int) -> bool:
        """Have a page's memory there for sure, before its first use: where a file system has no room for it, touching
        it would kill the program (SIGBUS).

        Returns:
            False if there is no room now.
        """
        return self._backing is None or self._backing.allocate(self.first_page + page * self.page_size, self.page_size)

    def clear(self, page: int) -> None:
        """Let nothing be on a page: whoever finds it after a kill takes no old events for those of its new writer."""
        self._words[(self.first_page + page * self.page_size) // 8 + 1] = 0

    def forget(self, page: int) -> None:
        """Give a page's memory back to the operating system; it reads as zeros then."""
        advice = mmap.MADV_DONTNEED if self._backing is None else mmap.MADV_REMOVE
        self._memory.madvise(advice, self.first_page + page * self.page_size, self.page_size)

    # --- what is on a page, for whoever looks while it may change ------------------------------------

    def descriptor(self, page: int) -> tuple[int, ...]:
        """All words of a page's descriptor."""
        start = page * L.DESCRIPTOR_WORDS
        return tuple(self.descriptors[start : start + L.DESCRIPTOR_WORDS].tolist())

    def read(self, page: int, offset: int, size: int) -> bytes:
        """A copy of some bytes of a page."""
        return bytes(self._pages[page][offset : offset + size])

    def close(self) -> bool:
        """Give the memory back.

        Returns:
            False if somebody still has a view of a page: then it goes when the last view does.
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
