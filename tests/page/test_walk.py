"""The walk over records: both implementations find the same, and stop before the same damage."""

from __future__ import annotations

import struct
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aiotrace._base.backend import c_module
from aiotrace._base.errors import TraceFormatError
from aiotrace._page import walk as records
from aiotrace._page.walk import ALL, PythonWalk, RecordFilter
from support import page_oracle
from support.page_oracle import encode_absolute_timestamp
from support.pages import pages

pytestmark = pytest.mark.pure_too

needs_c = pytest.mark.skipif(c_module is None, reason="NOT RUN: the C module is not there: pip install . builds it")
timestamps = st.one_of(st.integers(0, 1 << 61), st.integers(0, (1 << 64) - 1))
offsets = st.one_of(st.just(0), st.integers(-(1 << 63), (1 << 63) - 1))
selections = st.builds(
    RecordFilter,
    st.none() | st.frozensets(st.sampled_from([100, 101, 200, 201, 0, 65535])),
    st.none() | st.frozensets(st.integers(-5, 7)),
    st.none() | st.integers(-(1 << 70), 1 << 70),
    st.none() | st.integers(-(1 << 70), 1 << 70),
)


def make_c(*arguments: Any) -> Any:
    assert c_module is not None
    return c_module.Walk(*arguments)


makers = pytest.mark.parametrize(
    "make", [pytest.param(PythonWalk, id="python"), pytest.param(make_c, id="c", marks=needs_c)]
)


def drained(walk: Any) -> tuple[list[Any], tuple[str, int | None] | None]:
    """All records, and the damage that ended them."""
    found = []
    try:
        for record in walk:
            found.append(record)  # what came before an exception is wanted
    except TraceFormatError as error:
        return found, (error.message, error.offset)
    return found, None


@needs_c
@given(data=pages, timestamp=timestamps, offset=offsets, big=st.booleans(), select=selections, cut=st.integers(0, 40))
def test_both_implementations_find_the_same_in_any_bytes(
    data: bytes, timestamp: int, offset: int, big: bool, select: RecordFilter, cut: int
) -> None:
    start, end = min(cut // 2 & ~3, len(data) & ~3), max(len(data) - cut // 3, len(data) & ~3)
    arguments = (data, timestamp, start, max(end, start), offset, big, *select.bounds)
    assert drained(make_c(*arguments)) == drained(PythonWalk(*arguments))


@makers
@given(data=pages, timestamp=st.integers(0, 1 << 61))
def test_the_quick_walk_finds_what_the_plain_one_does(make: Any, data: bytes, timestamp: int) -> None:
    data = data[: len(data) & ~3]
    plain: list[tuple[int, int, int]] = []
    failed = False
    try:
        for record in page_oracle.walk(data, timestamp):
            if record.length < 8 or record.timestamp >= 1 << 63:
                return  # the plain walk knows no common fields, and no limits of a clock
            plain.append(tuple(record))
    except TraceFormatError:
        failed = True
    found, damage = drained(make(data, timestamp, 0, len(data), 0, False, *ALL.bounds))
    assert ([(time, start, length) for time, _, _, start, length in found], damage is not None) == (plain, failed)


@makers
@pytest.mark.parametrize("record", [struct.pack("=II", 1, 7), struct.pack("=III", 0, 8, 7)])
def test_a_record_without_room_for_the_common_fields_is_damage(make: Any, record: bytes) -> None:
    found, damage = drained(make(record, 0, 0, len(record), 0, False, *ALL.bounds))
    assert (found, damage) == ([], ("a record of 4 bytes where 4 are left", 0))


@makers
@pytest.mark.parametrize(("size", "problem"), [(4, None), (12, None), (16, 0), (5, 0), (0, 0), ((1 << 32) - 4, 0)])
def test_padding_ends_within_the_data(make: Any, size: int, problem: int | None) -> None:
    data = struct.pack("=II", 29 | 7 << 5, size) + bytes(8)
    if size == 4:
        data = data[:8]
    found, damage = drained(make(data, 0, 0, len(data), 0, False, *ALL.bounds))
    assert (found, damage) == ([], None if problem is None else (f"padding of {size} bytes", problem))


@makers
def test_padding_takes_its_time(make: Any) -> None:
    data = struct.pack("=II", 29 | 7 << 5, 4) + struct.pack("=IHBBi", 2 | 1 << 5, 7, 0, 0, 1)
    assert next(make(data, 100, 0, len(data), 0, False, *ALL.bounds))[0] == 108


@makers
def test_the_page_gives_an_absolute_time_the_bits_above_59(make: Any) -> None:
    data = encode_absolute_timestamp(5) + struct.pack("=IHBBi", 2, 7, 0, 0, 1)
    assert next(make(data, 3 << 59 | 77, 0, len(data), 0, False, *ALL.bounds))[0] == 3 << 59 | 5


@makers
@pytest.mark.parametrize(("first", "last", "found"), [(5, 5, 1), (6, 9, 0), (0, 4, 0)])
def test_the_first_and_the_last_time_are_included(make: Any, first: int, last: int, found: int) -> None:
    data = struct.pack("=IHBBi", 2, 7, 0, 0, 1)
    assert len(list(make(data, 5, 0, len(data), 0, False, None, None, first, last))) == found


@makers
@pytest.mark.parametrize(("length", "found"), [(12, [(0, 7, 1, 8, 8)]), (13, []), (4, []), (9, [(0, 7, 1, 8, 8)])])
def test_long_record_has_a_length_word_and_padding(make: Any, length: int, found: list[Any]) -> None:
    data = struct.pack("=IIHBBi", 0, length, 7, 0, 0, 1)
    records, damage = drained(make(data, 0, 0, len(data), 0, False, *ALL.bounds))
    assert (records, damage is None) == (found, bool(found))


@makers
def test_damage_is_reported_on_each_request(make: Any) -> None:
    data = struct.pack("=IHBBi", 2, 7, 0, 0, -3) + struct.pack("=I", 28)
    walk = make(data, 1000, 0, len(data), 5, False, *ALL.bounds)
    assert next(walk) == (1005, 7, -3, 4, 8)
    for _ in range(2):
        with pytest.raises(TraceFormatError, match="offset 12: a record of 112 bytes where 0 are left"):
            next(walk)


@makers
@pytest.mark.parametrize(("start", "end"), [(-4, 8), (2, 8), (8, 4), (0, 13)])
def test_a_range_outside_of_the_data_is_refused(make: Any, start: int, end: int) -> None:
    with pytest.raises(ValueError, match=f"records at {start} to {end} of 12 bytes"):
        make(bytes(12), 0, start, end, 0, False, *ALL.bounds)


@makers
def test_times_beyond_64_bits_wrap_around(make: Any) -> None:
    data = struct.pack("=IHBBi", 2 | 3 << 5, 7, 0, 0, 1)
    walk = make(data, (1 << 63) - 1, 0, len(data), 0, False, *ALL.bounds)
    assert [record[0] for record in walk] == [-(1 << 63) + 2]


@needs_c
@given(data=pages, timestamp=timestamps, select=selections)
def test_both_implementations_count_alike(data: bytes, timestamp: int, select: RecordFilter) -> None:
    outcomes = []
    for make in (make_c, PythonWalk):
        totals = records.new_totals()
        walk = make(data, timestamp, 0, len(data), 0, False, *select.bounds)
        outcomes.append((records.tally(walk, totals), totals, drained(walk)))
    assert outcomes[0] == outcomes[1]


@makers
def test_a_tally_adds_up_what_is_in_front_of_damage(make: Any) -> None:
    data = struct.pack("=IHBBi", 2 | 5 << 5, 7, 0, 0, -3) * 3 + struct.pack("=I", 28)
    totals = records.new_totals()
    walk = make(data, 1000, 0, len(data), 0, False, *ALL.bounds)
    assert records.tally(walk, totals) == (3, 24, 1005, 1015)
    assert (totals[14], totals[15], sum(totals)) == (3, 24, 27)
    with pytest.raises(TraceFormatError):
        next(walk)


@needs_c
def test_invalid_walk_and_invalid_counts_buffer_are_refused() -> None:
    assert c_module is not None
    walk = make_c(b"", 0, 0, 0, 0, False, *ALL.bounds)
    with pytest.raises(TypeError, match="a Walk is needed, not int"):
        c_module.tally(1, records.new_totals())
    with pytest.raises(ValueError, match="totals has 8 bytes"):
        c_module.tally(walk, bytearray(8))
    with pytest.raises(BufferError):
        c_module.tally(walk, bytes(2 * 8 * 65536))


@needs_c
@pytest.mark.parametrize(
    "wrong",
    [
        {"ids": b"short"},
        {"pids": {1}},
        {"data": 5},
        {"first": 1 << 63},
    ],
)
def test_arguments_of_other_types_are_refused(wrong: dict[str, Any]) -> None:
    right = {"data": b"", "timestamp": 0, "start": 0, "end": 0, "offset": 0, "big": False}
    right |= {"ids": None, "pids": None, "first": 0, "last": 0}
    with pytest.raises((TypeError, OverflowError)):
        make_c(*(right | wrong).values())


def test_the_door_takes_what_is_there() -> None:
    walk = records.walk(b"", 0)
    assert isinstance(walk, PythonWalk) == (c_module is None)
