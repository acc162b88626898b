"""What a trace holds, in numbers: events by kind and by writer, and what is missing.

The law: **what nobody counted is said apart**: a place where some events are missing is no number of events.
This module counts nothing itself.
"""

from __future__ import annotations

from dataclasses import dataclass, field

__all__ = ["EventCount", "Loss", "TraceStatistics", "WriterCount"]


@dataclass(slots=True)
class Loss:
    """Events of one CPU that are missing."""

    buffer: str
    cpu: int
    count: int = 0
    """Events that are counted."""
    uncounted: int = 0
    """Places where events are missing and nobody knows how many."""


@dataclass(slots=True)
class EventCount:
    """What a trace holds of one kind of event."""

    count: int = 0
    bytes: int = 0
    """Of payload."""


@dataclass(slots=True)
class WriterCount:
    """What a trace holds of one writer (CPU)."""

    buffer: str
    cpu: int
    size: int
    """Bytes in the file."""
    pages: int = 0
    count: int = 0
    bytes: int = 0
    """Of payload."""
    lost: int = 0
    uncounted_losses: int = 0
    first_ns: int | None = None
    last_ns: int | None = None


@dataclass(slots=True)
class TraceStatistics:
    """What a trace holds."""

    path: str
    size: int
    """Bytes of the file."""
    clock: str
    writers: list[WriterCount] = field(default_factory=list)
    events: dict[str, EventCount] = field(default_factory=dict)
    damage: int = 0

    @property
    def count(self) -> int:
        return sum(writer.count for writer in self.writers)

    @property
    def lost(self) -> int:
        """Events that are known to be missing."""
        return sum(writer.lost for writer in self.writers)

    @property
    def first_ns(self) -> int | None:
        return min((w.first_ns for w in self.writers if w.first_ns is not None), default=None)

    @property
    def last_ns(self) -> int | None:
        return max((w.last_ns for w in self.writers if w.last_ns is not None), default=None)
