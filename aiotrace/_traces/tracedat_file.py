"""The page source for a trace.dat, version 6 or 7, of the kernel's tools or of aiotrace.

    version 6    header | header_page | formats | kallsyms | printk | names | options | one table of CPUs | pages
    version 7    header (with the offset of the options) | sections and options in any order | pages

The man pages trace-cmd.dat.v6.5(5) and trace-cmd.dat.v7.5(5) are the specification; what they leave out was read
from files of trace-cmd 3.1.6 (a version 6 table of CPUs ends with the clock; a version 7 section's size leaves out
its padding).

Invariants (tests/traces/test_tracedat_file.py, test_every_bit.py). No length is trusted: all bytes are read through
`source`, and overlapping ranges are refused, so that a file costs time and memory in proportion to its size. Damage is
local: a damaged part is noted in `damage`, and the rest is read. Only a damaged beginning raises.

This module finds the parts of a file; `event_tables` parses the tables, `tracedat_pages` reads the pages.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Final

from .._base.errors import TraceFormatError
from .._decode.event_format import EventFormat, text_of
from .._formats import tracedat as D
from .._formats.journal import JournalReader
from .._formats.tracedat import check_of, unpack_check
from .._page import layout as L
from .._page.definitions import Definition
from ..abc import Ledger, StreamInfo
from .checked_bytes import SECTION_MAX, ByteCursor, FileByteCursor, Source, decompressor
from .event_tables import EventTables, KernelFunctions
from .page_sources import CpuData, Damage, DamageLog, FoundPage, PageShape, TraceBuffer, losses_after, with_writers_of
from .tracedat_pages import FilePages

__all__ = ["TraceDatSource"]

OPTIONS_MAX: Final = 1 << 16
"""Options that are read; a file with more is refused."""


class TraceDatSource:
    """A `PageSource`; see the module's docstring."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        """Open the file and read all but the pages.

        Raises:
            OSError: The file cannot be opened.
            TraceFormatError: The file is not a trace.dat, or its beginning is damaged.
        """
        self.path = os.fspath(path)

        # what the header says; these hold until it is read
        self.version = 0
        self.byte_order = L.BYTE_ORDER
        self.long_size = 8
        self.page_size = 4096
        self.compression = "none"

        # what the options say
        self.options_offset = 0
        self.options: list[tuple[int, bytes]] = []
        self.buffers: list[TraceBuffer] = []
        self.time_offset = 0
        """Nanoseconds to add to each timestamp."""
        self.definitions: list[Definition] = []
        """From aiotrace's own option. They take precedence over the tables: each has a crc32, and no name is cut."""
        self.ledger: Ledger | None = None
        self.info: StreamInfo | None = None
        """From aiotrace's own option."""

        # reading, and the damage found by it
        self._dropped: dict[tuple[str, int], int] = {}
        self._damage = DamageLog()
        self._tables = EventTables(self._damage)
        self._expand = decompressor("none")
        self._seen_sections: set[int] = set()
        self.source = Source(self.path)
        self.size = self.source.size
        """Bytes of the file."""

        # a file that is not a trace must not stay open
        try:
            self._read_header()
        except TraceFormatError as error:
            self.source.close()
            raise error.at(self.path, 0) from None
        except BaseException:
            self.source.close()
            raise

        self._pages = FilePages(self.source, self.shape, self.option(D.OPTION_PAGES), self._expand, self._damage)
        self._damage.keep()

    @property
    def shape(self) -> PageShape:
        """The layout of its page headers."""
        return self._tables.shape

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
    def functions(self) -> KernelFunctions:
        return self._tables.functions

    @property
    def by_aiotrace(self) -> bool:
        """Whether aiotrace wrote it, so that each page has a row in aiotrace's own option."""
        return self.option(D.OPTION_STREAM) is not None

    @property
    def complete(self) -> bool:
        """False if there are no options yet: the recording has not ended."""
        return self.version == 6 or self.options_offset != 0

    @property
    def ended(self) -> bool:
        """A trace.dat is written in one go when a recording ends: it does not grow."""
        return True

    def refresh(self) -> bool:
        """False: see `ended`."""
        return False

    @property
    def damage(self) -> list[Damage]:
        """At most DAMAGE_MAX."""
        return self._damage.found

    @property
    def damage_count(self) -> int:
        return self._damage.count

    def close(self) -> None:
        self.source.close()

    def note_damage(self, offset: int, message: str) -> None:
        """Count a part that could not be read."""
        self._damage.note(offset, message)

    def forget_page_damage(self) -> None:
        """Keep only the damage that was found when the file was opened: its pages are read again."""
        self._damage.forget()

    def option(self, number: int) -> bytes | None:
        """The data of the first option with this number."""
        return next((data for found, data in self.options if found == number), None)

    def pages(self, buffer: TraceBuffer, cpu: CpuData) -> Iterator[FoundPage]:
        """The pages of one CPU, in order; what cannot be read is noted as damage."""
        return self._pages.pages(buffer, cpu)

    def losses_after(self, buffer: TraceBuffer, cpu: CpuData) -> list[tuple[int | None, str]]:
        """(count, reason) of what is missing after the last page of a CPU, which no page reports."""
        if self.by_aiotrace:
            return losses_after(self.ledger, cpu.cpu)
        dropped = self._dropped.get((buffer.name, cpu.cpu), 0)
        return [(dropped, "dropped, says the account at the end")] if dropped else []

    # --- the beginning ---

    def _read_header(self) -> None:
        start = ByteCursor(self.source.read_some(0, 4096), "<")
        if not start.data.startswith(D.MAGIC):
            found = f"it begins with {start.data[: len(D.MAGIC)]!r}" if start.data else "it is empty"
            raise TraceFormatError(f"not a trace.dat: {found}, a trace with {D.MAGIC!r}", offset=0)
        start.expect(D.MAGIC)

        # The parts that do not depend on the byte order come first.
        version = start.string()
        if version not in ("6", "7"):
            raise TraceFormatError(f"trace.dat version {version[:20]!r}: only 6 and 7 can be read", offset=10)
        self.version = int(version)
        big, self.long_size = start.u8(), start.u8()
        if big not in (0, 1) or self.long_size not in (4, 8):
            raise start.fail(f"byte order should be 0 or 1, long 4 or 8 bytes; found {big} and {self.long_size}")
        self.byte_order = ">" if big else "<"

        # The rest is read in the file's byte order.
        cursor = ByteCursor(start.data, self.byte_order)
        cursor.position = start.position
        self.page_size = self._checked_page_size(cursor.u32())
        self._tables.shape = PageShape(self.byte_order, self.long_size)

        if self.version == 6:
            self._read_version_6(cursor.position)
            self._read_dropped()
            return

        # Version 7: without options the recording has not ended.
        self.compression = cursor.string()
        cursor.string()  # the version of the compression's library
        self.options_offset = cursor.u64()
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

    def _section(self, offset: int, number: int) -> ByteCursor:
        """The content of a section, decompressed."""
        head = ByteCursor(self.source.read(offset, 16), self.byte_order, offset)
        found, flags = head.u16(), head.u16()
        head.u32()  # the id of a description
        size = head.u64()
        if found != number:
            raise TraceFormatError(f"section {number} should be here, found {found}", offset=offset)
        if size > SECTION_MAX:
            raise TraceFormatError(f"a section of {size} bytes; at most {SECTION_MAX} are read", offset=offset)
        data = self.source.read(offset + 16, size)
        if flags & 1:
            packed = ByteCursor(data, self.byte_order, offset + 16)
            compressed_size, size = packed.u32(), packed.u32()
            if size > SECTION_MAX:
                raise packed.fail(f"a section of {size} bytes; at most {SECTION_MAX} are read")
            try:
                data = self._expand(packed.take(compressed_size), size)
            except TraceFormatError as error:
                raise error.at(offset=offset) from None
        return ByteCursor(data, self.byte_order, offset + 16)

    def _read_options_sections(self, offset: int) -> None:
        first = True
        while offset:
            if offset in self._seen_sections:
                self.note_damage(offset, "the options sections lead in a circle")
                return
            self._seen_sections.add(offset)
            try:
                offset = self._read_options(self._section(offset, D.SECTION_OPTIONS))
            except TraceFormatError as error:
                if first:
                    raise
                self.note_damage(error.offset or offset, error.message)
                return
            first = False

    def _read_options(self, cursor: ByteCursor) -> int:
        """Read one options section; returns the offset of the next, 0 if there is none."""
        while len(self.options) < OPTIONS_MAX:
            number = cursor.u16()
            size = cursor.u32()
            data = cursor.take(size)
            if number == 0:
                if cursor.left:
                    self.note_damage(self.options_offset, f"{cursor.left} bytes follow the end of the options")
                return ByteCursor(data, self.byte_order).u64() if size >= 8 else 0
            self.options.append((number, data))
        raise cursor.fail(f"more than {OPTIONS_MAX} options")

    def _check_own(self) -> None:
        """Check the crc32 over everything but the pages. What does not match is noted, and read as far as possible."""
        content = self.option(D.OPTION_CHECK)
        if content is None:
            if self.by_aiotrace:
                self.note_damage(self.options_offset, "the crc32 of the sections should be among the options")
            return
        try:
            begin, crc = unpack_check(content)
            end = (
                self.options_offset
                + 16
                + ByteCursor(self.source.read(self.options_offset + 8, 8), self.byte_order).u64()
            )
            if not begin <= self.options_offset or end - begin > SECTION_MAX:
                raise TraceFormatError(f"invalid range of sections, from {begin} to {end}")
            if check_of(self.source.read(0, D.CHECKED_HEAD), self.source.read(begin, end - begin)) != crc:
                raise TraceFormatError(
                    "the crc32 of the sections does not match: a name, a table or an option is not what was written"
                )
        except TraceFormatError as error:
            self.note_damage(self.options_offset, error.message)

    def _read_own_stream(self) -> None:
        """The hello, definitions and ledger that aiotrace stores beside the kernel's tables."""
        content = self.option(D.OPTION_STREAM)
        if content is None:
            return
        journal = JournalReader()
        for _ in journal.feed(content, final=True):
            self.note_damage(0, "aiotrace's own option contains a page")
        for damage in journal.damage:
            self.note_damage(0, f"aiotrace's own option, at {damage.offset}: {damage.reason}")
        self.definitions, self.ledger, self.info = journal.definitions, journal.ledger, journal.info

    def _read_version_7_tables(self) -> None:
        readers = (
            (D.SECTION_HEADER_INFO, self._tables.read_header_info),
            (D.SECTION_FTRACE_EVENTS, self._tables.read_ftrace_formats),
            (D.SECTION_EVENT_FORMATS, self._tables.read_event_formats),
            (D.SECTION_KALLSYMS, self._tables.read_kallsyms),
            (D.SECTION_PRINTK, self._tables.read_printk),
            (D.SECTION_CMDLINES, self._tables.read_commands),
        )
        for wanted, read in readers:
            offsets = {data for number, data in self.options if number == wanted}
            for data in list(offsets)[:16]:
                try:
                    offset = ByteCursor(data, self.byte_order).u64()
                    read(self._section(offset, wanted))
                except TraceFormatError as error:
                    self.note_damage(error.offset or 0, f"option {wanted}: {error.message}")
        self._read_time_offset()

    def _read_version_7_buffers(self) -> None:
        for number, data in self.options:
            if number == D.OPTION_BUFFER:
                try:
                    self.buffers.append(self._read_buffer(ByteCursor(data, self.byte_order)))
                except TraceFormatError as error:
                    self.note_damage(0, f"a buffer option: {error.message}")
        self._refuse_overlaps()

    def _read_buffer(self, cursor: ByteCursor) -> TraceBuffer:
        section = cursor.u64()
        name, clock = cursor.string(), cursor.string()
        page_size = self._checked_page_size(cursor.u32())
        count = cursor.u32()
        if count > cursor.left // 20:
            raise cursor.fail(f"{count} CPUs should follow, there is room for {cursor.left // 20}")
        cpus = tuple(CpuData(cursor.u32(), cursor.u64(), cursor.u64()) for _ in range(count))
        head = ByteCursor(self.source.read(section, 16), self.byte_order, section)
        if (found := head.u16()) != D.SECTION_BUFFER:
            raise TraceFormatError(f"section {D.SECTION_BUFFER} should be here, found {found}", offset=section)
        return TraceBuffer(name, clock, page_size, cpus, bool(head.u16() & 1))

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
            self.buffers[buffer_index] = TraceBuffer(old.name, old.clock, old.page_size, kept, old.compressed)

    # --- version 6 ---

    def _read_version_6(self, position: int) -> None:
        """The parts follow each other, so nothing after a damaged length can be found."""
        cursor = FileByteCursor(self.source, position, self.byte_order)
        self._tables.read_header_info(cursor)
        self._tables.read_ftrace_formats(cursor)
        self._tables.read_event_formats(cursor)
        self._tables.read_kallsyms(cursor)
        self._tables.read_printk(cursor)
        self._tables.read_commands(cursor)
        cpus = cursor.u32()
        tag = cursor.take(10)
        if tag == b"options  \0":
            self._read_version_6_options(cursor)
            tag = cursor.take(10)
        self._read_time_offset()
        clock = _current_clock(self.option(D.OPTION_TRACECLOCK))
        if tag == b"flyrecord\0":
            self._add_version_6_buffer("", cursor, cpus, clock)
        elif tag != b"latency  \0":
            raise cursor.fail(f"'flyrecord' or 'latency' should be here, found {tag!r}")
        for number, data in self.options:
            if number == D.OPTION_BUFFER:
                option = ByteCursor(data, self.byte_order)
                try:
                    instance = FileByteCursor(self.source, option.u64(), self.byte_order)
                    name = option.string()
                    instance.expect(b"flyrecord\0")
                    self._add_version_6_buffer(name, instance, cpus, clock)
                except TraceFormatError as error:
                    self.note_damage(error.offset or 0, f"an instance: {error.message}")
        self._refuse_overlaps()

    def _read_version_6_options(self, cursor: ByteCursor) -> None:
        while len(self.options) < OPTIONS_MAX:
            number = cursor.u16()
            if number == 0:
                return
            self.options.append((number, cursor.take(cursor.u32())))
        raise cursor.fail(f"more than {OPTIONS_MAX} options")

    def _add_version_6_buffer(self, name: str, cursor: ByteCursor, cpus: int, clock: str) -> None:
        if cpus > (self.source.size - cursor.position) // 16:
            raise cursor.fail(f"{cpus} CPUs should follow, the file is too small for them")
        found = tuple(CpuData(cpu, cursor.u64(), cursor.u64()) for cpu in range(cpus))
        self.buffers.append(TraceBuffer(name, clock, self.page_size, found))

    # --- options of both versions ---

    def _read_time_offset(self) -> None:
        for number, factor in ((D.OPTION_DATE, 1000), (D.OPTION_OFFSET, 1)):
            data = self.option(number)
            if data is not None:
                try:
                    self.time_offset += int(data.partition(b"\0")[0].strip()[:24], 0) * factor
                except ValueError:
                    self.note_damage(0, f"option {number} should hold a number, found {data[:40]!r}")

    def _read_dropped(self) -> None:
        """Events that the kernel dropped (CPUSTAT): its pages report only those that it has overwritten.

        The account of an instance follows an option "Buffer: NAME".
        """
        name = ""
        for number, data in self.options:
            if number != D.OPTION_CPUSTAT:
                continue
            lines = dict(line.split(b": ", 1) for line in data.strip(b"\n\0").split(b"\n") if b": " in line)
            name = text_of(lines[b"Buffer"]) if b"Buffer" in lines else name
            numbers = [lines.get(key, b"0")[:20] for key in (b"CPU", b"commit overrun", b"dropped events")]
            if b"CPU" in lines and all(number.strip().isdigit() for number in numbers):
                cpu, nested, dropped = map(int, numbers)
                self._dropped[name, cpu] = nested + dropped


def _current_clock(text: bytes | None) -> str:
    """From "[local] global counter": "local"."""
    if text is None:
        return ""
    return text_of(text.partition(b"[")[2].partition(b"]")[0])
