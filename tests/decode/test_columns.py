"""Columns: both implementations make the same, and the values are those that the event's reader finds."""

from __future__ import annotations

import math
import struct
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aiotrace._base.backend import c_module
from aiotrace._base.errors import TraceFormatError
from aiotrace._decode import columns
from aiotrace._decode.columns import ColumnPlan, Texts, decode_columns
from aiotrace._decode.event_format import compile_reader
from aiotrace._page.encode import encode_record
from aiotrace._page.walk import ALL, PythonWalk, walk
from support.pages import EVERYTHING, FORMATS, KERNEL_FORMATS, NUMBERS, OUR_FORMATS, SYMBOL, good_pages, pages

pytestmark = pytest.mark.pure_too

needs_c = pytest.mark.skipif(c_module is None, reason="NOT RUN: the C module is not there: pip install . builds it")


def bare(value: Any) -> Any:
    """Buffers as bytes, all the way down."""
    if isinstance(value, tuple):
        return tuple(map(bare, value))
    return value if value is None or isinstance(value, (int, str)) else bytes(value)


def planned(plan: ColumnPlan) -> tuple[Any, ...]:
    return tuple((f.id, max(f.size, 8), tuple(map(columns._planned, f.own_fields))) for f in plan.formats)


@needs_c
@given(data=pages, timestamp=st.integers(0, (1 << 64) - 1), big=st.booleans(), chosen=st.sets(st.sampled_from(FORMATS)))
def test_both_implementations_decode_any_bytes_alike(data: bytes, timestamp: int, big: bool, chosen: set[Any]) -> None:
    assert c_module is not None
    events = planned(ColumnPlan(sorted(chosen, key=lambda format: format.id)))
    arguments = (data, timestamp, 0, len(data), 0, big, *ALL.bounds)
    ours = c_module.ColumnPlan(events).decode(c_module.Walk(*arguments))
    assert bare(ours) == bare(columns._PythonPlan(events).decode(PythonWalk(*arguments)))


def same(a: Any, b: Any) -> bool:
    return a == b or (isinstance(a, float) and math.isnan(a) and math.isnan(b))


@given(data=good_pages, timestamp=st.integers(0, 1 << 60))
def test_columns_hold_what_the_reader_of_each_event_finds(data: bytes, timestamp: int) -> None:
    """Symbols are keys, and bytes that are not records end the page where the walk ends."""
    readers = {format.id: compile_reader(format.own_fields) for format in FORMATS}
    names = {format.id: format.full_name for format in FORMATS}
    found = decode_columns(data, timestamp, ColumnPlan(FORMATS), writer=3)
    assert found.writer == 3
    seen = dict.fromkeys(names.values(), 0)
    rows = 0
    for row, (time, id, pid, start, length) in enumerate(walk(data, timestamp)):
        if row == len(found):
            break
        assert (found.timestamp[row], found.id[row], found.pid[row]) == (time, id, pid)
        assert (found.start[row], found.length[row]) == (start, length)
        rows += 1
        if id not in names:
            continue
        event, index = found.events[names[id]], seen[names[id]]
        seen[names[id]] += 1
        assert event.row[index] == row
        for name, value in readers[id](data, start, length).items():
            assert same(event[name][index], value), name
    assert rows == len(found)
    assert {name: len(event.row) for name, event in found.events.items()} == seen


def test_every_column_has_the_type_of_its_field() -> None:
    values = (1, 2, 3, 1 << 63, -1, -2, -3, -4, 0.5, 0.25, True, "größe", b"\0\1", "sym")
    data = encode_record(5, EVERYTHING.encode(101, -7, values, lambda text: SYMBOL))
    found = decode_columns(data, 1000, ColumnPlan(OUR_FORMATS))
    event = found.events["test:everything"]
    assert [event[name].format for name in "abcdefgh"] == list("BHIQbhiq")  # type: ignore[union-attr]
    assert [event[name][0] for name in event] == [*values[:-1], SYMBOL]
    assert (found.timestamp.format, found.id.format, found.pid.format) == ("q", "H", "i")
    assert (found.timestamp[0], found.id[0], found.pid[0]) == (1005, 101, -7)
    assert isinstance(event["s"], Texts)
    assert event["s"][0:5] == ["größe"]
    assert len(found.events["test:numbers"].row) == 0


def test_record_too_short_for_its_event_ends_the_page_after_earlier_ones() -> None:
    good = encode_record(1, NUMBERS.encode(100, 7, (1, 2, 3), lambda text: 0))
    data = good + encode_record(1, struct.pack("=HBBi", 100, 0, 0, 7)) + good
    found = decode_columns(data, 0, ColumnPlan(OUR_FORMATS))
    assert len(found) == 1
    assert list(found.events["test:numbers"]["b"]) == [2]
    assert found.damage is not None
    assert str(found.damage) == f"offset {len(good) + 4}: a record of 8 bytes, where its event needs 28"


def test_a_string_outside_of_its_record_ends_the_page() -> None:
    payload = struct.pack("=HBBiII", 205, 0, 0, 7, 16 | 5 << 16, 9)
    found = decode_columns(encode_record(1, payload), 0, ColumnPlan(KERNEL_FORMATS))
    assert len(found) == 0
    assert isinstance(found.damage, TraceFormatError)
    assert found.damage.message == "a field lies at 16..21 of a record of 16 bytes"


def test_an_event_that_was_not_chosen_is_in_the_page_alone() -> None:
    data = encode_record(1, NUMBERS.encode(100, 7, (1, 2, 3), lambda text: 0))
    found = decode_columns(data, 0, ColumnPlan([]))
    assert (list(found.id), found.events, found.damage) == ([100], {}, None)


def test_columns_outlive_the_plan_and_what_they_were_read_from() -> None:
    page = bytearray(encode_record(1, NUMBERS.encode(100, 7, (1, 2, 3), lambda text: 0)))
    found = decode_columns(page, 0, ColumnPlan(OUR_FORMATS))
    page[:] = b""  # nothing holds it any more
    assert list(found.events["test:numbers"]["b"]) == [2]


@needs_c
@pytest.mark.parametrize(
    "plan",
    [
        ((1, 8, ((0, 0, 16),)),),
        ((1, 8, ((0, 4, 8),)),),
        ((1, 8, ((0, 0xFFFFFFFF, 4),)),),
        ((1, 12, ((2, 8, 8),)),),
        ((1, 12, ((6, 8, 4),)),),
        ((1, 4, ()),),
        ((1, 8, ()), (1, 8, ())),
        ((1, 8, (5,)),),
        (7,),
        ((70000, 8, ()),),
        ((1, 8, ((0, -1, 4),)),),
    ],
)
def test_a_plan_that_would_read_elsewhere_is_refused(plan: Any) -> None:
    assert c_module is not None
    with pytest.raises((ValueError, TypeError, OverflowError)):
        c_module.ColumnPlan(plan)


@needs_c
def test_a_walk_over_a_part_is_refused() -> None:
    assert c_module is not None
    part = c_module.Walk(b"", 0, 0, 0, 0, False, bytes(8192), None, 0, 0)
    with pytest.raises(ValueError, match="a Walk over everything"):
        c_module.ColumnPlan(()).decode(part)
