"""The arena: all page memory and all page state of one recording, reserved once.

    descriptors (128 bytes a page) | padding | page 0 | page 1 | ... | page n-1

Reserved is not used: anonymous memory costs nothing until it is touched, so pages that were never taken do not
count in the resident size. The memory is MAP_PRIVATE: what a forked child writes stays the child's.

This module knows where pages lie, not who has them: the pool, the ring and the deliveries are views over the
descriptors, and every change of owner goes through `transition`.
"""

from __future__ import annotations

import mmap
import struct
from typing import Final

from . import _layout as L
from ._page import transition

_WORDS: Final = tuple(struct.Struct(f"={count}Q") for count in range(L.DESCRIPTOR_WORDS + 1))


class Arena:
    """Descriptors and pages.

    Args:
        page_size: Bytes; a power of two.
        pages: How many.
    """

    def __init__(self, page_size: int, pages: int) -> None:
        self.page_size = page_size
        self.pages = pages
        first = -(-pages * L.DESCRIPTOR_SIZE // page_size) * page_size
        self._first = first
        self._memory = mmap.mmap(-1, first + pages * page_size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        self._view = memoryview(self._memory)
        self.descriptors = self._view[: pages * L.DESCRIPTOR_SIZE].cast("Q")
        """All descriptors as u64 words: word `page * DESCRIPTOR_WORDS + FIELD`."""
        self._pages = tuple(self._view[first + i * page_size : first + (i + 1) * page_size] for i in range(pages))

    def page(self, index: int) -> memoryview:
        """The bytes of a page."""
        return self._pages[index]

    def get(self, page: int, field: int) -> int:
        """A word of a page's descriptor."""
        return self.descriptors[page * L.DESCRIPTOR_WORDS + field]

    def set(self, page: int, field: int, value: int) -> None:
        self.descriptors[page * L.DESCRIPTOR_WORDS + field] = value

    def set_from(self, page: int, field: int, *values: int) -> None:
        """Set a field and those that follow it, in the price of one."""
        _WORDS[len(values)].pack_into(self.descriptors, (page * L.DESCRIPTOR_WORDS + field) * 8, *values)

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

    def forget(self, page: int) -> None:
        """Give a page's memory back to the operating system; it reads as zeros then."""
        self._memory.madvise(mmap.MADV_DONTNEED, self._first + page * self.page_size, self.page_size)

    def close(self) -> bool:
        """Give the memory back.

        Returns:
            False if somebody still has a view of a page: then it goes when the last view does.
        """
        self.descriptors.release()
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
