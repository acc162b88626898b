"""An open recording with its reader and its sinks. The one file that knows all parts.

    start_service -> open -> start_writing ... stop_writing -> drain -> finalize

`Recording` and `SyncRecording` run these steps, each with its own way of waiting. What concerns writing alone is in
`writing.WritingCore`, which the launcher's `ExternalRecording` has too.

Closing follows the data: first no event call finds the recording any more, then the writers' pages go into the ring,
the reader offers them, the sinks finish within `drain_timeout`, and what is left is abandoned and counted. At the end
every page is back in the pool; `finalize` asserts that.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Coroutine, Sequence
from typing import Any, TypeVar

from .._base.errors import ConfigurationError
from .._events.selection import AFTER_MAX
from .._page import layout as L
from .._page.definitions import DEFINITIONS
from .._threads.service_thread import ServiceThread
from ..abc import Sink
from .options import RecordingOptions, is_seconds
from .service import CANCEL_GRACE, Attachment, Service
from .sinks import QUOTA_MIN, AnySink, SinkOptions, file_sink, names_sink, share_pages, sink
from .snapshot import Snapshots, SnapshotStatistics
from .statistics import SinkStatistics
from .writing import WritingCore

T = TypeVar("T")


class RecordingCore(WritingCore):
    """A recording whose reader and sinks are in this process.

    Args:
        thread: Whether the reader and the sinks run in a thread of their own, instead of the loop that opens it.

    Raises:
        ConfigurationError: A sink or the pool cannot work.
        OSError: The arena's file cannot be made.
    """

    snapshots: Snapshots

    def __init__(self, sinks: Sequence[AnySink], options: RecordingOptions, *, thread: bool) -> None:
        self._sinks = [each if isinstance(each, SinkOptions) else sink(each) for each in sinks]
        self._first_quotas = share_pages(options.pages, self._sinks)
        self.thread = ServiceThread() if thread else None
        super().__init__(options, sum(self._first_quotas))

        # What becomes of the pages.
        self.snapshots = Snapshots(self.arena, self.info, DEFINITIONS, os.fspath(options.snapshots), file_sink)
        self.service.serve(self.pages, self.writers)

    def _make_listener(self) -> Service:
        self.service = Service(self.info, DEFINITIONS, self.options.flush_interval, own_thread=self.thread is not None)
        return self.service

    def _set_pace(self, stretch: float) -> None:
        self.service.set_pace(stretch)

    def _run_soon(self, function: Callable[[], object]) -> None:
        if self.thread is not None or not self.service.run_soon(function):
            function()

    # --- open and close -------------------------------------------------------------------------

    def start_service(self) -> None:
        """Start the service thread, if the recording has one.

        Raises:
            RuntimeError: The recording was opened before.
        """
        self.check_new()
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

    @property
    def makes_wait(self) -> bool:
        """Whether `send` waits for room here."""
        return (
            self._state == "open"
            and not self.pages.can_overrun
            and any(each.on_full == "wait" and not each.closed for each in self.pages.deliveries)
        )

    def _count_sinks(self) -> tuple[SinkStatistics, ...]:
        return tuple(_sink_statistics(each) for each in self.service.attachments)

    @property
    def _failure(self) -> Exception | None:
        return self.service.failure


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
