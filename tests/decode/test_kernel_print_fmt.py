"""print fmts as kernels and phones write them: each value is what the kernel prints, or what C computes."""

from __future__ import annotations

import struct
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aiotrace._decode import printf
from aiotrace._decode.event import Tables
from aiotrace._decode.event_format import EventFormat, parse_format

COMMON = """\
	field:unsigned short common_type;	offset:0;	size:2;	signed:0;
	field:unsigned char common_flags;	offset:2;	size:1;	signed:0;
	field:unsigned char common_preempt_count;	offset:3;	size:1;	signed:0;
	field:int common_pid;	offset:4;	size:4;	signed:1;
"""
HEAD = struct.pack("<HBBi", 7, 0, 0, 1)


class Names:
    def find(self, address: int) -> tuple[str, int] | None:
        return ("entry", address - 0x1000) if 0x1000 <= address < 0x2000 else None

    def locate(self, address: int) -> str | None:
        return None


def format_of(fields: str, print_format: str, name: str = "test:one") -> EventFormat:
    """Fields are `TYPE NAME;OFFSET;SIZE;SIGNED`, one a line."""
    system, _, event = name.partition(":")
    lines = ""
    for line in fields.split("\n"):
        declaration, offset, size, signed = line.split(";")
        lines += f"\tfield:{declaration};\toffset:{offset};\tsize:{size};\tsigned:{signed};\n"
    return parse_format(f"name: {event}\nID: 7\nformat:\n{COMMON}\n{lines}\nprint fmt: {print_format}\n", system)


def tables(format: EventFormat, symbols: dict[int, str] | None = None, *, long_size: int = 8) -> Tables:
    return Tables({7: format}, symbols or {}, {}, Names(), c_strings=True, long_size=long_size)


def shown(fields: str, print_format: str, payload: bytes, **options: Any) -> str:
    format = format_of(fields, print_format, options.pop("name", "test:one"))
    return tables(format, **options).show(7, HEAD + payload)


def number(expression: str, value: int = 0, conversion: str = "%lld", type: str = "u64", long_size: int = 8) -> str:
    """What `conversion` prints of an expression over REC->v."""
    size, signed = (int(type[1:]) // 8, int(type[0] == "s"))
    payload = (value & (1 << 8 * size) - 1).to_bytes(size, "little")
    return shown(f"{type} v;8;{size};{signed}", f'"{conversion}", {expression}', payload, long_size=long_size)


@pytest.mark.parametrize(
    ("expression", "value", "type", "expected"),
    [
        ("REC->v >= -9ULL", 5, "u64", "0"),
        ("REC->v >= -9ULL", (1 << 64) - 6, "u64", "1"),
        ("REC->v >= -9", 5, "s64", "1"),
        ("REC->v < 0", -1, "s32", "1"),
        ("REC->v < 0", 0xFFFFFFFF, "u32", "0"),
        ("REC->v == -1", 0xFFFFFFFF, "u32", "1"),
        ("REC->v == -1", 0xFF, "u8", "0"),
        ("REC->v - 6", 5, "u8", "-1"),
        ("REC->v - 6", 5, "u32", "4294967295"),
        ("REC->v - 2 + 1", 5, "s32", "4"),
        ("REC->v * REC->v", 0x10000, "u32", "0"),
        ("REC->v * REC->v", 0x10000, "u64", "4294967296"),
        ("-REC->v", 1, "u32", "4294967295"),
        ("~REC->v", 0, "u8", "-1"),
        ("REC->v >> 1", -2, "s32", "-1"),
        ("REC->v >> 1", 0xFFFFFFFE, "u32", "2147483647"),
        ("-1 / REC->v", 2, "u64", "9223372036854775807"),
        ("-7 / REC->v", 2, "s64", "-3"),
        ("0xffffffff + REC->v", 1, "u32", "0"),
        ("4294967295 + REC->v", 1, "u32", "4294967296"),
        ("(u8)REC->v", 0x1FF, "u32", "255"),
        ("(s8)REC->v", 0x1FF, "u32", "-1"),
        ("1 ? -1 : REC->v", 0, "u32", "4294967295"),
        ("sizeof(int) - 5", 0, "u8", "-1"),
        ("((u32 *)0x1000) + REC->v", 2, "u8", "4104"),
        ("__print_ns_to_secs(REC->v)", 5_000_000_007, "u64", "5"),
        ("__print_ns_without_secs(REC->v)", 5_000_000_007, "u64", "7"),
    ],
)
def test_an_expression_has_the_value_that_c_computes(expression: str, value: int, type: str, expected: str) -> None:
    assert number(expression, value, type=type) == expected


def test_a_long_of_32_bits_is_as_wide_as_the_kernels() -> None:
    symbolic = '__print_symbolic(REC->v, { 0xffffffff, "all" })'
    assert number(symbolic, -1, "%s", "s32", long_size=4) == "all"
    assert number(symbolic, -1, "%s", "s32") == "0xffffffffffffffff"


@pytest.mark.parametrize(
    ("table", "value", "expected"),
    [
        ('__print_flags(REC->v, "|", { 0, "NONE" }, { 1, "A" })', 0, ""),
        ('__print_flags(REC->v, "|", { 1, "A" }, { 2, "B" })', 7, "A|B|0x4"),
        ('__print_flags(REC->v, "|", { UNKNOWN, "X" }, { 2, "B" })', 3, "B|0x1"),
        ('__print_symbolic(REC->v, { UNKNOWN, "X" }, { 2, "B" }, { -1, ((void *)0) })', 2, "B"),
        ('__print_symbolic(REC->v, { UNKNOWN, "X" }, { 2, "B" })', 1, "0x1"),
        ("__print_symbolic(REC->v, { })", 1, "0x1"),
    ],
)
def test_a_table_gives_what_the_kernel_prints(table: str, value: int, expected: str) -> None:
    assert number(table, value, "%s") == expected


def test_a_name_that_is_not_known_costs_its_value_alone() -> None:
    assert number("REC->v, REC->v >> SHIFT, REC->v ? 1 : SHIFT", 4, "%d %d %d") == "4 ? 1"


@pytest.mark.parametrize(
    "expression",
    [
        "(unsigned long)((REC->v) - ((struct page *)(0xffffffbc00000000UL)))",
        "((struct page *)REC->v) + 1",
        "sizeof(struct page)",
    ],
)
def test_what_needs_an_unknown_size_is_not_guessed(expression: str) -> None:
    assert number(expression, 64) == "v=64"


BYTES = bytes.fromhex("00112233445566778899aabbccddeeff")
MAPPED = bytes(10) + b"\xff\xff\x7f\0\0\1"
IP4 = struct.pack("<H", 2) + b"\x1f\x90\x7f\0\0\1" + bytes(8)
IP6 = struct.pack("<H", 10) + b"\x1f\x90\0\0\0\5" + bytes(15) + b"\1" + struct.pack("<I", 3)


@pytest.mark.parametrize(
    ("conversion", "data", "expected"),
    [
        ("%pM", BYTES, "00:11:22:33:44:55"),
        ("%pMF", BYTES, "00-11-22-33-44-55"),
        ("%pMR", BYTES, "55:44:33:22:11:00"),
        ("%pm", BYTES, "001122334455"),
        ("%pmR", BYTES, "554433221100"),
        ("%pI4", BYTES, "0.17.34.51"),
        ("%pi4", BYTES, "000.017.034.051"),
        ("%pI4l", BYTES, "51.34.17.0"),
        ("%pI4h", BYTES, "51.34.17.0"),
        ("%pI4b", BYTES, "0.17.34.51"),
        ("%pI6", BYTES, "0011:2233:4455:6677:8899:aabb:ccdd:eeff"),
        ("%pi6", BYTES, "00112233445566778899aabbccddeeff"),
        ("%pI6c", BYTES, "11:2233:4455:6677:8899:aabb:ccdd:eeff"),
        ("%pI6c", MAPPED, "::ffff:127.0.0.1"),
        ("%pI6c", bytes(16), "::"),
        ("%pI6c", bytes(15) + b"\1", "::1"),
        ("%pI6c", b"\0\1" + bytes(2) + b"\0\2" * 6, "1:0:2:2:2:2:2:2"),
        ("%pI6c", b"\x20\1" + bytes(4) + b"\0\1" + bytes(7) + b"\2", "2001:0:0:1::2"),
        ("%pI6c", bytes(8) + b"\2\0\x5e\xfe\1\2\3\4", "::200:5efe:1.2.3.4"),
        ("%pIS", IP4, "127.0.0.1"),
        ("%pISp", IP4, "127.0.0.1:8080"),
        ("%piS", IP4, "127.000.000.001"),
        ("%pISpc", IP6, "[::1]:8080"),
        ("%pISpfsc", IP6, "[::1]:8080/5%3"),
        ("%pU", BYTES, "00112233-4455-6677-8899-aabbccddeeff"),
        ("%pUB", BYTES, "00112233-4455-6677-8899-AABBCCDDEEFF"),
        ("%pUl", BYTES, "33221100-5544-7766-8899-aabbccddeeff"),
        ("%4ph", BYTES, "00 11 22 33"),
        ("%4phC", BYTES, "00:11:22:33"),
        ("%4phD", BYTES, "00-11-22-33"),
        ("%4phN", BYTES, "00112233"),
        ("%ph", BYTES, "00"),
        ("%12pb", b"\xf1\x0f" + bytes(14), "ff1"),
        ("%40pb", b"\xf1\x0f\0\0\1" + bytes(11), "01,00000ff1"),
        ("%16pbl", b"\xf1\x0f" + bytes(14), "0,4-11"),
    ],
)
@pytest.mark.parametrize("declared", ["u8 a[{0}];8;{0};0", "char a[{0}];8;{0};1", "__data_loc char[] a;8;4;0"])
def test_a_pointer_extension_prints_as_printk_does(conversion: str, data: bytes, expected: str, declared: str) -> None:
    place = struct.pack("<I", 12 | len(data) << 16) if "data_loc" in declared else b""
    value = "__get_dynamic_array(a)" if place else "REC->a"
    assert shown(declared.format(len(data)), f'"{conversion}|", {value}', place + data) == f"{expected}|"


def test_an_array_of_words_is_printed_as_the_memory_that_it_is() -> None:
    fields = "__be32 a[4];8;16;0"
    assert shown(fields, '"%pI6c", REC->a', MAPPED) == "::ffff:127.0.0.1"
    assert shown("__be32 a;8;4;0", '"%pI4", &REC->a', b"\x7f\0\0\1") == "127.0.0.1"


@pytest.mark.parametrize(
    ("conversion", "value", "expected"),
    [("%pe", -2, "-ENOENT"), ("%pe", 2, "0x2"), ("%pS", 0x1010, "entry+0x10"), ("%ps", 0x1010, "entry")],
)
def test_a_pointer_prints_what_it_is(conversion: str, value: int, expected: str) -> None:
    assert number("(void *)REC->v", value, conversion) == expected


def test_an_unknown_extension_is_not_printed_as_if_it_were_text() -> None:
    assert number("REC->v", 5, "%pd") == "v=5"


def test_a_bitmask_is_in_hex_and_a_cpumask_is_a_list() -> None:
    fields = "__data_loc unsigned long[] m;8;4;0"
    payload = struct.pack("<IQQ", 12 | 16 << 16, 0x8000000000000003, 1)
    assert shown(fields, '"%s", __get_bitmask(m)', payload) == "00000000,00000001,80000000,00000003"
    assert shown(fields, '"%s", __get_cpumask(m)', payload) == "0-1,63-64"


def test_arrays_without_brackets_reach_to_the_end_of_the_record() -> None:
    marker = "unsigned long ip;8;8;0\nchar buf;16;0;0"
    payload = struct.pack("<Q", 0x1010) + b"marker one\n\0"
    assert shown(marker, '"%ps: %s", (void *)REC->ip, REC->buf', payload, name="ftrace:print") == "entry: marker one"

    stack = format_of("int size;8;4;1\nunsigned long caller;16;0;0", '""', "ftrace:kernel_stack")
    record = HEAD + struct.pack("<iiQQ", 2, 0, 0x1010, 0x5)
    assert tables(stack).show(7, record) == "<stack trace >\n=> entry (1010)\n=> 0x5 (5)"


def test_two_fields_of_one_name_are_both_there() -> None:
    format = format_of("__data_loc char[] type;8;4;0\nint type;12;4;1", '"%s %d", __get_str(type), REC->type')
    payload = HEAD + struct.pack("<Ii", 16 | 6 << 16, 3) + b"cache\0"
    assert tables(format).show(7, payload) == "cache 3"
    assert tables(format).kind(7).read(payload, 0, len(payload)) == {"type": "cache", "type_2": 3}


def test_a_place_of_two_bytes_reaches_to_the_strings_end() -> None:
    fields = "int irq;8;4;1\n__data_loc name;12;2;0"
    payload = struct.pack("<ihxx", 7, 16) + b"hello\0\0\0"
    assert shown(fields, '"irq=%d handler=%s", REC->irq, __get_str(name)', payload) == "irq=7 handler=hello"


def test_a_precision_cuts_null_too() -> None:
    assert number('0, (void *)0, "abc", 3, "abc"', 0, "%.*s|%.2s|%.*s") == "|ab|abc"


BPRINT = "unsigned long ip;8;8;0\nconst char * fmt;16;8;0\nu32 buf[];24;0;0"


@pytest.mark.parametrize(
    ("text", "packed", "expected"),
    [
        ("load: cpu=%d freq=%u\n", struct.pack("<iI", -3, 800000), "load: cpu=-3 freq=800000"),
        ("%s %llu", b"ok\0\0" + struct.pack("<Q", 1 << 40), "ok 1099511627776"),
        ("%c%hd %lx", struct.pack("<cxhQ", b"A", -2, 0xABC), "A-2 abc"),
        ("%ps %*d %pI4", struct.pack("<Qii", 0x1010, 4, 7) + b"127.0.0.1\0", "entry    7 127.0.0.1"),
        ("100%% %zu", struct.pack("<Q", 5), "100% 5"),
    ],
)
def test_trace_printk_is_printed_with_its_arguments(text: str, packed: bytes, expected: str) -> None:
    payload = struct.pack("<QQ", 0x1010, 0x9000) + packed + bytes(-len(packed) % 4)
    line = shown(BPRINT, '"%ps: %s", (void *)REC->ip, REC->fmt', payload, name="ftrace:bprint", symbols={0x9000: text})
    assert line == f"entry: {expected}"


def test_trace_printk_without_its_format_or_arguments_shows_its_fields() -> None:
    payload = struct.pack("<QQi", 0x1010, 0x9000, 1)
    options: dict[str, Any] = {"name": "ftrace:bprint"}
    assert shown(BPRINT, '""', payload, **options) == "ip=4112 fmt=36864 buf=[1]"
    assert shown(BPRINT, '""', payload, symbols={0x9000: "%d %d"}, **options) == "ip=4112 fmt=%d %d buf=[1]"


# --- what no kernel asks for --------------------------------------------------------------------


@pytest.mark.parametrize(
    ("print_format", "reason"),
    [
        ('"%s", "AAAAAAAA" * 300000000', "text as the operand of an operator"),
        ('"%d", __print_hex(REC->v, 1) == __print_hex(REC->v, 1)', "text as the operand of an operator"),
        ('"%d", ' + "+".join(["REC->v"] * 5000), "nested too deeply"),
        ('"%d", REC->v' + "[0]" * 5000, "nested too deeply"),
        ('"%d", ' + "(" * 5000 + "1" + ")" * 5000, "nested too deeply"),
        ('"%d", ' + "(" * 30 + "REC->v" + " ?: 1)" * 30 + " + 1" * 300, "nested too deeply"),
        ('"%s", __print_flags(REC->v, 1/0, { 1, "x" })', "a constant that cannot be computed"),
        ('"%s", __print_symbolic(REC->v, { REC->v, "x" })', "a constant that cannot be computed"),
    ],
)
def test_a_print_fmt_beyond_all_measure_is_told_beside_the_fields(print_format: str, reason: str) -> None:
    assert shown("u64 v;8;8;0", print_format, bytes(8)) == f"v=0 [print fmt: {reason}]"


def test_a_condition_without_its_middle_is_evaluated_once() -> None:
    class Counting(dict[str, int]):
        reads = 0

        def __getitem__(self, name: str) -> int:
            self.reads += 1
            return super().__getitem__(name)

    format = format_of("u64 v;8;8;0", '"%d", ' + "(" * 26 + "REC->v" + " ?: 1)" * 26)
    values = Counting(v=3)
    assert tables(format).kind(7).print(values) == "3"
    assert values.reads == 1


def test_a_line_has_an_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(printf, "LINE_MAX", 100)
    payload = struct.pack("<I", 12 | 51 << 16) + b"x" * 50 + b"\0"
    twice = shown("__data_loc char[] s;8;4;0", '"%s%s", __get_str(s), __get_str(s)', payload)
    assert twice == "x" * 100
    thrice = shown("__data_loc char[] s;8;4;0", '"%s%s%s", __get_str(s), __get_str(s), __get_str(s)', payload)
    assert thrice == f"s={'x' * 50} [print fmt: a text of more than 100 characters]"


operands = st.sampled_from(["REC->v", "REC->w", "1", "0", "-1", "7ULL", "UNKNOWN", '"text"', "REC->a", "REC->a[1]"])
expressions = st.recursive(
    operands,
    lambda inner: st.one_of(
        st.builds(
            "({} {} {})".format,
            inner,
            st.sampled_from(["+", "-", "*", "/", "%", "<<", ">>", "<", "==", "&", "|", "&&", "||"]),
            inner,
        ),
        st.builds("({} ?: {})".format, inner, inner),
        st.builds("__print_flags({}, {}, {{ {}, {} }})".format, inner, inner, inner, inner),
        st.builds("__print_array({}, {}, {})".format, inner, inner, inner),
        st.builds("((struct page *){})".format, inner),
    ),
    max_leaves=12,
)


@given(expressions, st.sampled_from(["%d", "%s", "%pM", "%*ph", "%llx", "%pS", "%c"]), st.integers(1, 300))
def test_deep_and_repeated_print_fmts_end_in_a_line(expression: str, conversion: str, times: int) -> None:
    print_format = f'"{conversion * times}", ' + ", ".join([expression] * times)
    line = shown("u64 v;8;8;0\nint w;16;4;1\nu8 a[4];20;4;0", print_format, bytes(range(16)))
    assert len(line) <= printf.LINE_MAX + 1000
