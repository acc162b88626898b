"""aiotrace._formats.tracedat_stream: whatever was said while nothing was known, the headers that follow are found."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aiotrace._formats import tracedat as T
from aiotrace._formats import tracedat_stream
from aiotrace._formats.tracedat_stream import FILLER_SIZE, LateHeaders
from aiotrace._page.definitions import Definition
from aiotrace._traces.tracedat_file import TraceDatSource
from support import fakes


def write(path: Path, waits: int, definitions: list[Definition] = fakes.DEFINITIONS) -> Path:
    headers = LateHeaders(4096)
    content = headers.begin() + b"".join(headers.wait() for _ in range(waits))
    statistics = [T.CpuStatistics(2, 10, 0, 7, 400)]
    path.write_bytes(content + headers.finish(clock="mono", cpus=3, definitions=definitions, statistics=statistics))
    return path


def check(path: Path) -> None:
    trace = TraceDatSource(str(path))
    try:
        assert trace.complete
        assert not trace.damage, trace.damage
        assert {each.name for each in trace.formats.values()} >= {"count", "kernel_stack"}
        assert trace.symbols[fakes.SYMBOL_KEY] == "a symbol"
        assert trace.commands[fakes.PID] == "worker_one"
        assert trace.option(T.OPTION_CPUCOUNT) == (3).to_bytes(4, "little")
        assert b"dropped events: 7" in (trace.option(T.OPTION_CPUSTAT) or b"")
    finally:
        trace.close()


@given(waits=st.integers(0, 40), filler=st.integers(1, 9))
def test_the_headers_are_found_behind_any_number_of_fillers(
    tmp_path_factory: pytest.TempPathFactory, waits: int, filler: int
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tracedat_stream, "FILLER_SIZE", filler)
        check(write(tmp_path_factory.mktemp("late") / "t.dat", waits))


@pytest.mark.parametrize("waits", [0, 1, FILLER_SIZE - 1, FILLER_SIZE, FILLER_SIZE + 1, 3 * FILLER_SIZE])
def test_the_headers_are_found_behind_fillers_of_the_true_size(tmp_path: Path, waits: int) -> None:
    check(write(tmp_path / "t.dat", waits))


def test_each_filler_word_is_nonempty_and_short() -> None:
    headers = LateHeaders(4096)
    headers.begin()
    sizes = [len(headers.wait()) for _ in range(2 * FILLER_SIZE)]
    assert min(sizes) == 1
    assert max(sizes) < 64
    assert sum(size > 1 for size in sizes) == 2


@pytest.mark.parametrize("waits", [0, 2 * FILLER_SIZE])
def test_trace_cmd_finds_the_formats(trace_cmd: str, tmp_path: Path, waits: int) -> None:
    path = write(tmp_path / "t.dat", waits)
    done = subprocess.run([trace_cmd, "dump", "--events", "-i", path], capture_output=True, text=True, check=True)
    assert "name: count" in done.stdout
