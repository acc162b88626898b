"""aiotrace's own events, and the experiment that they are for: page allocations with the free-list and without."""

from __future__ import annotations

import contextlib
import os
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

import aiotrace
from aiotrace._page import layout as L
from aiotrace._ring.arena import Arena
from aiotrace._ring.pool import Pool
from support import fakes

filler = aiotrace.event("own:filler", body="bytes")
BODY = bytes(1000)
"""Three such events fill a page of 4 KiB."""


def fill(pages: int) -> None:
    for _ in range(3 * pages):
        filler(BODY)


@pytest.mark.pure_too
@pytest.mark.parametrize("globs", [(), ("all",), ("*:*",), ("all", "aiotrace:overrun")])
def test_they_are_off_until_one_asks_for_them_by_name(globs: tuple[str, ...]) -> None:
    sink = fakes.Collect()
    with aiotrace.recording(sink, page_size=4096) as recording:
        for glob in globs:
            with contextlib.suppress(aiotrace.ConfigurationError):  # pure Python cannot trace tasks
                recording.enable(glob)
        fill(5)
    assert sink.named("own:filler")
    # A loss does not count: pure Python drops the event of a garbage collection in the middle of a call.
    assert not [event for event in sink.events if event.name.startswith("aiotrace:") and not event.is_loss]


@pytest.mark.pure_too
def test_each_page_is_allocated_once_with_one_event() -> None:
    sink = fakes.Collect()
    with aiotrace.recording(sink, page_size=4096, pages=16) as recording:
        recording.enable("aiotrace:page_alloc")
        fill(200)
        allocated = recording.statistics().pages_allocated
    told = [event.fields["page"] for event in sink.named("aiotrace:page_alloc")]
    assert len(told) == len(set(told)) == allocated <= 16


@pytest.mark.pure_too
def test_an_allocation_has_the_stack_of_the_call_that_needed_the_page() -> None:
    sink = fakes.Collect()
    with aiotrace.recording(sink, page_size=4096, pages=16) as recording:
        recording.enable("aiotrace:page_alloc")
        recording.trigger("aiotrace:page_alloc", "stacktrace")
        fill(20)
    stacks = sink.named("ftrace:kernel_stack")
    assert len(stacks) == len(sink.named("aiotrace:page_alloc")) > 0
    for stack in stacks:
        assert stack.text().splitlines()[1].startswith("=> fill (test_internal_events.py:")
        assert "_ring/writer.py" not in stack.text()


async def send(pages: int) -> None:
    """As `fill`, without loss."""
    for _ in range(3 * pages):
        await filler.send(BODY)


@pytest.mark.pure_too
@pytest.mark.anyio
async def test_without_the_free_list_every_page_taken_is_allocated(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AIOTRACE_DEBUG_NO_FREE_LIST", "1")
    sink = fakes.Collect()
    async with aiotrace.record(sink, page_size=4096, pages=16) as recording:
        recording.enable("aiotrace:page_alloc")
        await send(200)
    told = sink.named("aiotrace:page_alloc")
    taken = {(event.fields["writer"], event.fields["sequence"]) for event in told}
    assert len(told) == len(taken) == recording.statistics().pages_allocated >= 200


@pytest.mark.pure_too
@pytest.mark.anyio
async def test_acknowledged_and_returned_pages_emit_events() -> None:
    sink = fakes.Collect()
    async with aiotrace.record(sink, page_size=4096, pages=16) as recording:
        recording.enable("aiotrace:*")
        await send(100)
        before = recording.statistics()
    acknowledged, home = sink.named("aiotrace:sink_ack"), sink.named("aiotrace:page_recycle")
    assert {event.fields["sink"] for event in acknowledged} == {before.sinks[0].name}
    assert len(acknowledged) == before.sinks[0].pages_acknowledged > 80
    assert len(home) == before.pages_recycled
    assert all(event.fields["events"] > 0 for event in acknowledged)


@pytest.mark.pure_too
def test_overrun_event_has_the_number_of_lost_events() -> None:
    sink = fakes.Collect()
    with (
        aiotrace.recording(page_size=4096, pages=4, overrun="drop_oldest") as recording,
        aiotrace.recording(sink, pages=64) as other,
    ):
        other.enable("aiotrace:overrun")
        fill(50)
        overrun = recording.statistics().events_overrun
    assert sum(event.fields["events"] for event in sink.named("aiotrace:overrun")) == overrun > 100


@pytest.mark.pure_too
def test_a_thread_that_only_acknowledges_takes_no_writer() -> None:
    with aiotrace.recording(fakes.Collect(), page_size=4096, pages=16) as recording:
        fill(50)
        assert len(recording.statistics().writers) == 1


PROGRAM = """
import asyncio, aiotrace
step = aiotrace.event("app:step", n="u64", body="bytes")
async def main():
    for n in range(1500):
        await step.send(n, bytes(3000))
asyncio.run(main())
"""


def run_experiment(folder: Path, free_list: bool, trace_cmd: str) -> tuple[int, int, str]:
    """`page_alloc` events by our report and by trace-cmd's, and our report."""
    environment = {**os.environ, "AIOTRACE_DEBUG_NO_FREE_LIST": "" if free_list else "1"}
    folder.mkdir()
    command = [sys.executable, "-m", "aiotrace"]
    options = ["--exec", "-q", "-b", "64", "-e", "app:*", "-e", "aiotrace:page_alloc", "-R", "stacktrace"]
    (folder / "program.py").write_text(PROGRAM)
    subprocess.run([*command, "record", *options, "--", "program.py"], cwd=folder, env=environment, check=True)
    ours, theirs = (
        subprocess.run([*report, "trace.dat"], cwd=folder, check=True, capture_output=True, text=True).stdout
        for report in ([*command, "report"], [trace_cmd, "report", "-i"])
    )
    return ours.count(" page_alloc: "), theirs.count(" page_alloc: "), ours + theirs


def test_the_experiment(tmp_path: Path, trace_cmd: str) -> None:
    kept, kept_by_them, _ = run_experiment(tmp_path / "with", True, trace_cmd)
    freed, freed_by_them, text = run_experiment(tmp_path / "without", False, trace_cmd)
    assert 0 < kept == kept_by_them <= 16
    assert freed == freed_by_them > 1000
    calls = Counter(re.findall(r"^=> (main)", text, re.MULTILINE))
    assert calls["main"] == 2 * freed, "each has the stack of the program's call, in both reports"


@pytest.mark.pure_too
def test_page_returned_without_the_free_list_releases_its_memory() -> None:
    for keeps in (True, False):
        pool = Pool(Arena(4096, 2), keeps_memory=keeps)
        page = pool.take()
        assert page is not None
        memory = pool._arena.page(page)
        memory[100] = 7
        pool._arena.move(page, L.FILLING, L.FREE)
        pool.give_back(page)
        assert memory[100] == (7 if keeps else 0)
