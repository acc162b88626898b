"""Derived fields: in no record, but filters ask for them, in the program and of what is read."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

import aiotrace
from aiotrace._base.backend import c_module
from aiotrace._page.derived_fields import with_derived
from aiotrace._page.filter import compile_filter
from aiotrace.decode import Event, open_trace
from aiotrace_sinks import FileSink

TIMES = st.integers(1, 1 << 62)


@given(ready=TIMES, delay=st.integers(0, 1 << 40), duration=st.integers(0, 1 << 40))
def test_the_delay_of_a_step_is_from_ready_to_its_beginning(ready: int, delay: int, duration: int) -> None:
    fields = {"ready_ns": ready, "duration_ns": duration}
    assert with_derived("task:step", fields, ready + delay + duration) == {**fields, "delay_ns": delay}


@pytest.mark.parametrize(
    ("event", "fields"),
    [
        ("task:step", {"ready_ns": 0, "duration_ns": 5}),  # trio
        ("task:step", {"duration_ns": 5}),
        ("task:step", {"damaged": "cut"}),
        ("app:step", {"ready_ns": 10, "duration_ns": 5}),
    ],
)
def test_derived_field_is_missing_when_it_cannot_be_computed(event: str, fields: dict[str, int]) -> None:
    assert with_derived(event, fields, 1000) == fields
    assert not compile_filter("delay_ns >= 0")(with_derived(event, fields, 1000))


def test_a_clock_that_strays_makes_no_negative_delay() -> None:
    assert with_derived("task:step", {"ready_ns": 100, "duration_ns": 5}, 90)["delay_ns"] == 0


def test_field_of_the_record_has_precedence() -> None:
    fields = {"ready_ns": 10, "duration_ns": 5, "delay_ns": 7}
    assert with_derived("task:step", fields, 1000)["delay_ns"] == 7


DELAY = 20_000_000
"""Nanoseconds for which one task keeps the other from its turn."""


async def blocked() -> None:
    """A task that is ready, and waits for its turn."""

    async def wait() -> None:
        await asyncio.sleep(0)

    task = asyncio.create_task(wait(), name="late")
    end = time.monotonic_ns() + DELAY
    while time.monotonic_ns() < end:
        pass
    await task


def delay_of(step: Event) -> int:
    """0 if it is not known since when it was ready."""
    ready: int = step.fields["ready_ns"]
    return step.timestamp_ns - int(step.fields["duration_ns"]) - ready if ready else 0


needs_c = pytest.mark.skipif(c_module is None, reason="tasks are traced in C alone")


@needs_c
@pytest.mark.asyncio
async def test_filter_in_the_program_selects_steps_that_waited_to_run(tmp_path: Path) -> None:
    path = str(tmp_path / "t.dat")
    async with aiotrace.record(FileSink(path)) as recording:
        recording.enable("task:step")
        recording.filter("task:step", f"delay_ns >= {DELAY}")
        await blocked()
    with open_trace(path) as trace:
        steps = list(trace.events("task:step"))
    assert steps
    assert all(delay_of(step) >= DELAY and "delay_ns" not in step.fields for step in steps)


@needs_c
@pytest.mark.asyncio
async def test_a_trigger_by_it_fires_for_such_a_step_alone() -> None:
    async with aiotrace.record(overrun="drop_oldest") as recording:
        recording.enable("task:step")
        recording.trigger("task:step", f"traceoff if delay_ns > {1 << 60}")
        await blocked()
        assert recording.selection.is_on
        recording.trigger("task:step", f"traceoff if delay_ns >= {DELAY}")
        await blocked()
        assert not recording.selection.is_on


@needs_c
@pytest.mark.asyncio
async def test_a_filter_of_what_is_read_finds_them_too(tmp_path: Path) -> None:
    path = str(tmp_path / "t.dat")
    async with aiotrace.record(FileSink(path)) as recording:
        recording.enable("task:*")
        await blocked()
    with open_trace(path) as trace:
        late = [event for event in trace.events(where=f"delay_ns >= {DELAY}") if not event.is_loss]
        all_steps = list(trace.events("task:step"))
    assert {event.name for event in late} == {"task:step"}
    assert late == [step for step in all_steps if delay_of(step) >= DELAY]
    assert 1 <= len(late) < len(all_steps)


@needs_c
def test_derived_field_can_be_named_in_a_filter(recwarn: pytest.WarningsRecorder) -> None:
    with aiotrace.recording() as recording:
        recording.enable("task:step")
        recording.filter("task:step", "delay_ns > 5")
        recording.trigger("task:*", "stacktrace if delay_ns > 5")
        with pytest.raises(aiotrace.ConfigurationError, match="awaited, waker, delay_ns"):
            recording.filter("task:step", "dely_ns > 5")
    assert not recwarn.list
