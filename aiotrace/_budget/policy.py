"""The budget: which groups of events are switched off so that a recording costs no more than its share. Sans-IO: time,
costs and the program's own work are arguments.

    each period:  cost of each group, the program's own time
                    --> half a second's budget over what is allowed           the first of ORDER goes off
                    --> the excess is paid back, and there is room            the last of ORDER comes on again

    function_graph function audit loop sched task:ready gc log thread warning exception task:step task yours
    first off <-----------------------------------------------------------------------------------> last off

"yours" are the program's own events: a group for each system ("http:*"), and of these the most expensive goes first. A
group that costs less than a tenth of the budget is skipped as long as another one costs more. `stall`, `cancellation`
and `aiotrace` are never switched off, and losses are always counted.

Rules, held by tests/budget/test_policy.py:

* **What is spent is paid back.** Cost above the budget is a debt; nothing comes on again before it is paid.
* **One group per period**, off or on, so that its effect is seen before the next.
* **Nothing is lost if waiting helps**: before the reader's wakes take more than half of the budget it wakes less often,
  down to a tenth.
* **It does not flap.** A group that comes on and soon goes off again stays off twice as long each time.

`thread.py` measures, and does what is decided here.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Final

from .._base.errors import ConfigurationError
from .statistics import BudgetStatistics, BudgetSwitch

SHARE_MIN: Final = 0.001
"""Share of a program's time. Measuring itself takes some 0.05 %."""
ORDER: Final = (
    "function_graph:*",
    "function:*",
    "audit:*",
    "loop:*",
    "sched:*",
    "task:ready",
    "gc:*",
    "log:*",
    "thread:*",
    "warning:*",
    "exception:*",
    "task:step",
    "task:*",
)
"""Groups, as globs, in the order in which they go off: the most useful for their price go last."""
NEVER: Final = frozenset({"stall", "cancellation", "aiotrace"})
"""Systems that stay on: they show what goes wrong, and cost almost nothing until it does."""
IDLE: Final = 0.1
"""A program that is busy for a smaller part of a period counts as busy for this part: there is little to slow down, and
measuring would be most of its work."""
CREDIT: Final = 1.0
"""Seconds whose budget may be saved up, so that a short burst switches nothing off."""
CREDIT_FIRST: Final = 0.5
"""The same, when the recording opens and after a group went off."""
FIXED_MAX: Final = 0.5
"""Share of the budget that fixed costs (the reader's wakes, measuring) may use, so the rest is left for events. If they
are higher the reader flushes less often. What is still above goes over the budget and is reported: switching events off
would not save it."""
STRETCH_MAX: Final = 10.0
"""Factor of the flush interval, 0.2 s by default: a kill loses at most ten times that."""
DEBT_MAX: Final = 600.0
"""Seconds whose budget pays any debt: costs that cannot be switched off must not keep the rest off for ever."""
WORTH: Final = 0.1
"""Share of the budget: a group that costs less is skipped."""
FITS: Final = 0.8
"""Share of the budget: a group comes on again if the expected total cost is lower."""
PATIENCE: Final = 10.0
"""Seconds that a group is off at least. Its old cost is trusted less and less, half as much after each such time:
programs change."""
PATIENCE_MAX: Final = 640.0
KEPT: Final = 600.0
"""Seconds that a group has to stay on for its patience to shrink again."""
SWITCHES_MAX: Final = 100
"""Switches that are remembered."""

_PERCENT: Final = re.compile(r"\s*(\d+(?:\.\d+)?|\.\d+)\s*%\s*")


def parse_percent(text: str) -> float:
    """A share of "1%" or "0.5 %".

    Raises:
        ConfigurationError: It is not a percentage, or out of range.
    """
    match = _PERCENT.fullmatch(text)
    if match is None:
        raise ConfigurationError(f"budget {text!r}: write it in percent of the program's time, like 1% or 0.5%")
    share = float(match[1]) / 100
    if not SHARE_MIN <= share < 1:
        raise ConfigurationError(f"budget {text!r}: at least {100 * SHARE_MIN:g}%, and less than 100%")
    return share


def check_share(share: object) -> float:
    """
    Raises:
        ConfigurationError: It is not a number, or out of range.
    """
    if not isinstance(share, (int, float)) or isinstance(share, bool) or not SHARE_MIN <= share < 1:
        raise ConfigurationError(
            f"budget={share!r}: a share of the program's time, at least {SHARE_MIN} and less than 1: 0.01 is 1 %"
        )
    return float(share)


def group_of(name: str) -> str | None:
    """The group of an event ("system:event"), as a glob; None: it is never switched off."""
    system = name.partition(":")[0]
    if system in NEVER:
        return None
    return name if name in ORDER else f"{system}:*"


def title(group: str) -> str:
    """A group's name for people."""
    return group.removesuffix(":*")


@dataclass(frozen=True, slots=True)
class Period:
    """What was measured since the end of the previous period."""

    seconds: float
    busy_ns: float
    """Processor time of the program's own work in its threads."""
    fixed_ns: float
    """Cost that no group causes: measuring, and the sinks while nothing is recorded."""
    groups: Mapping[str, float]
    """Nanoseconds that each group cost: its events, and what the reader and the sinks did with them."""

    @property
    def groups_ns(self) -> float:
        return sum(self.groups.values())


@dataclass(slots=True)
class _Group:
    """A group that has been off at least once."""

    cost: float
    """What it cost when it was on, as a share of the program's time."""
    off_at: float
    """Seconds."""
    on_at: float | None = None
    """Seconds; None: it is off."""
    patience: float = PATIENCE

    def expected(self, now: float) -> float:
        """What it would cost now, as a share."""
        return float(self.cost * 0.5 ** ((now - self.off_at) / self.patience))


@dataclass(slots=True)
class Budget:
    """
    Args:
        share: The budget, as a share of the program's own time.
        is_wanted: Whether a group that is off would be recorded if it were on: one that the user has disabled is not.
    """

    share: float
    is_wanted: Callable[[str], bool] = lambda group: True
    debt_ns: float = 0.0
    """Nanoseconds of cost that are not paid back."""
    credit: float = CREDIT_FIRST
    """Seconds whose budget is left for a burst."""
    stretch: float = 1.0
    """Factor by which to lengthen the flush interval."""
    spent_ns: float = 0.0
    busy_ns: float = 0.0
    last: float = 0.0
    """The cost of the last period, as a share."""
    switches: list[BudgetSwitch] = field(default_factory=list)
    _known: dict[str, _Group] = field(default_factory=dict)

    @property
    def disabled(self) -> tuple[str, ...]:
        """The groups that are off, as globs, in the order of ORDER; what is not in it, as it went off."""
        off = {name: group.off_at for name, group in self._known.items() if group.on_at is None}
        return tuple(sorted(off, key=lambda name: (self._rank(name), off[name])))

    def step(self, now: float, period: Period) -> BudgetSwitch | None:
        """Account for a period.

        Args:
            now: Seconds since the recording was opened.

        Returns:
            What to switch now.
        """
        # Totals, and what counts against the budget.
        busy = max(period.busy_ns, IDLE * 1e9 * period.seconds)
        allowed = self.share * busy
        charged = period.groups_ns + min(period.fixed_ns, FIXED_MAX * allowed)
        self.spent_ns += period.groups_ns + period.fixed_ns
        self.busy_ns += busy
        self.last = (period.groups_ns + period.fixed_ns) / busy
        self.debt_ns = min(max(self.debt_ns + charged - allowed, 0), DEBT_MAX * allowed / period.seconds)

        # Fixed costs fall if the reader wakes less often.
        if period.fixed_ns > FIXED_MAX * allowed:
            self.stretch = min(2 * self.stretch, STRETCH_MAX)
        elif period.fixed_ns < FIXED_MAX / 4 * allowed:
            self.stretch = max(self.stretch / 2, 1.0)

        # A burst uses up the credit before anything goes off; nothing comes on before the debt is paid.
        self.credit = min(self.credit + (1 - charged / allowed) * period.seconds, CREDIT)
        if charged > allowed:
            return self._switch_off(now, period, busy) if self.credit < 0 else None
        return self._switch_on(now, charged / busy) if not self.debt_ns else None

    def _switch_off(self, now: float, period: Period, busy: float) -> BudgetSwitch | None:
        disabled = self.disabled
        costs = {name: cost for name, cost in period.groups.items() if cost > 0 and name not in disabled}
        if sum(costs.values()) < WORTH * self.share * busy:
            return None  # it would save nothing

        # The first of ORDER that costs enough, else the most expensive.
        worth = [name for name, cost in costs.items() if cost >= WORTH * self.share * busy]
        if worth:
            name = min(worth, key=lambda name: (self._rank(name), -costs[name]))
        else:
            name = max(costs, key=costs.__getitem__)

        # If it came on a short time ago it stays off for longer than last time.
        self.credit = CREDIT_FIRST
        share = costs[name] / busy
        group = self._known.get(name)
        if group is None:
            self._known[name] = _Group(share, now)
        else:
            assert group.on_at is not None
            was_short = now - group.on_at < KEPT
            group.patience = min(2 * group.patience, PATIENCE_MAX) if was_short else max(group.patience / 2, PATIENCE)
            group.cost, group.off_at, group.on_at = share, now, None
        return self._note(BudgetSwitch(now, name, False, self.last, share))

    def _switch_on(self, now: float, charged: float) -> BudgetSwitch | None:
        for name in reversed(self.disabled):
            group = self._known[name]
            if now - group.off_at < group.patience or not self.is_wanted(name):
                continue
            if charged + group.expected(now) <= FITS * self.share:
                group.on_at = now
                return self._note(BudgetSwitch(now, name, True, self.last, group.expected(now)))
        return None

    def _rank(self, name: str) -> int:
        return ORDER.index(name) if name in ORDER else len(ORDER)

    def _note(self, switch: BudgetSwitch) -> BudgetSwitch:
        self.switches = [*self.switches[1 - SWITCHES_MAX :], switch]
        return switch

    def statistics(self, now: float, events_ns: int, sinks_ns: int, measuring_ns: int) -> BudgetStatistics:
        """The statistics now; the arguments are the parts of the cost."""
        return BudgetStatistics(
            share=self.share,
            spent=self.spent_ns / self.busy_ns if self.busy_ns else 0.0,
            spent_last=self.last,
            busy_ns=int(self.busy_ns),
            events_ns=events_ns,
            sinks_ns=sinks_ns,
            measuring_ns=measuring_ns,
            seconds=now,
            off=tuple(map(title, self.disabled)),
            stretch=self.stretch,
            switches=tuple(self.switches),
        )
