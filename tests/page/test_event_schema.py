"""An event's layout, its payload and its text: what is encoded stands where the text says, and nothing is half done."""

from __future__ import annotations

import struct
from collections.abc import Mapping
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aiotrace import DefinitionError
from aiotrace._decode.event_format import parse_format
from aiotrace._page import layout as L
from aiotrace._page.event_schema import FIXED_MAX, TYPES, FieldType, Schema, WrongValueError

INTEGERS = {name: type for name, type in TYPES.items() if name[0] in "us" and name[1:].isdigit()}
ID, PID = 2048, -7
KEYS = {"users": 0xFFFF_8000_0000_1010}


def schema(**fields: FieldType) -> Schema:
    return Schema("test:schema", fields)


def encode(schema: Schema, *arguments: object, **options: Any) -> bytes:
    payload = schema.encode(ID, PID, arguments, KEYS.__getitem__, **options)
    assert len(payload) % 4 == 0
    return payload


def texts_in(schema: Schema, payload: bytes) -> list[bytes]:
    """The bytes of each str and bytes field, found as a reader finds them: by the field's offset."""
    found = []
    for field in schema.fields:
        if field.type.name in ("str", "bytes"):
            (place,) = struct.unpack_from("=I", payload, field.offset)
            start, length = place & 0xFFFF, place >> 16
            assert schema.fixed_size <= start
            assert start + length <= len(payload)
            found.append(payload[start : start + length])
    return found


# --- names and layout ---------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["a:b", "A_1:_b", "http:request_done", f"{'a' * 99}:{'b' * 100}"])
def test_a_name_is_two_identifiers(name: str) -> None:
    assert Schema(name, {}).name == name
    assert f"{Schema(name, {}).system}:{Schema(name, {}).event}" == name


@pytest.mark.parametrize(
    ("name", "message"),
    [
        (7, "an event's name is a str, not 7"),
        ("alone", "'alone' has no system: name it 'system:alone'"),
        (":b", "'' is not an identifier"),
        ("a:", "'' is not an identifier"),
        ("a:1b", "'1b' is not an identifier"),
        ("a:b:c", "'b:c' is not an identifier"),
        ("a:b\n", "is not an identifier"),
        ("a b:c", "'a b' is not an identifier"),
        ("a:" + "b" * 199, "at most 200 characters, this one 201"),
    ],
)
def test_invalid_event_name_is_refused(name: Any, message: str) -> None:
    with pytest.raises(DefinitionError, match=message):
        Schema(name, {})


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"a b": "u8"}, "'a b' is not an identifier"),
        ({"x;": "u8"}, "'x;' is not an identifier"),
        ({"a" * 101: "u8"}, "at most 100"),
        ({"common_type": "u8"}, "names that begin with common_ are reserved"),
        ({"x": "int"}, "unknown type 'int'; known: u8 .* symbol int float"),
        ({"x": list}, "unknown type <class 'list'>"),
        ({"x": ["u8"]}, "unknown type \\['u8'\\]"),
        ({f"x{n}": "u64" for n in range(FIXED_MAX // 8)}, f"its 384 fields need {FIXED_MAX + 8} bytes"),
    ],
)
def test_invalid_field_is_refused(fields: Mapping[str, Any], message: str) -> None:
    with pytest.raises(DefinitionError, match=message):
        Schema("test:schema", fields)


def test_an_event_may_have_as_many_fields_as_fit() -> None:
    assert schema(**{f"x{n}": "u64" for n in range(FIXED_MAX // 8 - 1)}).fixed_size == FIXED_MAX


def test_python_types_mean_the_widest_type_of_their_kind() -> None:
    made = schema(a=int, b=float, c=bool, d=str, e=bytes)
    assert [type.name for type in made.types.values()] == ["s64", "f64", "bool", "str", "bytes"]


@given(st.lists(st.sampled_from(list(TYPES)), max_size=12))
def test_fields_are_aligned_in_order_and_overlap_nothing(types: list[str]) -> None:
    made = schema(**{f"x{n}": type for n, type in enumerate(types)})
    end = L.RECORD_COMMON_SIZE
    for field, name in zip(made.fields, types, strict=True):
        assert field.type is TYPES[name]
        assert field.offset % field.type.size == 0
        assert end <= field.offset < end + field.type.size, "no gap that alignment does not need"
        end = field.offset + field.type.size
    assert made.fixed_size == -(-end // 4) * 4


@given(st.lists(st.sampled_from(list(TYPES)), max_size=8), st.integers(1, 65535))
def test_format_text_describes_the_layout(types: list[str], id: int) -> None:
    made = schema(**{f"x{n}": type for n, type in enumerate(types)})
    parsed = parse_format(made.format_text(id), made.system)
    assert (parsed.id, parsed.system, parsed.name) == (id, "test", "schema")
    ours = [field for field in parsed.fields if not field.name.startswith("common_")]
    told = [(field.name, field.offset, field.size, field.signed) for field in ours]
    assert told == [(field.name, field.offset, field.type.size, field.type.signed) for field in made.fields]


def test_the_format_text_to_the_letter() -> None:
    made = Schema(
        "http:done", {"status": "u16", "ns": "s64", "path": "str", "body": "bytes", "x": "f64", "t": "symbol"}
    )
    assert made.format_text(2050) == (
        "name: done\nID: 2050\nformat:\n"
        "\tfield:unsigned short common_type;\toffset:0;\tsize:2;\tsigned:0;\n"
        "\tfield:unsigned char common_flags;\toffset:2;\tsize:1;\tsigned:0;\n"
        "\tfield:unsigned char common_preempt_count;\toffset:3;\tsize:1;\tsigned:0;\n"
        "\tfield:int common_pid;\toffset:4;\tsize:4;\tsigned:1;\n"
        "\n"
        "\tfield:u16 status;\toffset:8;\tsize:2;\tsigned:0;\n"
        "\tfield:s64 ns;\toffset:16;\tsize:8;\tsigned:1;\n"
        "\tfield:__data_loc char[] path;\toffset:24;\tsize:4;\tsigned:0;\n"
        "\tfield:__data_loc u8[] body;\toffset:28;\tsize:4;\tsigned:0;\n"
        "\tfield:double x;\toffset:32;\tsize:8;\tsigned:1;\n"
        "\tfield:const char * t;\toffset:40;\tsize:8;\tsigned:0;\n"
        "\n"
        'print fmt: "status=%u ns=%lld path=%s body=%s x=0x%llx t=%s", REC->status, REC->ns, __get_str(path), '
        "__print_hex(__get_dynamic_array(body), __get_dynamic_array_len(body)), REC->x, REC->t\n"
    )


# --- payloads -----------------------------------------------------------------------------------


@given(st.data(), st.lists(st.sampled_from(list(INTEGERS)), max_size=8))
def test_integers_are_stored_where_the_layout_says(data: st.DataObject, types: list[str]) -> None:
    made = schema(**{f"x{n}": type for n, type in enumerate(types)})
    values = []
    for name in types:
        bits = int(name[1:])
        low, high = (-(1 << bits - 1), (1 << bits - 1) - 1) if name[0] == "s" else (0, (1 << bits) - 1)
        values.append(data.draw(st.sampled_from([low, high]) | st.integers(low, high)))
    payload = encode(made, *values)
    assert len(payload) == made.fixed_size
    assert struct.unpack_from("=HBBi", payload) == (ID, 0, 0, PID)
    for field, value in zip(made.fields, values, strict=True):
        assert struct.unpack_from("=" + field.type.code, payload, field.offset) == (value,)


def test_numbers_alone_are_packed_by_struct_alone_and_the_same() -> None:
    plain, mixed = schema(a="u8", b="u64", c="f32"), schema(a="u8", b="u64", c="f32", ok="bool")
    assert plain.pack is not None
    assert mixed.pack is None
    assert plain.pack(ID, 0, 0, PID, 1, 2, 0.5) == encode(plain, 1, 2, 0.5)
    assert encode(mixed, 1, 2, 0.5, True)[: plain.fixed_size] == encode(plain, 1, 2, 0.5)


@pytest.mark.parametrize(("value", "byte"), [(True, 1), (False, 0), (7, 1), (0, 0)])
def test_a_bool_is_one_byte_of_0_or_1(value: int, byte: int) -> None:
    assert encode(schema(ok="bool"), value)[8] == byte


def test_a_symbol_is_its_key() -> None:
    made = schema(table="symbol")
    assert struct.unpack_from("=Q", encode(made, "users"), made.fields[0].offset) == (KEYS["users"],)


@given(st.lists(st.tuples(st.sampled_from(["str", "bytes"]), st.text(max_size=20), st.binary(max_size=20)), max_size=5))
def test_texts_are_stored_one_after_another_at_the_end(drawn: list[tuple[str, str, bytes]]) -> None:
    made = schema(n="u8", **{f"x{n}": kind for n, (kind, _, _) in enumerate(drawn)})
    payload = encode(made, 1, *[text if kind == "str" else data for kind, text, data in drawn])
    wanted = [text.encode() + b"\0" if kind == "str" else data for kind, text, data in drawn]
    assert texts_in(made, payload) == wanted
    assert payload[made.fixed_size :].startswith(b"".join(wanted))
    assert len(payload) - made.fixed_size - sum(map(len, wanted)) < 4, "no more than the padding"
    assert not payload[made.fixed_size + sum(map(len, wanted)) :].strip(b"\0")
    assert payload[2] == 0, "nothing was cut"


def test_a_lone_surrogate_is_text_too() -> None:
    made = schema(s="str")
    assert texts_in(made, encode(made, "a\udc80b")) == [b"a\xed\xb2\x80b\0"]


@pytest.mark.parametrize("value", [b"\1\2\3\4", bytearray(b"\1\2\3\4"), memoryview(b"\1\2\3\4").cast("H")])
def test_bytes_are_any_buffer_byte_by_byte(value: Any) -> None:
    made = schema(data="bytes")
    assert texts_in(made, encode(made, value)) == [b"\1\2\3\4"]


# --- what is too long ---------------------------------------------------------------------------


@given(
    st.lists(st.tuples(st.sampled_from(["str", "bytes"]), st.sampled_from("aä€𝄞"), st.integers(0, 300)), min_size=1,
             max_size=4),
    st.integers(60, 400),
)  # fmt: skip
def test_payload_never_exceeds_the_limit_and_is_cut_only_if_needed(
    drawn: list[tuple[str, str, int]], limit: int
) -> None:
    made = schema(**{f"x{n}": kind for n, (kind, _, _) in enumerate(drawn)})
    values = [letter * count if kind == "str" else letter.encode() * count for kind, letter, count in drawn]
    payload = encode(made, *values, limit=limit)
    assert len(payload) <= limit
    whole = [value.encode() + b"\0" if isinstance(value, str) else value for value in values]
    told = texts_in(made, payload)
    room = (limit - made.fixed_size) & ~3
    assert bool(payload[2] & L.FLAG_CUT) is (sum(map(len, whole)) > room)
    assert (told == whole) is (sum(map(len, whole)) <= room)
    for text, full, value in zip(told, whole, values, strict=True):
        if text == full:
            continue
        if isinstance(value, str) and len(text) >= 4:
            assert text.endswith("…\0".encode())
            assert value.startswith(text[:-4].decode()), "cut between characters"
        assert len(text) >= max(len(each) for each in told) - 6, "the longest are cut to one length (and a character)"
    unused = room - sum(map(len, told))
    assert not payload[2] or unused < len(values) * 4 + len(values), "and no shorter than they must be"


def test_a_short_text_stays_whole_beside_a_long_one() -> None:
    made = schema(a="str", b="str", c="bytes")
    told = texts_in(made, encode(made, "short", "x" * 1000, b"y" * 1000, limit=120))
    # 120 bytes less 20 of fields are 100; "short" and its NUL leave 94 for two.
    assert told == [b"short\0", b"x" * 43 + "…\0".encode(), b"y" * 47]


@pytest.mark.parametrize(("room", "told"), [(8, "aaaa…\0"), (4, "…\0"), (0, "")])
def test_text_cut_to_very_little_room_keeps_its_cut_mark(room: int, told: str) -> None:
    made = schema(s="str")
    assert texts_in(made, encode(made, "a" * 50, limit=made.fixed_size + room)) == [told.encode()]


@pytest.mark.parametrize(("kind", "value"), [("str", "x" * 70_000), ("bytes", b"x" * 70_000)])
def test_no_text_is_longer_than_data_loc_can_say(kind: str, value: Any) -> None:
    made = schema(a=kind, b="str")
    payload = encode(made, value, "end")
    first, second = texts_in(made, payload)
    assert L.RECORD_DYNAMIC_MAX - 4 < len(payload) <= L.RECORD_DYNAMIC_MAX, "as much as there is room for"
    assert len(first) > 60_000
    assert second == b"end\0"
    assert payload[2] == L.FLAG_CUT


# --- arguments ----------------------------------------------------------------------------------


def test_keyword_values_are_ordered_like_the_fields() -> None:
    made = schema(a="u8", b="u8", c="u8")
    assert made.bind((1,), {"c": 3, "b": 2}) == (1, 2, 3)
    assert made.bind((1, 2, 3), {}) == (1, 2, 3)


@pytest.mark.parametrize(
    ("arguments", "keywords", "message"),
    [
        ((1,), {}, "test:schema: no value for 'b'"),
        ((), {"b": 2}, "test:schema: no value for 'a'"),
        ((1, 2, 3), {}, "test:schema takes a, b; got 3 values"),
        ((1, 2), {"b": 2}, "got 2 values and b"),
        ((1,), {"b": 2, "z": 3}, "got 1 values and b, z"),
    ],
)
def test_arguments_that_do_not_bind_are_named(
    arguments: tuple[object, ...], keywords: dict[str, object], message: str
) -> None:
    with pytest.raises(WrongValueError, match=message):
        schema(a="u8", b="u8").bind(arguments, keywords)


def test_an_event_without_fields_takes_no_values() -> None:
    assert encode(schema()) == struct.pack("=HBBi", ID, 0, 0, PID)
    with pytest.raises(WrongValueError, match="takes no values; got 1 values"):
        encode(schema(), 1)


@pytest.mark.parametrize(
    ("kind", "value"),
    [
        *((name, 1 << 64) for name in INTEGERS),
        *((name, "7") for name in INTEGERS),
        ("u8", -1), ("s8", 128), ("f64", "x"), ("f32", 1e300), ("bool", "yes"), ("bool", 1.0), ("str", b"x"),
        ("str", None), ("symbol", b"x"), ("symbol", 7), ("bytes", "x"), ("bytes", 5), ("bytes", [1, 2]),
    ],
)  # fmt: skip
@pytest.mark.parametrize("beside", [{}, {"s": "str"}], ids=["alone", "beside a str"])
def test_a_value_that_does_not_fit_is_named(kind: str, value: object, beside: dict[str, str]) -> None:
    made = schema(n="u8", bad=kind, **beside)
    with pytest.raises(WrongValueError, match=f"^test:schema: bad=.* does not fit {kind}$"):
        encode(made, 1, value, *["text"] * len(beside))


@pytest.mark.parametrize("count", [0, 1, 3])
@pytest.mark.parametrize("kind", ["u8", "str"])
def test_wrong_number_of_values_is_an_error(count: int, kind: str) -> None:
    with pytest.raises(WrongValueError, match=r"no value for|got 3 values"):
        encode(schema(a="u8", b=kind), *[1] * count)


def test_a_message_is_short_whatever_the_value_is() -> None:
    class Bad:
        def __repr__(self) -> str:
            raise RuntimeError

    with pytest.raises(WrongValueError, match="n=<Bad> does not"):
        encode(schema(n="u8"), Bad())
    with pytest.raises(WrongValueError) as caught:
        encode(schema(n="u8"), "x" * 10_000)
    assert len(str(caught.value)) < 100


def test_error_raised_by_a_value_is_not_blamed_on_another() -> None:
    """The conversion ran foreign code, which failed once: then every value fits, and the error stays what it is."""

    class Once:
        failed = False

        def __index__(self) -> int:
            if not self.failed:
                self.failed = True
                raise RuntimeError("once")
            return 7

    with pytest.raises(RuntimeError, match="once"):
        encode(schema(n="u8"), Once())
