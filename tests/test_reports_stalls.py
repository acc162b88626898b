"""`report --stalls`: which steps, and what went on in them."""

from __future__ import annotations

from typing import Any

from reports import FIRST, FakeEvent, feed, spawn, step, text

from aiotrace._reports import stalls
from aiotrace._reports.stalls import StallsReport

A, B = FIRST, FIRST + 1
MS = 1_000_000


def report() -> StallsReport:
    return StallsReport(100 * MS)


def iteration(at: int, poll: int = 0, cpu: int = 0) -> FakeEvent:
    return FakeEvent("loop:iteration", at, 7, {"ready": 1, "poll_ns": poll, "late_ns": 0}, cpu, "app")


def test_a_step_as_long_as_the_threshold_is_a_stall_and_a_shorter_one_is_none() -> None:
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
        "watched": [],
    }
    out = text(found)
    assert out.startswith("1 stall of 100 ms or longer\n")
    assert f"100 ms at 0.200000: serve ({A}): serve (a.py:1)" in out
    assert "ran           from read (a.py:6) to read (a.py:7)" in out


def test_what_is_inside_is_of_its_thread_and_its_time() -> None:
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


def test_what_an_earlier_step_did_is_not_inside() -> None:
    (row,) = feed(
        report(),
        FakeEvent("audit:open", 5, A, {"arguments": "x"}),
        step(0, 10, A),
        step(0, 200 * MS, B),  # as if it had begun earlier: clocks of two kinds may differ a little
    )
    assert row["inside"] == []


def test_the_watchs_reports_are_shown_with_their_stacks_whichever_thread_wrote_them() -> None:
    found = report()
    stack = FakeEvent("ftrace:kernel_stack", 150 * MS, 9, {"caller": "hash (a.py:77)"}, cpu=3)
    other = FakeEvent("ftrace:kernel_stack", 151 * MS, 9, {"caller": "of another event"}, cpu=3)
    (row,) = feed(
        found,
        spawn(0, A),
        spawn(0, B),
        FakeEvent("stall:begin", 150 * MS, 9, {"task": A, "at": "hash (a.py:77)"}, cpu=3),
        stack,
        other,
        FakeEvent("stall:begin", 160 * MS, 9, {"task": B, "at": "elsewhere"}, cpu=3),
        step(100 * MS, 250 * MS, A),
    )
    assert row["watched"] == [f"stall:begin: task={A} at=hash (a.py:77)\ncaller=hash (a.py:77)"]
    assert f"    stall:begin: task={A} at=hash (a.py:77)\n    caller=hash (a.py:77)" in text(found)


def test_a_report_of_the_watch_that_names_a_thread_is_of_the_step_of_its_time() -> None:
    watch = FakeEvent("stall:end", 150 * MS, 9, {"length_ns": 5}, cpu=3)
    (row,) = feed(report(), spawn(0, A), watch, step(100 * MS, 250 * MS, A))
    assert row["watched"] == ["stall:end: length_ns=5"]


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


def test_the_longest_are_kept_and_told_in_the_order_of_time(monkeypatch: Any) -> None:
    monkeypatch.setattr(stalls, "SHOWN", 2)
    found = report()
    rows = feed(found, *(step(n * 1000 * MS, n * 1000 * MS + n * 100 * MS, A) for n in (3, 1, 2)))
    assert [row["duration_ns"] for row in rows] == [200 * MS, 300 * MS]
    assert text(found).startswith("3 stalls of 100 ms or longer, of which the 2 longest are shown\n")


def test_no_stall_is_said() -> None:
    found = report()
    feed(found, step(0, 5, A))
    assert text(found) == "no step took 100 ms or longer"
