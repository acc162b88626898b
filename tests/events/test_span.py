"""Spans: begin and end, nested per task, and harmless whatever the program's values do."""

from __future__ import annotations

import pytest

import aiotrace
from aiotrace.abc import PageStream
from aiotrace_sinks import MemorySink

pytestmark = pytest.mark.pure_too


def events_of(program: object) -> int:
    async def sink(stream: PageStream) -> None:
        async for page in stream:
            counts.append(page.events_count)
            stream.acknowledge(page)

    counts: list[int] = []
    with aiotrace.recording(sink):
        program()  # type: ignore[operator]
    return sum(counts)


def test_a_span_is_two_events_also_when_its_body_raises() -> None:
    def program() -> None:
        with aiotrace.span("outer", n=1), aiotrace.span("inner"):
            pass
        with pytest.raises(KeyError), aiotrace.span("fails"):
            raise KeyError

    assert events_of(program) == 6


def test_field_with_a_failing_repr_does_no_harm() -> None:
    class Hostile:
        def __repr__(self) -> str:
            raise RuntimeError("no")

    def program() -> None:
        with aiotrace.span("hostile", value=Hostile()):
            pass

    assert events_of(program) == 2


def test_without_a_recording_no_repr_is_taken() -> None:
    class Hostile:
        def __repr__(self) -> str:
            raise AssertionError("taken")

    with aiotrace.span("nothing", value=Hostile()):
        pass


def test_a_span_that_began_before_the_recording_has_no_end_in_it() -> None:
    outside = aiotrace.span("outside")
    outside.__enter__()
    assert events_of(lambda: outside.__exit__(None, None, None)) == 0


def test_span_is_reusable_but_not_reentrant() -> None:
    """Its parent, once overwritten, could not be put back: what comes later would be inside a span that has ended."""

    def program() -> None:
        outer = aiotrace.span("outer")
        with outer, outer:
            pass
        with outer:
            pass
        with aiotrace.span("later"):
            pass

    recording = aiotrace.recording(kept := MemorySink())
    with recording:
        program()
    spans = [(event.name, event.fields["id"], event.fields.get("parent")) for event in kept.events()]
    first, again, later = (number for name, number, _ in spans if name == "span:begin")
    assert spans == [
        (name, number, parent)
        for number in (first, again, later)
        for name, parent in (("span:begin", 0), ("span:end", None))
    ]
