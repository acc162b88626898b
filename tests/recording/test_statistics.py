"""What a recording reports of itself: its sums, and its text."""

from __future__ import annotations

from dataclasses import FrozenInstanceError, replace

import pytest

from aiotrace._budget.statistics import BudgetStatistics, BudgetSwitch
from aiotrace._recording.statistics import SinkStatistics, Statistics

SINK = SinkStatistics(
    name="file:trace.dat", state="running", quota=4, on_full="wait", pages_offered=9, pages_acknowledged=8,
    events_offered=90, events_delivered=80, events_missed=3, events_abandoned=2, events_in_flight=5, failures=0,
    last_error=None,
)  # fmt: skip
STATISTICS = Statistics(
    events_written=1000, events_delivered=800, events_overrun=70, events_dropped=60, events_abandoned=50,
    events_in_flight=80, events_cut=1, dropped={"no_page": 40, "reentrant": 0, "wrong_type": 20}, pages_total=16,
    pages_free=7, pages_filling=1, pages_full=3, pages_in_flight=5, pages_allocated=12, pages_recycled=34,
    page_size=4096, sends_waited=0, send_wait_ns=0, writers=(), sinks=(SINK,), failure=None,
)  # fmt: skip


def test_calls_are_what_was_written_and_what_was_refused() -> None:
    assert STATISTICS.calls == 1060


def test_lost_is_all_that_no_sink_will_get_and_not_what_is_on_its_way() -> None:
    assert STATISTICS.events_lost == 180


def test_statistics_do_not_change() -> None:
    with pytest.raises(FrozenInstanceError):
        STATISTICS.events_written = 0  # type: ignore[misc]  # that is what is tested


def test_text_shows_every_number_and_omits_what_did_not_happen() -> None:
    assert str(STATISTICS).split("\n") == [
        "events: 1000 written, 800 delivered, 180 lost (70 overrun, 60 dropped: 40 no_page, 20 wrong_type, "
        "50 abandoned), 80 in flight",
        "pages:  16 of 4096 bytes, 12 ever used, 34 times recycled; now 7 free, 1 filling, 3 full, 5 in flight",
        "sink:   file:trace.dat running: 80 of 90 events delivered, 3 missed, 2 abandoned",
    ]


def test_the_text_of_a_recording_without_losses_names_no_cause() -> None:
    none = replace(STATISTICS, events_dropped=0, dropped={"no_page": 0}, sinks=())
    assert "(70 overrun, 0 dropped, 50 abandoned)" in str(none)
    assert len(str(none).split("\n")) == 2


def test_text_shows_waits_and_failures() -> None:
    failed = replace(SINK, failures=2, last_error=OSError("disk full"))
    text = str(replace(STATISTICS, sends_waited=3, send_wait_ns=1_250_000, sinks=(failed,)))
    assert "waits:  3 sends waited 1.2 ms in all" in text
    assert text.endswith("2 abandoned, failed 2 times (OSError('disk full'))")


def test_text_of_a_budget_shows_what_was_disabled_and_when() -> None:
    def switch(seconds: float, group: str, is_on: bool) -> BudgetSwitch:
        return BudgetSwitch(seconds, group, is_on, 0.5, 0.4)

    budget = BudgetStatistics(
        share=0.01, spent=0.0123, spent_last=0.004, busy_ns=1_000_000, events_ns=6_000, sinks_ns=4_000,
        measuring_ns=2_300, seconds=20.0, off=("task:step", "function_graph"), stretch=4.0,
        switches=(
            switch(0.3, "function_graph:*", False), switch(2.0, "task:step", False), switch(12.0, "task:step", True),
            switch(15.0, "task:step", False),
        ),
    )  # fmt: skip
    assert str(replace(STATISTICS, budget=budget)).split("\n")[2] == (
        "budget: 1 % asked, 1.2 % spent (events 0.6 %, sinks 0.4 %, measuring 0.23 %), 0.4 % at the end; "
        "function_graph off from 0.3 s; task:step off 2 times, 15.0 of 20.0 s; flushed 4 times more rarely"
    )
