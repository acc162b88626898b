"""`report --tasks`, and what all reports know of tasks."""

from __future__ import annotations

from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from aiotrace._reports import _tasks
from aiotrace._reports._tasks import Task, Tasks
from aiotrace._reports._text import duration
from aiotrace._reports.tasks import SHOWN, TasksReport
from support.reports import FIRST, FakeEvent, done, feed, spawn, step, text

A, B, C = FIRST, FIRST + 1, FIRST + 2


def ends_of(*events: FakeEvent) -> list[tuple[int, str, str]]:
    """(id, name, result) of each task, in the order in which they end."""
    ended: list[tuple[int, str, str]] = []
    tasks = Tasks(lambda task, result, exception: ended.append((task.id, task.name, result)))
    for event in events:
        tasks.add(event)  # type: ignore[arg-type]  # a fake
    tasks.end_part()
    tasks.finish()
    return ended


def test_a_life_is_busy_waiting_and_idle() -> None:
    site, task = feed(
        TasksReport(),
        spawn(1000, A, "worker"),
        step(1100, 1200, A, ready=1000, to="x (a.py:5)"),
        step(1700, 2000, A, ready=1650, to="done"),
        done(2000, A),
    )
    numbers = {"steps": 2, "busy_ns": 400, "waiting_ns": 150, "idle_ns": 450}
    longest = {"longest_ns": 300, "longest_at_ns": 1700, "longest_from": "x (a.py:5)", "longest_to": "done"}
    assert site == {"coro": "f (a.py:1)", "site": "m (a.py:9)", "tasks": 1, **numbers, **longest}
    assert task == {
        "task": A,
        "name": "worker",
        "coro": "f (a.py:1)",
        "site": "m (a.py:9)",
        "parent": 0,
        "began_ns": 1000,
        "result": "returned",
        **numbers,
        **longest,
    }


def test_tasks_of_one_spawn_site_are_one_row_and_the_busiest_site_is_first() -> None:
    rows = feed(
        TasksReport(),
        spawn(0, A, coro="quick (a.py:1)"),
        spawn(0, B, coro="slow (a.py:2)"),
        spawn(0, C, coro="slow (a.py:2)"),
        step(10, 20, A),
        step(20, 70, B, to="here (a.py:3)"),
        step(70, 90, C),
        done(100, C),
    )
    assert [(row["coro"], row["tasks"], row["busy_ns"], row["longest_to"]) for row in rows[:2]] == [
        ("slow (a.py:2)", 2, 70, "here (a.py:3)"),
        ("quick (a.py:1)", 1, 10, "g (a.py:2)"),
    ]
    assert [(row["task"], row["result"]) for row in rows[2:]] == [(B, "alive"), (C, "returned"), (A, "alive")]


def test_values_unknown_on_trio_are_shown_as_question_marks() -> None:
    report = TasksReport()
    assert feed(report, spawn(0, A), step(10, 20, A), done(20, A))[0]["waiting_ns"] is None
    assert text(report).splitlines()[3].split()[:4] == ["10", "ns", "?", "10"]


def test_busiest_single_tasks_are_kept() -> None:
    events = [event for n in range(100) for event in (spawn(n, A + n), step(n, n + n, A + n), done(200, A + n))]
    report = TasksReport()
    rows = [row for row in feed(report, *events) if "task" in row]
    assert [row["task"] for row in rows] == [A + n for n in range(99, 99 - SHOWN, -1)]
    assert f"the {SHOWN} busiest tasks" in text(report)


def test_text_shows_counts_and_the_place_of_the_longest_step() -> None:
    report = TasksReport()
    feed(report, spawn(0, A, "w\x1b[2J"), step(0, 1_500_000, A, to="x (a.py:5)"), step(2_000_000, 2_000_100, A))
    out = text(report)
    assert out.startswith("1 task of 1 spawn site, the busiest first\n")
    assert "longest step from its beginning to x (a.py:5)" in out
    assert "1.50 ms" in out
    assert "\x1b" not in out


# --- who is alive ---------------------------------------------------------------------------------


def test_unknown_task_has_the_name_of_its_pid_and_an_unknown_origin() -> None:
    rows = feed(TasksReport(), step(50, 70, B, to="x (a.py:5)"))
    assert rows[1]["name"] == f"comm of {B}"
    assert (rows[1]["began_ns"], rows[1]["longest_from"], rows[1]["idle_ns"]) == (50, "?", 0)


def test_an_id_that_is_used_again_is_another_task() -> None:
    assert ends_of(spawn(0, A, "first"), spawn(5, A, "second"), done(6, A)) == [
        (A, "first", "unknown"),
        (A, "second", "returned"),
    ]


def test_a_task_has_its_last_name() -> None:
    named = FakeEvent("task:name", 1, A, {"task": A, "name": "better"})
    assert ends_of(spawn(0, A, "Task-1"), named, done(6, A)) == [(A, "better", "returned")]


def test_a_keyframe_knows_those_that_are_older_than_the_trace() -> None:
    alive = FakeEvent("task:alive", 1, 0, {"task": A, "parent": 0, "name": "old", "coro": "f (a.py:1)"})
    row = feed(TasksReport(), alive, step(5, 9, A))[0]
    assert (row["coro"], row["site"], row["longest_from"]) == ("f (a.py:1)", "?", "?")


def test_unended_task_was_alive_until_the_end_of_its_own_trace() -> None:
    report = TasksReport()
    for part in ([spawn(0, A), step(0, 10, A), done(100, C)], [spawn(500, B), step(500, 510, B), done(900, C)]):
        for event in part:
            report.add(event)  # type: ignore[arg-type]  # a fake
        report.end_part()
    report.finish()
    idle = {row["task"]: row["idle_ns"] for row in report.rows() if "task" in row}
    assert (idle[A], idle[B]) == (90, 390)


def test_the_table_of_living_tasks_is_bounded(monkeypatch: Any) -> None:
    monkeypatch.setattr(_tasks, "LIVE_MAX", 3)
    assert ends_of(*(spawn(n, A + n) for n in range(5)))[:2] == [(A, "t", "unknown"), (A + 1, "t", "unknown")]


def test_a_damaged_record_is_passed_over() -> None:
    broken = [FakeEvent(f"task:{name}", 1, A, {"damaged": "short"}) for name in ("spawn", "step", "done", "alive")]
    assert ends_of(*broken) == []


def test_tasks_spawned_by_a_trio_program_belong_to_trio() -> None:
    tasks = Tasks(lambda task, result, exception: None)
    root = spawn(0, A, coro="Runner.init (/lib/trio/_core/_run.py:2144)")
    events = (root, spawn(1, B, parent=A), spawn(2, C, coro="Runner.run (/app/runner.py:1)"))
    found = [tasks.add(event) for event in events]  # type: ignore[arg-type]  # a fake
    assert [task.is_trio for task in found if task] == [True, True, False]


@given(st.lists(st.tuples(st.integers(0, 10**9), st.integers(0, 10**9), st.integers(0, 10**9)), max_size=20))
def test_busy_waiting_and_idle_are_a_life(steps: list[tuple[int, int, int]]) -> None:
    now, task = 0, Task(A, "t", 0, 0)
    for idle, waiting, busy in steps:
        ready = now + idle
        now = ready + waiting + busy
        task.add_step(now, {"ready_ns": ready, "duration_ns": busy, "awaited": "x"})
    assert task.busy_ns + task.waiting_ns + task.idle_ns == task.life_ns
    assert task.busy_ns == sum(busy for _, _, busy in steps)
    assert task.life_ns >= task.busy_ns


@given(st.integers(0, 10**15))
def test_a_duration_is_within_half_a_percent(ns: int) -> None:
    number, unit = duration(ns).split()
    value = float(number) * {"ns": 1, "us": 1e3, "ms": 1e6, "s": 1e9}[unit]
    assert abs(value - ns) <= ns * 0.0051
    assert len(number) <= 4 or unit == "s"
    assert unit == "s" or float(number) < 1000
