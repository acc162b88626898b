"""The arguments of `trace_printk`, as the kernel's vbin_printf packs them into a record.

"cpu=%d %s %llu"  +  01 00 00 00 'o' 'k' 00 .. (8 bytes)   -->   1, "ok", 7

int, short, char   aligned to their size
64 bits            aligned to 4
string             up to its NUL, not aligned
pointer            a long; those that print what they point to are the text that it was (lib/vsprintf.c)
"""

from __future__ import annotations

import re
from typing import Final, Literal

from .._base.errors import TraceFormatError
from .c_types import CType, Node
from .event_format import Value, text_of
from .printf import CONVERSION

__all__ = ["decode_arguments"]

_SIZES: Final = {"hh": 1, "h": 2, "": 4, "ll": 8, "L": 8, "q": 8, "j": 8}
_EXTENSION: Final = re.compile(r"[A-Za-z0-9]+", re.ASCII)
_KEPT_POINTERS: Final = "SsFfBxKe"
"""Extensions of %p that are printed later; without one it is, too."""


def decode_arguments(text: str, packed: Value, long_size: int, byte_order: str) -> tuple[str, list[Node]]:
    """The format for printf, in which pointers that were printed already are strings, and its arguments.

    Args:
        text: The format.
        packed: The field `buf`: bytes, or numbers of 32 bits.
        long_size: Bytes of a C `long`.
        byte_order: "<" or ">".

    Raises:
        TraceFormatError: The arguments end before the format does, or a conversion is not known.
    """
    return _Packed(packed, byte_order).arguments(text, long_size)


class _Packed:
    def __init__(self, packed: Value, byte_order: str) -> None:
        self._order: Literal["little", "big"] = "little" if byte_order == "<" else "big"
        words = packed if isinstance(packed, tuple) else ()
        joined = b"".join([(int(word) & 0xFFFFFFFF).to_bytes(4, self._order) for word in words])
        self._data = packed if isinstance(packed, bytes) else joined
        self._position = 0

    def arguments(self, text: str, long_size: int) -> tuple[str, list[Node]]:
        found: list[Node] = []
        parts: list[str] = []
        end = 0
        while (position := text.find("%", end)) >= 0:
            match = CONVERSION.match(text, position)
            if match is None:
                raise TraceFormatError(f"trace_printk: {text[position : position + 10]!r} is not known")
            kind = match["conversion"]
            parts.append(text[end : match.end()])
            end = match.end()

            # A width or precision that is an argument, then the argument
            for part in (match["width"], match["precision"]):
                if part == "*":
                    found.append(self._number(4, signed=True))
            extension = _EXTENSION.match(text, end)
            is_printed = kind == "p" and extension is not None and extension[0][:1] not in _KEPT_POINTERS
            if is_printed and extension is not None:
                parts[-1] = parts[-1][:-1] + "s"
                end = extension.end()
            if kind == "s" or is_printed:
                found.append(self._text())
            elif kind == "p":
                found.append(self._number(long_size, signed=False))
            elif kind == "c":
                found.append(self._number(1, signed=False))
            elif kind != "%":
                size = _SIZES.get(match["length"] or "", long_size)
                found.append(self._number(size, signed=kind in "di"))
        return "".join(parts) + text[end:], found

    def _number(self, size: int, *, signed: bool) -> Node:
        alignment = min(size, 4)
        start = -(-self._position // alignment) * alignment
        self._position = start + size
        raw = self._data[start : self._position]
        if len(raw) < size:
            raise TraceFormatError("trace_printk: fewer arguments than its format asks for")
        number = int.from_bytes(raw, self._order, signed=signed)
        return Node(lambda values: number, CType(size * 8, signed))

    def _text(self) -> Node:
        end = self._data.find(b"\0", self._position)
        if end < 0:
            raise TraceFormatError("trace_printk: a string without its end")
        text = text_of(self._data[self._position : end])
        self._position = end + 1
        return Node(lambda values: text)
