"""An open recording: one arena, its writers, its reader and its sinks. The one file that knows all parts.

    start_service -> open -> start_writing ... stop_writing -> drain -> finalize

`Recording`, `SyncRecording` and the launcher's `ExternalRecording` run these steps, each with its own way of waiting.

Closing follows the data: first no event call finds the recording any more, then the writers' pages go into the ring,
the reader offers them, the sinks finish within `drain_timeout`, and what is left is abandoned and counted. At the end
every page is back in the pool; `finalize` asserts that.
"""

from __future__ import annotations

import os
import shlex
import socket
import sys
import uuid
import weakref
from collections.abc import Callable, Coroutine, Sequence
from typing import TYPE_CHECKING, Any, Final, Literal, TypeVar

from .._base.clock import MONO, get_clock, take_anchor
from .._base.errors import ConfigurationError
from .._budget.cost_meter import Meter
from .._budget.thread import BudgetThread
from .._events.internal_events import has_free_list
from .._events.open_recordings import activate, deactivate, open_selections, selection_changed
from .._events.selection import AFTER_MAX, Selection, Trigger
from .._events.tracer_switch import follow
from .._page import layout as L
from .._page.definitions import DEFINITIONS
from .._ring.arena import Arena, Shape
from .._ring.page_cycle import PageCycle
from .._ring.writer import CAUSES, Writers
from .._threads.loop import Waker
from .._threads.service_thread import ServiceThread
from ..abc import Sink, StreamInfo
from .options import RecordingOptions, is_seconds
from .service import CANCEL_GRACE, Attachment, Service
from .sinks import QUOTA_MIN, AnySink, SinkOptions, file_sink, names_sink, share_pages, sink
from .snapshot import Snapshots, SnapshotStatistics
from .statistics import SinkStatistics, Statistics, WriterStatistics

if TYPE_CHECKING:
    from .._arena.file import ArenaFile

T = TypeVar("T")

WRITERS_MAX: Final = 32


class RecordingCore:
    """The parts of a recording, whichever kind it is; also what event calls use (`open_recordings.OpenRecording`).

    Args:
        thread: Whether the reader and the sinks run in a thread of their own, instead of the loop that opens it.

    Raises:
        ConfigurationError: A sink or the pool cannot work.
        OSError: The arena's file cannot be made.
    """

    def __init__(self, sinks: Sequence[AnySink], options: RecordingOptions, *, thread: bool) -> None:
        self.options = options
        self.clock = get_clock(options.clock)
        self._sinks = [each if isinstance(each, SinkOptions) else sink(each) for each in sinks]
        self._first_quotas = share_pages(options.pages, self._sinks)
        self.thread = ServiceThread() if thread else None
        slots = max(1, min(WRITERS_MAX, (options.pages - sum(self._first_quotas)) // 2))
        self.info = StreamInfo(
            uuid.uuid4().bytes,
            options.page_size,
            slots,
            MONO,
            take_anchor(self.clock),
            os.getpid(),
            socket.gethostname(),
            shlex.join(getattr(sys, "orig_argv", sys.argv)),
        )

        # The pages, and who writes on them.
        self.arena_file = None if options.arena is None else self._make_file(os.fspath(options.arena))
        self.arena = Arena(options.page_size, options.pages, self.arena_file)
        self.selection = Selection()
        self.service = Service(self.info, DEFINITIONS, options.flush_interval, own_thread=thread)
        self.pages = PageCycle(
            self.arena,
            overrun=options.overrun == "drop_oldest",
            listener=self.service,
            keeps_memory=has_free_list(),
        )
        self.writers = Writers(self.pages, slots, self.clock, DEFINITIONS)

        # What becomes of the pages.
        self.snapshots = self._make_snapshots()
        budget = options.budget
        meter = None if budget is None else Meter(self.arena, self.writers, self.selection, self.clock)
        self.service.serve(self.pages, self.writers, meter)
        self.budget = None if budget is None or meter is None else self._make_budget(float(budget), meter)
        self._waits: list[int] = []
        self._waits_total = [0, 0]
        self._state: Literal["new", "open", "closed"] = "new"
        self._last: Statistics | None = None
        """The final statistics, once closed."""

    def __repr__(self) -> str:
        return f"<recording {self.info.stream_id.hex()[:8]} {self._state}, {len(self.service.attachments)} sinks>"

    def _make_file(self, path: str) -> ArenaFile:
        """The arena's file, removed when the recording is closed, or was never opened.

        Raises:
            OSError: It cannot be made; the message says what would work.
        """
        from .._arena.file import DEFINITIONS_SIZE, ArenaFile  # imports ctypes: 10 ms, only with an arena file

        file = ArenaFile(path, Shape(self.info.page_size, self.options.pages, DEFINITIONS_SIZE), self.info, DEFINITIONS)
        weakref.finalize(self, file.remove)
        return file

    def _make_snapshots(self) -> Snapshots:
        return Snapshots(self.arena, self.info, DEFINITIONS, os.fspath(self.options.snapshots), file_sink)

    def _make_budget(self, share: float, meter: Meter) -> BudgetThread:
        return BudgetThread(share, meter, self.writers, self.selection, self.service.set_pace, self._run_soon)

    def _run_soon(self, function: Callable[[], object]) -> None:
        """Call a function in the program's loop, if aiotrace's tasks run there; otherwise directly."""
        if self.thread is not None or not self.service.run_soon(function):
            function()

    # --- open and close -------------------------------------------------------------------------

    def start_service(self) -> None:
        """Start the service thread, if the recording has one.

        Raises:
            RuntimeError: The recording was opened before.
        """
        if self._state != "new":
            raise RuntimeError(f"{self!r}: a recording can be entered only once")
        if self.thread is not None:
            self.thread.start()

    async def run(self, function: Callable[[], Coroutine[Any, Any, T]]) -> T:
        """Run something in the loop of the reader and the sinks, from the loop that opened the recording."""
        if self.thread is None:
            return await function()
        return await self.thread.run(function)

    async def open(self) -> None:
        """Start the reader and the sinks. In the service's loop.

        Raises:
            Exception: Whatever a sink raised before it requested its first page.
        """
        await self.service.start()
        await self.snapshots.start()
        for options, quota in zip(self._sinks, self._first_quotas, strict=True):
            await self.service.attach(options, quota, self._next_events)

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

    async def drain(self) -> None:
        """Let snapshots and sinks finish, each within `drain_timeout`. In the service's loop."""
        await self.snapshots.finish(self.options.drain_timeout)
        await self.service.drain(self.options.drain_timeout)

    @property
    def drain_limit(self) -> float:
        """Seconds after which a drain has ended by itself, unless a sink blocks the service's thread. (In the program's
        own loop such a sink blocks the program, and no time-out can fire.)"""
        return 2 * (self.options.drain_timeout + CANCEL_GRACE) + 1

    def finalize(self) -> None:
        """End everything at once, without an await: every page is returned to the pool and counted."""
        self._state = "closed"
        if self.thread is not None:
            idle = self.thread.call(self._abort, CANCEL_GRACE)
            self.thread.stop(CANCEL_GRACE)
        else:
            idle = self._abort()

        self.pages.clear_ring()
        self.keep_account()
        free, *others = self.arena.states()
        assert free == self.arena.pages and not any(others), f"pages are missing: {self.arena.states()}"

        if idle:
            self.arena.close()
        if self.arena_file is not None:
            DEFINITIONS.unfollow(self.arena_file.definitions.follow)
            self.arena_file.remove()

    def _abort(self) -> bool:
        self.snapshots.abort()
        return self.service.abort()

    # --- sinks and snapshots; in the service's loop ---------------------------------------------

    async def attach(self, new: AnySink) -> None:
        """As `Recording.attach`."""
        options = new if isinstance(new, SinkOptions) else sink(new)
        if self._state != "open":
            raise ConfigurationError(f"{self!r} is not open: no sink can be attached")
        quota = options.quota if options.quota is not None else max(QUOTA_MIN, self.arena.pages // 4)
        await self.service.attach(options, quota, self._next_events)

    async def detach(self, sink: AnySink) -> None:
        """As `Recording.detach`."""
        for attachment in self.service.attachments:
            if names_sink(attachment.options, sink) and not attachment.detached:
                await self.service.detach(attachment, self.options.drain_timeout)
                return
        raise ConfigurationError(f"{sink!r} is not attached to {self!r}")

    def _next_events(self) -> dict[int, int]:
        """Per writer, the number of its oldest event that was not offered to a sink yet."""
        numbers = {writer.slot: writer.first_unsealed for writer in self.writers.all}
        for page in reversed(tuple(self.pages.ring)):
            numbers[self.arena.get(page, L.WRITER)] = self.arena.get(page, L.FIRST_EVENT)
        return numbers

    async def snapshot(self, to: AnySink | os.PathLike[str], after: float) -> SnapshotStatistics:
        """As `Recording.snapshot`."""
        target = _snapshot_sink(to)
        if not is_seconds(after) or not 0 <= after <= AFTER_MAX:
            raise ConfigurationError(f"after={after!r}: must be in seconds, from 0 to {AFTER_MAX:.0f}")
        if self._state != "open":
            raise ConfigurationError(f"{self!r} is not open: there is nothing to take a snapshot of")
        return await self.snapshots.take(target, after)

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

    @property
    def makes_wait(self) -> bool:
        """Whether `send` waits for room here."""
        return (
            self._state == "open"
            and not self.pages.can_overrun
            and any(each.on_full == "wait" and not each.closed for each in self.pages.deliveries)
        )

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
        """Count once more; `statistics` returns this from now on."""
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

        # Dropped and written, per writer. Of a page that still fills, what was not offered yet is in flight.
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
            sinks=tuple(_sink_statistics(each) for each in self.service.attachments),
            failure=self.service.failure,
            snapshots=self.snapshots.taken,
            snapshots_skipped=self.snapshots.skipped,
            snapshots_failed=self.snapshots.failed,
            budget=None if self.budget is None else self.budget.statistics(),
        )


def _snapshot_sink(to: AnySink | os.PathLike[str]) -> Sink:
    if isinstance(to, os.PathLike) and not callable(to):
        return file_sink(os.path.abspath(os.fspath(to)))
    if isinstance(to, str) and ":" not in to:
        return file_sink(os.path.abspath(to))
    options = to if isinstance(to, SinkOptions) else sink(to)
    return options.sink


def _sink_statistics(attachment: Attachment) -> SinkStatistics:
    delivery = attachment.delivery
    return SinkStatistics(
        name=attachment.options.name,
        state=attachment.state,
        quota=delivery.quota,
        on_full=delivery.on_full,
        pages_offered=delivery.pages_offered,
        pages_acknowledged=delivery.pages_acknowledged,
        events_offered=delivery.offered,
        events_delivered=delivery.delivered,
        events_missed=delivery.missed,
        events_abandoned=delivery.abandoned,
        events_in_flight=delivery.events_in_flight,
        failures=attachment.failures,
        last_error=attachment.last_error,
    )
