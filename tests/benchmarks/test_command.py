"""The benchmarks run, at a small size, and their tables hold what was measured."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from platform import python_version

import pytest

from aiotrace import ConfigurationError
from aiotrace._base.backend import WHY_PYTHON, c_module
from benchmarks import __main__ as command
from benchmarks import flat, page_allocations
from benchmarks.table import Table
from support import ROOT

needs_c = pytest.mark.skipif(c_module is None, reason="NOT RUN: tasks are traced by the C module")
HELD = ("events", "dropped", "in snapshot")


def test_the_benchmarks_are_listed() -> None:
    command = [sys.executable, "-m", "benchmarks"]
    listed = subprocess.run(command, capture_output=True, text=True, timeout=60, cwd=ROOT, check=True)
    assert "page_allocations: How many pages" in listed.stdout


@pytest.fixture
def one(monkeypatch: pytest.MonkeyPatch) -> Callable[..., int]:
    """Run a benchmark called "one", which does what `run` does, with arguments."""

    def main(*arguments: str, run: Callable[..., Table] = lambda: Table("One", ("n",), [(1,)])) -> int:
        monkeypatch.setitem(command.BENCHMARKS, "one", ("One.", run))
        monkeypatch.setattr(sys, "argv", ["benchmarks", *arguments])
        return command.main()

    return main


def test_benchmark_prints_its_table_and_writes_it_to_the_given_path(
    one: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert one("one", "--json", str(tmp_path / "one.json")) == 0
    told = capsys.readouterr()
    assert told.out.startswith("One")
    assert json.loads((tmp_path / "one.json").read_text())["rows"] == [{"n": 1}]
    assert bool(WHY_PYTHON) == ("the pure-Python implementation is measured" in told.err)


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        (["bogus"], "invalid choice: 'bogus'"),
        (["one", "--seconds", "1"], "one takes no --seconds"),
        (["pipeline", "--seconds", "-1"], "'-1' should be seconds"),
        (["pipeline", "--seconds", "nan"], "'nan' should be seconds"),
        (["pipeline", "--seconds", "x"], "'x' should be seconds"),
        (["one", "--json", "/nowhere/one.json"], "'/nowhere/one.json' cannot be written"),
        (["one", "--json", "/"], "'/' cannot be written"),
        (["--json", "/dev/null"], "which benchmark?"),
        (["--write"], "which benchmark?"),
    ],
)
def test_wrong_arguments_are_reported_before_anything_is_measured(
    one: Callable[..., int], arguments: list[str], why: str, capsys: pytest.CaptureFixture[str]
) -> None:
    def run() -> Table:
        raise AssertionError("measured")

    with pytest.raises(SystemExit, match="2"):
        one(*arguments, run=run)
    assert why in capsys.readouterr().err


@pytest.mark.parametrize(
    ("error", "status", "told"),
    [
        (KeyboardInterrupt(), 130, "interrupted"),
        (ConfigurationError("no such clock"), 1, "one cannot be measured here: no such clock"),
        (ModuleNotFoundError("No module named 'viztracer'"), 1, "one cannot be measured here: No module named"),
    ],
)
def test_failed_benchmark_prints_one_line_and_returns_a_status(
    one: Callable[..., int],
    error: BaseException,
    status: int,
    told: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def run() -> Table:
        raise error

    assert one("one", run=run) == status
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1 + bool(WHY_PYTHON) and told in lines[-1], lines


def test_a_table_shows_its_rows_and_writes_them_as_json(tmp_path: Path) -> None:
    table = Table("Sizes", ("name", "bytes", "ratio"), [("a", 1234, 0.5)], notes=("a note",))
    assert "   a  1,234  0.500" in str(table)
    table.write_json(tmp_path / "table.json")
    outcome = json.loads((tmp_path / "table.json").read_text())
    assert outcome["rows"] == [{"name": "a", "bytes": 1234, "ratio": 0.5}]
    assert outcome["machine"]["python"].startswith("3.")


def test_a_written_page_keeps_the_text_around_the_table(
    one: Callable[..., int], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(command, "PAGES", tmp_path)
    page = tmp_path / "one.md"

    # A page that does not exist is made; what people add stays when it is written again.
    assert one("one", "--write") == 0
    page.write_text("# By hand\n" + page.read_text() + "A comment.\n")
    assert one("one", "--write", run=lambda: Table("Two", ("n",), [(2,)], (r"\1",))) == 0

    text = page.read_text()
    assert text.startswith("# By hand\n# one\n") and text.endswith("\nA comment.\n")
    assert "\nOne\n" not in text and "\nTwo\n\nn\n2\n\n\\1\n" in text
    for circumstance in (
        f"date {datetime.now(UTC).date()}",
        f"python {python_version()}",
        "commit ",
        "processor ",
        "load ",
    ):
        assert circumstance in text


def test_one_slot_saves_one_page_of_those_in_flight_and_the_free_list_all(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(page_allocations, "PAGES", 320)
    table = page_allocations.run()
    allocations = {(row[0], row[1]): row[3] for row in table.rows}
    late = {(row[0], row[1]): row[5] for row in table.rows}
    for depth in page_allocations.DEPTHS:
        rounds = 320 // depth
        out_at_once = depth + page_allocations.SPARE_PAGES
        assert allocations["free each", depth] == 320
        assert abs(int(allocations["one slot", depth]) - rounds * (depth - 1)) <= out_at_once
        assert int(allocations["free-list", depth]) <= out_at_once
        assert late["free-list", depth] == 0


@needs_c
def test_flight_table_has_all_rows_and_snapshot_holds_the_whole_ring() -> None:
    table = flat.run(0.24)
    written, dropped, held = ([row[table.columns.index(name)] for row in table.rows] for name in HELD)
    assert dropped == [0] * flat.PARTS
    assert held == [1000 * part for part in range(1, flat.PARTS + 1)]
    assert all(int(events) > int(ours) for events, ours in zip(written, held, strict=True))
