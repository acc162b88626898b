"""Coverage-guided fuzzing of everything that reads: trace files, event formats, print fmts, filters.

    pip install atheris
    python tests/long/fuzz_reading.py -runs=1000000 [CORPUS]

What is found crashes with the input printed; `test_fuzz_reading.py` runs it as a long job. The first byte of an input
chooses what reads the rest; for a file the next one chooses which small trace is patched, and the rest are patches:
place and bytes. So the fuzzer need not find the magic by itself.
"""

from __future__ import annotations

import itertools
import os
import struct
import sys
import tempfile
import zlib
from pathlib import Path

import atheris

ROOT = Path(__file__).resolve().parent.parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

with atheris.instrument_imports(include=["aiotrace"]):
    from aiotrace._base.clock import Anchor
    from aiotrace._base.errors import ConfigurationError, TraceFormatError
    from aiotrace._decode.event_format import compile_reader, parse_format, text_of
    from aiotrace._decode.print_fmt import compile_print
    from aiotrace._formats.journal import JournalWriter
    from aiotrace._formats.tracedat import (
        CHECK_PLACE,
        CHECKED_HEAD,
        OPTION_CHECK,
        OPTION_PAGES,
        OPTION_STREAM,
        PageRow,
        check_of,
        pack_page_rows,
        page_crc,
    )
    from aiotrace._page.encode import encode_record, pack_header, pack_lost_count
    from aiotrace._page.filter import compile_filter
    from aiotrace.abc import StreamInfo
    from aiotrace.decode import format_line, open_trace
    from support.page_oracle import encode_padding, unpack_header

EVENTS_MAX = 60
"""Events of a file that are read: an execution takes about a millisecond."""
FOLDER = "/dev/shm" if os.path.isdir("/dev/shm") else None


ONE = b"""name: one
ID: 7
format:
	field:unsigned short common_type;	offset:0;	size:2;	signed:0;
	field:int common_pid;	offset:4;	size:4;	signed:1;
	field:__data_loc char[] s;	offset:8;	size:4;	signed:0;
	field:const char * p;	offset:16;	size:8;	signed:0;

print fmt: "s=%s p=%s %ps", __get_str(s), REC->p, (void *)REC->p
"""
STACK = b"""name: kernel_stack
ID: 4
format:
	field:int size;	offset:8;	size:4;	signed:1;
	field:unsigned long caller[8];	offset:16;	size:64;	signed:0;
"""
HEADER_PAGE = b"\tfield: u64 timestamp;\toffset:0;\tsize:8;\tsigned:0;\n\tfield: local_t commit;\toffset:8;\tsize:8;\n"


def _sized(code: str, data: bytes) -> bytes:
    return struct.pack(code, len(data)) + data


def _page(time: int, lost: int = 0) -> bytes:
    one = struct.pack("<HBBiIIQ", 7, 0, 0, 5, 24 | 4 << 16, 0, 0x1010) + b"abc\0"
    stack = struct.pack("<HBBiiiQQ", 4, 0, 0, 5, 2, 0, 0x1000, 0x1011)
    records = encode_record(5, one) + encode_padding(12) + encode_record(1 << 30, stack) + encode_record(9, one)
    page = pack_header(time, len(records), lost) + records + pack_lost_count(lost)
    return page + bytes(1024 - len(page))


PAGES = _page(1000) + _page(1 << 31, 3)
CONTENTS = {
    16: b"header_page\0" + _sized("<Q", HEADER_PAGE) + b"header_event\0" + _sized("<Q", b"x"),
    17: struct.pack("<I", 1) + _sized("<Q", STACK),
    18: struct.pack("<I", 1) + b"test\0" + struct.pack("<I", 1) + _sized("<Q", ONE),
    19: _sized("<I", b"0000000000001000 t f\n0000000000002000 t end\n"),
    20: _sized("<I", b'0x1010 : "sym\\n"\n'),
    21: _sized("<Q", b"5 task\n"),
}
HEAD = b"\x17\x08\x44tracing%d\0\0\x08" + struct.pack("<I", 1024)


def version_6() -> bytes:
    content = HEAD % 6 + b"".join(CONTENTS.values()) + struct.pack("<I", 2) + b"options  \0"
    content += struct.pack("<HI", 4, 7) + b"[mono]\0" + struct.pack("<H", 0) + b"flyrecord\0"
    start = -(-(len(content) + 32) // 1024) * 1024
    content += struct.pack("<QQQQ", start, 1024, start + 1024, 1024)
    return content + bytes(start - len(content)) + PAGES


def version_7(packed: bool) -> bytes:
    """With zlib, or with our own option that has a crc for each page."""
    head = HEAD % 7 + (b"zlib\0001\0" if packed else b"none\0\0")
    content = bytearray(head + bytes(8))
    places = {}
    for kind, data in CONTENTS.items():
        places[kind] = len(content)
        if packed:
            data = struct.pack("<II", len(zlib.compress(data)), len(data)) + zlib.compress(data)
        content += struct.pack("<HHIQ", kind, int(packed), 0, len(data)) + data
    buffer = len(content)
    squeezed = zlib.compress(PAGES)
    data = struct.pack("<III", 1, len(squeezed), len(PAGES)) + squeezed if packed else PAGES
    content += struct.pack("<HHIQ", 3, int(packed), 0, len(data)) + data
    option = struct.pack("<Q", buffer) + b"\0mono\0" + struct.pack("<II", 1024, 1)
    option += struct.pack("<IQQ", 0, buffer + 16, len(data) - 4 * packed)
    options = b"".join(struct.pack("<HIQ", kind, 8, place) for kind, place in places.items())
    options += struct.pack("<HI", 3, len(option)) + option
    if not packed:
        rows = pack_page_rows(PageRow(n, 0, 3, _crc(PAGES[at : at + 1024]), 0) for n, at in enumerate((0, 1024)))
        frames = JournalWriter(StreamInfo(bytes(16), 4096, 1, "mono", Anchor(1, 2, ""), 5, "h", "c")).hello()
        options += struct.pack("<HI", OPTION_STREAM, len(frames)) + frames
        options += struct.pack("<HI", OPTION_PAGES, len(rows)) + rows
        options += struct.pack("<HIQI", OPTION_CHECK, 12, buffer + 16 + len(data), 0)
    options += struct.pack("<HIQ", 0, 8, 0)
    content[len(head) : len(head) + 8] = struct.pack("<Q", len(content))
    content += struct.pack("<HHIQ", 0, 0, 0, len(options)) + options
    if not packed:
        place = len(content) - CHECK_PLACE
        crc = check_of(bytes(content[:CHECKED_HEAD]), bytes(content[buffer + 16 + len(data) :]))
        content[place : place + 4] = struct.pack("<I", crc)
    return bytes(content)


def _crc(page: bytes) -> int:
    header = unpack_header(page)
    end = 16 + header.committed
    return page_crc(zlib.crc32(page[16:end]), page[:16], pack_lost_count(header.lost))


SEEDS = [version_6(), version_7(True), version_7(False), HEAD % 7]
TARGET = tempfile.NamedTemporaryFile(dir=FOLDER, suffix=".dat")  # noqa: SIM115  # lives as long as the process


def read_file(data: bytes) -> None:
    content = bytearray(SEEDS[data[0] & 3])
    position = 1
    while position + 4 <= len(data):
        place = int.from_bytes(data[position : position + 3], "little") % (len(content) + 1)
        size = data[position + 3] & 15
        patch = data[position + 4 : position + 4 + size]
        if data[position + 3] & 0x80:
            del content[place:]  # cut
        content[place : place + len(patch)] = patch
        position += 4 + size
    with open(TARGET.name, "wb") as file:
        file.write(content)
    try:
        with open_trace(TARGET.name) as trace:
            for number, event in enumerate(trace):
                format_line(event)
                if number >= EVENTS_MAX:
                    break
            if data[-1] & 1:  # the C decoder's lines and counts have a walk of their own
                for _ in itertools.islice(trace.text(), EVENTS_MAX):
                    pass
            if data[-1] & 15 == 2:  # its table of all ids costs more than the rest
                trace.statistics()
    except TraceFormatError:
        pass


FIELDS = """name: one
ID: 7
format:
	field:int i;	offset:8;	size:4;	signed:1;
	field:__data_loc char[] s;	offset:12;	size:4;	signed:0;
	field:u32 v[3];	offset:16;	size:12;	signed:0;

print fmt: """
VALUES = {"i": -5, "s": "text", "v": (1, 2, 3)}
PAYLOAD = bytes(range(64))


def read_format(data: bytes) -> None:
    try:
        format = parse_format(text_of(data), "test")
        compile_print(format)(compile_reader(format.fields)(PAYLOAD, 0, len(PAYLOAD)))
    except TraceFormatError:
        pass


def read_print_format(data: bytes) -> None:
    text = compile_print(parse_format(FIELDS + text_of(data), "test"))(VALUES)
    assert isinstance(text, str)


def read_filter(data: bytes) -> None:
    try:
        compile_filter(text_of(data))(VALUES)
    except ConfigurationError:
        pass


READERS = (read_file, read_format, read_print_format, read_filter)


def one(data: bytes) -> None:
    if len(data) > 1:
        READERS[data[0] % len(READERS)](data[1:])


def count_intact() -> None:
    """The traces that are patched must be good ones, or the fuzzing would look at refusals only."""
    for seed in SEEDS[:3]:
        Path(TARGET.name).write_bytes(seed)
        with open_trace(TARGET.name) as trace:
            found = [event.is_loss for event in trace]
            assert (len(found), sum(found), trace.damage_count) == (7, 1, 0), (found, trace.damage)


def main() -> None:
    count_intact()
    atheris.Setup(sys.argv, one)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
