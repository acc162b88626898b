"""The conformance kit for sinks. All sinks of aiotrace pass it; run it on yours.

    @pytest.mark.anyio
    async def test_my_sink_keeps_the_contract(tmp_path):
        await aiotrace.testing.check_sink(lambda: MySink(tmp_path / uuid.uuid4().hex))

`check_sink` drives sinks through real recordings with small pages. A stream between the recording and the sink observes
the sink, injects failures, and passes on copies of pages, so that a read of a page after its acknowledgement is found:

    recording ---> stream ---> watched stream (copies, faults, account) ---> the sink

The rules are those of `aiotrace.abc`. What a sink does with the bytes is left to its own tests.
"""

from __future__ import annotations

import gc
import threading
import warnings
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from traceback import clear_frames
from typing import Final, Self

import anyio

from ._base.errors import AcknowledgeError
from ._events.event import event
from ._recording.recording import Recording, record
from ._recording.sinks import SinkOptions, sink
from .abc import Definition, Ledger, Page, PageStream, Sink, StreamInfo

__all__ = ["SinkRuleError", "check_sink"]

PATIENCE: Final = 30.0
"""Seconds that a sink has for each action: a disk that others write to may block for several."""
PAGE_SIZE: Final = 4096
PAGES: Final = 32
EVENTS: Final = 1000
TEXT: Final = 300
"""The texts of `EVENTS` events, shorter than this, fill 46 pages: more than the pool holds."""
POISON: Final = 0xA5

_event: Final = event("aiotrace_testing:event", n="u64", text="str", what="symbol")


class SinkRuleError(AssertionError):
    """A sink broke a rule of `aiotrace.abc`; the message names the rule and what was observed."""


async def check_sink(make_sink: Callable[[], Sink]) -> None:
    """Check that a sink keeps the contract of `aiotrace.abc`, on the running event loop. Takes a second or two.

    Args:
        make_sink: Returns a new sink each time. Each sink is given a stream of its own.

    Raises:
        SinkRuleError: The sink broke a rule.
        Exception: What the sink raised before its first request for a page.
    """
    for check in (
        _ends_a_quiet_stream,
        _gets_everything,
        _gets_several_writers,
        _goes_on_after_losses,
        _goes_on_after_a_failure,
        _obeys_cancellation,
    ):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)  # the recording and the sink tell of what we did to them
            await check(make_sink)


# --- the checks ---------------------------------------------------------------------------------


async def _ends_a_quiet_stream(make_sink: Callable[[], Sink]) -> None:
    async with _watched(make_sink()):
        pass


async def _gets_everything(make_sink: Callable[[], Sink]) -> None:
    async with _watched(make_sink()) as watch:
        await watch.send(EVENTS)


async def _gets_several_writers(make_sink: Callable[[], Sink]) -> None:
    async with _watched(make_sink()) as watch:
        barrier = threading.Barrier(3)

        def write() -> None:
            watch.write(EVENTS // 8)
            barrier.wait()  # or the next thread would go on with the writer of one that has ended

        threads = [threading.Thread(target=write) for _ in range(3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        await watch.send(EVENTS // 4)


async def _goes_on_after_losses(make_sink: Callable[[], Sink]) -> None:
    async with _watched(make_sink()) as watch:
        watch.write(2 * EVENTS)  # more than the pool holds, and no await: the reader has no chance
        await watch.send(EVENTS)


async def _goes_on_after_a_failure(make_sink: Callable[[], Sink]) -> None:
    for request in (2, 3, 6):
        async with _watched(make_sink(), fail_at=request) as watch:
            await watch.send(EVENTS)


async def _obeys_cancellation(make_sink: Callable[[], Sink]) -> None:
    for request in (1, 2, 3, 6):
        async with _watched(make_sink(), hang_at=request) as watch:
            if request > 1:  # else it waits for its first page
                with anyio.move_on_after(PATIENCE) as waiting:
                    while not watch.hangs.is_set():
                        watch.write(EVENTS // 30)  # a page, more or less: a sink may take all there is at once
                        await anyio.sleep(0.001)  # a sink's thread needs the interpreter too
                watch.demand(not waiting.cancelled_caught, "a sink acknowledges pages while the stream goes on",
                             f"it did not ask for the {request}th time within {PATIENCE} s; {watch.state}")  # fmt: skip
            watch.scope.cancel()
            with anyio.move_on_after(PATIENCE) as waiting:
                await watch.left.wait()
            watch.demand(not waiting.cancelled_caught, "a cancelled sink ends promptly",
                         f"it was cancelled while it waited for a page, and runs on after {PATIENCE} s")  # fmt: skip


# --- the watch ----------------------------------------------------------------------------------


@asynccontextmanager
async def _watched(sink_: Sink, *, fail_at: int = 0, hang_at: int = 0) -> AsyncIterator[_Watch]:
    """A recording with one watched sink. On exit, all rules are checked."""
    watch = _Watch(sink_, fail_at, hang_at)
    async with record(watch.options(), page_size=PAGE_SIZE, pages=PAGES, drain_timeout=PATIENCE) as recording:
        watch.recording = recording
        yield watch
        watch.raise_if_broken()
    watch.check()


class _Watch:
    """Calls the sink with watched streams, and records what it does."""

    recording: Recording

    def __init__(self, sink_: Sink, fail_at: int, hang_at: int) -> None:
        self._sink = sink_
        self.fail_at = fail_at
        self.hang_at = hang_at
        self.requests = 0
        self.hangs = anyio.Event()
        """The request that never returns was made."""
        self.left = anyio.Event()
        """The call of the sink is over."""
        self.scope = anyio.CancelScope()
        self.looked: set[tuple[int, int, int]] = set()
        """(writer, sequence, offset) of each page that was given to the sink."""
        self.acknowledged: set[tuple[int, int, int]] = set()
        self.copies: list[_CopiedPage] = []
        self._broken: str | None = None
        self._ended = False

    def options(self) -> SinkOptions:
        async def watched(stream: PageStream) -> None:
            self.scope = anyio.CancelScope()
            try:
                with self.scope:
                    await self._sink(_WatchedStream(stream, self))
                    self.demand(self._ended, "a sink asks for pages until the stream ends", "it returned before that")
            except SinkRuleError:
                pass  # kept in `_broken`; to try again would only take time
            except Exception as error:
                clear_frames(error.__traceback__)  # the recording keeps the error, not the sink's variables
                raise
            finally:
                self.left.set()

        watched.__name__ = getattr(self._sink, "__name__", type(self._sink).__name__)
        return sink(watched)

    # --- producing ------------------------------------------------------------------------------

    async def send(self, events: int) -> None:
        with anyio.move_on_after(PATIENCE) as waiting:
            for n in range(events):
                await _event.send(n, "x" * (n % TEXT), "sent")
        self.raise_if_broken()
        self.demand(not waiting.cancelled_caught, "a sink acknowledges pages while the stream goes on",
                    f"it got no further within {PATIENCE} s; {self.state}")  # fmt: skip

    def write(self, events: int) -> None:
        for n in range(events):
            _event(n, "x" * (n % TEXT), "written")

    # --- the account ----------------------------------------------------------------------------

    @property
    def state(self) -> str:
        state = self.recording.statistics().sinks[0]
        held = len(self.looked - self.acknowledged)
        return f"it is {state.state} and holds {held} pages; its last error: {state.last_error!r}"

    def saw_end(self) -> None:
        self._ended = True

    def demand(self, kept: bool, rule: str, seen: str) -> None:
        """Raise, in the sink or here, unless the rule was kept; the check fails even if the sink swallows it."""
        if not kept:
            self._broken = self._broken or f"{rule}: {seen}"
            raise SinkRuleError(f"{rule}: {seen}")

    def raise_if_broken(self) -> None:
        if self._broken is not None:
            raise SinkRuleError(self._broken)

    def check(self) -> None:
        """After the recording: check that every page was acknowledged and no view is left."""
        self.raise_if_broken()
        if not self.hang_at:
            statistics = self.recording.statistics()
            missing = sorted(self.looked - self.acknowledged)
            self.demand(not missing, "a sink acknowledges every page that it is given",
                        f"{len(missing)} of {len(self.looked)} were not, the first (writer, sequence, offset) "
                        f"{missing[:1]}; {self.state}")  # fmt: skip
            self.demand(statistics.sinks[0].state == "finished", "a sink returns when the stream has ended",
                        self.state)  # fmt: skip
            delivered = statistics.events_delivered
            assert delivered == statistics.events_written, "not the sink's fault: the recording gave it too few"
        gc.collect()  # views in circles are nobody's any more
        self.check_views(self.copies, "after the sink had ended")

    def check_views(self, copies: Sequence[_CopiedPage], when: str) -> None:
        for copy in copies:
            self.demand(not copy.is_viewed, "a sink keeps no view of a page that it has acknowledged",
                        f"a view of {copy!r} was alive {when}")  # fmt: skip


class _InjectedError(ConnectionError):
    """The failure that the kit injects; a sink lets it propagate, or requests again."""


class _CopiedPage:
    """A page with its data copied to memory of its own: what the watched sink receives."""

    def __init__(self, page: Page) -> None:
        self.page = page
        self._memory = bytearray(page.data)
        self.data = memoryview(self._memory).toreadonly()
        self.writer = page.writer
        self.sequence = page.sequence
        self.offset = page.offset
        self.complete = page.complete
        self.timestamp = page.timestamp
        self.events_count = page.events_count
        self.lost_before = page.lost_before
        self.definitions_needed = page.definitions_needed
        self.key = (page.writer, page.sequence, page.offset)

    def header(self) -> bytes:
        return self.page.header()

    def lost_count(self) -> bytes:
        return self.page.lost_count()

    def __repr__(self) -> str:
        return f"<page {self.sequence} of writer {self.writer}>"

    def expire(self) -> None:
        """What an acknowledgement does to a page: its view is released, and other events overwrite its memory."""
        try:
            self.data.release()
        except BufferError:
            raise AcknowledgeError(f"{self!r} is acknowledged, but a view of its data is still in use") from None
        self._memory[:] = bytes([POISON]) * len(self._memory)

    @property
    def is_viewed(self) -> bool:
        """Whether any view of the data, or of a part of it, is alive."""
        try:
            self._memory.append(0)  # a bytearray does not change its size under a view
        except BufferError:
            return True
        self._memory.pop()
        return False


class _WatchedStream:
    def __init__(self, stream: PageStream, watch: _Watch) -> None:
        self._stream = stream
        self._watch = watch
        self._held: dict[_CopiedPage, None] = {}
        self._expired: list[_CopiedPage] = []
        self._expired_before: list[_CopiedPage] = []

    @property
    def info(self) -> StreamInfo:
        return self._stream.info

    @property
    def definitions(self) -> Sequence[Definition]:
        return self._stream.definitions

    @property
    def ledger(self) -> Ledger:
        return self._stream.ledger

    def accept_prefixes(self) -> None:
        self._stream.accept_prefixes()

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Page:
        batch = await self.next_batch(1)
        if not batch:
            raise StopAsyncIteration
        return batch[0]

    async def next_batch(self, pages: int) -> list[Page]:
        watch = self._watch
        # One request of grace: the view may be a local variable that the sink's loop is about to set anew.
        watch.check_views(self._expired_before, "two requests after its acknowledgement")
        self._expired_before, self._expired = self._expired, []
        watch.requests += 1
        if watch.requests == watch.hang_at > 1:
            watch.hangs.set()
            await anyio.sleep_forever()
        if watch.requests == watch.fail_at:
            raise _InjectedError(f"request {watch.requests} fails, because check_sink wants it")
        batch = [_CopiedPage(page) for page in await self._stream.next_batch(pages)]
        if not batch:
            watch.saw_end()
        for copy in batch:
            self._held[copy] = None
            watch.looked.add(copy.key)
        return list(batch)

    def acknowledge(self, page: Page) -> None:
        rule = "a sink acknowledges what it looked at in this call, once"
        held = isinstance(page, _CopiedPage) and page in self._held
        self._watch.demand(held, rule, f"{page!r} is not held (acknowledged twice, or of an earlier call)")
        assert isinstance(page, _CopiedPage)
        try:
            page.expire()
        except AcknowledgeError as error:
            self._watch.demand(False, "a sink keeps no view of a page that it has acknowledged", str(error))
        del self._held[page]
        self._expired.append(page)
        self._watch.copies.append(page)
        self._watch.acknowledged.add(page.key)
        self._stream.acknowledge(page.page)

    def acknowledge_all(self, pages: Sequence[Page]) -> None:
        for page in pages:
            self.acknowledge(page)
