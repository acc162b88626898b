"""--stalls: steps that blocked their loop, and the events that occurred in them.

    events of a thread:  gc:stop  audit:open  stall:*  task:step (written at its end, with its length)
                         `--------- inside ---------'

A callback outside of any task can stall a loop too. If iterations are recorded (loop:iteration,
asyncio), its time is the rest of an iteration after polling and steps.

Reports of the stall watcher, made during a stall, are joined with its step, or are reported alone without steps:

    stall:noticed      stall:stack, kernel_stack      stall:end     task:step
    |-- matched by thread and start time, from any writer ----|     at once after it, in its thread

Where the end of a stall was overwritten, as in a snapshot, later steps of its thread tell that it has ended: then it
took at least as long as it was watched. One that is followed by nothing of its thread lasts to the end of the trace.

Only the last `INSIDE_MAX` events of a thread are kept and counted by name; the time of the garbage collector is the sum
of at most `COLLECTIONS_MAX` of its runs.
"""

from __future__ import annotations

import dataclasses
import heapq
import itertools
from collections import Counter, deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Final

from .._base.terminal_text import escape
from .._decode.event import Event
from .._decode.report_lines import format_time
from ._tasks import Tasks, between
from ._text import INDENT, block, duration, times

SHOWN: Final = 1000
"""The longest are kept."""
INSIDE_MAX: Final = 256
COLLECTIONS_MAX: Final = 4096
WATCHED_MAX: Final = 1000
"""Stalls that a watch has noticed and whose end, or stack, may come: a thread has one at a time."""
SAME_NS: Final = 1_000_000
"""A step begins at the same time for the watch and for the tracer of tasks, but for how their clocks are read."""
KINDS_SHOWN: Final = 6
CALLBACKS: Final = "callbacks of its loop"
CALLBACK: Final = "a callback of its loop"
LASTS: Final = "it had not ended when the trace did"
OVERWRITTEN: Final = "at least so long: its end is not in the trace"
CAUSES: Final = {
    "python": "Python code",
    "c_call": "a call into C that holds the GIL",
    "gc": "garbage collection",
    "gil": "waiting for the GIL, which other threads had",
    "blocked": "a system call or a lock",
    "scheduler": "not scheduled: other processes, or threads, had the processors",
}
"""stall:noticed's and stall:end's."""


@dataclass(slots=True)
class Watched:
    """What a watch saw of a stall."""

    thread: int
    cause: str = ""
    """As far as it could tell, one of CAUSES."""
    at: str = ""
    """The innermost line that is no runtime's own, while it lasted."""
    cpu_ns: int = 0
    """How long it ran, since it was first sampled."""
    delay_ns: int = 0
    """Ready to run, but no processor was free."""
    stack: list[str] = field(default_factory=list)
    """Innermost call first."""


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
    """What a stack would belong to if it came next."""
    last_began_ns: int = 0
    """When its last step began."""
    ended: Stall | None = None
    """A stall of a task whose end the watcher has just reported: its step follows."""

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
    """How long the garbage collector ran during it."""
    inside: list[dict[str, Any]] = field(default_factory=list)
    """The kinds of events that are inside: {"event", "count", "last"}, the last one's text."""
    watched: Watched | None = None


class StallsReport:
    """
    Args:
        threshold_ns: What is at least as long is a stall; and what the recording watched for, if that is shorter.
        chosen_ns: The threshold that a user chose: this alone counts.
    """

    wanted: tuple[str, ...] = ()
    evidence = frozenset({"task:step", "loop:iteration", "stall:noticed", "stall:end"})

    def __init__(self, threshold_ns: int, chosen_ns: int | None = None) -> None:
        self._threshold = threshold_ns if chosen_ns is None else chosen_ns
        self._keeps_watched = chosen_ns is None
        self._tasks = Tasks(lambda task, result, exception: None)
        self._threads: dict[tuple[int, int], _Thread] = {}
        self._watched: dict[tuple[int, int], Watched] = {}
        """By thread and begin."""
        self._lasting: dict[tuple[int, int], tuple[int, Stall]] = {}
        """The same, of those whose end has not come, and in which part they were noticed."""
        self._slots: dict[int, int] = {}
        """The writer in which a task's, or a thread's, last event was."""
        self._last_ns = 0
        self._longest: list[tuple[int, int, Stall]] = []
        self._numbers = itertools.count()
        self._part = 0
        self.count = 0

    def add(self, event: Event) -> None:
        thread = self._threads.get((self._part, event.cpu))
        if thread is None:
            thread = self._threads[self._part, event.cpu] = _Thread()
        name = event.name
        self._last_ns = event.timestamp_ns
        if name == "task:step" and "damaged" not in event.fields:
            thread.last_began_ns = event.timestamp_ns - event.fields["duration_ns"]
        if name != "stall:stack":  # which is written by another thread
            self._slots[event.pid] = event.cpu
        stack_of, thread.stack_of = thread.stack_of, None
        if name == "task:step":
            self._step(thread, event)
        elif name == "loop:iteration":
            self._iterate(thread, event)
        elif name == "ftrace:kernel_stack":
            if stack_of is not None:
                stack_of += [line for line in event.text().splitlines() if line.startswith("=>")]
        elif name.startswith("stall:") and "damaged" not in event.fields:
            self._watch(thread, event)
        elif not name.startswith("task:") or self._tasks.add(event) is None:
            thread.inside.append(event)
            if name == "gc:stop":
                thread.collected.append((event.timestamp_ns, event.fields.get("duration_ns", 0)))

    def _step(self, thread: _Thread, event: Event) -> None:
        task = self._tasks.add(event)
        ended, thread.ended = thread.ended, None
        if task is None:
            return
        length = event.fields["duration_ns"]
        began = event.timestamp_ns - length
        if ended is not None and ended.task == task.id and abs(ended.began_ns - began) <= SAME_NS:
            ended.start, ended.end = task.came_from, task.place
        else:
            thread.steps_ns += length
            if length >= self._threshold:
                where = task.coro, task.site, task.came_from, task.place
                self._keep(thread, Stall(began, length, task.id, task.name, *where))
        thread.clear()

    def _watch(self, thread: _Thread, event: Event) -> None:
        """What a watch has written: of a stall that lasts, or its end."""
        fields = event.fields
        key = fields["thread"], fields["began_ns"]
        watched = self._find_watched(*key)
        watched.cause = fields.get("cause", watched.cause)
        if event.name == "stall:stack":
            watched.at, thread.stack_of = fields["at"], watched.stack
            if key in self._lasting:
                lasting = self._lasting[key][1]
                lasting.duration_ns = max(lasting.duration_ns, event.timestamp_ns - lasting.began_ns)
        elif event.name == "stall:noticed":
            stall = self._stall_of(event, fields["lasted_ns"])
            stall.watched, stall.end = watched, LASTS
            self._lasting[key] = self._part, stall
            if self._keeps_watched:  # in whole milliseconds: it is noticed a little later
                self._threshold = min(self._threshold, stall.duration_ns // 1_000_000 * 1_000_000)
        elif event.name == "stall:end":
            self._lasting.pop(key, None)
            watched.cpu_ns, watched.delay_ns = fields["cpu_ns"], fields["delay_ns"]
            stall = thread.ended = self._stall_of(event, fields["duration_ns"])
            stall.watched = watched
            thread.steps_ns += stall.duration_ns
            if stall.duration_ns >= self._threshold:
                self._keep(thread, stall)
            if not stall.task:
                thread.clear()

    def _find_watched(self, thread: int, began_ns: int) -> Watched:
        """The same for all that is written of a stall: a stack may come after the end."""
        watched = self._watched.get((thread, began_ns))
        if watched is None:
            if len(self._watched) >= WATCHED_MAX:
                oldest = next(iter(self._watched))
                del self._watched[oldest]
                self._lasting.pop(oldest, None)
            watched = self._watched[thread, began_ns] = Watched(thread)
        return watched

    def _stall_of(self, event: Event, length: int) -> Stall:
        began, id = event.fields["began_ns"], event.fields["task"]
        if not id:
            return Stall(began, length, 0, event.comm, CALLBACK, "", "?", "?")
        task = self._tasks.live.get(id)
        if task is None:
            return Stall(began, length, id, event.comm, "?", "?", "?", "?")
        return Stall(began, length, id, task.name, task.coro, task.site, task.place, "?")

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
        self.count += 1
        heapq.heappush(self._longest, (stall.duration_ns, -next(self._numbers), stall))
        if len(self._longest) > SHOWN:
            heapq.heappop(self._longest)

    def end_part(self) -> None:
        for (thread, _), (part, stall) in self._lasting.items():
            if part != self._part:
                continue
            if self._has_ended(thread, stall):
                stall.end = OVERWRITTEN
            else:
                stall.duration_ns = max(stall.duration_ns, self._last_ns - stall.began_ns)
        self._slots.clear()
        self._tasks.end_part()
        self._threads.clear()
        self._part += 1

    def _has_ended(self, thread: int, stall: Stall) -> bool:
        """Whether something of the stalled thread began after the stall."""
        after = stall.began_ns + SAME_NS
        for slot in {self._slots.get(thread), self._slots.get(stall.task)} - {None}:
            found = self._threads.get((self._part, slot or 0))
            if found is not None and found.last_began_ns > after:
                return True
        return any(other == thread and began > after for other, began in self._watched)

    def finish(self) -> None:
        for _, stall in self._lasting.values():
            if stall.duration_ns >= self._threshold:
                self._keep(_Thread(), stall)
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
            watched = stall.watched if stall.watched is not None else Watched(0)
            least = "at least " if stall.end in (LASTS, OVERWRITTEN) else ""
            yield from block(
                f"{least}{duration(stall.duration_ns)} at {at}: {who}: {stall.coro}",
                [
                    ("seen at", watched.at),
                    ("cause", _cause(watched)),
                    ("ran", _way(stall)),
                    ("spawned at", stall.site if stall.site != "?" else ""),
                    ("garbage", f"{duration(stall.collected_ns)} of it, collecting" if stall.collected_ns else ""),
                    *(("inside", _inside(**kind)) for kind in stall.inside),
                ],
            )
            for line in watched.stack:
                yield f"{INDENT}{escape(line)}"


def _way(stall: Stall) -> str:
    if stall.end in (LASTS, OVERWRITTEN):
        return stall.end
    return between(stall.start, stall.end) if stall.task and (stall.start, stall.end) != ("?", "?") else ""


def _cause(watched: Watched) -> str:
    cause = CAUSES.get(watched.cause, "")
    if not watched.cpu_ns:
        return cause
    delay = f", {duration(watched.delay_ns)} ready but on none" if watched.delay_ns else ""
    return f"{cause or 'not known'} ({duration(watched.cpu_ns)} on a processor{delay})"


def _inside(event: str, count: int, last: str) -> str:
    return f"{event}: {last}" if count == 1 else f"{event}, {count:,} times, the last: {last}"
