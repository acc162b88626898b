"""The tracer of tasks: what it records, on every backend, and that a program sees nothing of it."""

from __future__ import annotations

import asyncio
import contextvars
import gc
import inspect
import os
import subprocess
import sys
import threading
import weakref
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import anyio
import anyio.lowlevel
import pytest

import aiotrace
from aiotrace._base.backend import c_module
from aiotrace_sinks import FileSink

mark = aiotrace.event("task_tracer:mark", number="u32")
needs_c = pytest.mark.skipif(c_module is None, reason="tasks are traced by the C module")
HERE = os.path.abspath(__file__)


class Trace:
    """The events of a trace, once it is closed."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.events: list[Any] = []

    def read(self) -> None:
        with aiotrace.open_trace(str(self.path)) as trace:
            self.events = [event for event in trace if event.name.startswith(("task:", "task_tracer:", "loop:"))]

    def of(self, name: str, /, **fields: object) -> list[Any]:
        return [
            event
            for event in self.events
            if event.name == name and all(event.fields[key] == value for key, value in fields.items())
        ]

    def only(self, name: str, /, **fields: object) -> Any:
        found = self.of(name, **fields)
        assert len(found) == 1, (name, fields, found)
        return found[0]

    def id_of(self, name: str) -> int:
        """The id of the task of that name."""
        named = self.of("task:name", name=name) or self.of("task:spawn", name=name)
        assert len(named) == 1, (name, self.of("task:spawn"))
        return int(named[0].fields["task"])

    def of_task(self, name: str) -> list[tuple[str, str]]:
        """What happened to a task by name, in order, and where or how."""
        id = self.id_of(name)
        return [
            (event.name, str(event.fields.get("at", event.fields.get("result", ""))))
            for event in self.events
            if event.fields.get("task", event.pid) == id and event.name not in ("task:ready", "task:name", "task:alive")
        ]


@contextmanager
def tracing(path: Path, glob: str = "task:*") -> Iterator[Trace]:
    trace = Trace(path / "trace.dat")
    with aiotrace.recording(FileSink(trace.path)) as recording:
        recording.enable(glob)
        yield trace
        statistics = recording.statistics()
    assert statistics.events_dropped == 0
    trace.read()


def is_trio(backend: Any) -> bool:
    return bool(backend == "trio")


async def run_tasks(*functions: Callable[[], Awaitable[None]]) -> None:
    async with anyio.create_task_group() as group:
        for function in functions:
            group.start_soon(function, name=function.__name__)


# --- what is recorded, everywhere -------------------------------------------------------------------


@needs_c
@pytest.mark.anyio
async def test_a_task_is_spawned_runs_in_steps_and_is_done(tmp_path: Path) -> None:
    async def waits_once() -> None:
        mark(1)
        await anyio.lowlevel.checkpoint()
        mark(2)

    with tracing(tmp_path) as trace:
        await run_tasks(waits_once)
    id = trace.id_of("waits_once")
    assert id >= 1 << 22
    assert [event.pid for event in trace.of("task_tracer:mark")] == [id, id]
    happened = trace.of_task("waits_once")
    assert happened[-2:] == [("task:step", ""), ("task:done", "returned")]
    steps = [event for event in trace.of("task:step") if event.pid == id]
    assert len(steps) == 2 and steps[-1].fields["awaited"] == "done"
    assert all(event.fields["duration_ns"] > 0 for event in steps)
    spawn = trace.only("task:spawn", task=id)
    assert HERE in spawn.fields["coro"] and "waits_once" in spawn.fields["coro"]
    assert "run_tasks" in spawn.fields["site"] and HERE in spawn.fields["site"]


@needs_c
@pytest.mark.anyio
async def test_a_task_that_is_spawned_by_a_task_knows_its_parent(tmp_path: Path) -> None:
    async def inner() -> None:
        await anyio.lowlevel.checkpoint()

    async def outer() -> None:
        await anyio.lowlevel.checkpoint()
        await run_tasks(inner)

    with tracing(tmp_path) as trace:
        await run_tasks(outer)
    spawn = trace.only("task:spawn", task=trace.id_of("inner"))
    assert spawn.fields["parent"] == spawn.pid == trace.id_of("outer")


@needs_c
@pytest.mark.anyio
async def test_wait_of_a_task_is_its_innermost_coroutine(tmp_path: Path) -> None:
    event = anyio.Event()

    async def waits() -> None:
        await event.wait()

    async def sets() -> None:
        await anyio.lowlevel.checkpoint()
        event.set()

    with tracing(tmp_path) as trace:
        await run_tasks(waits, sets)
    id = trace.id_of("waits")
    awaited = [step.fields["awaited"] for step in trace.of("task:step") if step.pid == id]
    assert any("Event.wait" in each for each in awaited), awaited


@needs_c
def test_waits_in_a_shared_runtime_function_are_distinguished_by_caller(tmp_path: Path) -> None:
    trio = pytest.importorskip("trio")

    async def first() -> None:
        await trio.lowlevel.cancel_shielded_checkpoint()

    async def second() -> None:
        await trio.lowlevel.cancel_shielded_checkpoint()

    async def alternates() -> None:
        for _ in range(2):
            for function in (first, first, second):
                await function()

    async def main() -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(alternates, name="alternates")

    with tracing(tmp_path) as trace:
        trio.run(main)
    steps = [event for event in trace.of("task:step") if event.pid == trace.id_of("alternates")]
    names = [step.fields["awaited"].partition(" (")[0].rpartition(".")[2] for step in steps]
    assert names == ["first", "first", "second"] * 2 + ["done"]


@needs_c
def test_events_enabled_during_a_task_start_with_its_next_step(tmp_path: Path) -> None:
    async def lives() -> None:
        for number in range(6):
            if number == 4:
                recording.enable("sched:*")
            await asyncio.sleep(0)

    async def main() -> None:
        await asyncio.create_task(lives(), name="lives")

    with aiotrace.recording(FileSink(tmp_path / "trace.dat")) as recording:
        recording.enable("task:*")
        asyncio.run(main())
    with aiotrace.open_trace(str(tmp_path / "trace.dat")) as opened:
        events = list(opened)
    (id,) = {event.fields["task"] for event in events if event.fields.get("name") == "lives"}
    assert sum(event.name == "task:step" and event.pid == id for event in events) == 7
    assert sum(event.name == "sched:sched_switch" and event.fields["next_pid"] == id for event in events) == 2


@needs_c
@pytest.mark.anyio
async def test_step_has_the_time_and_the_cause_of_its_wakeup(tmp_path: Path, anyio_backend: Any) -> None:
    event = anyio.Event()

    async def waits() -> None:
        await event.wait()

    async def wakes() -> None:
        await anyio.lowlevel.checkpoint()
        await anyio.lowlevel.checkpoint()
        event.set()

    with tracing(tmp_path) as trace:
        await run_tasks(waits, wakes)
    last = [step for step in trace.of("task:step") if step.pid == trace.id_of("waits")][-1]
    if is_trio(anyio_backend):
        assert (last.fields["waker"], last.fields["ready_ns"]) == (0, 0)  # trio does not say
    else:
        assert last.fields["waker"] == trace.id_of("wakes")
        assert 0 < last.fields["ready_ns"] <= last.timestamp_ns - last.fields["duration_ns"] + 10_000
        assert [event.pid for event in trace.of("task:ready", task=trace.id_of("waits"))][-1] == trace.id_of("wakes")


@needs_c
@pytest.mark.anyio
async def test_a_task_that_raises_is_done_so(tmp_path: Path) -> None:
    async def raises() -> None:
        await anyio.lowlevel.checkpoint()
        raise KeyError("x")

    with tracing(tmp_path) as trace, pytest.raises(ExceptionGroup):
        await run_tasks(raises)
    done = trace.only("task:done", task=trace.id_of("raises"))
    assert (done.fields["result"], done.fields["exception"]) == ("raised", "KeyError")


@needs_c
@pytest.mark.anyio
async def test_cancelled_task_that_cleans_up_is_caught_and_done_cancelled(tmp_path: Path) -> None:
    async def cleans_up() -> None:
        try:
            await anyio.sleep_forever()
        finally:
            with anyio.CancelScope(shield=True):
                await anyio.sleep(0.001)

    with tracing(tmp_path) as trace:
        async with anyio.create_task_group() as group:
            group.start_soon(cleans_up, name="cleans_up")
            await anyio.sleep(0.001)
            group.cancel_scope.cancel()
    happened = [(name, at) for name, at in trace.of_task("cleans_up") if name not in ("task:step", "task:spawn")]
    names = [name for name, _ in happened]
    assert names[-1] == "task:done" and happened[-1][1] == "cancelled"
    assert names.index("task:delivered") < names.index("task:caught")
    assert "task:swallowed" not in names
    caught = [at for name, at in happened if name == "task:caught"]
    assert "cleans_up" in caught[0] and HERE in caught[0]


@needs_c
@pytest.mark.anyio
async def test_a_filter_is_of_steps_too(tmp_path: Path) -> None:
    async def short() -> None:
        await anyio.lowlevel.checkpoint()

    trace = Trace(tmp_path / "trace.dat")
    with aiotrace.recording(FileSink(trace.path)) as recording:
        recording.enable("task:step")
        recording.filter("task:step", 'awaited == "done"')
        await run_tasks(short, short)
    trace.read()
    assert [event.fields["awaited"] for event in trace.of("task:step")] == ["done", "done"]


@needs_c
@pytest.mark.anyio
async def test_two_recordings_are_both_given_every_step(tmp_path: Path) -> None:
    async def short() -> None:
        await anyio.lowlevel.checkpoint()

    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    with tracing(tmp_path / "a", "task:step") as a, tracing(tmp_path / "b", "task:step") as b:
        await run_tasks(short)
    assert len(a.events) == len(b.events) > 0


@needs_c
@pytest.mark.anyio
async def test_introspection_is_unchanged(tmp_path: Path, anyio_backend: Any) -> None:
    seen: list[Any] = []

    async def looks() -> None:
        await anyio.lowlevel.checkpoint()
        if is_trio(anyio_backend):
            import trio

            task: Any = trio.lowlevel.current_task()
            seen.extend([task.coro, task.name, [frame.f_code.co_name for frame, _ in task.iter_await_frames()]])
        else:
            current = asyncio.current_task()
            assert current is not None and current in asyncio.all_tasks()
            seen.extend([current.get_coro(), current.get_name(), [f.f_code.co_name for f in current.get_stack()]])
        await anyio.lowlevel.checkpoint()

    with tracing(tmp_path):
        await run_tasks(looks)
    coroutine, name, frames = seen
    assert inspect.iscoroutine(coroutine) and inspect.iscoroutinefunction(looks)
    assert coroutine.cr_code.co_name in ("looks", "_run_coro")  # newer versions of anyio wrap it
    assert repr(coroutine).startswith("<coroutine object ")
    assert name == "looks" and coroutine.cr_code.co_name in frames


@needs_c
@pytest.mark.anyio
async def test_nothing_is_known_of_tasks_that_are_done(tmp_path: Path) -> None:
    assert c_module is not None

    async def short() -> None:
        await anyio.lowlevel.checkpoint()

    with tracing(tmp_path, "task:step"):
        await run_tasks(short)
        before = c_module.task_counts()[0]
        await run_tasks(*[short] * 200)
        await run_tasks(short)
        assert c_module.task_counts()[0] <= before
    assert c_module.task_counts()[0] == 0


# --- asyncio alone ------------------------------------------------------------------------------------


def run(main: Callable[[], Awaitable[None]], debug: bool = False) -> None:
    with asyncio.Runner(debug=debug) as runner:
        runner.run(main())  # type: ignore[arg-type]


@needs_c
def test_cancellation_request_has_its_requester_line_and_message(tmp_path: Path) -> None:
    async def victim() -> None:
        await asyncio.Event().wait()

    async def main() -> None:
        task = asyncio.create_task(victim(), name="victim")
        await asyncio.sleep(0)
        task.cancel("enough")
        await asyncio.wait([task])

    with tracing(tmp_path) as trace:
        run(main)
    cancel = trace.only("task:cancel", task=trace.id_of("victim"))
    line = main.__code__.co_firstlineno + 3
    assert cancel.fields["message"] == "enough"
    assert cancel.fields["site"].endswith(f"main ({HERE}:{line})")
    assert cancel.fields["by"] == cancel.pid == trace.only("task:spawn", task=trace.id_of("victim")).pid
    assert [name for name, _ in trace.of_task("victim")] == [
        "task:spawn", "task:step", "task:cancel", "task:delivered", "task:step", "task:done",
    ]  # fmt: skip


@needs_c
def test_swallowed_cancellation_has_the_line_where_the_task_resumes(tmp_path: Path) -> None:
    async def stubborn() -> None:
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            pass
        await asyncio.sleep(0)

    async def main() -> None:
        task = asyncio.create_task(stubborn(), name="stubborn")
        await asyncio.sleep(0)
        task.cancel()
        await asyncio.wait([task])

    with tracing(tmp_path) as trace:
        run(main)
    swallowed = trace.only("task:swallowed")
    assert swallowed.fields["task"] == trace.id_of("stubborn")
    assert swallowed.fields["at"].endswith(f"({HERE}:{stubborn.__code__.co_firstlineno + 5})")
    assert trace.only("task:done", task=trace.id_of("stubborn")).fields["result"] == "returned"


@needs_c
def test_a_cancellation_that_is_taken_back_is_not_swallowed(tmp_path: Path) -> None:
    async def main() -> None:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.001):
                await asyncio.Event().wait()
        await asyncio.sleep(0)

    with tracing(tmp_path) as trace:
        run(main)
    assert trace.only("task:cancel").fields["by"] == 0
    assert len(trace.of("task:delivered")) == 1
    assert not trace.of("task:swallowed")


@needs_c
def test_cancellation_before_the_first_step_is_recorded(tmp_path: Path) -> None:
    async def never() -> None:
        raise AssertionError

    async def main() -> None:
        task = asyncio.create_task(never(), name="never")
        task.cancel()
        await asyncio.wait([task])

    with tracing(tmp_path) as trace:
        run(main)
    assert [name for name, _ in trace.of_task("never")][1:3] == ["task:cancel", "task:delivered"]
    assert trace.only("task:done", task=trace.id_of("never")).fields["result"] == "cancelled"


@needs_c
def test_requester_is_known_for_a_ready_or_running_task(tmp_path: Path) -> None:
    async def ready() -> None:
        await asyncio.sleep(0)

    async def itself() -> None:
        asyncio.current_task().cancel("itself")  # type: ignore[union-attr]
        await asyncio.sleep(0)

    async def main() -> None:
        tasks = [asyncio.create_task(ready(), name="ready"), asyncio.create_task(itself(), name="itself")]
        await asyncio.sleep(0)
        tasks[0].cancel("ready")
        assert (await asyncio.wait(tasks))[0] and not tasks[0].cancel("too late")

    with tracing(tmp_path) as trace:
        run(main)
    told = {cancel.fields["message"]: cancel for cancel in trace.of("task:cancel")}
    assert set(told) == {"ready", "itself"}
    assert told["ready"].fields["by"] == trace.only("task:spawn", task=trace.id_of("ready")).pid
    assert f"main ({HERE}:{main.__code__.co_firstlineno + 3})" in told["ready"].fields["site"]
    assert told["itself"].fields["by"] == trace.id_of("itself")


@needs_c
@pytest.mark.anyio
async def test_task_group_that_cancels_its_tasks_is_recorded(tmp_path: Path, anyio_backend: Any) -> None:
    async def waits() -> None:
        await anyio.sleep_forever()

    async def raises() -> None:
        await anyio.lowlevel.checkpoint()
        raise KeyError("x")

    with tracing(tmp_path) as trace, pytest.raises(ExceptionGroup):
        await run_tasks(waits, raises)
    assert trace.of("task:cancel", task=trace.id_of("waits"))


@needs_c
@pytest.mark.anyio
async def test_ending_task_wakes_its_waiter(tmp_path: Path, anyio_backend: Any) -> None:
    if is_trio(anyio_backend):
        pytest.skip("trio says nothing of it")

    async def ends() -> None:
        await asyncio.sleep(0)

    async def waits() -> None:
        await asyncio.create_task(ends(), name="ends")

    with tracing(tmp_path) as trace:
        await asyncio.create_task(waits(), name="waits")
    last = [step for step in trace.of("task:step") if step.pid == trace.id_of("waits")][-1]
    assert last.fields["waker"] == trace.id_of("ends")
    assert trace.of("task:ready", task=trace.id_of("waits"))[-1].pid == trace.id_of("ends")


@needs_c
@pytest.mark.parametrize("kind", ["C", "Python"])
def test_task_returns_its_original_coroutine(tmp_path: Path, kind: str) -> None:
    make: Any = asyncio.Task if kind == "C" else asyncio.tasks._PyTask  # type: ignore[attr-defined]

    async def waits(event: asyncio.Event) -> None:
        await event.wait()

    async def main() -> None:
        event = asyncio.Event()
        coroutine = waits(event)
        task = make(coroutine, loop=asyncio.get_running_loop())
        recording.enable("task:*")
        await asyncio.sleep(0)
        assert task.get_coro() is coroutine
        assert kind == "Python" or task._coro is coroutine
        assert "waits" in repr(task) and task.get_stack()[0].f_code is waits.__code__
        recording.disable("task:*")
        assert task.get_coro() is task._coro is coroutine
        recording.enable("task:*")
        event.set()
        await task
        assert task.get_coro() is task._coro is coroutine

    with aiotrace.recording() as recording:
        run(main)


@needs_c
def test_a_task_that_is_destroyed_pending_is_lost(tmp_path: Path) -> None:
    assert c_module is not None

    async def forgotten() -> None:
        await asyncio.get_running_loop().create_future()

    async def main() -> None:
        asyncio.get_running_loop().set_exception_handler(lambda loop, context: None)
        asyncio.create_task(forgotten(), name="forgotten")  # noqa: RUF006  # that is the point
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        gc.collect()
        mark(1)

    with tracing(tmp_path) as trace:
        run(main)
    done = trace.only("task:done", task=trace.id_of("forgotten"))
    assert done.fields["result"] == "lost"
    assert trace.events.index(done) < trace.events.index(trace.only("task_tracer:mark"))  # at once
    assert c_module.task_counts()[0] == 0


@needs_c
def test_tasks_of_closed_loops_are_lost_at_the_end_and_others_alive(tmp_path: Path) -> None:
    async def waits() -> None:
        await asyncio.get_running_loop().create_future()

    kept: list[asyncio.Task[None]] = []
    with tracing(tmp_path) as trace:
        loops = [asyncio.new_event_loop(), asyncio.new_event_loop()]
        for loop, name in zip(loops, ("stranded", "pending"), strict=True):
            kept.append(loop.create_task(waits(), name=name))
            loop.run_until_complete(asyncio.sleep(0))
        loops[0].close()
    assert trace.only("task:done", task=trace.id_of("stranded")).fields["result"] == "lost"
    assert trace.only("task:alive").fields["name"] == "pending"
    assert not trace.of("task:done", task=trace.id_of("pending"))
    kept[1].cancel()
    loops[1].run_until_complete(asyncio.wait(kept[1:]))
    loops[1].close()
    kept[0]._log_destroy_pending = False  # type: ignore[attr-defined]


@needs_c
def test_keyframe_lists_living_tasks(tmp_path: Path) -> None:
    async def waits(event: asyncio.Event) -> None:
        await event.wait()

    async def main() -> None:
        assert c_module is not None
        event = asyncio.Event()
        tasks = [asyncio.create_task(waits(event), name=f"waits {n}") for n in range(200)]
        await asyncio.sleep(0)
        c_module.task_round()
        event.set()
        await asyncio.wait(tasks)

    with tracing(tmp_path) as trace:
        run(main)
    alive = {event.fields["name"] for event in trace.of("task:alive")}
    assert alive >= {f"waits {n}" for n in range(200)}
    assert all("waits" in event.fields["coro"] for event in trace.of("task:alive") if "waits" in event.fields["name"])


@needs_c
def test_tasks_that_were_there_before_are_known_and_the_running_one_too(tmp_path: Path) -> None:
    async def old(event: asyncio.Event) -> None:
        await event.wait()
        mark(2)

    async def main() -> None:
        event = asyncio.Event()
        task = asyncio.create_task(old(event), name="old")
        await asyncio.sleep(0)
        with tracing(tmp_path) as trace:
            mark(1)
            event.set()
            await task
        ids = {each.fields["name"]: each.fields["task"] for each in trace.of("task:alive")}
        assert trace.only("task_tracer:mark", number=1).pid == ids[asyncio.current_task().get_name()]  # type: ignore[union-attr]
        assert trace.only("task_tracer:mark", number=2).pid == ids["old"]
        assert trace.only("task:done", task=ids["old"]).fields["result"] == "returned"
        assert not trace.of("task:spawn", task=ids["old"])

    run(main)


@needs_c
def test_tasks_written_in_python_are_traced_as_those_in_c(tmp_path: Path) -> None:
    python_task: Any = asyncio.tasks._PyTask  # type: ignore[attr-defined]

    async def works() -> None:
        mark(1)
        await asyncio.sleep(0)

    async def main() -> None:
        loop = asyncio.get_running_loop()
        await python_task(works(), loop=loop, name="python")

    with tracing(tmp_path) as trace:
        run(main)
    id = trace.id_of("python")
    assert trace.only("task_tracer:mark").pid == id
    assert trace.only("task:done", task=id).fields["result"] == "returned"
    assert len([step for step in trace.of("task:step") if step.pid == id]) == 2


@needs_c
def test_callback_that_is_a_method_of_a_task_is_not_a_step(tmp_path: Path) -> None:
    async def victim() -> None:
        await asyncio.Event().wait()

    async def main() -> None:
        task = asyncio.create_task(victim(), name="victim")
        await asyncio.sleep(0)
        asyncio.get_running_loop().call_soon(task.cancel)
        await asyncio.wait([task])

    with tracing(tmp_path) as trace:
        run(main)
    id = trace.id_of("victim")
    assert len([step for step in trace.of("task:step") if step.pid == id]) == 2
    assert trace.only("task:cancel").fields["by"] == 0


@needs_c
def test_ids_are_used_again_but_not_those_of_live_tasks(tmp_path: Path) -> None:
    async def waits(event: asyncio.Event) -> None:
        await event.wait()

    async def main() -> None:
        assert c_module is not None
        event = asyncio.Event()
        first = c_module.task_ids(5)
        assert first == (1 + os.getpid() % 511) << 22
        live = [asyncio.create_task(waits(event)) for _ in range(3)]
        assert [c_module.task_id(task) - first for task in live] == [5, 6, 7]
        c_module.task_ids(4)
        more = [asyncio.create_task(waits(event)) for _ in range(3)]
        assert [c_module.task_id(task) - first for task in more] == [4, 8, 9]
        c_module.task_ids((1 << 22) - 1)
        last = [asyncio.create_task(waits(event)) for _ in range(2)]
        assert c_module.task_id(last[0]) - first == (1 << 22) - 1
        assert c_module.task_id(last[1]) - first in (0, 1, 2, 3, 10)
        event.set()
        await asyncio.wait([*live, *more, *last])

    with tracing(tmp_path):
        run(main)


# --- asyncio: handles are asyncio's -------------------------------------------------------------------


@needs_c
@pytest.mark.parametrize("debug", [False, True])
def test_a_handle_is_as_asyncios_own(tmp_path: Path, debug: bool) -> None:
    def callback(*arguments: object) -> None:
        pass

    def look() -> tuple[object, ...]:
        loop = asyncio.new_event_loop()
        loop.set_debug(debug)
        handle = loop.call_soon(callback, 1, "two")
        text = repr(handle).split(" created at ")[0]
        trace = handle._source_traceback  # type: ignore[attr-defined]
        line = trace[-1].name if trace else None
        kept = weakref.ref(handle)
        handle.cancel()
        cancelled = repr(handle).split(" created at ")[0]
        result = (isinstance(handle, asyncio.Handle), text, line, kept() is handle, handle.cancelled(), cancelled)
        loop.close()
        del handle
        gc.collect()
        return (*result, kept() is None)

    plain = look()
    with tracing(tmp_path):
        assert look() == plain


@needs_c
def test_an_exception_of_a_callback_goes_to_the_loops_handler_as_it_did(tmp_path: Path) -> None:
    def fails(number: int) -> None:
        raise ZeroDivisionError(number)

    def look() -> tuple[object, ...]:
        loop = asyncio.new_event_loop()
        contexts: list[dict[str, Any]] = []
        is_handled: list[bool] = []

        def handler(loop: object, context: dict[str, Any]) -> None:
            contexts.append(context)
            is_handled.append(sys.exc_info()[1] is context["exception"])  # an assertion would be swallowed here

        loop.set_exception_handler(handler)
        loop.call_soon(fails, 7)
        loop.call_soon(loop.stop)
        loop.run_forever()
        loop.close()
        (context,) = contexts
        error = context["exception"]
        return (
            sorted(context),
            context["message"],
            type(error),
            error.args,
            isinstance(context["handle"], asyncio.Handle),
            is_handled,
        )

    plain = look()
    with tracing(tmp_path):
        assert look() == plain


@needs_c
@pytest.mark.parametrize("error", [SystemExit, KeyboardInterrupt])
def test_exception_that_ends_a_program_passes_through_a_handle(tmp_path: Path, error: type[BaseException]) -> None:
    def ends() -> None:
        raise error(3)

    with tracing(tmp_path):
        loop = asyncio.new_event_loop()
        loop.call_soon(ends)
        with pytest.raises(error):
            loop.run_forever()
        loop.close()


@needs_c
def test_a_callback_runs_in_its_context_and_a_foreign_context_by_its_run(tmp_path: Path) -> None:
    variable: contextvars.ContextVar[int] = contextvars.ContextVar("variable", default=0)
    seen: list[object] = []

    class Own:
        def run(self, callback: Callable[..., object], *arguments: object) -> object:
            seen.append("run")
            return callback(*arguments)

    with tracing(tmp_path):
        loop = asyncio.new_event_loop()
        context = contextvars.copy_context()
        context.run(variable.set, 5)
        loop.call_soon(lambda: seen.append(variable.get()), context=context)
        loop.call_soon(lambda: seen.append(variable.get()))
        loop.call_soon(seen.append, "own", context=Own())  # type: ignore[arg-type]
        loop.call_soon(loop.stop)
        loop.run_forever()
        loop.close()
    assert seen == [5, 0, "run", "own"]


@needs_c
def test_handles_are_restored_unless_patched_again(tmp_path: Path) -> None:
    plain = asyncio.Handle
    assert asyncio.events.Handle is plain
    with tracing(tmp_path):
        ours = asyncio.events.Handle
        assert ours is not plain and issubclass(ours, plain)
        loop = asyncio.new_event_loop()
        loop.call_soon(loop.stop)  # runs when the tracer is gone
    assert asyncio.events.Handle is plain
    loop.run_forever()
    loop.close()

    class Other(plain):  # type: ignore[misc,valid-type]
        pass

    (tmp_path / "again").mkdir()
    try:
        with tracing(tmp_path / "again"):
            assert asyncio.events.Handle is ours
            asyncio.events.Handle = Other  # type: ignore[misc]
        assert asyncio.events.Handle is Other
    finally:
        asyncio.events.Handle = plain  # type: ignore[misc]


@needs_c
def test_a_program_may_subclass_the_handle(tmp_path: Path) -> None:
    ran: list[int] = []
    with tracing(tmp_path):

        class Counting(asyncio.events.Handle):
            def _run(self) -> None:
                ran.append(1)
                super()._run()  # type: ignore[misc]

        loop = asyncio.new_event_loop()
        loop._ready.append(Counting(ran.append, (2,), loop, None))  # type: ignore[attr-defined]
        loop.call_soon(loop.stop)
        loop.run_forever()
        loop.close()
    assert ran == [1, 2]


@needs_c
def test_a_loop_that_schedules_in_its_own_way_is_reported(tmp_path: Path) -> None:
    class Own(asyncio.SelectorEventLoop):
        def call_soon(self, callback: Any, *args: Any, context: Any = None) -> Any:
            return super().call_soon(callback, *args, context=context)

    async def main() -> None:
        with pytest.warns(RuntimeWarning, match="are not traced"), aiotrace.recording() as recording:
            recording.enable("task:*")

    with asyncio.Runner(loop_factory=Own) as runner:
        runner.run(main())


@needs_c
def test_iterations_of_a_loop_are_recorded_by_a_tracer_of_their_own(tmp_path: Path) -> None:
    async def main() -> None:
        for _ in range(5):
            await asyncio.sleep(0)
        for _ in range(20):  # one of them is a wait, even if the machine stalls between a sleep and its poll
            await asyncio.sleep(0.002)

    with tracing(tmp_path, "loop:*") as trace:
        run(main)
    polls = [event.fields["poll_ns"] for event in trace.of("loop:iteration")]
    assert len(polls) > 6 and max(polls) > 500_000
    assert all(event.fields["ready"] < 10 for event in trace.of("loop:iteration"))


@needs_c
def test_loop_of_aiotrace_is_not_traced(tmp_path: Path) -> None:
    came = threading.Event()

    async def sink(stream: aiotrace.abc.PageStream) -> None:
        stream.accept_prefixes()
        async for page in stream:
            stream.acknowledge(page)
            came.set()

    trace = Trace(tmp_path / "trace.dat")
    with aiotrace.recording(FileSink(trace.path), sink, flush_interval=0.001) as recording:
        recording.enable("loop:*")
        mark(1)
        assert came.wait(60)  # its loop has run
        mark(2)
    trace.read()
    assert [event.name for event in trace.events] == ["task_tracer:mark"] * 2


# --- what comes late, and what forks ------------------------------------------------------------------

LATE = """
import asyncio, sys, aiotrace
from aiotrace_sinks import FileSink

async def works():
    await {sleep}

with aiotrace.recording(FileSink(sys.argv[1])) as recording:
    recording.enable("task:*")
    import {runtime}
    {run}
"""


@needs_c
@pytest.mark.parametrize(
    ("runtime", "sleep", "run"),
    [
        ("uvloop", "asyncio.sleep(0)", "uvloop.new_event_loop().run_until_complete(works())"),
        ("trio", "trio.lowlevel.checkpoint()", "trio.run(works)"),
    ],
)
def test_a_runtime_that_is_imported_while_tracing_is_traced(tmp_path: Path, runtime: str, sleep: str, run: str) -> None:
    pytest.importorskip(runtime)
    trace = Trace(tmp_path / "trace.dat")
    code = LATE.format(runtime=runtime, sleep=sleep, run=run)
    subprocess.run([sys.executable, "-c", code, str(trace.path)], check=True, timeout=60)
    trace.read()
    (spawn,) = [event for event in trace.of("task:spawn") if event.fields["coro"].startswith("works ")]
    id = spawn.fields["task"]
    assert trace.only("task:done", task=id).fields["result"] == "returned"
    assert len([step for step in trace.of("task:step") if step.pid == id]) == 2


@needs_c
@pytest.mark.parametrize("runtime", ["asyncio", "uvloop"])
def test_a_loop_that_was_made_before_is_traced(tmp_path: Path, runtime: str) -> None:
    async def works() -> None:
        mark(1)
        await asyncio.sleep(0)

    loop = pytest.importorskip(runtime).new_event_loop()
    task = loop.create_task(works(), name="works")
    with tracing(tmp_path) as trace:
        loop.run_until_complete(task)
    loop.close()
    id = trace.only("task:alive", name="works").fields["task"]
    assert trace.only("task_tracer:mark").pid == id
    assert len([step for step in trace.of("task:step") if step.pid == id]) == 2
    assert trace.only("task:done", task=id).fields["result"] == "returned"


@needs_c
def test_forked_child_knows_no_task_and_leaves_its_tasks_unchanged(tmp_path: Path) -> None:
    assert c_module is not None

    async def forks() -> int:
        assert c_module is not None
        task: Any = asyncio.current_task()
        child = os.fork()
        if child == 0:
            is_clean = c_module.task_counts()[0] == 0 and task.get_coro() is task._coro and c_module.get_task() == 0
            os._exit(0 if is_clean and asyncio.events.Handle is asyncio.Handle else 1)
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])  # noqa: ASYNC222  # nothing else is to run

    with tracing(tmp_path) as trace:
        assert asyncio.run(forks()) == 0
    done = [event for event in trace.of("task:done") if event.fields["result"] != "returned"]
    assert trace.of("task:done") and not done


# --- eager tasks --------------------------------------------------------------------------------------


@needs_c
@pytest.mark.skipif(sys.version_info < (3, 12), reason="tasks run at once from 3.12 on")
def test_eager_first_step_has_the_pid_of_its_task_and_factory_is_unchanged(tmp_path: Path) -> None:
    async def at_once(number: int) -> None:
        mark(number)
        if number:
            await asyncio.sleep(0)
            mark(number + 10)

    async def main() -> None:
        factory: Any = asyncio.eager_task_factory  # type: ignore[attr-defined,unused-ignore]
        loop = asyncio.get_running_loop()
        loop.set_task_factory(factory)
        assert loop.get_task_factory() is factory
        asyncio.create_task(at_once(0), name="done at once")  # noqa: RUF006
        mark(50)
        await asyncio.create_task(at_once(1), name="goes on")

    with tracing(tmp_path) as trace:
        run(main)
    here = trace.only("task_tracer:mark", number=50).pid
    assert trace.id_of("goes on") == trace.only("task_tracer:mark", number=1).pid
    for numbers in ([0], [1, 11]):
        id = trace.only("task_tracer:mark", number=numbers[0]).pid
        assert id != here
        assert [trace.only("task_tracer:mark", number=number).pid for number in numbers] == [id] * len(numbers)
        spawn = trace.only("task:spawn", task=id)
        assert spawn.fields["parent"] == here and "main" in spawn.fields["site"]
        assert trace.only("task:done", task=id).fields["result"] == "returned"


@needs_c
@pytest.mark.skipif(sys.version_info < (3, 12), reason="tasks run at once from 3.12 on")
def test_an_eager_first_step_that_ends_in_a_bare_yield_is_recorded(tmp_path: Path) -> None:
    async def yields() -> None:
        await asyncio.sleep(0)

    async def main() -> None:
        asyncio.get_running_loop().set_task_factory(asyncio.eager_task_factory)  # type: ignore[attr-defined,unused-ignore]
        await asyncio.create_task(yields(), name="yields")

    with tracing(tmp_path) as trace:
        run(main)
    steps = [step for step in trace.of("task:step") if step.pid == trace.id_of("yields")]
    assert len(steps) == 2 and steps[0].fields["awaited"].startswith("sleep ")
    assert steps[1].fields["waker"] == trace.id_of("yields")


# --- without the C module ---------------------------------------------------------------------------


@pytest.mark.pure_too
@pytest.mark.skipif(c_module is not None, reason="the C module is there")
def test_without_the_c_module_the_tracer_refuses(tmp_path: Path) -> None:
    with aiotrace.recording() as recording, pytest.raises(aiotrace.ConfigurationError, match="needs the C module"):
        recording.enable("task:*")
