"""`report --cancellations`: what became of each, from the events alone."""

from __future__ import annotations

from typing import Any

import pytest

from aiotrace._reports.cancellations import CancellationsReport
from support.reports import FIRST, FakeEvent, cancel, done, feed, spawn, step, text, told

A, B, C = FIRST, FIRST + 1, FIRST + 2
TRIO = spawn(0, A, "<init>", coro="Runner.init (/lib/trio/_core/_run.py:2144)")


def outcomes(*events: FakeEvent) -> list[tuple[str, int]]:
    return [(row["outcome"], row["count"]) for row in feed(CancellationsReport(), *events)]


def test_swallowed_cancellation_names_its_requester_and_where_it_was_lost() -> None:
    report = CancellationsReport()
    (row,) = feed(
        report,
        spawn(0, A, "boss"),
        spawn(0, B, "stubborn", parent=A, coro="stubborn (a.py:3)", site="boss (a.py:20)"),
        step(1, 2, B, to="sleep (b.py:7)"),
        cancel(1_000, B, by=A, site="boss (a.py:22)", message="enough"),
        told("delivered", 3_000, B),
        told("caught", 3_100, B, "stubborn (a.py:5)"),
        told("swallowed", 4_000, B, "stubborn (a.py:6)"),
        done(11_000, B),
    )
    assert row == {
        "outcome": "swallowed",
        "count": 1,
        "coro": "stubborn (a.py:3)",
        "spawned_at": "boss (a.py:20)",
        "requested_at": "boss (a.py:22)",
        "caught_at": "stubborn (a.py:5)",
        "swallowed_at": "stubborn (a.py:6)",
        "overdue_at": "",
        "delivered_after_ns": 2_000,
        "ended_after_ns": 10_000,
        "ended": "returned",
        "last": {
            "task": f"stubborn ({B})",
            "by": f"boss ({A})",
            "message": "enough",
            "at_ns": 1_000,
            "waited_at": "sleep (b.py:7)",
        },
    }
    out = text(report)
    assert out.startswith("1 cancellation: 1 swallowed\n")
    assert f"asked for by  boss ({A}), at boss (a.py:22): 'enough'" in out
    assert "delivered     after 2.00 us" in out
    assert "swallowed at  stubborn (a.py:6)" in out


DELIVERED = told("delivered", 20, B)
CAUGHT = told("caught", 21, B, "x (a.py:4)")


@pytest.mark.parametrize(
    ("events", "outcome"),
    [
        ([DELIVERED, done(30, B, "cancelled")], "cancelled"),
        ([DELIVERED, CAUGHT, done(30, B, "cancelled")], "cancelled"),
        ([done(30, B)], "too late"),
        ([], "pending"),
        ([DELIVERED], "pending"),
        ([DELIVERED, CAUGHT], "taken back"),
        ([DELIVERED, CAUGHT, done(30, B)], "taken back"),
        ([DELIVERED, done(30, B, "raised", "ValueError")], "raised"),
        ([DELIVERED, CAUGHT, told("swallowed", 30, B, "x (a.py:5)")], "swallowed"),
        ([spawn(40, B)], "unknown"),
    ],
)
def test_the_outcome(events: list[FakeEvent], outcome: str) -> None:
    assert outcomes(spawn(0, B), cancel(10, B), *events) == [(outcome, 1)]


def overdue(at: int, task: int, *, place: str = "x (a.py:7)", since: int = 10) -> FakeEvent:
    fields = {"task": task, "by": A, "requested_ns": since, "site": "boss (a.py:22)", "at": place}
    return FakeEvent("cancellation:overdue", at, 1, fields)


@pytest.mark.parametrize(
    ("events", "outcome"),
    [
        ([], "overdue"),
        ([done(90, B, "cancelled")], "overdue"),
        ([DELIVERED, CAUGHT], "overdue"),
        ([DELIVERED, done(90, B, "raised", "ValueError")], "raised"),
        ([DELIVERED, CAUGHT, told("swallowed", 30, B, "x (a.py:5)")], "swallowed"),
    ],
)
def test_cancellation_not_obeyed_in_time_is_overdue_unless_worse_is_known(
    events: list[FakeEvent], outcome: str
) -> None:
    assert outcomes(spawn(0, B), cancel(10, B, site="boss (a.py:22)"), overdue(20, B), *events) == [(outcome, 1)]


def test_overdue_task_is_reported_with_its_place_and_delay() -> None:
    report = CancellationsReport()
    events = [spawn(0, A, "boss"), spawn(0, B, "slow"), cancel(1_000, B, by=A, site="boss (a.py:22)")]
    (row,) = feed(report, *events, overdue(2_001_000, B, since=1_000), done(3_001_000, B, "cancelled"))
    assert (row["outcome"], row["overdue_at"], row["ended_after_ns"]) == ("overdue", "x (a.py:7)", 3_000_000)
    assert "still there   2.00 ms later, at x (a.py:7)" in text(report)


def test_cancellation_without_a_recorded_request_names_its_requester() -> None:
    (row,) = feed(CancellationsReport(), spawn(0, A, "boss"), spawn(0, B), overdue(50, B, since=10))
    assert (row["outcome"], row["requested_at"], row["last"]["by"]) == ("overdue", "boss (a.py:22)", f"boss ({A})")
    assert row["last"]["at_ns"] == 10


def test_equal_cancellations_are_grouped_and_the_worst_come_first() -> None:
    events = [
        event
        for n in range(5)
        for event in (
            spawn(n, A + n),
            cancel(100, A + n, site="boss (a.py:22)"),
            told("delivered", 110 - n, A + n),
            done(210 - n, A + n, "cancelled"),
        )
    ]
    late = [spawn(0, A + 9), cancel(5, A + 9, site="x (a.py:1)"), done(7, A + 9)]
    rows = feed(CancellationsReport(), *events, *late)
    assert [(row["outcome"], row["count"], row["ended_after_ns"]) for row in rows] == [
        ("too late", 1, 2),
        ("cancelled", 5, 110),
    ]
    assert rows[1]["delivered_after_ns"] == 10


def test_a_request_that_is_repeated_from_the_same_line_is_one() -> None:
    again = [cancel(n, B, site="deliver (anyio.py:1)") for n in range(10, 15)]
    assert outcomes(spawn(0, B), *again, DELIVERED, done(30, B, "cancelled")) == [("cancelled", 1)]


def test_two_that_one_after_the_other_are_caught_are_two() -> None:
    once: list[Any] = [cancel(10, B, site="timeout (t.py:1)"), DELIVERED, CAUGHT]
    assert outcomes(spawn(0, B), *once, *once, done(99, B)) == [("taken back", 2)]


def test_a_request_from_elsewhere_is_another_one() -> None:
    events = [cancel(10, B, site="x (a.py:1)"), cancel(11, B, site="y (a.py:2)"), DELIVERED, done(30, B, "cancelled")]
    assert outcomes(spawn(0, B), *events) == [("asked again", 1), ("cancelled", 1)]


def test_delivery_without_a_recorded_request_has_an_unknown_requester() -> None:
    (row,) = feed(CancellationsReport(), told("delivered", 5, B), done(9, B, "cancelled"))
    assert (row["outcome"], row["requested_at"], row["last"]["by"]) == ("cancelled", "?", "?")


# --- trio, which says less ------------------------------------------------------------------------


def scope(*, by: int = B, waits: bool = True) -> list[FakeEvent]:
    """B has spawned C, which waits; then B's scope, with both in it, is cancelled."""
    line = "main (a.py:9)"
    steps = [step(3, 4, C)] if waits else []
    return [TRIO, spawn(1, B, "main", parent=A), spawn(2, C, "child", parent=B), *steps] + [
        cancel(10, task, by=by, site=line) for task in (B, C)
    ]


def test_trio_task_that_returns_within_the_scope_probably_swallowed_it() -> None:
    assert outcomes(*scope(), done(20, C), done(30, B)) == [("probably swallowed", 1), ("taken back", 1)]


def test_trio_task_ended_by_the_scope_has_not_swallowed_it() -> None:
    events = [*scope(), told("delivered", 20, C), done(20, C, "cancelled"), done(30, B)]
    assert outcomes(*events) == [("taken back", 1), ("cancelled", 1)]


def test_trio_task_that_did_not_wait_may_still_return() -> None:
    assert outcomes(*scope(waits=False), done(20, C), done(30, B)) == [("taken back", 2)]
    assert outcomes(*scope(by=C), done(20, C), done(30, B)) == [("taken back", 2)]


@pytest.mark.parametrize("line", ["main (a.py:9)", "elsewhere (a.py:10)"])
def test_trio_parent_cancelled_by_another_call_implies_nothing_for_child(line: str) -> None:
    late = 10 if line == "elsewhere (a.py:10)" else 10**9
    other = [*scope()[:-1], cancel(late, C, by=B, site=line), done(late + 1, C), done(late + 2, B)]
    assert {outcome for outcome, _ in outcomes(*other)} == {"taken back"}


def test_trio_task_that_raises_another_exception_is_reported_so() -> None:
    assert outcomes(*scope(), done(20, C, "raised", "ValueError"), done(30, B)) == [("raised", 1), ("taken back", 1)]


def test_trio_nursery_of_cancelled_tasks_is_cancelled() -> None:
    events = [*scope(), done(20, C, "cancelled"), done(30, B, "raised", "BaseExceptionGroup")]
    assert outcomes(*events) == [("cancelled", 2)]


def test_report_without_cancellations_says_so() -> None:
    report = CancellationsReport()
    assert feed(report, spawn(0, A), done(9, A, "cancelled")) == []
    assert text(report) == "no cancellation was asked for"
