"""A recording: one arena, its writers, its reader and its sinks, from open to close. The one file that knows all parts.

    async with record(FileSink("trace.dat")) as recording:      the reader is a task of this loop
    async with record(..., thread=True) as recording:           the reader has a thread and a loop of its own
    with recording(...) as recording:                           the same, for synchronous code (`_syncrecording`)

Close goes with the flow: no event call finds the recording any more, the writers' pages go into the ring, the reader
offers them, the sinks finish within `drain_timeout`, and what is left then is abandoned and counted. In the end every
page is home; that is asserted.
"""

from __future__ import annotations

import os
import shlex
import socket
import sys
import uuid
import weakref
from collections.abc import Callable, Coroutine
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final, Literal, Self, TypeVar, get_args

import anyio

from .._base.clock import MONO, get_clock, take_anchor
from .._base.errors import ConfigurationError
from .._budget.cost_meter import Meter
from .._budget.policy import check_share
from .._budget.thread import BudgetThread
from .._events.internal_events import has_free_list, tell
from .._events.open_recordings import activate, deactivate, open_selections, reconsider
from .._events.selection import AFTER_MAX, Selection, Trigger
from .._events.tracer_switch import follow
from .._page import layout as L
from .._page.definitions import DEFINITIONS
from .._ring.arena import Arena, Shape
from .._ring.page_cycle import Pages
from .._ring.writer import CAUSES, Writers
from .._threads.loop import Waker
from .._threads.service_thread import ServiceThread, cede
from ..abc import Sink, StreamInfo
from .event_control import EventControl
from .service import CANCEL_GRACE, Attachment, Service
from .sinks import QUOTA_MIN, AnySink, SinkOptions, is_count, is_same, open_path, share_pages, sink
from .snapshot import Snapshots, SnapshotStatistics
from .statistics import SinkStatistics, Statistics, WriterStatistics

if TYPE_CHECKING:
    from .._arena.file import ArenaFile

T = TypeVar("T")
Overrun = Literal["drop_newest", "drop_oldest"]

WRITERS_MAX: Final = 32
SNAPSHOTS: Final = "trace.dat"


def _check(page_size: int, pages: int, overrun: str, flush_interval: float, drain_timeout: float) -> None:
    if not is_count(page_size) or page_size & (page_size - 1) or not L.PAGE_SIZE_MIN <= page_size <= L.PAGE_SIZE_MAX:
        raise ConfigurationError(
            f"page_size={page_size!r}: a power of two from {L.PAGE_SIZE_MIN} to {L.PAGE_SIZE_MAX} bytes"
        )
    if not is_count(pages):
        raise ConfigurationError(f"pages={pages!r}: a number of pages, at least 1")
    if overrun not in get_args(Overrun):
        raise ConfigurationError(f"overrun={overrun!r}: one of {', '.join(map(repr, get_args(Overrun)))}")
    if not _is_time(flush_interval) or not flush_interval > 0:
        raise ConfigurationError(f"flush_interval={flush_interval!r}: a time in seconds, more than 0")
    if not _is_time(drain_timeout) or not drain_timeout >= 0:
        raise ConfigurationError(f"drain_timeout={drain_timeout!r}: a time in seconds, at least 0")


def _is_time(value: object) -> bool:
    return isinstance(value, (int, float))


class Recording(EventControl):
    """An open recording; made by `record` or `recording`."""

    def __init__(
        self,
        *sinks: AnySink,
        page_size: int = L.PAGE_SIZE_DEFAULT,
        pages: int = 64,
        overrun: Overrun = "drop_newest",
        flush_interval: float = 0.2,
        drain_timeout: float = 5.0,
        clock: str = "mono",
        arena: str | os.PathLike[str] | None = None,
        snapshots: str | os.PathLike[str] = SNAPSHOTS,
        thread: bool = False,
        budget: float | None = None,
    ) -> None:
        share = None if budget is None else check_share(budget)
        _check(page_size, pages, overrun, flush_interval, drain_timeout)
        self.clock = get_clock(clock)
        self._options = [each if isinstance(each, SinkOptions) else sink(each) for each in sinks]
        self._first_quotas = share_pages(pages, self._options)
        self._drain_timeout = drain_timeout
        self._thread = ServiceThread() if thread else None
        slots = max(1, min(WRITERS_MAX, (pages - sum(self._first_quotas)) // 2))
        self.info = StreamInfo(
            uuid.uuid4().bytes,
            page_size,
            slots,
            MONO,
            take_anchor(self.clock),
            os.getpid(),
            socket.gethostname(),
            shlex.join(getattr(sys, "orig_argv", sys.argv)),
        )
        """What is true of the whole stream."""
        self._arena_file = None if arena is None else _make_file(self, os.fspath(arena), page_size, pages)
        self._arena = Arena(page_size, pages, self._arena_file)
        self.selection = Selection()
        """Which events it takes; changed by `enable`, `disable`, `filter` and `trigger`."""
        self._pages = Pages(self._arena, overrun=overrun == "drop_oldest")
        self._pages.pool.keeps = has_free_list()
        self._pages.on_event = tell
        if thread:
            self._pages.on_scarce = cede
        self.writers = Writers(self._pages, slots, self.clock, DEFINITIONS)
        self._snapshots = Snapshots(self._arena, self.info, DEFINITIONS, os.fspath(snapshots), open_path)
        self._service = Service(self._pages, self.writers, self.info, DEFINITIONS, flush_interval)
        self._budget = None if share is None else self._make_budget(share)
        self._waits: list[int] = []
        self._waits_total = [0, 0]
        self._state: Literal["new", "open", "closed"] = "new"
        self._last: Statistics | None = None

    def __repr__(self) -> str:
        return f"<recording {self.info.stream_id.hex()[:8]} {self._state}, {len(self._service.attachments)} sinks>"

    def _make_budget(self, share: float) -> BudgetThread:
        meter = Meter(self._arena, self.writers, self.selection, self.clock)
        if self._thread is None:
            self._service.wrap = meter.timed
        return BudgetThread(share, meter, self.writers, self.selection, self._service.set_pace, self._run_soon)

    def _run_soon(self, function: Callable[[], object]) -> None:
        """Call it in the program's loop, if that is where our tasks are; else here."""
        if self._thread is not None or not self._service.run_soon(function):
            function()

    # --- open and close -------------------------------------------------------------------------

    async def __aenter__(self) -> Self:
        if self._state != "new":
            raise RuntimeError(f"{self!r}: a recording is entered once")
        if self._thread is not None:
            self._thread.start()
        try:
            await self._in_service(self._open)
        except BaseException:
            self._finalize()
            raise
        self._start_writing()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._state != "open" or os.getpid() != self.info.pid:
            return  # a forked child's copy: it is the parent's to close
        self._stop_writing()
        try:
            with anyio.CancelScope(shield=True), anyio.move_on_after(self._drain_limit):
                await self._in_service(self._drain)
        finally:  # also when a native cancellation cut the drain: then what is left is abandoned
            self._finalize()

    async def _open(self) -> None:
        await self._service.start()
        await self._snapshots.start()
        for options, quota in zip(self._options, self._first_quotas, strict=True):
            await self._service.attach(options, quota, self._next_events)

    async def _drain(self) -> None:
        await self._snapshots.finish(self._drain_timeout)
        await self._service.drain(self._drain_timeout)

    @property
    def _drain_limit(self) -> float:
        """Seconds after which a drain has ended by itself, unless a sink blocks the service's thread. (In the
        program's own loop such a sink blocks the program, and no time-out is heard.)"""
        return 2 * (self._drain_timeout + CANCEL_GRACE) + 1

    def _start_writing(self) -> None:
        self._state = "open"
        if self._arena_file is not None:
            DEFINITIONS.follow(self._arena_file.definitions.follow)
        activate(self)
        follow(open_selections())
        if self._budget is not None:
            self._budget.start()

    def _stop_writing(self) -> None:
        """From here on no event is written; what was is in the ring."""
        if self._budget is not None:
            self._budget.stop()
        follow([each for each in open_selections() if each is not self.selection])  # tracers have last words
        self._state = "closed"
        deactivate(self)
        follow(open_selections())
        self.writers.close()
        for writer in tuple(self.writers.all):
            while writer.waiters:
                writer.wake_one()

    def _finalize(self) -> None:
        """Synchronous, and the end: every page comes home and is counted."""
        self._state = "closed"
        if self._thread is not None:
            idle = self._thread.call(self._abort, CANCEL_GRACE)
            self._thread.stop(CANCEL_GRACE)
        else:
            idle = self._abort()
        self._pages.clear_ring()
        self._last = self._count()
        free, *others = self._arena.states()
        assert free == self._arena.pages and not any(others), f"pages are not home: {self._arena.states()}"
        if idle:
            self._arena.close()
        if self._arena_file is not None:
            DEFINITIONS.unfollow(self._arena_file.definitions.follow)
            self._arena_file.remove()

    def _abort(self) -> bool:
        self._snapshots.abort()
        return self._service.abort()

    # --- while it is open -----------------------------------------------------------------------

    async def attach(self, sink: AnySink) -> None:
        """Add a sink. It is offered what is in the ring and what comes; returns when it asked for its first page.

        Cancelled: the sink is let go again at once; it may have been given pages by then (an eager task factory).

        Raises:
            ConfigurationError: The recording is not open, or the sink is none.
            Exception: What the sink raised before it asked.
        """
        await self._in_service(lambda: self._attach(sink))

    async def detach(self, sink: AnySink) -> None:
        """Let a sink go: it has `drain_timeout` seconds for the pages that it holds; the rest is abandoned.

        Pages that the reader has not swapped yet, and the one that a writer is filling, it does not get.

        Args:
            sink: What was attached: the sink itself, its `aiotrace.sink(...)`, or its URL.

        Raises:
            ConfigurationError: It is not attached.
        """
        await self._in_service(lambda: self._detach(sink))

    async def _attach(self, new: AnySink) -> None:
        options = new if isinstance(new, SinkOptions) else sink(new)
        if self._state != "open":
            raise ConfigurationError(f"{self!r} is not open: no sink can be attached")
        quota = options.quota if options.quota is not None else max(QUOTA_MIN, self._arena.pages // 4)
        await self._service.attach(options, quota, self._next_events)

    async def _detach(self, sink: AnySink) -> None:
        for attachment in self._service.attachments:
            if is_same(attachment.options, sink) and not attachment.detached:
                await self._service.detach(attachment, self._drain_timeout)
                return
        raise ConfigurationError(f"{sink!r} is not attached to {self!r}")

    # --- snapshots ------------------------------------------------------------------------------

    async def snapshot(self, to: AnySink | os.PathLike[str], *, after: float = 0.0) -> SnapshotStatistics:
        """Give what is in the ring to a sink, or write it to a trace.dat, while recording goes on.

        The ring keeps all of it. What sinks of the recording have acknowledged is not in it any more: a ring for
        snapshots has none (flight mode).

        Args:
            to: A path, a sink, or a URL of one ("file:trace.dat").
            after: Seconds for which what follows is given too. Closing the recording ends it.

        Returns:
            What it holds. One snapshot is taken at a time: this waits for one that is.

        Raises:
            ConfigurationError: The recording is not open, or `to` is no sink.
            Exception: What the sink raised. Cancelled: the sink is.
        """
        return await self._in_service(lambda: self._snapshot(to, after))

    async def _snapshot(self, to: AnySink | os.PathLike[str], after: float) -> SnapshotStatistics:
        target = _snapshot_sink(to)
        if not _is_time(after) or not 0 <= after <= AFTER_MAX:
            raise ConfigurationError(f"after={after!r}: seconds, at most {AFTER_MAX:.0f}")
        if self._state != "open":
            raise ConfigurationError(f"{self!r} is not open: there is nothing to take a snapshot of")
        return await self._snapshots.take(target, after)

    def request_snapshot(self, cause: str, *, after: float = 0.0) -> bool:
        """Ask for a snapshot into a file that is named by the time and this cause, as the trigger "snapshot" does.

        From any thread, a signal handler too: it never blocks, and the file is written later.

        Returns:
            False if there will be none: the recording is not open, a snapshot is being taken, or one was asked for
            less than 10 s ago.
        """
        return self._state == "open" and os.getpid() == self.info.pid and self._snapshots.request(cause, after)

    @property
    def snapshot_paths(self) -> tuple[str, ...]:
        """The files of the snapshots that triggers and requests wrote, the last hundred."""
        return tuple(self._snapshots.paths)

    # --- which events ---------------------------------------------------------------------------

    def fire(self, trigger: Trigger, cause: str) -> None:
        """Do what a trigger says."""
        if trigger.action == "snapshot":
            if not self._snapshots.request(cause, trigger.after) and trigger.left is not None:
                trigger.left += 1
            return
        on = trigger.action == "traceon"
        if self.selection.is_on != on:
            self.selection.is_on = on
            reconsider()

    def _next_events(self) -> dict[int, int]:
        """For each writer the number of the oldest event that is not swapped."""
        numbers = {writer.slot: writer.first_unsealed for writer in self.writers.all}
        for page in reversed(tuple(self._pages.ring)):
            numbers[self._arena.get(page, L.WRITER)] = self._arena.get(page, L.FIRST_EVENT)
        return numbers

    @property
    def makes_wait(self) -> bool:
        """Whether `send` waits for room here."""
        return (
            self._state == "open"
            and not self._pages.can_overrun
            and any(each.on_full == "wait" and not each.closed for each in self._pages.deliveries)
        )

    async def wait_for_page(self, waker: Waker) -> None:
        """Wait until the waker is woken, because a page may be free."""
        await waker.wait()

    def count_wait(self, nanoseconds: int) -> None:
        self._waits.append(nanoseconds)  # atomic; summed when asked
        if len(self._waits) > 1000:
            self._sum_waits()

    def _sum_waits(self) -> tuple[int, int]:
        while self._waits:
            self._waits_total[1] += self._waits.pop()
            self._waits_total[0] += 1
        return self._waits_total[0], self._waits_total[1]

    # --- the account ----------------------------------------------------------------------------

    def statistics(self) -> Statistics:
        """The ledgers as of now; after the close, as of the close."""
        return self._last or self._count()

    def _count(self) -> Statistics:
        """Exact at any moment and from any thread: no page changes hands meanwhile, and a writer is asked once."""
        guard = self._pages.guard
        entered = guard.enter()  # False in a signal handler or finaliser that interrupted a turn: then nearly exact
        try:
            return self._count_now()
        finally:
            if entered:
                guard.leave()

    def _count_now(self) -> Statistics:
        pages, writers = self._pages, tuple(self.writers.all)
        free, filling, full, in_flight = self._arena.states()
        dropped = dict.fromkeys(CAUSES, 0)
        for writer in writers:
            for cause, count in writer.dropped_by_cause().items():
                dropped[cause] += count
        written, unsealed = {}, 0
        for writer in writers:
            written[writer.slot], page, on_page = writer.account()
            if page is not None and self._arena.get(page, L.STATE) == L.FILLING:
                unsealed += on_page - self._arena.get(page, L.DELIVERED)
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
            pages_total=self._arena.pages,
            pages_free=free,
            pages_filling=filling,
            pages_full=full,
            pages_in_flight=in_flight,
            pages_allocated=pages.pool.allocated,
            pages_recycled=pages.pool.recycled,
            page_size=self._arena.page_size,
            sends_waited=waited,
            send_wait_ns=wait_ns,
            writers=tuple(
                WriterStatistics(each.slot, written[each.slot], each.dropped_total, pages.overrun.get(each.slot, 0))
                for each in writers
            ),
            sinks=tuple(_sink_statistics(each) for each in self._service.attachments),
            failure=self._service.failure,
            snapshots=self._snapshots.taken,
            snapshots_skipped=self._snapshots.skipped,
            snapshots_failed=self._snapshots.failed,
            budget=None if self._budget is None else self._budget.statistics(),
        )

    async def _in_service(self, function: Callable[[], Coroutine[Any, Any, T]]) -> T:
        """Run something of the service's in its own loop."""
        if self._thread is None:
            return await function()
        return await self._thread.run(function)


def _make_file(recording: Recording, path: str, page_size: int, pages: int) -> ArenaFile:
    """The arena's file, removed when the recording is closed, or was never entered.

    Raises:
        OSError: It cannot be made; the message says what would do.
    """
    from .._arena.file import DEFINITIONS_SIZE, ArenaFile  # with ctypes: 10 ms, which only those pay who have one

    file = ArenaFile(path, Shape(page_size, pages, DEFINITIONS_SIZE), recording.info, DEFINITIONS)
    weakref.finalize(recording, file.remove)
    return file


def _snapshot_sink(to: AnySink | os.PathLike[str]) -> Sink:
    if isinstance(to, os.PathLike) and not callable(to):
        return open_path(os.path.abspath(os.fspath(to)))
    if isinstance(to, str) and ":" not in to:
        return open_path(os.path.abspath(to))
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


def record(
    *sinks: AnySink,
    page_size: int = L.PAGE_SIZE_DEFAULT,
    pages: int = 64,
    overrun: Overrun = "drop_newest",
    flush_interval: float = 0.2,
    drain_timeout: float = 5.0,
    clock: str = "mono",
    arena: str | os.PathLike[str] | None = None,
    snapshots: str | os.PathLike[str] = SNAPSHOTS,
    thread: bool = False,
    budget: float | None = None,
) -> Recording:
    """Record events to sinks: an async context manager, on asyncio and trio.

    No task group or cancel scope is open across the body, so it works inside fixtures and generators, and an
    exception in the body stays what it is. At the end it drains, shielded, for at most `drain_timeout`.

    Args:
        sinks: Async callables, `aiotrace.sink(...)` for options, or URLs. With none, pages stay in the ring.
        page_size: Bytes; a power of two from 4 KiB to 1 MiB.
        pages: Pages in the pool; all memory is these.
        overrun: What gives way when no page is free: "drop_newest" refuses the new event, "drop_oldest" overwrites
            the oldest full page.
        flush_interval: Seconds after which sinks that take prefixes are given what pages hold that still fill.
        drain_timeout: Seconds that each sink has at the end.
        clock: "mono" (CLOCK_MONOTONIC), or "tsc": the same time, read from the processor's counter (x86-64, with the
            C module). Calibrating it blocks for 20 ms, once in a process.
        arena: A file, best on tmpfs (/dev/shm), that holds the pages and all that is needed to read them while the
            recording is open. If the program is killed, `aiotrace restore` makes a trace of it. None: memory that
            goes with the program.
        snapshots: The file into whose name the time and the cause of a snapshot are put, that a trigger sets off:
            trace-20261123-041500-stall-end.dat. Its folder must exist then.
        thread: Whether the reader and the sinks run in a thread of their own, so that they go on while the program's
            loop is blocked.
        budget: The share of the program's own processor time that all this may cost, at least 0.001: 0.01 is 1 %. What
            costs more is switched off, group by group, and on again when there is room (docs/guide/budget.md) by a
            thread that measures. None: there is no such thread.

    Raises:
        ConfigurationError: A value that cannot work; the message says what would.
        OSError: The arena's file cannot be made, or something is there; the message says what would do.
        Exception: On entering, what a sink raised before it asked for its first page.
    """
    return Recording(
        *sinks,
        page_size=page_size,
        pages=pages,
        overrun=overrun,
        flush_interval=flush_interval,
        drain_timeout=drain_timeout,
        clock=clock,
        arena=arena,
        snapshots=snapshots,
        thread=thread,
        budget=budget,
    )
