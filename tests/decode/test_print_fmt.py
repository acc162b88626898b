"""print fmts: each construct of their language, and name=value where one is beyond us."""

from __future__ import annotations

import subprocess
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aiotrace._base.terminal_text import escape, format_pairs, format_value
from aiotrace._decode.event_format import EventFormat, parse_format
from aiotrace._decode.print_fmt import compile_print

FIELDS = """\
	field:int i;	offset:8;	size:4;	signed:1;
	field:u64 u;	offset:16;	size:8;	signed:0;
	field:char c[8];	offset:24;	size:8;	signed:0;
	field:__data_loc char[] s;	offset:32;	size:4;	signed:0;
	field:__data_loc u8[] d;	offset:36;	size:4;	signed:0;
	field:u32 v[3];	offset:40;	size:12;	signed:0;
	field:double f;	offset:56;	size:8;	signed:1;
"""
VALUES: dict[str, Any] = {
    "i": -5, "u": 0x1_0000_0003, "c": "comm", "s": "text", "d": b"\x01\xff\x02\x00", "v": (1, 2, 3), "f": 2.5,
}  # fmt: skip


class Names:
    def find(self, address: int) -> tuple[str, int] | None:
        return ("function", address - 0x1000) if 0x1000 <= address < 0x2000 else None

    def locate(self, address: int) -> str | None:
        return "a\n.py:17" if address == 0x1011 else None


def parse(print_format: str) -> EventFormat:
    return parse_format(f"name: one\nID: 7\nformat:\n{FIELDS}\nprint fmt: {print_format}\n", "test")


def printed(print_format: str, **values: Any) -> str:
    return compile_print(parse(print_format), Names())({**VALUES, **values})


@pytest.mark.parametrize(
    ("print_format", "expected"),
    [
        (r'"plain 100%%\n"', "plain 100%"),
        ('"two " "strings"', "two strings"),
        ('"%d %i", REC->i, REC->i', "-5 -5"),
        ('"%u", REC->i', "4294967291"),
        ('"%x %X %#x", REC->i, REC->u, 255', "fffffffb 3 0xff"),
        ('"%lx %llx", REC->i, REC->u', "fffffffffffffffb 100000003"),
        ('"%hd %hhu", REC->u + 65535, 257', "2 1"),
        ('"%5d|%-5d|%05d|%+d| %d", 42, 42, 42, 42, 42', "   42|42   |00042|+42| 42"),
        ('"%03d %.3d %o", 7, 7, 8', "007 007 10"),
        ('"%*d|%.*s", 4, 7, 2, REC->c', "   7|co"),
        ('"%s %s", REC->c, __get_str(s)', "comm text"),
        ('"%8s|%-8s|", REC->c, REC->c', "    comm|comm    |"),
        ("\"%c%c\", 65, 'B'", "AB"),
        ('"%p", 0xabc', "0xabc"),
        ('"%ps %pS", (void *)0x1004, (void *)0x1004', "function function+0x4"),
        ('"%pS", REC->u', "0x100000003"),
        ('"%d", REC->v[1]', "2"),
        ('"%d", (REC)->i', "-5"),
        ('"%d", 1 + 2 * 3 - 4 / 2', "5"),
        ('"%d %d", -7 / 2, -7 % 2', "-3 -1"),
        ('"%x", ((1 << 4) | 3) & ~1 ^ 4', "16"),
        ('"%d", 5 > 3 && !(2 == 3) || 0', "1"),
        ('"%s", REC->i < 0 ? "neg" : "pos"', "neg"),
        ('"%d", REC->v[0] ?: 9', "1"),
        ('"%d %u", (unsigned char)257, (u32)REC->u', "1 3"),
        ('"%d", (int)(0xffffffff)', "-1"),
        ('"%ld", (long)REC->i', "-5"),
        ('"%d,%d", ((unsigned int) ((REC->u) >> 20)), ((unsigned int) ((REC->u) & ((1U << 20) - 1)))', "4096,3"),
        ('"%d", sizeof(u64) + sizeof(int)', "12"),
        ('"%s", __print_symbolic(REC->v[1], { 1, "one" }, { 2, "two" })', "two"),
        ('"%s", __print_symbolic(REC->v[2], { 1, "one" }, { 2, "two" })', "0x3"),
        ('"%s", __print_symbolic(REC->i, { -5, "minus" })', "minus"),
        ('"%s", __print_flags(REC->v[2], "|", { 1, "A" }, { 2, "B" }, { 4, "C" })', "A|B"),
        ('"%s", __print_flags(12, "|", { 4, "C" })', "C|0x8"),
        ('"%s", __print_flags(0, "|", { 4, "C" })', ""),
        ('"%s", __print_hex(__get_dynamic_array(d), __get_dynamic_array_len(d))', "01 ff 02 00"),
        ('"%s", __print_hex_str(REC->d, 2)', "01ff"),
        ('"%s", __print_array(REC->v, 2, 4)', "{0x1,0x2}"),
        ('"%pI4 %pU", REC->d, REC->c', None),
        ('"%pI4", REC->d', "1.255.2.0"),
        ('"%d", __builtin_expect(REC->i, 0)', "-5"),
        ('"0x%llx %d", REC->f, REC->i', "2.5 -5"),
        ('"%d", unknown(REC->i)', None),
        ('"%d", 017', "15"),
        ('"%d", 09', None),
        ('"%d", ' + "9" * 5000, None),
        ('"%d", REC->missing', None),
        ('"%d %d", REC->i', None),
        ('"%y", REC->i', None),
        ('"%d", ({ int x = 1; x; })', None),
        ('"%d", REC->i / 0', None),
        ('"%d", REC->v[9]', None),
        ('"%s", REC->v', None),
        ("not a string", None),
        ("", None),
    ],
)
def test_a_print_fmt_is_interpreted_or_the_fields_are_printed(print_format: str, expected: str | None) -> None:
    if expected is None:
        expected = "i=-5 u=4294967299 c=comm s=text d=01ff0200 v=[1, 2, 3] f=2.5"
    assert printed(print_format) == expected


def test_an_event_is_one_line_in_which_control_characters_are_escaped() -> None:
    assert printed(r'"a\tb\n %s %c\n", __get_str(s), 27', s="x\n\x1b[31m\x9b\u202e") == (
        "a\tb\\n x\\n\\x1b[31m\\x9b\\u202e \\x1b"
    )
    assert "\x1b" not in printed('"\x1b %s", REC->c')


def test_escaping_leaves_what_is_printable() -> None:
    assert escape("näme … 漢") == "näme … 漢"
    assert escape("\udc80\n\t") == "\\udc80\\n\\t"
    assert format_value(("a\n", 1)) == "[a\\n, 1]"
    assert format_pairs({"x": b"\x01", "y": 2}) == "x=01 y=2"


def test_a_stack_is_printed_as_trace_cmd_does() -> None:
    format = parse_format(
        "name: kernel_stack\nID: 4\nformat:\n\tfield:int size;offset:8;size:4;signed:1;\n"
        "\tfield:unsigned long caller[8];offset:16;size:64;signed:0;\n",
        "ftrace",
    )
    text = compile_print(format, Names())({"size": 3, "caller": (0x1001, 0x1011, 5, (1 << 64) - 1, 7)})
    assert text == "<stack trace >\n=> function (1001)\n=> function (a\\n.py:17)\n=> 0x5 (5)"


def test_deep_nesting_and_huge_widths_cost_nothing() -> None:
    assert printed('"%d", ' + "(" * 5000 + "1" + ")" * 5000).startswith("i=-5")
    assert printed('"%d", ' + "-" * 5000 + "1").startswith("i=-5")
    assert len(printed('"%999999999d", 1')) <= 1000
    assert printed('"%d", 1 << 1 << 63 << 63 << 63') == "0"


tokens = st.sampled_from(
    ['"%d %s"', '"%x"', ",", "REC", "->", "i", "c", "v", "(", ")", "[", "]", "{", "}", "?", ":", "+", "-", "*", "/"]
    + ["%", "<<", ">>", "&", "|", "~", "!", "1", "0xff", "(int)", "__get_str(s)", "__print_flags(", "sizeof(", "u32"]
)


@given(st.lists(tokens, max_size=30))
def test_any_print_fmt_prints_something(parts: list[str]) -> None:
    text = printed('"%d", ' + " ".join(parts))
    assert isinstance(text, str)
    printed(" ".join(parts))


@given(
    number=st.integers(-(2**63), 2**64 - 1),
    flags=st.sampled_from(["", "-", "0", "+", "#", "-0", " "]),
    width=st.sampled_from(["", "1", "8", "20"]),
    precision=st.sampled_from(["", ".0", ".3", ".12"]),
    conversion=st.sampled_from(["ld", "lu", "lx", "lX", "lo"]),
)
def test_numbers_are_printed_as_printf_does(
    number: int, flags: str, width: str, precision: str, conversion: str
) -> None:
    spec = f"%{flags}{width}{precision}{conversion}"
    argument = number % (1 << 64)
    if conversion == "ld" and argument >> 63:
        argument -= 1 << 64
    if argument == 0 and precision == ".0":
        return  # C prints nothing for a zero without digits; no kernel event asks for that
    if "o" in conversion and "#" in flags:
        return  # the kernel's own printf differs from C's here
    expected = c_printf(spec.replace("l", ""), argument)
    assert printed(f'"{spec}", REC->u', u=number) == expected


def c_printf(spec: str, argument: int) -> str:
    """Python's % is C's, but for `u` and for the sign of unsigned numbers."""
    if spec.endswith(("u", "x", "X", "o")):
        spec = spec.replace("+", "").replace(" ", "")
    if spec.endswith("u"):
        spec = spec[:-1] + "d"
    if argument == 0:
        spec = spec.replace("#", "")
    if "." in spec:
        spec = spec.replace("%0", "%").replace("%-0", "%-")
    return spec % argument


def test_printf_of_the_shell_agrees() -> None:
    for spec, number in (("%08x", 255), ("%-8x|", 255), ("%#x", 16), ("%+5d", 3), ("%.5d", 42), ("%8.3d", 7)):
        done = subprocess.run(["printf", spec, str(number)], capture_output=True, check=True, text=True)
        assert printed(f'"{spec}", {number}') == done.stdout
