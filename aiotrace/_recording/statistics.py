"""The statistics of a recording: its ledger, its pages, its sinks, and the time that producers waited.

Invariant (held by tests/recording/test_recording.py): `calls = written + dropped`, and
`written = delivered + overrun + abandoned + in flight`, exactly and at any moment.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from .._budget.statistics import BudgetStatistics


@dataclass(frozen=True, slots=True)
class SinkStatistics:
    """One sink's account, since it was attached: `offered = delivered + missed + abandoned + in flight`."""

    name: str
    state: str
    """starting, running, failed (it will be tried again), finished, detached."""
    quota: int
    """Pages that it may hold."""
    on_full: str
    pages_offered: int
    pages_acknowledged: int
    events_offered: int
    events_delivered: int
    """Acknowledged by this sink."""
    events_missed: int
    """Not offered, because the sink held its quota and has `on_full="skip"`."""
    events_abandoned: int
    """Given up with the sink: it was detached, or did not finish in time."""
    events_in_flight: int
    failures: int
    """How often it raised."""
    last_error: BaseException | None


@dataclass(frozen=True, slots=True)
class WriterStatistics:
    """One writer slot's account."""

    writer: int
    written: int
    dropped: int
    overrun: int


@dataclass(frozen=True, slots=True)
class Statistics:
    """A recording's account, in events unless said otherwise.

    Exactly: `calls = written + dropped`, and `written = delivered + overrun + abandoned + in flight`.
    """

    events_written: int
    events_delivered: int
    """Acknowledged by at least one sink."""
    events_overrun: int
    """Overwritten in the ring by newer ones (drop_oldest)."""
    events_dropped: int
    """Refused."""
    events_abandoned: int
    """Given up with the sinks that held them, or never offered to one."""
    events_in_flight: int
    """Written, and neither delivered nor lost yet."""
    events_cut: int
    """Written with a string that was too long and was cut."""
    dropped: Mapping[str, int]
    """Refused events by cause: no_page, reentrant, wrong_type, too_long, fork."""
    pages_total: int
    pages_free: int
    pages_filling: int
    pages_full: int
    pages_in_flight: int
    pages_allocated: int
    """Pages whose memory was ever used: stops growing after the warm-up."""
    pages_recycled: int
    """How often a page was returned to the pool."""
    page_size: int
    """Bytes."""
    sends_waited: int
    """Calls of `send` that waited for a page."""
    send_wait_ns: int
    """Total nanoseconds that they waited."""
    writers: tuple[WriterStatistics, ...]
    sinks: tuple[SinkStatistics, ...]
    failure: Exception | None
    """The last exception of the reader, which was restarted."""
    snapshots: int = 0
    """Snapshots that were taken."""
    snapshots_skipped: int = 0
    """Requests by triggers and signals that came too soon after another snapshot and are not covered by it."""
    snapshots_failed: int = 0
    """Snapshots of triggers and signals that could not be written; a warning said why."""
    budget: BudgetStatistics | None = None
    """None if the recording has no budget."""

    @property
    def calls(self) -> int:
        """Event calls while the event was selected."""
        return self.events_written + self.events_dropped

    @property
    def events_lost(self) -> int:
        """Events that no sink has received or will receive."""
        return self.events_overrun + self.events_dropped + self.events_abandoned

    def __str__(self) -> str:
        dropped = ", ".join(f"{count} {cause}" for cause, count in self.dropped.items() if count)
        lines = [
            f"events: {self.events_written} written, {self.events_delivered} delivered, {self.events_lost} lost "
            f"({self.events_overrun} overrun, {self.events_dropped} dropped{f': {dropped}' if dropped else ''}, "
            f"{self.events_abandoned} abandoned), {self.events_in_flight} in flight",
            f"pages:  {self.pages_total} of {self.page_size} bytes, {self.pages_allocated} ever used, "
            f"{self.pages_recycled} times recycled; now {self.pages_free} free, {self.pages_filling} filling, "
            f"{self.pages_full} full, {self.pages_in_flight} in flight",
        ]
        if self.sends_waited:
            lines.append(f"waits:  {self.sends_waited} sends waited {self.send_wait_ns / 1e6:.1f} ms in all")
        if self.snapshots or self.snapshots_skipped or self.snapshots_failed:
            lines.append(
                f"snapshots: {self.snapshots} taken, {self.snapshots_skipped} skipped, {self.snapshots_failed} failed"
            )
        if self.budget is not None:
            lines.append(f"budget: {self.budget}")
        for sink in self.sinks:
            failed = f", failed {sink.failures} times ({sink.last_error!r})" if sink.failures else ""
            lines.append(
                f"sink:   {sink.name} {sink.state}: {sink.events_delivered} of {sink.events_offered} events delivered, "
                f"{sink.events_missed} missed, {sink.events_abandoned} abandoned{failed}"
            )
        return "\n".join(lines)
