"""--cancellations: who requested each and where, when it was delivered, and its outcome.

    cancel --------> delivered --------> caught --------> swallowed | done
     `- who, where    `- raised in it     `- where         `- where

Outcomes, worst first; cancellations that differ only in times are grouped, with the last of them as the example:

    swallowed           the task continues, or ended otherwise, and the request was not withdrawn
    probably swallowed  on trio, which does not report it: the task was waiting inside of the scope that was
                        cancelled, its parent with it, and returned nevertheless
    pending             the trace ends before the cancellation is delivered, or while the task cleans up
    too late            the task ended before it was delivered
    raised              another exception took its place
    overdue             the task did not obey in time (cancellation:overdue, if that was watched), but later, or not yet
    asked again         another request, from elsewhere, was made before it had ended
    taken back          caught by the requester, as a timeout does, or the scope ended within the task
    unknown             the end of the task is not in the trace
    cancelled           as it should be

A request from the same line before the last one has ended is the same request: anyio repeats its own.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final

from .._decode.event import Event
from .._decode.report_lines import format_time
from ._tasks import EVENTS, LIVE, UNKNOWN, Task, Tasks
from ._text import block, duration, times

OUTCOMES: Final = (
    "swallowed",
    "probably swallowed",
    "pending",
    "too late",
    "raised",
    "overdue",
    "asked again",
    "taken back",
    UNKNOWN,
    "cancelled",
)
_TOGETHER_NS: Final = 1_000_000
"""Nanoseconds within which events about the tasks of one scope arrive."""
_NEVER: Final = -1


@dataclass(slots=True)
class _Request:
    """A requested cancellation."""

    at_ns: int
    by: str
    site: str
    message: str
    place: str
    """Where the task waited then; "" if it did not wait."""
    delivered_ns: int = _NEVER
    """After how long."""
    caught: str = ""
    swallowed: str = ""
    overdue_ns: int = _NEVER
    """After how long it was still there."""
    overdue: str = ""
    """Where it was then."""


@dataclass(slots=True)
class _Kind:
    """Cancellations that are the same but for their times."""

    request: _Request
    """The last one."""
    task: str
    parent: str
    count: int = 0
    delivered_ns: int = _NEVER
    """The longest time until delivery."""
    ended_ns: int = _NEVER
    """The longest time from the request to the end of the task."""
    ended: str = ""


_Key = tuple[str, str, str, str, str, str]
"""(outcome, coroutine, spawned at, requested at, caught at, swallowed at)."""


class CancellationsReport:
    wanted = (*EVENTS, "task:cancel", "task:delivered", "task:caught", "task:swallowed", "cancellation:overdue")
    evidence = frozenset({"task:cancel", "task:spawn", "task:done"})

    def __init__(self) -> None:
        self._tasks = Tasks(self._ended)
        self._open: dict[int, _Request] = {}
        self._kinds: dict[_Key, _Kind] = {}
        self.count = 0

    def add(self, event: Event) -> None:
        fields = event.fields
        if "damaged" in fields:
            return
        match event.name:
            case "task:cancel":
                self._ask(event, fields)
            case "task:delivered" | "task:caught" | "task:swallowed":
                task = self._tasks.find(fields["task"], event)
                request = self._open.get(task.id)
                if request is None:  # requested before the trace began, or lost
                    request = self._open[task.id] = _Request(event.timestamp_ns, "?", "?", "", task.place)
                    self.count += 1
                if event.name == "task:delivered":
                    request.delivered_ns = event.timestamp_ns - request.at_ns
                elif event.name == "task:caught":
                    request.caught = fields["at"]
                else:
                    request.swallowed = fields["at"]
            case "cancellation:overdue":
                self._overdue(event, fields)
            case _:
                self._tasks.add(event)

    def _overdue(self, event: Event, fields: dict[str, Any]) -> None:
        task = self._tasks.find(fields["task"], event)
        request = self._open.get(task.id)
        if request is None:
            by = self._tasks.name_of(fields["by"]) or "?"
            request = self._open[task.id] = _Request(fields["requested_ns"], by, fields["site"], "", task.place)
            self.count += 1
        request.overdue = fields["at"]
        request.overdue_ns = event.timestamp_ns - fields["requested_ns"]

    def _ask(self, event: Event, fields: dict[str, Any]) -> None:
        task = self._tasks.find(fields["task"], event)
        before = self._open.get(task.id)
        if before is not None:
            if before.site == fields["site"] and not before.caught:
                return
            self._close(task, before, "taken back" if before.caught else "asked again", "")
        by = self._tasks.name_of(fields["by"]) or "?"
        place = "" if fields["by"] == task.id else task.place
        self._open[task.id] = _Request(event.timestamp_ns, by, fields["site"], fields["message"], place)
        self.count += 1

    def _ended(self, task: Task, result: str, exception: str) -> None:
        request = self._open.pop(task.id, None)
        if request is not None:
            self._close(task, request, self._outcome(task, request, result, exception), f"{result} {exception}".strip())

    def _outcome(self, task: Task, request: _Request, result: str, exception: str) -> str:
        if result in ("cancelled", UNKNOWN):
            return result
        if result == LIVE:
            return "taken back" if request.caught else "pending"
        if task.is_trio and result == "raised":  # a BaseExceptionGroup is one of Cancelled, from a nursery
            return "cancelled" if exception == "BaseExceptionGroup" else "raised"
        if task.is_trio:
            return "probably swallowed" if self._is_inside(task, request) else "taken back"
        if request.delivered_ns == _NEVER:
            return "too late"
        return "raised" if result == "raised" else "taken back"

    def _is_inside(self, task: Task, request: _Request) -> bool:
        """Whether the whole task was cancelled: it waited, and its parent was cancelled by the same call."""
        above = self._open.get(task.parent)
        return (
            above is not None
            and request.place not in ("", "?")
            and above.site == request.site
            and abs(above.at_ns - request.at_ns) < _TOGETHER_NS
        )

    def _close(self, task: Task, request: _Request, outcome: str, ended: str) -> None:
        if request.swallowed:
            outcome = "swallowed"
        elif request.overdue and outcome in ("pending", "taken back", UNKNOWN, "cancelled"):
            outcome = "overdue"
        key = outcome, task.coro, task.site, request.site, request.caught, request.swallowed
        kind = self._kinds.get(key)
        if kind is None:
            kind = self._kinds[key] = _Kind(request, task.who, task.parent_name)
        kind.count += 1
        kind.request, kind.task, kind.parent = request, task.who, task.parent_name
        kind.delivered_ns = max(kind.delivered_ns, request.delivered_ns)
        if ended:
            kind.ended = ended
            kind.ended_ns = max(kind.ended_ns, task.seen_ns - request.at_ns)

    def end_part(self) -> None:
        self._tasks.end_part()

    def finish(self) -> None:
        self._tasks.finish()

    def _sorted(self) -> list[tuple[_Key, _Kind]]:
        return sorted(self._kinds.items(), key=lambda item: (OUTCOMES.index(item[0][0]), -item[1].count))

    def rows(self) -> Iterator[dict[str, Any]]:
        for (outcome, coro, spawned, site, caught, swallowed), kind in self._sorted():
            yield {
                "outcome": outcome,
                "count": kind.count,
                "coro": coro,
                "spawned_at": spawned,
                "requested_at": site,
                "caught_at": caught,
                "swallowed_at": swallowed,
                "overdue_at": kind.request.overdue,
                "delivered_after_ns": None if kind.delivered_ns == _NEVER else kind.delivered_ns,
                "ended_after_ns": None if kind.ended_ns == _NEVER else kind.ended_ns,
                "ended": kind.ended,
                "last": {
                    "task": kind.task,
                    "by": kind.request.by,
                    "message": kind.request.message,
                    "at_ns": kind.request.at_ns,
                    "waited_at": kind.request.place,
                },
            }

    def lines(self) -> Iterator[str]:
        if not self.count:
            yield "no cancellation was asked for"
            return
        counts = dict.fromkeys(OUTCOMES, 0)
        for key, kind in self._kinds.items():
            counts[key[0]] += kind.count
        told = ", ".join(f"{count:,} {outcome}" for outcome, count in counts.items() if count)
        yield f"{times(self.count, 'cancellation')}: {told}"
        for key, kind in self._sorted():
            yield ""
            yield from _lines(key, kind)


def _lines(key: _Key, kind: _Kind) -> Iterator[str]:
    outcome, coro, spawned, site, caught, swallowed = key
    request, many = kind.request, kind.count > 1
    longest = ", at the longest" if many else ""
    message = f": {request.message!r}" if request.message else ""
    return block(
        f"{outcome}{f' x {kind.count:,}' if many else ''}: {kind.task}{' and others' if many else ''}: {coro}",
        [
            ("asked for by", f"{request.by}, at {site}{message}"),
            ("at", format_time(request.at_ns).strip()),
            ("while at", request.place),
            ("delivered", f"after {duration(kind.delivered_ns)}{longest}" if kind.delivered_ns >= 0 else ""),
            ("caught at", caught),
            ("swallowed at", swallowed),
            ("still there", f"{duration(request.overdue_ns)} later, at {request.overdue}" if request.overdue else ""),
            ("ended", f"{kind.ended}, {duration(kind.ended_ns)} after the request{longest}" if kind.ended else ""),
            ("spawned at", f"{spawned}{f', by {kind.parent}' if kind.parent else ''}"),
        ],
    )
