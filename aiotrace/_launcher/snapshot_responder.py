"""The recorder's side of `snapshot_requests`: makes the snapshots that a program asks for."""

from __future__ import annotations

import mmap
from typing import Any

from .._page import layout as L
from .._recording.snapshot import Snapshots
from .snapshot_requests import REQUEST, STATE, U64, fence


class SnapshotResponder(Snapshots):
    """The recorder's side.

    Args:
        memory: The arena's file, mapped.
        arguments: As for `Snapshots`.
    """

    def __init__(self, memory: mmap.mmap, *arguments: Any) -> None:
        super().__init__(*arguments)
        self._memory = memory

    def poll(self) -> None:
        """Begin what was asked for, if it is not begun yet. In the service's loop."""
        asked, answered = STATE.unpack_from(self._memory, L.ARENA_ASKED)
        if asked == answered or not self._turn.acquire(blocking=False):
            return
        fence()
        now, after, text = REQUEST.unpack_from(self._memory, L.ARENA_REQUEST)
        self._begin(text.rstrip(b"\0").decode("utf-8", "replace"), (now + after) / 1e9)

    async def _serve(self, cause: str, end: float) -> None:
        try:
            await super()._serve(cause, end)
        finally:
            asked, _ = STATE.unpack_from(self._memory, L.ARENA_ASKED)
            U64.pack_into(self._memory, L.ARENA_ASKED + U64.size, asked)
