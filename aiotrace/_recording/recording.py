"""A recording in an event loop, asyncio's or trio's.

    async with record(FileSink("trace.dat")) as recording:      the reader is a task of this loop
    async with record(..., thread=True) as recording:           the reader has a thread and a loop of its own

Synchronous code has the same in `sync_recording`. What a recording is made of is in `core`.
"""

from __future__ import annotations

import os
from types import TracebackType
from typing import Self

import anyio

from .._page import layout as L
from ..abc import StreamInfo
from .core import RecordingCore
from .event_control import EventControl
from .options import SNAPSHOTS, Overrun, RecordingOptions
from .sinks import AnySink
from .snapshot import SnapshotStatistics
from .statistics import Statistics


class Recording(EventControl):
    """An open recording in an event loop; made by `record`."""

    def __init__(self, core: RecordingCore) -> None:
        self._core = core
        self.selection = core.selection
        """Which events it records; changed by `enable`, `disable`, `filter` and `trigger`."""

    def __repr__(self) -> str:
        return repr(self._core)

    async def __aenter__(self) -> Self:
        core = self._core
        core.start_service()
        try:
            await core.run(core.open)
        except BaseException:
            core.finalize()
            raise
        core.start_writing()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        core = self._core
        if not core.is_open:
            return
        core.stop_writing()
        try:
            with anyio.CancelScope(shield=True), anyio.move_on_after(core.drain_limit):
                await core.run(core.drain)
        finally:  # also when a native cancellation cut the drain short: what is left is abandoned
            core.finalize()

    async def attach(self, sink: AnySink) -> None:
        """Add a sink. It is offered what is in the ring and what follows; returns when it asks for its first page.

        Cancelled: the sink is detached at once; with an eager task factory it may have been given pages by then.

        Raises:
            ConfigurationError: The recording is not open, or `sink` is not a sink.
            Exception: What the sink raised before it asked for its first page.
        """
        await self._core.run(lambda: self._core.attach(sink))

    async def detach(self, sink: AnySink) -> None:
        """Remove a sink: it has `drain_timeout` seconds for the pages that it holds; the rest is abandoned.

        It does not get full pages that the reader has not offered yet, nor the pages that writers are filling.

        Args:
            sink: What was attached: the sink itself, its `aiotrace.sink(...)`, or its URL.

        Raises:
            ConfigurationError: It is not attached.
        """
        await self._core.run(lambda: self._core.detach(sink))

    async def snapshot(self, to: AnySink | os.PathLike[str], *, after: float = 0.0) -> SnapshotStatistics:
        """Give what is in the ring to a sink, or write it to a trace.dat, while recording continues.

        The ring keeps all of it. Pages that sinks of the recording have acknowledged are not in it any more: a ring
        that is for snapshots only has no sinks (flight mode).

        Args:
            to: A path, a sink, or a URL of one ("file:trace.dat").
            after: Seconds for which later events are included too. Closing the recording ends it.

        Returns:
            What the snapshot holds. Snapshots are taken one at a time; this waits for its turn.

        Raises:
            ConfigurationError: The recording is not open, or `to` is not a sink.
            Exception: What the sink raised. If the call is cancelled, so is the sink.
        """
        return await self._core.run(lambda: self._core.snapshot(to, after))

    def request_snapshot(self, cause: str, *, after: float = 0.0) -> bool:
        """Request a snapshot into a file named after the time and this cause, as the trigger "snapshot" does.

        Safe in any thread and in a signal handler: it never blocks, and the file is written later.

        Returns:
            False if there will be none: the recording is not open, a snapshot is being taken, or one was requested less
            than 10 s ago.
        """
        return self._core.request_snapshot(cause, after)

    @property
    def snapshot_paths(self) -> tuple[str, ...]:
        """The files of the snapshots that triggers and requests wrote, the last hundred."""
        return tuple(self._core.snapshots.paths)

    def statistics(self) -> Statistics:
        """The account so far; once the recording is closed, the final one."""
        return self._core.statistics()

    @property
    def info(self) -> StreamInfo:
        """What is true of the whole stream."""
        return self._core.info


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

    No task group or cancel scope is open across the body, so it works inside fixtures and generators, and exceptions
    of the body pass through unchanged. At the end it drains, shielded from cancellation, for at most `drain_timeout`.

    Args:
        sinks: Async callables, `aiotrace.sink(...)` for options, or URLs. Without any, pages stay in the ring.
        page_size: Bytes; a power of two from 4 KiB to 1 MiB.
        pages: Pages in the pool, which are all the memory that events use.
        overrun: What is lost when no page is free: "drop_newest" refuses the new event, "drop_oldest" overwrites the
            oldest full page.
        flush_interval: Seconds after which sinks that accept prefixes are given the events on pages that are not full
            yet.
        drain_timeout: Seconds that each sink has at the end.
        clock: "mono" (CLOCK_MONOTONIC), or "tsc": the same time, read from the processor's counter (x86-64, with the C
            module). Calibrating it blocks for 20 ms, once per process.
        arena: A file, best on tmpfs (/dev/shm), that holds the pages and everything that is needed to read them while
            the recording is open. If the program is killed, `aiotrace restore` makes a trace of it. None: memory that
            is lost with the program.
        snapshots: The file after which snapshots that a trigger sets off are named, with the time and the cause:
            trace-20261123-041500-stall-end.dat. Its folder must exist then.
        thread: Whether the reader and the sinks run in a thread of their own, so that they keep running while the
            program's loop is blocked.
        budget: The share of the program's own processor time that recording may cost, at least 0.001: 0.01 is 1 %. A
            thread measures it; event groups that cost more are disabled, and enabled again when there is room
            (docs/guide/budget.md). None: no limit, and no such thread.

    Raises:
        ConfigurationError: A value that cannot work; the message says what would.
        OSError: The arena's file cannot be made, or the file exists; the message says what would work.
        Exception: On entering, what a sink raised before it asked for its first page.
    """
    options = RecordingOptions(
        page_size=page_size, pages=pages, overrun=overrun, flush_interval=flush_interval, drain_timeout=drain_timeout,
        clock=clock, arena=arena, snapshots=snapshots, budget=budget,
    )  # fmt: skip
    return Recording(RecordingCore(sinks, options, thread=thread))
