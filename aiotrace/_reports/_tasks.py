"""The table of live tasks, and what each has done so far: the basis of all reports.

    spawn, alive, or the first sight of an id  -->  Task  --step, name-->  Task  --done-->  ended(task, result, now)

An id is one task at a time: a spawn with the id of a task that has not ended ends that one first, as "unknown", since
its end was lost. The table is bounded: beyond `LIVE_MAX` tasks the oldest is removed, as "unknown" too.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

from .._decode.event import Event

LIVE_MAX: Final = 100_000
"""Tasks in the table at once; about 40 MB."""
EVENTS: Final = ("task:spawn", "task:name", "task:alive", "task:step", "task:done")
UNKNOWN: Final = "unknown"
"""The result of a task whose end is not in the trace."""
LIVE: Final = "alive"
"""The result of a task that had not ended when the trace did."""
_TRIO_ROOT: Final = f"{os.sep}trio{os.sep}_core{os.sep}_run.py:"


@dataclass(slots=True)
class Task:
    """A task, as far as it is known from the events so far."""

    id: int
    name: str
    began_ns: int
    """When it was spawned, or first seen."""
    seen_ns: int
    """When it was last heard of."""
    coro: str = "?"
    """Its coroutine and the line where that begins."""
    site: str = "?"
    """The line that spawned it."""
    parent: int = 0
    parent_name: str = ""
    is_trio: bool = False
    """Of a trio program from its beginning on: trio does not tell when a task is made ready."""
    place: str = ""
    """Where it waits; "" before its first step, "?" if it is not known."""
    came_from: str = ""
    """Where it had waited before its last step."""
    waited_ns: int = -1
    """How long it had been ready before its last step; -1 if that is not known."""
    steps: int = 0
    busy_ns: int = 0
    waits: int = 0
    """Steps of which it is known when they were made ready."""
    waiting_ns: int = 0
    """Ready, but not running yet."""
    longest_ns: int = 0
    longest_at_ns: int = 0
    """When the longest step began."""
    longest_from: str = ""
    longest_to: str = ""
    part: int = 0
    """In which of the traces it was last heard of."""

    def add_step(self, now: int, fields: dict[str, Any]) -> None:
        """A step that has ended now."""
        duration = fields["duration_ns"]
        began = now - duration
        ready = fields["ready_ns"]
        self.waited_ns = -1
        if ready:
            self.waited_ns = max(began - ready, 0)
            self.waits += 1
            self.waiting_ns += self.waited_ns
        self.steps += 1
        self.busy_ns += duration
        if duration >= self.longest_ns:
            self.longest_ns, self.longest_at_ns = duration, began
            self.longest_from, self.longest_to = self.place, fields["awaited"]
        self.came_from, self.place = self.place, fields["awaited"]
        self.seen_ns = now

    @property
    def life_ns(self) -> int:
        return max(self.seen_ns - self.began_ns, self.busy_ns + self.waiting_ns)

    @property
    def idle_ns(self) -> int:
        """Neither running nor, as far as that is known, ready."""
        return self.life_ns - self.busy_ns - self.waiting_ns

    @property
    def who(self) -> str:
        return f"{self.name} ({self.id})"


def between(start: str, end: str) -> str:
    """The way of a step: from where the task had waited to where it waits next."""
    if start and start == end:
        return f"from and back to {start}"
    first = "from its beginning" if not start else "from a place not known" if start == "?" else f"from {start}"
    return f"{first} to its end" if end == "done" else f"{first} to {end}"


Ended = Callable[[Task, str, str], None]
"""(the task, how it ended, the exception's type or "") -> None."""


class Tasks:
    """The tasks that live.

    Args:
        ended: Called with each that ends.
    """

    def __init__(self, ended: Ended) -> None:
        self.live: dict[int, Task] = {}
        self.forgotten = 0
        """How many went because there were too many."""
        self._ended = ended
        self._part = 0
        self._last_ns = 0

    def add(self, event: Event) -> Task | None:
        """Take note of one of EVENTS; returns the task that it is of."""
        fields = event.fields
        self._last_ns = event.timestamp_ns
        if "damaged" in fields:
            return None
        match event.name:
            case "task:step":
                task = self.find(event.pid, event)
                task.add_step(event.timestamp_ns, fields)
            case "task:spawn":
                task = self._spawn(event, fields)
            case "task:name":
                task = self.find(fields["task"], event)
                task.name = fields["name"]
            case "task:alive":
                task = self._keep(event, fields)
            case "task:done":
                task = self.find(fields["task"], event)
                task.seen_ns = event.timestamp_ns
                del self.live[task.id]
                self._ended(task, fields["result"], fields["exception"])
            case _:
                return None
        return task

    def find(self, id: int, event: Event) -> Task:
        """The task with this id; one that was never heard of is new, and known by its name alone."""
        task = self.live.get(id)
        if task is None:
            name = event.comm if event.pid == id else "?"
            now = event.timestamp_ns
            length = event.fields["duration_ns"] if event.name == "task:step" else 0
            task = self._insert(Task(id, name, now - length, now, place="?"))
        task.part = self._part
        return task

    def name_of(self, id: int) -> str:
        """For people: "" if there is no such task."""
        task = self.live.get(id)
        return task.who if task is not None else str(id) if id else ""

    def _insert(self, task: Task) -> Task:
        if len(self.live) >= LIVE_MAX:
            self.forgotten += 1
            self._end(next(iter(self.live)), UNKNOWN)
        self.live[task.id] = task
        task.part = self._part
        return task

    def _end(self, id: int, result: str) -> None:
        self._ended(self.live.pop(id), result, "")

    def _spawn(self, event: Event, fields: dict[str, Any]) -> Task:
        id, now = fields["task"], event.timestamp_ns
        if id in self.live:
            self._end(id, UNKNOWN)
        task = Task(id, fields["name"], now, now, fields["coro"], fields["site"])
        self._adopt(task, fields["parent"])
        return self._insert(task)

    def _adopt(self, task: Task, parent: int) -> None:
        known = self.live.get(parent)
        task.parent = parent
        task.parent_name = known.who if known is not None else str(parent) if parent else ""
        is_root = task.coro.startswith("Runner.") and _TRIO_ROOT in task.coro
        task.is_trio = known.is_trio if known is not None else is_root

    def _keep(self, event: Event, fields: dict[str, Any]) -> Task:
        id = fields["task"]
        task = self.live.get(id)
        if task is None:
            task = self._insert(Task(id, fields["name"], event.timestamp_ns, 0, fields["coro"], place="?"))
            self._adopt(task, fields["parent"])
        task.seen_ns, task.part = event.timestamp_ns, self._part
        task.name, task.coro = fields["name"], fields["coro"]
        return task

    def end_part(self) -> None:
        """The end of a trace: tasks that have not ended were alive until then."""
        for task in self.live.values():
            if task.part == self._part:
                task.seen_ns = max(task.seen_ns, self._last_ns)
        self._part += 1

    def finish(self) -> None:
        """Whoever is left had not ended."""
        for id in list(self.live):
            self._end(id, LIVE)
