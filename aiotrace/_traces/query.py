"""Which events a reader wants: by name, time, CPU, task and fields.

    Query --ids of the names, tasks, times--> RecordFilter     before an event is made
          --where--> `event_filter`                             after it

Invariant (tests/traces/test_trace.py): a loss is always accepted, whatever the query.
"""

from __future__ import annotations

import fnmatch
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import TypedDict

from .._decode.event import Event
from .._decode.event_format import EventFormat
from .._page.derived_fields import ALL as DERIVED
from .._page.derived_fields import with_derived
from .._page.filter import Filter, compile_filter
from .._page.walk import RecordFilter

__all__ = ["Query", "matches"]


class Limits(TypedDict):
    """See `Query`."""

    start_ns: int | None
    end_ns: int | None
    cpus: frozenset[int] | None
    pids: frozenset[int] | None


@dataclass(frozen=True, slots=True)
class Query:
    """The arguments of `Trace.events`, checked. What is None or empty does not restrict anything."""

    names: tuple[str, ...] = ()
    """Globs; see `matches`."""
    start_ns: int | None = None
    end_ns: int | None = None
    """Included."""
    cpus: frozenset[int] | None = None
    pids: frozenset[int] | None = None
    where: Filter | None = None

    @classmethod
    def of(
        cls,
        names: Iterable[str] | str = (),
        start_ns: int | None = None,
        end_ns: int | None = None,
        cpus: Iterable[int] | None = None,
        pids: Iterable[int] | None = None,
        where: str | Filter | None = None,
    ) -> Query:
        """
        Raises:
            ConfigurationError: `where` is not a valid filter.
        """
        return cls(
            (names,) if isinstance(names, str) else tuple(names),
            start_ns,
            end_ns,
            None if cpus is None else frozenset(cpus),
            None if pids is None else frozenset(pids),
            compile_filter(where) if isinstance(where, str) else where,
        )

    def limits(self) -> Limits:
        """The keyword arguments that `Trace.events`, `follow` and `text` have in common."""
        return {"start_ns": self.start_ns, "end_ns": self.end_ns, "cpus": self.cpus, "pids": self.pids}

    def record_filter(self, formats: Mapping[int, EventFormat]) -> RecordFilter:
        """The part that is decided before an event is made.

        Args:
            formats: The trace's events by id.
        """
        ids = None
        if self.names:
            ids = frozenset(id for id, format in formats.items() if any(matches(glob, format) for glob in self.names))
        return RecordFilter(ids, self.pids, self.start_ns, self.end_ns)

    def event_filter(self) -> Callable[[Event], bool] | None:
        """The part that needs the event: whether its fields pass `where`; None if all do."""
        test = self.where
        if test is None:
            return None
        if test.fields.isdisjoint(DERIVED):
            return lambda event: event.is_loss or test(event.fields, event)

        # Only for a filter that names a derived field: they cost a lookup each.
        return lambda event: event.is_loss or test(with_derived(event.name, event.fields, event.timestamp_ns), event)


def matches(pattern: str, format: EventFormat) -> bool:
    """Whether a glob matches an event: "system:event", or, without a colon, its system or its name.

    aiotrace's names have no dots, so "audit:socket.connect" matches audit:socket_connect.
    """
    if "." in pattern and matches(pattern.replace(".", "_"), format):
        return True
    if ":" in pattern:
        return fnmatch.fnmatchcase(format.full_name, pattern)
    return fnmatch.fnmatchcase(format.name, pattern) or fnmatch.fnmatchcase(format.system, pattern)
