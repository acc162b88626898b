"""The tables of a trace.dat: event formats, and the names of strings, functions and tasks.

    header_page  formats  kallsyms  printk  command names    (the same texts in versions 6 and 7)

Damage is local: an invalid format is noted as damage, an invalid line is skipped. The first format of an id counts.
This module does not know where in a file these texts are.
"""

from __future__ import annotations

import bisect
import re
from typing import Final

from .._base.errors import TraceFormatError
from .._decode.event_format import EventFormat, parse_format, text_of
from .._page import kernel_events
from .._page import layout as L
from .checked_bytes import ByteCursor
from .page_sources import DamageLog, PageShape

__all__ = ["EventTables", "KernelFunctions", "UnclosedTables", "unescaped"]

EVENTS_MAX: Final = 1 << 16


class EventTables:
    """The tables of one file; each `read_` method parses one text at the cursor.

    Args:
        damage: Where invalid formats are noted.
    """

    def __init__(self, damage: DamageLog) -> None:
        self._damage = damage
        self.shape = PageShape()
        self.formats: dict[int, EventFormat] = {}
        self.symbols: dict[int, str] = {}
        self.commands: dict[int, str] = {}
        self.functions = KernelFunctions()

    def read_header_info(self, cursor: ByteCursor) -> None:
        cursor.expect(b"header_page\0")
        text = text_of(cursor.take(cursor.u64()))
        cursor.expect(b"header_event\0")
        cursor.take(cursor.u64())
        for line in text.splitlines():
            if "commit;" in line and "size:4;" in line:
                self.shape = PageShape(self.shape.byte_order, 4)
            elif "commit;" in line and "size:8;" in line:
                self.shape = PageShape(self.shape.byte_order, 8)

    def read_ftrace_formats(self, cursor: ByteCursor) -> None:
        for _ in range(cursor.u32()):
            self._add_format(cursor.take(cursor.u64()), "ftrace")

    def read_event_formats(self, cursor: ByteCursor) -> None:
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
            self._damage.note(0, f"a format of system {system!r}: {error}")
            return
        self.formats.setdefault(format.id, format)

    def read_kallsyms(self, cursor: ByteCursor) -> None:
        self.functions = KernelFunctions(cursor.take(cursor.u32()))

    def read_printk(self, cursor: ByteCursor) -> None:
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

    def read_commands(self, cursor: ByteCursor) -> None:
        for line in cursor.take(cursor.u64()).split(b"\n"):
            pid, space, name = line.partition(b" ")
            if space and pid.removeprefix(b"-").isdigit() and len(pid) <= 11:
                self.commands[int(pid)] = text_of(name)


class KernelFunctions:
    """The functions of a kallsyms text, by address. Parsed on first use: it has 200,000 lines."""

    def __init__(self, text: bytes = b"") -> None:
        self._text = text
        self._addresses: list[int] = []
        self._names: list[str] = []

    def __len__(self) -> int:
        self._read()
        return len(self._addresses)

    def find(self, address: int) -> tuple[str, int] | None:
        """The function that contains an address, and the offset in it; None if there is none."""
        self._read()
        index = bisect.bisect_right(self._addresses, address) - 1
        # The last line only marks the end of the function before it.
        if index < 0 or index >= len(self._addresses) - 1:
            return None
        return self._names[index], address - self._addresses[index]

    def locate(self, address: int) -> str | None:
        """None: kallsyms has no source files."""
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


_ESCAPED: Final = re.compile(r'\\(n|t|r|"|\\|x[0-9a-f]{2})')
_ESCAPES: Final = {"n": "\n", "t": "\t", "r": "\r"}


class UnclosedTables:
    """The tables of an aiotrace trace that was not closed: empty, since its definitions are stored one by one."""

    complete = False
    by_aiotrace = True
    byte_order = L.BYTE_ORDER
    time_offset = 0

    def __init__(self, path: str) -> None:
        self.path = path
        self.shape = PageShape()
        self.symbols: dict[int, str] = {}
        self.commands: dict[int, str] = {}
        self.functions = KernelFunctions()
        formats = [parse_format(event.format, event.system) for event in kernel_events.EVENTS]
        self.formats: dict[int, EventFormat] = {format.id: format for format in formats}


def unescaped(text: str) -> str:
    r"""The text of an escaped string of printk formats. The kernel escapes \n, \t, \\ and \"; aiotrace escapes \n, \\
    and other control characters as \x1b."""
    if "\\" not in text:
        return text
    return _ESCAPED.sub(lambda m: chr(int(m[1][1:], 16)) if m[1][0] == "x" else _ESCAPES.get(m[1], m[1]), text)
