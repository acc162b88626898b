"""The service behind a recording: when its reader moves pages, and how sinks are tried again and let go."""

# ruff: noqa: PT031
# (what warns there is a whole life of a sink)

from __future__ import annotations

import contextlib
import itertools
import struct
import threading
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import anyio
import pytest

import aiotrace
from aiotrace._events.open_recordings import inside_sink
from aiotrace._recording import page_stream
from aiotrace._recording import service as _reader
from aiotrace._recording.service import Attachment, Service
from aiotrace._recording.sinks import SinkOptions
from aiotrace._ring.arena import Arena
from aiotrace._ring.page_cycle import PageCycle
from aiotrace._ring.writer import Writers
from aiotrace.abc import Page, PageStream
from support.fakes import Timeout, make_info
from support.laws import PAGE, Collect, check_closed
from support.page_oracle import walk

pytestmark = pytest.mark.pure_too

number = aiotrace.event("laws:number", n="u64", text="str")
FILL = "x" * 3000
"""One such event fills a page: a second does not fit."""


# --- the reader's wake-ups: one for many pages of a busy writer, none too late for anybody else ----


@pytest.mark.anyio
async def test_a_reader_that_rests_is_woken_by_a_quarter_of_the_pool(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("aiotrace._recording.service.REST_MAX", 60)  # longer than the test, on any machine
    async with aiotrace.record(Collect(), page_size=PAGE, pages=64, flush_interval=600) as recording:
        calls = 0
        with anyio.fail_after(60):
            while not recording._core.service._resting:  # a wake from before may end its first rest at once
                await number.send(calls, FILL)
                calls += 1
                await anyio.lowlevel.checkpoint()
        wakes: list[int] = []
        ring, wake = recording._core.pages.ring, recording._core.service._waker.wake
        monkeypatch.setattr(recording._core.service._waker, "wake", lambda: (wakes.append(len(ring)), wake()))
        while len(ring) < 16:
            assert not wakes
            number(calls, FILL)
            calls += 1
        assert wakes == [16]
        with anyio.fail_after(60):
            while recording.statistics().pages_full:
                await anyio.lowlevel.checkpoint()
    check_closed(recording.statistics(), calls)
    assert recording.statistics().events_delivered == calls


@pytest.mark.anyio
async def test_reader_sleeps_until_a_sink_is_attached(monkeypatch: pytest.MonkeyPatch) -> None:
    sink = Collect()
    async with aiotrace.record(page_size=PAGE, pages=64, flush_interval=600) as recording:
        wake = recording._core.service._waker.wake
        monkeypatch.setattr(recording._core.service._waker, "wake", lambda: pytest.fail("woken for no task"))
        for n in range(40):
            number(n, FILL)
        monkeypatch.setattr(recording._core.service._waker, "wake", wake)
        assert recording.statistics().pages_full == 39
        await recording.attach(sink)
        with anyio.fail_after(60):
            while recording.statistics().pages_full:
                await anyio.lowlevel.checkpoint()
    check_closed(recording.statistics(), 40)
    assert len(sink.numbers) == 40


@pytest.mark.anyio
async def test_page_filled_while_the_reader_rests_is_delivered_by_itself() -> None:
    sink = Collect()
    async with aiotrace.record(sink, page_size=PAGE, pages=64, flush_interval=60) as recording:
        for n in range(3):
            number(n, FILL)
        for _ in range(100):
            if recording._core.service._resting:
                break
            await anyio.lowlevel.checkpoint()
        number(3, FILL)  # one more full page, at rest
        with anyio.fail_after(60):
            while set(sink.numbers) != {0, 1, 2}:
                await anyio.lowlevel.checkpoint()
        assert recording.statistics().pages_full == 0


@pytest.mark.anyio
async def test_events_of_a_quiet_writer_are_delivered_beside_a_busy_one() -> None:
    sink = Collect(prefixes=True)
    done = threading.Event()
    written = threading.Event()

    def quiet() -> None:
        number(1_000_000, "")
        written.set()
        done.wait()

    async with aiotrace.record(sink, page_size=PAGE, pages=16, flush_interval=0.01) as recording:
        thread = threading.Thread(target=quiet)
        thread.start()
        written.wait()
        with anyio.fail_after(60):
            n = 0
            while not sink.numbers[1_000_000]:
                await number.send(n, FILL)
                n += 1
        done.set()
        thread.join()
    check_closed(recording.statistics(), n + 1)


def test_writer_yields_once_per_page_taken_from_the_last_quarter(monkeypatch: pytest.MonkeyPatch) -> None:
    free: list[int] = []
    monkeypatch.setattr(_reader, "yield_gil", lambda: free.append(recording.statistics().pages_free))
    with aiotrace.recording(page_size=PAGE, pages=16) as recording:
        for n in range(40):
            number(n, FILL)
    assert free == [3, 2, 1, 0]
    assert recording.statistics().dropped["no_page"] == 40 - 16


# --- the service by itself ----------------------------------------------------------------------


class Setup:
    """A service over pages that the test fills; events carry their number."""

    def __init__(self, pages: int = 16, *, flush_interval: float = 3600, slots: int = 2) -> None:
        self.service = Service(make_info(), [], flush_interval)
        self.pages = PageCycle(Arena(PAGE, pages), overrun=False, listener=self.service)
        self.writers = Writers(self.pages, slots, lambda: 10**15, ())
        self.writer, _ = self.writers.lease()
        self.service.serve(self.pages, self.writers)
        self.number = 0

    def write(self, events: int) -> None:
        """Four fill a page."""
        for _ in range(events):
            assert self.writer.write(struct.pack("=Q", self.number).ljust(1000, b"x"))
            self.number += 1

    async def attach(self, sink: Any, *, quota: int = 4, **options: Any) -> Attachment:
        return await self.service.attach(SinkOptions(sink, name="sink", **options), quota, dict)

    @property
    def states(self) -> tuple[int, int, int, int]:
        return self.pages.arena.states()

    @contextlib.asynccontextmanager
    async def opened(self) -> AsyncIterator[Service]:
        await self.service.start()
        try:
            yield self.service
        finally:
            self.service.abort()
            self.pages.clear_ring()
            for attachment in self.service.attachments:
                if attachment.task is not None:
                    with anyio.fail_after(60):
                        await attachment.task.wait()


@pytest.fixture
def setup(monkeypatch: pytest.MonkeyPatch) -> Setup:
    """What waits for time alone does not wait here."""
    monkeypatch.setattr(_reader, "RETRY_PAUSE_FIRST", 0.0)
    monkeypatch.setattr(_reader, "RETRY_PAUSE_MAX", 0.0)
    return Setup()


async def until(condition: Callable[[], object]) -> None:
    with anyio.fail_after(60):
        while not condition():
            await anyio.lowlevel.checkpoint()


async def a_few_rounds() -> None:
    for _ in range(5):
        await anyio.lowlevel.checkpoint()


class Numbers:
    """A sink that keeps the numbers of events; `before` is awaited with each page that it looked at."""

    def __init__(self, before: Callable[[PageStream, Page], Awaitable[None]] | None = None) -> None:
        self.before = before
        self.numbers: list[int] = []
        self.looked = 0
        self.calls = 0

    async def __call__(self, stream: PageStream) -> None:
        self.calls += 1
        async for page in stream:
            self.looked += 1
            if self.before is not None:
                await self.before(stream, page)
            records = walk(page.data, page.timestamp)
            self.numbers += [struct.unpack_from("=Q", page.data, record.start)[0] for record in records]
            stream.acknowledge(page)


class Stuck(Numbers):
    """Holds the pages that it read until it is released."""

    def __init__(self) -> None:
        super().__init__(self.wait)
        self.go_on = anyio.Event()

    async def wait(self, stream: PageStream, page: Page) -> None:
        await self.go_on.wait()


class Failing(Numbers):
    """Raises after it has read a page, `times` times."""

    def __init__(self, failures: int) -> None:
        super().__init__(self.fail)
        self.failures = failures

    async def fail(self, stream: PageStream, page: Page) -> None:
        if self.failures:
            self.failures -= 1
            raise OSError(f"{self.failures} to go")


@pytest.mark.anyio
async def test_pages_are_offered_when_they_are_full_and_no_earlier(setup: Setup) -> None:
    sink = Numbers()
    async with setup.opened():
        await setup.attach(sink)
        setup.write(4)
        await a_few_rounds()
        assert sink.numbers == []
        setup.write(1)
        await until(lambda: sink.numbers)
        assert sink.numbers == [0, 1, 2, 3]
        assert setup.pages.delivered == 4


@pytest.mark.anyio
async def test_late_sink_gets_what_the_ring_kept(setup: Setup) -> None:
    sink = Numbers()
    async with setup.opened():
        setup.write(9)
        await a_few_rounds()
        assert setup.states == (13, 1, 2, 0)
        await setup.attach(sink)
        await until(lambda: sink.numbers == list(range(8)))


@pytest.mark.anyio
async def test_an_acknowledgement_makes_room_for_the_next_page(setup: Setup) -> None:
    stuck = Stuck()
    async with setup.opened():
        await setup.attach(stuck, quota=1)
        setup.write(13)
        await until(lambda: stuck.looked)
        assert setup.states == (12, 1, 2, 1), "it waits, so the ring keeps them"
        stuck.go_on.set()
        await until(lambda: len(stuck.numbers) == 12)


@pytest.mark.anyio
async def test_a_page_is_offered_in_the_acknowledgement_that_makes_room_for_it(setup: Setup) -> None:
    """No step of the loop later: in a busy program each costs the interpreter."""
    in_flight: list[int] = []

    async def sink(stream: PageStream) -> None:
        async for page in stream:
            stream.acknowledge(page)
            in_flight.append(setup.states[3])

    async with setup.opened():
        await setup.attach(sink, quota=1)
        setup.write(4 * 8 + 1)
        await until(lambda: len(in_flight) >= 4)
    assert in_flight[:4] == [1] * 4, "while a quarter of the pool is full"


@pytest.mark.anyio
async def test_always_busy_sink_lets_other_tasks_run(setup: Setup, monkeypatch: pytest.MonkeyPatch) -> None:
    """Else a program whose other threads write more than a sink can bear would stand still."""
    times = itertools.count(1000.0, page_stream.ALONE_MAX / 4)
    monkeypatch.setattr(page_stream, "monotonic", lambda: next(times))
    rounds = 0

    async def sink(stream: PageStream) -> None:
        nonlocal rounds
        while rounds < 1000 and not others.is_set():
            batch = await stream.next_batch(4)
            setup.write(4 * 4)  # as another thread does
            stream.acknowledge_all(batch)
            rounds += 1

    others = anyio.Event()
    async with setup.opened():
        await setup.attach(sink)
        setup.write(4 * 8 + 1)
        await until(lambda: rounds)
        others.set()
    assert rounds < 1000


@pytest.mark.anyio
async def test_failure_while_offering_a_page_is_not_blamed_on_the_sink(
    setup: Setup, monkeypatch: pytest.MonkeyPatch
) -> None:
    sink, swap, crash = Stuck(), setup.pages.swap, OSError("once")

    def broken(_: int) -> int:
        monkeypatch.setattr(setup.pages, "swap", swap)
        raise crash

    async with setup.opened() as service:
        attachment = await setup.attach(sink, quota=1)
        setup.write(4 * 3 + 1)
        await until(lambda: sink.looked and not service._resting)  # it waits for nothing but the acknowledgement
        monkeypatch.setattr(setup.pages, "swap", broken)
        with pytest.warns(RuntimeWarning, match=r"the reader crashed and is started again: OSError\('once'\)"):
            sink.go_on.set()
            await until(lambda: len(sink.numbers) == 4 * 3)
        assert service.failure is crash
        assert (attachment.failures, sink.calls) == (0, 1)


@pytest.mark.anyio
async def test_page_without_room_in_any_sink_wakes_no_sink(setup: Setup, monkeypatch: pytest.MonkeyPatch) -> None:
    sink = Stuck()
    async with setup.opened() as service:
        await setup.attach(sink, quota=1)
        setup.write(5)
        await until(lambda: sink.looked)
        with monkeypatch.context() as patch:
            patch.setattr(service._waker, "wake", None)
            setup.write(4 * 10)
        sink.go_on.set()
        await until(lambda: len(sink.numbers) >= 4 * 8)


@pytest.mark.anyio
async def test_prefixes_arrive_each_flush_interval_and_only_writers_seal_pages() -> None:
    setup, sink = Setup(flush_interval=0.001), Numbers()

    async def with_prefixes(stream: PageStream) -> None:
        stream.accept_prefixes()
        await sink(stream)

    async with setup.opened():
        await setup.attach(with_prefixes)
        other, _ = setup.writers.lease()
        assert other is not setup.writer
        for _ in range(3):
            setup.write(1)
            await until(lambda: sink.numbers == list(range(setup.number)))
        other.write(struct.pack("=Q", 99).ljust(1000, b"x"))
        await until(lambda: sink.numbers == [0, 1, 2, 99])
        assert setup.states == (14, 2, 0, 0)


@pytest.mark.anyio
async def test_the_code_of_a_sink_knows_that_it_is(setup: Setup) -> None:
    """There `send` does not wait: it would wait for itself."""
    seen: list[bool] = []

    async def look(stream: PageStream) -> None:
        seen.append(inside_sink.get())
        async for page in stream:
            stream.acknowledge(page)

    async with setup.opened():
        await setup.attach(look)
    assert seen == [True]
    assert not inside_sink.get()


@pytest.mark.anyio
async def test_crashed_reader_is_reported_and_restarted(setup: Setup, monkeypatch: pytest.MonkeyPatch) -> None:
    sink, swap, crash = Numbers(), setup.pages.swap, OSError("once")

    def fail(most: int) -> int:
        monkeypatch.setattr(setup.pages, "swap", swap)
        raise crash

    async with setup.opened() as service:
        await setup.attach(sink)
        with pytest.warns(RuntimeWarning, match=r"the reader crashed and is started again: OSError\('once'\)"):
            monkeypatch.setattr(setup.pages, "swap", fail)
            setup.write(5)
            await until(lambda: sink.numbers == [0, 1, 2, 3])
        assert service.failure is crash


@pytest.mark.anyio
async def test_returned_page_wakes_one_waiter_of_each_writer(setup: Setup) -> None:
    woken: list[str] = []
    other, _ = setup.writers.lease()
    async with setup.opened():
        await setup.attach(Numbers())
        setup.writer.waiters.extend([lambda: woken.append("a"), lambda: woken.append("b")])
        other.waiters.append(lambda: woken.append("c"))
        setup.write(5)
        await until(lambda: woken)
        assert woken == ["a", "c"]


# --- sinks that fail ----------------------------------------------------------------------------


@pytest.mark.anyio
async def test_a_sink_that_raises_is_called_again_and_gets_the_same_pages(setup: Setup) -> None:
    sink = Failing(3)
    async with setup.opened():
        attachment = await setup.attach(sink)
        with pytest.warns(RuntimeWarning, match=r"sink sink failed and is tried again: OSError\('2 to go'\)") as told:
            setup.write(9)
            await until(lambda: len(sink.numbers) == 8)
        assert len(told) == 1, "warned about once, counted each time"
        assert (sink.numbers, sink.calls, attachment.failures) == (list(range(8)), 4, 3)
        assert str(attachment.last_error) == "0 to go"
        assert attachment.state == "running"


@pytest.mark.anyio
async def test_a_warning_that_would_raise_is_not_raised_into_a_sinks_task(setup: Setup) -> None:
    """pytest makes warnings errors, and nothing catches this one."""
    sink = Failing(1)
    async with setup.opened():
        await setup.attach(sink)
        setup.write(5)
        await until(lambda: sink.numbers == [0, 1, 2, 3])


@pytest.mark.anyio
async def test_failed_sink_with_on_error_detach_is_detached_with_its_pages(setup: Setup) -> None:
    sink = Failing(1)
    async with setup.opened():
        attachment = await setup.attach(sink, on_error="detach")
        with pytest.warns(RuntimeWarning, match="failed and is detached"):
            setup.write(5)
            await until(lambda: attachment.detached)
        assert (attachment.state, attachment.failures, sink.calls) == ("detached", 1, 1)
        assert setup.pages.abandoned == attachment.delivery.abandoned == 4
        assert setup.states == (15, 1, 0, 0)


@pytest.mark.anyio
async def test_retry_pause_doubles_to_its_limit_and_an_acknowledgement_resets_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    slept: list[float] = []

    async def sleep(seconds: float) -> None:
        slept.append(seconds)
        await anyio.lowlevel.checkpoint()

    async def before(stream: PageStream, page: Page) -> None:
        if sink.calls == 7:
            stream.acknowledge(page)
        raise OSError

    monkeypatch.setattr(anyio, "sleep", sleep)
    setup, sink = Setup(), Numbers(before)
    async with setup.opened():
        await setup.attach(sink)
        with pytest.warns(RuntimeWarning):
            setup.write(9)
            await until(lambda: sink.calls == 9)
    assert slept[:8] == [0.05, 0.1, 0.2, 0.4, 0.5, 0.5, 0.05, 0.1]


@pytest.mark.anyio
async def test_a_sink_that_raises_before_its_first_request_was_never_attached(setup: Setup) -> None:
    async def sink(stream: PageStream) -> None:
        raise OSError("no such host")

    async with setup.opened() as service:
        with pytest.raises(OSError, match="no such host"):
            await setup.attach(sink)
        assert service.attachments == []
        assert setup.pages.deliveries == []


@pytest.mark.anyio
async def test_attaching_ends_with_the_first_request(setup: Setup) -> None:
    may_ask, attached = anyio.Event(), list[Attachment]()

    async def sink(stream: PageStream) -> None:
        await may_ask.wait()
        async for page in stream:
            stream.acknowledge(page)

    async def attach() -> None:
        attached.append(await setup.attach(sink))

    async with setup.opened() as service, anyio.create_task_group() as group:
        group.start_soon(attach)
        await a_few_rounds()
        assert not attached
        assert service.attachments[0].state == "starting"
        may_ask.set()
        await until(lambda: attached)
        assert attached[0].state == "running"


@pytest.mark.anyio
async def test_a_cancelled_attach_lets_the_sink_go(setup: Setup) -> None:
    async def sink(stream: PageStream) -> None:
        await anyio.sleep_forever()

    async with setup.opened() as service:
        async with anyio.create_task_group() as group:
            group.start_soon(setup.attach, sink)
            await a_few_rounds()
            group.cancel_scope.cancel()
        (attachment,) = service.attachments
        assert (attachment.detached, attachment.state) == (True, "detached")
        assert setup.pages.deliveries == []


# --- the end ------------------------------------------------------------------------------------


@pytest.mark.anyio
async def test_a_drain_delivers_what_is_in_the_ring_and_the_sinks_finish(setup: Setup) -> None:
    first, second = Numbers(), Numbers()
    async with setup.opened() as service:
        attachments = [await setup.attach(sink) for sink in (first, second)]
        setup.write(9)
        setup.writers.close()
        await service.drain(20)
        assert first.numbers == second.numbers == list(range(9))
        assert [each.state for each in attachments] == ["finished", "finished"]
        assert all(each.task is not None and each.task.done for each in attachments)
        assert setup.states == (16, 0, 0, 0)


@pytest.mark.anyio
async def test_drain_abandons_a_stuck_sink_and_serves_the_others(setup: Setup, monkeypatch: pytest.MonkeyPatch) -> None:
    timeout = Timeout(monkeypatch)
    stuck, other = Stuck(), Numbers()
    async with setup.opened() as service:
        slow = await setup.attach(stuck, quota=1)
        quick = await setup.attach(other)
        setup.write(9)
        setup.writers.close()
        with pytest.warns(RuntimeWarning, match=r"sink sink did not finish within 61.5 s; 4 events .* are abandoned"):
            async with anyio.create_task_group() as group:
                group.start_soon(service.drain, Timeout.SECONDS)
                await until(lambda: len(other.numbers) == 4 and stuck.looked and timeout.has_begun())
                timeout.end()
        assert other.numbers == list(range(9))
        assert (slow.state, quick.state) == ("detached", "finished")
        assert slow.delivery.abandoned == 4
        assert setup.pages.abandoned == 0, "the other one has them"
        assert setup.states == (16, 0, 0, 0)


@pytest.mark.anyio
async def test_detaching_lets_a_sink_finish_what_it_holds_and_nothing_more(setup: Setup) -> None:
    stuck = Stuck()
    async with setup.opened() as service, anyio.create_task_group() as group:
        attachment = await setup.attach(stuck, quota=2)
        setup.write(13)
        await until(lambda: stuck.looked)
        group.start_soon(service.detach, attachment, 20)
        await a_few_rounds()
        stuck.go_on.set()
        await until(lambda: attachment.detached)
        assert attachment.state == "finished"
        assert stuck.numbers == list(range(8))
        assert setup.states[2] == 1, "the third page stays in the ring"
        assert attachment.delivery.abandoned == 0


@pytest.mark.anyio
async def test_full_sink_being_detached_no_longer_delays_the_others(setup: Setup) -> None:
    stuck, other = Stuck(), Numbers()
    async with setup.opened() as service:
        slow = await setup.attach(stuck, quota=1)
        await setup.attach(other, quota=8)
        setup.write(13)
        await until(lambda: len(other.numbers) == 4)
        assert setup.states[2] == 2
        async with anyio.create_task_group() as group:
            group.start_soon(service.detach, slow, 20)
            await until(lambda: len(other.numbers) == 12)
            stuck.go_on.set()
        assert stuck.numbers == [0, 1, 2, 3]


@pytest.mark.anyio
async def test_a_sink_that_returns_before_the_end_is_detached(setup: Setup) -> None:
    async def once(stream: PageStream) -> None:
        await stream.next_batch(1)

    async with setup.opened():
        attachment = await setup.attach(once)
        setup.write(5)
        await until(lambda: attachment.detached)
        assert (attachment.state, attachment.failures) == ("detached", 0)
        assert attachment.delivery.abandoned == 4


@pytest.mark.anyio
async def test_ledger_gives_each_sink_its_own_losses() -> None:
    setup, stuck = Setup(pages=8), Stuck()
    async with setup.opened() as service:
        attachment = await setup.attach(stuck, quota=1, on_full="skip")
        quick = await setup.attach(Numbers(), quota=4)
        setup.write(13)
        await until(lambda: setup.pages.delivered == 12)
        setup.writer.refuse("wrong_type")
        (ledger,) = service.ledger(attachment.delivery).writers
        told = ledger.writer, ledger.written, ledger.dropped, ledger.overrun, ledger.missed, ledger.lost_after
        assert told == (0, 13, 1, 0, 8, 10)
        (ledger,) = service.ledger(quick.delivery).writers
        assert (ledger.missed, ledger.lost_after) == (0, 2)


@pytest.mark.anyio
async def test_abort_ends_everything_and_returns_whether_all_have_ended(setup: Setup) -> None:
    stuck = Stuck()
    async with setup.opened() as service:
        attachment = await setup.attach(stuck)
        setup.write(9)
        await until(lambda: stuck.looked)
        assert service.abort() is False, "its task has not heard of it yet"
        assert (attachment.state, attachment.detached) == ("detached", True)
        setup.pages.clear_ring()
        assert setup.states == (15, 1, 0, 0)
        await until(lambda: attachment.task is not None and attachment.task.done)
        assert service.abort() is True
        setup.write(8)  # no task is woken, and nothing fails
        await a_few_rounds()
