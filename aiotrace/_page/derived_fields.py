"""Derived fields: what a filter may ask of an event beside what its record holds.

    task:step   delay_ns   from ready to running: how long the task waited for its turn; on trio nobody knows

They are in no record and cost no event anything: they are worked out where a filter looks at an event's fields, from
these and the time, while the program runs (`-f`, `-R`) and when a trace is read (`report -F`). Where a value cannot be
told the event has no such field, and a filter that asks for it does not choose the event.

A filter in the program looks just before the record gets its time, so what is read later is some microseconds more.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final

__all__ = ["ALL", "DERIVED", "with_derived"]

Derive = Callable[[Mapping[str, Any], int], int | None]
"""From an event's fields and its time in nanoseconds; None: it cannot be told."""


def _delay(fields: Mapping[str, Any], time_ns: int) -> int | None:
    """The record is written at the end of the step."""
    ready, duration = fields.get("ready_ns"), fields.get("duration_ns")
    if not isinstance(ready, int) or not isinstance(duration, int) or not ready:
        return None
    return max(0, time_ns - duration - ready)


DERIVED: Final[Mapping[str, Mapping[str, Derive]]] = {"task:step": {"delay_ns": _delay}}
"""For each event ("system:event") that has any, their names."""
ALL: Final = frozenset(name for fields in DERIVED.values() for name in fields)


def with_derived(event: str, fields: Mapping[str, Any], time_ns: int) -> Mapping[str, Any]:
    """An event's fields and what is derived from them; a field of the record comes before one that is derived."""
    derived = DERIVED.get(event)
    if derived is None:
        return fields
    found = {name: derive(fields, time_ns) for name, derive in derived.items()}
    return {**{name: value for name, value in found.items() if value is not None}, **fields}
