"""One connection of a producer: three loops read, store and acknowledge its pages at their own pace.

    socket --_read_until--> protocol --pages--> queue --_store_loop--> files, fsync --> _send_loop --> socket

Reading never waits for the disk: heartbeats arrive even while the disk is full, and the credit that
was granted to the producer bounds the queue. The store loop writes what is queued, syncs many pages
with one fsync, and only then acknowledges them. The send loop sends, and ticks the protocol's
timers.

**No page is acknowledged before it has reached the level that the producer requested.** **When
reading ends, for whatever reason, what was received is stored first**: the producer learns of it
when it reconnects. **A stream has one connection**: a newer one takes the stream over after the
older has stored what it received.
"""

from __future__ import annotations

import ssl
from collections import deque
from collections.abc import Callable
from typing import Final

import anyio
from anyio.lowlevel import checkpoint

from .._base.errors import TraceFormatError
from .._base.terminal_text import escape
from .._formats.frames import Level
from .._page.entry import PageCopy
from .._protocol.collector import Collector, CollectorEvent, Defined, Finished, Greeted, Limits, PageReceived
from .._protocol.messages import HANDSHAKE_PATIENCE, Broken, Grant, Position, Refused
from ..abc import Ledger, Page, StreamInfo
from .access import Access
from .listeners import Listener
from .state import LOG, CollectorState, FullError, Stream
from .stored_stream import UNSYNCED_MAX
from .transport import Transport

__all__ = ["Connection"]

BATCH_BYTES: Final = 1 << 20
"""Bytes of pages that are written in one call in the thread; then the other connections that
share it have their turn."""
RETRY_PAUSE: Final = 0.25
"""Seconds before a write that failed is tried again."""
SYNC_SHARE: Final = 4
"""A stream syncs when this many times the duration of its last fsync have passed, but at the
latest after `commit_interval`."""
FLUSH_TIMEOUT: Final = 1.0
"""Seconds that a peer has to read the last frames before the connection is closed."""
LIMITS: Final = Limits(definitions_size=1 << 24)
HELD_MAX: Final = 8 << 20
"""Bytes in the queue up to which pages are acknowledged as soon as they are received; above it,
when written."""

Show = Callable[[Stream, list[Page]], None]
"""Called in a stream's thread with pages that were not received before."""


class Connection:
    """One connection. `run` does everything."""

    def __init__(
        self,
        state: CollectorState,
        access: Access,
        listener: Listener,
        transport: Transport,
        peer: str,
        *,
        commit_interval: float,
        show: Show | None = None,
    ) -> None:
        self.peer = peer
        self.is_greeted = False
        """The peer has identified itself and was admitted."""
        self._state = state
        self._access = access
        self._listener = listener
        self._transport = transport
        self._commit_interval = commit_interval
        self._show = show
        self._machine: Collector
        self._reading = anyio.CancelScope()
        self._is_reading = True
        self._to_store = anyio.Event()
        self._to_send = anyio.Event()
        self._over = anyio.Event()
        self._greeted: Greeted | None = None
        self._stream: Stream | None = None
        self._level = Level.FSYNCED
        self._credit = 1
        self._queue: deque[PageReceived] = deque()
        self._queued_bytes = 0
        self._arrived: dict[int, Position] = {}
        """By writer, the end of what has come and is not acknowledged, at the level `received`."""
        self._written: dict[int, Position] = {}
        """By writer, the end of what is in the files and not acknowledged."""
        self._unsynced_bytes = 0
        self._unsynced_since = 0.0
        self._synced_at = 0.0
        self._sync_seconds = 0.0
        self._ledger: Ledger | None = None

    @property
    def name(self) -> str:
        """The peer, for log messages."""
        if self._greeted is None:
            return self.peer
        info = self._greeted.info
        return f"{escape(info.host)}, pid {info.pid} ({self.peer})"

    def stop(self) -> None:
        """Stop reading; store and acknowledge what was received, then end."""
        self._is_reading = False
        self._reading.cancel()

    async def run(self) -> None:
        """Serve the connection until it ends. Raises only a cancellation."""
        try:
            with anyio.fail_after(HANDSHAKE_PATIENCE):
                await self._transport.start()
            self._machine = Collector(anyio.current_time(), limits=LIMITS)
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(self._send_loop)
                await self._serve()
                await self._flush_before_close()
                tasks.cancel_scope.cancel()
        except TimeoutError:
            self._refused(f"no TLS handshake within {HANDSHAKE_PATIENCE:g} s")
        except ssl.SSLError as error:
            self._refused(f"TLS: {_reason(error)}")
        except OSError as error:
            LOG.debug("%s: the connection was lost: %s", self.name, error)
        finally:
            self._is_reading = False
            self._transport.close()
            self._over.set()

    async def _serve(self) -> None:
        await self._read_until(lambda: self._greeted is not None)
        if self._greeted is None:
            return
        if self._transport.is_over():
            return  # the peer already disconnected: do not steal the stream from its next connection
        info = self._greeted.info
        if (reason := self._refusal(self._greeted)) is not None:
            self._refused(reason)
            self._machine.refuse(reason)
            return
        try:
            credit = self._state.grant(info.page_size)
        except FullError as error:
            self._refused(str(error))
            self._machine.refuse(str(error))
            return
        try:
            await self._serve_stream(info, credit)
        finally:
            self._state.give_back_memory(credit, info.page_size)

    def _refusal(self, greeted: Greeted) -> str | None:
        """The reason to reject the peer, or None."""
        if self._listener.needs_token and not self._access.admits(greeted.request.token):
            return "a token is needed" if greeted.request.token is None else "the token is wrong"
        return None

    async def _serve_stream(self, info: StreamInfo, credit: int) -> None:
        try:
            stream = self._stream = await self._state.take(info, self.stop)
        except (OSError, TraceFormatError) as error:
            # A restore is running, or the disk fails: the producer tries again.
            LOG.warning("%s: its traces cannot be used: %s", self.name, escape(str(error)))
            return
        try:
            if not await self._accept(stream, credit):
                return
            self.is_greeted = True
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(self._store_loop, stream)
                self._handle(self._machine.received(0, anyio.current_time()))
                await self._read_until(lambda: False)
                self._is_reading = False
                self._to_store.set()
        finally:
            self._drop_queue()
            with anyio.CancelScope(shield=True):
                await self._state.give_back(stream)

    async def _accept(self, stream: Stream, credit: int) -> bool:
        assert self._greeted is not None
        info, request = self._greeted
        stored = stream.stored
        if (stored.info.page_size, stored.info.clock) != (info.page_size, info.clock):
            self._machine.refuse(reason := "a stream of this id is there, and it is another")
            self._refused(reason)
            return False
        self._level, self._credit = request.level, credit
        stored.durable = request.level is Level.FSYNCED
        try:
            await stream.run(stored.recover)
            await stream.run(stored.sync)
        except OSError as error:
            self._state.write_failed(error)
            return False
        check = request.check_bodies or not self._listener.is_local or self._listener.is_tls
        grant = Grant(credit, check_bodies=check, definitions=len(stored.definitions), ended=stored.ended)
        self._machine.accept(grant, stored.reached)
        self._wake_sender()
        LOG.info("%s: connected", self.name)
        return True

    def _refused(self, reason: str) -> None:
        self._state.counts.refused += 1
        LOG.warning("%s was refused: %s", self.name, escape(reason))

    # --- reading --------------------------------------------------------------------------------

    async def _read_until(self, done: Callable[[], bool]) -> None:
        """Read until `done`, the end of the connection, or `stop`. One read per loop turn, so
        that connections alternate."""
        with anyio.CancelScope() as self._reading:
            try:
                while self._is_reading and not done() and not self._machine.is_over:
                    count = self._transport.receive_now(self._machine.buffer())
                    if count is None:
                        await self._transport.wait_readable()
                    else:
                        self._received(count)
                        await checkpoint()
            except OSError as error:
                LOG.debug("%s: the connection was lost: %s", self.name, error)
                self._is_reading = False

    def _received(self, count: int) -> None:
        if count == 0:
            self._is_reading = False
            return
        self._handle(self._machine.received(count, anyio.current_time()))

    def _handle(self, events: list[CollectorEvent]) -> None:
        for event in events:
            match event:
                case PageReceived():
                    self._take(event)
                case Defined(_, definitions):
                    assert self._stream is not None
                    self._stream.stored.definitions += definitions
                case Greeted():
                    self._greeted = event
                case Finished(ledger):
                    self._ledger = ledger
                    self._to_store.set()
                case Broken(reason):
                    self._state.counts.broken += 1
                    LOG.warning("%s: %s", self.name, escape(reason))
                    self._is_reading = False
                case Refused(reason):
                    LOG.warning("%s ended the connection: %s", self.name, escape(reason))
                    self._is_reading = False

    def _take(self, page: PageReceived) -> None:
        counts, entry = self._state.counts, page.entry
        counts.pages += 1
        counts.bytes += entry.committed
        counts.events += entry.events_count
        counts.lost += max(0, entry.lost_before)
        self._queue.append(page)
        self._queued_bytes += entry.committed
        if self._level is Level.RECEIVED:
            self._arrived[entry.writer] = page.end
            self._acknowledge_received()
        self._to_store.set()

    def _acknowledge_received(self) -> None:
        if self._arrived and self._queued_bytes <= HELD_MAX:
            self._acknowledge(self._arrived)

    def _acknowledge(self, positions: dict[int, Position]) -> None:
        before = self._machine.held_count
        self._machine.acknowledge(positions)
        self._state.counts.acknowledged += before - self._machine.held_count
        positions.clear()
        self._wake_sender()

    # --- storing --------------------------------------------------------------------------------

    async def _store_loop(self, stream: Stream) -> None:
        """Store pages until reading has ended and everything received is stored, or cannot be."""
        while True:
            self._to_store = anyio.Event()
            if self._is_sync_due():
                if not await self._sync(stream):
                    return
            elif self._queue:
                if not await self._write(stream):
                    return
            elif self._ledger is not None and not self._written:
                await self._end(stream, self._ledger)
                return
            elif not self._is_reading and not self._written:
                return
            else:
                with anyio.move_on_after(self._time_to_sync()):
                    await self._to_store.wait()

    async def _write(self, stream: Stream) -> bool:
        """Write the next batch of pages; false if that failed and the connection is over."""
        pages, size = self._next_batch()
        copies = [PageCopy(page.entry, page.data) for page in pages]
        fresh = stream.stored.missing(copies) if self._show is not None else []
        before = stream.stored.duplicates
        while True:
            try:
                await stream.run(stream.stored.write, copies)
                break
            except OSError as error:
                if not await self._wait_to_retry(stream, error):
                    return False
        self._state.write_succeeded()
        self._state.close_full(stream)
        self._state.counts.duplicates += stream.stored.duplicates - before
        if self._show is not None:
            await stream.run(self._show, stream, fresh)
        if not self._written:
            self._unsynced_since = anyio.current_time()
        for page in pages:
            self._written[page.entry.writer] = page.end
            self._queue.popleft()
            page.release()
        self._queued_bytes -= size
        self._unsynced_bytes += size
        if self._level is Level.WRITTEN:
            self._acknowledge(self._written)
        elif self._level is Level.RECEIVED:
            self._written.clear()
            self._acknowledge_received()
        return True

    def _next_batch(self) -> tuple[list[PageReceived], int]:
        pages: list[PageReceived] = []
        size = 0
        for page in self._queue:
            if pages and size + page.entry.committed > BATCH_BYTES:
                break
            pages.append(page)
            size += page.entry.committed
        return pages, size

    async def _wait_to_retry(self, stream: Stream, error: OSError) -> bool:
        """A write failed: wait before the next attempt. False if the connection is over, or the
        pages must be sent again."""
        self._state.write_failed(error)
        if stream.stored.sync_failed:
            await self._recover(stream)
            return False
        if not self._is_reading:
            return False
        with anyio.move_on_after(RETRY_PAUSE):
            await self._reading_ended()
        return True

    async def _reading_ended(self) -> None:
        while self._is_reading:
            self._to_store = anyio.Event()
            await self._to_store.wait()

    def _is_sync_due(self) -> bool:
        return bool(self._written) and (self._time_to_sync() or 0) <= 0

    def _time_to_sync(self) -> float | None:
        """Seconds until the next fsync is due; None if there is nothing to sync."""
        if not self._written:
            return None
        if self._unsynced_bytes >= UNSYNCED_MAX // 2:
            return 0.0
        if not self._queue and (not self._is_reading or self._ledger is not None or self._is_out_of_credit()):
            return 0.0
        due = min(self._unsynced_since + self._commit_interval, self._synced_at + SYNC_SHARE * self._sync_seconds)
        return due - anyio.current_time()

    def _is_out_of_credit(self) -> bool:
        """Whether the producer must wait for an acknowledgement before it can send more."""
        return self._machine.held_count >= self._credit

    async def _sync(self, stream: Stream) -> bool:
        """Sync what is written, and acknowledge it; false if it must be sent again."""
        began = anyio.current_time()
        try:
            await stream.run(stream.stored.sync)
        except OSError as error:
            self._state.write_failed(error)
            await self._recover(stream)
            return False
        self._synced_at = anyio.current_time()
        self._sync_seconds = self._synced_at - began
        self._unsynced_bytes = 0
        self._acknowledge(self._written)
        return True

    async def _recover(self, stream: Stream) -> None:
        """After a failed fsync: keep only what is known to be on the disk. The producer learns
        of it when it reconnects."""
        LOG.warning("%s: an fsync failed: what was not acknowledged must be sent again", self.name)
        self.stop()
        try:
            await stream.run(stream.stored.recover)
        except OSError as error:
            self._state.write_failed(error)

    async def _end(self, stream: Stream, ledger: Ledger) -> None:
        while True:
            try:
                await stream.run(stream.stored.end, ledger)
                break
            except OSError as error:
                self._state.write_failed(error)
                if not self._is_reading:
                    return
                try:
                    await stream.run(stream.stored.recover)
                except OSError as failure:
                    self._state.write_failed(failure)
                await anyio.sleep(RETRY_PAUSE)
        self._state.write_succeeded()
        self._state.counts.ended += 1
        self._state.counts.lost += sum(writer.lost_after for writer in ledger.writers)
        self._state.close_full(stream)
        LOG.info("%s: ended", self.name)
        self._machine.acknowledge_end()
        self._wake_sender()
        self.stop()

    def _drop_queue(self) -> None:
        while self._queue:
            self._queue.popleft().release()

    # --- sending --------------------------------------------------------------------------------

    def _wake_sender(self) -> None:
        """There is something to send."""
        self._to_send.set()

    async def _send_loop(self) -> None:
        """Send pending frames, and tick the protocol when its deadline passes."""
        while True:
            self._to_send = anyio.Event()
            try:
                if not self._send():
                    with anyio.move_on_after(self._machine.deadline - anyio.current_time()):
                        await self._transport.wait_writable()
                else:
                    with anyio.move_on_after(self._machine.deadline - anyio.current_time()):
                        await self._to_send.wait()
                if anyio.current_time() >= self._machine.deadline:
                    await self._tick()
            except OSError as error:
                LOG.debug("%s: the connection was lost: %s", self.name, error)
                self.stop()
                return

    def _send(self) -> bool:
        """Send pending frames; false if the socket accepts no more at present."""
        while buffers := self._machine.pending():
            count = self._transport.send_now(buffers)
            if not count:
                return False
            self._machine.sent(count)
        return True

    async def _tick(self) -> None:
        """Tick the protocol's timers. Reads what has arrived first, so that after a pause of
        this process the peer is not taken for silent."""
        while self._is_reading and self._transport.has_bytes():
            await checkpoint()
        self._handle(self._machine.tick(anyio.current_time()))
        if not self._is_reading:
            self.stop()

    async def _flush_before_close(self) -> None:
        try:
            with anyio.move_on_after(FLUSH_TIMEOUT):
                while not self._send():
                    await self._transport.wait_writable()
        except OSError as error:
            LOG.debug("%s: the last frames were not delivered: %s", self.name, error)


def _reason(error: ssl.SSLError) -> str:
    if getattr(error, "reason", None) == "HTTP_REQUEST":
        return "the peer speaks HTTP"
    if error.reason in ("WRONG_VERSION_NUMBER", "UNEXPECTED_MESSAGE", "RECORD_LAYER_FAILURE"):
        return f"the peer does not speak TLS ({error.reason})"
    return str(error)
