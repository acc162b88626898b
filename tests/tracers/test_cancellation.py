"""The watch over cancellations: which tasks that do not obey in time are reported, and where they are.

Times have lower bounds only: a request that is obeyed is not reported, however long the machine takes for it.
"""

from __future__ import annotations

import asyncio
import gc
import threading
import time
import weakref
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Any

import anyio
import pytest

import aiotrace
from aiotrace._base.backend import c_module
from aiotrace._tracers import cancellation
from aiotrace_sinks import MemorySink

needs_c = pytest.mark.skipif(c_module is None, reason="NOT RUN: tasks are traced in C alone")
TIMEOUT = 0.02
FOREVER = 1e5
HERE = __file__.rpartition("/")[2]


class Told:
    """What came of `cancellation:overdue`, as it comes."""

    def __init__(self) -> None:
        self.count = 0
        self.sink = MemorySink()

    @property
    def events(self) -> list[Any]:
        """Once the recording is closed."""
        return [event for event in self.sink.events() if event.name == "cancellation:overdue"]

    def of(self, task: int) -> list[Any]:
        return [event for event in self.events if event.fields["task"] == task]

    def named(self, name: str) -> int:
        """The id of a task."""
        ids = {
            event.fields["task"]
            for event in self.sink.events()
            if event.name in ("task:spawn", "task:name") and event.fields["name"] == name
        }
        (id,) = ids
        return int(id)


@contextmanager
def watched(timeout: float = TIMEOUT) -> Iterator[Told]:
    told = Told()
    with aiotrace.recording(told.sink) as recording:
        recording.disable("all")
        recording.enable("task:spawn")
        recording.enable("task:name")
        recording.watch_cancellations(timeout)
        yield told


async def until(is_so: Callable[[], bool]) -> None:
    """aiotrace's thread gets there, however long the machine takes."""
    with anyio.fail_after(60):
        while not is_so():  # noqa: ASYNC110  # it has no loop, and knows no event of anyio's
            await anyio.sleep(TIMEOUT / 4)


def overdue_now() -> int:
    """How many requests are overdue and reported."""
    return sum(request.is_told for request in list(cancellation._requests.values()))


def line_of(function: Callable[..., Any], text: str) -> str:
    """How the first line of a function with that text is reported."""
    code = function.__code__
    with open(code.co_filename) as file:
        lines = file.read().splitlines()
    number = next(n for n in range(code.co_firstlineno, len(lines)) if text in lines[n - 1])
    return f"{HERE}:{number})"


async def clean_up(scope: anyio.CancelScope, release: anyio.Event) -> None:
    """Caught, and takes its time."""
    with scope:
        try:
            await anyio.sleep_forever()
        finally:
            with anyio.CancelScope(shield=True):
                await release.wait()  # here it stands


@needs_c
@pytest.mark.anyio
async def test_overlong_cleanup_is_reported_with_requester_and_current_line() -> None:
    scope, release = anyio.CancelScope(), anyio.Event()
    with watched(FOREVER) as told:
        async with anyio.create_task_group() as group:
            group.start_soon(clean_up, scope, release, name="slow")
            await anyio.wait_all_tasks_blocked()
            before = time.monotonic_ns()
            scope.cancel()
            await anyio.wait_all_tasks_blocked()
            look_now()
            await anyio.sleep(TIMEOUT)  # anyio asks again and again
            look_now()
            release.set()
    (event,) = told.events
    assert event.fields["task"] == told.named("slow")
    assert event.fields["at"].endswith(line_of(clean_up, "# here it stands"))
    assert event.fields["site"] != "?"
    assert before <= event.fields["requested_ns"] <= event.timestamp_ns


@needs_c
@pytest.mark.anyio
async def test_obeyed_or_left_cancellation_is_not_reported() -> None:
    with watched(FOREVER) as told:
        with anyio.CancelScope() as scope:
            scope.cancel()
            await anyio.sleep_forever()
        with anyio.move_on_after(0.001):
            await anyio.sleep_forever()
        async with anyio.create_task_group() as group:
            group.start_soon(anyio.sleep_forever)
            await anyio.wait_all_tasks_blocked()
            group.cancel_scope.cancel()
        assert pending() > 0
        look_now()
        assert pending() == 0
    assert told.events == []


@needs_c
@pytest.mark.anyio
async def test_ended_tasks_of_a_scope_obeyed() -> None:
    scope, release = anyio.CancelScope(), anyio.Event()
    with watched(FOREVER) as told:
        async with anyio.create_task_group() as group:
            group.start_soon(clean_up, scope, release, name="slow")
            group.start_soon(anyio.sleep_forever, name="quick")
            await anyio.wait_all_tasks_blocked()
            group.cancel_scope.cancel()
            with anyio.CancelScope(shield=True):
                await anyio.wait_all_tasks_blocked()
                standing = {each.id for each in cancellation._requests.values() if each.standing() is not None}
                release.set()
    assert told.named("slow") in standing
    assert told.named("quick") not in standing


def pending() -> int:
    return len(cancellation._requests)


def look_now() -> None:
    """As if the time were over, for those that were not looked at yet."""
    for request in list(cancellation._requests.values()):
        if not request.is_told:
            cancellation._look(request)


# --- asyncio ------------------------------------------------------------------------------------------


@asynccontextmanager
async def stubborn() -> AsyncIterator[tuple[asyncio.Task[None], asyncio.Event]]:
    """A task that swallows each cancellation until it is released."""
    release = asyncio.Event()

    async def go_on() -> None:
        while not release.is_set():
            try:
                await release.wait()  # it continues
            except asyncio.CancelledError:
                pass

    task = asyncio.create_task(go_on(), name="stubborn")
    await asyncio.sleep(0)
    try:
        yield task, release
    finally:
        release.set()
        await task


@needs_c
@pytest.mark.asyncio
async def test_swallowed_cancellation_is_reported_once_per_pending_request() -> None:
    with watched() as told:
        async with stubborn() as (task, _):
            task.cancel()
            await until(lambda: overdue_now() == 1)
            task.cancel()  # the first still stands
            await asyncio.sleep(3 * TIMEOUT)
            task.uncancel()
            task.uncancel()
            task.cancel()
            await until(lambda: overdue_now() == 1)
    events = told.of(told.named("stubborn"))
    assert len(events) == 2
    for event, text in zip(events, ("task.cancel()", "task.cancel()"), strict=True):
        assert HERE in event.fields["site"], text
        assert event.fields["by"] > 0
    assert events[0].fields["requested_ns"] < events[1].fields["requested_ns"]
    for event in events:
        assert event.timestamp_ns >= event.fields["requested_ns"] + TIMEOUT * 1e9


@needs_c
@pytest.mark.asyncio
async def test_request_withdrawn_in_time_is_not_reported() -> None:
    with watched(FOREVER) as told:
        async with stubborn() as (task, _):
            task.cancel()
            task.uncancel()
            look_now()
            assert pending() == 0
    assert told.events == []


@needs_c
@pytest.mark.asyncio
async def test_running_task_that_does_not_yield_is_reported_with_its_line() -> None:
    def spin() -> None:
        looker = threading.Thread(target=look_now)
        looker.start()
        while looker.is_alive():
            pass  # the planted line

    async def busy() -> None:
        asyncio.current_task().cancel()  # type: ignore[union-attr]
        spin()
        await asyncio.sleep(0)

    with watched(FOREVER) as told:
        task = asyncio.create_task(busy(), name="busy")
        with pytest.raises(asyncio.CancelledError):
            await task
    (event,) = told.of(told.named("busy"))
    assert ".spin (" in event.fields["at"] or "threading" in event.fields["at"]
    assert event.fields["by"] == event.fields["task"]


@needs_c
@pytest.mark.asyncio
async def test_the_watch_keeps_no_task_alive() -> None:
    with watched(FOREVER) as told:

        async def wait() -> None:
            await asyncio.sleep(60)

        task = asyncio.create_task(wait())
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        ref = weakref.ref(task)
        assert pending() == 1
        del task
        await asyncio.sleep(0)  # whose step has woken us
        gc.collect()
        assert ref() is None
        assert pending() == 0
    assert told.events == []


@needs_c
def test_a_trigger_hangs_on_it() -> None:
    async def main() -> None:
        async with stubborn() as (task, _):
            task.cancel()
            await until(lambda: not recording.selection.is_on)

    with aiotrace.recording() as recording:
        recording.watch_cancellations(TIMEOUT)
        recording.trigger("cancellation:overdue", "traceoff")
        asyncio.run(main())


@needs_c
@pytest.mark.asyncio
async def test_the_least_time_that_a_recording_asks_for_goes_for_all() -> None:
    with watched(FOREVER) as told, aiotrace.recording() as other:
        other.watch_cancellations(TIMEOUT)
        async with stubborn() as (task, _):
            task.cancel()
            await until(lambda: overdue_now() == 1)
    assert len(told.events) == 1


# --- start and stop -----------------------------------------------------------------------------------


def threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "aiotrace cancellations"]


@needs_c
@pytest.mark.asyncio
async def test_thread_exists_only_while_cancellations_are_watched() -> None:
    with watched(FOREVER):
        ours = threads()
        assert len(ours) == 1
        async with stubborn() as (task, _):
            task.cancel()
    for thread in ours:
        thread.join(60)
        assert not thread.is_alive()
    assert pending() == 0


@needs_c
@pytest.mark.parametrize("timeout", [0, -1, float("inf"), float("nan")])
def test_invalid_time_is_refused(timeout: float) -> None:
    with aiotrace.recording() as recording, pytest.raises(aiotrace.ConfigurationError, match="a time in seconds"):
        recording.watch_cancellations(timeout)


@pytest.mark.pure_too
@pytest.mark.skipif(c_module is not None, reason="the message of pure Python")
def test_watching_cancellations_requires_the_c_module() -> None:
    with aiotrace.recording() as recording, pytest.raises(aiotrace.ConfigurationError, match="C module"):
        recording.watch_cancellations()
