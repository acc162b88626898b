"""The event in C: it writes what pure Python would write, and hands over whole calls that it does not support.

The native event is called with a lease of the test's own, on pages of the test's own; its Python fallback is a list of
the calls that were handed over. Whole recordings are tested where recordings are.
"""

from __future__ import annotations

import contextlib
import gc
import math
import sys
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import aiotrace
from aiotrace._base.backend import c_module
from aiotrace._events import event as _event
from aiotrace._events import open_recordings
from aiotrace._page import layout as L
from aiotrace._page.encode import encode_record
from aiotrace._page.event_schema import Schema, WrongValueError
from support.page_oracle import unpack_header, walk

if c_module is None:
    pytest.skip("needs the C module", allow_module_level=True)

PID = 4321
ID = 4000
PAGE = 65536
SYMBOLS = {"?": 0xFFFF_8000_0000_1000, "known": 0xFFFF_8000_0000_1010}


class Native:
    """An event in C, with the calls that it handed over."""

    def __init__(self, **fields: str) -> None:
        self.schema = Schema("native:event", fields)
        self.handed_over: list[tuple[tuple[Any, ...], dict[str, Any]]] = []
        layout = tuple(
            (field.offset, _event.NATIVE_CODES.get(field.type.name, field.type.code), field.type.size)
            for field in self.schema.fields
        )
        names = tuple(map(sys.intern, fields))
        fallback = lambda *args, **keywords: self.handed_over.append((args, keywords))  # noqa: E731
        self.call = c_module.Event(fallback, ID, self.schema.fixed_size, layout, names, SYMBOLS)

    def expected(self, *arguments: Any) -> bytes:
        """What pure Python would write. Raises WrongValueError if it would refuse."""
        return self.schema.encode(ID, PID, arguments, lambda text: SYMBOLS.get(text, 0))

    @contextlib.contextmanager
    def writing(self, *cursors: Any, mode: int = 0) -> Iterator[None]:
        epoch = c_module.changed(True, False)
        lease = c_module.Lease(cursors, PID, epoch)
        self.call.set_mode(epoch, mode)
        try:
            yield
        finally:
            del lease
            open_recordings.active.set(open_recordings.active.recordings)


class Asked(c_module.Cursor):  # type: ignore[misc, name-defined]  # C has no types
    """A writer that is given what finds no room."""

    def __init__(self, clock: Any) -> None:
        super().__init__(clock)
        self.given: list[bytes] = []

    def write(self, payload: bytes) -> bool:
        self.given.append(payload)
        return True


def cursor_on(page: bytearray, clock: Any = time.monotonic_ns) -> Any:
    cursor = Asked(clock)
    cursor.enter(memoryview(page))
    return cursor


def payloads_on(page: bytearray) -> list[bytes]:
    """The payloads of a page, whose every byte is what `encode_record` makes of their times."""
    header = unpack_header(page)
    data = memoryview(page)[16 : 16 + header.committed]
    payloads, encoded, last = [], b"", header.timestamp
    for record in walk(data, header.timestamp):
        payloads.append(bytes(data[record.start : record.start + record.length]))
        encoded += encode_record(record.timestamp - last, payloads[-1])
        last = record.timestamp
    assert encoded == bytes(data)
    return payloads


def integers(bits: int, *, signed: bool) -> st.SearchStrategy[int]:
    low, high = (-(1 << bits - 1), (1 << bits - 1) - 1) if signed else (0, (1 << bits) - 1)
    return st.one_of(st.integers(low, high), st.sampled_from([low, high, 0, 1]))


TEXTS = st.text(st.characters(), max_size=40)
"""Lone surrogates included."""
VALUES: dict[str, st.SearchStrategy[Any]] = {
    **{f"u{bits}": integers(bits, signed=False) for bits in (8, 16, 32, 64)},
    **{f"s{bits}": integers(bits, signed=True) for bits in (8, 16, 32, 64)},
    "f32": st.floats(width=32) | st.integers(-1000, 1000),
    "f64": st.floats() | st.integers(-(2**100), 2**100) | st.booleans(),
    "bool": st.booleans(),
    "str": TEXTS,
    "bytes": st.binary(max_size=40),
    "symbol": st.sampled_from(sorted(SYMBOLS)),
}


@st.composite
def calls(draw: st.DrawFn) -> tuple[dict[str, str], list[Any]]:
    types = draw(st.lists(st.sampled_from(sorted(VALUES)), max_size=9))
    return {f"f{n}": name for n, name in enumerate(types)}, [draw(VALUES[name]) for name in types]


@given(calls(), st.booleans(), st.booleans())
def test_c_event_writes_the_same_as_pure_python(
    call: tuple[dict[str, str], list[Any]], bound: bool, twice: bool
) -> None:
    fields, arguments = call
    native, page = Native(**fields), bytearray(b"\xaa" * PAGE)
    cursor = cursor_on(page)
    with native.writing(cursor):
        for _ in range(1 + twice):
            (native.call.emit if bound else native.call)(*arguments)
    assert native.handed_over == []
    assert payloads_on(page) == [native.expected(*arguments)] * (1 + twice)
    assert cursor.written == 1 + twice


class Index:
    def __index__(self) -> int:
        raise AssertionError("the fast path runs no Python code")

    __float__ = __index__


class Text(str):
    pass


ANYTHING = st.one_of(
    st.none(), st.integers(-(2**70), 2**70), st.floats(), st.booleans(), TEXTS, st.binary(max_size=9),
    st.sampled_from([Index(), object(), Text("x"), 2**5000, 1e300, -1e300, math.inf, bytearray(b"x"), "unknown"]),
)  # fmt: skip


@given(st.data())
def test_c_event_agrees_with_python_or_hands_the_whole_call_over(data: st.DataObject) -> None:
    types = data.draw(st.lists(st.sampled_from(sorted(VALUES)), min_size=1, max_size=5))
    arguments = [data.draw(VALUES[name] | ANYTHING) for name in types]
    native, page = Native(**{f"f{n}": name for n, name in enumerate(types)}), bytearray(PAGE)
    cursor = cursor_on(page)
    with native.writing(cursor):
        native.call(*arguments)
    if native.handed_over:
        assert len(native.handed_over) == 1
        assert all(given is made for given, made in zip(native.handed_over[0][0], arguments, strict=True))
        assert cursor.state()[0] == cursor.written == 0
        assert payloads_on(page) == []
    else:
        assert payloads_on(page) == [native.expected(*arguments)]


OUT_OF_RANGE = [
    *((f"u{bits}", value) for bits in (8, 16, 32, 64) for value in (-1, 1 << bits, -(1 << 40), -(1 << 70))),
    *((f"s{bits}", value) for bits in (8, 16, 32, 64) for value in (1 << bits - 1, -(1 << bits - 1) - 1, 1 << 70)),
    ("f32", 1e39), ("f64", 1 << 1024), ("u64", 1.0), ("f64", "1"), ("str", b"x"), ("bytes", "x"), ("symbol", b"?"),
]  # fmt: skip


@pytest.mark.parametrize(("type", "value"), OUT_OF_RANGE)
def test_call_refused_by_pure_python_is_handed_over(type: str, value: object) -> None:
    native, page = Native(before="u8", a=type), bytearray(PAGE)
    with pytest.raises(WrongValueError):
        native.expected(1, value)
    with native.writing(cursor_on(page)):
        native.call(1, value)
    assert native.handed_over == [((1, value), {})]
    assert payloads_on(page) == []


@given(st.permutations(["a", "b", "c", "d"]), st.integers(0, 4), st.integers(0, 2**64 - 1))
def test_keywords_in_any_order_are_the_fields(order: list[str], positional: int, number: int) -> None:
    values: dict[str, Any] = {"a": number, "b": "text", "c": -1.5, "d": b"bytes"}
    native, page = Native(a="u64", b="str", c="f64", d="bytes"), bytearray(PAGE)
    first = list(values)[:positional]
    with native.writing(cursor_on(page)):
        native.call(*(values[name] for name in first), **{name: values[name] for name in order if name not in first})
    assert native.handed_over == []
    assert payloads_on(page) == [native.expected(*values.values())]


@pytest.mark.parametrize(
    ("arguments", "keywords"),
    [((), {}), ((1,), {}), ((1, 2, 3), {}), ((1,), {"x": 2}), ((1, 2), {"b": 2}), ((1,), {"a": 1}), ((), {"a": 1})],
)
def test_missing_unknown_and_doubled_arguments_are_handed_over(
    arguments: tuple[int, ...], keywords: dict[str, int]
) -> None:
    native, page = Native(a="u32", b="u32"), bytearray(PAGE)
    with native.writing(cursor_on(page)):
        native.call(*arguments, **keywords)
    assert native.handed_over == [(arguments, keywords)]
    assert payloads_on(page) == []


def test_only_a_record_too_long_for_the_page_is_passed_to_the_writer() -> None:
    native, page = Native(number="u16", text="str"), bytearray(4096)
    cursor = cursor_on(page)
    with native.writing(cursor):
        native.call(1, "x" * 3000)
        native.call(text="x" * 1100, number=2)
        native.call(3, "x" * 900)
    assert cursor.given == [native.expected(2, "x" * 1100)]
    assert native.handed_over == []
    assert payloads_on(page) == [native.expected(1, "x" * 3000), native.expected(3, "x" * 900)]


def test_event_too_long_for_any_page_is_handed_over_to_be_cut() -> None:
    native, page = Native(text="str"), bytearray(4096)
    cursor = cursor_on(page)
    longest = 4096 - 16 - 8 - 8 - 8 - 12 - 1
    with native.writing(cursor):
        native.call("x")
        native.call("x" * longest)
        native.call("x" * (longest + 1))
    assert cursor.given == [native.expected("x" * longest)]
    assert native.handed_over == [(("x" * (longest + 1),), {})]


def test_a_wrong_value_turns_no_page() -> None:
    native, page = Native(a="u64", b="u8"), bytearray(PAGE)
    cursor = cursor_on(page)
    with native.writing(cursor):
        cursor.freeze()
        native.call(1, 256)
    assert native.handed_over == [((1, 256), {})]
    assert cursor.given == []


def test_exception_during_a_page_turn_reaches_the_program() -> None:
    class Interrupted(Asked):
        def write(self, payload: bytes) -> bool:
            raise KeyboardInterrupt

    native, page = Native(a="u64"), bytearray(PAGE)
    cursor = Interrupted(time.monotonic_ns)
    cursor.enter(memoryview(page))
    with native.writing(cursor):
        cursor.freeze()
        with pytest.raises(KeyboardInterrupt):
            native.call(1)
        with pytest.raises(KeyboardInterrupt):
            native.call.emit(1)
    assert native.handed_over == []


@pytest.mark.parametrize("size", [64_900, 65_000, 65_001, 70_000])
def test_a_text_that_has_to_be_cut_is_handed_over(size: int) -> None:
    native, page = Native(text="str"), bytearray(1 << 20)
    with native.writing(cursor_on(page)):
        native.call("x" * size)
    assert bool(native.handed_over) == (size > 64_950)
    if not native.handed_over:
        assert payloads_on(page) == [native.expected("x" * size)]


@pytest.mark.parametrize("spare", [0, 4, 8, 12, 16])
def test_the_last_byte_that_is_free_is_used_and_no_further_one(spare: int) -> None:
    native, page = Native(a="u64"), bytearray(16 + 8 + 3 * 20 + spare)
    cursor = cursor_on(page)
    with native.writing(cursor):
        for number in range(4):
            native.call(number)
    assert len(payloads_on(page)) == 3
    assert cursor.given == [native.expected(3)]
    assert bytes(page[-8:]) == bytes(8)


def test_numbers_too_many_for_a_short_record_have_a_long_one() -> None:
    native, page = Native(**{f"f{n}": "u64" for n in range(20)}), bytearray(PAGE)
    with native.writing(cursor_on(page)):
        native.call(*range(20))
    assert payloads_on(page) == [native.expected(*range(20))]


def test_a_symbol_that_is_not_interned_yet_is_handed_over() -> None:
    native, page = Native(a="symbol"), bytearray(PAGE)
    with native.writing(cursor_on(page)):
        native.call("never seen")
    assert native.handed_over == [(("never seen",), {})]
    assert payloads_on(page) == []


@pytest.mark.parametrize("sizes", [(4096, PAGE), (PAGE, 4096)])
def test_two_recordings_are_written_both_or_neither(sizes: tuple[int, int]) -> None:
    native, pages = Native(text="str"), tuple(bytearray(size) for size in sizes)
    cursors = [cursor_on(page) for page in pages]
    with native.writing(*cursors):
        native.call("x" * 2000)
        native.call("x" * 2500)  # has room in one alone
    assert native.handed_over == [(("x" * 2500,), {})]
    assert [payloads_on(page) for page in pages] == [[native.expected("x" * 2000)]] * 2
    assert [cursor.written for cursor in cursors] == [1, 1]


def test_a_clock_of_python_is_handed_over_before_anything_is_written() -> None:
    def clock() -> int:
        return time.monotonic_ns()

    native, pages = Native(a="u64"), (bytearray(PAGE), bytearray(PAGE))
    with native.writing(cursor_on(pages[0], clock), cursor_on(pages[1])):
        native.call(1)
    with native.writing(cursor_on(pages[1]), cursor_on(pages[0], clock)):
        native.call(2)
    with native.writing(cursor_on(pages[0], clock)):
        native.call(3)
    assert native.handed_over == [((1,), {}), ((2,), {}), ((3,), {})]
    assert [payloads_on(page) for page in pages] == [[], []]


def test_a_frozen_page_is_not_written() -> None:
    native, page = Native(a="u64"), bytearray(PAGE)
    cursor = cursor_on(page)
    with native.writing(cursor):
        cursor.freeze()
        native.call(1)
    assert cursor.given == [native.expected(1)]
    assert payloads_on(page) == []


def test_a_stale_lease_another_thread_and_another_epoch_are_handed_over() -> None:
    native, page = Native(a="u64"), bytearray(PAGE)
    cursor = cursor_on(page)
    with native.writing(cursor):
        other = threading.Thread(target=native.call, args=(1,))
        other.start()
        other.join()
        assert native.handed_over == [((1,), {})]
        epoch = c_module.changed(True, False)
        native.call(2)
        native.call.set_mode(epoch, 0)
        native.call(3)  # the event is of the epoch, the lease is not
        assert native.handed_over[1:] == [((2,), {}), ((3,), {})]
    assert payloads_on(page) == []


@pytest.mark.parametrize(("mode", "handed_over"), [(0, False), (1, True), (2, False)])
def test_a_mode_says_whether_it_writes_asks_or_does_nothing(mode: int, handed_over: bool) -> None:
    native, page = Native(a="u64"), bytearray(PAGE)
    with native.writing(cursor_on(page), mode=mode):
        native.call(1)
        native.call.emit(a=1)
    assert len(native.handed_over) == 2 * handed_over
    assert len(payloads_on(page)) == (2 if mode == 0 else 0)


def test_event_without_a_recording_does_nothing_unless_strict() -> None:
    native = Native(a="u64")
    try:
        c_module.changed(False, False)
        native.call("wrong", "too many", b=1)
        assert native.handed_over == []
        c_module.changed(False, True)
        native.call(1)
        assert native.handed_over == [((1,), {})]
    finally:
        open_recordings.active.set(open_recordings.active.recordings)


def test_an_event_that_c_cannot_do_is_refused() -> None:
    def make(fixed_size: int, *layout: tuple[int, str, int]) -> object:
        return c_module.Event(print, ID, fixed_size, layout, ("a",) * len(layout), {})

    for fixed_size, field in ((16, (4, "Q", 8)), (16, (8, "x", 8)), (12, (8, "Q", 8)), (16, (8, "Q", 9))):
        with pytest.raises(ValueError, match="field 0"):
            make(fixed_size, field)
    with pytest.raises(ValueError, match="not supported"):
        make(9, (8, "B", 1))
    with pytest.raises(ValueError, match="not supported"):
        make(8 + 4 * 33, *((8 + 4 * n, "I", 4) for n in range(33)))


def test_a_lease_is_of_writers() -> None:
    with pytest.raises(TypeError, match="a lease is of writers"):
        c_module.Lease((object(),), 1, 1)


def test_gaps_between_fields_are_zero() -> None:
    native, page = Native(a="u8", b="u64", c="u8"), bytearray(b"\xff" * PAGE)
    with native.writing(cursor_on(page)):
        native.call(1, 2, 3)
    (payload,) = payloads_on(page)
    assert payload == native.expected(1, 2, 3)
    assert payload[9:16] == bytes(7)
    assert payload[25:28] == bytes(3)


def test_the_tsc_is_the_monotonic_clock() -> None:
    try:
        clock = aiotrace._base.clock.get_clock("tsc")
    except aiotrace.ConfigurationError as error:
        pytest.skip(f"NOT RUN: {error}")
    native, page = Native(a="u64"), bytearray(PAGE)
    before = time.monotonic_ns()
    cursor = cursor_on(page, clock)
    with native.writing(cursor):
        for number in range(1000):
            native.call(number)
    after = time.monotonic_ns()
    last = cursor.state()[1]
    assert len(payloads_on(page)) == 1000
    # Calibrated to a few millionths, and anchored here: half a microsecond off, at the very most, in so short a time.
    slack = 500 + (after - before) // 10_000
    assert before - slack <= unpack_header(page).timestamp <= last <= after + slack


def test_a_pause_longer_than_a_delta_is_handed_to_the_longer_way_in_c() -> None:
    native, page = Native(a="u64"), bytearray(PAGE)
    cursor = cursor_on(page)
    with native.writing(cursor):
        time.sleep((L.TIME_DELTA_MAX + 1) / 1e9)  # the clock is the system's own: no other way to pass 134 ms
        native.call(1)
    assert native.handed_over == []
    assert payloads_on(page) == [native.expected(1)]
    assert cursor.state()[0] == 8 + 4 + len(native.expected(1))


MILLION = 1_000_000


def test_a_million_events_leave_no_object_behind() -> None:
    native = Native(a="u64", b="str", c="f64")
    numbers, page = Native(a="u64", b="s64", c="f64"), bytearray(1 << 20)
    cursor = cursor_on(page)
    wrong = object()

    def call(times: int) -> None:
        for event, arguments, keywords in (
            (native, (200, "text", 0.5), {}),
            (native, (200,), {"c": 0.5, "b": "gr\xfc\xdfe \u20ac"}),
            (native, (2**63, "text", 2), {}),
            (native, (200, wrong, 0.5), {}),  # handed over
            (numbers, (200, -1, 0.5), {}),
            (numbers, (200,), {"c": 0.5, "b": -1}),
            (numbers, (2**64, -1, 0.5), {}),
        ):
            with event.writing(cursor):
                for _ in range(times // 7000):
                    cursor.enter(memoryview(page))
                    for _ in range(1000):
                        event.call(*arguments, **keywords)
                    event.handed_over.clear()

        timed = cursor_on(page, lambda: time.monotonic_ns())
        for _ in range(times // 100):
            timed.put(b"12345678")

    call(7000)
    gc.collect()
    before = sys.getallocatedblocks()
    references = [sys.getrefcount(value) for value in (None, wrong, cursor, native.call)]
    call(MILLION)
    gc.collect()
    assert [sys.getrefcount(value) for value in (None, wrong, cursor, native.call)][1:] == references[1:]
    assert sys.getallocatedblocks() - before < 100
