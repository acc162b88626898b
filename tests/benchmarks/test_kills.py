"""R4 on arenas: whatever ends a program, every event whose call had returned is restored; a few of the runs of
`python -m benchmarks kills`, and of what it is for a fault to be seen."""

from __future__ import annotations

from pathlib import Path

import pytest

from aiotrace._arena.file_reader import ArenaReader
from aiotrace._page import layout as L
from benchmarks import kills
from benchmarks.kills import Outcome, kill_once


def check(outcome: Outcome) -> None:
    assert (outcome.missing, outcome.torn, outcome.wrong, outcome.faults) == (0, 0, 0, [])
    assert outcome.told > 0
    assert outcome.restored >= outcome.told - outcome.forgotten - outcome.unfinished


@pytest.mark.parametrize("threads", [0, 3])
@pytest.mark.parametrize("death", ["kill", "segv", "exit"])
def test_every_event_whose_call_had_returned_is_restored(tmp_path: Path, threads: int, death: str) -> None:
    outcome = kill_once(tmp_path, threads + 1, threads=threads, death=death, most=3000)
    check(outcome)
    assert list(tmp_path.iterdir()) == [], "the arena is removed when all of it is in a trace"


@pytest.mark.long
@pytest.mark.parametrize("threads", [0, 3])
def test_two_hundred_killed_servers_are_restored(tmp_path: Path, threads: int) -> None:
    for seed in range(100):
        check(kill_once(tmp_path, seed, threads=threads))


def test_lost_page_is_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = ArenaReader.descriptor

    def forget_one(self: ArenaReader, page: int) -> tuple[int, ...]:
        words = list(real(self, page))
        if words[L.WRITER] == 0 and words[L.SEQUENCE] == 2:
            words[L.STATE] = L.FREE
        return tuple(words)

    monkeypatch.setattr(ArenaReader, "descriptor", forget_one)
    outcome = kill_once(tmp_path, 4, threads=0, most=3000)
    assert outcome.missing
    assert outcome.wrong


def test_the_table_adds_up_its_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    def one(folder: Path, seed: int, *, threads: int, death: str) -> Outcome:
        return Outcome(runs=1, told=10, restored=9, unfinished=1, faults=["a fault"] if seed == 3 else [])

    monkeypatch.setattr(kills, "kill_once", one)
    table = kills.run(40)
    assert sum(int(row[2]) for row in table.rows) == 40
    assert {row[1] for row in table.rows} == {"kill", "segv", "abort", "exit"}
    assert sum(int(row[3]) for row in table.rows) == 400
    assert table.notes[-1] == "a fault"
