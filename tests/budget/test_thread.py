"""A recording with a budget, whole: what is switched off is off, the trace says so, and the user's word stands."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import anyio
import anyio.lowlevel
import pytest

import aiotrace
from aiotrace._base.backend import c_module
from aiotrace._budget import thread as _budgetthread
from aiotrace._budget.cost_meter import Meter, Reading
from aiotrace._budget.policy import STRETCH_MAX, Period
from aiotrace._budget.statistics import BudgetStatistics
from aiotrace._cli import main
from aiotrace._events import tracer_switch
from support import fakes
from support.laws import check_closed
from support.programs import environment

request = aiotrace.event("budgeted:request", n="u64")
other = aiotrace.event("unbudgeted:other", n="u64")
PATIENT = 60.0
"""Seconds after which a test that waits for something has failed."""
needs_c = pytest.mark.skipif(c_module is None, reason="NOT RUN: functions are traced by the C module")
AnyRecording = aiotrace.Recording | aiotrace.SyncRecording


class Collect(fakes.Collect):
    """A sink that keeps the events."""

    @property
    def told(self) -> list[tuple[str, bool]]:
        """What went off, and on."""
        found = [event.fields for event in self.events if event.name == "aiotrace:budget"]
        return [(str(fields["group"]), bool(fields["on"])) for fields in found]


class Costs:
    """Stands in for what a meter reads: groups cost these shares of a program that is busy for a second at each look,
    while they are on."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.shares: dict[str, float] = {}
        self.fixed = 0.0
        monkeypatch.setattr(Meter, "read", self._read)
        monkeypatch.setattr(_budgetthread, "PERIOD", 0.001)
        monkeypatch.setattr(_budgetthread, "PERIOD_MAX", 0.001)

    def _read(self, meter: Any = None) -> Reading:
        return Reading(
            Period(1.0, 1e9, 1e9 * self.fixed, {group: 1e9 * share for group, share in self.shares.items()}), 0, 0, 0
        )


@pytest.fixture
def costs(monkeypatch: pytest.MonkeyPatch) -> Costs:
    return Costs(monkeypatch)


def budget_of(recording: AnyRecording) -> BudgetStatistics:
    found = recording.statistics().budget
    assert found is not None
    return found


def wait_until(condition: Callable[[], object]) -> None:
    end = time.monotonic() + PATIENT
    while not condition():
        assert time.monotonic() < end, "in vain"
        time.sleep(0.001)


@pytest.fixture(autouse=True)
def no_thread_stays() -> Iterator[None]:
    yield
    assert not [thread for thread in threading.enumerate() if thread.name == _budgetthread.NAME]


# --- what is switched -------------------------------------------------------------------------------


@pytest.mark.pure_too
def test_too_expensive_events_are_disabled_and_the_trace_says_so(costs: Costs) -> None:
    sink = Collect()
    with aiotrace.recording(sink, budget=0.01) as recording:
        request(1)
        costs.shares = {"budgeted:*": 0.5}
        wait_until(lambda: budget_of(recording).off)
        costs.shares = {}
        wait_until(lambda: not request.is_taken(recording._core))
        request(2)
        other(3)
    assert sink.told == [("budgeted", False)]
    assert [event.fields["n"] for event in sink.events if "n" in event.fields] == [1, 3]
    (told,) = [event for event in sink.events if event.name == "aiotrace:budget"]
    assert told.fields == {
        "group": "budgeted", "on": 0, "cost_permille": 500, "group_permille": 500, "budget_permille": 10,
    }  # fmt: skip
    assert told.comm == _budgetthread.NAME
    check_closed(recording.statistics(), 3)  # two of this test, and its own


@pytest.mark.pure_too
def test_group_is_enabled_again_when_it_fits(costs: Costs) -> None:
    sink = Collect()
    with aiotrace.recording(sink, budget=0.01) as recording:
        switch_off_and_on(recording, costs)
        wait_until(lambda: request.is_taken(recording._core))
        request(4)
        assert budget_of(recording).off == ()
    assert sink.told == [("budgeted", False), ("budgeted", True)]
    assert [event.fields["n"] for event in sink.events if event.name == "budgeted:request"] == [4]


def switch_off_and_on(recording: AnyRecording, costs: Costs) -> None:
    """Let a group go off, and be due to come back at once."""
    costs.shares = {"budgeted:*": 0.5}
    wait_until(lambda: recording.selection.disabled_by_budget)
    costs.shares = {}
    assert recording._core.budget is not None
    budget = recording._core.budget._budget
    budget._known["budgeted:*"].patience = 1e-9
    budget.debt_ns = 0


@pytest.mark.pure_too
@pytest.mark.anyio
async def test_group_is_enabled_in_the_loop_where_running_tasks_are_seen(
    costs: Costs, monkeypatch: pytest.MonkeyPatch
) -> None:
    threads: list[int] = []
    selection_changed = _budgetthread.selection_changed

    def note() -> None:
        threads.append(threading.get_ident())
        selection_changed()

    monkeypatch.setattr(_budgetthread, "selection_changed", note)
    async with aiotrace.record(budget=0.01) as recording:
        switch_off_and_on(recording, costs)
        end = time.monotonic() + PATIENT
        while recording.selection.disabled_by_budget:
            assert time.monotonic() < end
            await anyio.lowlevel.checkpoint()
    assert threads[-1] == threading.get_ident()
    assert threads[0] != threading.get_ident(), "what goes off does not wait for a loop that may be busy"


@pytest.mark.pure_too
def test_a_reader_that_takes_much_for_itself_flushes_more_rarely(costs: Costs) -> None:
    with aiotrace.recording(budget=0.01) as recording:
        costs.fixed = 0.05
        wait_until(lambda: recording._core.service._stretch == STRETCH_MAX)
        assert budget_of(recording).stretch == STRETCH_MAX
        assert budget_of(recording).off == ()


@pytest.mark.pure_too
def test_a_reader_that_is_to_wake_rarely_waits_for_a_quarter_of_the_pool() -> None:
    sink = Collect()
    with aiotrace.recording(sink, page_size=4096, pages=64, flush_interval=3600) as recording:
        service = recording._core.service
        service.set_pace(2.0)
        service._waker.wake()
        wait_until(lambda: service._resting)
        ring = recording._core.pages.ring
        while len(ring) < 5:
            request(0)
        assert not service._is_due
        while not sink.events:
            assert len(ring) < 60, "it is woken when 16 pages are full"
            request(0)
            time.sleep(0 if len(ring) < 16 else 0.001)
    check_closed(recording.statistics(), len(sink.events))


@pytest.mark.pure_too
@needs_c
def test_a_tracer_whose_group_is_off_has_no_hook_in_the_program(costs: Costs) -> None:
    with aiotrace.recording(budget=0.01) as recording:
        recording.enable("function_graph:*")
        assert "function_graph" in tracer_switch._running
        costs.shares = {"function_graph:*": 0.5}
        wait_until(lambda: "function_graph" not in tracer_switch._running)
        costs.shares = {}
        before = recording.statistics().calls
        callee()
        assert recording.statistics().calls - before <= 1, "but what the budget tells"


def callee() -> None:
    pass


@pytest.mark.pure_too
@needs_c
def test_a_part_of_a_tracer_goes_off_alone(costs: Costs) -> None:
    with aiotrace.recording(budget=0.01) as recording:
        recording.enable("task:*")
        costs.shares = {"task:ready": 0.5}
        wait_until(lambda: budget_of(recording).off == ("task:ready",))
        costs.shares = {}
        assert "task" in tracer_switch._running
        assert not recording.selection.is_enabled("task:ready", by_default=False)
        assert recording.selection.is_enabled("task:step", by_default=False)


@pytest.mark.pure_too
@needs_c
def test_stalls_are_watched_for_whatever_is_off(costs: Costs) -> None:
    with aiotrace.recording(budget=0.01) as recording:
        recording.enable("task:*")
        recording.enable("stall:*")
        costs.shares = {"task:*": 0.5}
        wait_until(lambda: budget_of(recording).off == ("task",))
        costs.shares = {}
        wait_until(lambda: "task" not in tracer_switch._running)
        assert "stall" in tracer_switch._running


@pytest.mark.pure_too
def test_group_enabled_by_the_user_stays_disabled_by_the_budget(costs: Costs) -> None:
    with aiotrace.recording(budget=0.01) as recording:
        costs.shares = {"budgeted:*": 0.5}
        wait_until(lambda: recording.selection.disabled_by_budget)
        costs.shares = {}
        recording.enable("budgeted:*")
        assert not request.is_taken(recording._core)
        assert budget_of(recording).off == ("budgeted",)


@pytest.mark.pure_too
def test_group_disabled_by_the_user_meanwhile_is_not_enabled_again(costs: Costs) -> None:
    with aiotrace.recording(budget=0.01) as recording:
        costs.shares = {"budgeted:*": 0.5}
        wait_until(lambda: recording.selection.disabled_by_budget)
        recording.disable("budgeted:*")
        thread = recording._core.budget
        assert thread is not None
        assert not thread._is_wanted("budgeted:*")
        recording.enable("budgeted:request")
        assert thread._is_wanted("budgeted:*")


@pytest.mark.pure_too
def test_another_recording_keeps_its_events(costs: Costs) -> None:
    mine, theirs = Collect(), Collect()
    with aiotrace.recording(mine, budget=0.01) as recording, aiotrace.recording(theirs):
        costs.shares = {"budgeted:*": 0.5}
        wait_until(lambda: not request.is_taken(recording._core))
        costs.shares = {}
        request(1)
    assert "budgeted:request" not in [event.name for event in mine.events]
    assert [event.name for event in theirs.events] == ["budgeted:request"], "nor is it told what another's budget does"


@pytest.mark.pure_too
def test_budget_events_are_emitted_even_if_all_is_disabled(costs: Costs) -> None:
    sink = Collect()
    with aiotrace.recording(sink, budget=0.01) as recording:
        recording.disable("all")
        costs.shares = {"budgeted:*": 0.5}
        wait_until(lambda: budget_of(recording).off)
    assert sink.told == [("budgeted", False)]


@pytest.mark.pure_too
def test_failing_meter_warns_and_the_program_continues(costs: Costs, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(meter: Meter) -> Reading:
        raise ZeroDivisionError("broken")

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        monkeypatch.setattr(Meter, "start", lambda meter: None)
        monkeypatch.setattr(Meter, "read", fail)
        with aiotrace.recording(budget=0.01) as recording:
            wait_until(lambda: caught)
            request(1)
    assert "the budget is no longer kept: ZeroDivisionError('broken')" in str(caught[0].message)
    check_closed(recording.statistics(), 1)


@pytest.mark.pure_too
def test_without_a_budget_there_is_no_thread_and_no_account() -> None:
    with aiotrace.recording() as recording:
        assert recording.statistics().budget is None
        assert _budgetthread.NAME not in [thread.name for thread in threading.enumerate()]


@pytest.mark.pure_too
@pytest.mark.parametrize("budget", [0, 1.5, "1%"])
def test_impossible_budget_is_refused(budget: Any) -> None:
    with pytest.raises(aiotrace.ConfigurationError, match=r"0\.01 is 1 %"):
        aiotrace.recording(budget=budget)
    with pytest.raises(aiotrace.ConfigurationError, match=r"0\.01 is 1 %"):
        aiotrace.record(budget=budget)


# --- measured ---------------------------------------------------------------------------------------


def fibonacci(n: int) -> int:
    return n if n < 2 else fibonacci(n - 1) + fibonacci(n - 2)


@pytest.mark.pure_too
@needs_c
@pytest.mark.anyio
@pytest.mark.parametrize(
    "options", [{}, {"thread": True}, {"overrun": "drop_oldest"}], ids=["loop", "thread", "flight"]
)
async def test_program_with_every_call_recorded_exceeds_its_budget(options: dict[str, Any]) -> None:
    sink = Collect()
    sinks = () if "overrun" in options else (sink,)
    async with aiotrace.record(*sinks, budget=0.01, **options) as recording:
        recording.enable("function_graph:*")
        end = time.monotonic() + PATIENT
        while "function_graph" not in budget_of(recording).off:
            assert time.monotonic() < end
            fibonacci(12)
            await anyio.lowlevel.checkpoint()
        found = budget_of(recording)
    assert found.switches[0].group == "function_graph:*"
    assert found.switches[0].group_cost > 0
    assert found.events_ns > 0
    assert found.busy_ns > 0
    assert found.measuring_ns > 0
    if sinks:
        assert sink.told[0] == ("function_graph", False)


# --- programs ---------------------------------------------------------------------------------------

PROGRAM = """
import sys, time
from aiotrace._launcher import process

def fibonacci(n):
    return n if n < 2 else fibonacci(n - 1) + fibonacci(n - 2)

end = time.monotonic() + 60
while time.monotonic() < end and not process.current._recording.statistics().budget.off:
    fibonacci(12)
"""


def record(*arguments: str | Path, cwd: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "aiotrace", "record", *map(str, arguments)],
        cwd=cwd, capture_output=True, text=True, timeout=120, env=environment(),
    )  # fmt: skip


@needs_c
@pytest.mark.parametrize("options", [["--exec"], ["--external"]], ids=["a thread", "external"])
def test_record_names_disabled_groups_and_the_trace_has_the_times(tmp_path: Path, options: list[str]) -> None:
    words = [*options, "--budget", "1%", "-p", "function_graph", "-b", "16M", "-o", tmp_path / "t.dat", "-c", PROGRAM]
    done = record(*words, cwd=tmp_path)
    assert done.returncode == 0
    (line,) = [line for line in done.stderr.splitlines() if "budget" in line]
    assert re.match(r"aiotrace record: budget: 1 % asked, .* spent \(.*; function_graph off from \d+\.\d s", line)
    with aiotrace.open_trace(tmp_path / "t.dat") as trace:
        told = [event.fields for event in trace.events() if event.name == "aiotrace:budget"]
    assert [(fields["group"], fields["on"]) for fields in told] == [("function_graph", 0)]


@pytest.mark.parametrize("budget", ["0", "150%", "abc", "0%"])
def test_record_refuses_an_invalid_budget_before_the_program_begins(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], budget: str
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as ended:
        main(["record", "--budget", budget, "-c", "print('ran')"])
    told = capsys.readouterr()
    assert (ended.value.code, told.out) == (2, "")
    assert f"budget {budget!r}" in told.err
    assert os.listdir(tmp_path) == []
