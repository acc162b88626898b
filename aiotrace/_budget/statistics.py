"""What a recording with a budget costs, and what the budget switched: part of the recording's `Statistics`."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["BudgetStatistics", "BudgetSwitch"]


@dataclass(frozen=True, slots=True)
class BudgetSwitch:
    """A group of events went off, or on again."""

    seconds: float
    """Since the recording was opened."""
    group: str
    """A glob of its events: "function_graph:*", "task:step"."""
    is_on: bool
    cost: float
    """What all of aiotrace cost in the period before, as a share of the program's own time."""
    group_cost: float
    """What the group cost, or is expected to cost."""


@dataclass(frozen=True, slots=True)
class BudgetStatistics:
    """What a recording with a budget costs, by its own account. Shares are of the program's own processor time."""

    share: float
    """The budget that was requested."""
    spent: float
    """Over the whole recording."""
    spent_last: float
    """In the last period, of a quarter of a second or more."""
    busy_ns: int
    """The program's own processor time: of the threads that record events, without aiotrace's part; at least a tenth of
    the elapsed time."""
    events_ns: int
    """Time for calling events, and for the hooks of tracers."""
    sinks_ns: int
    """Time of the reader and the sinks."""
    measuring_ns: int
    """Time for measuring."""
    seconds: float
    """Since the recording was opened."""
    off: tuple[str, ...]
    """What is off now: "function_graph", "task:step"."""
    stretch: float
    """The factor by which the flush interval is longer than requested now."""
    switches: tuple[BudgetSwitch, ...]
    """The last hundred."""

    def __str__(self) -> str:
        total = max(self.busy_ns, 1)
        sums = {"events": self.events_ns, "sinks": self.sinks_ns, "measuring": self.measuring_ns}
        of = ", ".join(f"{name} {_percent(spent / total)}" for name, spent in sums.items())
        told = (
            f"{_percent(self.share)} asked, {_percent(self.spent)} spent ({of}), {_percent(self.spent_last)} at the end"
        )
        flushed = [f"flushed {self.stretch:g} times more rarely"] if self.stretch > 1 else []
        return "; ".join([told, *self._stretches(), *flushed])

    def _stretches(self) -> list[str]:
        """Each group that was off, and since when or how long."""
        texts = []
        for group in dict.fromkeys(switch.group for switch in self.switches):
            switches = [switch for switch in self.switches if switch.group == group]
            name = group.removesuffix(":*")
            if len(switches) == 1 and not switches[0].is_on:
                texts.append(f"{name} off from {switches[0].seconds:.1f} s")
                continue
            ends = [switch.seconds for switch in switches[1:]] + [self.seconds]
            off = sum(end - switch.seconds for switch, end in zip(switches, ends, strict=True) if not switch.is_on)
            times = sum(not switch.is_on for switch in switches)
            texts.append(f"{name} off {times} times, {off:.1f} of {self.seconds:.1f} s")
        return texts


def _percent(share: float) -> str:
    return f"{100 * share:.2g} %"
