"""The lines that `report` prints: events of one or more traces, merged by time, as text or as JSON.

    one trace, plain        Trace.text, which formats many lines in one call
    anything else           events --heap--> a line for each

A line is complete when it is yielded. This module prints nothing and knows no option.
"""

from __future__ import annotations

import enum
import heapq
import json
import math
import os
from collections.abc import Callable, Iterator
from typing import Any

from .._base.terminal_text import escape
from .._traces.query import Query
from ..decode import Event, Trace, format_line

__all__ = ["Form", "lines_of", "to_json"]


class Form(enum.Enum):
    """How an event is written."""

    TEXT = enum.auto()
    """In the layout of `trace-cmd report`, fields by the event's print fmt."""
    RAW = enum.auto()
    """The same layout, fields as name=value."""
    JSON = enum.auto()
    """A JSON object."""


def lines_of(traces: list[Trace], query: Query, form: Form, *, follow: bool = False) -> Iterator[str]:
    """The chosen events in the order of time: one line or more at a time, each ended by a newline.

    Args:
        follow: Continue while the file grows; only with one trace.
    """
    is_plain = form is Form.TEXT and query.where is None and not follow
    if is_plain and len(traces) == 1 and not any(traces[0].buffers):
        return traces[0].text(query.names, **query.limits())

    line_of = _lines_in(form, traces)
    if len(traces) > 1:
        return (line_of(trace, event) for trace, event in _merged(traces, query))
    trace = traces[0]
    read = trace.follow if follow else trace.events
    return (line_of(trace, event) for event in read(query.names, **query.limits(), where=query.where))


def _merged(traces: list[Trace], query: Query) -> Iterator[tuple[Trace, Event]]:
    """Events of equal time are in the order of the traces."""
    streams = [
        _keyed(trace, order, trace.events(query.names, **query.limits(), where=query.where))
        for order, trace in enumerate(traces)
    ]
    return ((trace, event) for _, _, trace, event in heapq.merge(*streams, key=lambda item: item[:2]))


def _keyed(trace: Trace, order: int, events: Iterator[Event]) -> Iterator[tuple[int, int, Trace, Event]]:
    return ((event.timestamp_ns, order, trace, event) for event in events)


def _lines_in(form: Form, traces: list[Trace]) -> Callable[[Trace, Event], str]:
    """A function that returns an event's line, labelled with its file if there are several, and with its instance."""
    if form is Form.JSON:
        if len(traces) > 1:
            return lambda trace, event: to_json(event, os.fsdecode(trace.path))
        return lambda trace, event: to_json(event)

    labels = {id(trace): escape(os.path.basename(trace.path)) for trace in traces}
    label_width = max(map(len, labels.values())) + 2 if len(traces) > 1 else 0
    instances = [escape(name) for trace in traces for name in trace.buffers if name]
    instance_width = max(map(len, instances)) + 2 if instances else 0

    def line_of(trace: Trace, event: Event) -> str:
        label = f"{labels[id(trace)] + ':':<{label_width}}" if label_width else ""
        name = f"{escape(event.buffer)}:" if event.buffer else ""
        instance = f"{name:<{instance_width}}" if instance_width else ""
        return f"{label}{instance}{format_line(event, raw=form is Form.RAW)}\n"

    return line_of


def to_json(event: Event, path: str | None = None) -> str:
    """A line. Bytes are in hex; numbers that JSON does not have (nan, inf) are strings."""
    value: dict[str, Any] = {
        "timestamp_ns": event.timestamp_ns,
        "name": event.name,
        "cpu": event.cpu,
        "pid": event.pid,
        "comm": event.comm,
        "fields": {name: _plain(field) for name, field in event.fields.items()},
    }
    if event.buffer:
        value["buffer"] = event.buffer
    if path is not None:
        value["file"] = path
    return json.dumps(value, separators=(",", ":")) + "\n"


def _plain(value: Any) -> Any:
    if isinstance(value, bytes):
        return value.hex()
    if isinstance(value, tuple):
        return [_plain(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return value
