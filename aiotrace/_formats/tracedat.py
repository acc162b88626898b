"""trace.dat, version 7: its sections and options, for writing. Sans-IO.

    0            initial header: magic, "7", byte order, sizes, compression "none", u64 offset of the options
                 header of the buffer section
    page_size    pages of the first CPU | pages of the next CPU | ...     contiguous for each CPU, page-aligned
                 header_page and header_event | ftrace formats | event formats | kallsyms | printk formats | names
                 options: where all of these are, and what else is known

The man page trace-cmd.dat.v7.5(5) is the specification; what trace-cmd 3.1.6 and libtraceevent need beyond it is said
where it matters. The law: **the u64 of the initial header is written last**. While it is 0 there is no trace.dat,
whatever else is in the file.

Names and symbols come from the traced program and are hostile: each is one line, whatever it holds. This module knows
no file and no journal.
"""

from __future__ import annotations

import os
import re
import struct
import sys
from collections.abc import Iterable, Sequence
from typing import Final, NamedTuple

from .._base.crc32 import crc32
from .._base.errors import TraceFormatError
from .._page import kernel_events
from .._page import layout as L
from .._page.definitions import CommandDefinition, Definition, EventDefinition, FunctionDefinition, SymbolDefinition

MAGIC: Final = b"\x17\x08\x44tracing"

OPTION_DONE: Final = 0
OPTION_DATE: Final = 1
OPTION_CPUSTAT: Final = 2
OPTION_BUFFER: Final = 3
OPTION_TRACECLOCK: Final = 4
OPTION_OFFSET: Final = 7
OPTION_CPUCOUNT: Final = 8
OPTION_VERSION: Final = 9
OPTION_TRACEID: Final = 11
OPTION_STREAM: Final = 0x4101
"""Ours: the stream's hello, definitions and end, as frames, exactly: the tables cut names and escape symbols.
trace-cmd passes over options that it does not know."""
OPTION_PAGES: Final = 0x4102
"""Ours: a `PageRow` for each page, in the order of the pages in the file."""
OPTION_CHECK: Final = 0x4103
"""Ours, and the last: u64 where the sections begin, u32 crc32 of everything that is no page (`check_of`)."""
OPTION_FILLER: Final = 0x4104
"""Ours: nothing, of any length."""

SECTION_OPTIONS: Final = 0
SECTION_BUFFER: Final = 3
SECTION_HEADER_INFO: Final = 16
SECTION_FTRACE_EVENTS: Final = 17
SECTION_EVENT_FORMATS: Final = 18
SECTION_KALLSYMS: Final = 19
SECTION_PRINTK: Final = 20
SECTION_CMDLINES: Final = 21

COMMAND_LENGTH: Final = 15
"""Bytes of a task's name: TASK_COMM_LEN without its NUL, and what KernelShark has room for."""

_O = L.BYTE_ORDER
_SECTION = struct.Struct(_O + "HHIQ")
_OPTION = struct.Struct(_O + "HI")
_REGION = struct.Struct(_O + "IQQ")
_PAGE_ROW = struct.Struct(_O + "QIIII")
_U32 = struct.Struct(_O + "I")
_U64 = struct.Struct(_O + "Q")
_CHECK = struct.Struct(_O + "QI")


class Region(NamedTuple):
    """The pages of one CPU."""

    cpu: int
    offset: int
    """Bytes from the beginning of the file, a multiple of the page size."""
    size: int
    """Bytes, a multiple of the page size."""


class PageRow(NamedTuple):
    """What is known of a page beside its own header."""

    sequence: int
    writer: int
    events_count: int
    crc: int
    """crc32 of the page, by `page_crc`."""
    flags: int
    """`PAGE_DAMAGED`, or 0."""


PAGE_DAMAGED: Final = 1
"""The page was damaged when the file was made: it is empty here, and its events are counted as lost."""


def page_crc(records_crc: int, header: bytes, lost_count: bytes) -> int:
    """crc32 of a page: of its records first, which is known since they were written, then of what stands around them.

    Losses are counted together with damage when a trace is closed, so the header is made only then.
    """
    return crc32(header + lost_count, records_crc)


class CpuStatistics(NamedTuple):
    """What `CPU: n` shows of a CPU."""

    cpu: int
    events: int
    """In the file. The kernel's "entries" are those that were left behind in the ring: none."""
    overrun: int
    dropped: int
    bytes: int


def initial_header(page_size: int, options_offset: int = 0) -> bytes:
    """The beginning of the file; its last 8 bytes are the commit point."""
    order = b"\x00" if sys.byteorder == "little" else b"\x01"
    return MAGIC + b"7\x00" + order + b"\x08" + _U32.pack(page_size) + b"none\x00\x00" + _U64.pack(options_offset)


INITIAL_HEADER_SIZE: Final = len(initial_header(0))
OPTIONS_OFFSET_PLACE: Final = INITIAL_HEADER_SIZE - 8
BUFFER_HEADER_PLACE: Final = INITIAL_HEADER_SIZE
"""Where the buffer section begins: its header, then padding up to the first page."""


def pack_options_offset(offset: int) -> bytes:
    """What is written at `OPTIONS_OFFSET_PLACE`."""
    return _U64.pack(offset)


def unpack_options_offset(header: bytes) -> int:
    """From the file's first `INITIAL_HEADER_SIZE` bytes, as written by us: 0 if there is no trace.dat yet."""
    if len(header) < INITIAL_HEADER_SIZE or not header.startswith(MAGIC):
        return 0
    offset: int = _U64.unpack_from(header, OPTIONS_OFFSET_PLACE)[0]
    return offset


def buffer_header(data_end: int) -> bytes:
    """The header of the buffer section, whose data ends at `data_end`."""
    return _SECTION.pack(SECTION_BUFFER, 0, 0, data_end - BUFFER_HEADER_PLACE - _SECTION.size)


def encode_tail(
    offset: int,
    *,
    page_size: int,
    clock: str,
    regions: Sequence[Region],
    definitions: Iterable[Definition],
    options: Iterable[tuple[int, bytes]],
) -> tuple[bytes, int]:
    """Everything that follows the pages.

    Args:
        offset: Where in the file it will be written.
        options: (id, content) of further options.

    Returns:
        The bytes, and the offset in the file of the options.
    """
    sections, places = _encode_sections(offset, page_size, _Tables(definitions))
    buffer = _U64.pack(BUFFER_HEADER_PLACE) + b"\0" + _text(clock) + _U32.pack(page_size) + _U32.pack(len(regions))
    buffer += b"".join(_REGION.pack(*region) for region in regions)
    known = [
        (OPTION_TRACECLOCK, _text(f"[{clock}]")),
        (OPTION_CPUCOUNT, _U32.pack(max((region.cpu for region in regions), default=0) + 1)),
        *places,
        (OPTION_BUFFER, buffer),
        *options,
        (OPTION_CHECK, _CHECK.pack(offset, 0)),
        (OPTION_DONE, _U64.pack(0)),
    ]
    position = offset + len(sections)
    tail = sections + pack_options(known)
    crc = check_of(initial_header(page_size, position) + buffer_header(offset), tail)
    place = len(tail) - CHECK_PLACE
    return tail[:place] + _U32.pack(crc) + tail[place + _U32.size :], position


def encode_headers(
    offset: int,
    *,
    page_size: int,
    clock: str,
    cpus: int,
    definitions: Iterable[Definition],
    options: Iterable[tuple[int, bytes]],
) -> tuple[bytes, int]:
    """The sections and options of a file whose pages somebody else will append, with an option for them, as a listener
    of trace-cmd does. Arguments and result as those of `encode_tail`."""
    sections, places = _encode_sections(offset, page_size, _Tables(definitions))
    known = [
        (OPTION_TRACECLOCK, _text(f"[{clock}]")),
        (OPTION_CPUCOUNT, _U32.pack(cpus)),
        *places,
        *options,
        (OPTION_DONE, _U64.pack(0)),
    ]
    return sections + pack_options(known), offset + len(sections)


def pack_options(options: Iterable[tuple[int, bytes]]) -> bytes:
    """An options section: (id, content) of each. The last is `OPTION_DONE`: u64 where the next such section is, or
    0."""
    return _section(SECTION_OPTIONS, b"".join(_OPTION.pack(kind, len(data)) + data for kind, data in options))


def _encode_sections(offset: int, page_size: int, table: _Tables) -> tuple[bytes, list[tuple[int, bytes]]]:
    """All that is neither options nor pages, and the options that say where each section is."""
    places: list[tuple[int, bytes]] = []
    encoded = b""
    for kind, content in (
        (SECTION_HEADER_INFO, _header_info(page_size)),
        (SECTION_FTRACE_EVENTS, _formats([_encode(event.format) for event in kernel_events.EVENTS])),
        (SECTION_EVENT_FORMATS, _event_formats(table.events)),
        (SECTION_KALLSYMS, _sized(_U32, _kallsyms(table.symbols, table.functions))),
        (SECTION_PRINTK, _sized(_U32, _printk_formats(table.symbols))),
        (SECTION_CMDLINES, _sized(_U64, _command_lines(table.commands))),
    ):
        places.append((kind, _U64.pack(offset + len(encoded))))
        encoded += _section(kind, content)
    return encoded, places


def _section(kind: int, content: bytes) -> bytes:
    return _SECTION.pack(kind, 0, 0, len(content)) + content


CHECK_PLACE: Final = _OPTION.size + _U64.size + _U32.size
"""Bytes from the crc32 of `OPTION_CHECK` to the end of the options: only the end of the list comes after it."""
CHECKED_HEAD: Final = INITIAL_HEADER_SIZE + _SECTION.size
"""Bytes at the beginning of the file that say something."""


def unpack_check(content: bytes) -> tuple[int, int]:
    """Where the sections begin, and the crc32: the content of `OPTION_CHECK`.

    Raises:
        TraceFormatError: It is none.
    """
    if len(content) != _CHECK.size:
        raise TraceFormatError(f"{_CHECK.size} bytes should say the crc32 of the sections, {len(content)} do")
    begin, crc = _CHECK.unpack(content)
    return begin, crc


def check_of(head: bytes, tail: bytes) -> int:
    """The crc32 of all that is no page, its own 4 bytes taken as 0.

    Args:
        head: The first `CHECKED_HEAD` bytes of the file, complete.
        tail: From the first section to the end of the options.
    """
    place = len(tail) - CHECK_PLACE
    return crc32(tail[place + _U32.size :], crc32(bytes(_U32.size), crc32(tail[:place], crc32(head))))


def pack_page_rows(rows: Iterable[PageRow]) -> bytes:
    """The content of `OPTION_PAGES`."""
    return b"".join(_PAGE_ROW.pack(*row) for row in rows)


def unpack_page_rows(content: bytes) -> list[PageRow]:
    """The content of `OPTION_PAGES`; what is no whole row at its end is left out."""
    whole = len(content) // _PAGE_ROW.size * _PAGE_ROW.size
    return [PageRow(*row) for row in _PAGE_ROW.iter_unpack(content[:whole])]


def cpu_statistics(statistics: CpuStatistics) -> bytes:
    """The content of a CPUSTAT option, in the words of the kernel's per_cpu/cpuN/stats."""
    cpu, events, overrun, dropped, size = statistics
    return _text(
        f"CPU: {cpu}\nentries: 0\noverrun: {overrun}\ncommit overrun: 0\nbytes: {size}\n"
        f"dropped events: {dropped}\nread events: {events}\n"
    )


class _Tables:
    """Definitions by kind; a later one for the same id, key or pid replaces the earlier."""

    def __init__(self, definitions: Iterable[Definition]) -> None:
        self.events: dict[int, EventDefinition] = {}
        self.symbols: dict[int, str] = {}
        self.commands: dict[int, str] = {}
        self.functions: dict[int, FunctionDefinition] = {}
        for definition in definitions:
            match definition:
                case EventDefinition():
                    self.events[definition.id] = definition
                case SymbolDefinition(key, text):
                    self.symbols[key] = text
                case CommandDefinition(pid, name):
                    self.commands[pid] = name
                case FunctionDefinition():
                    self.functions[definition.address] = definition


# --- texts --------------------------------------------------------------------------------------


def _header_info(page_size: int) -> bytes:
    page = (
        "\tfield: u64 timestamp;\toffset:0;\tsize:8;\tsigned:0;\n"
        "\tfield: local_t commit;\toffset:8;\tsize:8;\tsigned:1;\n"
        "\tfield: int overwrite;\toffset:8;\tsize:1;\tsigned:1;\n"
        f"\tfield: char data;\toffset:16;\tsize:{page_size - L.PAGE_HEADER_SIZE};\tsigned:1;\n"
    )
    event = (
        "# compressed entry header\n"
        f"\ttype_len    :    {L.TYPE_LEN_BITS} bits\n\ttime_delta  :   {L.TIME_DELTA_BITS} bits\n"
        "\tarray       :   32 bits\n\n"
        f"\tpadding     : type == {L.TYPE_PADDING}\n\ttime_extend : type == {L.TYPE_TIME_EXTEND}\n"
        f"\ttime_stamp : type == {L.TYPE_TIME_STAMP}\n\tdata max type_len  == {L.TYPE_DATA_MAX}\n"
    )
    return b"header_page\0" + _sized(_U64, page.encode()) + b"header_event\0" + _sized(_U64, event.encode())


def _formats(texts: Sequence[bytes]) -> bytes:
    return _U32.pack(len(texts)) + b"".join(_sized(_U64, text) for text in texts)


def _event_formats(events: dict[int, EventDefinition]) -> bytes:
    systems: dict[str, list[bytes]] = {}
    for event in events.values():
        systems.setdefault(event.system, []).append(_encode(event.format))
    return _U32.pack(len(systems)) + b"".join(_text(name) + _formats(texts) for name, texts in systems.items())


def _kallsyms(symbols: dict[int, str], functions: dict[int, FunctionDefinition]) -> bytes:
    """Sorted, with an end marker, as the kernel's has one (trace-cmd 3.1.6 would do without). Functions carry their
    file and line in their name: trace-cmd prints no more than that."""
    names = {key: (key + 1, _word(text)) for key, text in symbols.items()}
    for address, each in functions.items():
        place = f"{each.name}@{os.path.basename(each.file)}:{each.line}"
        names[address] = (address + each.lines, _word(place))
    lines = [f"{address:016x} t {name}" for address, (_, name) in sorted(names.items())]
    if names:
        lines.append(f"{max(end for end, _ in names.values()):016x} t _end_of_symbols")
    return _encode("".join(line + "\n" for line in lines))


def _printk_formats(symbols: dict[int, str]) -> bytes:
    return _encode("".join(f'0x{key:x} : "{escape(text)}"\n' for key, text in symbols.items()))


def _command_lines(commands: dict[int, str]) -> bytes:
    lines = []
    for pid, name in commands.items():
        cut = _encode(_word(name))[:COMMAND_LENGTH]
        lines.append(b"%d %s\n" % (pid, cut.decode("utf-8", "ignore").encode()))
    return b"".join(lines)


_CONTROL = re.compile(r"[\\\x00-\x1f\x7f]")
_NO_WORD = re.compile(r"[\s\x00-\x1f\x7f]")


def escape(text: str) -> str:
    """The text on one line; `_traces.event_tables.unescaped` is the inverse.

    libtraceevent cuts lines at newlines and strings at NUL, and keeps everything else, quotes inside of the text too.
    """
    return _CONTROL.sub(_escape_one, text)


def _escape_one(found: re.Match[str]) -> str:
    return {"\n": "\\n", "\\": "\\\\"}.get(found[0]) or f"\\x{ord(found[0]):02x}"


def _word(text: str) -> str:
    """One word for the tables whose columns end at white space."""
    return _NO_WORD.sub("_", text) or "?"


def _encode(text: str) -> bytes:
    return text.encode("utf-8", "surrogatepass")


def _text(text: str) -> bytes:
    """NUL-terminated."""
    return _encode(text.replace("\0", "_")) + b"\0"


def _sized(size: struct.Struct, content: bytes) -> bytes:
    return size.pack(len(content)) + content
