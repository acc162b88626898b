"""The benchmarks run, at a small size, and their tables hold what was measured."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from aiotrace._backend import c_module
from benchmarks import flat, page_allocations
from benchmarks.table import Table

pytestmark = pytest.mark.once

needs_c = pytest.mark.skipif(c_module is None, reason="NOT RUN: tasks are traced by the C module")
HELD = ("events", "dropped", "in snapshot")
ROOT = Path(__file__).resolve().parent.parent


def test_the_benchmarks_are_listed() -> None:
    command = [sys.executable, "-m", "benchmarks"]
    listed = subprocess.run(command, capture_output=True, text=True, timeout=60, cwd=ROOT, check=True)
    assert "page_allocations: How many pages" in listed.stdout


def test_a_table_shows_its_rows_and_writes_them_as_json(tmp_path: Path) -> None:
    table = Table("Sizes", ("name", "bytes", "ratio"), [("a", 1234, 0.5)], notes=("a note",))
    assert "   a  1,234  0.500" in str(table)
    table.write_json(tmp_path / "table.json")
    outcome = json.loads((tmp_path / "table.json").read_text())
    assert outcome["rows"] == [{"name": "a", "bytes": 1234, "ratio": 0.5}]
    assert outcome["machine"]["python"].startswith("3.")


def test_one_slot_saves_one_page_of_those_in_flight_and_the_free_list_all(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(page_allocations, "PAGES", 640)
    table = page_allocations.run()
    allocations = {(row[0], row[1]): row[3] for row in table.rows}
    late = {(row[0], row[1]): row[5] for row in table.rows}
    for depth in page_allocations.DEPTHS:
        rounds = 640 // depth
        out_at_once = depth + page_allocations.SPARE_PAGES
        assert allocations["free each", depth] == 640
        assert abs(int(allocations["one slot", depth]) - rounds * (depth - 1)) <= out_at_once
        assert int(allocations["free-list", depth]) <= out_at_once
        assert late["free-list", depth] == 0


@needs_c
def test_a_flight_has_a_row_for_each_part_and_a_snapshot_holds_all_that_the_ring_has_not_overwritten() -> None:
    table = flat.run(0.24)
    written, dropped, held = ([row[table.columns.index(name)] for row in table.rows] for name in HELD)
    assert dropped == [0] * flat.PARTS
    assert held == [1000 * part for part in range(1, flat.PARTS + 1)]
    assert all(int(events) > int(ours) for events, ours in zip(written, held, strict=True))
