"""Events: how they are defined and called, what a wrong value does, and that nothing is raised into the program."""

from __future__ import annotations

import warnings
from collections.abc import Iterator

import pytest

import aiotrace
from aiotrace import DefinitionError
from support.laws import PAGE, Collect, check_closed

pytestmark = pytest.mark.pure_too

number = aiotrace.event("test_event:number", n="u16", text="str")


@pytest.fixture
def lenient() -> Iterator[None]:
    """As a program runs: neither under pytest nor with -X dev."""
    aiotrace.strict(False)
    yield
    aiotrace.strict(True)


def test_the_same_definition_is_the_same_event_and_another_is_an_error() -> None:
    assert aiotrace.event("test_event:number", n="u16", text="str") is number
    with pytest.raises(DefinitionError, match="defined already"):
        aiotrace.event("test_event:number", n="u32", text="str")
    with pytest.raises(DefinitionError, match="defined already"):
        aiotrace.event("test_event:number", text="str", n="u16")


@pytest.mark.parametrize(
    ("name", "fields", "message"),
    [
        ("alone", {}, "has no system: name it 'system:alone'"),
        ("a:b c", {}, "'b c' is not an identifier"),
        ("a:" + "b" * 300, {}, "at most 200"),
        ("a:b", {"common_pid": "u8"}, "common_"),
        ("a:b", {"x": "u128"}, "unknown type 'u128'"),
        ("a:b", {f"f{n}": "u64" for n in range(400)}, "at most 3072"),
    ],
)
def test_invalid_event_declaration_is_named(name: str, fields: dict[str, str], message: str) -> None:
    with pytest.raises(DefinitionError, match=message):
        aiotrace.event(name, **fields)


@pytest.mark.parametrize(
    "arguments", [(1,), (1, "x", 2), ("1", "x"), (1, b"x"), (-1, "x"), (65536, "x"), (2**70, "x"), (None, None)]
)
def test_a_wrong_value_raises_in_development_recording_or_not(arguments: tuple[object, ...]) -> None:
    with pytest.raises(TypeError, match="test_event:number"):
        number(*arguments)
    with aiotrace.recording(page_size=PAGE, pages=8) as recording, pytest.raises(TypeError):
        number(*arguments)
    assert recording.statistics().dropped["wrong_type"] == 1


@pytest.mark.usefixtures("lenient")
def test_wrong_value_is_counted_and_warned_about_once_per_program() -> None:
    event = aiotrace.event("test_event:told_once", n="u8")
    event("no recording: not checked")
    with aiotrace.recording(page_size=PAGE, pages=8) as recording:
        with warnings.catch_warnings(record=True) as told:
            warnings.simplefilter("always")
            event("wrong")
            event("wrong again")
        event("and with warnings as errors it raises nothing either")
        event(7)
    check_closed(recording.statistics(), 4)
    assert recording.statistics().dropped["wrong_type"] == 3
    assert len(told) == 1
    assert "n='wrong' does not fit u8" in str(told[0].message)


def test_keywords_and_positions_are_the_same_and_a_missing_one_is_named() -> None:
    with pytest.raises(TypeError, match="no value for 'text'"):
        number(1)
    with pytest.raises(TypeError):
        number(1, "x", text="y")
    with pytest.raises(TypeError):
        number(1, nobody="y")
    sink = Collect()
    event = aiotrace.event("test_event:keywords", n="u64", text="str")
    with aiotrace.recording(sink, page_size=PAGE, pages=8):
        event(1, "x")
        event(text="x", n=2)
        event(3, text="x")
        event.emit(4, "x")
    assert set(sink.numbers) == {1, 2, 3, 4}


def test_a_text_longer_than_a_page_is_cut_and_counted() -> None:
    with aiotrace.recording(page_size=PAGE, pages=8) as recording:
        number(1, "ä" * 100_000)
        number(2, "short")
    statistics = recording.statistics()
    assert statistics.events_written == 2
    assert statistics.events_cut == 1


def test_value_that_converts_only_once_is_counted_when_its_text_is_cut() -> None:
    class Once:
        calls = 0

        def __index__(self) -> int:
            self.calls += 1
            if self.calls > 1:
                raise ZeroDivisionError
            return 7

    number_and_text = aiotrace.event("eventtest:cut", n="u64", text="str")
    aiotrace.strict(False)
    try:
        with aiotrace.recording(page_size=4096, pages=8) as recording, warnings.catch_warnings():
            warnings.simplefilter("ignore")
            number_and_text(Once(), "x" * 10_000)
            number_and_text(1, "y" * 10_000)
            statistics = recording.statistics()
    finally:
        aiotrace.strict()
    assert (statistics.events_written, statistics.events_cut, statistics.dropped["wrong_type"]) == (1, 1, 1)


@pytest.mark.anyio
async def test_a_field_may_be_called_self() -> None:
    odd = aiotrace.event("test_event:odd", self="u8", arguments="u8")
    part = aiotrace.span_type("test_event:part", self="u8")
    sink = Collect()
    async with aiotrace.record(sink, page_size=PAGE, pages=8) as recording:
        odd(self=1, arguments=2)
        odd.emit(arguments=2, self=1)
        await odd.send(self=1, arguments=2)
        with part(self=3), aiotrace.span("whole", self=4):
            pass
    check_closed(recording.statistics(), 7)
