"""The counts of a trace: events by name and by writer, and losses.

Losses of unknown size are counted apart, as places: a number of events never includes a guess.
"""

from __future__ import annotations

from dataclasses import dataclass, field

__all__ = ["EventCount", "Loss", "TraceStatistics", "WriterCount"]


@dataclass(slots=True)
class Loss:
    """Missing events of one writer (CPU)."""

    buffer: str
    """The instance; "" for the main one."""
    cpu: int
    count: int = 0
    """Events known to be missing."""
    uncounted: int = 0
    """Places where an unknown number of events is missing."""


@dataclass(slots=True)
class EventCount:
    """All events of one name."""

    count: int = 0
    """Events."""
    bytes: int = 0
    """Bytes of payload."""


@dataclass(slots=True)
class WriterCount:
    """All events of one writer (CPU)."""

    buffer: str
    """The instance; "" for the main one."""
    cpu: int
    size: int
    """Bytes in the file."""
    pages: int = 0
    """Pages read."""
    count: int = 0
    """Events."""
    bytes: int = 0
    """Bytes of payload."""
    lost: int = 0
    """Events known to be missing."""
    uncounted_losses: int = 0
    """Places where an unknown number of events is missing."""
    first_ns: int | None = None
    """Time of the first event in nanoseconds of the trace's clock; None if there is none."""
    last_ns: int | None = None
    """Time of the last event."""


@dataclass(slots=True)
class TraceStatistics:
    """The counts of a whole trace."""

    path: str
    size: int
    """Bytes of the file."""
    clock: str
    """"" if it is not known."""
    writers: list[WriterCount] = field(default_factory=list)
    events: dict[str, EventCount] = field(default_factory=dict)
    """By name, `system:event`."""
    damage: int = 0
    """Places that could not be read."""

    @property
    def count(self) -> int:
        """Events of all writers."""
        return sum(writer.count for writer in self.writers)

    @property
    def lost(self) -> int:
        """Events known to be missing."""
        return sum(writer.lost for writer in self.writers)

    @property
    def first_ns(self) -> int | None:
        """Time of the first event in nanoseconds of the trace's clock; None if there is none."""
        return min((w.first_ns for w in self.writers if w.first_ns is not None), default=None)

    @property
    def last_ns(self) -> int | None:
        """Time of the last event."""
        return max((w.last_ns for w in self.writers if w.last_ns is not None), default=None)
