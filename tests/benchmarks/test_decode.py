"""What babeltrace2 is given to read is what the trace has."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from aiotrace.decode import open_trace
from benchmarks import decode
from benchmarks.ctf import write_ctf

needs_babeltrace = pytest.mark.skipif(shutil.which("babeltrace2") is None, reason="NOT RUN: needs babeltrace2")


@needs_babeltrace
def test_babeltrace2_reads_the_same_events(tmp_path: Path) -> None:
    events = decode.write_trace(tmp_path / "t.dat", 8000, mixed=True)
    with open_trace(tmp_path / "t.dat") as trace:
        assert write_ctf(trace, tmp_path / "ctf", decode.CTF_FIELDS, events) == events == 8000
        ours = [f"{event.name}: {event.fields}" for event in trace]
    command = ["babeltrace2", str(tmp_path / "ctf")]
    read = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout.splitlines()
    assert len(read) == len(ours)
    first = next(line for line in read if "fetched" in line)
    assert first.endswith('benchmark:fetched: { path = "/index/0", count = 5, table = "users" }'), first
    assert sum("benchmark:done: { status = 200, " in line for line in read) == 4000


def test_the_benchmark_has_a_row_for_each_reader_that_is_here() -> None:
    table = decode.run(events=4000, rounds=1)
    rows = {(row[0], row[1]): row[2] for row in table.rows}
    wanted = {"columns", "columns, pure", "counts", "events", "events, fields", "text", "report"}
    wanted |= {decode.TRACE_CMD} if shutil.which(decode.TRACE_CMD) else set()
    wanted |= {decode.BABELTRACE, "babeltrace2, no text"} if shutil.which(decode.BABELTRACE) else set()
    assert rows.keys() == {(kind, name) for kind in ("uniform", "mixed") for name in wanted}
    assert set(rows.values()) == {4000}
