"""A lock that refuses its own holder instead of waiting for it.

A signal handler, a finaliser or a callback of the garbage collector may run at almost any place of Python code, also
between the lines that a lock protects, and may emit an event there. Waiting would be for ever; going on would find
half-done state. So `enter` says no, and the event is counted as refused (cause "reentrant").

Other threads wait: the protected sections are a few dozen lines without I/O.
"""

from __future__ import annotations

import threading


class Guard:
    __slots__ = ("_busy", "_lock")

    def __init__(self) -> None:
        # An RLock, because it knows its owner; between its acquisition and `_busy` nothing is half done, so a
        # handler that runs just there may go through.
        self._lock = threading.RLock()
        self._busy = False

    def enter(self) -> bool:
        """Returns False, without effect, if this thread is inside already."""
        self._lock.acquire()
        if self._busy:
            self._lock.release()
            return False
        self._busy = True
        return True

    def leave(self) -> None:
        self._busy = False
        self._lock.release()

    def __enter__(self) -> None:
        entered = self.enter()
        assert entered, "a guard was entered twice by one thread"

    def __exit__(self, *_: object) -> None:
        self.leave()
