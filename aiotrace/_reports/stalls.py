"""--stalls: steps that held their loop up, and what went on in them as far as the trace holds it.

    events of a thread:  gc:stop  audit:open  stall:*  task:step (written at its end, with its length)
                         `--------- inside ---------'

A callback that is no task's can stall a loop too. Where iterations are recorded (loop:iteration, asyncio) it is what is
left of an iteration without its polling and the steps in it.

Of what is inside only the last `INSIDE_MAX` events of a thread are looked at, and their names counted; the collector's
time is added up from `COLLECTIONS_MAX` of its runs. Reports of a stall watch, `stall:*`, are shown with the stack that
follows them, whichever thread wrote them.
"""

from __future__ import annotations

import dataclasses
import heapq
import itertools
from collections import Counter, deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Final

from .._escape import escape
from ..decode import Event, format_time
from ._tasks import Tasks, between
from ._text import INDENT, block, duration, times

SHOWN: Final = 1000
"""The longest are kept."""
INSIDE_MAX: Final = 256
COLLECTIONS_MAX: Final = 4096
WATCH_MAX: Final = 64
"""Reports of stall watches that are kept for the steps that they are of."""
KINDS_SHOWN: Final = 6
CALLBACKS: Final = "callbacks of its loop"
_STACKS: Final = frozenset({"ftrace:kernel_stack", "ftrace:user_stack"})


@dataclass(slots=True)
class _Thread:
    """What a thread has recorded since its last step."""

    inside: deque[Event] = field(default_factory=lambda: deque(maxlen=INSIDE_MAX))
    collected: deque[tuple[int, int]] = field(default_factory=lambda: deque(maxlen=COLLECTIONS_MAX))
    """(when, for how long) the collector ran."""
    iteration_ns: int = 0
    """When the callbacks of the iteration began to run; 0: not known."""
    steps_ns: int = 0
    """How long the steps in it took."""
    stack_of: list[str] | None = None
    """The text that a stack would belong to if it came next."""

    def clear(self) -> None:
        self.inside.clear()
        self.collected.clear()


@dataclass(slots=True)
class Stall:
    """A step, or callbacks, that took longer than the threshold."""

    began_ns: int
    duration_ns: int
    task: int
    """0: no task's."""
    name: str
    coro: str
    site: str
    """Where it was spawned."""
    start: str
    end: str
    collected_ns: int = 0
    """How long the garbage collector ran meanwhile."""
    inside: list[dict[str, Any]] = field(default_factory=list)
    """The kinds of events that are inside: {"event", "count", "last"}, the last one's text."""
    watched: list[str] = field(default_factory=list)
    """What a stall watch said of it, with its stacks."""


class StallsReport:
    """
    Args:
        threshold_ns: What is at least as long is a stall.
    """

    wanted: tuple[str, ...] = ()
    evidence = frozenset({"task:step", "loop:iteration"})

    def __init__(self, threshold_ns: int) -> None:
        self._threshold = threshold_ns
        self._tasks = Tasks(lambda task, result, exception: None)
        self._threads: dict[tuple[int, int], _Thread] = {}
        self._watched: deque[tuple[int, int, list[str]]] = deque(maxlen=WATCH_MAX)
        self._longest: list[tuple[int, int, Stall]] = []
        self._numbers = itertools.count()
        self._part = 0
        self.count = 0

    def add(self, event: Event) -> None:
        thread = self._threads.get((self._part, event.cpu))
        if thread is None:
            thread = self._threads[self._part, event.cpu] = _Thread()
        name = event.name
        stack_of, thread.stack_of = thread.stack_of, None
        if name == "task:step":
            self._step(thread, event)
        elif name == "loop:iteration":
            self._iterate(thread, event)
        elif name in _STACKS:
            if stack_of is not None:
                stack_of.append(event.text())
        elif name.startswith("stall:"):
            thread.stack_of = [f"{name}: {event.text()}"]
            self._watched.append((event.timestamp_ns, event.fields.get("task", event.pid), thread.stack_of))
        elif not name.startswith("task:") or self._tasks.add(event) is None:
            thread.inside.append(event)
            if name == "gc:stop":
                thread.collected.append((event.timestamp_ns, event.fields.get("duration_ns", 0)))

    def _step(self, thread: _Thread, event: Event) -> None:
        task = self._tasks.add(event)
        if task is None:
            return
        length = event.fields["duration_ns"]
        thread.steps_ns += length
        if length >= self._threshold:
            began = event.timestamp_ns - length
            where = task.coro, task.site, task.came_from, task.place
            self._keep(thread, Stall(began, length, task.id, task.name, *where))
        thread.clear()

    def _iterate(self, thread: _Thread, event: Event) -> None:
        ended = event.timestamp_ns - event.fields.get("poll_ns", 0)
        length = ended - thread.iteration_ns - thread.steps_ns
        if thread.iteration_ns and length >= self._threshold:
            self._keep(thread, Stall(thread.iteration_ns, length, 0, event.comm, CALLBACKS, "", "?", "?"), ended)
        thread.iteration_ns, thread.steps_ns = event.timestamp_ns, 0
        thread.clear()

    def _keep(self, thread: _Thread, stall: Stall, ended: int = 0) -> None:
        began, ended = stall.began_ns, ended or stall.began_ns + stall.duration_ns
        stall.collected_ns = sum(length for at, length in thread.collected if began <= at <= ended)
        inside = [event for event in thread.inside if began <= event.timestamp_ns <= ended]
        last = {event.name: event for event in inside}
        for name, count in Counter(event.name for event in inside).most_common(KINDS_SHOWN):
            stall.inside.append({"event": name, "count": count, "last": last[name].text()})
        stall.watched = [
            "\n".join(text)
            for at, of, text in self._watched
            if began <= at <= ended and (of == stall.task or of not in self._tasks.live)
        ]
        self.count += 1
        heapq.heappush(self._longest, (stall.duration_ns, -next(self._numbers), stall))
        if len(self._longest) > SHOWN:
            heapq.heappop(self._longest)

    def end_part(self) -> None:
        self._tasks.end_part()
        self._threads.clear()
        self._part += 1

    def finish(self) -> None:
        self._tasks.finish()

    def _in_order(self) -> list[Stall]:
        return sorted((stall for _, _, stall in self._longest), key=lambda stall: stall.began_ns)

    def rows(self) -> Iterator[dict[str, Any]]:
        for stall in self._in_order():
            row = dataclasses.asdict(stall)
            yield {("from" if name == "start" else "to" if name == "end" else name): row[name] for name in row}

    def lines(self) -> Iterator[str]:
        if not self.count:
            yield f"no step took {duration(self._threshold)} or longer"
            return
        kept = "" if self.count == len(self._longest) else f", of which the {len(self._longest):,} longest are shown"
        yield f"{times(self.count, 'stall')} of {duration(self._threshold)} or longer{kept}"
        for stall in self._in_order():
            yield ""
            at = format_time(stall.began_ns).strip()
            who = f"{stall.name} ({stall.task})" if stall.task else f"thread {stall.name}"
            yield from block(
                f"{duration(stall.duration_ns)} at {at}: {who}: {stall.coro}",
                [
                    ("ran", between(stall.start, stall.end) if stall.task else ""),
                    ("spawned at", stall.site),
                    ("garbage", f"{duration(stall.collected_ns)} of it, collecting" if stall.collected_ns else ""),
                    *(("inside", _inside(**kind)) for kind in stall.inside),
                ],
            )
            for text in stall.watched:
                for line in text.splitlines():
                    yield f"{INDENT}{escape(line)}"


def _inside(event: str, count: int, last: str) -> str:
    return f"{event}: {last}" if count == 1 else f"{event}, {count:,} times, the last: {last}"
