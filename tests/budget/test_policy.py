"""The budget's decisions: what goes off, what comes back, and that it is held, by simulated programs."""

from __future__ import annotations

import itertools
from collections import Counter
from dataclasses import dataclass, field

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aiotrace import ConfigurationError
from aiotrace._budget.policy import (
    CREDIT,
    CREDIT_FIRST,
    FIXED_MAX,
    ORDER,
    PATIENCE,
    STRETCH_MAX,
    WORTH,
    Budget,
    Period,
    check_share,
    group_of,
    parse_percent,
)
from aiotrace._budget.statistics import BudgetSwitch


@dataclass
class Program:
    """A program that always does the same: groups cost these shares of its time, while they are on."""

    groups: dict[str, float]
    share: float = 0.01
    fixed: float = 0.0
    busy: float = 1.0
    """Of a processor."""
    period: float = 0.25
    """Seconds."""
    now: float = 0.0
    charged: float = 0.0
    allowed: float = 0.0
    switches: list[BudgetSwitch] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.budget = Budget(self.share)

    def run(self, seconds: float) -> None:
        for _ in range(round(seconds / self.period)):
            self.tick()

    def tick(self) -> BudgetSwitch | None:
        self.now += self.period
        busy = self.busy * self.period * 1e9
        disabled = self.budget.disabled
        costs = {group: share * busy for group, share in self.groups.items() if group not in disabled}
        self.charged += sum(costs.values()) + min(self.fixed, FIXED_MAX * self.share) * busy
        self.allowed += self.share * busy
        switch = self.budget.step(self.now, Period(self.period, busy, self.fixed * busy, costs))
        if switch is not None:
            self.switches.append(switch)
        return switch

    @property
    def spends(self) -> float:
        """What is charged now, as a share."""
        on = sum(share for group, share in self.groups.items() if group not in self.budget.disabled)
        return on + min(self.fixed, FIXED_MAX * self.share)


names = st.sampled_from([*ORDER, "http:*", "db:*", "parser:*"])
programs = st.builds(
    Program,
    groups=st.dictionaries(names, st.floats(0, 4), max_size=8),
    share=st.floats(0.001, 0.5),
    fixed=st.floats(0, 0.1),
    busy=st.floats(0.1, 8),
    period=st.sampled_from([0.25, 0.5, 1.0]),
)
simulated = settings(max_examples=25)


# --- laws -------------------------------------------------------------------------------------------


@simulated
@given(programs)
def test_budget_is_met_or_enabled_groups_are_not_worth_disabling(program: Program) -> None:
    program.run(60)
    for _ in range(600):  # what is off is tried again
        if program.spends <= 1.02 * program.share:  # so little too much is let pass for a minute
            return
        on = sum(share for group, share in program.groups.items() if group not in program.budget.disabled)
        if on < WORTH * program.share:
            return
        program.tick()
    pytest.fail(f"{program} spends {program.spends}, off are {program.budget.disabled}")


@simulated
@given(programs)
def test_overspending_is_bounded_for_any_retries(program: Program) -> None:
    on = sum(program.groups.values())
    if any(0 < share < WORTH * program.share for share in program.groups.values()):
        return  # these may stay on for ever
    most = (on + program.share) * program.busy * program.period * 1e9
    bursts = (CREDIT + CREDIT_FIRST * len(program.groups)) * program.share * program.busy * 1e9
    for _ in range(800):
        program.tick()
        assert program.charged - program.allowed <= bursts + (len(program.groups) + 1) * most


@settings(max_examples=15)
@given(programs)
def test_a_group_does_not_flap(program: Program) -> None:
    program.period = 1.0
    program.run(3600)
    counts = Counter(switch.group for switch in program.switches)
    assert all(count <= 30 for count in counts.values()), counts


@simulated
@given(programs)
def test_first_group_worth_disabling_is_disabled(program: Program) -> None:
    for _ in range(200):
        before = program.budget.disabled
        switch = program.tick()
        if switch is None or switch.is_on:
            continue
        assert switch.group not in before
        assert set(program.budget.disabled) == {*before, switch.group}
        assert list(map(rank, program.budget.disabled)) == sorted(map(rank, program.budget.disabled))
        worth = [
            group
            for group, share in program.groups.items()
            if share >= WORTH * program.share and group not in before
        ]  # fmt: skip
        if worth:
            assert rank(switch.group) == min(map(rank, worth))


def rank(group: str) -> int:
    return ORDER.index(group) if group in ORDER else len(ORDER)


@simulated
@given(programs)
def test_a_group_stays_off_for_a_while_and_each_switch_changes_something(program: Program) -> None:
    program.run(600)
    last: dict[str, BudgetSwitch] = {}
    for switch in program.switches:
        before = last.get(switch.group)
        assert switch.is_on is (before is not None and not before.is_on)
        assert before is None or before.is_on or switch.seconds - before.seconds >= PATIENCE
        last[switch.group] = switch


# --- cases ------------------------------------------------------------------------------------------


def test_a_program_within_its_budget_keeps_all() -> None:
    program = Program({"task:step": 0.004, "http:*": 0.004})
    program.run(600)
    assert not program.switches


def test_calls_are_disabled_before_steps_and_steps_before_program_events() -> None:
    program = Program({"http:*": 0.02, "task:step": 0.02, "function_graph:*": 2.0, "task:ready": 0.02})
    program.run(9)
    assert [switch.group for switch in program.switches] == ["function_graph:*", "task:ready", "task:step", "http:*"]


def test_most_expensive_program_events_are_disabled_first() -> None:
    program = Program({"http:*": 0.004, "parser:*": 0.05, "db:*": 0.004})
    program.run(30)
    assert program.budget.disabled == ("parser:*",)


def test_cheap_group_is_skipped() -> None:
    program = Program({"audit:*": 0.0005, "task:step": 0.03})
    program.run(9)
    assert program.budget.disabled == ("task:step",)


def test_many_cheap_groups_are_also_disabled() -> None:
    program = Program({f"own{number}:*": 0.0009 for number in range(30)})
    program.run(60)
    assert program.spends <= program.share


def test_a_short_burst_switches_nothing_off() -> None:
    program = Program({"http:*": 0.001})
    program.run(5)
    program.groups["http:*"] = 0.03
    program.run(0.25)
    program.groups["http:*"] = 0.001
    program.run(5)
    assert not program.switches


def test_fixed_costs_leave_a_part_of_the_budget_to_the_groups() -> None:
    program = Program({"http:*": 0.004}, fixed=0.05)
    program.run(60)
    assert not program.switches
    assert program.budget.last == pytest.approx(0.054), "and is reported all the same"


def test_reader_wakes_less_often_while_its_wakes_exceed_their_share() -> None:
    program = Program({"http:*": 0.001}, fixed=0.05)
    program.run(5)
    assert program.budget.stretch == STRETCH_MAX
    program.fixed = 0.003
    program.run(60)
    assert program.budget.stretch == STRETCH_MAX, "twice as often would be twice as dear"
    program.fixed = 0.0001
    program.run(60)
    assert program.budget.stretch == 1


def test_an_idle_program_is_not_measured_to_death() -> None:
    program = Program({"http:*": 0.05}, busy=0.001)
    program.run(60)
    assert not program.switches


def test_group_that_has_become_cheaper_is_enabled_for_good() -> None:
    program = Program({"task:step": 0.03})
    program.run(2)
    assert program.budget.disabled == ("task:step",)
    program.groups["task:step"] = 0.002
    program.run(300)
    assert program.budget.disabled == ()
    assert len(program.switches) == 2


def test_last_fitting_group_in_order_is_enabled_first() -> None:
    program = Program({"function_graph:*": 0.03, "task:step": 0.03, "http:*": 0.03})
    program.run(9)
    assert len(program.budget.disabled) == 3
    program.now += 900  # all are believed to cost nothing now
    program.groups = dict.fromkeys(program.groups, 0.001)
    program.run(900)
    back = [switch.group for switch in program.switches if switch.is_on]
    assert back == ["http:*", "task:step", "function_graph:*"]


def test_group_disabled_by_the_user_is_not_enabled() -> None:
    program = Program({"task:step": 0.03})
    program.budget.is_wanted = lambda group: False
    program.run(2)
    program.groups["task:step"] = 0.001
    program.run(900)
    assert program.budget.disabled == ("task:step",)


def test_a_group_that_never_fits_is_tried_more_and_more_rarely() -> None:
    program = Program({"function_graph:*": 2.0}, period=1.0)
    program.run(3600)
    offs = [switch.seconds for switch in program.switches if not switch.is_on]
    pauses = [later - sooner for sooner, later in itertools.pairwise(offs)]
    assert len(pauses) >= 3
    assert pauses == sorted(pauses)
    assert program.charged <= 1.1 * program.allowed


# --- names and numbers ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "group"),
    [
        ("function_graph:entry", "function_graph:*"),
        ("task:step", "task:step"),
        ("task:ready", "task:ready"),
        ("task:spawn", "task:*"),
        ("http:done", "http:*"),
        ("span:begin", "span:*"),
        ("stall:noticed", None),
        ("aiotrace:budget", None),
    ],
)
def test_each_event_is_in_one_group_or_in_none(name: str, group: str | None) -> None:
    assert group_of(name) == group


@pytest.mark.parametrize(("text", "share"), [("1%", 0.01), ("0.5 %", 0.005), (" 99.9% ", 0.999), (".1%", 0.001)])
def test_a_budget_is_written_in_percent(text: str, share: float) -> None:
    assert parse_percent(text) == pytest.approx(share)


@pytest.mark.parametrize("text", ["0%", "0", "150%", "100%", "abc", "", "1", "-1%", "1%%", "nan%", "0.01%", "1e-2%"])
def test_invalid_budget_is_refused_and_named(text: str) -> None:
    with pytest.raises(ConfigurationError, match=r"percent|at least 0\.1%, and less than 100%") as refused:
        parse_percent(text)
    assert repr(text) in str(refused.value)


@pytest.mark.parametrize("share", [0, 1, 1.5, -0.01, 0.0009, float("nan"), float("inf"), "1%", True, None])
def test_share_that_cannot_be_met_is_refused(share: object) -> None:
    with pytest.raises(ConfigurationError, match=r"0\.01 is 1 %"):
        check_share(share)
