"""Whose turn it is: which requests for a snapshot are accepted, and the count of all others.

One at a time, and not too often. `snapshot.Snapshots` makes them in this process; the launcher's
`SnapshotRequester` has another process make them.
"""

from __future__ import annotations

import threading
from typing import Final

PAUSE: Final = 10.0
"""Seconds from the beginning of one snapshot that was set off to the next at the earliest: what sets one off every
time must not fill the disk."""


class SnapshotTurns:
    """The state of requests, and the counts."""

    def __init__(self) -> None:
        self._turn = threading.Lock()
        """Held from a request that is accepted until it is served."""
        self._next = 0.0
        self._covered = 0.0
        """Until when the last one that was set off looks forward, by time.monotonic()."""
        self.taken = 0
        self.skipped = 0
        """Requests too soon after the last, and not in time to be seen by it."""
        self.failed = 0

    def request(self, cause: str, after: float = 0.0) -> bool:
        """Ask for a snapshot. From anywhere; never blocks.

        Returns:
            False if there will be none; it is counted.
        """
        raise NotImplementedError

    def _skip(self, now: float) -> None:
        self.skipped += now >= self._covered
