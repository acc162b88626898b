"""Starts and stops tracers: each runs while some open recording takes its events.

    recording opened, closed, enable(), disable() -> follow -> start or stop each tracer

A tracer is a module of `_tracers`, or an object in one ("module:name"). It is imported when it is first needed. It has
`start()` and `stop()`, and `follow(selections)` if what it does depends on them. Its events are defined with
`by_default=False`, in a system with the tracer's name. When it stops, the program is as it was before.
"""

from __future__ import annotations

import os
import pkgutil
import threading
from collections.abc import Callable, Iterable
from typing import Final, Protocol, runtime_checkable

from .._base.warn import warn
from .selection import EXPLICIT, Selection


class Tracer(Protocol):
    """A value of TRACERS."""

    def start(self) -> None:
        """Begin to produce events.

        Raises:
            ConfigurationError: It cannot run here; the message says why.
        """

    def stop(self) -> None:
        """Stop, and restore everything that `start` changed."""


@runtime_checkable
class Follower(Protocol):
    """A tracer that does different things for different selections."""

    def follow(self, selections: Iterable[Selection]) -> None:
        """Called with the selections of the open recordings, before `start` and at each change while it runs."""


_PACKAGE: Final = "aiotrace._tracers"
TRACERS: Final[dict[str, str]] = {
    "audit": f"{_PACKAGE}.audit",
    "cancellation": f"{_PACKAGE}.cancellation",
    "exception": f"{_PACKAGE}.exception",
    "function": f"{_PACKAGE}.function:FUNCTION",
    "function_graph": f"{_PACKAGE}.function:FUNCTION_GRAPH",
    "gc": f"{_PACKAGE}.gc_runs",
    "log": f"{_PACKAGE}.log",
    "loop": f"{_PACKAGE}.loop",
    "sched": f"{_PACKAGE}.sched",
    "stall": f"{_PACKAGE}.stall",
    "task": f"{_PACKAGE}.task",
    "thread": f"{_PACKAGE}.thread",
    "warning": f"{_PACKAGE}.warning",
}
"""The tracer of each system."""

_running: Final[dict[str, Tracer]] = {}
_lock = threading.RLock()


def follow(selections: Iterable[Selection]) -> None:
    """Start and stop tracers, so that exactly those run whose events some recording takes.

    Raises:
        ConfigurationError: A tracer that a rule names cannot start. The other tracers start anyway. One that only "all"
            selects and that cannot run here is skipped.
    """
    chosen = tuple(selections)
    wanted = {
        system
        for system in TRACERS
        if any(selection.wants_system(system, explicit=system in EXPLICIT) for selection in chosen)
    }

    failures = []
    with _lock:
        for system in sorted(_running.keys() - wanted):
            _stop(system)
        for system in sorted(wanted):
            tracer: Tracer = _running.get(system) or pkgutil.resolve_name(TRACERS[system])
            if isinstance(tracer, Follower):
                tracer.follow(chosen)
            if system in _running:
                continue
            try:
                tracer.start()
            except Exception as error:
                if any(selection.wants_system(system, explicit=True) for selection in chosen):
                    failures.append(error)
            else:
                _running[system] = tracer
    if failures:
        raise failures[0]


def follow_open(find: Callable[[], Iterable[Selection]]) -> None:
    """`follow` what is open, read while no other thread can start or stop tracers: for threads that may outlive the
    recording that started them."""
    with _lock:
        follow(find())


def _stop(system: str) -> None:
    try:
        _running.pop(system).stop()
    except Exception as error:  # also when a recording closes, where aiotrace must not raise
        warn(f"aiotrace: tracer {system} did not stop: {error!r}", stacklevel=4)


def _after_fork_in_child() -> None:
    """A child has no recordings, and perhaps not the thread that held the lock."""
    global _lock
    _lock = threading.RLock()
    for system in tuple(_running):
        _stop(system)


os.register_at_fork(after_in_child=_after_fork_in_child)
