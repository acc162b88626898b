"""The faults planted in examples/planted.py are found from the trace alone, each by the command named for it.

The program runs in a process of its own under `aiotrace record`, on asyncio, uvloop and trio.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from aiotrace._base.backend import c_module
from aiotrace._cli import main
from support import ROOT

pytestmark = pytest.mark.skipif(c_module is None, reason="NOT RUN: tracing tasks needs the C module")
PROGRAM = ROOT / "examples" / "planted.py"
Capture = pytest.CaptureFixture[str]


def line_of(text: str) -> str:
    """`file:line`, of the first line of the program with that text."""
    lines = PROGRAM.read_text(encoding="utf-8").splitlines()
    return f"{PROGRAM}:{next(number for number, line in enumerate(lines, 1) if text in line)}"


def record(folder: Path, runtime: str, *options: str) -> Path:
    path = folder / f"{runtime}.dat"
    subprocess.run(
        [sys.executable, "-m", "aiotrace", "record", "-o", path, *options, PROGRAM, runtime],
        check=True,
        timeout=60,
        capture_output=True,
        env=os.environ,
    )
    return path


@pytest.fixture(scope="module", params=["asyncio", "uvloop", "trio"])
def planted(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    """(runtime, the path of its trace)."""
    if request.param != "asyncio":
        pytest.importorskip(request.param, reason=f"NOT RUN: {request.param} is not installed")
    folder = tmp_path_factory.mktemp("planted")
    return request.param, str(record(folder, request.param, "--stall", "50", "-e", "task", "-e", "log", "-e", "gc"))


def rows(capsys: Capture, *arguments: str) -> list[dict[str, Any]]:
    capsys.readouterr()
    assert main(["report", "--json", *arguments]) == 0
    out = capsys.readouterr()
    assert out.err == ""
    return [json.loads(line) for line in out.out.splitlines()]


def test_the_stall_is_found(planted: tuple[str, str], capsys: Capture) -> None:
    runtime, path = planted
    found = [row for row in rows(capsys, path, "--stalls", "--threshold", "400") if row["task"]]
    planted_line = line_of("async def serve_trio(" if runtime == "trio" else "async def serve(")
    assert len([row for row in found if planted_line in row["coro"]]) == 1, found
    assert found[0]["duration_ns"] >= 400_000_000


def test_the_line_of_the_stall_is_found(planted: tuple[str, str], capsys: Capture) -> None:
    runtime, path = planted
    line = line_of("time.sleep(STALL)")
    stalls = [row for row in rows(capsys, path, "--stalls") if row["watched"]]
    (found,) = [row for row in stalls if row["watched"]["at"].endswith(f"({line})")]
    assert found["watched"]["cause"] == "blocked"
    assert found["watched"]["stack"][0] == f"=> answer ({os.path.basename(line)})"
    assert ("serve_trio (" if runtime == "trio" else "serve (") in found["watched"]["stack"][1]


def test_the_swallowed_cancellation_is_found(planted: tuple[str, str], capsys: Capture) -> None:
    runtime, path = planted
    found = [row for row in rows(capsys, path, "--cancellations") if "swallowed" in row["outcome"]]
    assert len(found) == 1, found
    expected = "probably swallowed" if runtime == "trio" else "swallowed"
    coro = line_of("async def refresh_trio(" if runtime == "trio" else "async def refresh(")
    asked = line_of("server.cancel_scope.cancel()" if runtime == "trio" else 'refreshing.cancel("the server closes")')
    assert found[0]["outcome"] == expected
    assert coro in found[0]["coro"]
    assert asked in found[0]["requested_at"]
    if runtime != "trio":
        assert coro in found[0]["swallowed_at"]
        assert found[0]["last"]["message"] == "the server closes"


def test_the_lost_tasks_are_found(planted: tuple[str, str], capsys: Capture) -> None:
    runtime, path = planted
    found = {row["kind"]: row for row in rows(capsys, path, "--lost-tasks")}
    if runtime == "trio":
        assert found == {}, "trio loses none"
        return
    assert sorted(found) == ["destroyed", "never retrieved"]
    assert line_of("async def wait_for_nobody(") in found["destroyed"]["coro"]
    assert line_of("asyncio.create_task(wait_for_nobody()") in found["destroyed"]["site"]
    assert line_of("async def fail(") in found["never retrieved"]["coro"]
    assert line_of("asyncio.create_task(fail()") in found["never retrieved"]["site"]
    assert found["never retrieved"]["last"]["error"] == "ValueError('nobody looks')"


def test_report_finds_where_the_time_went(planted: tuple[str, str], capsys: Capture) -> None:
    runtime, path = planted
    first = rows(capsys, path, "--tasks")[0]
    assert line_of("async def serve_trio(" if runtime == "trio" else "async def serve(") in first["coro"]
    assert first["longest_ns"] >= 400_000_000
    assert first["tasks"] == 4
    assert (first["waiting_ns"] is None) is (runtime == "trio")


def test_stall_delays_other_tasks(planted: tuple[str, str], capsys: Capture) -> None:
    runtime, path = planted
    delay, steps = rows(capsys, path, "--latency")
    assert steps["longest_ns"] >= 400_000_000
    assert sum(bucket["count"] for bucket in steps["buckets"]) == steps["count"] > 200
    assert (delay["count"] == 0) is (runtime == "trio")


@pytest.fixture(scope="module")
def asyncio_trace(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(record(tmp_path_factory.mktemp("alone"), "asyncio", "-e", "task"))


def test_several_traces_are_one(asyncio_trace: str, tmp_path: Path, capsys: Capture) -> None:
    other = record(tmp_path, "asyncio", "-e", "task")
    one = rows(capsys, asyncio_trace, "--tasks")
    both = rows(capsys, asyncio_trace, str(other), "--tasks")
    assert (one[0]["tasks"], both[0]["tasks"]) == (4, 8)
    assert both[0]["coro"] == one[0]["coro"]


MANY = """
import asyncio

async def work():
    for _ in range(1000):
        await asyncio.sleep(0)

async def main():
    await asyncio.gather(*(work() for _ in range(10)))

asyncio.run(main())
"""


def test_parts_of_a_rotated_trace_are_merged_in_any_order(tmp_path: Path, capsys: Capture) -> None:
    url = f"file:{tmp_path}/t.dat?max_size=65536"
    command = [sys.executable, "-m", "aiotrace", "record", "-e", "task", "--sink", url, "-c", MANY]
    subprocess.run(command, check=True, timeout=60, capture_output=True)
    parts = sorted(map(str, tmp_path.glob("*.dat")))
    assert len(parts) > 3
    first = rows(capsys, *parts, "--tasks")[0]
    assert (first["tasks"], first["steps"]) == (10, 10 * 1001)
    assert rows(capsys, *reversed(parts), "--tasks")[0] == first


BUSY = MANY.replace("range(1000)", "range(20000)")


def test_an_answer_from_a_trace_with_losses_says_so(tmp_path: Path, capsys: Capture) -> None:
    path = tmp_path / "t.dat"
    command = [sys.executable, "-m", "aiotrace", "record", "-b", "16", "-e", "task", "-o", path, "-c", BUSY]
    subprocess.run(command, check=True, timeout=60, capture_output=True)
    assert main(["report", str(path), "--tasks"]) == 3
    out = capsys.readouterr()
    assert "work (<string>:4)" in out.out
    assert f"{path}: events lost: " in out.err
    assert out.err.endswith("aiotrace report: the missing events may change this result\n")


def test_report_covers_the_requested_time(asyncio_trace: str, capsys: Capture) -> None:
    (stall,) = [row for row in rows(capsys, asyncio_trace, "--stalls", "--threshold", "400") if row["task"]]
    ended = stall["began_ns"] + stall["duration_ns"]
    late = rows(capsys, asyncio_trace, "--stalls", "--threshold", "400", "--from", f"{(ended + 1) / 1e9:.9f}")
    assert stall not in late


@pytest.mark.parametrize("question", ["--tasks", "--latency", "--cancellations", "--lost-tasks", "--stalls"])
def test_the_text_ends_like_the_rows(asyncio_trace: str, capsys: Capture, question: str) -> None:
    assert main(["report", asyncio_trace, question]) == 0
    out = capsys.readouterr()
    assert str(PROGRAM) in out.out
    assert out.err == ""


def test_an_answer_from_a_trace_that_is_not_finished_says_so(
    asyncio_trace: str, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("aiotrace._traces.trace.Trace.complete", False)
    assert main(["report", asyncio_trace, "--tasks"]) == 0
    assert capsys.readouterr().err.startswith(f"aiotrace report: {asyncio_trace}: not finished, read as far as it goes")


def test_exceptions_without_log_events_may_not_have_been_retrieved(asyncio_trace: str, capsys: Capture) -> None:
    assert main(["report", asyncio_trace, "--lost-tasks"]) == 0
    out = capsys.readouterr().out
    assert "whether exceptions were retrieved is not known" in out
    assert "raised: failing" in out
