"""The program's side of an open recording: one arena, its writers, and the account.

    start_writing ... events, triggers ... stop_writing

It knows no loop, no thread and no sink: `core.RecordingCore` adds these. Where another process has them, this is all of
a recording that runs in the program. So it imports neither asyncio nor anyio, and what a budget needs only with one.
"""

from __future__ import annotations

import os
import shlex
import sys
import weakref
from collections.abc import Callable
from typing import TYPE_CHECKING, Final, Literal

from .._base.clock import MONO, get_clock, take_anchor
from .._events.internal_events import emit_internal, has_free_list
from .._events.open_recordings import activate, deactivate, open_selections, selection_changed
from .._events.selection import Selection, Trigger
from .._events.tracer_switch import follow
from .._page import layout as L
from .._page.definitions import DEFINITIONS
from .._ring.arena import Arena, Shape
from .._ring.page_cycle import NoListener, PageCycle
from .._ring.writer import CAUSES, Writers
from ..abc import StreamInfo
from .options import RecordingOptions
from .snapshot_turns import SnapshotTurns
from .statistics import SinkStatistics, Statistics, WriterStatistics

if TYPE_CHECKING:
    from .._arena.file import ArenaFile
    from .._budget.cost_meter import Meter
    from .._budget.thread import BudgetThread
    from .._threads.loop import Waker

WRITERS_MAX: Final = 32


class ProgramListener(NoListener):
    """What the program's side does itself when something happens to its pages."""

    meter: Meter | None = None
    """Measures what aiotrace costs the program's threads, if there is a budget."""

    def writer_leased(self) -> None:
        if self.meter is not None:
            self.meter.begin_thread()

    def happened(self, kind: str, *values: int | str) -> None:
        emit_internal(kind, *values)


class WritingCore:
    """What every kind of recording is made of; also what event calls see of it (`open_recordings.OpenRecording`).

    Args:
        sink_pages: Pages that sinks may hold, so that the writers cannot count on them.

    Raises:
        ConfigurationError: The pool cannot work.
        OSError: The arena's file cannot be made.
    """

    snapshots: SnapshotTurns
    """Set by the kind of recording."""

    def __init__(self, options: RecordingOptions, sink_pages: int = 0) -> None:
        self.options = options
        self.clock = get_clock(options.clock)
        slots = max(1, min(WRITERS_MAX, (options.pages - sink_pages) // 2))
        self.info = StreamInfo(
            os.urandom(16),
            options.page_size,
            slots,
            MONO,
            take_anchor(self.clock),
            os.getpid(),
            os.uname().nodename,  # as socket.gethostname, without the import
            shlex.join(getattr(sys, "orig_argv", sys.argv)),
        )

        # The pages, and who writes on them.
        self.arena_file = None if options.arena is None else self._make_file(os.fspath(options.arena))
        self.arena = Arena(options.page_size, options.pages, self.arena_file)
        self.selection = Selection()
        self._listener = self._make_listener()
        self.pages = PageCycle(
            self.arena,
            overrun=options.overrun == "drop_oldest",
            listener=self._listener,
            keeps_memory=has_free_list(),
        )
        self.writers = Writers(self.pages, slots, self.clock, DEFINITIONS)
        self.budget = None if options.budget is None else self._make_budget(float(options.budget))

        self._waits: list[int] = []
        self._waits_total = [0, 0]
        self._state: Literal["new", "open", "closed"] = "new"
        self._last: Statistics | None = None
        """The account at the end."""

    def __repr__(self) -> str:
        return f"<recording {self.info.stream_id.hex()[:8]} {self._state}, {len(self._count_sinks())} sinks>"

    def _make_file(self, path: str) -> ArenaFile:
        """The arena's file, removed when the recording is closed, or was never opened.

        Raises:
            OSError: It cannot be made; the message says what would work.
        """
        from .._arena.file import DEFINITIONS_SIZE, ArenaFile  # imports ctypes: 10 ms, only for those who have a file

        file = ArenaFile(path, Shape(self.info.page_size, self.options.pages, DEFINITIONS_SIZE), self.info, DEFINITIONS)
        weakref.finalize(self, file.remove)
        return file

    def _make_listener(self) -> ProgramListener:
        return ProgramListener()

    def _make_budget(self, share: float) -> BudgetThread:
        from .._budget.cost_meter import Meter  # imports statistics: 20 ms, only for those who have a budget
        from .._budget.thread import BudgetThread

        self._listener.meter = Meter(self.arena, self.writers, self.selection, self.clock)
        return BudgetThread(share, self._listener.meter, self.writers, self.selection, self._set_pace, self._run_soon)

    def _set_pace(self, stretch: float) -> None:
        """Let the reader wake less often, by this factor, if it is in this process."""

    def _run_soon(self, function: Callable[[], object]) -> None:
        """Call it in the program's loop, if aiotrace's tasks run there; else here."""
        function()

    # --- open and close -------------------------------------------------------------------------

    def check_new(self) -> None:
        """
        Raises:
            RuntimeError: The recording was opened before.
        """
        if self._state != "new":
            raise RuntimeError(f"{self!r}: a recording can be entered only once")

    def start_writing(self) -> None:
        """From here on every event is written."""
        self._state = "open"
        if self.arena_file is not None:
            DEFINITIONS.follow(self.arena_file.definitions.follow)
        activate(self)
        follow(open_selections())
        if self.budget is not None:
            self.budget.start()

    @property
    def is_open(self) -> bool:
        """False in a forked child too: the recording is its parent's to close."""
        return self._state == "open" and os.getpid() == self.info.pid

    def stop_writing(self) -> None:
        """From here on no event is written; what was written is in the ring."""
        if self.budget is not None:
            self.budget.stop()

        # Tracers stop first, while their last events can still be written.
        follow([each for each in open_selections() if each is not self.selection])
        self._state = "closed"
        deactivate(self)
        follow(open_selections())

        self.writers.close()
        for writer in tuple(self.writers.all):
            while writer.waiters:
                writer.wake_one()

    # --- called from any thread -----------------------------------------------------------------

    def request_snapshot(self, cause: str, after: float) -> bool:
        """As `Recording.request_snapshot`."""
        return self.is_open and self.snapshots.request(cause, after)

    def fire(self, trigger: Trigger, cause: str) -> None:
        """Do what a trigger says."""
        if trigger.action == "snapshot":
            if not self.snapshots.request(cause, trigger.after) and trigger.remaining is not None:
                trigger.remaining += 1
            return
        on = trigger.action == "traceon"
        if self.selection.is_on != on:
            self.selection.is_on = on
            selection_changed()

    async def wait_for_page(self, waker: Waker) -> None:
        """Wait until the waker is woken, because a page may be free."""
        await waker.wait()

    def count_wait(self, nanoseconds: int) -> None:
        self._waits.append(nanoseconds)  # atomic; summed when the statistics are read
        if len(self._waits) > 1000:
            self._sum_waits()

    def _sum_waits(self) -> tuple[int, int]:
        while self._waits:
            self._waits_total[1] += self._waits.pop()
            self._waits_total[0] += 1
        return self._waits_total[0], self._waits_total[1]

    # --- the account ----------------------------------------------------------------------------

    def statistics(self) -> Statistics:
        """As `Recording.statistics`."""
        return self._last or self._count()

    def keep_account(self) -> Statistics:
        """Count for the last time: from here on this is what `statistics` returns."""
        self._last = self._count()
        return self._last

    def _count(self) -> Statistics:
        """Exact at any moment and from any thread: no page changes hands while it counts, and each writer is read
        once."""
        guard = self.pages.guard
        entered = guard.enter()  # False in a signal handler or finaliser that interrupted a turn: then nearly exact
        try:
            return self._count_now()
        finally:
            if entered:
                guard.leave()

    def _count_now(self) -> Statistics:
        pages, writers = self.pages, tuple(self.writers.all)
        free, filling, full, in_flight = self.arena.states()

        # A writer's page counts as in flight as far as it was not offered as a prefix.
        dropped = dict.fromkeys(CAUSES, 0)
        for writer in writers:
            for cause, count in writer.dropped_by_cause().items():
                dropped[cause] += count
        written, unsealed = {}, 0
        for writer in writers:
            written[writer.slot], page, on_page = writer.account()
            if page is not None and self.arena.get(page, L.STATE) == L.FILLING:
                unsealed += on_page - self.arena.get(page, L.DELIVERED)

        waited, wait_ns = self._sum_waits()
        return Statistics(
            events_written=sum(written.values()),
            events_delivered=pages.delivered,
            events_overrun=sum(pages.overrun.values()),
            events_dropped=sum(dropped.values()),
            events_abandoned=pages.abandoned,
            events_in_flight=pages.events_in_flight() + unsealed,
            events_cut=sum(writer.cut for writer in writers),
            dropped=dropped,
            pages_total=self.arena.pages,
            pages_free=free,
            pages_filling=filling,
            pages_full=full,
            pages_in_flight=in_flight,
            pages_allocated=pages.pool.allocated,
            pages_recycled=pages.pool.recycled,
            page_size=self.arena.page_size,
            sends_waited=waited,
            send_wait_ns=wait_ns,
            writers=tuple(
                WriterStatistics(each.slot, written[each.slot], each.dropped_total, pages.overrun.get(each.slot, 0))
                for each in writers
            ),
            sinks=self._count_sinks(),
            failure=self._failure,
            snapshots=self.snapshots.taken,
            snapshots_skipped=self.snapshots.skipped,
            snapshots_failed=self.snapshots.failed,
            budget=None if self.budget is None else self.budget.statistics(),
        )

    def _count_sinks(self) -> tuple[SinkStatistics, ...]:
        return ()

    @property
    def _failure(self) -> Exception | None:
        """What the reader last crashed with, if it is in this process."""
        return None

    @property
    def makes_wait(self) -> bool:
        """Whether `send` waits for room here."""
        raise NotImplementedError
