"""The switches of tasks, in the kernel's words: each begin has its end, and nothing is recorded where they are off."""

from __future__ import annotations

import asyncio
import re
import subprocess
import sys
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import anyio
import anyio.lowlevel
import pytest
from hypothesis import given
from hypothesis import strategies as st

import aiotrace
from aiotrace._base.backend import c_module
from aiotrace._events.selection import Selection
from aiotrace._formats.tracedat import _command_lines
from aiotrace._page.event_schema import COMM, Schema
from aiotrace_sinks import FileSink

mark = aiotrace.event("sched_test:mark", number="u32")
needs_c = pytest.mark.skipif(c_module is None, reason="tasks are traced by the C module")

RUNS_ON, WAITS, ENDED = 0, 1, 16
FIRST_ID = 1 << 22
"""Pids of tasks begin here."""


class Trace:
    """The events of a trace, once it is closed."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.events: list[Any] = []

    def of(self, name: str) -> list[Any]:
        return [event for event in self.events if event.name == name]

    @property
    def switches(self) -> list[Any]:
        return self.of("sched:sched_switch")

    def states_of(self, comm: str) -> list[int]:
        """What a task's steps came to, in order."""
        return [each.fields["prev_state"] for each in self.switches if each.fields["prev_comm"] == comm]

    def pid_of(self, comm: str) -> int:
        (pid,) = {each.fields["prev_pid"] for each in self.switches if each.fields["prev_comm"] == comm}
        return int(pid)

    def check(self) -> None:
        """The law: from a switch on, records carry the pid that it goes to; each switch to a task is taken back."""
        here: dict[int, int] = {}
        left: dict[int, list[tuple[int, str]]] = {}
        for event in self.events:
            if event.name == "sched:sched_waking":
                continue  # a factory that only makes a task wakes it on behalf of its caller
            assert here.setdefault(event.cpu, event.pid) == event.pid, event
            if event.name != "sched:sched_switch":
                continue
            fields, below = event.fields, left.setdefault(event.cpu, [])
            assert fields["prev_pid"] == event.pid
            here[event.cpu] = fields["next_pid"]
            if below and fields["next_pid"] == below[-1][0]:
                assert (fields["next_pid"], fields["next_comm"]) == below.pop()
            else:
                assert fields["next_pid"] >= FIRST_ID and fields["prev_state"] == RUNS_ON
                below.append((fields["prev_pid"], fields["prev_comm"]))
        assert not any(left.values())


@contextmanager
def tracing(folder: Path, *globs: str) -> Iterator[Trace]:
    trace = Trace(folder / "trace.dat")
    with aiotrace.recording(FileSink(trace.path)) as recording:
        for glob in globs:
            recording.enable(glob)
        yield trace
        assert recording.statistics().events_dropped == 0
    with aiotrace.open_trace(str(trace.path)) as events:
        trace.events = list(events)


def run(backend: Any, main: Callable[[], Coroutine[Any, Any, None]]) -> None:
    """A loop of its own, all of whose steps are within the recording."""
    name, options = (backend, {}) if isinstance(backend, str) else backend
    anyio.run(main, backend=name, backend_options=options)


def is_eager(backend: Any) -> bool:
    return "loop_factory" in backend[1]


async def run_tasks(*functions: Callable[[], Coroutine[Any, Any, None]]) -> None:
    async with anyio.create_task_group() as group:
        for function in functions:
            group.start_soon(function, name=function.__name__)


# --- every backend --------------------------------------------------------------------------------


@needs_c
def test_pid_of_records_follows_each_switch_to_a_task_and_back(tmp_path: Path, anyio_backend: Any) -> None:
    async def one() -> None:
        mark(1)
        await anyio.lowlevel.checkpoint()
        mark(2)
        await anyio.lowlevel.checkpoint()

    async def two() -> None:
        mark(3)
        await run_tasks(one)

    async def main() -> None:
        await run_tasks(one, two)

    with tracing(tmp_path, "sched:sched_switch") as trace:
        mark(0)
        run(anyio_backend, main)
        mark(4)
    trace.check()
    marks = trace.of("sched_test:mark")
    assert len(marks) == 7
    assert marks[0].pid == marks[-1].pid < FIRST_ID <= min(each.pid for each in marks[1:-1])
    assert {each.fields["prev_prio"] for each in trace.switches} == {120}


@needs_c
def test_previous_state_of_a_switch_is_waiting_or_done(tmp_path: Path, anyio_backend: Any) -> None:
    async def sleeper() -> None:
        await anyio.lowlevel.checkpoint()
        await anyio.sleep(0.001)

    async def raiser() -> None:
        await anyio.lowlevel.checkpoint()
        raise KeyError

    with tracing(tmp_path, "sched:*") as trace:

        async def main() -> None:
            with pytest.raises(ExceptionGroup):
                await run_tasks(raiser)
            await run_tasks(sleeper)

        run(anyio_backend, main)
    trace.check()
    # The first may have run before it had a name.
    assert trace.states_of("sleeper") in ([RUNS_ON, WAITS, ENDED], [WAITS, ENDED])
    assert trace.states_of("raiser") in ([RUNS_ON, ENDED], [ENDED])


@needs_c
def test_waker_of_a_task_is_recorded_unless_it_resumes_by_itself(tmp_path: Path, anyio_backend: Any) -> None:
    event = anyio.Event()

    async def waits() -> None:
        await event.wait()
        await anyio.lowlevel.checkpoint()

    async def wakes() -> None:
        await anyio.sleep(0.001)
        event.set()

    with tracing(tmp_path, "sched:*") as trace:
        run(anyio_backend, lambda: run_tasks(waits, wakes))
    woken = [each for each in trace.of("sched:sched_waking") if each.fields["pid"] == trace.pid_of("waits")]
    if anyio_backend == "trio":
        assert woken == []  # trio does not say
        return
    assert woken[-1].pid == trace.pid_of("wakes")
    assert woken[-1].fields["comm"] == "waits" and woken[-1].fields["prio"] == 120
    if not is_eager(anyio_backend):
        assert len(woken) == 2  # the first is of its making


@needs_c
def test_trace_cmd_and_report_print_our_switches_like_kernel_ones(
    tmp_path: Path, anyio_backend: Any, trace_cmd: str
) -> None:
    async def sleeper() -> None:
        await anyio.lowlevel.checkpoint()
        await anyio.sleep(0.001)

    with tracing(tmp_path, "sched:*") as trace:
        run(anyio_backend, lambda: run_tasks(sleeper))
    theirs = subprocess.run([trace_cmd, "report", str(trace.path)], capture_output=True, text=True, check=True).stdout
    lines = [line.partition("sched_switch:")[2].strip() for line in theirs.splitlines() if "sched_switch:" in line]
    ours = [str(each.text()).strip() for each in trace.switches]
    assert lines == ours
    assert re.search(r"^\S+:\d+ \[120] R ==> sleeper:\d{7,} \[120]$", "\n".join(lines), re.MULTILINE)
    assert re.search(r"^sleeper:\d{7,} \[120] S ==> \S+:\d+ \[120]$", "\n".join(lines), re.MULTILINE)
    assert re.search(r"^sleeper:\d{7,} \[120] Z ==> \S+:\d+ \[120]$", "\n".join(lines), re.MULTILINE)
    if anyio_backend != "trio":
        assert re.search(r"sched_waking: +comm=sleeper pid=\d{7,} prio=120$", theirs, re.MULTILINE)


@needs_c
def test_switch_filter_sees_task_names_and_python_emits_its_matches(tmp_path: Path, anyio_backend: Any) -> None:
    async def long_named() -> None:
        await anyio.sleep(0.001)

    async def other() -> None:
        await anyio.sleep(0.001)

    trace = Trace(tmp_path / "trace.dat")
    with aiotrace.recording(FileSink(trace.path)) as recording:
        recording.enable("sched:sched_switch")
        recording.filter("sched:sched_switch", 'prev_comm == "long_named"')
        run(anyio_backend, lambda: run_tasks(long_named, other))
    with aiotrace.open_trace(str(trace.path)) as events:
        trace.events = list(events)
    assert {each.fields["prev_comm"] for each in trace.switches} == {"long_named"}
    assert trace.states_of("long_named")[-1] == ENDED
    assert {each.pid for each in trace.switches} == {trace.pid_of("long_named")}


# --- nested steps ---------------------------------------------------------------------------------


@needs_c
@pytest.mark.skipif(sys.version_info < (3, 12), reason="tasks run at once from 3.12 on")
def test_a_step_within_a_step_goes_back_to_the_outer_task(tmp_path: Path) -> None:
    async def inner() -> None:
        mark(2)

    async def fails() -> None:
        raise KeyError

    async def main() -> None:
        loop = asyncio.get_running_loop()
        loop.set_task_factory(asyncio.eager_task_factory)  # type: ignore[attr-defined,unused-ignore]
        mark(1)
        await loop.create_task(inner())
        with pytest.raises(KeyError):
            await loop.create_task(fails())
        mark(3)
        loop.set_task_factory(lambda loop, coroutine, **_: asyncio.Task(coroutine, loop=loop))
        await loop.create_task(inner())

    with tracing(tmp_path, "sched:sched_switch") as trace:
        asyncio.run(main())
    trace.check()
    outer, nested, again, later = (each.pid for each in trace.of("sched_test:mark"))
    assert outer == again and len({outer, nested, later}) == 3
    (left,) = [each for each in trace.switches if each.pid == nested]
    assert (left.fields["next_pid"], left.fields["prev_state"]) == (outer, ENDED)
    states = [each.fields["prev_state"] for each in trace.switches if each.pid == later]
    assert states == [RUNS_ON, ENDED]  # its making, and its only step


@needs_c
@pytest.mark.skipif(sys.version_info < (3, 12), reason="tasks have factories from 3.12 on that may fail")
def test_a_factory_that_fails_leaves_no_task_running(tmp_path: Path) -> None:
    def fail(loop: Any, coroutine: Any, **_: Any) -> Any:
        coroutine.close()
        raise KeyError

    async def main() -> None:
        loop = asyncio.get_running_loop()
        loop.set_task_factory(fail)
        with pytest.raises(KeyError):
            await loop.create_task(asyncio.sleep(0))
        loop.set_task_factory(None)
        mark(1)

    with tracing(tmp_path, "sched:sched_switch") as trace:
        asyncio.run(main())
    trace.check()
    assert ENDED in trace.states_of("<...>")


# --- off, and on in the middle --------------------------------------------------------------------


@pytest.mark.parametrize("glob", ["all", "*", "task:*", "*:*"])
def test_everything_is_without_switches(glob: str) -> None:
    selection = Selection()
    selection.enable(glob)
    assert not selection.is_enabled("sched:sched_switch", by_default=False)
    assert not selection.wants_system("sched", explicit=True)


@pytest.mark.parametrize("glob", ["sched:*", "sched", "sched:sched_switch"])
def test_switches_are_chosen_by_their_own_name(glob: str) -> None:
    selection = Selection()
    selection.enable(glob)
    assert selection.is_enabled("sched:sched_switch", by_default=False)
    assert selection.wants_system("sched", explicit=True)


@needs_c
def test_disabled_switches_emit_nothing(tmp_path: Path, anyio_backend: Any) -> None:
    async def main() -> None:
        await anyio.sleep(0.001)

    (tmp_path / "first").mkdir()
    with tracing(tmp_path / "first", "sched:*"):
        run(anyio_backend, main)
    with tracing(tmp_path, "task:*") as trace:
        run(anyio_backend, main)
    assert trace.of("task:step")
    assert [each for each in trace.events if each.name.startswith("sched:")] == []


@needs_c
def test_step_in_which_switches_are_toggled_has_no_half(tmp_path: Path, anyio_backend: Any) -> None:
    trace = Trace(tmp_path / "trace.dat")

    async def main() -> None:
        recording.enable("sched:sched_switch")
        await anyio.sleep(0.001)
        mark(1)
        await anyio.sleep(0.001)
        recording.disable("sched:*")
        await anyio.sleep(0.001)

    with aiotrace.recording(FileSink(trace.path)) as recording:
        recording.enable("task:*")
        run(anyio_backend, main)
    with aiotrace.open_trace(str(trace.path)) as events:
        trace.events = list(events)
    (marked,) = trace.of("sched_test:mark")
    ours = [each for each in trace.switches if marked.pid in (each.fields["prev_pid"], each.fields["next_pid"])]
    assert [each.fields["next_pid"] == marked.pid for each in ours] == [True, False, True]


# --- names ----------------------------------------------------------------------------------------


@needs_c
@given(st.text(max_size=20) | st.text("é€𝄞 \ud800\x00a", max_size=20))
def test_a_comm_is_the_name_as_the_saved_command_lines_have_it(name: str) -> None:
    assert c_module is not None
    assert b"7 %s\n" % c_module.task_comm(name) == _command_lines({7: name})


@given(st.text())
def test_a_comm_of_python_is_cut_to_fifteen_bytes_and_has_its_end(name: str) -> None:
    schema = Schema("sched_test:comm", {"pid": "u16", "comm": COMM, "prio": "s32"})
    assert [field.offset for field in schema.fields] == [8, 10, 28]
    payload = schema.encode(1, 2, (3, name, 4), lambda text: 0)
    comm = payload[10:26]
    assert len(payload) == 32 and comm[15] == 0 and payload[28:] == (4).to_bytes(4, sys.byteorder)
    assert name.encode("utf-8", "replace").startswith(comm.rstrip(b"\0"))
