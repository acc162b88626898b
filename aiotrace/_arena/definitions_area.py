"""The definitions in an arena's file: frames as in a journal, each with its crc32, one after the other.

    header: ARENA_USED = bytes of complete definitions ----------+
    definitions area:  hello | definitions | definitions | ... | v   not used yet

A definition is in the file before any page needs it. ARENA_USED is written last: a reader, also after a kill, reads
only what is before it.
"""

from __future__ import annotations

import errno
import mmap
import os
import struct
from collections.abc import Sequence
from typing import Final, Protocol

from .._base.reentrancy import Guard
from .._formats.journal import JournalWriter
from .._page import layout as L
from .._page.definitions import Definition
from .._ring.arena import Shape
from ..abc import StreamInfo

__all__ = ["DEFINITIONS_STEP", "DefinitionsArea"]

DEFINITIONS_STEP: Final = 1 << 16
"""Bytes of definitions that are allocated at once."""
_U64: Final = struct.Struct("=Q")


class Storage(Protocol):
    """The mapped file."""

    path: str
    shape: Shape
    memory: mmap.mmap

    def allocate(self, offset: int, size: int) -> bool: ...


class DefinitionsArea:
    """Appends definitions to the file."""

    def __init__(self, file: Storage, info: StreamInfo, definitions: Sequence[Definition]) -> None:
        self.refused = 0
        """Definitions that did not fit: what they name is shown as a number."""
        self._file = file
        self._definitions = definitions
        self._start = file.shape.definitions
        self._size = file.shape.definitions_size
        self._used = self._allocated = 0
        self._journal = JournalWriter(info)
        self._guard = Guard()
        self._again = False
        put = self._put(self._journal.hello())
        if not put:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), file.path)

    def follow(self) -> None:
        """Write new definitions to the file. From any thread; a re-entrant call leaves it to the outer one."""
        self._again = True
        while self._again and self._guard.enter():
            try:
                self._again = False
                self._write()
            finally:
                self._guard.leave()

    def _write(self) -> None:
        count = len(self._definitions)
        if not self.refused:
            mark = self._journal.mark()
            put = False
            try:
                put = self._put(self._journal.definitions(self._definitions, count))
            finally:
                if not put:
                    self._journal.rewind(mark)
            if put:
                return

        # Permanently: a later definition that fits would have the wrong index in the table.
        self.refused = count - self._journal.definitions_count
        _U64.pack_into(self._file.memory, L.ARENA_REFUSED, self.refused)

    def _put(self, frames: bytes) -> bool:
        """Append frames; False, without effect, if they do not fit."""
        end = self._used + len(frames)
        if end > self._size:
            return False
        while self._allocated < end:
            step = min(DEFINITIONS_STEP, self._size - self._allocated)
            if not self._file.allocate(self._start + self._allocated, step):
                return False
            self._allocated += step
        self._file.memory[self._start + self._used : self._start + end] = frames

        # The frames are complete: this commits them.
        _U64.pack_into(self._file.memory, L.ARENA_USED, end)
        self._used = end
        return True
