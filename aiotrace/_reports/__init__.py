"""Analyses of a trace's task events. Events in, rows and text out; no file, no terminal.

    events, in the order of time --add--> Report --finish--> rows (for JSON)
                                                        `--> lines (for people)

Memory is bounded by the tasks alive at once and by the program's code, not by the trace: a task
that ended is added to the counts of its spawn site and forgotten, except for a few outliers.
Nothing is guessed: "?" is what a runtime does not know, "" what the trace does not contain.

Traces are added one after the other, oldest first: a task that was spawned in the first part of a
rotated trace is known in the second.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Protocol

from .._decode.event import Event


class Report(Protocol):
    """One analysis."""

    @property
    def wanted(self) -> tuple[str, ...]:
        """Globs of the events to add; empty for all."""

    @property
    def evidence(self) -> frozenset[str]:
        """Names of events of which at least one is needed for a result."""

    def add(self, event: Event) -> None:
        """Add the next event."""

    def end_part(self) -> None:
        """The end of one trace; another may follow."""

    def finish(self) -> None:
        """The end of all traces."""

    def rows(self) -> Iterator[dict[str, Any]]:
        """The result for JSON; durations and times are in nanoseconds."""

    def lines(self) -> Iterator[str]:
        """The result as text, control characters escaped."""
