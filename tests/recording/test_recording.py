"""Recordings from open to close, on every backend: what the sinks get, what the ledger says, and what is refused."""

# ruff: noqa: PT012, PT031
# (what warns or raises there is a whole recording)

from __future__ import annotations

import asyncio
import gc
import signal
import threading
import warnings
import weakref
from collections.abc import Callable
from typing import Any

import anyio
import pytest

import aiotrace
from aiotrace import ConfigurationError, record
from aiotrace._threads.loop import Loop
from aiotrace.abc import PageStream
from aiotrace.worker import worker_thread
from support.fakes import Timeout
from support.laws import PAGE, Collect, check_closed, check_laws, check_sink_has, number

pytestmark = [pytest.mark.anyio, pytest.mark.pure_too]
ONLY_ASYNCIO = pytest.mark.parametrize("anyio_backend", ["asyncio"])
THREAD = pytest.mark.parametrize("thread", [False, True], ids=["task", "thread"])


async def nothing(stream: PageStream) -> None:
    async for page in stream:
        stream.acknowledge(page)


# --- what arrives -------------------------------------------------------------------------------


@THREAD
async def test_every_event_sent_arrives_once_at_every_sink_that_waits(thread: bool) -> None:
    first, second = Collect(), Collect()
    async with record(first, second, page_size=PAGE, pages=8, thread=thread) as recording:
        for n in range(2000):
            await number.send(n, "x" * (n % 40))
    statistics = recording.statistics()
    check_closed(statistics, 2000)
    assert statistics.events_delivered == 2000
    for sink in (first, second):
        check_sink_has(sink, statistics, range(2000))
    assert all(sink.state == "finished" for sink in statistics.sinks)


@THREAD
async def test_events_called_without_room_are_dropped_and_reported(thread: bool) -> None:
    sink = Collect()
    async with record(sink, page_size=PAGE, pages=6, thread=thread) as recording:
        for n in range(3000):  # no await: the reader in the loop has no chance
            number(n, "x" * (n % 40))
        await number.send(3000, "")
        check_laws(recording.statistics(), 3001)
        for n in range(3001, 3101):
            await number.send(n, "")
    statistics = recording.statistics()
    check_closed(statistics, 3101)
    check_sink_has(sink, statistics)
    assert statistics.dropped["no_page"] == statistics.events_dropped
    if not thread:
        assert statistics.events_dropped > 1000
        assert sink.lost > 1000


async def test_losses_after_the_last_page_are_in_the_ledger() -> None:
    sink = Collect()
    async with record(sink, page_size=PAGE, pages=4) as recording:
        for n in range(2000):
            number(n, "")
    statistics = recording.statistics()
    check_closed(statistics, 2000)
    check_sink_has(sink, statistics)
    assert sink.ledger is not None
    assert sink.ledger.writers[0].lost_after == statistics.events_dropped > 0
    assert sink.ledger.lost == statistics.events_dropped


async def test_drop_oldest_keeps_the_newest_events() -> None:
    sink = Collect()
    async with record(sink, page_size=PAGE, pages=6, overrun="drop_oldest") as recording:
        for n in range(3000):
            number(n, "")
    statistics = recording.statistics()
    check_closed(statistics, 3000)
    check_sink_has(sink, statistics)
    assert statistics.events_dropped == 0
    assert statistics.events_overrun > 1000
    assert max(sink.numbers) == 2999
    assert sorted(sink.numbers) == list(range(min(sink.numbers), 3000))


async def test_ring_keeps_pages_without_a_sink_for_a_late_one() -> None:
    sink = Collect()
    async with record(page_size=PAGE, pages=8, overrun="drop_oldest") as recording:
        for n in range(3000):
            number(n, "")
        await anyio.lowlevel.checkpoint()
        check_laws(recording.statistics(), 3000)
        overrun = recording.statistics().events_overrun
        await recording.attach(sink)
    statistics = recording.statistics()
    check_closed(statistics, 3000)
    assert sorted(sink.numbers) == list(range(overrun, 3000))
    assert sink.lost == 0, "what was overrun before it came is not its loss"


async def test_a_quiet_recording_ends() -> None:
    sink = Collect()
    async with record(sink) as recording:
        pass
    check_closed(recording.statistics(), 0)
    assert sink.ledger is not None


async def test_two_recordings_get_the_same_events() -> None:
    first, second = Collect(), Collect()
    async with record(first, page_size=PAGE, pages=6) as one:
        await number.send(0, "")
        async with record(second, page_size=2 * PAGE, pages=6) as two:
            for n in range(1, 1000):
                await number.send(n, "x" * (n % 50))
        await number.send(1000, "")
    check_closed(one.statistics(), 1001)
    check_closed(two.statistics(), 999)
    check_sink_has(first, one.statistics(), range(1001))
    check_sink_has(second, two.statistics(), range(1, 1000))


async def test_a_prefix_sink_gets_what_a_page_holds_before_it_is_full() -> None:
    seen = anyio.Event()
    sink = Collect(before=lambda _: seen.set(), prefixes=True)
    whole = Collect()
    async with record(sink, whole, page_size=PAGE, flush_interval=0.01) as recording:
        number(1, "")
        with anyio.fail_after(60):
            await seen.wait()
        assert sink.pages[0][2] == 0
        assert not whole.pages
        seen = anyio.Event()
        number(2, "")
        with anyio.fail_after(60):
            while len(sink.pages) < 2:  # noqa: ASYNC110  # the sink's own event is the one above
                await anyio.sleep(0.005)
        check_laws(recording.statistics(), 2)
    check_closed(recording.statistics(), 2)
    check_sink_has(sink, recording.statistics(), [1, 2])
    check_sink_has(whole, recording.statistics(), [1, 2])
    assert len(sink.pages) == 2
    assert len({page[:2] for page in sink.pages}) == 1


async def test_prefixes_requested_late_also_arrive() -> None:
    started, ask, got = anyio.Event(), anyio.Event(), anyio.Event()

    async def late(stream: PageStream) -> None:
        page = await stream.__anext__()
        stream.acknowledge(page)
        started.set()
        await ask.wait()
        stream.accept_prefixes()
        page = await stream.__anext__()
        got.set()
        stream.acknowledge(page)
        async for page in stream:
            stream.acknowledge(page)

    async with record(late, page_size=PAGE, flush_interval=0.01):
        for n in range(200):
            number(n, "")
        with anyio.fail_after(60):
            await started.wait()
        for _ in range(5):
            await anyio.lowlevel.checkpoint()
        ask.set()
        with anyio.fail_after(60):
            await got.wait()


# --- attach and detach --------------------------------------------------------------------------


@THREAD
async def test_sinks_come_and_go_while_events_are_written(thread: bool) -> None:
    stays, guest = Collect(), Collect()
    async with record(stays, page_size=PAGE, pages=32, thread=thread) as recording:
        for n in range(300):
            await number.send(n, "")
        await recording.attach(guest)
        for n in range(300, 600):
            await number.send(n, "")
        await recording.detach(guest)
        for n in range(600, 900):
            await number.send(n, "")
        check_laws(recording.statistics(), 900)
    statistics = recording.statistics()
    check_closed(statistics, 900)
    check_sink_has(stays, statistics, range(900))
    assert set(guest.numbers.values()) == {1}
    assert guest.lost == 0
    account = statistics.sinks[1]
    assert account.state == "finished"
    assert account.events_delivered == account.events_offered == len(guest.numbers)


async def test_a_method_can_be_detached_by_the_same_name() -> None:
    class Mine:
        async def run(self, stream: PageStream) -> None:
            await nothing(stream)

    mine = Mine()
    async with record(mine.run) as recording:
        await recording.detach(mine.run)
        assert recording.statistics().sinks[0].state == "finished"


async def test_only_the_named_one_of_two_equal_sinks_is_detached() -> None:
    first, second = Collect(), Collect()
    assert first == second
    async with record(first, second) as recording:
        await recording.detach(second)
        assert [sink.state for sink in recording.statistics().sinks] == ["running", "finished"]


async def test_a_sink_is_detached_by_what_it_was_attached_by() -> None:
    named = aiotrace.sink(nothing, quota=2)
    async with record(page_size=PAGE, pages=16) as recording:
        for what in (nothing, named, "null:"):
            await recording.attach(what)
            await recording.detach(what)
            with pytest.raises(ConfigurationError, match="is not attached"):
                await recording.detach(what)
    check_closed(recording.statistics(), 0)


async def test_detaching_a_stranger_is_an_error() -> None:
    async with record(nothing) as recording:
        with pytest.raises(ConfigurationError, match="is not attached"):
            await recording.detach(Collect())


async def test_attaching_to_a_closed_recording_is_an_error() -> None:
    recording = record(nothing)
    with pytest.raises(ConfigurationError, match="not open"):
        await recording.attach(nothing)
    async with recording:
        pass
    with pytest.raises(ConfigurationError, match="not open"):
        await recording.attach(nothing)


@THREAD
async def test_sink_error_before_its_first_request_is_raised_on_entering(thread: bool) -> None:
    async def refuses(stream: PageStream) -> None:
        raise FileExistsError("trace.dat is there already")

    recording = record(nothing, refuses, thread=thread)
    with pytest.raises(FileExistsError, match="there already"):
        async with recording:
            raise AssertionError("it was entered")
    check_closed(recording.statistics(), 0)
    number(1, "")
    assert recording.statistics().events_written == 0


@THREAD
async def test_first_error_of_an_attached_sink_is_raised_and_recording_continues(thread: bool) -> None:
    async def refuses(stream: PageStream) -> None:
        raise FileExistsError("there already")

    sink = Collect()
    async with record(sink, page_size=PAGE, thread=thread) as recording:
        with pytest.raises(FileExistsError):
            await recording.attach(refuses)
        await number.send(1, "")
        assert len(recording.statistics().sinks) == 1
    check_sink_has(sink, recording.statistics(), [1])


async def test_a_sink_that_fails_at_its_second_step_is_attached_all_the_same() -> None:
    """Its failure is not that of `attach`, even if it comes before `attach` continues."""

    async def hasty(stream: PageStream) -> None:
        with anyio.move_on_after(0):
            await stream.__anext__()
        if not fails:
            return await nothing(stream)
        raise fails.pop()

    fails = [RuntimeError("too hasty")]
    async with record(page_size=PAGE) as recording:
        with warnings.catch_warnings(record=True) as warned:
            warnings.simplefilter("always")
            await recording.attach(hasty)
            await number.send(1, "")
    check_closed(recording.statistics(), 1)
    assert [str(each.message) for each in warned] or not fails
    assert recording.statistics().sinks[0].state == "finished"
    assert recording.statistics().events_delivered == 1


# --- failures -----------------------------------------------------------------------------------


async def test_a_sink_that_fails_gets_its_pages_again() -> None:
    good, flaky = Collect(), Collect()
    failures = iter(range(3))

    async def fails(stream: PageStream) -> None:
        flaky.before = lambda page: _fail(failures) if page.sequence % 2 else None
        await flaky(stream)

    with pytest.warns(RuntimeWarning, match="fails failed and is tried again"):
        async with record(good, fails, page_size=PAGE, pages=16) as recording:
            for n in range(1000):
                await number.send(n, "")
    statistics = recording.statistics()
    check_closed(statistics, 1000)
    check_sink_has(good, statistics, range(1000))
    check_sink_has(flaky, statistics, range(1000))
    assert statistics.sinks[1].failures == 3
    assert isinstance(statistics.sinks[1].last_error, OSError)


def _fail(failures: Any) -> None:
    if next(failures, None) is not None:
        raise OSError("disk full")


async def test_sink_with_on_error_detach_is_detached_when_it_fails() -> None:
    good = Collect()

    async def fails(stream: PageStream) -> None:
        async for _ in stream:
            raise OSError("disk full")

    with pytest.warns(RuntimeWarning, match="failed and is detached"):
        async with record(good, aiotrace.sink(fails, on_error="detach"), page_size=PAGE, pages=8) as recording:
            for n in range(1000):
                await number.send(n, "")
    statistics = recording.statistics()
    check_closed(statistics, 1000)
    check_sink_has(good, statistics, range(1000))
    assert statistics.sinks[1].state == "detached"
    assert statistics.sinks[1].events_abandoned > 0
    assert statistics.events_abandoned == 0, "the other sink has them"


class _PanicError(BaseException):
    """As libraries in other languages raise it."""


@THREAD
@pytest.mark.parametrize("error", [_PanicError(), SystemExit(3), BaseExceptionGroup("two", [_PanicError(), OSError()])])
async def test_sink_that_raises_a_base_exception_does_no_harm(error: BaseException, thread: bool) -> None:
    async def panics(stream: PageStream) -> None:
        async for _ in stream:
            raise error

    good = Collect()
    with pytest.warns(RuntimeWarning, match="failed and is detached"):
        async with record(
            good, aiotrace.sink(panics, on_error="detach"), page_size=PAGE, pages=8, thread=thread
        ) as recording:
            for n in range(1000):
                await number.send(n, "x" * 20)
    statistics = recording.statistics()
    check_closed(statistics, 1000)
    check_sink_has(good, statistics, range(1000))
    assert statistics.sinks[1].state == "detached"
    assert statistics.sinks[1].last_error is error


async def test_a_failure_warning_does_not_raise_when_warnings_are_errors() -> None:
    failures = iter(range(1))

    async def fails(stream: PageStream) -> None:
        async for page in stream:
            _fail(failures)
            stream.acknowledge(page)

    async with record(fails, page_size=PAGE) as recording:  # filterwarnings = error
        await number.send(1, "")
    assert recording.statistics().events_delivered == 1
    assert recording.statistics().sinks[0].failures == 1


async def test_sink_that_returns_early_is_detached_and_its_pages_are_abandoned() -> None:
    async def one(stream: PageStream) -> None:
        await stream.__anext__()

    async with record(one, page_size=PAGE, pages=8) as recording:
        for n in range(300):
            await number.send(n, "")
    statistics = recording.statistics()
    check_closed(statistics, 300)
    assert statistics.sinks[0].state == "detached"
    assert statistics.events_delivered == 0
    assert statistics.events_abandoned == statistics.events_written > 0


async def until(condition: Callable[[], object]) -> None:
    with anyio.fail_after(60):
        while not condition():
            await anyio.lowlevel.checkpoint()


@THREAD
async def test_pages_of_a_stuck_sink_are_abandoned_after_the_drain_timeout(
    thread: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    timeout, good = Timeout(monkeypatch), Collect()

    async def stuck(stream: PageStream) -> None:
        loops.append(Loop())
        await stream.__anext__()
        await anyio.sleep_forever()

    async def end_when_the_good_one_has_finished() -> None:
        await until(lambda: loops and timeout.has_begun() and good.ledger is not None)
        loops[0].run_soon(timeout.end)

    loops: list[Loop] = []
    recording = record(good, stuck, page_size=PAGE, pages=8, drain_timeout=Timeout.SECONDS, thread=thread)
    with pytest.warns(RuntimeWarning, match="stuck did not finish within"):
        async with anyio.create_task_group() as group:
            group.start_soon(end_when_the_good_one_has_finished)
            async with recording:
                number(1, "")
    statistics = recording.statistics()
    check_closed(statistics, 1)
    check_sink_has(good, statistics, [1])
    assert statistics.sinks[1].events_abandoned == 1


async def test_error_of_a_sink_that_was_given_up_is_not_its_failure() -> None:
    async def stuck(stream: PageStream) -> None:
        page = await stream.__anext__()
        try:
            await anyio.sleep_forever()
        finally:
            len(page.data)  # released with the sink: it raises ValueError

    with pytest.warns(RuntimeWarning) as warned:
        async with record(stuck, page_size=PAGE, pages=8, drain_timeout=0.05) as recording:
            number(1, "")
    assert [str(warning.message).partition(";")[0] for warning in warned] == [
        "aiotrace: sink stuck did not finish within 0.05 s"
    ]
    assert recording.statistics().sinks[0].failures == 0


async def test_other_sinks_get_the_ring_when_a_stuck_sink_is_abandoned(monkeypatch: pytest.MonkeyPatch) -> None:
    timeout, good = Timeout(monkeypatch), Collect()

    async def stuck(stream: PageStream) -> None:
        await stream.__anext__()
        await anyio.sleep_forever()

    async def end_when_the_stuck_one_holds_all_others_up() -> None:
        await until(timeout.has_begun)
        await until(lambda: len(good.pages) == recording.statistics().sinks[1].quota)
        assert recording.statistics().pages_full > 0
        timeout.end()

    recording = record(good, stuck, page_size=PAGE, pages=16, drain_timeout=Timeout.SECONDS)
    with pytest.warns(RuntimeWarning, match="stuck did not finish"):
        async with anyio.create_task_group() as group:
            group.start_soon(end_when_the_stuck_one_holds_all_others_up)
            async with recording:
                for n in range(800):
                    number(n, "")
    check_closed(recording.statistics(), 800)
    check_sink_has(good, recording.statistics())
    assert len(good.numbers) == recording.statistics().events_written


async def test_an_error_in_the_body_stays_what_it_is() -> None:
    sink = Collect()
    with pytest.raises(KeyError):
        async with record(sink, page_size=PAGE) as recording:
            await number.send(1, "")
            raise KeyError("mine")
    check_closed(recording.statistics(), 1)
    check_sink_has(sink, recording.statistics(), [1])


async def test_a_recording_is_entered_once() -> None:
    recording = record(nothing)
    async with recording:
        with pytest.raises(RuntimeError, match="entered only once"):
            await recording.__aenter__()
    with pytest.raises(RuntimeError, match="entered only once"):
        await recording.__aenter__()


# --- the account --------------------------------------------------------------------------------


async def test_invariants_hold_at_every_await() -> None:
    skip, wait = Collect(), Collect()
    async with record(aiotrace.sink(skip, on_full="skip", quota=2), wait, page_size=PAGE, pages=8) as recording:
        for n in range(1500):
            if n % 3:
                number(n, "x" * (n % 90))
            else:
                await number.send(n, "x" * (n % 90))
            check_laws(recording.statistics(), n + 1)
    check_closed(recording.statistics(), 1500)
    check_sink_has(skip, recording.statistics())
    check_sink_has(wait, recording.statistics())


@ONLY_ASYNCIO
async def test_invariants_hold_at_any_moment_seen_from_another_thread() -> None:
    sink = Collect()
    stop = threading.Event()
    failed: list[BaseException] = []

    def watch() -> None:
        try:
            while not stop.is_set():
                check_laws(recording.statistics())
        except BaseException as error:
            failed.append(error)

    async with record(sink, page_size=PAGE, pages=16, thread=True) as recording:
        watchers = [threading.Thread(target=watch) for _ in range(2)]
        for watcher in watchers:
            watcher.start()
        for n in range(6000):
            await number.send(n, "x" * (n % 40))
        stop.set()
        for watcher in watchers:
            watcher.join()
    assert not failed, failed[0]
    check_sink_has(sink, recording.statistics(), range(6000))


@ONLY_ASYNCIO
async def test_returned_page_is_taken_again_so_few_are_ever_touched() -> None:
    async with record(nothing, page_size=PAGE, pages=64) as recording:
        for n in range(20000):
            number(n, "")
            if n % 50 == 0:
                await anyio.lowlevel.checkpoint()
    statistics = recording.statistics()
    assert statistics.events_dropped == 0
    assert statistics.pages_recycled > 100
    assert statistics.pages_allocated <= 64 // 4 + 4, "the reader wakes when a quarter of the pool is full"


@ONLY_ASYNCIO
async def test_statistics_read_as_text() -> None:
    async with record(nothing, page_size=PAGE, pages=4) as recording:
        for n in range(1000):
            number(n, "")
        await number.send(1000, "")
    text = str(recording.statistics())
    assert "events: " in text and "no_page" in text and "sink:   nothing finished" in text and "waits:" in text


# --- configuration ------------------------------------------------------------------------------


@ONLY_ASYNCIO
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"page_size": 5000}, "page_size=5000: must be a power of two"),
        ({"page_size": 2048}, "page_size=2048"),
        ({"pages": 0}, "pages=0"),
        ({"pages": 3}, r"1 for a writer to fill \+ 1 full in the ring \+ 2 for nothing = 4 pages are needed"),
        ({"overrun": "newest"}, "overrun='newest': must be 'drop_newest' or 'drop_oldest'"),
        ({"flush_interval": 0}, "flush_interval=0"),
        ({"flush_interval": "1"}, "flush_interval='1'"),
        ({"drain_timeout": None}, "drain_timeout=None"),
        ({"drain_timeout": -1}, "drain_timeout=-1"),
        ({"clock": "tsc2"}, "clock='tsc2' is unknown; known: "),
    ],
)
async def test_a_value_that_cannot_work_is_named(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        record(nothing, **arguments)


@ONLY_ASYNCIO
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"quota": 0}, "quota=0"),
        ({"on_full": "block"}, "on_full='block': one of 'wait', 'skip'"),
        ({"on_error": "raise"}, "on_error='raise': one of 'retry', 'detach'"),
    ],
)
async def test_a_sink_option_that_cannot_work_is_named(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        aiotrace.sink(nothing, **arguments)


@ONLY_ASYNCIO
async def test_object_that_is_not_a_sink_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="is no sink"):
        record(3)  # type: ignore[arg-type]
    with pytest.raises(ConfigurationError, match="no sink is known for 'gopher'"):
        record("gopher://there")
    with pytest.raises(ConfigurationError, match="options already"):
        aiotrace.sink(aiotrace.sink(nothing))


@ONLY_ASYNCIO
async def test_a_recording_that_is_never_entered_leaves_nothing_behind() -> None:
    record(nothing, thread=True)
    aiotrace.recording(nothing)
    # filterwarnings = error: an unclosed loop would fail this test


# --- synchronous code ---------------------------------------------------------------------------


@ONLY_ASYNCIO
async def test_synchronous_code_records_with_a_reader_in_a_thread() -> None:
    sink, guest = Collect(), Collect()
    with aiotrace.recording(sink, page_size=PAGE, pages=128) as recording:
        for n in range(1000):
            number(n, "")
        recording.attach(guest)
        for n in range(1000, 2000):
            number(n, "")
        recording.detach(guest)
        check_laws(recording.statistics(), 2000)
    check_closed(recording.statistics(), 2000)
    check_sink_has(sink, recording.statistics())
    assert "aiotrace" not in [thread.name for thread in threading.enumerate()]
    recording.close()  # a second call does nothing


@ONLY_ASYNCIO
async def test_a_synchronous_recording_raises_what_its_sink_raised_first() -> None:
    async def refuses(stream: PageStream) -> None:
        raise FileExistsError("there already")

    with pytest.raises(FileExistsError), aiotrace.recording(refuses):
        raise AssertionError("it was entered")
    assert "aiotrace" not in [thread.name for thread in threading.enumerate()]


def test_a_sink_that_blocks_its_thread_cannot_hold_up_the_close(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("aiotrace._recording.core.CANCEL_GRACE", 0.1)
    release = threading.Event()
    entered = threading.Event()

    async def blocking(stream: PageStream) -> None:
        async for page in stream:
            entered.set()
            release.wait()
            stream.acknowledge(page)

    try:
        with aiotrace.recording(blocking, page_size=PAGE, pages=8, drain_timeout=0.05) as recording:
            for n in range(300):
                number(n, "")
            assert entered.wait(60)
        statistics = recording.statistics()
        check_closed(statistics)
        assert statistics.events_abandoned > 0
    finally:
        release.set()


@ONLY_ASYNCIO
async def test_sink_that_keeps_raising_a_cancellation_does_not_spin_the_loop() -> None:
    calls = 0

    async def confused(stream: PageStream) -> None:
        nonlocal calls
        calls += 1
        async for _ in stream:
            raise asyncio.CancelledError

    async with aiotrace.record(confused, page_size=PAGE, pages=8, drain_timeout=0.05) as recording:
        for n in range(300):
            number(n, "")
        for _ in range(1000):
            await asyncio.sleep(0)
        assert 1 < calls <= 4
    check_closed(recording.statistics())


def test_a_sinks_error_keeps_nothing_of_its_frames_alive() -> None:
    class Thing:
        pass

    gone: list[weakref.ref[Thing]] = []

    async def failing(stream: PageStream) -> None:
        thing = Thing()
        gone.append(weakref.ref(thing))
        async for _ in stream:
            raise OSError(5, "mine")

    with aiotrace.recording(aiotrace.sink(failing, on_error="detach"), page_size=PAGE, pages=8) as recording:
        for n in range(300):
            number(n, "")
    (statistics,) = recording.statistics().sinks
    assert isinstance(statistics.last_error, OSError)
    gc.collect()
    assert [ref() for ref in gone] == [None]


async def test_error_already_seen_by_the_program_does_not_end_it() -> None:
    """Its traceback has the program's frames too: CPython up to 3.12 closes a coroutine whose frame is cleared."""
    shared = OSError("the connection is gone")

    async def fail() -> None:
        raise shared

    async def failing(stream: PageStream) -> None:
        async for _ in stream:
            await fail()

    async def look() -> None:
        try:
            await fail()
        except OSError:
            pass
        async with record(aiotrace.sink(failing, on_error="detach"), page_size=PAGE, pages=8) as recording:
            for n in range(300):
                number(n, "")
        (statistics,) = recording.statistics().sinks
        assert statistics.last_error is shared
        assert shared.__notes__ == [f"raised at {__file__}:{fail.__code__.co_firstlineno + 1}, in fail"]
        went_on.append(True)

    went_on: list[bool] = []
    await look()
    assert went_on


def test_messages_name_a_sink_recognizably() -> None:
    class Quiet:
        async def __call__(self, stream: PageStream) -> None: ...

    class Named(Quiet):
        def __repr__(self) -> str:
            return "Named('x')"

    assert aiotrace.sink(Quiet()).name == "Quiet()"
    assert aiotrace.sink(Named()).name == "Named('x')"
    assert aiotrace.sink(nothing).name == "nothing"
    assert aiotrace.sink("null:").name == "null:"


def test_our_threads_take_no_signal_that_is_for_the_program() -> None:
    blocked: list[set[signal.Signals | int]] = []

    async def ask(stream: PageStream) -> None:
        async with worker_thread("asker") as worker:
            for mask in (
                signal.pthread_sigmask(signal.SIG_BLOCK, ()),
                await worker.run(signal.pthread_sigmask, signal.SIG_BLOCK, ()),
            ):
                blocked.append(set(mask))
        async for page in stream:
            stream.acknowledge(page)

    with aiotrace.recording(ask):
        pass
    for mask in blocked:
        assert {signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGCHLD} <= mask
        assert signal.SIGSEGV not in mask
    assert len(blocked) == 2
    assert signal.SIGTERM not in signal.pthread_sigmask(signal.SIG_BLOCK, ())


async def test_statistics_of_detached_sinks_do_not_grow_without_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("aiotrace._recording.service.GONE_MAX", 3)
    stays = Collect()
    async with record(stays, page_size=PAGE, pages=16) as recording:
        for n in range(10):
            passing = Collect()
            await recording.attach(passing)
            await number.send(n, "")
            await recording.detach(passing)
        sinks = recording.statistics().sinks
        assert [each.state for each in sinks] == ["running", *["finished"] * 3]
    check_sink_has(stays, recording.statistics(), range(10))
