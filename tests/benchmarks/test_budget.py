"""The benchmark of budgets: its program accounts for itself, and its table says by how much a piece of it is dearer."""

from __future__ import annotations

from pathlib import Path

import pytest

from aiotrace._base.backend import c_module
from benchmarks import budget


@pytest.mark.skipif(c_module is None, reason="NOT RUN: functions are traced by the C module")
def test_a_run_gives_the_time_of_a_piece_and_the_account_before_and_after(tmp_path: Path) -> None:
    options = ["-e", "all", "-p", "function_graph", "--budget", "1%"]
    found = budget.measure(tmp_path, "asyncio", options, 1.0, 0.5)
    assert found["piece"] > 0
    (cost, busy, _), (cost_after, busy_after, _) = found["before"], found["after"]
    assert cost <= cost_after
    assert 0 <= busy <= busy_after


def test_the_table_has_what_a_piece_costs_more_and_what_was_off() -> None:
    plain = [{"piece": 2.0}, {"piece": 4.0}, {"piece": 3.0}]
    account = {"before": [10, 1000, []], "after": [30, 3000, ["function_graph"]]}
    runs = [{"piece": 2.5, **account}, {"piece": 4.5, **account}, {"piece": 3.3, **account}]
    rows = budget._rows("trio", {("untraced", ""): plain, ("in the program", "1%"): runs})
    assert rows == [
        ("trio", "in the program", "1%", pytest.approx(25), pytest.approx(10), pytest.approx(1), "function_graph")
    ]
