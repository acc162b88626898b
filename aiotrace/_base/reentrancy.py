"""A lock that refuses its own holder instead of waiting for it.

A signal handler, a finaliser or a garbage collector callback may run at almost any point of Python code, also between
the lines that a lock protects, and may record an event there. Waiting would deadlock; continuing would find half-done
state. So `enter` refuses, and the event is counted as dropped (cause "reentrant").

Other threads wait: the protected sections are a few dozen lines without I/O.

Program code, where a KeyboardInterrupt may be raised after any call, enters by the lock itself:

    with guard.lock:            in C: no signal handler runs between it and the next line
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
        # An RLock, because it knows its owner. Between acquiring it and setting `busy` nothing is half done, so a
        # handler that runs there may go through.
        self.lock = threading.RLock()
        self.busy = False

    def enter(self) -> bool:
        """Returns False, without effect, if this thread already holds it."""
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
