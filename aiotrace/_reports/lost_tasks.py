"""--lost-tasks: tasks that the program has lost track of.

    destroyed        garbage before it ended: only the loop, weakly, and what it waited for referred to it
    never retrieved  it raised, and the exception was not retrieved before the task was garbage
    raised           possibly the same: without log:* in the trace, whether it was retrieved is unknown
    unfinished       it had not ended when the trace did; or its end is among the events that were lost

Only asyncio loses tasks: trio's always end, and raise, in a nursery. asyncio's own log message,
which has the task's name and coroutine, reports that an exception was never retrieved, or that a
task was destroyed; the tracer reports a destroyed task only when it notices it.
"""

from __future__ import annotations

import re
from collections import OrderedDict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Final

from .._decode.event import Event
from .._decode.report_lines import format_time
from ._tasks import EVENTS, LIVE, Task, Tasks
from ._text import block, duration, times

KINDS: Final = ("destroyed", "never retrieved", "raised", "unfinished")
RAISED_MAX: Final = 10_000
"""Tasks that raised, kept until asyncio reports them as not retrieved; the oldest are forgotten."""
_NOT_RETRIEVED: Final = "Task exception was never retrieved"
_DESTROYED: Final = "Task was destroyed but it is pending!"
_TASK: Final = re.compile(
    r"<Task \w+ name=(?P<quote>['\"])(?P<name>.*?)(?P=quote) coro=<.*? at (?P<path>[^\n>]*):(?P<line>\d+)>"
    r"(?:.*? exception=(?P<exception>[^\n]*)>)?"
)
"""A task's repr, as it is in asyncio's messages."""


@dataclass(slots=True)
class _Kind:
    """Lost tasks that are the same but for their names and times."""

    task: Task
    """The last one."""
    count: int = 0
    error: str = ""
    """The exception of the last one, as its repr."""


_Key = tuple[str, str, str, str, str]
"""(kind, coroutine, spawned at, exception, waits at)."""


class LostTasksReport:
    """
    Args:
        is_logged: Whether the traces have events of the logging module.
    """

    wanted = (*EVENTS, "log:record")
    evidence = frozenset({"task:spawn", "task:done"})

    def __init__(self, *, is_logged: bool) -> None:
        self._tasks = Tasks(self._ended)
        self._is_logged = is_logged
        self._raised: OrderedDict[int, tuple[Task, str]] = OrderedDict()
        self._destroyed: set[int] = set()
        """Destroyed tasks that the tracer has not reported yet."""
        self._kinds: dict[_Key, _Kind] = {}

    def add(self, event: Event) -> None:
        if event.name != "log:record":
            self._tasks.add(event)
            return
        message = event.fields.get("message", "")
        if event.fields.get("logger") != "asyncio":
            return
        if message.startswith(_NOT_RETRIEVED):
            self._not_retrieved(event, message)
        elif message.startswith(_DESTROYED):
            found = _find(message, self._tasks.live.values())
            if found is not None:
                self._destroyed.add(found.id)

    def _ended(self, task: Task, result: str, exception: str) -> None:
        is_destroyed = task.id in self._destroyed
        self._destroyed.discard(task.id)
        if result == "lost" or is_destroyed:
            self._count("destroyed", task)
        elif result == LIVE:
            self._count("unfinished", task)
        elif result == "raised" and not task.is_trio:
            if not self._is_logged:
                self._count("raised", task, exception)
                return
            self._raised[task.id] = task, exception
            self._raised.move_to_end(task.id)
            if len(self._raised) > RAISED_MAX:
                self._raised.popitem(last=False)

    def _not_retrieved(self, event: Event, message: str) -> None:
        match = _TASK.search(message)
        found = _find(message, (task for task, _ in reversed(self._raised.values())))
        if found is not None:
            task, exception = self._raised.pop(found.id)
        else:
            name, line = (match["name"], f"{match['path']}:{match['line']}") if match else ("?", "?")
            task, exception = Task(0, name, 0, event.timestamp_ns, line), "?"
        self._count("never retrieved", task, exception, match["exception"] or "" if match else "")

    def _count(self, what: str, task: Task, exception: str = "", error: str = "") -> None:
        place = "" if task.place == "done" else task.place
        kind = self._kinds.setdefault((what, task.coro, task.site, exception, place), _Kind(task))
        kind.task, kind.error = task, error
        kind.count += 1

    def end_part(self) -> None:
        self._tasks.end_part()

    def finish(self) -> None:
        self._tasks.finish()

    def _sorted(self) -> list[tuple[_Key, _Kind]]:
        return sorted(self._kinds.items(), key=lambda item: (KINDS.index(item[0][0]), -item[1].count))

    def rows(self) -> Iterator[dict[str, Any]]:
        for (what, coro, site, exception, place), kind in self._sorted():
            task = kind.task
            yield {
                "kind": what,
                "count": kind.count,
                "coro": coro,
                "site": site,
                "exception": exception,
                "waits_at": place,
                "last": {
                    "task": task.id,
                    "name": task.name,
                    "parent": task.parent,
                    "began_ns": task.began_ns,
                    "seen_ns": task.seen_ns,
                    "steps": task.steps,
                    "error": kind.error,
                },
            }

    def lines(self) -> Iterator[str]:
        counts = dict.fromkeys(KINDS, 0)
        for key, kind in self._kinds.items():
            counts[key[0]] += kind.count
        found = ", ".join(f"{count:,} {what}" for what, count in counts.items() if count)
        yield f"lost tasks: {found}" if found else "no task was lost"
        if not self._is_logged:
            yield "whether exceptions were retrieved is not known: record log events too (-e 'task:*' -e 'log:*')"
        for key, kind in self._sorted():
            yield ""
            yield from _lines(key, kind)


def _find(message: str, tasks: Iterable[Task]) -> Task | None:
    """The first of the tasks that a message of asyncio's may be of: its name and its file are those."""
    match = _TASK.search(message)
    if match is None:
        return None
    file = f"({match['path']}:"
    return next((task for task in tasks if task.name == match["name"] and file in task.coro), None)


def _lines(key: _Key, kind: _Kind) -> Iterator[str]:
    what, coro, site, exception, place = key
    task, many = kind.task, kind.count > 1
    life = f"{duration(task.life_ns)}, {times(task.steps, 'step')}"
    return block(
        f"{what}{f' x {kind.count:,}' if many else ''}: {task.who}{' and others' if many else ''}: {coro}",
        [
            ("exception", kind.error or exception),
            ("waited at", place),
            ("spawned at", f"{site}{f', by {task.parent_name}' if task.parent_name else ''}"),
            ("lived", f"from {format_time(task.began_ns).strip()} on, {life}" if task.began_ns else ""),
        ],
    )
