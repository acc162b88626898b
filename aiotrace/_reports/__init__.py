"""Reports: what a trace's task events answer. Events in, rows and text out; no file, no terminal.

    events, in the order of time --add--> Report --finish--> rows (for JSON)
                                                        `--> lines (for people)

The laws: **memory is bounded by what is alive at once and by the program's code**, not by the trace: a task that ended
is added to the place that spawned it and forgotten, but for the few that stand out. **What the trace cannot tell is
said**, never guessed: "?" is what a runtime does not know, and "" what the trace does not hold.

Traces are added one after the other, oldest first: a task that the first part of a rotated trace spawned is known in
the second.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Protocol

from .._decode.event import Event


class Report(Protocol):
    """One question."""

    @property
    def wanted(self) -> tuple[str, ...]:
        """Globs of the events that it takes; none are all."""

    @property
    def evidence(self) -> frozenset[str]:
        """Events of which a trace has some if it can answer at all."""

    def add(self, event: Event) -> None:
        """The next event."""

    def end_part(self) -> None:
        """A trace has ended; another may follow."""

    def finish(self) -> None:
        """There is no more."""

    def rows(self) -> Iterator[dict[str, Any]]:
        """What was found, as JSON has it: durations and times in ns."""

    def lines(self) -> Iterator[str]:
        """What was found, as text, control characters escaped."""
