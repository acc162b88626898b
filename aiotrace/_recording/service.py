"""The service of a recording: the reader task and one task per sink, in one loop. It owns no page.

    a page is full ---wake---> reader: swap, offer ---notify---> sink tasks ---acknowledge---> wake
    flush interval ----------> reader: offer prefixes of pages that still fill (only to sinks that take them)

Invariant (law 6, held by tests/recording): nothing here raises into the program. A sink that fails is called again
after a pause, or detached, according to its `on_error`. A crash of the reader is stored in `failure`, a warning is
issued, and the reader restarts. No task belongs to a task group of the program; tasks that are cancelled from outside
are restarted.
"""

from __future__ import annotations

import threading
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Final, Literal

import anyio

from .._base.warn import warn
from .._events.open_recordings import inside_sink
from .._page.definitions import Definition
from .._ring.delivery import Delivery
from .._ring.page_cycle import PageCycle
from .._ring.writer import Writers
from .._threads.loop import Loop, Task, Waker
from .._threads.service_thread import yield_gil
from ..abc import Ledger, StreamInfo, WriterLedger
from .page_stream import Stream
from .sinks import SinkOptions
from .writing import ProgramListener

RETRY_PAUSE_FIRST: Final = 0.05
RETRY_PAUSE_MAX: Final = 0.5
"""Seconds before a failed sink is called again: doubled from FIRST to MAX, so that a disk with free space again is used
within a second."""
CANCEL_GRACE: Final = 1.0
"""Seconds that a sink has to end after it was cancelled; then it is abandoned, and the memory of its pages leaks."""

REST_MAX: Final = 0.02
"""Seconds (or a tenth of the flush interval, if that is less) that the reader rests after it moved pages. Pages that
get full then are batched, unless a quarter of the pool is full. Waking for each page costs a busy program 100 to 200 µs
a page where both compete for the GIL; in batches of 16 it is 40."""

SWAPPED: Final = 16
"""Pages that are swapped at once. It takes about 10 µs (40 in pure Python), which a writer that turns its page may have
to wait."""

GONE_MAX: Final = 64
"""Detached sinks whose accounts are kept: a program that attaches and detaches for years must not grow."""

SinkState = Literal["starting", "running", "failed", "finished", "detached"]


@dataclass(slots=True, eq=False)
class Attachment:
    """One attached sink, and its account after it is detached."""

    options: SinkOptions
    delivery: Delivery
    state: SinkState = "starting"
    failures: int = 0
    """How often the sink raised."""
    last_error: BaseException | None = None
    detached: bool = False
    started: anyio.Event = field(default_factory=anyio.Event)
    stream: Stream | None = None
    task: Task | None = None


class Service(ProgramListener):
    """The asynchronous part of a recording. Call its methods in its loop's thread, unless they say otherwise.

    A PageCycle needs its listener, this service, on creation; so the service is created first and gets the pages in
    `serve`.

    Args:
        own_thread: Whether it runs in a thread of its own, not in the program's loop.
    """

    def __init__(
        self,
        info: StreamInfo,
        definitions: Sequence[Definition],
        flush_interval: float,
        *,
        own_thread: bool = False,
    ) -> None:
        self._info = info
        self._definitions = definitions
        self._flush_interval = flush_interval
        self._own_thread = own_thread
        self.attachments: list[Attachment] = []
        self.failure: Exception | None = None
        """What the reader last crashed with."""
        self._is_listening = False
        self._stretch = 1.0
        self._draining = False
        self._resting = False
        self._rest = min(REST_MAX, flush_interval / 10)
        self._reader: Task | None = None

    def serve(self, pages: PageCycle, writers: Writers) -> None:
        """Set what the service works on; before `start`.

        Args:
            pages: Created with this service as their listener.
        """
        self._pages = pages
        self._writers = writers

    async def start(self) -> None:
        # In a thread of its own, the thread's processor time is measured; in the program's loop, each step is timed.
        self._loop = Loop(None if self.meter is None or self._own_thread else self.meter.timed)
        self._waker = Waker(self._loop)
        self._is_listening = True
        self._reader = self._loop.spawn(self._run_reader, "aiotrace reader")

    def set_pace(self, stretch: float) -> None:
        """Multiply the flush interval by `stretch`, from the next wake on; if it is more than 1, wake for full pages
        only when a quarter of the pool is full. From any thread."""
        self._stretch = stretch

    def run_soon(self, function: Callable[[], object]) -> bool:
        """Call a function in the service's loop, from any thread. False: the loop does not run."""
        return self._reader is not None and self._loop.run_soon(function)

    # --- what happens to pages, called from any thread --------------------------------------------

    def page_full(self) -> None:
        """Wake the reader, unless no sink has room: then `_on_room` is called once one has."""
        if self._is_listening and self._pages.deliveries and self._is_due and self._pages.room:
            self._waker.wake()

    def pages_freed(self) -> None:
        """Of each writer, let one sender that waits for a page try again."""
        if self._is_listening:
            self._wake_senders()

    def pages_scarce(self) -> None:
        """Give the reader's thread a chance to free pages."""
        if self._own_thread:
            yield_gil()

    # --- sinks ----------------------------------------------------------------------------------

    async def attach(self, options: SinkOptions, quota: int, next_events: Callable[[], dict[int, int]]) -> Attachment:
        """Start a sink and wait until it requests its first page.

        Raises:
            Exception: Whatever the sink raised before that; then it is not attached.
        """
        attachment = Attachment(options, Delivery(self._pages.arena, quota, options.on_full, options.name))
        self._pages.attach(attachment.delivery, next_events())
        self.attachments.append(attachment)
        attachment.task = self._loop.spawn(lambda: self._run_sink(attachment), f"aiotrace sink {options.name}")
        try:
            await attachment.started.wait()
        except BaseException:
            self._drop(attachment)
            raise
        if attachment.state == "failed" and attachment.detached and attachment.last_error is not None:
            self.attachments.remove(attachment)
            raise attachment.last_error
        self._waker.wake()
        return attachment

    async def detach(self, attachment: Attachment, timeout: float) -> None:
        """Let a sink finish its pages within `timeout` seconds, and detach it."""
        attachment.delivery.closed = True
        self._notify()
        self._waker.wake()  # other sinks no longer wait for this one
        await self._finish([attachment], timeout)

    def _drop(self, attachment: Attachment) -> None:
        """Detach a sink at once, and cancel its task."""
        self._mark_detached(attachment)
        if attachment.task is not None and not attachment.task.done:
            attachment.task.cancel()

    def _mark_detached(self, attachment: Attachment) -> None:
        if attachment.detached:
            return
        attachment.detached = True

        # Its pages are returned to the pool.
        if attachment.stream is not None:
            attachment.stream.finish()
        attachment.delivery.rewind()
        self._pages.detach(attachment.delivery)
        if attachment.state != "finished":
            attachment.state = "detached"

        # Keep its account, but not for ever.
        gone = [each for each in self.attachments if each.detached]
        if len(gone) > GONE_MAX:
            self.attachments.remove(gone[0])
        self._waker.wake()
        self._wake_senders()  # they may have waited for this sink

    async def _run_sink(self, attachment: Attachment) -> None:
        inside_sink.set(True)
        pause = RETRY_PAUSE_FIRST
        while not attachment.detached:
            settled_before = attachment.delivery.pages_acknowledged
            error = await self._call_sink(attachment)
            if error is None or attachment.detached:  # an error after detaching may come from released pages
                break

            attachment.failures += 1
            attachment.last_error = error
            if not attachment.started.is_set():
                self._mark_detached(attachment)
                attachment.state = "failed"
                break

            # It had started before: detach it, or call it again after a pause.
            _forget_frames(error)
            if attachment.options.on_error == "detach":
                self._warn(f"sink {attachment.options.name} failed and is detached: {error!r}")
                break
            if attachment.failures == 1:
                self._warn(f"sink {attachment.options.name} failed and is tried again: {error!r}")

            # Progress resets the pause.
            if attachment.delivery.pages_acknowledged != settled_before:
                pause = RETRY_PAUSE_FIRST
            attachment.state = "failed"
            await anyio.sleep(pause)
            pause = min(2 * pause, RETRY_PAUSE_MAX)
        self._mark_detached(attachment)
        attachment.started.set()

    async def _call_sink(self, attachment: Attachment) -> BaseException | None:
        """Call the sink once, with a new stream. Returns what it raised."""

        def first_request() -> None:
            attachment.state = "running"
            attachment.started.set()

        stream = attachment.stream = Stream(
            self._pages,
            attachment.delivery,
            self._info,
            self._definitions,
            on_first_request=first_request,
            on_prefixes=self._waker.wake,
            on_room=self._on_room,
            account=self.ledger,
        )
        try:
            await attachment.options.sink(stream)
        except BaseException as error:
            if self._is_for_the_task(error):
                if not isinstance(error, anyio.get_cancelled_exc_class()):
                    self._mark_detached(attachment)  # it is not called again, and must not block others
                    attachment.started.set()
                raise
            return error
        else:
            if stream.reached_end and not attachment.delivery.held:
                attachment.state = "finished"
            return None
        finally:
            stream.finish()
            if not attachment.detached:
                attachment.delivery.rewind()

    def _is_for_the_task(self, error: BaseException) -> bool:
        """Whether to re-raise what a sink raised: a cancellation, alone or in groups, GeneratorExit, or the user's
        Ctrl-C, which asyncio raises in any task of the main thread. Everything else is a failure of the sink, including
        BaseExceptions such as SystemExit, which would end trio if a system task raised them."""
        if isinstance(error, BaseExceptionGroup):
            return error.split(anyio.get_cancelled_exc_class())[1] is None
        if isinstance(error, KeyboardInterrupt):
            return self._loop.is_asyncio and threading.current_thread() is threading.main_thread()
        return isinstance(error, (anyio.get_cancelled_exc_class(), GeneratorExit))

    def ledger(self, delivery: Delivery) -> Ledger:
        """The account of one sink, by writer."""
        return Ledger(
            tuple(
                WriterLedger(
                    writer.slot,
                    writer.written,
                    writer.dropped_total,
                    self._pages.overrun.get(writer.slot, 0),
                    delivery.missed_by_writer.get(writer.slot, 0),
                    max(0, writer.number - delivery.next_event(writer.slot)),
                )
                for writer in self._writers.all
            )
        )

    # --- the reader -----------------------------------------------------------------------------

    async def _run_reader(self) -> None:
        inside_sink.set(True)
        while True:
            try:
                await self._read()
                return
            except Exception as error:
                self._report_crash(error)
                await anyio.sleep(RETRY_PAUSE_MAX)

    def _report_crash(self, error: Exception) -> None:
        self.failure = error
        self._warn(f"the reader crashed and is started again: {error!r}")

    async def _read(self) -> None:
        next_flush = 0.0
        while True:
            self._resting = False  # before scanning: a page that gets full later wakes the reader
            moved = self._offer_full()
            timeout = None

            # Flush, if a sink takes prefixes and it is time.
            if any(attachment.delivery.prefixes for attachment in self.attachments):
                timeout = next_flush - anyio.current_time()
                if timeout <= 0:
                    self._flush()
                    timeout = self._flush_interval * self._stretch
                    next_flush = anyio.current_time() + timeout

            # Rest after moving pages, so that the next ones come in a batch.
            if (moved or self._stretch > 1) and not self._draining:
                self._resting = True
                rest = self._rest if self._stretch == 1 else self._flush_interval * self._stretch
                timeout = rest if timeout is None else min(rest, timeout)
            with anyio.move_on_after(timeout):
                await self._waker.wait()

    def _on_room(self) -> None:
        """A sink has room for a page: offer it now, which saves a step of the loop. A failure counts for the reader,
        not the sink."""
        try:
            if self._is_due:
                self._offer_full()
        except Exception as error:
            self._report_crash(error)
            self._waker.wake()

    @property
    def _is_due(self) -> bool:
        """Whether there are enough full pages to wake the reader."""
        full = len(self._pages.ring)
        return bool(full) and (not self._resting or 4 * full >= self._pages.arena.pages)

    def _offer_full(self) -> bool:
        moved = False
        while self._pages.swap(SWAPPED):
            moved = True
        if self._draining and not len(self._pages.ring):
            for attachment in self.attachments:
                attachment.delivery.closed = True
            moved = True
        if moved:
            self._notify()
        return moved

    def _flush(self) -> None:
        for writer in tuple(self._writers.all):
            with writer.guard:
                prefix = writer.committed_prefix()
                if prefix is not None and prefix.events:
                    self._pages.offer_prefix(prefix)
        self._notify()

    def _notify(self) -> None:
        for attachment in self.attachments:
            if attachment.stream is not None and (attachment.delivery.waiting or attachment.delivery.closed):
                attachment.stream.notify()

    def _wake_senders(self) -> None:
        for writer in tuple(self._writers.all):
            writer.wake_one()

    # --- the end --------------------------------------------------------------------------------

    async def drain(self, timeout: float) -> None:
        """Deliver what is in the ring and let the sinks finish.

        Each sink has `timeout` seconds. After that, sinks that still hold pages are dropped, and the others get what
        is left in the ring. If cancelled, `abort` does the rest.
        """
        self._draining = True
        self._ensure_running()
        self._waker.wake()
        await self._finish(self._open, timeout, only_stuck=True)
        if self._open:
            self._waker.wake()
            await self._finish(self._open, timeout)

    @property
    def _open(self) -> list[Attachment]:
        return [attachment for attachment in self.attachments if not attachment.detached]

    async def _finish(self, attachments: list[Attachment], timeout: float, *, only_stuck: bool = False) -> None:
        with anyio.move_on_after(timeout):
            for attachment in attachments:
                await _ended(attachment)

        # Drop the others.
        late = [
            attachment
            for attachment in attachments
            if attachment.task is not None and not attachment.task.done
            and (not only_stuck or attachment.delivery.held or attachment.delivery.closed)
        ]  # fmt: skip
        for attachment in late:
            self._warn(
                f"sink {attachment.options.name} did not finish within {timeout} s; "
                f"{attachment.delivery.events_in_flight} events that it held are abandoned"
            )
            self._drop(attachment)

        with anyio.move_on_after(CANCEL_GRACE):
            for attachment in late:
                await _ended(attachment)

    def _ensure_running(self) -> None:
        if self._reader is not None:
            self._reader.ensure()
        for attachment in self.attachments:
            if attachment.task is not None and not attachment.detached:
                attachment.task.ensure()

    def abort(self) -> bool:
        """End everything at once, without an await.

        Returns:
            Whether all sinks have ended, so that no page can be read any more.
        """
        for attachment in tuple(self.attachments):
            self._drop(attachment)
        if self._reader is not None and not self._reader.done:
            self._reader.cancel()
        self._is_listening = False
        return all(attachment.task is None or attachment.task.done for attachment in self.attachments)

    @staticmethod
    def _warn(message: str) -> None:
        warn(f"aiotrace: {message}")


def _forget_frames(error: BaseException) -> None:
    """Replace an error's traceback by a note with the line: its frames would keep views of pages alive in statistics().
    Clearing the frames would not do: an error that was raised elsewhere before has frames of running coroutines, which
    CPython up to 3.12 would close."""
    for frame, line in traceback.walk_tb(error.__traceback__):
        note = f"raised at {frame.f_code.co_filename}:{line}, in {frame.f_code.co_name}"
    if error.__traceback__ is not None and note not in getattr(error, "__notes__", ()):
        error.add_note(note)
    error.__traceback__ = None


async def _ended(attachment: Attachment) -> None:
    if attachment.task is not None:
        await attachment.task.wait()
