"""What is printed when a recording ends: by the program that has it, or by the recorder that reads its arena."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
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
    process: str = ""
    """How the process ended; empty if it has not yet."""
    arena: str = ""
    """The arena that still has what a sink did not take, or empty."""

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
        end = f"; {self.process}" if self.process else ""
        for sink in self.sinks:
            if sink.state != "finished":
                yield f"{self._unfinished(sink)}{end}"
            elif all:
                yield f"{sink.name}: {sink.delivered} events{end}"

        if self.dropped or (self.sinks and (self.overrun or self.abandoned)):
            yield self._lost()

        if all:
            yield from (f"{path}: a snapshot{end}" for path in self.snapshot_paths)
            if not self.sinks and not self.snapshot_paths:
                yield f"no snapshot was taken, and what the buffer held is gone with the program{end}"

    def _unfinished(self, sink: SinkEnd) -> str:
        why = f" ({sink.last_error})" if sink.last_error is not None else ""
        text = f"{sink.name}: unfinished after {sink.delivered} events{why}"
        if not sink.url.startswith(FILE):
            return f"{text}; the others are in {self.arena}" if self.arena else text
        if self.arena and not os.path.lexists(sink.name):
            return (
                f"{text}; the others are in {self.arena}: `aiotrace restore {self.arena} -o FILE` makes a trace of them"
            )
        kept = f"the others are in {self.arena}, and " if self.arena else ""
        return f"{text}; {kept}`aiotrace restore {sink.name}` completes it"

    def _lost(self) -> str:
        causes = ", ".join(f"{count} {cause}" for cause, count in self.causes.items() if count)
        refused = f"{self.dropped} refused{f' ({causes})' if causes else ''}"
        counts = [
            (self.dropped, refused),
            (self.overrun, f"{self.overrun} overwritten by newer ones"),
            (self.abandoned, f"{self.abandoned} given up with a sink"),
        ]
        total = self.dropped + self.overrun + self.abandoned
        whose = f"{self.sinks[0].name}: " if self.process and self.sinks else ""
        return f"{whose}events lost: {total}: {', '.join(text for count, text in counts if count)}"


def describe_end(pid: int, status: int) -> str:
    """How a process ended.

    Args:
        status: As `os.waitpid` returns it.
    """
    code = os.waitstatus_to_exitcode(status)
    if code >= 0:
        return f"process {pid} exited with status {code}"
    core = ", with a core dump" if os.WCOREDUMP(status) else ""
    return f"process {pid} was killed by {_signal_name(-code)}{core}"


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:  # a real-time signal
        return f"signal {number}"


def tell(*lines: str) -> None:
    """Print to the stderr that the process began with, if it is still there."""
    with contextlib.suppress(OSError, ValueError, AttributeError):
        for line in lines:
            print(f"aiotrace record: {line}", file=sys.__stderr__)
        sys.__stderr__.flush()  # type: ignore[union-attr]  # None is an AttributeError
