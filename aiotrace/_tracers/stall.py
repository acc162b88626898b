"""stall: steps of a loop that last too long, reported while they last, and at their end with their cause.

    stall:noticed  thread, task, began_ns, lasted_ns, cause     it lasts as long as the threshold, and goes on
    stall:stack    thread, task, began_ns, gil_ns, at           where it is then; the next record is its kernel_stack
    stall:end      thread, task, began_ns, duration_ns, cpu_ns, delay_ns, gc_ns, gil_ns, cause

    the stalled thread    -- step --------------------------------------------------- end: stall:end
    the watcher, C        ------ looks ------ looks: stall:noticed, on a page of its own; never has the GIL
    the clerk, Python     ------ gets the GIL? ----- gets the GIL: stall:stack

What runs per step, and the watcher, is `_csrc/stalls/`; so without the C module there is no such tracer. A step is one
of a task, or on asyncio any callback of a loop. The hooks are those of the tracer of tasks, whose events need not be
on.

The times of `stall:end` are of the step since a quarter of the threshold had passed: on a processor, ready but on none,
collecting garbage, and the longest time for which the clerk waited for the GIL. `at` is the innermost line that is no
runtime's own, or the innermost of all.
"""

from __future__ import annotations

import atexit
import contextlib
import gc
import sys
import threading
from collections.abc import Iterable, Sequence, Sized
from types import CodeType, ModuleType
from typing import Any, Final

from .._base.backend import c_module
from .._base.clock import Clock
from .._base.errors import ConfigurationError
from .._events.event import define
from .._events.open_recordings import OpenRecording, active, this_thread
from .._events.python_stack import is_ours
from .._events.selection import PLAIN, STALL_NS, Selection
from .._page.definitions import DEFINITIONS
from .._page.kernel_events import pack_stack
from .._ring.page_cycle import PageCycle
from .._ring.writer import Writer
from .._threads.loop import block_signals
from . import task as tasks

CAUSES: Final = ("python", "c_call", "gc", "gil", "blocked", "scheduler", "unknown")
"""Python code; a call into C that holds the GIL; garbage collection; waiting for the GIL, which others have; a system
call or a lock; the kernel gave the processor to others. In the order that C knows."""
NOTICED: Final = define(
    "stall:noticed",
    {"thread": "s32", "task": "s32", "began_ns": "u64", "lasted_ns": "u64", "cause": "symbol"},
    by_default=False,
)
STACK: Final = define(
    "stall:stack",
    {"thread": "s32", "task": "s32", "began_ns": "u64", "gil_ns": "u64", "at": "symbol"},
    by_default=False,
)
END: Final = define(
    "stall:end",
    {
        "thread": "s32",
        "task": "s32",
        "began_ns": "u64",
        "duration_ns": "u64",
        "cpu_ns": "u64",
        "delay_ns": "u64",
        "gc_ns": "u64",
        "gil_ns": "u64",
        "cause": "symbol",
    },
    by_default=False,
)
_PLACES_MAX: Final = 8
"""Recordings that the watcher writes to by itself."""
_JOIN: Final = 1.0
"""Seconds that the clerk has to end: it may be at work."""


class StallWriter(Writer):
    """The watcher's writer in one recording: its page is written to without the GIL.

    It takes its pages as others do, with the GIL, before the one that it has is full; what finds no room is counted. No
    thread has it: its records come from the watcher alone.
    """

    def __init__(self, pages: PageCycle, slot: int, clock: Clock, definitions: Sized, first_sequence: int = 0) -> None:
        assert c_module is not None
        self.place: Any = c_module.WatcherCursor()
        self._quarter = pages.arena.page_size // 4
        super().__init__(pages, slot, clock, definitions, first_sequence)

    def enter(self, page: memoryview) -> None:
        self.place.enter(page)

    def leave(self) -> None:
        self.place.leave()

    def freeze(self) -> None:
        self.place.limit(False)

    def thaw(self) -> None:
        self.place.limit(True)

    def state(self) -> tuple[int, int, int]:
        committed, last, written, _ = self.place.state()
        return committed, last, written

    def fits(self, size: int) -> bool:
        fits: bool = self.place.fits(size)
        return fits

    @property
    def written(self) -> int:  # type: ignore[override]  # in C, too, it is nobody's to set
        return self.state()[2]

    @property
    def dropped_total(self) -> int:
        dropped: int = self.place.state()[3]
        return super().dropped_total + dropped

    def dropped_by_cause(self) -> dict[str, int]:
        counts = super().dropped_by_cause()
        counts["no_page"] += self.place.state()[3]
        return counts

    def prepare(self) -> None:
        """Take the next page, if less than a quarter of this one is free."""
        self.make_room(self._quarter - 16)

    def close(self) -> None:
        self.place.close()
        super().close()


# --- start and stop ---------------------------------------------------------------------------------

_clerk: threading.Thread | None = None
_writers: tuple[StallWriter, ...] = ()


def start() -> None:
    """
    Raises:
        ConfigurationError: There is no C module, or tasks cannot be traced on this Python.
    """
    global _clerk
    native = _need_c()
    tasks.hold("stall")
    try:
        causes = tuple((text, DEFINITIONS.intern(text)) for text in CAUSES)
        run = native.stall_start(NOTICED, NOTICED.id, END, causes)
        _clerk = threading.Thread(target=_serve, args=(native, run), name="aiotrace stalls", daemon=True)
        _clerk.start()
    except BaseException:
        _clerk = None
        native.stall_stop()
        tasks.release("stall")
        raise
    gc.callbacks.append(native.stall_gc)
    atexit.register(stop)


def stop() -> None:
    """Also in a forked child, which has neither watcher nor clerk, and at exit; a second time it does nothing."""
    global _clerk, _writers
    native = _need_c()
    clerk, _clerk = _clerk, None
    if clerk is None:
        return
    _writers = ()
    atexit.unregister(stop)
    with contextlib.suppress(ValueError):
        gc.callbacks.remove(native.stall_gc)
    if native.stall_stop():
        clerk.join(_JOIN)
    tasks.release("stall")


def follow(selections: Iterable[Selection]) -> None:
    """What is open, or what that takes, has changed."""
    global _writers
    native = c_module
    if native is None:
        return  # `start` says so
    takers = [recording for recording in active.recordings if recording.selection.wants_system("stall", explicit=False)]
    threshold = min((recording.selection.stall_ns for recording in takers), default=STALL_NS)
    writers = [_find_writer(recording) for recording in takers if _is_plain(recording)]
    # Filters and triggers need the GIL, and so does a recording that has no slot left: then the clerk tells them all.
    itself = len(writers) == len(takers) <= _PLACES_MAX and None not in writers
    _writers = tuple(writer for writer in writers if writer is not None) if itself else ()
    for writer in _writers:
        writer.prepare()
    interval = int(sys.getswitchinterval() * 1e9)
    native.stall_set(threshold, interval, tuple(writer.place for writer in _writers), itself)


def _is_plain(recording: OpenRecording) -> bool:
    """Whether a recording takes `stall:noticed` always, and sets nothing off."""
    return recording.selection.decide(NOTICED.name, by_default=False) is PLAIN and not recording.selection.has_triggers


def _find_writer(recording: OpenRecording) -> StallWriter | None:
    for writer in tuple(recording.writers.all):
        if isinstance(writer, StallWriter):
            return writer
    return recording.writers.reserve(StallWriter)


def _need_c() -> ModuleType:
    if c_module is None:
        raise ConfigurationError("watching for stalls (stall:*) needs the C module: install aiotrace with a C compiler")
    return c_module


# --- the clerk --------------------------------------------------------------------------------------


def _serve(native: ModuleType, run: int) -> None:
    """What the watcher cannot do without the GIL."""
    block_signals()
    while (stall := native.stall_next(run)) is not None:
        if stall:
            _tell(*stall)
        for writer in _writers:
            writer.prepare()


def _tell(
    thread: int,
    task: int,
    began_ns: int,
    lasted_ns: int,
    cause: str,
    is_written: bool,
    gil_ns: int,
    frames: Sequence[tuple[CodeType, int]] | None,
) -> None:
    """Tell of a stall what the watcher did not.

    Args:
        is_written: It has written `stall:noticed` itself.
        frames: Of the stalled thread, innermost first; None: the step was over before the GIL was free.
    """
    if not is_written:
        NOTICED(thread, task, began_ns, lasted_ns, cause)
    theirs = [(code, line) for code, line in frames or () if not is_ours(code)]
    if not theirs:
        return
    outside = next((frame for frame in theirs if not tasks.is_runtime(frame[0])), theirs[0])
    fields: dict[str, Any] = {"thread": thread, "task": task, "began_ns": began_ns, "gil_ns": gil_ns}
    fields["at"] = tasks.describe(*outside)[0]
    STACK(**fields)
    payload = pack_stack(task or thread, [DEFINITIONS.locate(code, line) for code, line in theirs])
    for lease in this_thread.leases:
        decision = lease.recording.selection.decide(STACK.name, by_default=False)
        if decision is not None and decision.records and decision.accepts(fields):
            lease.writer.write(payload)
