"""Snapshots: copies of what the ring holds, and of what is recorded in the next `after` seconds, for a sink.

    a trigger, a signal, any thread --request--> | one at a time, not too often | --> a task of the service
    recording.snapshot(sink) ------------------------------------------------------> scan, scan, ... --> the sink

Pages are copied (`_arena/scan`) and stay in the ring: nothing is taken from writers or other sinks, and recording
continues.

Invariants (held by tests/recording/test_snapshot.py):

* A request never blocks: it may come from an event call, a signal handler or a finaliser. One that cannot be served is
  counted.
* A snapshot raises only to the caller that awaits it, never elsewhere in the program.
"""

from __future__ import annotations

import contextvars
import os
import re
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final, Self

import anyio
from anyio.lowlevel import checkpoint, checkpoint_if_cancelled

from .._arena.scan import ArenaScan, DamagedPage, PageCandidate, with_definitions
from .._base.errors import AcknowledgeError
from .._base.warn import warn
from .._events.open_recordings import inside_sink
from .._page.definitions import Definition
from .._page.entry import PageCopy
from .._ring.arena import Arena
from .._threads.loop import Loop, Task
from ..abc import Ledger, Page, Sink, StreamInfo, WriterLedger
from .snapshot_turns import PAUSE, SnapshotTurns

SCAN_INTERVAL_MIN: Final = 0.01
SCAN_INTERVAL_MAX: Final = 0.2
"""Seconds between two scans while waiting for `after`: shorter while pages fill quickly, so that they are copied before
the ring overwrites them."""


def _nothing_to_refresh() -> None:
    """For definitions of this process, which are always up to date."""


@dataclass(frozen=True, slots=True)
class SnapshotStatistics:
    """What a snapshot contains."""

    events: int
    lost: int
    """Events missing between them: dropped, or overwritten before they were copied."""


class SnapshotStream:
    """A page stream over copies. `abc.PageStream` documents the methods.

    Args:
        end: When to stop scanning, by time.monotonic().
        refresh_definitions: Called after each scan, to read the definitions that its pages may need.
    """

    def __init__(
        self,
        arena: Arena,
        info: StreamInfo,
        definitions: Sequence[Definition],
        end: float,
        refresh_definitions: Callable[[], object] = _nothing_to_refresh,
    ) -> None:
        self._arena = arena
        self._scan = ArenaScan(arena, info.writers, trusted=True)
        self._info = info
        self._definitions = definitions
        self._end = end
        self._prefixes = False
        self._wait = SCAN_INTERVAL_MAX
        self._over = False
        self._cut = anyio.Event()
        self._events: dict[int, int] = {}
        self.lost = 0
        self._unacknowledged: dict[int, PageCopy] = {}
        self._refresh_definitions = refresh_definitions
        self._plan: deque[PageCandidate | DamagedPage] = deque()
        self._rescan()

    @property
    def info(self) -> StreamInfo:
        return self._info

    @property
    def definitions(self) -> Sequence[Definition]:
        return self._definitions

    @property
    def ledger(self) -> Ledger:
        """Covers the events in the snapshot only; the recording's ledger accounts for all others."""
        return Ledger(tuple(WriterLedger(writer, count, 0, 0, 0, 0) for writer, count in sorted(self._events.items())))

    @property
    def events(self) -> int:
        """Events handed out."""
        return sum(self._events.values())

    def accept_prefixes(self) -> None:
        self._prefixes = True

    def cut(self) -> None:
        """Stop waiting: finish with what has been recorded so far."""
        self._cut.set()

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Page:
        await checkpoint()
        batch = await self._next(1)
        if not batch:
            raise StopAsyncIteration
        return batch[0]

    async def next_batch(self, pages: int) -> list[Page]:
        if pages < 1:
            raise ValueError(f"a batch of {pages} pages: at least 1")
        await checkpoint_if_cancelled()
        return await self._next(pages)

    async def _next(self, pages: int) -> list[Page]:
        while True:
            if batch := self._take(pages):
                return batch
            if self._over:
                return []
            left = self._end - time.monotonic()
            if left > 0 and not self._cut.is_set():
                with anyio.move_on_after(min(left, self._wait)):
                    await self._cut.wait()

            # One more scan after the end finds what was recorded until then.
            self._over = self._cut.is_set() or time.monotonic() >= self._end
            self._rescan()
            new = sum(not self._scan.has_seen(each) for each in self._plan)
            if 4 * new > self._arena.pages:
                self._wait = max(self._wait / 2, SCAN_INTERVAL_MIN)
            else:
                self._wait = min(2 * self._wait, SCAN_INTERVAL_MAX)

    def _rescan(self) -> None:
        self._plan.extend(self._scan.plan())
        self._refresh_definitions()

    def _take(self, pages: int) -> list[Page]:
        batch: list[Page] = []
        while self._plan and len(batch) < pages:
            candidate = self._plan.popleft()
            if isinstance(candidate, DamagedPage) or (candidate.raw is not None and not (self._prefixes or self._over)):
                continue  # a sink without prefixes gets a page that still fills once, at the end
            copy = self._scan.copy(candidate)
            if isinstance(copy, PageCopy):
                copy = with_definitions(copy, len(self._definitions), complete=copy.complete or not self._prefixes)
                self._events[copy.writer] = self._events.get(copy.writer, 0) + copy.events_count
                self.lost += copy.lost_before
                self._unacknowledged[id(copy)] = copy
                batch.append(copy)
        return batch

    def acknowledge(self, page: Page) -> None:
        if self._unacknowledged.pop(id(page), None) is not page:
            raise AcknowledgeError(f"{page!r} is not held by this stream (acknowledged twice?)")

    def acknowledge_all(self, pages: Sequence[Page]) -> None:
        for page in pages:
            self.acknowledge(page)


class Snapshots(SnapshotTurns):
    """The snapshots of one recording.

    Args:
        base: A file's path; `name_for` inserts time and cause.
        open_file: Returns a sink that writes a file of that name.
        refresh_definitions: Reads new definitions of another process; called after each scan.
    """

    def __init__(
        self,
        arena: Arena,
        info: StreamInfo,
        definitions: Sequence[Definition],
        base: str,
        open_file: Callable[[str], Sink],
        refresh_definitions: Callable[[], object] = _nothing_to_refresh,
    ) -> None:
        super().__init__()
        self._arena = arena
        self._info = info
        self._definitions = definitions
        self.base = os.path.abspath(base)
        self._open_file = open_file
        self._refresh_definitions = refresh_definitions
        self._loop: Loop | None = None
        self._task: Task | None = None
        self._stream: SnapshotStream | None = None
        self._closing = False
        self.paths: list[str] = []
        """The files of the last hundred requested snapshots."""

    async def start(self) -> None:
        """In the service's loop."""
        self._loop = Loop()
        self._alone = anyio.Lock()

    def request(self, cause: str, after: float = 0.0) -> bool:
        """Request a snapshot into a file named after time and cause. From any thread or handler; never blocks.

        Returns:
            False if no snapshot will be made, because another one is running or began less than PAUSE ago. That is
            counted as skipped, unless the other one still records its `after` seconds and so covers this request.
        """
        now = time.monotonic()
        if self._loop is None or self._closing or now < self._next or not self._turn.acquire(blocking=False):
            self._skip(now)
            return False
        self._next = now + PAUSE

        # In an empty context: sniffio may say "trio" in the caller's, while the service runs on asyncio.
        loop = self._loop
        if not contextvars.Context().run(loop.run_soon, lambda: self._begin(cause, now + after)):
            self._turn.release()
            return False
        self._covered = now + after
        return True

    def _begin(self, cause: str, end: float) -> None:
        assert self._loop is not None
        self._task = self._loop.spawn(lambda: self._serve(cause, end), "aiotrace snapshot")

    async def _serve(self, cause: str, end: float) -> None:
        inside_sink.set(True)
        try:
            path = name_for(self.base, cause, time.time())
            await self._give(self._open_file(path), end)
            self.paths = [*self.paths[-99:], path]
        except Exception as error:
            self.failed += 1
            self._covered = 0.0
            warn(f"aiotrace: the snapshot for {cause} failed: {error}")
        finally:
            if self._turn.locked():  # a task that was cancelled from outside is run again, and may get here twice
                self._turn.release()

    async def take(self, sink: Sink, after: float) -> SnapshotStatistics:
        """Give a snapshot to a sink, after any other that is being made. In the service's loop.

        Raises:
            Exception: Whatever the sink raises.
        """
        return await self._give(sink, time.monotonic() + after)

    async def _give(self, sink: Sink, end: float) -> SnapshotStatistics:
        async with self._alone:
            stream = self._stream = SnapshotStream(
                self._arena, self._info, self._definitions, end, self._refresh_definitions
            )
            if self._closing:
                stream.cut()
            try:
                await sink(stream)
            finally:
                self._stream = None
            self.taken += 1
            return SnapshotStatistics(stream.events, stream.lost)

    async def finish(self, timeout: float) -> None:
        """The recording closes: finish the pending snapshot with what there is. In the service's loop."""
        self._closing = True
        if self._stream is not None:
            self._stream.cut()
        if not self._turn.locked():
            return
        with anyio.move_on_after(timeout):
            while self._turn.locked():
                if self._task is not None and not self._task.done:
                    await self._task.wait()
                else:
                    await checkpoint()  # accepted just now; its task starts soon

    def abort(self) -> None:
        """Cancel the running snapshot, without an await."""
        if self._task is not None and not self._task.done:
            self._task.cancel()


def name_for(base: str, cause: str, now: float) -> str:
    """Insert time (UTC) and cause into a file name: trace.dat becomes trace-20261123-041500-stall-end.dat. A number is
    added if that exists."""
    stem, suffix = os.path.splitext(base)
    label = re.sub(r"[^A-Za-z0-9_]+", "-", cause)[:80]
    name = f"{stem}-{time.strftime('%Y%m%d-%H%M%S', time.gmtime(now))}-{label}"
    number, path = 1, name + suffix
    while os.path.lexists(path):
        number += 1
        path = f"{name}.{number}{suffix}"
    return path
