"""stall: steps of a loop that last too long, reported while they last, and at their end with their cause.

    stall:noticed  thread, task, began_ns, lasted_ns, cause     it has reached the threshold, and continues
    stall:stack    thread, task, began_ns, gil_ns, at           where it is then; the next record is its kernel_stack
    stall:end      thread, task, began_ns, duration_ns, cpu_ns, delay_ns, gc_ns, gil_ns, cause

    the stalled thread    -- step --------------------------------------------------- end: stall:end
    the watcher, C        ------ polls ------ polls: stall:noticed, on a page of its own; it never takes the GIL
    the stack sampler     ------ waits for the GIL --- has the GIL: stall:stack

The watcher and the code that runs per step are in `_csrc/stalls/`, so this tracer needs the C module. A step is one of
a task, or on asyncio any callback of a loop. The hooks are those of the `task` tracer, whose events need not be on.

The times of `stall:end` begin when a quarter of the threshold had passed: on a processor, ready but not running,
collecting garbage, and the longest time for which the stack sampler waited for the GIL. `at` is the innermost line that
is not a runtime's, or the innermost of all.
"""

from __future__ import annotations

import atexit
import contextlib
import gc
import sys
import threading
from collections.abc import Iterable, Sequence, Sized
from types import CodeType, ModuleType
from typing import TYPE_CHECKING, Any, Final

from .._base.backend import c_module
from .._base.clock import Clock
from .._base.errors import ConfigurationError
from .._events.event import define
from .._events.open_recordings import active, this_thread
from .._events.python_stack import is_ours
from .._events.selection import PLAIN, STALL_NS, Selection
from .._page.definitions import DEFINITIONS
from .._page.kernel_events import pack_stack
from .._ring.page_cycle import PageCycle
from .._ring.writer import Writer
from .._threads.own_threads import block_signals
from . import task as tasks

if TYPE_CHECKING:
    from .._events.open_recordings import OpenRecording

CAUSES: Final = ("python", "c_call", "gc", "gil", "blocked", "scheduler", "unknown")
"""Python code; a call into C that holds the GIL; garbage collection; waiting for the GIL of another thread; a system
call or a lock; the kernel gave the processor to another thread. The order is that of the C code."""
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
"""Recordings to which the watcher can write without the GIL."""
_JOIN: Final = 1.0
"""Seconds that `stop` waits for the stack sampler, which may be busy."""


class StallWriter(Writer):
    """The watcher's writer in one recording: its page is written to without the GIL.

    It takes its pages like other writers, with the GIL, before its page is full; what finds no room is counted. It is
    leased to no thread: its records come from the watcher alone.
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
    def written(self) -> int:  # type: ignore[override]  # in C it cannot be set either
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
        """Take the next page if less than a quarter of this one is free."""
        self.make_room(self._quarter - 16)
        self.publish_refused()

    def close(self) -> None:
        self.place.close()
        super().close()


# --- start and stop ---------------------------------------------------------------------------------

_sampler: threading.Thread | None = None
_writers: tuple[StallWriter, ...] = ()


def start() -> None:
    """
    Raises:
        ConfigurationError: There is no C module, or tasks cannot be traced on this Python.
    """
    global _sampler
    native = _need_c()
    tasks.hold("stall")
    try:
        causes = tuple((text, DEFINITIONS.intern(text)) for text in CAUSES)
        run = native.stall_start(NOTICED, NOTICED.id, END, causes)
        _sampler = threading.Thread(target=_serve, args=(native, run), name="aiotrace stalls", daemon=True)
        _sampler.start()
    except BaseException:
        _sampler = None
        native.stall_stop()
        tasks.release("stall")
        raise
    gc.callbacks.append(native.stall_gc)
    atexit.register(stop)


def stop() -> None:
    """Also called in a forked child, which has neither thread, and at exit. A second call does nothing."""
    global _sampler, _writers
    native = _need_c()
    sampler, _sampler = _sampler, None
    if sampler is None:
        return
    _writers = ()
    atexit.unregister(stop)
    with contextlib.suppress(ValueError):
        gc.callbacks.remove(native.stall_gc)
    if native.stall_stop():
        sampler.join(_JOIN)
    tasks.release("stall")


def follow(selections: Iterable[Selection]) -> None:
    """Take over the threshold of the open recordings, and their writers."""
    global _writers
    native = c_module
    if native is None:
        return  # `start` reports it

    # The lowest threshold of all recordings that take stalls.
    takers = [recording for recording in active.recordings if recording.selection.wants_system("stall", explicit=False)]
    threshold = min((recording.selection.stall_ns for recording in takers), default=STALL_NS)
    writers = [_find_writer(recording) for recording in takers if _is_plain(recording)]

    # Filters, triggers and a recording without a free slot need the GIL: then the stack sampler writes all of them.
    itself = len(writers) == len(takers) <= _PLACES_MAX and None not in writers
    _writers = tuple(writer for writer in writers if writer is not None) if itself else ()
    for writer in _writers:
        writer.prepare()
    interval = int(sys.getswitchinterval() * 1e9)
    native.stall_set(threshold, interval, tuple(writer.place for writer in _writers), itself)


def _is_plain(recording: OpenRecording) -> bool:
    """Whether a recording takes every `stall:noticed`, and has no triggers."""
    return recording.selection.decide(NOTICED.name, by_default=False) is PLAIN and not recording.selection.has_triggers


def _find_writer(recording: OpenRecording) -> StallWriter | None:
    for writer in tuple(recording.writers.all):
        if isinstance(writer, StallWriter):
            return writer
    return recording.writers.reserve(StallWriter)


def _need_c() -> ModuleType:
    if c_module is None:
        raise ConfigurationError(
            "watching for stalls (stall:*) needs the C module: `pip install .` with a C compiler builds it"
        )
    return c_module


# --- the stack sampler ------------------------------------------------------------------------------


def _serve(native: ModuleType, run: int) -> None:
    """Do what the watcher cannot do without the GIL."""
    block_signals()
    while (stall := native.stall_next(run)) is not None:
        if stall:
            _record(*stall)
        for writer in _writers:
            writer.prepare()


def _record(
    thread: int,
    task: int,
    began_ns: int,
    lasted_ns: int,
    cause: str,
    is_written: bool,
    gil_ns: int,
    frames: Sequence[tuple[CodeType, int]] | None,
) -> None:
    """Record what the watcher did not record of a stall.

    Args:
        is_written: Whether the watcher has written `stall:noticed` itself.
        frames: The stack of the stalled thread, innermost first; None: the step ended before the GIL was free.
    """
    if not is_written:
        NOTICED(thread, task, began_ns, lasted_ns, cause)

    # The stack without aiotrace's own frames.
    theirs = [(code, line) for code, line in frames or () if not is_ours(code)]
    if not theirs:
        return
    outside = next((frame for frame in theirs if not tasks.is_runtime(frame[0])), theirs[0])
    fields: dict[str, Any] = {"thread": thread, "task": task, "began_ns": began_ns, "gil_ns": gil_ns}
    fields["at"] = tasks.describe(*outside)[0]
    STACK(**fields)

    # The kernel_stack follows, in each recording that has taken stall:stack.
    payload = pack_stack(task or thread, [DEFINITIONS.locate(code, line) for code, line in theirs])
    for lease in this_thread.leases:
        decision = lease.recording.selection.decide(STACK.name, by_default=False)
        if decision is not None and decision.records and decision.accepts(fields):
            lease.writer.write(payload)
