"""Derived fields: values for filters that are computed from an event's fields and time.

    task:step   delay_ns   from ready to running: how long the task waited for its turn; unknown on trio

They are not in records and cost nothing per event. They are computed when a filter is evaluated, while the program runs
(`-f`, `-R`) and when a trace is read (`report -F`). If a value is unknown the event does not have the field, and a
filter that uses it does not match.

A filter in the program is evaluated just before the record gets its time, so a reader computes some microseconds more.
"""

from __future__ import annotations

TYPE_CHECKING = False  # importing it from `typing` would double the time of `import aiotrace`
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from typing import Any, Final

    Derive = Callable[[Mapping[str, Any], int], int | None]
    """Computes a value from an event's fields and its time in nanoseconds; None: unknown."""

__all__ = ["ALL", "DERIVED", "with_derived"]


def _delay(fields: Mapping[str, Any], time_ns: int) -> int | None:
    """The record is written at the end of the step."""
    ready, duration = fields.get("ready_ns"), fields.get("duration_ns")
    if not isinstance(ready, int) or not isinstance(duration, int) or not ready:
        return None
    return max(0, time_ns - duration - ready)


DERIVED: Final[Mapping[str, Mapping[str, Derive]]] = {"task:step": {"delay_ns": _delay}}
"""The derived fields of each event ("system:event") that has any."""
ALL: Final = frozenset(name for fields in DERIVED.values() for name in fields)


def with_derived(event: str, fields: Mapping[str, Any], time_ns: int) -> Mapping[str, Any]:
    """An event's fields and those derived from them; a field of the record takes precedence."""
    derived = DERIVED.get(event)
    if derived is None:
        return fields
    found = {name: derive(fields, time_ns) for name, derive in derived.items()}
    return {**{name: value for name, value in found.items() if value is not None}, **fields}
