"""`report --stalls`: which steps, and what went on in them."""

from __future__ import annotations

from typing import Any

import pytest

from aiotrace._reports import stalls
from aiotrace._reports.stalls import StallsReport
from support.reports import FIRST, FakeEvent, feed, spawn, step, text

A, B = FIRST, FIRST + 1
MS = 1_000_000


def report() -> StallsReport:
    return StallsReport(100 * MS)


def iteration(at: int, poll: int = 0, cpu: int = 0) -> FakeEvent:
    return FakeEvent("loop:iteration", at, 7, {"ready": 1, "poll_ns": poll, "late_ns": 0}, cpu, "app")


def test_step_is_a_stall_from_the_threshold_on() -> None:
    found = report()
    (row,) = feed(
        found,
        spawn(0, A, "serve", coro="serve (a.py:1)"),
        step(0, 10 * MS, A, to="read (a.py:5)"),
        step(20 * MS, 119 * MS, A, to="read (a.py:6)"),
        step(200 * MS, 300 * MS, A, to="read (a.py:7)"),
    )
    assert row == {
        "began_ns": 200 * MS,
        "duration_ns": 100 * MS,
        "task": A,
        "name": "serve",
        "coro": "serve (a.py:1)",
        "site": "m (a.py:9)",
        "from": "read (a.py:6)",
        "to": "read (a.py:7)",
        "collected_ns": 0,
        "inside": [],
        "watched": None,
    }
    out = text(found)
    assert out.startswith("1 stall of 100 ms or longer\n")
    assert f"100 ms at 0.200000: serve ({A}): serve (a.py:1)" in out
    assert "ran           from read (a.py:6) to read (a.py:7)" in out


def test_contained_events_are_of_the_same_thread_and_time() -> None:
    gc = {"generation": 2, "duration_ns": 30 * MS, "collected": 0, "uncollectable": 0}
    (row,) = feed(
        report(),
        FakeEvent("audit:open", 1 * MS, A, {"arguments": "early"}),
        FakeEvent("audit:open", 110 * MS, A, {"arguments": "one"}),
        FakeEvent("audit:open", 111 * MS, B, {"arguments": "elsewhere"}, cpu=1),
        FakeEvent("gc:stop", 150 * MS, A, gc),
        FakeEvent("audit:open", 160 * MS, A, {"arguments": "two"}),
        step(100 * MS, 250 * MS, A),
    )
    assert row["collected_ns"] == 30 * MS
    assert row["inside"][0] == {"event": "audit:open", "count": 2, "last": "arguments=two"}
    assert [(kind["event"], kind["count"]) for kind in row["inside"]] == [("audit:open", 2), ("gc:stop", 1)]


def test_events_of_an_earlier_step_are_not_contained() -> None:
    (row,) = feed(
        report(),
        FakeEvent("audit:open", 5, A, {"arguments": "x"}),
        step(0, 10, A),
        step(0, 200 * MS, B),  # as if it had begun earlier: clocks of two kinds may differ a little
    )
    assert row["inside"] == []


def watch(what: str, at: int, began: int, /, task: int = A, cpu: int = 3, **fields: Any) -> FakeEvent:
    return FakeEvent(
        f"stall:{what}", at, task or 7, {"thread": 7, "task": task, "began_ns": began, **fields}, cpu, "app"
    )


def noticed(at: int, began: int, **fields: Any) -> FakeEvent:
    return watch("noticed", at, began, lasted_ns=at - began, cause="scheduler", **fields)


def ended(at: int, began: int, cause: str = "blocked", **fields: Any) -> FakeEvent:
    times = {"cpu_ns": 2 * MS, "delay_ns": 3 * MS, "gc_ns": 0, "gil_ns": 0}
    return watch("end", at, began, duration_ns=at - began, cause=cause, **{"cpu": 0, **times, **fields})


def stack(*lines: str, cpu: int = 4) -> FakeEvent:
    class Stack(FakeEvent):
        def text(self) -> str:
            return "<stack trace >\n" + "\n".join(f"=> {line}" for line in lines)

    return Stack("ftrace:kernel_stack", 0, A, {}, cpu)


def test_observations_of_the_watch_are_reported_with_their_step() -> None:
    found = report()
    (row,) = feed(
        found,
        spawn(0, A, coro="serve (a.py:1)"),
        noticed(200 * MS, 100 * MS),
        watch("stack", 201 * MS, 100 * MS, cpu=4, gil_ns=5, at="hash (a.py:77)"),
        stack("hash (a.py:77)", "serve (a.py:3)"),
        stack("of another event"),
        ended(250 * MS, 100 * MS),
        step(100 * MS, 250 * MS, A, to="read (a.py:6)"),
    )
    assert (row["duration_ns"], row["from"], row["to"]) == (150 * MS, "", "read (a.py:6)")
    assert row["watched"] == {
        "thread": 7,
        "cause": "blocked",
        "at": "hash (a.py:77)",
        "cpu_ns": 2 * MS,
        "delay_ns": 3 * MS,
        "stack": ["=> hash (a.py:77)", "=> serve (a.py:3)"],
    }
    out = text(found)
    assert "    seen at       hash (a.py:77)\n" in out
    assert "cause         a system call or a lock (2.00 ms on a processor, 3.00 ms ready but on none)\n" in out
    assert "ran           from its beginning to read (a.py:6)\n" in out
    assert out.endswith("    => hash (a.py:77)\n    => serve (a.py:3)")


def test_stack_that_arrives_after_the_end_is_also_reported() -> None:
    (row,) = feed(
        report(),
        noticed(200 * MS, 100 * MS),
        ended(250 * MS, 100 * MS),
        watch("stack", 251 * MS, 100 * MS, cpu=4, gil_ns=5, at="hash (a.py:77)"),
        stack("hash (a.py:77)"),
    )
    assert row["watched"]["stack"] == ["=> hash (a.py:77)"]


def test_without_steps_the_watch_is_enough() -> None:
    found = report()
    first, second = feed(found, ended(250 * MS, 100 * MS), ended(400 * MS, 270 * MS, task=0), ended(500 * MS, 450 * MS))
    assert (first["task"], first["name"], first["duration_ns"]) == (A, "app", 150 * MS)
    assert (second["task"], second["coro"]) == (0, "a callback of its loop")
    assert "ran" not in text(found)


def test_stall_reported_by_the_watch_is_not_repeated_for_the_iteration() -> None:
    (row,) = feed(
        report(),
        iteration(100 * MS),
        ended(260 * MS, 100 * MS, task=0, cpu=0),
        iteration(300 * MS),
    )
    assert row["duration_ns"] == 160 * MS


def test_a_stall_that_had_not_ended_lasted_to_the_end_of_the_trace() -> None:
    found = report()
    (row,) = feed(found, noticed(150 * MS, 100 * MS), FakeEvent("audit:open", 900 * MS, 3, {}, 5))
    assert (row["duration_ns"], row["watched"]["cause"]) == (800 * MS, "scheduler")
    assert "ran           it had not ended when the trace did" in text(found)


def test_a_stall_whose_end_was_overwritten_is_at_least_as_long_as_seen() -> None:
    found = report()
    rows = feed(
        found,
        noticed(150 * MS, 100 * MS),
        noticed(2150 * MS, 2100 * MS),
        step(2900 * MS, 2901 * MS, A),
        FakeEvent("audit:open", 5000 * MS, 3, {}, 5),
    )
    assert [(row["began_ns"], row["duration_ns"], row["to"]) for row in rows] == [
        (100 * MS, 50 * MS, stalls.OVERWRITTEN),
        (2100 * MS, 50 * MS, stalls.OVERWRITTEN),
    ]
    assert "at least 50.0 ms at 0.100000" in text(found)


def test_the_step_of_a_stall_is_not_taken_for_a_later_one() -> None:
    (row,) = feed(report(), step(0, 20 * MS, A), noticed(150 * MS, 100 * MS), FakeEvent("audit:open", 900 * MS, A, {}))
    assert row["to"] == stalls.LASTS


@pytest.mark.parametrize(("chosen", "count"), [(None, 1), (100 * MS, 0), (60 * MS, 1)])
def test_what_was_watched_for_counts_unless_a_threshold_is_chosen(chosen: int | None, count: int) -> None:
    found = StallsReport(100 * MS, chosen)
    short = FakeEvent("stall:noticed", 150 * MS, 3, {**noticed(150 * MS, 90 * MS).fields, "lasted_ns": 50 * MS + 77}, 5)
    rows = feed(found, short, ended(160 * MS, 90 * MS))
    assert len(rows) == count
    if chosen is None:
        assert text(found).startswith("1 stall of 50.0 ms or longer\n")


def test_the_watch_forgets_the_oldest(monkeypatch: Any) -> None:
    monkeypatch.setattr(stalls, "WATCHED_MAX", 2)
    rows = feed(report(), *(noticed(n * 1000 * MS, n * 1000 * MS - 500 * MS) for n in range(1, 5)))
    assert [row["began_ns"] for row in rows] == [2500 * MS, 3500 * MS]


def test_callbacks_of_no_task_stall_a_loop_too() -> None:
    found = report()
    (row,) = feed(
        found,
        iteration(100 * MS),
        step(110 * MS, 150 * MS, A),
        iteration(500 * MS, poll=200 * MS),  # callbacks from 100 to 300 ms, of which 40 ms are a step
        iteration(700 * MS, poll=150 * MS),
    )
    assert (row["task"], row["began_ns"], row["duration_ns"]) == (0, 100 * MS, 160 * MS)
    assert "160 ms at 0.100000: thread app: callbacks of its loop" in text(found)


def test_loops_of_two_threads_are_apart() -> None:
    assert feed(report(), iteration(0, cpu=0), iteration(200 * MS, cpu=1), iteration(250 * MS, 240 * MS)) == []


def test_longest_stalls_are_kept_and_reported_in_order_of_time(monkeypatch: Any) -> None:
    monkeypatch.setattr(stalls, "SHOWN", 2)
    found = report()
    rows = feed(found, *(step(n * 1000 * MS, n * 1000 * MS + n * 100 * MS, A) for n in (3, 1, 2)))
    assert [row["duration_ns"] for row in rows] == [200 * MS, 300 * MS]
    assert text(found).startswith("3 stalls of 100 ms or longer, of which the 2 longest are shown\n")


def test_report_without_stalls_says_so() -> None:
    found = report()
    feed(found, step(0, 5, A))
    assert text(found) == "no step took 100 ms or longer"
