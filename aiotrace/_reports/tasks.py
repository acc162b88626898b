"""--tasks: where the time of a program goes, by the places that spawn its tasks, and by task.

    life of a task:  | waiting to run | busy | idle ........... | waiting | busy | ...
                     ^ spawned or made ready         made ready ^

Every task is counted at its place; of single tasks the `SHOWN` busiest are kept.
"""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final

from .._base.terminal_text import escape
from .._decode.event import Event
from ._tasks import EVENTS, Task, Tasks, between
from ._text import INDENT, duration, table, times

SHOWN: Final = 30
_HEAD: Final = ("busy", "waiting", "idle", "steps", "longest")


@dataclass(slots=True)
class _Place:
    """What the tasks of one coroutine, spawned on one line, did together."""

    longest: Task
    """The one with the longest step."""
    tasks: int = 0
    steps: int = 0
    busy_ns: int = 0
    waits: int = 0
    waiting_ns: int = 0
    idle_ns: int = 0

    def add(self, task: Task) -> None:
        self.tasks += 1
        self.steps += task.steps
        self.busy_ns += task.busy_ns
        self.waits += task.waits
        self.waiting_ns += task.waiting_ns
        self.idle_ns += task.idle_ns
        if task.longest_ns > self.longest.longest_ns:
            self.longest = task


class TasksReport:
    wanted = EVENTS
    evidence = frozenset({"task:step"})

    def __init__(self) -> None:
        self._tasks = Tasks(self._ended)
        self._places: dict[tuple[str, str], _Place] = {}
        self._busiest: list[tuple[int, int, Task, str]] = []
        self._numbers = itertools.count()

    def add(self, event: Event) -> None:
        self._tasks.add(event)

    def end_part(self) -> None:
        self._tasks.end_part()

    def finish(self) -> None:
        self._tasks.finish()

    def _ended(self, task: Task, result: str, exception: str) -> None:
        key = task.coro, task.site
        place = self._places.get(key)
        if place is None:
            place = self._places[key] = _Place(task)
        place.add(task)
        entry = (task.busy_ns, -next(self._numbers), task, f"{result} {exception}".strip())
        if len(self._busiest) < SHOWN:
            heapq.heappush(self._busiest, entry)
        else:
            heapq.heappushpop(self._busiest, entry)

    def _sorted(self) -> list[tuple[tuple[str, str], _Place]]:
        return sorted(self._places.items(), key=lambda item: -item[1].busy_ns)

    def rows(self) -> Iterator[dict[str, Any]]:
        for (coro, site), place in self._sorted():
            yield {"coro": coro, "site": site, "tasks": place.tasks, **_numbers(place), **_longest(place.longest)}
        for _, _, task, result in sorted(self._busiest, reverse=True):
            yield {
                "task": task.id,
                "name": task.name,
                "coro": task.coro,
                "site": task.site,
                "parent": task.parent,
                "began_ns": task.began_ns,
                "result": result,
                **_numbers(task),
                **_longest(task),
            }

    def lines(self) -> Iterator[str]:
        total = sum(place.tasks for place in self._places.values())
        yield f"{times(total, 'task')} of {times(len(self._places), 'spawn site')}, the busiest first"
        yield ""
        places = self._sorted()
        rows = [
            (*_cells(place, place.longest), f"{place.tasks:,}", f"{coro}, spawned at {site}")
            for (coro, site), place in places
        ]
        yield from _with_longest(table((*_HEAD, "tasks", "coroutine"), rows), [place.longest for _, place in places])
        yield ""
        shown = sorted(self._busiest, reverse=True)
        yield "single tasks" if len(shown) == total else f"the {len(shown)} busiest tasks"
        yield ""
        rows = [(*_cells(task, task), f"{task.who}: {task.coro}; {result}") for _, _, task, result in shown]
        yield from _with_longest(table((*_HEAD, "task"), rows), [task for _, _, task, _ in shown])


def _with_longest(lines: Iterator[str], tasks: list[Task]) -> Iterator[str]:
    """A table's lines, below each the way of its longest step."""
    yield next(lines)
    for line, task in zip(lines, tasks, strict=True):
        yield line
        if task.steps:
            yield f"{INDENT}longest step {escape(between(task.longest_from, task.longest_to))}"


def _cells(counts: _Place | Task, longest: Task) -> tuple[str, ...]:
    return (
        duration(counts.busy_ns),
        duration(counts.waiting_ns) if counts.waits else "?",
        duration(counts.idle_ns),
        f"{counts.steps:,}",
        duration(longest.longest_ns),
    )


def _numbers(counts: _Place | Task) -> dict[str, Any]:
    return {
        "steps": counts.steps,
        "busy_ns": counts.busy_ns,
        "waiting_ns": counts.waiting_ns if counts.waits else None,
        "idle_ns": counts.idle_ns,
    }


def _longest(task: Task) -> dict[str, Any]:
    return {
        "longest_ns": task.longest_ns,
        "longest_at_ns": task.longest_at_ns,
        "longest_from": task.longest_from,
        "longest_to": task.longest_to,
    }
