"""aiotrace's own threads: they take no signals, and are known by their ids. Imports no event loop."""

from __future__ import annotations

import os
import signal
import threading
from typing import Final

_FAULTS: Final = {signal.SIGSEGV, signal.SIGBUS, signal.SIGFPE, signal.SIGILL, signal.SIGABRT}

our_threads: Final[set[int]] = set()
"""Native ids of aiotrace's threads; some may have ended."""
_THREADS_MAX: Final = 64
"""Ids that are kept before those of ended threads are removed."""


def block_signals() -> None:
    """Called first in each of aiotrace's threads: signals are for the program's threads, which may `sigwait`."""
    signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals() - _FAULTS)
    if len(our_threads) >= _THREADS_MAX:
        our_threads.intersection_update(map(int, os.listdir("/proc/self/task")))
    our_threads.add(threading.get_native_id())
