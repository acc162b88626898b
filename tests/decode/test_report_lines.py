"""Lines of text: C, pure Python and the interpreter of print fmts print the same, byte for byte."""

from __future__ import annotations

import heapq
import struct
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aiotrace._base.backend import c_module
from aiotrace._base.errors import TraceFormatError
from aiotrace._decode import report_lines as lines
from aiotrace._decode.event import Tables
from aiotrace._decode.report_lines import Chunk, Lines, chunk_of, format_time, merge, parts_of
from aiotrace._page.encode import encode_record
from aiotrace._page.walk import ALL, PythonWalk, walk
from aiotrace.decode import Event, format_line
from support.page_oracle import encode_absolute_timestamp
from support.pages import FORMATS, NUMBERS, SYMBOLS, good_pages, kernel_format, pages

pytestmark = pytest.mark.pure_too

needs_c = pytest.mark.skipif(c_module is None, reason="NOT RUN: the C module is not there: pip install . builds it")


def make_tables(c_strings: bool) -> Tables:
    formats = {format.id: format for format in FORMATS}
    return Tables(formats, dict(SYMBOLS), {7: "worker", 1: "a\x1bb"}, None, c_strings=c_strings)


def both_printers(tables: Tables) -> tuple[Any, Any]:
    """Lines in C, and in Python."""
    assert c_module is not None
    door = Lines(tables)
    arguments = (door._define, door._name_task, lines._show_text, tables.show, tables.symbols, tables.c_strings)
    return c_module.Lines(*arguments), lines._PythonLines(*arguments)


def drained(printer: Any, walk: Any) -> tuple[bytes, list[tuple[bytes, bytes, bool]], str | None]:
    text, rest = b"", []
    try:
        while True:
            more, times, ends, in_order = printer.format(walk, b" [003] ")
            if not more:
                return text, rest, None
            text += more
            rest.append((bytes(times), bytes(ends), in_order))
    except TraceFormatError as error:
        return text, rest, str(error)


@needs_c
@given(data=pages, timestamp=st.integers(0, (1 << 64) - 1), c_strings=st.booleans())
def test_both_implementations_print_any_bytes_alike(data: bytes, timestamp: int, c_strings: bool) -> None:
    assert c_module is not None
    in_c, in_python = both_printers(make_tables(c_strings))
    arguments = (data, timestamp, 0, len(data), 0, False, *ALL.bounds)
    assert drained(in_c, c_module.Walk(*arguments)) == drained(in_python, PythonWalk(*arguments))


@given(data=good_pages, timestamp=st.integers(0, 1 << 60), c_strings=st.booleans())
def test_lines_are_those_of_each_event(data: bytes, timestamp: int, c_strings: bool) -> None:
    tables = make_tables(c_strings)
    expected = ""
    for time, id, pid, start, length in walk(data, timestamp):
        expected += format_line(Event(tables.kind(id), time, pid, 3, data[start : start + length], tables)) + "\n"
    text, printer, records = b"", Lines(tables), walk(data, timestamp)
    while (chunk := printer.format(records, 3)).ends:
        text += chunk.text
    assert text.decode() == expected


@needs_c
@given(
    value=st.integers(-(1 << 63), (1 << 63) - 1),
    flags=st.text("-+ #0", max_size=3),
    width=st.none() | st.integers(0, 30),
    precision=st.none() | st.integers(0, 30),
    length=st.sampled_from(["", "hh", "h", "l", "ll", "z", "t", "q", "j", "L"]),
    conversion=st.sampled_from("diuxXo"),
)
def test_every_way_to_print_an_integer_is_the_same(
    value: int, flags: str, width: int | None, precision: int | None, length: str, conversion: str
) -> None:
    spec = f"%{flags}{'' if width is None else width}{'' if precision is None else f'.{precision}'}{length}{conversion}"
    format = kernel_format(300, "one", "s64 n;8;8;1", f'"<{spec}>", REC->n')
    assert parts_of(format) is not None
    tables = Tables({300: format}, {}, {}, None)
    in_c, in_python = both_printers(tables)
    data = encode_record(0, (300).to_bytes(2, "little") + bytes(6) + value.to_bytes(8, "little", signed=True))
    arguments = (data, 0, 0, len(data), 0, False, *ALL.bounds)
    assert c_module is not None
    assert drained(in_c, c_module.Walk(*arguments)) == drained(in_python, PythonWalk(*arguments))


def test_our_own_events_are_printed_in_parts() -> None:
    assert {format.name: parts_of(format) is not None for format in FORMATS} == {
        "numbers": True,
        "everything": True,
        "padded": False,  # %c
        "flags": True,
        "relative": False,  # __get_rel_str
        "tail": True,
        "symbolic": False,
        "quiet": False,  # its string is not printed, but may still make the record unreadable
        "left": True,
        "truth": True,
    }


@pytest.mark.parametrize(
    "print_format",
    [
        '"%d"',
        '"%d", REC->nothing',
        '"%d", REC->common_pid',
        '"%d", REC->n + 1',
        '"%*d", REC->n',
        '"%y", REC->n',
        "",
        "%d",
    ],
)
def test_a_print_fmt_with_more_to_it_has_no_parts(print_format: str) -> None:
    assert parts_of(kernel_format(300, "one", "int n;8;4;1", print_format)) is None


@given(st.integers(-(1 << 63), (1 << 63) - 1))
def test_a_time_is_shown_as_the_line_shows_it(time: int) -> None:
    data = encode_record(0, NUMBERS.encode(100, 7, (1, 2, 3), lambda text: 0))
    chunk = Lines(make_tables(False)).format(walk(data, time & (1 << 64) - 1), 3)
    assert f"[003] {format_time(time)}: numbers: ".encode() in chunk.text
    assert chunk.timestamps == [time]


def test_chunks_end_after_a_while_and_together_have_every_line() -> None:
    data = encode_record(1, NUMBERS.encode(100, 7, (1, 2, 3), lambda text: 0)) * 3000
    printer, records, sizes = Lines(make_tables(False)), walk(data, 0), []
    while (chunk := printer.format(records, 0)).ends:
        assert chunk.text.count(b"\n") == len(chunk.ends) == len(chunk.timestamps)
        assert chunk.ends[-1] == len(chunk.text)
        assert chunk.in_order
        sizes.append(len(chunk.text))
    assert (
        sum(
            size // len(b"          worker-7     [000]     0.000000: numbers:              a=1 b=2 c=3\n")
            for size in sizes
        )
        == 3000
    )
    assert len(sizes) > 2
    assert max(sizes) < lines.CHUNK_SIZE + 200


def test_lines_before_damage_are_printed_before_its_report() -> None:
    data = encode_record(1, NUMBERS.encode(100, 7, (1, 2, 3), lambda text: 0)) + b"\x1c\0\0\0"
    printer, records = Lines(make_tables(False)), walk(data, 0)
    assert len(printer.format(records, 0).ends) == 1
    for _ in range(2):
        with pytest.raises(TraceFormatError, match="offset 32: a record of 112 bytes"):
            printer.format(records, 0)


@pytest.mark.parametrize("text", ["plain ~", "\x7f", "\x1f", "\x1b[2J", "größe", "\ud800", "a\0b", "", "\u202e"])
@pytest.mark.parametrize("c_strings", [True, False])
@pytest.mark.parametrize("spec", ["%s", "%12s", "%-12s", "%.3s"])
def test_any_string_is_printed_as_the_interpreter_does(text: str, c_strings: bool, spec: str) -> None:
    format = kernel_format(300, "one", "__data_loc char[] s;8;4;0", f'"<{spec}>", __get_str(s)')
    tables = Tables({300: format}, {}, {}, None, c_strings=c_strings)
    raw = text.encode("utf-8", "surrogatepass") + b"\0"
    payload = struct.pack("=HBBiI", 300, 0, 0, 7, 12 | len(raw) << 16) + raw
    data = encode_record(0, payload)
    event = Event(tables.kind(300), 0, 7, 3, data[4:], tables)
    assert Lines(tables).format(walk(data, 0), 3).text.decode() == format_line(event) + "\n"


@pytest.mark.parametrize(
    "time", [0, 499, 500, 999_999_499, 999_999_500, -1, -500, -501, 10**14, (1 << 63) - 1, -(1 << 63)]
)
def test_times_are_rounded_to_microseconds(time: int) -> None:
    data = encode_record(0, NUMBERS.encode(100, 7, (1, 2, 3), lambda text: 0))
    chunk = Lines(make_tables(False)).format(walk(data, time & (1 << 64) - 1), 3)
    assert f"[003] {format_time(time)}: numbers: ".encode() in chunk.text


def test_a_record_too_short_for_its_event_is_printed_as_damaged() -> None:
    data = encode_record(0, struct.pack("=HBBi", 100, 0, 0, 7))
    chunk = Lines(make_tables(False)).format(walk(data, 0), 3)
    assert b"numbers:              damaged=a record of 8 bytes, where its event needs 28\n" in chunk.text


def test_a_string_outside_of_its_record_is_printed_as_damaged() -> None:
    format = kernel_format(300, "one", "int n;8;4;1\n__data_loc char[] s;12;4;0", '"n=%d s=%s", REC->n, __get_str(s)')
    data = encode_record(0, struct.pack("=HBBiiI", 300, 0, 0, 7, 5, 16 | 1 << 16))
    chunk = Lines(Tables({300: format}, {}, {}, None)).format(walk(data, 0), 3)
    assert chunk.text.endswith(b"one:                  damaged=field 's' lies at 16..17 of a record of 16 bytes\n")


def test_lines_with_decreasing_times_are_reported_as_out_of_order() -> None:
    record = encode_record(0, NUMBERS.encode(100, 7, (1, 2, 3), lambda text: 0))
    forth, back = encode_absolute_timestamp(9) + record, encode_absolute_timestamp(8) + record
    printer = Lines(make_tables(False))
    assert not printer.format(walk(forth + back, 0), 3).in_order
    assert printer.format(walk(back + forth, 0), 3).in_order


@needs_c
@pytest.mark.parametrize("broken", ["_define", "_name_task", "show", "show_text"])
def test_exception_of_a_callback_propagates(broken: str) -> None:
    assert c_module is not None

    def fail(*arguments: object) -> Any:
        raise LookupError(broken)

    tables = make_tables(False)
    door = Lines(tables)
    callbacks: dict[str, Callable[..., Any]] = {
        "_define": door._define,
        "_name_task": door._name_task,
        "show_text": lines._show_text,
        "show": tables.show,
    }
    printer = c_module.Lines(*(callbacks | {broken: fail}).values(), {}, True)
    # An event that is printed in parts and has a string beyond ASCII, then one that the interpreter prints.
    tail = (203).to_bytes(2, "little") + bytes(10) + "größe".encode() + bytes(1)
    symbolic = (204).to_bytes(2, "little") + bytes(10)
    data = encode_record(0, tail) + encode_record(0, symbolic)
    with pytest.raises(LookupError, match=broken):
        printer.format(c_module.Walk(data, 0, 0, len(data), 0, False, *ALL.bounds), b"")


@needs_c
@pytest.mark.parametrize(
    "definition",
    [
        (b"", 8, ((1, 8, 8, 0, 117, 0, 64, 0, -1, b""),)),
        (b"", 8, ((1, 0, 3, 0, 117, 0, 64, 0, -1, b""),)),
        (b"", 8, ((10, 0, 4, 0, 117, 0, 64, 0, -1, b""),)),
        (b"", 8, ((1, 0, 4, 0, 117, 0, 65, 0, -1, b""),)),
        (b"", 8, ((1, 0, 4, 0, 117, 0, 64, 5000, -1, b""),)),
        (b"", 8, (1,)),
        ("", 8, ()),
        (b"", 8, []),
        None,
    ],
)
def test_parts_that_would_read_elsewhere_are_refused(definition: Any) -> None:
    assert c_module is not None
    tables = make_tables(False)
    printer = c_module.Lines(lambda id: definition, lambda pid: b"", lines._show_text, tables.show, {}, False)
    data = encode_record(0, NUMBERS.encode(100, 7, (1, 2, 3), lambda text: 0))
    with pytest.raises((ValueError, TypeError)):
        printer.format(c_module.Walk(data, 0, 0, len(data), 0, False, *ALL.bounds), b"")


@needs_c
def test_a_callback_may_use_the_same_lines() -> None:
    assert c_module is not None
    data = encode_record(0, NUMBERS.encode(100, 7, (1, 2, 3), lambda text: 0))
    arguments = (data, 0, 0, len(data), 0, False, *ALL.bounds)
    door = Lines(make_tables(False))
    inner: list[bytes] = []

    def name_task(pid: int) -> bytes:
        if not inner:
            inner.append(b"")
            inner.append(printer.format(c_module.Walk(*arguments), b" in ")[0])
        return b"me"

    printer = c_module.Lines(door._define, name_task, lines._show_text, door._tables.show, {}, False)
    outer = printer.format(c_module.Walk(*arguments), b" out ")[0]
    assert outer == inner[1].replace(b" in ", b" out ")


# --- merging ------------------------------------------------------------------------------------

times = st.lists(st.integers(0, 12), min_size=1, max_size=8)
streams = st.lists(st.lists(times, max_size=4), max_size=4)


def chunk_with(label: str, times: list[int]) -> Chunk:
    texts = [f"{label}.{number}@{time}\n" for number, time in enumerate(times)]
    ends = [sum(map(len, texts[: number + 1])) for number in range(len(texts))]
    return Chunk("".join(texts).encode(), times, ends, times == sorted(times))


@given(streams)
def test_chunks_are_merged_as_their_lines_would_be(found: list[list[list[int]]]) -> None:
    chunks = [[chunk_with(f"{s}.{c}", times) for c, times in enumerate(stream)] for s, stream in enumerate(found)]
    single = [
        [
            (time, line)
            for chunk in stream
            for time, line in zip(chunk.timestamps, chunk.text.split(b"\n"), strict=False)
        ]
        for stream in chunks
    ]
    expected = [line.decode() for _, line in heapq.merge(*single, key=lambda pair: pair[0])]
    assert "".join(merge(map(iter, chunks))).splitlines() == expected


def test_line_of_another_formatter_is_a_chunk() -> None:
    assert chunk_of("größe", 5) == Chunk("größe\n".encode(), [5], [8], True)
