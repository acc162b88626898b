"""The meter: counts of events by kind, prices, and the processor time of threads and of tasks in a loop."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable, Iterator

import anyio
import anyio.lowlevel
import pytest

import aiotrace
from aiotrace._base.backend import c_module
from aiotrace._budget import cost_meter
from aiotrace._budget.cost_meter import Meter, Prices, ThreadTimes, cpu_ns
from aiotrace._recording.statistics import Statistics
from support.laws import check_laws

pytestmark = pytest.mark.pure_too

first = aiotrace.event("meter:first", n="u64")
second = aiotrace.event("other:second", n="u64", text="str")
EVENT, TURN, ASKED = 100.0, 0.0, 1000.0
needs_c = pytest.mark.skipif(c_module is None, reason="NOT RUN: functions are traced by the C module")


@pytest.fixture
def fixed_prices(monkeypatch: pytest.MonkeyPatch) -> None:
    prices = {"event": EVENT, "turn": TURN, "asked": ASKED}
    monkeypatch.setattr(Prices, "of", lambda self, what: prices[what])


@pytest.fixture
def recording() -> Iterator[aiotrace.SyncRecording]:
    with aiotrace.recording(page_size=4096, pages=8, overrun="drop_oldest") as recording:
        yield recording
        check_laws(recording.statistics())


@pytest.fixture
def meter(recording: aiotrace.SyncRecording, fixed_prices: None) -> Meter:
    """One that has begun to count."""
    inner = recording._core
    meter = Meter(inner.arena, inner.writers, inner.selection, inner.clock)
    in_thread(meter.start)
    return meter


def in_thread(function: Callable[[], object]) -> None:
    """As the meter is read: in a thread that records nothing."""
    failures: list[BaseException] = []

    def run() -> None:
        try:
            function()
        except BaseException as error:
            failures.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    assert not failures


def costs(meter: Meter) -> dict[str, float]:
    """Nanoseconds by group, by the fixed prices."""
    groups, rest, _ = meter._events()
    assert rest == 0
    return {group: cost for group, cost in groups.items() if cost}


# --- processor time ---------------------------------------------------------------------------------


def test_the_processor_time_of_a_thread_is_its_own_clock_s() -> None:
    before = time.thread_time_ns()
    found = cpu_ns(threading.get_native_id())
    assert found is not None
    assert before <= found <= time.thread_time_ns()


def test_a_thread_that_has_ended_has_no_time_and_is_forgotten() -> None:
    ids: list[int] = []
    times = ThreadTimes()
    thread = threading.Thread(target=lambda: ids.append(threading.get_native_id()))
    thread.start()
    thread.join()
    times.begin(ids[0])
    while cpu_ns(ids[0]) is not None:  # it is gone a moment after join
        pass
    assert times.spent() == 0
    assert times._last == {}


def test_time_counts_from_the_begin_on_and_not_of_those_that_are_left_out() -> None:
    times = ThreadTimes()
    here = threading.get_native_id()
    before = time.thread_time_ns()
    times.begin(here)
    spin(3)
    assert 0 < times.spent() <= time.thread_time_ns() - before
    spin(3)
    assert times.spent([here]) == 0


def spin(milliseconds: int) -> None:
    end = time.thread_time_ns() + milliseconds * 1_000_000
    while time.thread_time_ns() < end:
        pass


# --- prices -----------------------------------------------------------------------------------------


def test_trying_out_calls_records_nothing(recording: aiotrace.SyncRecording) -> None:
    first(1)
    found: list[float] = []

    def try_out() -> None:
        prices = Prices(recording._core.clock)
        for _ in range(cost_meter.SELDOM + 1):
            prices.try_out()
        found.extend(prices.of(what) for what in ("event", "turn", "asked"))
        first(2)

    in_thread(try_out)
    assert recording.statistics().calls == 2, "and the thread records all the same after it"
    assert all(price > 0 for price in found)
    assert found[0] < found[2], "a filter costs more than an event"


# --- counts -----------------------------------------------------------------------------------------


def test_each_group_costs_its_events_exactly(meter: Meter) -> None:
    for n in range(30):
        first(n)
    for n in range(10):
        second(n, "text")
    assert costs(meter) == {"meter:*": pytest.approx(30 * EVENT), "other:*": pytest.approx(10 * EVENT)}
    assert costs(meter) == {}
    first(1)
    assert sum(costs(meter).values()) == pytest.approx(EVENT)


def test_event_count_is_exact_and_event_kinds_are_sampled_from_pages(
    meter: Meter,
) -> None:
    for n in range(3000):
        first(n)
        if n % 3 == 0:
            second(n, "text")
    found = costs(meter)
    assert sum(found.values()) == pytest.approx(4000 * EVENT)
    assert found["meter:*"] / found["other:*"] == pytest.approx(3, rel=0.2)


def test_events_that_are_refused_cost_as_much(fixed_prices: None) -> None:
    with aiotrace.recording(page_size=4096, pages=2) as recording:
        inner = recording._core
        meter = Meter(inner.arena, inner.writers, inner.selection, inner.clock)
        in_thread(meter.start)
        first(0)
        assert costs(meter) == {"meter:*": pytest.approx(EVENT)}
        for n in range(1000):
            first(n)
        assert recording.statistics().events_dropped
        assert costs(meter) == {"meter:*": pytest.approx(1000 * EVENT)}


def test_events_that_were_not_sampled_cost_without_a_group(fixed_prices: None) -> None:
    with aiotrace.recording(page_size=4096, pages=2) as recording:
        inner = recording._core
        meter = Meter(inner.arena, inner.writers, inner.selection, inner.clock)
        in_thread(meter.start)
        for n in range(1000):  # the pages are full, and none is being filled
            first(n)
        groups, rest, _ = meter._events()
        assert (groups, rest) == ({}, pytest.approx(1000 * EVENT))


def test_filter_evaluations_cost_more_even_without_a_match(recording: aiotrace.SyncRecording, meter: Meter) -> None:
    recording.filter("meter:first", "n > 100")
    for n in range(20):
        first(n)
    assert costs(meter) == {"meter:*": pytest.approx(20 * ASKED)}
    first(101)
    assert costs(meter) == {"meter:*": pytest.approx(ASKED + EVENT)}


def test_pages_that_turn_cost_and_count_for_those_that_filled_them(
    meter: Meter, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Prices, "of", lambda self, what: {"event": 0.0, "turn": 1.0, "asked": 0.0}[what])
    before = sum(writer.sequence for writer in meter._writers.all)
    for n in range(2000):
        first(n)
    turned = sum(writer.sequence for writer in meter._writers.all) - before
    assert turned > 5
    assert costs(meter) == {"meter:*": pytest.approx(turned)}


def test_events_disabled_by_the_budget_do_not_count_as_recorded(
    recording: aiotrace.SyncRecording, meter: Meter
) -> None:
    for n in range(100):
        first(n)
    costs(meter)
    recording.selection.disabled_by_budget = ("meter:*",)
    recording._reconsider()
    first(1)
    second(1, "text")
    assert costs(meter) == {"other:*": pytest.approx(EVENT)}


@needs_c
def test_functions_cost_by_their_hooks_and_their_records(recording: aiotrace.SyncRecording, meter: Meter) -> None:
    recording.enable("function_graph:*")
    for _ in range(100):
        callee()
    recording.disable("function_graph:*")
    assert costs(meter)["function_graph:*"] >= 200 * 0.7 * EVENT


@needs_c
@pytest.mark.skipif(sys.version_info >= (3, 12), reason="later versions call no hook for what is not traced")
def test_functions_that_are_not_traced_cost_their_hooks(recording: aiotrace.SyncRecording, meter: Meter) -> None:
    recording.limit("nothing.*")
    recording.enable("function_graph:*")
    for _ in range(100):
        callee()
    recording.disable("function_graph:*")
    assert costs(meter)["function_graph:*"] >= 200 * cost_meter.FUNCTION_HOOK * EVENT


def callee() -> None:
    pass


# --- in the program's loop --------------------------------------------------------------------------


@pytest.fixture
def loop_meter(recording: aiotrace.SyncRecording) -> Meter:
    inner = recording._core
    return Meter(inner.arena, inner.writers, inner.selection, inner.clock)


@pytest.mark.anyio
async def test_the_steps_of_what_is_timed_count_and_its_waits_do_not(loop_meter: Meter) -> None:
    async def work() -> None:
        spin(2)
        await anyio.lowlevel.checkpoint()
        spin(2)

    began = time.thread_time_ns()
    await loop_meter.timed(work)()
    assert 4_000_000 <= loop_meter._loop_ns <= time.thread_time_ns() - began


@pytest.mark.anyio
async def test_timed_coroutine_is_cancelled_and_raises_unchanged(loop_meter: Meter) -> None:
    told: list[str] = []

    async def wait() -> None:
        try:
            await anyio.sleep_forever()
        except anyio.get_cancelled_exc_class():
            told.append("cancelled")
            raise

    async def fail() -> None:
        await anyio.lowlevel.checkpoint()
        raise KeyError("theirs")

    with anyio.CancelScope() as scope:
        scope.cancel()
        await loop_meter.timed(wait)()
    assert scope.cancelled_caught
    assert told == ["cancelled"]
    with pytest.raises(KeyError, match="theirs"):
        await loop_meter.timed(fail)()


@pytest.mark.anyio
async def test_the_reader_in_the_program_s_loop_is_timed() -> None:
    async def take(stream: aiotrace.abc.PageStream) -> None:
        async for page in stream:
            stream.acknowledge(page)

    async with aiotrace.record(take, page_size=4096, pages=8, budget=0.5) as recording:
        for n in range(5000):
            await first.send(n)
        await anyio.lowlevel.checkpoint()
        assert recording._core.budget is not None
        assert recording._core.budget.meter._loop_ns > 0
    statistics: Statistics = recording.statistics()
    check_laws(statistics, 5000)
