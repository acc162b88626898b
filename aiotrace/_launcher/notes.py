"""What is printed when a recording ends: by the program that has it, or by the recorder that reads its arena."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from .._recording.statistics import Statistics
from .plan import FILE, file_of


@dataclass(frozen=True, slots=True)
class SinkEnd:
    """What became of one sink."""

    url: str
    state: str
    delivered: int
    """Events that it acknowledged."""
    last_error: BaseException | None

    @property
    def name(self) -> str:
        return file_of(self.url) if self.url.startswith(FILE) else self.url


@dataclass(frozen=True, slots=True)
class EndNotes:
    """What became of one process's events."""

    sinks: Sequence[SinkEnd]
    """None: a flight recorder, which loses only what it refuses."""
    dropped: int
    overrun: int
    abandoned: int
    snapshot_paths: Sequence[str]
    causes: Mapping[str, int] = field(default_factory=dict)
    """Dropped events by cause, where that is known."""

    @classmethod
    def of(cls, statistics: Statistics, urls: Sequence[str], snapshot_paths: Sequence[str]) -> EndNotes:
        """Of a recording in this process."""
        sinks = [
            SinkEnd(url, sink.state, sink.events_delivered, sink.last_error)
            for url, sink in zip(urls, statistics.sinks, strict=False)
        ]
        return cls(
            sinks,
            statistics.events_dropped,
            statistics.events_overrun,
            statistics.events_abandoned,
            snapshot_paths,
            statistics.dropped,
        )

    def lines(self, *, all: bool) -> Iterator[str]:
        """
        Args:
            all: Whether to report what went well too.
        """
        for sink in self.sinks:
            if sink.state != "finished":
                why = f" ({sink.last_error})" if sink.last_error is not None else ""
                complete = f"; `aiotrace restore {sink.name}` completes it" if sink.url.startswith(FILE) else ""
                yield f"{sink.name}: unfinished after {sink.delivered} events{why}{complete}"
            elif all:
                yield f"{sink.name}: {sink.delivered} events"

        if self.dropped or (self.sinks and (self.overrun or self.abandoned)):
            yield self._lost()

        if all:
            yield from (f"{path}: a snapshot" for path in self.snapshot_paths)
            if not self.sinks and not self.snapshot_paths:
                yield "no snapshot was taken, and what the buffer held is gone with the program"

    def _lost(self) -> str:
        causes = ", ".join(f"{count} {cause}" for cause, count in self.causes.items() if count)
        refused = f"{self.dropped} refused{f' ({causes})' if causes else ''}"
        counts = [
            (self.dropped, refused),
            (self.overrun, f"{self.overrun} overwritten by newer ones"),
            (self.abandoned, f"{self.abandoned} given up with a sink"),
        ]
        total = self.dropped + self.overrun + self.abandoned
        return f"events lost: {total}: {', '.join(text for count, text in counts if count)}"
