"""A lock that refuses its own holder instead of waiting for it.

A signal handler, a finaliser or a callback of the garbage collector may run at almost any place of Python code, also
between the lines that a lock protects, and may emit an event there. Waiting would be for ever; going on would find
half-done state. So `enter` says no, and the event is counted as refused (cause "reentrant").

Other threads wait: the protected sections are a few dozen lines without I/O.

Program code, where a KeyboardInterrupt may be raised after any call, enters by the lock itself:

    with guard.lock:            in C: no signal is looked for between it and the next line
        if guard.busy: ...      refuse
        guard.busy = True
        try: ...
        finally:
            guard.busy = False
"""

from __future__ import annotations

import threading


class Guard:
    __slots__ = ("busy", "lock")

    def __init__(self) -> None:
        # An RLock, because it knows its owner; between its acquisition and `busy` nothing is half done, so a
        # handler that runs just there may go through.
        self.lock = threading.RLock()
        self.busy = False

    def enter(self) -> bool:
        """Returns False, without effect, if this thread is inside already."""
        self.lock.acquire()
        if self.busy:
            self.lock.release()
            return False
        self.busy = True
        return True

    def leave(self) -> None:
        self.busy = False
        self.lock.release()

    def __enter__(self) -> None:
        entered = self.enter()
        assert entered, "a guard was entered twice by one thread"

    def __exit__(self, *_: object) -> None:
        self.leave()
