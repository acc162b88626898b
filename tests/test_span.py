"""Spans: begin and end, nested per task, plain and typed; the same on C and on Python."""

from __future__ import annotations

import asyncio
import gc
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import anyio
import pytest
from aiotrace_sinks import MemorySink

import aiotrace

query = aiotrace.span_type("spantest:query", table="symbol", rows="u32")


@contextmanager
def recorded() -> Iterator[Callable[[], list[Any]]]:
    sink = MemorySink()
    with aiotrace.recording(sink) as recording:
        yield lambda: list(sink.events())
    assert recording.statistics().events_lost == 0


def test_a_span_begins_and_ends_with_its_name_and_fields() -> None:
    with recorded() as events, aiotrace.span("db.query", table="users", rows=3):
        pass
    begin, end = events()
    assert (begin.name, end.name) == ("span:begin", "span:end")
    assert begin.fields["name"] == end.fields["name"] == "db.query"
    assert begin.fields["fields"] == "table='users' rows=3"
    assert begin.fields["id"] == end.fields["id"] > 0
    assert begin.fields["parent"] == 0
    assert end.fields["duration_ns"] <= end.timestamp_ns - begin.timestamp_ns


def test_typed_spans_have_typed_fields_by_position_and_by_name() -> None:
    with recorded() as events:
        with query("users", 7):
            pass
        with query(rows=8, table="orders"):
            pass
        with query("carts", rows=9):
            pass
    found = events()
    assert [event.name for event in found] == ["spantest:query_begin", "spantest:query_end"] * 3
    assert [(e.fields["table"], e.fields["rows"]) for e in found[::2]] == [("users", 7), ("orders", 8), ("carts", 9)]


def test_spans_nest_and_siblings_share_a_parent() -> None:
    with recorded() as events:
        with aiotrace.span("outer"):
            with aiotrace.span("first"):
                pass
            with query("t", 1):
                pass
        with aiotrace.span("after"):
            pass
    begins = [event for event in events() if event.name.endswith("begin")]
    outer, first, second, after = (event.fields for event in begins)
    assert (first["parent"], second["parent"]) == (outer["id"], outer["id"])
    assert after["parent"] == 0
    assert len({outer["id"], first["id"], second["id"], after["id"]}) == 4


@pytest.mark.anyio
async def test_each_task_nests_for_itself_and_begins_in_the_span_that_spawned_it() -> None:
    sink = MemorySink()
    both = [anyio.Event(), anyio.Event()]

    async def child(number: int) -> None:
        with aiotrace.span(f"child{number}"):
            both[number].set()
            await both[1 - number].wait()
            with aiotrace.span(f"grandchild{number}"):
                await anyio.lowlevel.checkpoint()

    async with aiotrace.record(sink):
        with aiotrace.span("root"):
            async with anyio.create_task_group() as group:
                group.start_soon(child, 0)
                group.start_soon(child, 1)
    begun = {e.fields["name"]: e.fields for e in sink.events() if e.name == "span:begin"}
    for number in (0, 1):
        assert begun[f"child{number}"]["parent"] == begun["root"]["id"]
        assert begun[f"grandchild{number}"]["parent"] == begun[f"child{number}"]["id"]


def test_an_exception_passes_through_and_the_span_ends() -> None:
    with recorded() as events:
        with pytest.raises(KeyError, match="mine"), aiotrace.span("failing"):
            raise KeyError("mine")
        with aiotrace.span("next"):
            pass
    assert [event.name for event in events()] == ["span:begin", "span:end"] * 2
    assert events()[2].fields["parent"] == 0


def test_a_span_without_a_recording_is_none_even_if_one_opens_meanwhile() -> None:
    class Loud:
        def __repr__(self) -> str:
            raise AssertionError("nobody records")

    span = aiotrace.span("early", value=Loud())
    span.__enter__()
    with recorded() as events:
        span.__exit__(None, None, None)
        with aiotrace.span("inside"):
            pass
    assert [event.fields["name"] for event in events()] == ["inside", "inside"]
    assert events()[0].fields["parent"] == 0


def test_a_repr_that_fails_is_not_the_programs_problem() -> None:
    class Broken:
        def __repr__(self) -> str:
            raise ZeroDivisionError

    with recorded() as events, aiotrace.span("shown", value=Broken()):
        pass
    assert events()[0].fields["fields"] == "<ZeroDivisionError in repr>"


def test_a_wrong_value_of_a_typed_span_raises_where_aiotrace_is_strict_and_leaves_no_span_open() -> None:
    with aiotrace.recording():
        with pytest.raises(TypeError, match="rows"), query("users", "many"):
            pass
        with pytest.raises(TypeError):
            aiotrace.span()  # type: ignore[call-arg]
    with recorded() as events, aiotrace.span("next"):
        pass
    assert events()[0].fields["parent"] == 0


def test_a_wrong_value_of_a_typed_span_is_counted_where_it_is_not() -> None:
    aiotrace.strict(False)
    try:
        with aiotrace.recording() as recording:
            with pytest.warns(RuntimeWarning, match="rows"):
                query("users", "many").__enter__()
            assert recording.statistics().dropped["wrong_type"] == 1
    finally:
        aiotrace.strict()


def test_the_fields_of_a_span_type_may_not_be_its_own() -> None:
    with pytest.raises(aiotrace.DefinitionError, match="parent"):
        aiotrace.span_type("spantest:bad", parent="u64")
    with pytest.raises(aiotrace.DefinitionError, match="system"):
        aiotrace.span_type("nosystem")


def test_a_span_keeps_its_values_no_longer_than_it_lives() -> None:
    class Value(str):
        __slots__ = ("__weakref__", "cycle")

    with aiotrace.recording():
        value = Value("users")
        span = query(value, 1)
        value.cycle = span  # type: ignore[attr-defined]
        gone = weakref.ref(value)
        with span:
            pass
        del value, span
        gc.collect()
        assert gone() is None


def test_concurrent_tasks_of_asyncio_do_not_mix_their_spans() -> None:
    async def work(number: int) -> None:
        with aiotrace.span("task", number=number):
            for _ in range(3):
                await asyncio.sleep(0)
                with aiotrace.span("step", number=number):
                    await asyncio.sleep(0)

    async def main() -> None:
        await asyncio.gather(*(work(number) for number in range(10)))

    with recorded() as events:
        asyncio.run(main())
    begun = [event.fields for event in events() if event.name == "span:begin"]
    by_id = {fields["id"]: fields for fields in begun}
    steps = [fields for fields in begun if fields["name"] == "step"]
    assert len(steps) == 30
    assert all(by_id[step["parent"]]["fields"] == step["fields"] for step in steps)
