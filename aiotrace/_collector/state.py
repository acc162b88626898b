"""What the connections of a collector share: streams and their threads, memory, closing traces, counts.

    take(info) --> Stream, whose files one thread writes        give_back: the producer has disconnected
    grant      --> credit: pages that a connection may have in flight, bounded for all connections together
    close      --> full traces become trace.dats, in a thread of their own, one after the other

Invariant (held by tests/collector/test_collector.py): memory is bounded before pages are sent. Each connection is
granted credit from one shared amount, and refused if none is left.
"""

from __future__ import annotations

import logging
from collections import OrderedDict, deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, NamedTuple, TypeVar, TypeVarTuple

import anyio

from .._base.errors import TraceFormatError
from .._base.terminal_text import escape
from .._threads.worker import Worker
from ..abc import StreamInfo
from .folder import BudgetError, Folder
from .stored_stream import Closing, StoredStream, restoring

__all__ = ["LOG", "CollectorState", "Counts", "FullError", "Rotation", "Stream"]

LOG: Final = logging.getLogger("aiotrace.collect")
MEMORY: Final = 512 << 20
"""Bytes of pages that all connections together may have in flight."""
CREDIT_BYTES: Final = 4 << 20
"""Maximum bytes of credit of a connection: about what a disk writes in the time of an fsync."""
SHARE: Final = 128
"""A connection gets one in this many of the bytes left, but at least one page: enough for hundreds of connections."""
THREADS: Final = 4
"""Writer threads. The kernel merges concurrent fsyncs into one journal commit."""
STREAMS_REMEMBERED: Final = 1024
"""Streams without a connection whose state is kept in memory; others are read from their files again."""
CLOSE_ATTEMPTS: Final = 10
CLOSE_PAUSE: Final = 0.5
"""Seconds before another attempt to close a trace."""

T = TypeVar("T")
Arguments = TypeVarTuple("Arguments")


class FullError(Exception):
    """There is no memory for another connection."""


@dataclass(frozen=True, slots=True)
class Rotation:
    """When a trace is full."""

    max_size: int | None = None
    """Bytes of pages."""
    max_age: float | None = None
    """Seconds since its first page."""


@dataclass(slots=True)
class Counts:
    """Counters for `CollectorStatistics`."""

    connections: int = 0
    refused: int = 0
    """Connections that were not let in."""
    broken: int = 0
    """Connections whose peer violated the protocol."""
    pages: int = 0
    """Pages and parts that were received."""
    bytes: int = 0
    """Bytes of their records."""
    events: int = 0
    acknowledged: int = 0
    """Pages and parts that were acknowledged."""
    duplicates: int = 0
    """Pages and parts that were received again and already stored."""
    lost: int = 0
    """Events that producers reported as lost."""
    ended: int = 0
    """Streams that ended."""
    failures: int = 0
    """Failed writes and fsyncs; each is retried."""


class _Owner(NamedTuple):
    """The connection that has a stream."""

    stop: Callable[[], None]
    given_back: anyio.Event


class Stream:
    """A stored stream, and the thread that writes it."""

    def __init__(self, stored: StoredStream, worker: Worker) -> None:
        self.stored = stored
        self._worker = worker

    async def run(self, function: Callable[[*Arguments], T], *arguments: *Arguments) -> T:
        """Call a function in the stream's thread. If cancelled, it ends first."""
        return await self._worker.run(function, *arguments)


class CollectorState:
    """See the module's docstring. For one event loop."""

    def __init__(self, folder: Folder, rotation: Rotation) -> None:
        self.folder = folder
        self.counts = Counts()
        self.stalled = ""
        """Why nothing can be written at present; "" if it can."""
        self._rotation = rotation
        self._workers = [Worker(f"aiotrace collector {number}") for number in range(THREADS)]
        self._closer = Worker("aiotrace collector, closing")
        self._next_worker = 0
        self._streams: OrderedDict[bytes, Stream] = OrderedDict()
        self._owners: dict[bytes, _Owner] = {}
        """The connections of the streams that have one."""
        self._memory = MEMORY
        self._closings: deque[tuple[Closing, int]] = deque()
        self._to_close = anyio.Event()
        self._closing = anyio.Lock()

    def stop(self) -> None:
        """Let the threads end."""
        for worker in (*self._workers, self._closer):
            worker.stop()

    async def run(self, function: Callable[[*Arguments], T], *arguments: *Arguments) -> T:
        """Call a function in a thread that no stream waits for."""
        return await self._closer.run(function, *arguments)

    # --- memory ---------------------------------------------------------------------------------

    def grant(self, page_size: int) -> int:
        """The credit of a new connection, in pages; return it by `give_back_memory`.

        Raises:
            FullError: There is no memory left.
        """
        fair = min(CREDIT_BYTES, self._memory // SHARE)
        credit = max(1, fair // page_size)
        if credit * page_size > self._memory:
            raise FullError(f"the collector has no memory left for a connection with pages of {page_size} bytes")
        self._memory -= credit * page_size
        return credit

    def give_back_memory(self, credit: int, page_size: int) -> None:
        self._memory += credit * page_size

    # --- streams --------------------------------------------------------------------------------

    async def take(self, info: StreamInfo, stop: Callable[[], None]) -> Stream:
        """Take exclusive hold of a stream, after stopping its present connection, and read its position from its files.

        Args:
            stop: Called when another connection wants the stream: `give_back` it soon.

        Raises:
            OSError: Its files cannot be read, or are locked by another process.
            TraceFormatError: They are not a trace.
        """
        key = info.stream_id
        while (owner := self._owners.get(key)) is not None:
            owner.stop()
            await owner.given_back.wait()
        owner = self._owners[key] = _Owner(stop, anyio.Event())
        try:
            stream = await self._resume(key) or await self._find(info)
        except BaseException:
            del self._owners[key]
            owner.given_back.set()
            raise
        self._streams[key] = stream
        self._streams.move_to_end(key)
        return stream

    async def _resume(self, key: bytes) -> Stream | None:
        stream = self._streams.pop(key, None)
        if stream is not None:
            try:
                await stream.run(stream.stored.resume)
            except FileNotFoundError:  # it was restored, moved or deleted in the meantime
                return None
        return stream

    async def _find(self, info: StreamInfo) -> Stream:
        worker = self._workers[self._next_worker]
        self._next_worker = (self._next_worker + 1) % len(self._workers)
        rotation = self._rotation
        stored = await worker.run(_find, self.folder, info, rotation)
        return Stream(stored, worker)

    async def give_back(self, stream: Stream) -> None:
        """Release a stream whose connection has ended. Must not be cancelled."""
        key = stream.stored.info.stream_id
        try:
            await stream.run(stream.stored.release)
        finally:
            self.close_full(stream)
            self._owners.pop(key).given_back.set()
            self._forget_old()

    def _forget_old(self) -> None:
        if len(self._streams) <= STREAMS_REMEMBERED:
            return
        for key in list(self._streams):
            if key not in self._owners and not self._closings:  # a file that is being closed is locked
                del self._streams[key]
                return

    async def rotate_old(self) -> None:
        """Rotate the traces that have reached the maximum age."""
        for key in list(self._owners):
            stream = self._streams.get(key)
            if stream is None or not stream.stored.is_old():
                continue
            try:
                await stream.run(stream.stored.rotate)
            except OSError as error:
                self.write_failed(error)
            self.close_full(stream)

    # --- closing --------------------------------------------------------------------------------

    def close_full(self, stream: Stream) -> None:
        """Queue a stream's full traces for closing."""
        closings = stream.stored.closings
        if closings:
            self._closings.extend((closing, 0) for closing in closings)
            closings.clear()
            self._to_close.set()

    async def close_traces(self) -> None:
        """Close queued traces until cancelled."""
        while True:
            await self._to_close.wait()
            self._to_close = anyio.Event()
            await self.close_all()

    async def close_all(self) -> None:
        """Close the queued traces; returns when each is closed or given up."""
        async with self._closing:
            await self._close_all()

    async def _close_all(self) -> None:
        while self._closings:
            closing, attempts = self._closings[0]
            try:
                await self._close(closing)
            except TraceFormatError as error:
                LOG.warning("a trace cannot be closed: %s", escape(str(error)))
            except OSError as error:
                if attempts + 1 < CLOSE_ATTEMPTS:
                    self._closings.rotate(-1)
                    self._closings[-1] = closing, attempts + 1
                    await anyio.sleep(CLOSE_PAUSE)
                    continue
                LOG.warning("a trace cannot be closed: %s: `aiotrace restore` does it", escape(str(error)))
            self._closings.popleft()

    async def _close(self, closing: Closing) -> None:
        steps = await self._closer.run(closing)
        while await self._closer.run(next, steps, None) is not None:
            pass

    async def leave_all(self) -> None:
        """The collector ends: close the traces of all streams, including those of an earlier collector."""
        for stream in self._streams.values():
            await stream.run(stream.stored.leave)
            self.close_full(stream)
        known = self._streams.keys()
        left = await self._closer.run(self.folder.unfinished)
        for key, names in left.items():
            if key not in known:
                self._closings.extend((restoring(name.path), 0) for name in names)
        await self.close_all()

    # --- reporting ------------------------------------------------------------------------------

    def write_failed(self, error: OSError) -> None:
        """Report that writing fails, once per reason."""
        self.counts.failures += not isinstance(error, BudgetError)
        reason = escape(f"{error.strerror}: {error.filename}" if error.filename else str(error))
        if reason != self.stalled:
            LOG.warning("nothing is acknowledged until it can be written: %s", reason)
            self.stalled = reason

    def write_succeeded(self) -> None:
        """Report that writing works again, if it had failed."""
        if self.stalled:
            LOG.warning("writing works again")
            self.stalled = ""


def _find(folder: Folder, info: StreamInfo, rotation: Rotation) -> StoredStream:
    return StoredStream(folder, info, max_size=rotation.max_size, max_age=rotation.max_age)
