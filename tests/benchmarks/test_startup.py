"""The benchmark of start-up measures an installed copy, and has a row for each process. No time is asserted."""

from __future__ import annotations

import subprocess
from pathlib import Path

from benchmarks import startup


def test_each_process_has_a_row_beside_its_base() -> None:
    table = startup.run(rounds=1)
    rows = {row[0]: dict(zip(table.columns, row, strict=True)) for row in table.rows}
    assert list(rows) == [startup.PASS, startup.EMPTY, "event", "--version", "--help", "record"]
    assert rows[startup.PASS]["more, min"] == 0
    assert rows["record"]["more, min"] == rows["record"]["min"] - rows[startup.EMPTY]["min"]  # type: ignore[operator]
    assert {row["processes"] for row in rows.values()} == {1}


def test_installed_copy_is_measured(tmp_path: Path) -> None:
    python = startup._install(tmp_path / "venv")
    code = "import aiotrace, aiotrace_sinks; print(aiotrace.__file__, aiotrace_sinks.__file__)"
    imported = subprocess.run(
        [python, "-c", code], capture_output=True, text=True, timeout=60, check=True, cwd=tmp_path
    ).stdout
    assert [path.startswith(str(tmp_path)) for path in imported.split()] == [True, True]
