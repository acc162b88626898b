"""Task events for the tests of reports: made by hand, with the fields that the tracer gives them."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from aiotrace._reports import Report

FIRST = (1 + 7) << 22
"""An id of a task, as the tracer makes them."""


@dataclass
class FakeEvent:
    """What reports use of an Event."""

    name: str
    timestamp_ns: int
    pid: int = 0
    fields: dict[str, Any] = field(default_factory=dict)
    cpu: int = 0
    comm: str = "<...>"

    def text(self) -> str:
        return " ".join(f"{name}={value}" for name, value in self.fields.items())


def spawn(
    at: int, task: int, name: str = "t", *, parent: int = 0, coro: str = "f (a.py:1)", site: str = "m (a.py:9)"
) -> FakeEvent:
    fields = {"task": task, "parent": parent, "name": name, "coro": coro, "site": site}
    return FakeEvent("task:spawn", at, parent, fields)


def step(began: int, ended: int, task: int, *, ready: int = 0, to: str = "g (a.py:2)", cpu: int = 0) -> FakeEvent:
    fields = {"ready_ns": ready, "duration_ns": ended - began, "awaited": to, "waker": 0}
    return FakeEvent("task:step", ended, task, fields, cpu, f"comm of {task}")


def done(at: int, task: int, result: str = "returned", exception: str = "") -> FakeEvent:
    return FakeEvent("task:done", at, task, {"task": task, "result": result, "exception": exception})


def cancel(at: int, task: int, *, by: int = 0, site: str = "?", message: str = "") -> FakeEvent:
    return FakeEvent("task:cancel", at, by, {"task": task, "by": by, "site": site, "message": message})


def told(what: str, at: int, task: int, place: str | None = None) -> FakeEvent:
    """task:delivered, task:caught, task:swallowed."""
    fields: dict[str, Any] = {"task": task} if place is None else {"task": task, "at": place}
    return FakeEvent(f"task:{what}", at, task, fields)


def logged(at: int, message: str, logger: str = "asyncio") -> FakeEvent:
    return FakeEvent("log:record", at, 1, {"level": 40, "logger": logger, "message": message, "site": "b.py:1"})


def feed(report: Report, *events: FakeEvent) -> list[dict[str, Any]]:
    """All rows of a report on one trace."""
    for event in events:
        report.add(event)  # type: ignore[arg-type]  # a fake
    report.end_part()
    report.finish()
    return list(report.rows())


def text(report: Report) -> str:
    return "\n".join(report.lines())
