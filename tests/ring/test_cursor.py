"""The cursor: a page's bytes, and that both implementations write the same, given the same times and payloads."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from aiotrace._base.backend import c_module
from aiotrace._page import layout as L
from aiotrace._page.encode import encode_record
from aiotrace._ring.cursor import PythonCursor
from support.page_oracle import unpack_header, walk

pytestmark = pytest.mark.pure_too

CURSORS = [pytest.param(PythonCursor, id="python")]
if c_module is not None:
    CURSORS.append(pytest.param(c_module.Cursor, id="c"))
both = pytest.mark.parametrize("cursor_type", CURSORS)
needs_c = pytest.mark.skipif(c_module is None, reason="needs the C module")

PAGE = 4096
START = 10**15
PATTERN = bytes(range(256))


def clock_of(times: list[int]) -> Callable[[], int]:
    iterator: Iterator[int] = iter(times)
    return lambda: next(iterator)


def payload_of(size: int, flags: int = 0) -> bytes:
    return bytes((1, 8, flags, 0)) + (PATTERN * (size // 256 + 1))[: size - 4]


# An operation is its name, its argument and how far the clock has gone before it (it may go back).
STEPS = st.one_of(
    st.integers(-5, 2000),
    st.integers(L.TIME_DELTA_MAX - 2, L.TIME_DELTA_MAX + 2),
    st.integers(0, 1 << 57),
)
SIZES = st.one_of(
    st.integers(2, 40).map(lambda words: 4 * words), st.integers(2, 600).map(lambda words: 4 * words), st.just(70_000)
)
OPERATIONS = st.one_of(
    st.tuples(st.just("put"), st.tuples(SIZES, st.sampled_from([0, L.FLAG_CUT])), STEPS),
    st.tuples(st.sampled_from(["freeze", "thaw", "enter", "leave"]), st.none(), STEPS),
    st.tuples(st.just("fits"), SIZES, st.just(0)),
)


@needs_c
@given(st.lists(OPERATIONS, max_size=60))
@example([("put", (70_000, 0), 1)])
@example([("thaw", None, 0), ("put", (8, 0), 1)])
def test_both_implementations_do_the_same_with_the_same_times(operations: list[tuple[str, object, int]]) -> None:
    assert c_module is not None
    now, times = START, [START]
    for name, _, step in operations:
        now = max(0, now + step)
        if name in ("put", "enter"):
            times.append(now)
    cursors = (PythonCursor(clock_of(times)), c_module.Cursor(clock_of(times)))
    pages = tuple(bytearray(b"\xaa" * PAGE) for _ in cursors)
    for cursor, page in zip(cursors, pages, strict=True):
        cursor.enter(memoryview(page))
    for name, argument, _ in operations:
        told = []
        for cursor, page in zip(cursors, pages, strict=True):
            if name == "put":
                assert isinstance(argument, tuple)
                told.append(cursor.put(payload_of(*argument)))
            elif name == "fits":
                told.append(cursor.fits(argument))
            elif name == "enter":
                told.append(cursor.enter(memoryview(page)))
            else:
                told.append(getattr(cursor, name)())
        assert told[0] is told[1], (name, argument)
        assert cursors[0].state() == cursors[1].state()
        assert (cursors[0].written, cursors[0].cut) == (cursors[1].written, cursors[1].cut)
        committed = unpack_header(pages[0]).committed + L.PAGE_HEADER_SIZE
        assert pages[0][:committed] == pages[1][:committed]


@both
def test_page_holds_written_bytes_and_reserved_bytes_stay_free(cursor_type: type[PythonCursor]) -> None:
    times = [START + 100 * n for n in range(1000)]
    cursor, page = cursor_type(clock_of(times)), bytearray(PAGE)
    cursor.enter(memoryview(page))
    count = 0
    while cursor.put(payload_of(24)):
        count += 1
    header = unpack_header(page)
    assert header.timestamp == START
    assert header.committed == count * 28 == cursor.state()[0]
    assert PAGE - L.LOST_COUNT_SIZE - 28 < L.PAGE_HEADER_SIZE + header.committed <= PAGE - L.LOST_COUNT_SIZE
    records = list(walk(memoryview(page)[16 : 16 + header.committed], header.timestamp))
    assert [record.timestamp for record in records] == times[1 : count + 1]
    assert cursor.written == count


@both
@pytest.mark.parametrize("delta", [L.TIME_DELTA_MAX, L.TIME_DELTA_MAX + 1, 1 << 40])
def test_a_long_pause_has_a_time_extend_in_front(cursor_type: type[PythonCursor], delta: int) -> None:
    cursor, page = cursor_type(clock_of([START, START + delta])), bytearray(PAGE)
    cursor.enter(memoryview(page))
    assert cursor.put(payload_of(8))
    expected = encode_record(delta, payload_of(8))
    assert bytes(page[16 : 16 + len(expected)]) == expected
    assert len(expected) == (12 if delta <= L.TIME_DELTA_MAX else 20)
    assert cursor.state() == (len(expected), START + delta, 1)


@both
def test_clock_that_goes_back_counts_as_stopped(cursor_type: type[PythonCursor]) -> None:
    cursor, page = cursor_type(clock_of([START, START - 5, START + 1])), bytearray(PAGE)
    cursor.enter(memoryview(page))
    assert cursor.put(payload_of(8))
    assert cursor.put(payload_of(8))
    data = memoryview(page)[16 : 16 + cursor.state()[0]]
    assert [record.timestamp for record in walk(data, START)] == [START, START + 1]


@both
def test_frozen_cursor_refuses_records_until_it_is_thawed(cursor_type: type[PythonCursor]) -> None:
    cursor, page = cursor_type(lambda: START), bytearray(PAGE)
    assert not cursor.put(payload_of(8)), "it has no page"
    cursor.enter(memoryview(page))
    cursor.freeze()
    assert not cursor.put(payload_of(8))
    assert not cursor.fits(8)
    cursor.thaw()
    assert cursor.put(payload_of(8))
    cursor.leave()
    cursor.thaw()
    assert not cursor.put(payload_of(8)), "it left its page"
    assert cursor.written == 1


@both
def test_cursor_writes_what_fits_and_then_refuses(cursor_type: type[PythonCursor]) -> None:
    cursor = cursor_type(lambda: START)
    cursor.enter(memoryview(bytearray(PAGE)))
    while cursor.fits(200):
        assert cursor.put(payload_of(200))
    assert not cursor.fits(1 << 21)
    state = cursor.state()
    assert not cursor.put(payload_of(400))
    assert cursor.state() == state


@needs_c
@pytest.mark.parametrize("payload", [b"", b"1234", b"123456789", bytearray(8)])
def test_no_payload_that_would_break_a_page_is_taken(payload: bytes) -> None:
    assert c_module is not None
    cursor = c_module.Cursor(lambda: START)
    cursor.enter(memoryview(bytearray(PAGE)))
    with pytest.raises(ValueError, match="a payload is bytes"):
        cursor.put(payload)
    assert cursor.written == 0


@needs_c
@pytest.mark.parametrize("page", [bytes(PAGE), bytearray(8), bytearray((1 << 20) + 8), memoryview(bytearray(99))[1:]])
def test_memory_that_is_not_a_page_is_refused(page: object) -> None:
    assert c_module is not None
    with pytest.raises((ValueError, BufferError), match=r"a page has 24 bytes|not writable"):
        c_module.Cursor(lambda: START).enter(page)


@both
def test_failing_clock_leaves_the_page_unchanged(cursor_type: type[PythonCursor]) -> None:
    cursor = cursor_type(clock_of([START, START + 1]))
    cursor.enter(memoryview(bytearray(PAGE)))
    assert cursor.put(payload_of(8))
    before = cursor.state()
    with pytest.raises(StopIteration):
        cursor.put(payload_of(8))
    assert cursor.state() == before


@both
def test_entered_page_is_marked_empty(cursor_type: type[PythonCursor]) -> None:
    page = bytearray(b"\xaa" * PAGE)
    cursor_type(lambda: START).enter(memoryview(page))
    assert tuple(unpack_header(page)) == (START, 0, 0)


@both
def test_records_that_would_end_with_the_page_leave_the_kept_bytes_free(cursor_type: type[PythonCursor]) -> None:
    """Twelve bytes divide what follows the header, so one more would fit but for the count."""
    cursor, page = cursor_type(lambda: START), bytearray(b"\xaa" * PAGE)
    cursor.enter(memoryview(page))
    while cursor.put(payload_of(8)):
        pass
    assert cursor.state()[0] == PAGE - L.PAGE_HEADER_SIZE - 12
    assert page[-L.LOST_COUNT_SIZE :] == b"\xaa" * L.LOST_COUNT_SIZE


@both
@pytest.mark.parametrize("before", range(318, 326))
def test_room_is_counted_for_a_long_record_after_a_long_pause(cursor_type: type[PythonCursor], before: int) -> None:
    now = START
    cursor = cursor_type(lambda: now)
    cursor.enter(memoryview(bytearray(PAGE)))
    for _ in range(before):
        assert cursor.put(payload_of(8))
    told = cursor.fits(200)
    now += 1 << 40
    assert cursor.put(payload_of(200)) is told


@both
def test_records_with_a_cut_string_are_counted(cursor_type: type[PythonCursor]) -> None:
    cursor = cursor_type(lambda: START)
    cursor.enter(memoryview(bytearray(PAGE)))
    for flags in (0, L.FLAG_CUT, 0, L.FLAG_CUT):
        assert cursor.put(payload_of(200, flags))
    assert (cursor.written, cursor.cut) == (4, 2)
    assert not cursor.put(payload_of(PAGE, L.FLAG_CUT))
    assert cursor.cut == 2, "it was not written"
