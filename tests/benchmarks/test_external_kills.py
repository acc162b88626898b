"""R4 with a recorder process: a few of the runs of `python -m benchmarks external_kills`; and that a fault is seen."""

from __future__ import annotations

from pathlib import Path

import pytest

from aiotrace._base.backend import c_module
from benchmarks import external_kills
from benchmarks.external_kills import kill_once
from benchmarks.kills import Outcome, check_trace


def check(outcome: Outcome) -> None:
    assert (outcome.missing, outcome.torn, outcome.wrong, outcome.faults) == (0, 0, 0, [])
    assert outcome.told > 0
    assert outcome.restored >= outcome.told - outcome.unfinished


@pytest.mark.skipif(c_module is None, reason="pure Python refuses")
@pytest.mark.parametrize("threads", [0, 3])
def test_trace_of_a_killed_server_is_complete(tmp_path: Path, threads: int) -> None:
    check(kill_once(tmp_path, threads, threads=threads, most=3000))


@pytest.mark.long
@pytest.mark.parametrize("threads", [0, 3])
def test_a_hundred_killed_servers_have_whole_traces(tmp_path: Path, threads: int) -> None:
    for seed in range(50):
        check(kill_once(tmp_path, seed, threads=threads))


@pytest.mark.skipif(c_module is None, reason="pure Python refuses")
def test_missing_event_is_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def ask_for_more(trace: Path, told: dict[int, int], seed: int) -> Outcome:
        return check_trace(trace, {writer: n + 2 for writer, n in told.items()}, seed)

    monkeypatch.setattr(external_kills, "check_trace", ask_for_more)
    assert kill_once(tmp_path, 2, threads=0, most=300).missing


def test_the_table_adds_up_its_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    def one(folder: Path, seed: int, *, threads: int) -> Outcome:
        return Outcome(runs=1, told=10, restored=9, unfinished=1, faults=["a fault"] if seed == 3 else [])

    monkeypatch.setattr(external_kills, "kill_once", one)
    table = external_kills.run(40)
    assert [row[:4] for row in table.rows] == [("one thread", 20, 200, 180), ("with threads", 20, 200, 180)]
    assert table.notes[-1] == "a fault"
