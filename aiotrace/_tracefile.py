"""Reading trace.dat, versions 6 and 7, made by the kernel's tools or by us.

    version 6    header | header_page | formats | kallsyms | printk | names | options | one table of CPUs | pages
    version 7    header (says where the options are) | sections and options in any order | pages

The man pages trace-cmd.dat.v6.5(5) and trace-cmd.dat.v7.5(5) are the specification; what they leave out was read
from files of trace-cmd 3.1.6 (a version 6 table of CPUs ends with the clock; a version 7 section's size leaves out
its padding).

Two laws. **No length is believed**: each is compared with what is really there, or with a limit, before anything is
read or allocated, and ranges that overlap are refused, so that a file costs time and memory by its own size.
**Damage is local**: what can be told without a damaged part is told, and the part is noted in `damage`. Only a file
whose beginning does not say where anything is raises.

This module hands out pages; it knows no event's values and no order of time.
"""

from __future__ import annotations

import bisect
import errno
import os
import re
import stat
import struct
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import Final

from . import _layout as L
from ._crc import crc32
from ._definitions import Definition
from ._errors import TraceFormatError
from ._format import EventFormat, parse_format, text_of
from ._journal import JournalReader
from ._tracedat import (
    CHECKED_HEAD,
    OPTION_CHECK,
    OPTION_PAGES,
    OPTION_STREAM,
    PAGE_DAMAGED,
    PageRow,
    check_of,
    pack_page_rows,
    page_crc,
    unpack_check,
    unpack_page_rows,
)
from .abc import Ledger, StreamInfo

__all__ = ["Buffer", "CpuData", "Damage", "FoundPage", "Functions", "PageShape", "TraceFile"]

MAGIC: Final = b"\x17\x08\x44tracing"
SECTION_MAX: Final = 256 << 20
"""Bytes of a section, decompressed: kallsyms is the largest, about 5 MiB on Linux 6.18, more with many modules."""
CHUNK_MAX: Final = 8 << 20
"""Bytes of a piece of compressed pages, decompressed: trace-cmd packs 10 pages."""
BATCH_SIZE: Final = 1 << 18
"""Bytes of pages that are read at once."""
OPTIONS_MAX: Final = 1 << 16
EVENTS_MAX: Final = 1 << 16
DAMAGE_MAX: Final = 1000
"""Damages that are remembered; more are only counted."""

OPTIONS_SECTION: Final = 0
(
    OPTION_DATE,
    OPTION_CPUSTAT,
    OPTION_BUFFER,
    OPTION_TRACECLOCK,
    OPTION_UNAME,
    OPTION_HOOK,
    OPTION_OFFSET,
    OPTION_CPUCOUNT,
    OPTION_VERSION,
) = range(1, 10)
OPTION_HEADER_INFO, OPTION_FTRACE_EVENTS, OPTION_EVENT_FORMATS, OPTION_KALLSYMS, OPTION_PRINTK, OPTION_CMDLINES = range(
    16, 22
)


@dataclass(frozen=True, slots=True)
class Damage:
    """A part of a file that could not be read."""

    offset: int
    """Bytes from the beginning of the file."""
    message: str


@dataclass(frozen=True, slots=True)
class PageShape:
    """How a page begins, as the file's header_page text says."""

    byte_order: str = L.BYTE_ORDER
    commit_size: int = 8
    """Bytes of `commit`: 4 where the kernel's long has 4."""

    @property
    def data_offset(self) -> int:
        return 8 + self.commit_size


@dataclass(frozen=True, slots=True)
class CpuData:
    """Where one CPU's pages are."""

    cpu: int
    offset: int
    """Bytes from the beginning of the file."""
    size: int
    """Bytes in the file."""


@dataclass(frozen=True, slots=True)
class Buffer:
    """One ring buffer: the main one, or an instance."""

    name: str
    """"" for the main one."""
    clock: str
    page_size: int
    cpus: tuple[CpuData, ...]
    compressed: bool = False


@dataclass(frozen=True, slots=True)
class FoundPage:
    """A page's bytes, and where they were."""

    offset: int
    """Bytes from the beginning of the file; of the compressed piece that holds it, where there is one."""
    data: bytes
    problem: str = ""
    """What is wrong with it, where more is known than its structure: then none of it is to be read."""
    events_count: int | None = None
    """Events on it, where that is known."""


class Source:
    """The bytes of a file, read by place: never more than asked for, never beyond the end.

    Not a memory map: a file that is cut while it is read would kill the program (SIGBUS).
    """

    def __init__(self, path: str) -> None:
        self.path = path
        self._fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        status = os.fstat(self._fd)
        self.size = status.st_size
        if not stat.S_ISREG(status.st_mode):
            self.close()
            if stat.S_ISDIR(status.st_mode):
                raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), path)
            raise OSError(errno.ESPIPE, "a trace is not read in one go: copy it into a file", path)

    def read(self, offset: int, size: int) -> bytes:
        """
        Raises:
            TraceFormatError: The file does not have these bytes.
        """
        if offset < 0 or size < 0 or offset + size > self.size:
            raise TraceFormatError(f"{size} bytes should be here, the file ends at {self.size}", offset=offset)
        data = self.read_some(offset, size)
        if len(data) < size:
            raise TraceFormatError(f"{size} bytes should be here, only {len(data)} are", offset=offset)
        return data

    def read_some(self, offset: int, size: int) -> bytes:
        """As many of these bytes as there are."""
        parts = []
        while size > 0 and offset < 1 << 63:
            part = os.pread(self._fd, min(size, 1 << 26), offset)
            if not part:
                break
            parts.append(part)
            offset += len(part)
            size -= len(part)
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


class Cursor:
    """Takes numbers and strings from bytes, in order; every step is checked."""

    def __init__(self, data: bytes, byte_order: str, offset: int = 0) -> None:
        self.data = data
        self.position = 0
        self._order = byte_order
        self._offset = offset

    def fail(self, message: str) -> TraceFormatError:
        return TraceFormatError(message, offset=self._offset + self.position)

    def take(self, size: int) -> bytes:
        if not 0 <= size <= len(self.data) - self.position:
            raise self.fail(f"{size} bytes should follow, {len(self.data) - self.position} do")
        self.position += size
        return self.data[self.position - size : self.position]

    def _number(self, code: str, size: int) -> int:
        return int(struct.unpack(self._order + code, self.take(size))[0])

    def u8(self) -> int:
        return self._number("B", 1)

    def u16(self) -> int:
        return self._number("H", 2)

    def u32(self) -> int:
        return self._number("I", 4)

    def u64(self) -> int:
        return self._number("Q", 8)

    def string(self) -> str:
        """Bytes up to a NUL, which is passed over."""
        end = self.data.find(b"\0", self.position)
        if end < 0:
            raise self.fail("a string should end with a NUL")
        return text_of(self.take(end + 1 - self.position)[:-1])

    def expect(self, what: bytes) -> None:
        found = self.data[self.position : self.position + len(what)]
        if found != what:
            raise self.fail(f"{what!r} should be here, found {found!r}")
        self.position += len(what)

    @property
    def left(self) -> int:
        return len(self.data) - self.position


def decompressor(name: str) -> Callable[[bytes, int], bytes]:
    """A function that expands bytes to exactly the size that is said for them.

    Raises:
        TraceFormatError: The kind of compression is not known here, or its library is not installed.
    """
    if name == "zlib":
        return _expand_zlib
    if name == "zstd":
        try:
            import zstandard
        except ImportError:
            raise TraceFormatError("compressed with zstd: install aiotrace[zstd]") from None

        def expand_zstd(data: bytes, size: int) -> bytes:
            # A frame may announce any size: only a reader with a limit is safe.
            with zstandard.ZstdDecompressor(max_window_size=1 << 27).stream_reader(data) as reader:
                try:
                    expanded = reader.read(size + 1)
                except zstandard.ZstdError as error:
                    raise TraceFormatError(f"zstd: {error}") from None
            return _of_size(expanded, size)

        return expand_zstd
    raise TraceFormatError(f"compressed with {name!r}: zstd, zlib and none can be read")


def _expand_zlib(data: bytes, size: int) -> bytes:
    try:
        return _of_size(zlib.decompressobj().decompress(data, size + 1), size)
    except zlib.error as error:
        raise TraceFormatError(f"zlib: {error}") from None


def _of_size(expanded: bytes, size: int) -> bytes:
    if len(expanded) != size:
        found = "more" if len(expanded) > size else len(expanded)
        raise TraceFormatError(f"decompressed there should be {size} bytes, there are {found}")
    return expanded


class Functions:
    """The functions of a kallsyms text, by address. Read when first asked: there are 200,000 lines of it."""

    def __init__(self, text: bytes = b"") -> None:
        self._text = text
        self._addresses: list[int] = []
        self._names: list[str] = []

    def __len__(self) -> int:
        self._read()
        return len(self._addresses)

    def find(self, address: int) -> tuple[str, int] | None:
        """The function that an address is in, and how far from its beginning; None if there is none."""
        self._read()
        index = bisect.bisect_right(self._addresses, address) - 1
        # The last line only says where the one before it ends.
        if index < 0 or index >= len(self._addresses) - 1:
            return None
        return self._names[index], address - self._addresses[index]

    def locate(self, address: int) -> str | None:
        """The place in a source file: a kallsyms does not say."""
        return None

    def _read(self) -> None:
        if not self._text:
            return
        found = []
        for line in self._text.split(b"\n"):
            parts = line.split(None, 2)
            if len(parts) == 3 and len(parts[0]) <= 16:
                try:
                    found.append((int(parts[0], 16), parts[2]))
                except ValueError:
                    continue
        found.sort(key=lambda pair: pair[0])
        self._addresses = [address for address, _ in found]
        self._names = [text_of(name.split(b"\t")[0].strip()) for _, name in found]
        self._text = b""


@dataclass(slots=True)
class _Tables:
    """What is known about a file's events."""

    formats: dict[int, EventFormat] = field(default_factory=dict)
    symbols: dict[int, str] = field(default_factory=dict)
    commands: dict[int, str] = field(default_factory=dict)
    functions: Functions = field(default_factory=Functions)


class TraceFile:
    """A trace.dat: what it says about its events, and where its pages are."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        """Open and read all but the pages.

        Raises:
            OSError: The file cannot be opened.
            TraceFormatError: It is not a trace.dat, or its beginning is damaged.
        """
        self.path = os.fspath(path)
        self.version = 0
        self.byte_order = L.BYTE_ORDER
        self.long_size = 8
        self.page_size = 4096
        self.compression = "none"
        self.options_offset = 0
        self.options: list[tuple[int, bytes]] = []
        self.buffers: list[Buffer] = []
        self.damage: list[Damage] = []
        self.damage_count = 0
        self.time_offset = 0
        """Nanoseconds to be added to each timestamp."""
        self.shape = PageShape()
        self.definitions: list[Definition] = []
        """Those of our own option, which come before what the tables say: each has a crc, and no name is cut."""
        self.ledger: Ledger | None = None
        self.info: StreamInfo | None = None
        """What our own option says of the stream."""
        self._dropped: dict[tuple[str, int], int] = {}
        self._tables = _Tables()
        self._expand: Callable[[bytes, int], bytes] | None = None
        self._seen_sections: set[int] = set()
        self.source = Source(self.path)
        self.size = self.source.size
        """Bytes of the file."""
        try:
            self._read_header()
        except TraceFormatError as error:
            self.source.close()
            raise error.at(self.path, 0) from None
        except BaseException:
            self.source.close()
            raise
        self._damage_at_open = len(self.damage), self.damage_count

    @property
    def formats(self) -> dict[int, EventFormat]:
        """By common_type."""
        return self._tables.formats

    @property
    def symbols(self) -> dict[int, str]:
        """Strings that `char *` fields point to."""
        return self._tables.symbols

    @property
    def commands(self) -> dict[int, str]:
        """Names of tasks by pid."""
        return self._tables.commands

    @property
    def functions(self) -> Functions:
        return self._tables.functions

    @property
    def is_ours(self) -> bool:
        """Whether aiotrace made it, so that each page has a row in our own option."""
        return self.option(OPTION_STREAM) is not None

    @property
    def complete(self) -> bool:
        """False if nothing says where anything is yet: the recording has not ended."""
        return self.version == 6 or self.options_offset != 0

    def close(self) -> None:
        self.source.close()

    def note_damage(self, offset: int, message: str) -> None:
        """Count a part that could not be read."""
        self.damage_count += 1
        if len(self.damage) < DAMAGE_MAX:
            self.damage.append(Damage(offset, message))

    def forget_page_damage(self) -> None:
        """Keep only the damage that was found when the file was opened: its pages are read again."""
        kept, self.damage_count = self._damage_at_open
        del self.damage[kept:]

    def option(self, number: int) -> bytes | None:
        """The data of the first option with this number."""
        return next((data for found, data in self.options if found == number), None)

    # --- the beginning ---

    def _read_header(self) -> None:
        start = Cursor(self.source.read_some(0, 4096), "<")
        if not start.data.startswith(MAGIC):
            found = f"it begins with {start.data[: len(MAGIC)]!r}" if start.data else "it is empty"
            raise TraceFormatError(f"no trace.dat: {found}, a trace with {MAGIC!r}", offset=0)
        start.expect(MAGIC)
        version = start.string()
        if version not in ("6", "7"):
            raise TraceFormatError(f"trace.dat version {version[:20]!r}: 6 and 7 can be read", offset=10)
        self.version = int(version)
        big, self.long_size = start.u8(), start.u8()
        if big not in (0, 1) or self.long_size not in (4, 8):
            raise start.fail(f"byte order should be 0 or 1, long 4 or 8 bytes; found {big} and {self.long_size}")
        self.byte_order = ">" if big else "<"
        cursor = Cursor(start.data, self.byte_order)
        cursor.position = start.position
        self.page_size = self._checked_page_size(cursor.u32())
        self.shape = PageShape(self.byte_order, self.long_size)
        if self.version == 6:
            self._read_version_6(cursor.position)
            self._read_dropped()
            return
        self.compression = cursor.string()
        cursor.string()  # the version of the compression's library
        self.options_offset = cursor.u64()
        if self.compression != "none":
            self._expand = decompressor(self.compression)
        if self.options_offset:
            self._read_options_sections(self.options_offset)
            self._check_own()
            self._read_own_stream()
            self._read_version_7_tables()
            self._read_version_7_buffers()
            if self.buffers:
                self.buffers[0] = with_writers_of(self.ledger, self.buffers[0])
            self._read_dropped()

    def _checked_page_size(self, size: int) -> int:
        if not 1024 <= size <= L.PAGE_SIZE_MAX or size & (size - 1):
            raise TraceFormatError(f"page size should be a power of two from 1024 to {L.PAGE_SIZE_MAX}, found {size}")
        return size

    # --- version 7 ---

    def _section(self, offset: int, number: int) -> Cursor:
        """The content of a section, decompressed."""
        head = Cursor(self.source.read(offset, 16), self.byte_order, offset)
        found, flags = head.u16(), head.u16()
        head.u32()  # the id of a description
        size = head.u64()
        if found != number:
            raise TraceFormatError(f"section {number} should be here, found {found}", offset=offset)
        if size > SECTION_MAX:
            raise TraceFormatError(f"a section of {size} bytes; at most {SECTION_MAX} are read", offset=offset)
        data = self.source.read(offset + 16, size)
        if flags & 1:
            packed = Cursor(data, self.byte_order, offset + 16)
            compressed_size, size = packed.u32(), packed.u32()
            if size > SECTION_MAX:
                raise packed.fail(f"a section of {size} bytes; at most {SECTION_MAX} are read")
            data = self._expanded(packed.take(compressed_size), size, offset)
        return Cursor(data, self.byte_order, offset + 16)

    def _expanded(self, data: bytes, size: int, offset: int) -> bytes:
        if self._expand is None:
            raise TraceFormatError("a compressed part in a file that says it has none", offset=offset)
        try:
            return self._expand(data, size)
        except TraceFormatError as error:
            raise error.at(offset=offset) from None

    def _read_options_sections(self, offset: int) -> None:
        first = True
        while offset:
            if offset in self._seen_sections:
                self.note_damage(offset, "the options sections lead in a circle")
                return
            self._seen_sections.add(offset)
            try:
                offset = self._read_options(self._section(offset, OPTIONS_SECTION))
            except TraceFormatError as error:
                if first:
                    raise
                self.note_damage(error.offset or offset, error.message)
                return
            first = False

    def _read_options(self, cursor: Cursor) -> int:
        """Returns where the next options section is, 0 if there is none."""
        while len(self.options) < OPTIONS_MAX:
            number = cursor.u16()
            size = cursor.u32()
            data = cursor.take(size)
            if number == 0:
                if cursor.left:
                    self.note_damage(self.options_offset, f"{cursor.left} bytes stand behind the end of the options")
                return Cursor(data, self.byte_order).u64() if size >= 8 else 0
            self.options.append((number, data))
        raise cursor.fail(f"more than {OPTIONS_MAX} options")

    def _check_own(self) -> None:
        """What is no page of ours has a crc32 as a whole. A part of it that is damaged is read all the same, as far
        as it can be."""
        content = self.option(OPTION_CHECK)
        if content is None:
            if self.is_ours:
                self.note_damage(self.options_offset, "the crc32 of the sections should be among the options")
            return
        try:
            begin, crc = unpack_check(content)
            end = self.options_offset + 16 + Cursor(self.source.read(self.options_offset + 8, 8), self.byte_order).u64()
            if not begin <= self.options_offset or end - begin > SECTION_MAX:
                raise TraceFormatError(f"sections from {begin} to {end} cannot be")
            if check_of(self.source.read(0, CHECKED_HEAD), self.source.read(begin, end - begin)) != crc:
                raise TraceFormatError(
                    "the crc32 of the sections is another one: a name, a table or an option is not what was written"
                )
        except TraceFormatError as error:
            self.note_damage(self.options_offset, error.message)

    def _read_own_stream(self) -> None:
        """The hello, definitions and ledger that we keep beside the kernel's tables."""
        content = self.option(OPTION_STREAM)
        if content is None:
            return
        journal = JournalReader()
        for _ in journal.feed(content, final=True):
            self.note_damage(0, "our own option holds a page")
        for damage in journal.damage:
            self.note_damage(0, f"our own option, at {damage.offset}: {damage.reason}")
        self.definitions, self.ledger, self.info = journal.definitions, journal.ledger, journal.info

    def _read_version_7_tables(self) -> None:
        readers = (
            (OPTION_HEADER_INFO, self._read_header_info),
            (OPTION_FTRACE_EVENTS, self._read_ftrace_formats),
            (OPTION_EVENT_FORMATS, self._read_event_formats),
            (OPTION_KALLSYMS, self._read_kallsyms),
            (OPTION_PRINTK, self._read_printk),
            (OPTION_CMDLINES, self._read_commands),
        )
        for wanted, read in readers:
            offsets = {data for number, data in self.options if number == wanted}
            for data in list(offsets)[:16]:
                try:
                    offset = Cursor(data, self.byte_order).u64()
                    read(self._section(offset, wanted))
                except TraceFormatError as error:
                    self.note_damage(error.offset or 0, f"option {wanted}: {error.message}")
        self._read_time_offset()

    def _read_version_7_buffers(self) -> None:
        for number, data in self.options:
            if number == OPTION_BUFFER:
                try:
                    self.buffers.append(self._read_buffer(Cursor(data, self.byte_order)))
                except TraceFormatError as error:
                    self.note_damage(0, f"a buffer option: {error.message}")
        self._refuse_overlaps()

    def _read_buffer(self, cursor: Cursor) -> Buffer:
        section = cursor.u64()
        name, clock = cursor.string(), cursor.string()
        page_size = self._checked_page_size(cursor.u32())
        count = cursor.u32()
        if count > cursor.left // 20:
            raise cursor.fail(f"{count} CPUs should follow, there is room for {cursor.left // 20}")
        cpus = tuple(CpuData(cursor.u32(), cursor.u64(), cursor.u64()) for _ in range(count))
        head = Cursor(self.source.read(section, 16), self.byte_order, section)
        if (found := head.u16()) != OPTION_BUFFER:
            raise TraceFormatError(f"section {OPTION_BUFFER} should be here, found {found}", offset=section)
        return Buffer(name, clock, page_size, cpus, bool(head.u16() & 1))

    def _refuse_overlaps(self) -> None:
        """No byte may be read twice as pages: else a small file could cost any time."""
        ranges = sorted(
            (cpu.offset, cpu.offset + cpu.size, buffer_index, cpu_index)
            for buffer_index, buffer in enumerate(self.buffers)
            for cpu_index, cpu in enumerate(buffer.cpus)
            if cpu.size
        )
        refused: set[tuple[int, int]] = set()
        reached = 0
        for start, end, buffer_index, cpu_index in ranges:
            if start < reached:
                refused.add((buffer_index, cpu_index))
                cpu = self.buffers[buffer_index].cpus[cpu_index].cpu
                self.note_damage(start, f"the pages of CPU {cpu} overlap another one's: not read")
            reached = max(reached, end) if (buffer_index, cpu_index) not in refused else reached
        for buffer_index in {pair[0] for pair in refused}:
            old = self.buffers[buffer_index]
            kept = tuple(cpu for index, cpu in enumerate(old.cpus) if (buffer_index, index) not in refused)
            self.buffers[buffer_index] = Buffer(old.name, old.clock, old.page_size, kept, old.compressed)

    # --- version 6 ---

    def _read_version_6(self, position: int) -> None:
        """Everything stands in one row, so nothing behind a damaged length can be found."""
        cursor = _FileCursor(self.source, position, self.byte_order)
        self._read_header_info(cursor)
        self._read_ftrace_formats(cursor)
        self._read_event_formats(cursor)
        self._read_kallsyms(cursor)
        self._read_printk(cursor)
        self._read_commands(cursor)
        cpus = cursor.u32()
        tag = cursor.take(10)
        if tag == b"options  \0":
            self._read_version_6_options(cursor)
            tag = cursor.take(10)
        self._read_time_offset()
        clock = _current_clock(self.option(OPTION_TRACECLOCK))
        if tag == b"flyrecord\0":
            self._add_version_6_buffer("", cursor, cpus, clock)
        elif tag != b"latency  \0":
            raise cursor.fail(f"'flyrecord' or 'latency' should be here, found {tag!r}")
        for number, data in self.options:
            if number == OPTION_BUFFER:
                option = Cursor(data, self.byte_order)
                try:
                    instance = _FileCursor(self.source, option.u64(), self.byte_order)
                    name = option.string()
                    instance.expect(b"flyrecord\0")
                    self._add_version_6_buffer(name, instance, cpus, clock)
                except TraceFormatError as error:
                    self.note_damage(error.offset or 0, f"an instance: {error.message}")
        self._refuse_overlaps()

    def _read_version_6_options(self, cursor: Cursor) -> None:
        while len(self.options) < OPTIONS_MAX:
            number = cursor.u16()
            if number == 0:
                return
            self.options.append((number, cursor.take(cursor.u32())))
        raise cursor.fail(f"more than {OPTIONS_MAX} options")

    def _add_version_6_buffer(self, name: str, cursor: Cursor, cpus: int, clock: str) -> None:
        if cpus > (self.source.size - cursor.position) // 16:
            raise cursor.fail(f"{cpus} CPUs should follow, the file is too small for them")
        found = tuple(CpuData(cpu, cursor.u64(), cursor.u64()) for cpu in range(cpus))
        self.buffers.append(Buffer(name, clock, self.page_size, found))

    # --- what both versions hold ---

    def _read_header_info(self, cursor: Cursor) -> None:
        cursor.expect(b"header_page\0")
        text = text_of(cursor.take(cursor.u64()))
        cursor.expect(b"header_event\0")
        cursor.take(cursor.u64())
        for line in text.splitlines():
            if "commit;" in line and "size:4;" in line:
                self.shape = PageShape(self.byte_order, 4)
            elif "commit;" in line and "size:8;" in line:
                self.shape = PageShape(self.byte_order, 8)

    def _read_ftrace_formats(self, cursor: Cursor) -> None:
        for _ in range(cursor.u32()):
            self._add_format(cursor.take(cursor.u64()), "ftrace")

    def _read_event_formats(self, cursor: Cursor) -> None:
        for _ in range(cursor.u32()):
            system = cursor.string()
            for _ in range(cursor.u32()):
                self._add_format(cursor.take(cursor.u64()), system)

    def _add_format(self, text: bytes, system: str) -> None:
        if len(self.formats) >= EVENTS_MAX:
            raise TraceFormatError(f"more than {EVENTS_MAX} events")
        try:
            format = parse_format(text_of(text), system, long_size=self.shape.commit_size)
        except TraceFormatError as error:
            self.note_damage(0, f"a format of system {system!r}: {error}")
            return
        self.formats.setdefault(format.id, format)

    def _read_kallsyms(self, cursor: Cursor) -> None:
        self._tables.functions = Functions(cursor.take(cursor.u32()))

    def _read_printk(self, cursor: Cursor) -> None:
        for line in cursor.take(cursor.u32()).split(b"\n"):
            key, colon, text = line.partition(b":")
            text = text.strip()
            if not colon or len(key) > 24:
                continue
            try:
                number = int(key.strip(), 16)
            except ValueError:
                continue
            if len(text) >= 2 and text.startswith(b'"') and text.endswith(b'"'):
                text = text[1:-1]
            self.symbols[number] = unescaped(text_of(text))

    def _read_commands(self, cursor: Cursor) -> None:
        for line in cursor.take(cursor.u64()).split(b"\n"):
            pid, space, name = line.partition(b" ")
            if space and pid.removeprefix(b"-").isdigit() and len(pid) <= 11:
                self.commands[int(pid)] = text_of(name)

    def _read_time_offset(self) -> None:
        for number, factor in ((OPTION_DATE, 1000), (OPTION_OFFSET, 1)):
            data = self.option(number)
            if data is not None:
                try:
                    self.time_offset += int(data.partition(b"\0")[0].strip()[:24], 0) * factor
                except ValueError:
                    self.note_damage(0, f"option {number} should hold a number, found {data[:40]!r}")

    # --- pages ---

    def pages(self, buffer: Buffer, cpu: CpuData) -> Iterator[FoundPage]:
        """The pages of one CPU, in order; what cannot be read is noted as damage."""
        if buffer.compressed:
            yield from self._compressed_pages(buffer, cpu)
            return
        rows = self._rows(buffer, cpu)
        size = buffer.page_size
        batch = max(BATCH_SIZE // size, 1) * size
        position, end = cpu.offset, cpu.offset + cpu.size
        while position < end:
            data = self.source.read_some(position, min(batch, end - position))
            for at in range(0, len(data), size):
                page = FoundPage(position + at, data[at : at + size])
                yield _checked(page, next(rows, None), self.shape) if rows is not None else page
            position += len(data)
            if len(data) < batch and position < end:
                self.note_damage(position, f"CPU {cpu.cpu}: pages up to {end} should follow, the file ends here")
                return

    def _rows(self, buffer: Buffer, cpu: CpuData) -> Iterator[PageRow] | None:
        """What our own option says of this CPU's pages; None if there is no such option."""
        content = self.option(OPTION_PAGES)
        if content is None:
            return None
        before = 0
        for other in buffer.cpus:
            if other == cpu:
                break
            before += other.size // buffer.page_size
        begin, end = before * _ROW_SIZE, (before + cpu.size // buffer.page_size) * _ROW_SIZE
        return (
            row
            for at in range(begin, min(end, len(content)), _ROWS_AT_ONCE * _ROW_SIZE)
            for row in unpack_page_rows(content[at : min(at + _ROWS_AT_ONCE * _ROW_SIZE, end)])
        )

    def losses_after(self, buffer: Buffer, cpu: CpuData) -> list[tuple[int | None, str]]:
        """(count, reason) of what is missing after the last page of a CPU: no page can tell of it."""
        if self.is_ours:
            return losses_after(self.ledger, cpu.cpu)
        dropped = self._dropped.get((buffer.name, cpu.cpu), 0)
        return [(dropped, "dropped, says the account at the end")] if dropped else []

    def _read_dropped(self) -> None:
        """What the kernel refused for want of room (CPUSTAT): its pages tell only of what it has overwritten.

        The account of an instance follows an option "Buffer: NAME".
        """
        name = ""
        for number, data in self.options:
            if number != OPTION_CPUSTAT:
                continue
            lines = dict(line.split(b": ", 1) for line in data.strip(b"\n\0").split(b"\n") if b": " in line)
            name = text_of(lines[b"Buffer"]) if b"Buffer" in lines else name
            numbers = [lines.get(key, b"0")[:20] for key in (b"CPU", b"commit overrun", b"dropped events")]
            if b"CPU" in lines and all(number.strip().isdigit() for number in numbers):
                cpu, nested, dropped = map(int, numbers)
                self._dropped[name, cpu] = nested + dropped

    def _compressed_pages(self, buffer: Buffer, cpu: CpuData) -> Iterator[FoundPage]:
        # trace-cmd's size leaves out the count at the beginning.
        position, end = cpu.offset, min(cpu.offset + 4 + cpu.size, self.source.size)
        if not cpu.size:
            return
        try:
            count = Cursor(self.source.read(position, 4), self.byte_order).u32()
            position += 4
            for _ in range(count):
                packed_size, size = struct.unpack(self.byte_order + "II", self.source.read(position, 8))
                if packed_size > end - position - 8 or size > CHUNK_MAX:
                    raise TraceFormatError(f"{packed_size} bytes that become {size} should follow", offset=position)
                data = self.source.read(position + 8, packed_size)
                try:
                    expanded = self._expanded(data, size, position)
                except TraceFormatError as error:  # the next piece can still be found
                    self.note_damage(position, f"CPU {cpu.cpu}: {error.message}")
                    expanded = b""
                for at in range(0, len(expanded), buffer.page_size):
                    yield FoundPage(position, expanded[at : at + buffer.page_size])
                position += 8 + packed_size
        except TraceFormatError as error:
            self.note_damage(position, f"CPU {cpu.cpu}: {error.message}")


def with_writers_of(ledger: Ledger | None, buffer: Buffer) -> Buffer:
    """The buffer with a CPU, empty, for each writer that has no page here and whose account tells of losses."""
    known = {cpu.cpu for cpu in buffer.cpus}
    more = [
        CpuData(writer.writer, 0, 0)
        for writer in (ledger.writers if ledger is not None else ())
        if writer.writer not in known and writer.lost_after
    ]
    return replace(buffer, cpus=(*buffer.cpus, *more))


def losses_after(ledger: Ledger | None, cpu: int) -> list[tuple[int | None, str]]:
    """What the closing account says of a writer's events after its last page."""
    if ledger is None:
        return []
    return [
        (writer.lost_after, "after the last page")
        for writer in ledger.writers
        if writer.writer == cpu and writer.lost_after
    ]


_ROW_SIZE: Final = len(pack_page_rows([PageRow(0, 0, 0, 0, 0)]))
_ROWS_AT_ONCE: Final = 1024


def _checked(page: FoundPage, row: PageRow | None, shape: PageShape) -> FoundPage:
    """The page, with what its row has against it."""
    if row is None:
        return FoundPage(page.offset, page.data, "the file does not list this page")
    if row.flags & PAGE_DAMAGED:
        return FoundPage(page.offset, page.data, "it was damaged before the file was closed", row.events_count)
    if _crc_of(page.data, shape) != row.crc:
        return FoundPage(page.offset, page.data, "its crc is another one", row.events_count)
    return page


def _crc_of(page: bytes, shape: PageShape) -> int:
    """By its own account of where its records end."""
    start = shape.data_offset
    if len(page) < start:
        return -1
    commit = struct.unpack_from(shape.byte_order + "I", page, 8)[0]
    end = start + (commit & L.COMMIT_MASK)
    counted = commit & L.COMMIT_MISSED_EVENTS and commit & L.COMMIT_MISSED_STORED
    lost_count = page[end : end + L.LOST_COUNT_SIZE] if counted else b""
    return page_crc(crc32(page[start:end]), page[:start], lost_count)


class _FileCursor(Cursor):
    """The same over a file that is not read into memory."""

    def __init__(self, source: Source, position: int, byte_order: str) -> None:
        super().__init__(b"", byte_order)
        self._source = source
        self.position = position

    def take(self, size: int) -> bytes:
        if not 0 <= size <= min(SECTION_MAX, self._source.size - self.position):
            raise self.fail(f"{size} bytes should follow, {max(self._source.size - self.position, 0)} do")
        data = self._source.read(self.position, size)
        self.position += size
        return data

    def string(self) -> str:
        data = self._source.read_some(self.position, 4096)
        end = data.find(b"\0")
        if end < 0:
            raise self.fail("a string should end with a NUL")
        self.position += end + 1
        return text_of(data[:end])

    def expect(self, what: bytes) -> None:
        found = self.take(len(what))
        if found != what:
            self.position -= len(what)
            raise self.fail(f"{what!r} should be here, found {found!r}")


def _current_clock(text: bytes | None) -> str:
    """From "[local] global counter": "local"."""
    if text is None:
        return ""
    return text_of(text.partition(b"[")[2].partition(b"]")[0])


_ESCAPED: Final = re.compile(r'\\(n|t|r|"|\\|x[0-9a-f]{2})')
_ESCAPES: Final = {"n": "\n", "t": "\t", "r": "\r"}


def unescaped(text: str) -> str:
    r"""What a string of printk formats stands for: the kernel escapes \n, \t, \\ and \", we \n, \\ and all
    other control characters as \x1b."""
    if "\\" not in text:
        return text
    return _ESCAPED.sub(lambda m: chr(int(m[1][1:], 16)) if m[1][0] == "x" else _ESCAPES.get(m[1], m[1]), text)
