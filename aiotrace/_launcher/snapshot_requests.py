"""Snapshots that a program asks its recorder for: a few words in the arena's header, at which the recorder looks.

    the program                                              the recorder, each few milliseconds
    when, how long, cause; then ASKED = n  ---------------->  ASKED is not ANSWERED: takes it
    none is asked for until ANSWERED is n  <----------------  ANSWERED = n, when it is made, or has failed

The recorder's side is `snapshot_responder`. The laws are those of `snapshot`: a request never
blocks, and what cannot be served is counted. Whether it is time for one is the program's to say,
which knows at once; the recorder makes each that is asked for. A program that dies after the last
store of a request has its snapshot.
"""

from __future__ import annotations

import mmap
import struct
import time
from collections.abc import Callable
from typing import Final

from .._base.backend import c_module
from .._page import layout as L
from .._recording.snapshot_turns import PAUSE, SnapshotTurns

STATE: Final = struct.Struct("=QQ")
"""Asked for, answered."""
REQUEST: Final = struct.Struct(f"=QQ{L.ARENA_CAUSE_SIZE}s")
"""CLOCK_MONOTONIC in nanoseconds, nanoseconds of look-forward, cause."""
U64: Final = struct.Struct("=Q")


def fence() -> None:
    """What was written before is there before what is written after; the same for reading."""
    assert c_module is not None
    c_module.fence()


class SnapshotRequester(SnapshotTurns):
    """The program's side.

    Args:
        memory: The arena's file, mapped.
        is_recorded: Whether there is a recorder to ask.
    """

    def __init__(self, memory: mmap.mmap, is_recorded: Callable[[], bool]) -> None:
        super().__init__()
        self._memory = memory
        self._is_recorded = is_recorded

    def request(self, cause: str, after: float = 0.0) -> bool:
        now = time.monotonic_ns()
        if now / 1e9 < self._next or not self._turn.acquire(blocking=False):
            self._skip(now / 1e9)
            return False
        try:
            asked, answered = STATE.unpack_from(self._memory, L.ARENA_ASKED)
            if asked != answered or not self._is_recorded():
                self._skip(now / 1e9)
                return False
            self._next, self._covered = now / 1e9 + PAUSE, now / 1e9 + after
            text = cause.encode("utf-8", "replace")[: L.ARENA_CAUSE_SIZE]
            REQUEST.pack_into(self._memory, L.ARENA_REQUEST, now, int(after * 1e9), text)
            fence()
            U64.pack_into(self._memory, L.ARENA_ASKED, asked + 1)
            self.taken += 1
            return True
        finally:
            self._turn.release()
