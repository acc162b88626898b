"""The open recordings, and which of their writers a thread has.

    opened, closed, selection changed -> a new epoch -> each thread renews its lease at its next event

    thread --lease--> a writer of each open recording, until the thread ends or the recording closes

One epoch counts every change, so that an event call need only compare it to know that nothing changed. All state of
this kind is here: what is open, this thread's writers and pid, whether wrong values raise, and what a fork does to it.
"""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Callable
from contextvars import ContextVar
from typing import Any, Final, Protocol

from .._base.backend import c_module
from .._base.clock import Clock
from .._page import layout as L
from .._page.definitions import DEFINITIONS
from .._ring.writer import Writer, Writers
from .._threads.loop import Waker
from .selection import Selection, Trigger

inside_sink: ContextVar[bool] = ContextVar("aiotrace_inside_sink", default=False)
"""Whether the code runs in a reader or a sink, for which `send` does not wait: it would wait for itself."""


class Target(Protocol):
    """What an event needs to know of a recording."""

    writers: Writers

    @property
    def makes_wait(self) -> bool:
        """Whether `send` waits for room: there is a "wait" sink, and full pages are not overrun."""

    def count_wait(self, nanoseconds: int) -> None:
        """A `send` waited."""

    async def wait_for_page(self, waker: Waker) -> None:
        """Wait until the waker is woken, because a page may be free. It may return earlier."""

    def fire(self, trigger: Trigger, cause: str) -> None:
        """Do what a trigger says (a stack trace aside), now, in the thread of the event `cause` that set it off."""

    clock: Clock
    selection: Selection


class Active:
    """The open recordings of this process."""

    def __init__(self) -> None:
        self.targets: tuple[Target, ...] = ()
        self.epoch: object = object()
        self.lock = threading.RLock()

    def set(self, targets: tuple[Target, ...]) -> None:
        self.targets = targets
        self.epoch = object()
        self.tell_c()

    def tell_c(self) -> None:
        """Let the C twin know what decides whether a call does anything at all."""
        if c_module is not None:
            c_module.changed(bool(self.targets), is_strict())


active: Final = Active()


def activate(target: Target) -> None:
    """From now on every event call writes to this recording."""
    with active.lock:
        active.set((*active.targets, target))


def deactivate(target: Target) -> None:
    """No event call that begins from now on writes to it."""
    with active.lock:
        active.set(tuple(other for other in active.targets if other is not target))


def reconsider() -> None:
    """A recording's selection changed: every event asks again."""
    with active.lock:
        active.set(active.targets)


def open_selections() -> tuple[Selection, ...]:
    """The selections of the open recordings."""
    return tuple(target.selection for target in active.targets)


def is_recording() -> bool:
    """Whether any recording is open."""
    return bool(active.targets)


# --- a thread's writers ---------------------------------------------------------------------------


class Lease:
    """A writer, for as long as its thread lives and the recording is open."""

    __slots__ = ("own", "target", "writer")

    def __init__(self, target: Target) -> None:
        self.target = target
        self.writer, self.own = target.writers.lease()

    def __del__(self) -> None:
        if self.own:
            self.target.writers.give_back(self.writer)


class Own:
    """What an event call needs to know of its thread, in one look-up: those of a `threading.local` are dear."""

    __slots__ = ("epoch", "pid", "writers")

    def __init__(self) -> None:
        self.epoch: object = None
        self.pid = 0
        self.writers: tuple[Writer, ...] = ()


class Local(threading.local):
    """What is known of a thread."""

    leases: tuple[Lease, ...] = ()
    native: Any = None
    """`own` for the C twin."""

    def __init__(self) -> None:
        self.own = Own()


local: Final = Local()

get_task: Final[Callable[[], int] | None] = None if c_module is None else c_module.get_task
"""Gives the pid of the task that runs in this thread, if tasks are traced, else 0."""


def get_pid() -> int:
    """common_pid of a record: the task's that runs here, if tasks are traced, else the thread's."""
    return (0 if get_task is None else get_task()) or local.own.pid


def renew() -> tuple[Writer, ...]:
    """Bring this thread's lease to the present epoch."""
    native_epoch = c_module.get_epoch() if c_module is not None else 0  # the oldest first: a change between makes
    epoch, targets = active.epoch, active.targets  # the lease stale, not wrong
    own = local.own
    if not own.pid:
        own.pid = threading.get_native_id()
        DEFINITIONS.name_command(own.pid, thread_name())
    held = {lease.target: lease for lease in local.leases}
    leases = tuple(held.get(target) or Lease(target) for target in targets)
    local.leases = leases
    own.writers = tuple(lease.writer for lease in leases)
    own.epoch = epoch
    if c_module is not None:
        local.native = c_module.Lease(own.writers, own.pid, native_epoch)
    return own.writers


def thread_name() -> str:
    """What the pid of the calling thread is called.

    Not by `threading.current_thread`: while a thread begins and when it ends, that makes another of it, which the
    program would find in `threading.enumerate` from then on.
    """
    thread = threading._active.get(threading.get_ident()) or _bootstrapped()  # type: ignore[attr-defined]
    if thread is threading.main_thread():
        return os.path.basename(sys.argv[0] or "python") if getattr(sys, "argv", None) else "python"
    return thread.name if isinstance(thread, threading.Thread) else "thread"


def _bootstrapped() -> object:
    """The outermost call in a thread of the threading module is a method of its Thread."""
    frame = sys._getframe()
    while frame.f_back is not None:
        frame = frame.f_back
    return frame.f_locals.get("self")


# --- strictness -----------------------------------------------------------------------------------

_strict: bool | None = None


def strict(on: bool = True) -> None:
    """Let a wrong value raise TypeError, whether a recording is open or not.

    Without a word from here that is so when Python runs with `-X dev` and under pytest.
    """
    global _strict
    _strict = on
    active.tell_c()


def is_strict() -> bool:
    return _strict if _strict is not None else sys.flags.dev_mode or "pytest" in sys.modules


active.tell_c()


# --- fork -----------------------------------------------------------------------------------------


class _ForkRefusal:
    """Stands in for a thread's writers while it forks: what hooks of others emit there is refused and counted."""

    payload_max = L.PAGE_SIZE_MAX

    def __init__(self, writers: tuple[Writer, ...]) -> None:
        self._writers = writers

    def write(self, payload: bytes) -> bool:
        for writer in self._writers:
            writer.refuse("fork")
        return False


def _before_fork() -> None:
    local.native = None
    own = local.own
    if own.epoch is active.epoch:
        own.writers = (_ForkRefusal(own.writers),)  # type: ignore[assignment]  # as much of a Writer as is used


def _after_fork_in_parent() -> None:
    local.own.epoch = None


def _after_fork_in_child() -> None:
    """A child writes nothing into its parent's recordings."""
    active.lock = threading.RLock()
    DEFINITIONS.forget_lock()
    for lease in local.leases:
        lease.own = False
    local.leases = ()
    local.own.pid = 0
    active.set(())


os.register_at_fork(before=_before_fork, after_in_parent=_after_fork_in_parent, after_in_child=_after_fork_in_child)
