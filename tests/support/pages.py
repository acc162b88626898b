"""Pages for tests of reading: made of records that may be right, of strings of any kind, and of bytes that are not."""

from __future__ import annotations

import struct
from typing import Final

from hypothesis import strategies as st

from aiotrace._decode.event_format import EventFormat, parse_format
from aiotrace._page.encode import encode_record, encode_time_extend
from aiotrace._page.event_schema import Schema
from support.page_oracle import encode_absolute_timestamp, encode_padding

SYMBOL: Final = 0xFFFF800000001000
SYMBOLS: Final = {SYMBOL: "users", SYMBOL + 16: "a\nb", SYMBOL + 32: "größe"}

NUMBERS: Final = Schema("test:numbers", {"a": "u16", "b": "u64", "c": "s32"})
EVERYTHING: Final = Schema(
    "test:everything",
    {
        **dict(zip("abcdefgh", ("u8", "u16", "u32", "u64", "s8", "s16", "s32", "s64"), strict=True)),
        "x": "f32",
        "y": "f64",
        "ok": "bool",
        "s": "str",
        "data": "bytes",
        "table": "symbol",
    },
)
OUR_SCHEMAS: Final = {100: NUMBERS, 101: EVERYTHING}
OUR_FORMATS: Final = tuple(parse_format(schema.format_text(id), schema.system) for id, schema in OUR_SCHEMAS.items())

COMMON: Final = """\
	field:unsigned short common_type;	offset:0;	size:2;	signed:0;
	field:unsigned char common_flags;	offset:2;	size:1;	signed:0;
	field:unsigned char common_preempt_count;	offset:3;	size:1;	signed:0;
	field:int common_pid;	offset:4;	size:4;	signed:1;
"""


def kernel_format(id: int, name: str, fields: str, print_format: str) -> EventFormat:
    """An event as the kernel describes it; fields are `TYPE NAME;OFFSET;SIZE;SIGNED` lines."""
    lines = ""
    for line in fields.split("\n"):
        declaration, offset, size, signed = line.strip().split(";")
        lines += f"\tfield:{declaration};\toffset:{offset};\tsize:{size};\tsigned:{signed};\n"
    return parse_format(f"name: {name}\nID: {id}\nformat:\n{COMMON}\n{lines}\nprint fmt: {print_format}\n", "kernel")


KERNEL_FORMATS: Final = (
    kernel_format(
        200,
        "padded",
        "char comm[16];8;16;0\nint n;24;4;1\nu64 m;32;8;0",
        r'"comm=%-20s n=%+d|%08d|%-8d|%#x m=%llu\t%5.3d %c%%", '
        "REC->comm, REC->n, REC->n, REC->n, REC->n, REC->m, REC->m, REC->n",
    ),
    kernel_format(
        201,
        "flags",
        "int n;8;4;1\nunsigned long m;16;8;0",
        r'"n=% d %x %#X %o %#o %lu %3hhu %#18llx %.3u %05.2x", '
        "REC->n, REC->n, REC->n, REC->n, REC->n, REC->m, REC->m, REC->m, REC->n, REC->n",
    ),
    kernel_format(
        202,
        "relative",
        "__rel_loc char[] s;8;4;0\n__data_loc char[] t;12;4;0\nu32 words[2];16;8;0",
        '"s=%10s t=%.3s", __get_rel_str(s), __get_str(t)',
    ),
    kernel_format(203, "tail", "u8 n;8;1;0\nchar buf[];12;0;0", '"%u: %s", REC->n, REC->buf'),
    kernel_format(204, "symbolic", "u32 n;8;4;0", '"n=%s", __print_symbolic(REC->n, {0, "none"}, {1, "one"})'),
    kernel_format(205, "quiet", "__data_loc char[] s;8;4;0\nint n;12;4;1", '"n=%d", REC->n'),
    kernel_format(
        207, "truth", "bool b;8;1;0\nconst char * p;16;8;0", '"%u %.3s %-22s %d", REC->b, REC->p, REC->p, REC->b'
    ),
    kernel_format(206, "left", "__rel_loc char[] s;8;4;0", '"<%-12s>", REC->s'),
)
FORMATS: Final = OUR_FORMATS + KERNEL_FORMATS

texts = st.one_of(
    st.text(st.characters(min_codepoint=32, max_codepoint=126), max_size=20),
    st.text(st.characters(exclude_categories=()), max_size=8),
)
_RANGES: Final = {"u": (0, lambda bits: (1 << bits) - 1)}


def _integers(bits: int, signed: bool) -> st.SearchStrategy[int]:
    return st.integers(-(1 << bits - 1), (1 << bits - 1) - 1) if signed else st.integers(0, (1 << bits) - 1)


numbers = st.builds(
    lambda *values: NUMBERS.encode(100, 7, values, lambda text: SYMBOL),
    *(_integers(16, False), _integers(64, False), _integers(32, True)),
)
everything = st.builds(
    lambda pid, symbol, *values: EVERYTHING.encode(101, pid, (*values, "a symbol"), lambda text: symbol),
    st.integers(-5, 5),
    st.one_of(st.sampled_from([*SYMBOLS, 0]), _integers(64, False)),
    *(_integers(bits, signed) for signed in (False, True) for bits in (8, 16, 32, 64)),
    st.floats(width=32),
    st.floats(),
    st.booleans(),
    texts,
    st.binary(max_size=10),
)


def _kernel_payload(id: int, body: bytes, strings: bytes) -> bytes:
    payload = struct.pack("=HBBi", id, 0, 0, 1) + body
    payload += bytes(-len(payload) & 3)
    return payload + strings + bytes(-len(strings) & 3)


def _kernel_locations(id: int, first: bytes, second: bytes) -> bytes:
    """Both strings where the fields say: after 24 bytes; the first one's place counts from the end of its field."""
    at = 24 - 12 | len(first) << 16
    other = 24 + len(first) | len(second) << 16
    return _kernel_payload(id, struct.pack("=IIII", at, other, 1, 2), first + second)


encoded = texts.map(lambda text: text.encode("utf-8", "surrogatepass") + b"\0")
kernel_payloads = st.one_of(
    st.builds(
        _kernel_payload, st.sampled_from([200, 201, 203, 204, 205, 207]), st.binary(min_size=40, max_size=60), encoded
    ),
    st.builds(_kernel_locations, st.just(202), encoded, encoded),
    st.builds(_kernel_payload, st.sampled_from([202, 205, 206]), st.binary(min_size=16, max_size=16), encoded),
    st.builds(_kernel_payload, st.sampled_from([203, 999]), st.binary(max_size=4), encoded),
)
deltas = st.one_of(st.integers(0, 5000), st.integers(0, 1 << 40))
good_records = st.builds(encode_record, deltas, st.one_of(numbers, everything, kernel_payloads))
other_records = st.one_of(
    st.builds(encode_time_extend, st.integers(0, (1 << 59) - 1)),
    st.builds(encode_absolute_timestamp, st.integers(0, (1 << 59) - 1)),
    st.builds(encode_padding, st.integers(2, 20).map(lambda words: words * 4)),
)
bad_records = st.one_of(
    st.binary(max_size=12),
    st.builds(encode_record, deltas, st.binary(min_size=1, max_size=7)),  # no room for the common fields
    st.builds(lambda record, size: record[:size], good_records, st.integers(0, 60)),
    st.builds(lambda id, body: encode_record(1, struct.pack("=HBBi", id, 0, 0, 1) + body),
              st.sampled_from([format.id for format in FORMATS]), st.binary(max_size=60)),
    st.builds(struct.pack, st.just("=II"), st.sampled_from([29, 29 | 1 << 5, 30, 31, 0, 28, 5]),
              st.one_of(st.integers(0, 40), st.integers(0, (1 << 32) - 1))),
)  # fmt: skip
good_pages = st.lists(st.one_of(good_records, good_records, other_records), max_size=12).map(b"".join)
pages = st.one_of(
    good_pages,
    st.lists(st.one_of(good_records, other_records, bad_records), max_size=12).map(b"".join),
    st.binary(max_size=200),
)
"""Any bytes at all, most of them with some structure."""
