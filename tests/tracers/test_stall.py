"""The watch over stalls: what is reported of a step that lasts too long, by whom, and how the watch begins and ends.

Times have lower bounds only: on a busy machine any step may last, so tests ask for the task whose stall they planted.
"""

from __future__ import annotations

import asyncio
import ctypes
import gc
import os
import re
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import anyio
import anyio.lowlevel
import pytest

import aiotrace
from aiotrace._base.backend import c_module
from aiotrace_sinks import MemorySink
from support.laws import check_closed

MS = 1_000_000
THRESHOLD = 0.03
LONG = 0.2
"""Seconds: a stall that the watch cannot miss unless the machine stands still."""
needs_c = pytest.mark.skipif(c_module is None, reason="NOT RUN: the watch over stalls is in the C module")


class Stalls:
    """The stall events of a recording, once it is closed."""

    def __init__(self) -> None:
        self.events: list[Any] = []

    def of(self, name: str, /, **fields: object) -> list[Any]:
        found = [event for event in self.events if event.name == f"stall:{name}"]
        return [event for event in found if all(event.fields[key] == value for key, value in fields.items())]

    def longest(self, task: int) -> Any:
        """The end of the longest stall of a task."""
        return max(self.of("end", task=task), key=lambda event: event.fields["duration_ns"])

    def stack_of(self, stall: Any) -> str:
        """The stack that belongs to a stall, as text; "" without one."""
        for event, following in zip(self.events, [*self.events[1:], None], strict=True):
            if event.name == "stall:stack" and event.fields["began_ns"] == stall.fields["began_ns"]:
                assert following.name == "ftrace:kernel_stack" and following.pid == event.pid
                return str(following.text())
        return ""


@contextmanager
def watched(threshold: float = THRESHOLD, **options: Any) -> Iterator[tuple[Any, Stalls]]:
    stalls = Stalls()
    sink = MemorySink()
    with aiotrace.recording(sink, **options) as recording:
        recording.disable("all")
        recording.watch_stalls(threshold)
        yield recording, stalls
    check_closed(recording.statistics())
    # By writer, as they were written: a stack is the record after its event.
    stalls.events = sorted(sink.events(), key=lambda event: event.cpu)


def has_line_of(function: Callable[[], None], stack: str) -> bool:
    """Whether a stack contains a line of a function."""
    code = function.__code__
    last = max(line for _, _, line in code.co_lines() if line is not None)
    found = re.findall(rf"=> {code.co_name}\S* \({os.path.basename(code.co_filename)}:(\d+)\)", stack)
    return any(code.co_firstlineno < int(line) <= last for line in found)


def line_of(function: Callable[[], None], text: str) -> str:
    """`file:line` of the first line of a function with that text."""
    code = function.__code__
    lines = Path(code.co_filename).read_text(encoding="utf-8").splitlines()
    number = next(n for n in range(code.co_firstlineno, len(lines)) if text in lines[n - 1])
    return f"{os.path.basename(code.co_filename)}:{number}"


# --- the stalls -------------------------------------------------------------------------------------


def run_python() -> None:
    end = time.monotonic() + LONG
    while time.monotonic() < end:
        pass


def hold_the_gil() -> None:
    function = ctypes.PyDLL(None).usleep  # PyDLL: it keeps the GIL while it sleeps
    for _ in range(3):
        function(int(LONG * 1e6))  # planted: C that holds the GIL


def count_in_c() -> None:
    end = time.monotonic() + LONG
    while time.monotonic() < end:
        sum(range(1_000_000))


def collect() -> None:
    kept = [[] for _ in range(100_000)]  # type: ignore[var-annotated]
    end = time.monotonic() + LONG
    while time.monotonic() < end:
        gc.collect()
    del kept


def block() -> None:
    time.sleep(LONG)  # planted: a system call


PLANTED: list[tuple[Callable[[], None], set[str]]] = [
    (run_python, {"python", "scheduler", "c_call"}),
    (hold_the_gil, {"c_call"}),
    (count_in_c, {"python", "c_call", "scheduler"}),
    (collect, {"gc"}),
    (block, {"blocked"}),
]
"""What stalls, and what may be said of its cause: on a busy machine the scheduler is one of what needs a processor."""


async def stall_in_task(function: Callable[[], None]) -> int:
    """Returns the task's id."""
    ids: list[int] = []

    async def stalls() -> None:
        await anyio.lowlevel.checkpoint()
        assert c_module is not None
        ids.append(c_module.get_task())
        function()

    async with anyio.create_task_group() as group:
        group.start_soon(stalls)
    return ids[0]


@needs_c
@pytest.mark.anyio
async def test_stall_is_noticed_with_its_stack_line_and_end_on_each_runtime() -> None:
    with watched() as (_, stalls):
        id = await stall_in_task(block)
    end = stalls.longest(id)
    (noticed,) = stalls.of("noticed", task=id, began_ns=end.fields["began_ns"])
    assert noticed.pid == end.pid == id
    assert noticed.fields["thread"] == end.fields["thread"] == threading.get_native_id()
    assert noticed.fields["lasted_ns"] >= THRESHOLD * 1e9
    assert end.fields["duration_ns"] >= LONG * 1e9
    assert line_of(block, "planted") in stalls.stack_of(end).splitlines()[1]


@needs_c
@pytest.mark.parametrize("planted", PLANTED, ids=lambda planted: planted[0].__name__)
def test_a_stall_has_a_line_and_a_cause(planted: tuple[Callable[[], None], set[str]]) -> None:
    function, causes = planted
    with watched() as (_, stalls):
        id = asyncio.run(stall_in_task(function))
    end = stalls.longest(id)
    assert end.fields["duration_ns"] >= LONG * 1e9
    assert end.fields["cause"] in causes, end
    assert has_line_of(function, stalls.stack_of(end)), stalls.stack_of(end)
    assert stalls.of("noticed", began_ns=end.fields["began_ns"])


@needs_c
def test_call_that_holds_the_gil_is_noticed_meanwhile() -> None:
    def hold() -> None:
        ctypes.PyDLL(None).usleep(int(3 * LONG * 1e6))

    with watched() as (_, stalls):
        id = asyncio.run(stall_in_task(hold))
    end = stalls.longest(id)
    (noticed,) = stalls.of("noticed", began_ns=end.fields["began_ns"])
    assert noticed.timestamp_ns - end.fields["began_ns"] < 3 * LONG * 1e9, "only who needs no GIL can write then"
    assert end.fields["gil_ns"] >= LONG * 1e9


@needs_c
def test_waiting_for_the_gil_is_a_cause() -> None:
    done = threading.Event()

    def spin() -> None:
        while not done.is_set():
            pass

    def compete() -> None:
        threads = [threading.Thread(target=spin) for _ in range(3)]
        for thread in threads:
            thread.start()
        run_python()
        done.set()
        for thread in threads:
            thread.join()

    with watched() as (_, stalls):
        id = asyncio.run(stall_in_task(compete))
    assert stalls.longest(id).fields["cause"] in {"gil", "scheduler"}


@needs_c
def test_program_without_a_stall_emits_no_events() -> None:
    async def main() -> None:
        for _ in range(2000):
            await asyncio.sleep(0)

    with watched(30) as (_, stalls):
        asyncio.run(main())
    assert stalls.events == []


@needs_c
def test_callback_outside_of_tasks_also_stalls_its_loop() -> None:
    async def main() -> None:
        done = asyncio.Event()

        def call() -> None:
            block()
            done.set()

        asyncio.get_running_loop().call_soon(call)
        await done.wait()

    with watched() as (_, stalls):
        asyncio.run(main())
    end = stalls.longest(0)
    assert end.fields["duration_ns"] >= LONG * 1e9
    assert line_of(block, "planted") in stalls.stack_of(end)
    assert end.pid == threading.get_native_id()


@needs_c
def test_an_exception_that_ends_a_stall_is_the_programs_all_the_same() -> None:
    def fail() -> None:
        block()
        raise KeyError("the program's")

    with watched() as (_, stalls), pytest.raises(KeyError, match="the program's"):
        asyncio.run(asyncio.wait_for(_call(fail), 60))
    assert max(event.fields["duration_ns"] for event in stalls.of("end")) >= LONG * 1e9


async def _call(function: Callable[[], None]) -> None:
    function()


@needs_c
def test_loops_of_several_threads_are_watched_together() -> None:
    both = threading.Barrier(2)
    ids: list[int] = []

    def run() -> None:
        ids.append(asyncio.run(stall_in_task(meet)))

    def meet() -> None:
        both.wait()
        block()

    with watched() as (_, stalls):
        threads = [threading.Thread(target=run) for _ in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    ends = [stalls.longest(id) for id in ids]
    assert len({end.fields["thread"] for end in ends}) == 2
    assert all(stalls.of("noticed", began_ns=end.fields["began_ns"]) for end in ends)


@needs_c
def test_stall_that_ended_before_the_gil_was_free_has_no_stack() -> None:
    async def main() -> None:
        asyncio.get_running_loop().call_soon(ctypes.PyDLL(None).usleep, int(2 * LONG * 1e6))  # no Python code at all
        await asyncio.sleep(0.01)

    with watched() as (_, stalls):
        asyncio.run(main())
    end = stalls.longest(0)
    assert end.fields["duration_ns"] >= LONG * 1e9
    assert stalls.of("noticed", began_ns=end.fields["began_ns"])
    assert stalls.stack_of(end) == "", "it would be another step's"


@needs_c
def test_the_service_of_a_recording_is_not_watched() -> None:
    done = threading.Event()

    def call() -> None:
        block()
        done.set()

    with watched() as (recording, stalls):
        recording._core.thread._loop.call_soon_threadsafe(call)
        done.wait()
        native_id = next(thread.native_id for thread in threading.enumerate() if thread.name == "aiotrace")
    assert stalls.of("noticed", thread=native_id) == []


# --- choosing ---------------------------------------------------------------------------------------


@needs_c
def test_filters_are_asked_also_of_what_the_watcher_notices() -> None:
    with watched() as (recording, stalls):
        recording.filter("stall:noticed", "lasted_ns > 1000000000000")
        id = asyncio.run(stall_in_task(block))
    assert stalls.of("noticed") == []
    assert stalls.longest(id).fields["duration_ns"] >= LONG * 1e9


@needs_c
def test_a_recording_without_a_free_slot_is_written_by_the_sampler() -> None:
    with watched(pages=4) as (recording, stalls):
        assert len(recording.statistics().writers) == 1
        id = asyncio.run(stall_in_task(block))
    end = stalls.longest(id)
    assert stalls.of("noticed", began_ns=end.fields["began_ns"])
    assert stalls.stack_of(end)


@needs_c
def test_both_recordings_get_stalls_at_the_lower_threshold() -> None:
    with watched(30) as (_, one):
        with watched() as (_, other):
            id = asyncio.run(stall_in_task(block))
        asyncio.run(stall_in_task(block))  # it is 30 s again
    for stalls in (one, other):
        assert len(stalls.of("noticed", began_ns=other.longest(id).fields["began_ns"])) == 1
        assert line_of(block, "planted") in stalls.stack_of(stalls.longest(id))
    assert {event.fields["task"] for event in one.of("end")} == {event.fields["task"] for event in other.of("end")}


@needs_c
@pytest.mark.parametrize("threshold", [0, 0.0001, -1, float("nan"), float("inf")])
def test_a_threshold_is_a_time_that_can_be_seen(threshold: float) -> None:
    with aiotrace.recording() as recording, pytest.raises(aiotrace.ConfigurationError, match="threshold="):
        recording.watch_stalls(threshold)


@pytest.mark.pure_too
@pytest.mark.skipif(c_module is not None, reason="of pure Python alone")
def test_without_the_c_module_the_watch_is_refused() -> None:
    with aiotrace.recording() as recording:
        with pytest.raises(aiotrace.ConfigurationError, match="needs the C module"):
            recording.watch_stalls()
        recording.enable("all")


# --- begin and end ----------------------------------------------------------------------------------


async def _stall_often() -> None:
    for _ in range(150):
        await asyncio.sleep(0)
        time.sleep(0.003)  # noqa: ASYNC251  # a stall is what it should be


@needs_c
def test_pages_are_turned_before_they_are_full() -> None:
    with watched(0.001, page_size=4096, pages=64) as (recording, stalls):
        asyncio.run(_stall_often())
        statistics = recording.statistics()
    assert statistics.events_dropped == 0
    assert len(stalls.of("noticed")) > 4096 // 44, "more than one page holds"
    told = {event.fields["began_ns"] for event in stalls.of("end")}
    assert {event.fields["began_ns"] for event in stalls.of("noticed")} <= told


@needs_c
def test_stall_events_without_a_page_are_counted() -> None:
    with aiotrace.recording(page_size=4096, pages=8) as recording:  # no sink: no page is returned to the pool
        recording.disable("all")
        recording.watch_stalls(0.001)
        asyncio.run(_stall_often())
    statistics = recording.statistics()
    check_closed(statistics)
    (watcher,) = [each for each in recording._core.writers.all if type(each).__name__ == "StallWriter"]
    assert watcher.written > 0
    assert watcher.dropped_by_cause()["no_page"] == watcher.dropped_total > 0


@needs_c
def test_the_watch_begins_and_ends_as_often_as_it_likes_while_loops_run() -> None:
    is_over = threading.Event()

    async def work() -> None:
        while not is_over.is_set():  # noqa: ASYNC110  # many steps are what it is for
            await asyncio.sleep(0)

    threads = [threading.Thread(target=asyncio.run, args=(work(),)) for _ in range(2)]
    with aiotrace.recording(MemorySink()) as recording:
        recording.disable("all")
        for thread in threads:
            thread.start()
        for _ in range(100):
            recording.watch_stalls(0.001)
            recording.disable("stall:*")
        is_over.set()
        for thread in threads:
            thread.join()
    check_closed(recording.statistics())
    assert not [thread for thread in threading.enumerate() if thread.name == "aiotrace stalls"]


@needs_c
def test_the_watch_may_end_in_the_middle_of_a_stall_and_begin_again() -> None:
    with watched() as (recording, stalls):

        def interrupt() -> None:
            block()
            recording.disable("stall:*")
            recording.watch_stalls(THRESHOLD)

        asyncio.run(stall_in_task(interrupt))
        id = asyncio.run(stall_in_task(block))
    assert stalls.longest(id).fields["duration_ns"] >= LONG * 1e9


@needs_c
def test_the_collectors_callbacks_are_as_they_were() -> None:
    before = list(gc.callbacks)
    with watched():
        assert gc.callbacks != before
    assert gc.callbacks == before


# --- other processes --------------------------------------------------------------------------------


def run(folder: Path, text: str) -> None:
    """Run a program that writes trace.dat; it has to end by itself, with status 0 and nothing on stderr."""
    done = subprocess.run(
        [sys.executable, "-c", text], cwd=folder, capture_output=True, text=True, timeout=60, env=os.environ
    )
    assert (done.returncode, done.stderr) == (0, "")


def events_of(path: Path) -> list[Any]:
    with aiotrace.open_trace(path) as trace:
        return [event for event in trace if event.name.startswith("stall:")]


DAEMON = """
threading.Thread(target=asyncio.run, args=(stall(),), daemon=True).start()
while not recording.statistics().events_written:  # until it is noticed
    time.sleep(0.01)
"""
EXIT = """
import asyncio, sys, threading, time
import aiotrace
from aiotrace_sinks import FileSink
recording = aiotrace.recording(FileSink("trace.dat")).__enter__()
recording.disable("all")
recording.watch_stalls(0.03)
async def stall():
    await asyncio.sleep(0)
    {stall}
{end}
"""


@needs_c
@pytest.mark.parametrize(
    ("stall", "end"),
    [
        ("time.sleep(0.2); sys.exit()", "asyncio.run(stall())"),
        ("time.sleep(60)", DAEMON),
        ("while True: pass", DAEMON),
    ],
    ids=["in its own step", "while a daemon thread blocks", "while a daemon thread runs"],
)
def test_the_interpreter_ends_during_a_stall(tmp_path: Path, stall: str, end: str) -> None:
    run(tmp_path, EXIT.format(stall=stall, end=end))
    assert "stall:noticed" in [event.name for event in events_of(tmp_path / "trace.dat")]


FORK = """
import asyncio, os, sys, time, warnings
import aiotrace
from aiotrace_sinks import FileSink
warnings.simplefilter("ignore")
async def stall():
    time.sleep(0.2)
    child = os.fork()
    time.sleep(0.2)
    if child:
        assert os.waitpid(child, 0)[1] == 0
async def again():
    time.sleep(0.2)
recording = aiotrace.recording(FileSink("trace.dat")).__enter__()
recording.watch_stalls(0.03)
pid = os.getpid()
loop = asyncio.new_event_loop()
loop.run_until_complete(stall())
if os.getpid() != pid:
    with aiotrace.recording(FileSink("child.dat")) as recording:
        recording.watch_stalls(0.03)
        asyncio.run(again())
    os._exit(0)
loop.close()
recording.close()
"""


@needs_c
def test_child_forked_during_a_stall_has_no_watch_until_it_starts_one(
    tmp_path: Path,
) -> None:
    run(tmp_path, FORK)
    parent, child = events_of(tmp_path / "trace.dat"), events_of(tmp_path / "child.dat")
    assert max(event.fields["duration_ns"] for event in parent if event.name == "stall:end") >= 400 * MS
    assert "stall:noticed" in [event.name for event in child]
    assert {event.fields["thread"] for event in parent}.isdisjoint(event.fields["thread"] for event in child)
