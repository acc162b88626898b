"""One connection of a producer: read, kept, acknowledged, each at its pace.

    socket --read--> protocol --pages--> queue --keep--> files --sync--> acknowledged --speak--> socket

The reader takes what has come and never waits for the disk: heartbeats go on while it is full, and the credit that the
producer was granted bounds the queue. The keeper writes what is queued, brings it to the disk for many pages at once,
and only then acknowledges. The speaker sends, and looks at the clock.

The laws. **Nothing is acknowledged before it has reached the level that the producer asked for.** **When reading ends,
for whatever reason, what came is kept first**: a producer that connects again is told of it. **A stream has one
connection**: a newer one takes it over, once the older has kept what it has.
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
from .._protocol.collector import Collector, CollectorEvent, Defined, Finished, Greeted, Limits, PageReceived
from .._protocol.messages import HANDSHAKE_PATIENCE, Broken, Grant, Position, Refused
from .._store.unfinished import StoredPage
from ..abc import Ledger, Page, StreamInfo
from .access import Access, Listener
from .state import LOG, FullError, Keeper, Stream
from .stored_stream import UNSYNCED_MAX
from .transport import Transport

__all__ = ["Client"]

BATCH_BYTES: Final = 1 << 20
"""Of pages that are written in one hop to the thread: a client has its turn, then the others that share it."""
RETRY_PAUSE: Final = 0.25
"""Seconds before a write that failed is tried again."""
SYNC_SHARE: Final = 4
"""A stream syncs when so many times the duration of its last fsync have passed, though not later than is promised."""
LAST_WORDS: Final = 1.0
"""Seconds that a peer has to take what it is told at the end."""
LIMITS: Final = Limits(definitions_size=1 << 24)
HELD_MAX: Final = 8 << 20
"""Bytes that wait to be written when pages are acknowledged as soon as they are received: from then on later."""

Show = Callable[[Stream, list[Page]], None]
"""Called in a stream's thread with pages that are new."""


class Client:
    """One connection. `run` does everything."""

    def __init__(
        self,
        keeper: Keeper,
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
        """It has said who it is, and was let in."""
        self._keeper = keeper
        self._access = access
        self._listener = listener
        self._transport = transport
        self._commit_interval = commit_interval
        self._show = show
        self._machine: Collector
        self._reading = anyio.CancelScope()
        self._is_reading = True
        self._to_keep = anyio.Event()
        self._to_say = anyio.Event()
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
        """For people."""
        if self._greeted is None:
            return self.peer
        info = self._greeted.info
        return f"{escape(info.host)}, pid {info.pid} ({self.peer})"

    def stop(self) -> None:
        """Read no more; keep and acknowledge what has come, and end."""
        self._is_reading = False
        self._reading.cancel()

    async def run(self) -> None:
        """Serve the connection to its end. Raises nothing but a cancellation."""
        try:
            with anyio.fail_after(HANDSHAKE_PATIENCE):
                await self._transport.start()
            self._machine = Collector(anyio.current_time(), limits=LIMITS)
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(self._speak)
                await self._serve()
                await self._say_last_words()
                tasks.cancel_scope.cancel()
        except TimeoutError:
            self._refused(f"it did not begin TLS within {HANDSHAKE_PATIENCE:g} s")
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
            return  # it gave up while nobody looked: its next connection must not be taken the stream from
        info = self._greeted.info
        if (reason := self._refusal(self._greeted)) is not None:
            self._refused(reason)
            self._machine.refuse(reason)
            return
        try:
            credit = self._keeper.grant(info.page_size)
        except FullError as error:
            self._refused(str(error))
            self._machine.refuse(str(error))
            return
        try:
            await self._serve_stream(info, credit)
        finally:
            self._keeper.give_back_memory(credit, info.page_size)

    def _refusal(self, greeted: Greeted) -> str | None:
        """Why it is not let in."""
        if self._listener.needs_token and not self._access.admits(greeted.request.token):
            return "a token is needed" if greeted.request.token is None else "the token is wrong"
        return None

    async def _serve_stream(self, info: StreamInfo, credit: int) -> None:
        try:
            stream = self._stream = await self._keeper.take(info, self.stop)
        except (OSError, TraceFormatError) as error:
            # Somebody restores it, or the disk fails: the producer tries again.
            LOG.warning("%s: its traces cannot be used: %s", self.name, escape(str(error)))
            return
        try:
            if not await self._accept(stream, credit):
                return
            self.is_greeted = True
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(self._keep, stream)
                self._handle(self._machine.received(0, anyio.current_time()))
                await self._read_until(lambda: False)
                self._is_reading = False
                self._to_keep.set()
        finally:
            self._drop_queue()
            with anyio.CancelScope(shield=True):
                await self._keeper.give_back(stream)

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
            self._keeper.stall(error)
            return False
        check = request.check_bodies or not self._listener.is_local or self._listener.is_tls
        grant = Grant(credit, check_bodies=check, definitions=len(stored.definitions), ended=stored.ended)
        self._machine.accept(grant, stored.reached)
        self._say()
        LOG.info("%s: connected", self.name)
        return True

    def _refused(self, reason: str) -> None:
        self._keeper.counts.refused += 1
        LOG.warning("%s was refused: %s", self.name, escape(reason))

    # --- reading --------------------------------------------------------------------------------

    async def _read_until(self, done: Callable[[], bool]) -> None:
        """Until that, or the end of the connection, or `stop`. One read a turn, so that all have theirs."""
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
                    self._to_keep.set()
                case Broken(reason):
                    self._keeper.counts.broken += 1
                    LOG.warning("%s: %s", self.name, escape(reason))
                    self._is_reading = False
                case Refused(reason):
                    LOG.warning("%s ended the connection: %s", self.name, escape(reason))
                    self._is_reading = False

    def _take(self, page: PageReceived) -> None:
        counts, entry = self._keeper.counts, page.entry
        counts.pages += 1
        counts.bytes += entry.committed
        counts.events += entry.events_count
        counts.lost += max(0, entry.lost_before)
        self._queue.append(page)
        self._queued_bytes += entry.committed
        if self._level is Level.RECEIVED:
            self._arrived[entry.writer] = page.end
            self._acknowledge_received()
        self._to_keep.set()

    def _acknowledge_received(self) -> None:
        if self._arrived and self._queued_bytes <= HELD_MAX:
            self._acknowledge(self._arrived)

    def _acknowledge(self, positions: dict[int, Position]) -> None:
        before = self._machine.held_count
        self._machine.acknowledge(positions)
        self._keeper.counts.acknowledged += before - self._machine.held_count
        positions.clear()
        self._say()

    # --- keeping --------------------------------------------------------------------------------

    async def _keep(self, stream: Stream) -> None:
        """Until reading has ended and what came is kept, or cannot be."""
        while True:
            self._to_keep = anyio.Event()
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
                    await self._to_keep.wait()

    async def _write(self, stream: Stream) -> bool:
        """The next pages; false if they cannot be kept and nobody waits for it any more."""
        pages, size = self._next_batch()
        copies = [StoredPage(page.entry, page.data) for page in pages]
        fresh = stream.stored.missing(copies) if self._show is not None else []
        before = stream.stored.duplicates
        while True:
            try:
                await stream.run(stream.stored.write, copies)
                break
            except OSError as error:
                if not await self._bear(stream, error):
                    return False
        self._keeper.flow()
        self._keeper.close_full(stream)
        self._keeper.counts.duplicates += stream.stored.duplicates - before
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

    async def _bear(self, stream: Stream, error: OSError) -> bool:
        """A write failed: wait until it may be tried again. False if the connection is over, or its pages must be sent
        again."""
        self._keeper.stall(error)
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
            self._to_keep = anyio.Event()
            await self._to_keep.wait()

    def _is_sync_due(self) -> bool:
        return bool(self._written) and (self._time_to_sync() or 0) <= 0

    def _time_to_sync(self) -> float | None:
        """Seconds; None if there is nothing to be synced."""
        if not self._written:
            return None
        if self._unsynced_bytes >= UNSYNCED_MAX // 2:
            return 0.0
        if not self._queue and (not self._is_reading or self._ledger is not None or self._is_out_of_credit()):
            return 0.0
        due = min(self._unsynced_since + self._commit_interval, self._synced_at + SYNC_SHARE * self._sync_seconds)
        return due - anyio.current_time()

    def _is_out_of_credit(self) -> bool:
        """Whether no more can come before something is acknowledged."""
        return self._machine.held_count >= self._credit

    async def _sync(self, stream: Stream) -> bool:
        """Bring what is written to the disk, and acknowledge it; false if it must be sent again."""
        began = anyio.current_time()
        try:
            await stream.run(stream.stored.sync)
        except OSError as error:
            self._keeper.stall(error)
            await self._recover(stream)
            return False
        self._synced_at = anyio.current_time()
        self._sync_seconds = self._synced_at - began
        self._unsynced_bytes = 0
        self._acknowledge(self._written)
        return True

    async def _recover(self, stream: Stream) -> None:
        """What is on the disk is unknown. The producer, which connects again, is told what is known to be."""
        LOG.warning("%s: an fsync failed: what was not acknowledged must be sent again", self.name)
        self.stop()
        try:
            await stream.run(stream.stored.recover)
        except OSError as error:
            self._keeper.stall(error)

    async def _end(self, stream: Stream, ledger: Ledger) -> None:
        while True:
            try:
                await stream.run(stream.stored.end, ledger)
                break
            except OSError as error:
                self._keeper.stall(error)
                if not self._is_reading:
                    return
                try:
                    await stream.run(stream.stored.recover)
                except OSError as failure:
                    self._keeper.stall(failure)
                await anyio.sleep(RETRY_PAUSE)
        self._keeper.flow()
        self._keeper.counts.ended += 1
        self._keeper.counts.lost += sum(writer.lost_after for writer in ledger.writers)
        self._keeper.close_full(stream)
        LOG.info("%s: ended", self.name)
        self._machine.acknowledge_end()
        self._say()
        self.stop()

    def _drop_queue(self) -> None:
        while self._queue:
            self._queue.popleft().release()

    # --- speaking -------------------------------------------------------------------------------

    def _say(self) -> None:
        """There is something to send."""
        self._to_say.set()

    async def _speak(self) -> None:
        """Send what is to be sent; look at the clock."""
        while True:
            self._to_say = anyio.Event()
            try:
                if not self._send():
                    with anyio.move_on_after(self._machine.deadline - anyio.current_time()):
                        await self._transport.wait_writable()
                else:
                    with anyio.move_on_after(self._machine.deadline - anyio.current_time()):
                        await self._to_say.wait()
                if anyio.current_time() >= self._machine.deadline:
                    await self._tick()
            except OSError as error:
                LOG.debug("%s: the connection was lost: %s", self.name, error)
                self.stop()
                return

    def _send(self) -> bool:
        """Send what is to be sent; false if there is no room at present."""
        while buffers := self._machine.pending():
            count = self._transport.send_now(buffers)
            if not count:
                return False
            self._machine.sent(count)
        return True

    async def _tick(self) -> None:
        """Time has passed. What is there is read before: whoever slept must not call the other silent."""
        while self._is_reading and self._transport.has_bytes():
            await checkpoint()
        self._handle(self._machine.tick(anyio.current_time()))
        if not self._is_reading:
            self.stop()

    async def _say_last_words(self) -> None:
        try:
            with anyio.move_on_after(LAST_WORDS):
                while not self._send():
                    await self._transport.wait_writable()
        except OSError as error:
            LOG.debug("%s: it did not hear the last words: %s", self.name, error)


def _reason(error: ssl.SSLError) -> str:
    if getattr(error, "reason", None) == "HTTP_REQUEST":
        return "it speaks HTTP"
    if error.reason in ("WRONG_VERSION_NUMBER", "UNEXPECTED_MESSAGE", "RECORD_LAYER_FAILURE"):
        return f"it does not speak TLS ({error.reason})"
    return str(error)
