"""Event format texts: what they say of fields, and values read by them; hostile texts too."""

from __future__ import annotations

import struct
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aiotrace._base.errors import TraceFormatError
from aiotrace._decode.event_format import (
    FIELDS_MAX,
    EventFormat,
    FieldKind,
    Place,
    Value,
    compile_reader,
    parse_format,
    text_of,
)
from aiotrace._page import layout as L

HEAD = "name: one\nID: 77\nformat:\n"


def parse(*fields: str, system: str = "test", print_fmt: str = '""', **options: int) -> EventFormat:
    lines = "".join(f"\tfield:{field};\n" for field in fields)
    return parse_format(f"{HEAD}{lines}\nprint fmt: {print_fmt}\n", system, **options)


def read(format: EventFormat, payload: bytes, **options: object) -> dict[str, Value]:
    return compile_reader(format.own_fields, **options)(payload, 0, len(payload))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("text", "name", "kind", "place", "element"),
    [
        ("int a;\toffset:8;\tsize:4;\tsigned:1", "a", FieldKind.INT, Place.SCALAR, 4),
        ("unsigned long a;\toffset:8;\tsize:8;\tsigned:0", "a", FieldKind.INT, Place.SCALAR, 8),
        ("char comm[16];\toffset:8;\tsize:16;\tsigned:0", "comm", FieldKind.CHAR, Place.ARRAY, 1),
        ("char comm[TASK_COMM_LEN];\toffset:8;\tsize:16", "comm", FieldKind.CHAR, Place.ARRAY, 1),
        ("unsigned long v[3];\toffset:8;\tsize:24", "v", FieldKind.INT, Place.ARRAY, 8),
        ("foo_t v[4];\toffset:8;\tsize:8", "v", FieldKind.INT, Place.ARRAY, 2),
        ("u32 v[2][3];\toffset:8;\tsize:24", "v", FieldKind.INT, Place.ARRAY, 4),
        ("char buf[];\toffset:8;\tsize:0", "buf", FieldKind.CHAR, Place.TAIL, 1),
        ("u32 buf[];\toffset:8;\tsize:0", "buf", FieldKind.INT, Place.TAIL, 4),
        ("__data_loc char[] s;\toffset:8;\tsize:4", "s", FieldKind.CHAR, Place.DATA_LOC, 1),
        ("__data_loc u64[] s;\toffset:8;\tsize:4", "s", FieldKind.INT, Place.DATA_LOC, 8),
        ("__data_loc cpumask_t s;\toffset:8;\tsize:4", "s", FieldKind.INT, Place.DATA_LOC, 8),
        ("__rel_loc char[] s;\toffset:8;\tsize:4", "s", FieldKind.CHAR, Place.REL_LOC, 1),
        ("const char * s;\toffset:8;\tsize:8", "s", FieldKind.SYMBOL, Place.SCALAR, 8),
        ("const char *const * argv;\toffset:8;\tsize:8", "argv", FieldKind.INT, Place.SCALAR, 8),
        ("void *p;\toffset:8;\tsize:8", "p", FieldKind.INT, Place.SCALAR, 8),
        ("double d;\toffset:8;\tsize:8", "d", FieldKind.FLOAT, Place.SCALAR, 8),
        ("float d;\toffset:8;\tsize:4", "d", FieldKind.FLOAT, Place.SCALAR, 4),
        ("bool b;\toffset:8;\tsize:1", "b", FieldKind.BOOL, Place.SCALAR, 1),
        ("char c;\toffset:8;\tsize:1", "c", FieldKind.INT, Place.SCALAR, 1),
        ("struct foo s;\toffset:8;\tsize:12", "s", FieldKind.INT, Place.ARRAY, 1),
    ],
)
def test_declaration_describes_its_field(text: str, name: str, kind: FieldKind, place: Place, element: int) -> None:
    (field,) = parse(text).own_fields
    assert (field.name, field.kind, field.place, field.element_size) == (name, kind, place, element)


def test_a_long_has_the_size_that_it_had_where_it_was_recorded() -> None:
    (field,) = parse("unsigned long v[4];\toffset:8;\tsize:16", long_size=4).own_fields
    assert field.element_size == 4


def test_values_of_every_kind_are_read() -> None:
    format = parse(
        "int a;offset:8;size:4;signed:1",
        "u16 b;offset:12;size:2;signed:0",
        "bool t;offset:14;size:1;signed:0",
        "char c[5];offset:16;size:5;signed:0",
        "__data_loc char[] s;offset:24;size:4;signed:0",
        "__rel_loc u8[] r;offset:28;size:4;signed:0",
        "double f;offset:32;size:8;signed:1",
        "const char * y;offset:40;size:8;signed:0",
        "s16 v[2];offset:48;size:4;signed:1",
        "u32 tail[];offset:52;size:0;signed:0",
    )
    payload = bytearray(52)
    struct.pack_into("=iHB", payload, 8, -5, 65535, 1)
    payload[16:21] = b"ab\0cd"
    struct.pack_into("=II", payload, 24, 60 | 3 << 16, 32 | 2 << 16)  # 28 + 4 + 32 = 64
    struct.pack_into("=dQhh", payload, 32, 2.5, 0x1234, -1, 2)
    payload += struct.pack("=II", 7, 8) + b"xy\0_" + b"\xff\x01__"
    assert len(payload) == 68
    assert read(format, bytes(payload), symbols={0x1234: "sym"}) == {
        "a": -5,
        "b": 65535,
        "t": True,
        "c": "ab",
        "s": "xy",
        "r": b"\xff\x01",
        "f": 2.5,
        "y": "sym",
        "v": (-1, 2),
        "tail": (7, 8, *struct.unpack("=II", payload[60:])),
    }
    assert read(format, bytes(payload))["y"] == 0x1234


def test_numbers_of_the_other_byte_order_are_read() -> None:
    format = parse("int a;offset:8;size:4;signed:1", "u16 v[2];offset:12;size:4;signed:0")
    assert read(format, bytes(8) + struct.pack(">iHH", -2, 1, 2), byte_order=">") == {"a": -2, "v": (1, 2)}


@pytest.mark.parametrize("size", ["int size[2];offset:8;size:8;signed:1", "float size;offset:8;size:4;signed:1"])
def test_size_field_that_is_not_a_count_does_not_limit_callers(size: str) -> None:
    fields = f"\tfield:{size};\n\tfield:unsigned long caller[8];offset:16;size:64;signed:0;\n"
    format = parse_format(f"name: kernel_stack\nID: 4\nformat:\n{fields}", "ftrace")
    assert read(format, struct.pack("<8xQQQ", 2**63, 5, 6))["caller"] == (5, 6)


def test_a_stack_trace_has_as_many_callers_as_its_size_says() -> None:
    text = ("int size;offset:8;size:4;signed:1", "unsigned long caller[8];offset:16;size:64;signed:0")
    format = parse_format(
        "name: kernel_stack\nID: 4\nformat:\n" + "".join(f"\tfield:{field};\n" for field in text), "ftrace"
    )
    for size, expected in ((10, 10), (2, 2), (-1, 0), (1000, 12)):
        payload = bytes(8) + struct.pack("=ii12Q", size, 0, *range(12))
        assert len(read(format, payload)["caller"]) == expected  # type: ignore[arg-type]


def test_nul_ends_a_data_loc_string_only_in_kernel_traces() -> None:
    format = parse("__data_loc char[] s;offset:8;size:4;signed:0")
    payload = bytes(8) + struct.pack("=I", 12 | 4 << 16) + b"a\0b\0"
    assert read(format, payload) == {"s": "a\0b"}
    assert read(format, payload, c_strings=True) == {"s": "a"}


@pytest.mark.parametrize("location", [12 | 5 << 16, 0xFFFF | 1 << 16, 0 | 0xFFFF << 16, 16 | 1 << 16])
def test_a_location_outside_of_the_record_is_refused(location: int) -> None:
    format = parse("__data_loc char[] s;offset:8;size:4;signed:0")
    payload = bytes(8) + struct.pack("=I", location) + b"abcd"
    with pytest.raises(TraceFormatError, match="field 's' lies at"):
        read(format, payload)


def test_a_record_that_is_too_short_is_refused() -> None:
    format = parse("int a;offset:8;size:4;signed:1")
    with pytest.raises(TraceFormatError, match="a record of 11 bytes, where its event needs 12"):
        compile_reader(format.own_fields)(bytes(100), 0, 11)


def test_fields_that_overlap_are_read_each_at_its_place() -> None:
    format = parse("u32 a;offset:8;size:4;signed:0", "u16 b;offset:8;size:2;signed:0", "u8 c;offset:0;size:1;signed:0")
    assert read(format, bytes([7]) + bytes(7) + struct.pack("=I", 0x00020001)) == {"a": 0x20001, "b": 1, "c": 7}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("ID: 5\nformat:\n", "needs name: and ID:"),
        ("name: x\nformat:\n", "needs name: and ID:"),
        ("name: x\nID: 70000\n", "ID should be a number up to 65535, found '70000'"),
        (HEAD + "\tfield:int a;\toffset:-1;\tsize:4;\n", "offset of field 'int a' should be a number"),
        (HEAD + "\tfield:int a;\toffset:0;\tsize:99999999999999999999;\n", "size of field"),
        (HEAD + "\tfield:int a;\toffset:0;\n", "needs offset: and size:"),
        (HEAD + "\tfield:;\toffset:0;size:4;\n", "should be `TYPE NAME`"),
        (HEAD + "\tfield:__data_loc char[] s;offset:8;size:8;\n", "of 8 bytes, not of 4"),
        (HEAD + "\tfield:u8 a[1000000];offset:8;size:1000000;\n" * 2, "together larger"),
        (HEAD + "\tfield:int a;offset:8;size:4;\n" * (FIELDS_MAX + 1), f"more than {FIELDS_MAX} fields"),
        ("x" * (1 << 21), "2097152 characters"),
    ],
)
def test_text_without_a_format_is_refused(text: str, message: str) -> None:
    with pytest.raises(TraceFormatError, match=message):
        parse_format(text, "test")


def test_error_has_the_position_in_the_text() -> None:
    with pytest.raises(TraceFormatError) as caught:
        parse_format(HEAD + "\tfield:int a\n", "test")
    assert caught.value.offset == len(HEAD)


pieces = st.sampled_from(
    [
        "field:",
        "int ",
        "char ",
        "__data_loc ",
        "__rel_loc ",
        "[]",
        "[16]",
        "*",
        "a",
        "b",
        ";",
        "offset:",
        "size:",
        "8",
        "4",
    ]
    + ["0", "1", "99999", "2147483648", "\n", "\t", "print fmt:", "signed:1;", "unsigned long", "double", " "]
)


@given(st.lists(pieces, max_size=60), st.binary(max_size=80))
def test_any_text_is_parsed_or_refused_and_reads_only_the_record(parts: list[str], payload: bytes) -> None:
    try:
        format = parse_format(HEAD + "".join(parts), "test")
        compile_reader(format.fields)(payload + b"!" * 50, 0, len(payload))
    except TraceFormatError:
        pass


def test_all_formats_of_this_kernel_are_parsed() -> None:
    texts = list(Path("/sys/kernel/tracing/events").glob("*/*/format")) if Path("/sys/kernel/tracing").exists() else []
    try:
        found = [parse_format(path.read_text(), path.parts[-3]) for path in texts]
    except PermissionError:
        found = []
    if not found:
        pytest.skip("NOT RUN: tracefs cannot be read: mount -t tracefs nodev /sys/kernel/tracing")
    for format in found:
        compile_reader(format.fields)
        assert [field.name for field in format.fields[:4]] == [
            "common_type", "common_flags", "common_preempt_count", "common_pid",
        ]  # fmt: skip
        assert format.fields[3].offset == L.RECORD_COMMON_SIZE - 4


@given(st.text())
def test_any_text_round_trips(text: str) -> None:
    assert text_of(text.encode("utf-8", "surrogatepass")) == text


@given(st.binary(max_size=50))
def test_any_bytes_are_text(data: bytes) -> None:
    assert isinstance(text_of(data), str)
