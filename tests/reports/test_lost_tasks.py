"""`report --lost-tasks`: destroyed, never retrieved, unfinished; and what cannot be known is said."""

from __future__ import annotations

import asyncio
import gc
from typing import Any

import pytest

from aiotrace._reports import lost_tasks
from aiotrace._reports.lost_tasks import LostTasksReport
from support.reports import FIRST, FakeEvent, done, feed, logged, spawn, step, text

A, B, C = FIRST, FIRST + 1, FIRST + 2
NOT_RETRIEVED = (
    "Task exception was never retrieved\n"
    "future: <Task finished name='failing' coro=<fail() done, defined at /app/a.py:36> exception=ValueError('no')>"
)
DESTROYED = (
    "Task was destroyed but it is pending!\n"
    "task: <Task pending name='forgotten' coro=<wait() running at /app/a.py:34> wait_for=<Future pending>>"
)
FAILING = [spawn(0, A, "failing", coro="fail (/app/a.py:36)"), done(5, A, "raised", "ValueError")]


def kinds(*events: FakeEvent, is_logged: bool = True) -> list[tuple[str, int, str]]:
    return [(row["kind"], row["count"], row["coro"]) for row in feed(LostTasksReport(is_logged=is_logged), *events)]


def test_destroyed_task_is_reported_with_its_wait_and_its_spawn() -> None:
    report = LostTasksReport(is_logged=True)
    (row,) = feed(
        report,
        spawn(1_000, A, "boss"),
        spawn(2_000, B, "forgotten", parent=A, coro="wait (/app/a.py:33)", site="boss (/app/a.py:43)"),
        step(3_000, 4_000, B, to="Future"),
        done(9_000, B, "lost"),
        done(9_500, A),
    )
    assert row == {
        "kind": "destroyed",
        "count": 1,
        "coro": "wait (/app/a.py:33)",
        "site": "boss (/app/a.py:43)",
        "exception": "",
        "waits_at": "Future",
        "last": {
            "task": B,
            "name": "forgotten",
            "parent": A,
            "began_ns": 2_000,
            "seen_ns": 9_000,
            "steps": 1,
            "error": "",
        },
    }
    out = text(report)
    assert out.startswith("lost tasks: 1 destroyed\n")
    assert f"destroyed: forgotten ({B}): wait (/app/a.py:33)" in out
    assert f"spawned at    boss (/app/a.py:43), by boss ({A})" in out


def test_an_exception_that_asyncio_complains_of_is_never_retrieved() -> None:
    report = LostTasksReport(is_logged=True)
    (row,) = feed(report, *FAILING, logged(9, NOT_RETRIEVED))
    assert (row["kind"], row["exception"], row["last"]["error"]) == (
        "never retrieved",
        "ValueError",
        "ValueError('no')",
    )
    assert "exception     ValueError('no')" in text(report)


def test_exception_without_a_complaint_counts_as_retrieved() -> None:
    assert kinds(*FAILING) == []
    assert kinds(*FAILING, logged(9, NOT_RETRIEVED, logger="app")) == []


def test_exception_without_log_events_may_not_have_been_retrieved() -> None:
    report = LostTasksReport(is_logged=False)
    (row,) = feed(report, *FAILING)
    assert row["kind"] == "raised"
    assert "whether exceptions were retrieved is not known: record log events too" in text(report)


def test_the_one_that_asyncio_complains_of_is_found_by_name_and_file() -> None:
    others = [spawn(0, B, "failing", coro="fail (/other/a.py:36)"), done(6, B, "raised", "KeyError")]
    named = [spawn(0, C, "fine", coro="fail (/app/a.py:36)"), done(6, C, "raised", "OSError")]
    (row,) = feed(LostTasksReport(is_logged=True), *FAILING, *others, *named, logged(9, NOT_RETRIEVED))
    assert (row["last"]["task"], row["exception"]) == (A, "ValueError")


def test_complaint_about_a_task_missing_from_the_trace_is_reported() -> None:
    (row,) = feed(LostTasksReport(is_logged=True), logged(9, NOT_RETRIEVED))
    assert (row["kind"], row["coro"], row["last"]["name"]) == ("never retrieved", "/app/a.py:36", "failing")
    assert kinds(logged(9, "Task exception was never retrieved, in other words"))[0][0] == "never retrieved"


def test_destroyed_task_logged_and_traced_is_reported_once() -> None:
    forgotten = spawn(0, B, "forgotten", coro="wait (/app/a.py:33)")
    expected = [("destroyed", 1, "wait (/app/a.py:33)")]
    assert kinds(forgotten, logged(5, DESTROYED)) == expected
    assert kinds(forgotten, logged(5, DESTROYED), done(9, B, "lost")) == expected


def test_tasks_without_an_end_are_unfinished_and_grouped_into_one_row() -> None:
    report = LostTasksReport(is_logged=True)
    rows = feed(report, *(spawn(n, A + n) for n in range(3)), spawn(5, A + 5), done(6, A + 5))
    assert [(row["kind"], row["count"]) for row in rows] == [("unfinished", 3)]
    assert f"unfinished x 3: t ({A + 2}) and others: f (a.py:1)" in text(report)


def test_trio_loses_no_exceptions() -> None:
    root = spawn(0, A, coro="Runner.init (/lib/trio/_core/_run.py:2144)")
    events = [root, spawn(1, B, parent=A), done(5, B, "raised", "ValueError"), done(6, A)]
    assert kinds(*events, is_logged=False) == []


def test_tasks_that_raised_are_kept_in_bounds(monkeypatch: Any) -> None:
    monkeypatch.setattr(lost_tasks, "RAISED_MAX", 2)
    events = [e for n in range(4) for e in (spawn(n, A + n, f"t{n}"), done(n, A + n, "raised", "ValueError"))]
    report = LostTasksReport(is_logged=True)
    feed(report, *events)
    assert list(report._raised) == [A + 2, A + 3]


@pytest.mark.parametrize("name", ["plain", "it's", 'say "hi"'])
def test_asyncios_messages_are_what_we_take_them_for(name: str, caplog: pytest.LogCaptureFixture) -> None:
    async def fail() -> None:
        raise ValueError("no > never")

    async def wait() -> None:
        await asyncio.get_running_loop().create_future()

    async def main() -> None:
        tasks = [asyncio.create_task(fail(), name=name), asyncio.create_task(wait(), name=name)]
        await asyncio.sleep(0)
        tasks.clear()
        gc.collect()

    asyncio.run(main())
    messages = [record.getMessage() for record in caplog.records]
    lost = spawn(0, B, name, coro=f"wait ({__file__}:{wait.__code__.co_firstlineno})")
    failed = spawn(0, A, name, coro=f"fail ({__file__}:{fail.__code__.co_firstlineno})")
    rows = feed(
        LostTasksReport(is_logged=True),
        lost,
        failed,
        done(5, A, "raised", "ValueError"),
        *(logged(9, message) for message in messages),
    )
    assert [(row["kind"], row["last"]["task"], row["last"]["error"]) for row in rows] == [
        ("destroyed", B, ""),
        ("never retrieved", A, "ValueError('no > never')"),
    ]


def test_report_without_lost_tasks_says_so() -> None:
    report = LostTasksReport(is_logged=True)
    assert feed(report, spawn(0, A), done(9, A)) == []
    assert text(report) == "no task was lost"
