"""The open recordings, and the writers that each thread has in them.

    opened, closed, selection changed -> a new epoch -> each thread refreshes its lease at its next event

    thread --lease--> a writer of each open recording, until the thread ends or the recording closes

Every change makes a new epoch, so an event call compares one object to know that nothing changed. All state that is
global or per thread is here: the open recordings, a thread's writers and pid, whether wrong values raise, and what a
fork does to them.
"""

from __future__ import annotations

import os
import sys
from _thread import RLock, _local, get_native_id
from contextvars import ContextVar

from .._base.backend import c_module
from .._page import layout as L
from .._page.definitions import DEFINITIONS

TYPE_CHECKING = False  # importing it from `typing` would double the time of `import aiotrace`
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any, Final, Protocol

    from .._base.clock import Clock
    from .._ring.writer import Writer, Writers
    from .._threads.loop import Waker
    from .selection import Selection, Trigger

    class OpenRecording(Protocol):
        """A recording, as events see it."""

        writers: Writers

        @property
        def makes_wait(self) -> bool:
            """Whether `send` waits for room: there is a "wait" sink, and full pages are not overwritten."""

        def count_wait(self, nanoseconds: int) -> None:
            """A `send` waited."""

        async def wait_for_page(self, waker: Waker) -> None:
            """Wait until the waker is woken because a page may be free. May return earlier."""

        def fire(self, trigger: Trigger, cause: str) -> None:
            """Do what a trigger says (except a stack trace), now, in the thread of the event `cause`."""

        clock: Clock
        selection: Selection


inside_sink: ContextVar[bool] = ContextVar("aiotrace_inside_sink", default=False)
"""Whether the code runs in the reader or in a sink. `send` does not wait there: it would wait for itself."""


class Active:
    """The open recordings of this process."""

    def __init__(self) -> None:
        self.recordings: tuple[OpenRecording, ...] = ()
        self.epoch: object = object()
        self.lock = RLock()

    def set(self, recordings: tuple[OpenRecording, ...]) -> None:
        self.recordings = recordings
        self.epoch = object()
        self.tell_c()

    def tell_c(self) -> None:
        """Update what the C implementation checks first in each call."""
        if c_module is not None:
            c_module.changed(bool(self.recordings), is_strict())


active: Final = Active()


def activate(recording: OpenRecording) -> None:
    """From now on every event call writes to this recording."""
    with active.lock:
        active.set((*active.recordings, recording))


def deactivate(recording: OpenRecording) -> None:
    """No event call that begins from now on writes to it."""
    with active.lock:
        active.set(tuple(other for other in active.recordings if other is not recording))


def selection_changed() -> None:
    """Let every event ask the recordings' selections again."""
    with active.lock:
        active.set(active.recordings)


def open_selections() -> tuple[Selection, ...]:
    """The selections of the open recordings."""
    return tuple(recording.selection for recording in active.recordings)


def is_recording() -> bool:
    """Whether any recording is open."""
    return bool(active.recordings)


# --- a thread's writers ---------------------------------------------------------------------------


class Lease:
    """A writer, for as long as its thread lives and the recording is open."""

    __slots__ = ("is_exclusive", "recording", "writer")

    def __init__(self, recording: OpenRecording) -> None:
        self.recording = recording
        self.writer, self.is_exclusive = recording.writers.lease()

    def __del__(self) -> None:
        if self.is_exclusive:
            self.recording.writers.give_back(self.writer)


class ThreadState:
    """What an event call needs of its thread, in one object: each attribute of a `threading.local` is expensive."""

    __slots__ = ("epoch", "pid", "writers")

    def __init__(self) -> None:
        self.epoch: object = None
        self.pid = 0
        self.writers: tuple[Writer, ...] = ()


class ThreadLocal(_local):
    """The leases and the state of each thread."""

    leases: tuple[Lease, ...] = ()
    native: Any = None
    """The same as `state`, for the C implementation."""

    def __init__(self) -> None:
        self.state = ThreadState()


this_thread: Final = ThreadLocal()

get_task: Final[Callable[[], int] | None] = None if c_module is None else c_module.get_task
"""Returns the pid of the task that runs in this thread, if tasks are traced, else 0."""


def get_pid() -> int:
    """common_pid of a record: of the task that runs in this thread, if tasks are traced, else of the thread."""
    return (0 if get_task is None else get_task()) or this_thread.state.pid


def refresh_lease() -> tuple[Writer, ...]:
    """Bring this thread's leases up to the current epoch. Returns its writers, one for each open recording."""
    # The epochs are read first, so that a change in between makes the lease outdated and never wrong.
    native_epoch = c_module.get_epoch() if c_module is not None else 0
    epoch, recordings = active.epoch, active.recordings
    state = this_thread.state
    if not state.pid:
        state.pid = get_native_id()
        DEFINITIONS.name_command(state.pid, thread_name())

    # Leases of recordings that are still open are kept; the others end here.
    kept = {lease.recording: lease for lease in this_thread.leases}
    leases = tuple(kept.get(recording) or Lease(recording) for recording in recordings)
    this_thread.leases = leases
    state.writers = tuple(lease.writer for lease in leases)
    state.epoch = epoch
    if c_module is not None:
        this_thread.native = c_module.Lease(state.writers, state.pid, native_epoch)
    return state.writers


def thread_name() -> str:
    """The name of the calling thread.

    Does not call `threading.current_thread`: while a thread starts and when it ends, that creates a dummy Thread,
    which `threading.enumerate` would show from then on.
    """
    import threading  # a recording has imported it; a program that only emits does not pay for it

    thread = threading._active.get(threading.get_ident()) or _bootstrapped()  # type: ignore[attr-defined]
    if thread is threading.main_thread():
        return os.path.basename(sys.argv[0] or "python") if getattr(sys, "argv", None) else "python"
    return thread.name if isinstance(thread, threading.Thread) else "thread"


def _bootstrapped() -> object:
    """The Thread of a thread that is starting: `self` of its outermost call, if the threading module started it."""
    frame = sys._getframe()
    while frame.f_back is not None:
        frame = frame.f_back
    return frame.f_locals.get("self")


# --- strictness -----------------------------------------------------------------------------------

_strict: bool | None = None


def strict(on: bool = True) -> None:
    """Set whether a wrong value raises TypeError, whether a recording is open or not.

    If this is never called, wrong values raise when Python runs with `-X dev` and under pytest.
    """
    global _strict
    _strict = on
    active.tell_c()


def is_strict() -> bool:
    return _strict if _strict is not None else sys.flags.dev_mode or "pytest" in sys.modules


active.tell_c()


# --- fork -----------------------------------------------------------------------------------------


class _ForkRefusal:
    """Replaces a thread's writers while it forks: events of other fork hooks are refused and counted."""

    payload_max = L.PAGE_SIZE_MAX

    def __init__(self, writers: tuple[Writer, ...]) -> None:
        self._writers = writers

    def write(self, payload: bytes) -> bool:
        for writer in self._writers:
            writer.refuse_without_lock("fork")
        return False


def _before_fork() -> None:
    this_thread.native = None
    state = this_thread.state
    if state.epoch is active.epoch:
        state.writers = (_ForkRefusal(state.writers),)  # type: ignore[assignment]  # as much of a Writer as is used


def _after_fork_in_parent() -> None:
    this_thread.state.epoch = None


def _after_fork_in_child() -> None:
    """A child writes nothing into its parent's recordings."""
    active.lock = RLock()
    DEFINITIONS.forget_lock()
    for lease in this_thread.leases:
        lease.is_exclusive = False
    this_thread.leases = ()
    this_thread.state.pid = 0
    active.set(())


os.register_at_fork(before=_before_fork, after_in_parent=_after_fork_in_parent, after_in_child=_after_fork_in_child)
