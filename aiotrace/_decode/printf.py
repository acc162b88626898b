"""printf as the kernel has it: a format's conversions, paired with expressions that give their values.

    "dev %d,%-5s %pS"  +  [values -> 8, values -> "sda", values -> address]  -->  values -> "dev 8,sda   do_fork+0x10"

A record costs time in proportion to the text: no width or precision pads further than WIDTH_MAX, and a line ends at
LINE_MAX. A value that does not fit its conversion raises TypeError or ValueError, one that cannot be told is printed as
"?". Control characters of values are escaped. What `%p` prints is in `pointers`.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any, Final

from .._base.errors import TraceFormatError
from .._base.terminal_text import escape, escape_literal
from .c_expression import Expression, PrintFormat, UnknownNameError, Values
from .c_tokens import ExcessiveFormatError
from .c_types import Node, memory_of
from .pointers import Names, show_memory, show_pointer, symbol

__all__ = ["CONVERSION", "INTEGER_BITS", "LINE_MAX", "WIDTH_MAX", "Names", "Printer", "compile_printf", "symbol"]

WIDTH_MAX: Final = 1000
"""The widest padding, in characters."""
LINE_MAX: Final = 1 << 20
"""Characters of the longest text of one event; the kernel's own end at a page. Beyond that its fields are printed."""
UNKNOWN: Final = "?"
"""Printed for a value that cannot be told."""

Printer = Callable[[Values], str]


CONVERSION: Final = re.compile(
    r"%(?P<flags>[-+ #0]*)(?P<width>\*|\d+)?(?:\.(?P<precision>\*|\d*))?"
    r"(?P<length>hh|h|ll|l|L|q|z|t|j)?(?P<conversion>[diouxXcsp%])",
    re.ASCII,
)
_EXTENSION: Final = re.compile(r"[A-Za-z0-9]*", re.ASCII)
"""Behind %p: the kernel takes all letters and digits for its extension."""
INTEGER_BITS: Final = {"hh": 8, "h": 16, "": 32, "ll": 64, "L": 64, "q": 64, "j": 64}

Piece = str | Callable[[Values], str]


def compile_printf(format: PrintFormat, names: Names | None, long_size: int, byte_order: str) -> Printer:
    """Pair a printf format's conversions with their arguments.

    trace-cmd can only show the bits of a float, after a 0x; here it is a number.

    Args:
        names: Gives `%ps` its names; without it addresses are printed.
        long_size: Bytes of a C `long`.
        byte_order: "<" or ">".

    Raises:
        TraceFormatError: A conversion is not known, or has no argument.
    """
    text = format.text.rstrip("\n")
    parts: list[Piece] = []
    queue = iter(format.arguments)
    position = 0
    while (mark := text.find("%", position)) >= 0:
        # The text before a conversion, and the conversion
        literal = escape_literal(text[position:mark])
        parts.append(literal)
        match = CONVERSION.match(text, mark)
        if match is None:
            raise TraceFormatError(f"print fmt: {text[mark : mark + 10]!r} is not known")
        position = match.end()
        if match["conversion"] == "%":
            parts.append("%")
            continue
        extension = ""
        if match["conversion"] == "p" and (found := _EXTENSION.match(text, position)):
            extension, position = found.group(), found.end()

        # Its arguments
        try:
            width = next(queue).run if match["width"] == "*" else _constant(match["width"])
            precision = next(queue).run if match["precision"] == "*" else _constant(match["precision"])
            value = next(queue)
        except StopIteration:
            raise TraceFormatError("print fmt: more conversions than arguments") from None
        if value.is_float:
            parts[-1] = literal.removesuffix("0x")

        # The function that prints them
        if match["conversion"] == "p" and extension:
            parts.append(_extended(extension, match["flags"], width, value, names, byte_order))
            continue
        bits = INTEGER_BITS.get(match["length"] or "", long_size * 8)
        convert = _conversion(match["conversion"], match["flags"], bits)
        parts.append(_known(_converted(convert, width, precision, value.run)))
    parts.append(escape_literal(text[position:]))
    return _joined(parts)


def _constant(text: str | None) -> Expression:
    number = -1 if text is None else int(text[:6] or "0")
    return lambda values: number


def _joined(parts: list[Piece]) -> Printer:
    template = "".join(part.replace("%", "%%") if isinstance(part, str) else "%s" for part in parts)
    functions = [part for part in parts if not isinstance(part, str)]

    def print_line(values: Values) -> str:
        size, found = 0, []
        for function in functions:
            text = function(values)
            found.append(text)
            size += len(text)
            if size > LINE_MAX:
                raise ExcessiveFormatError(f"print fmt: a text of more than {LINE_MAX} characters")
        return template % tuple(found)

    return print_line


def _known(part: Printer) -> Printer:
    """A value that cannot be told costs itself, not the line."""

    def show(values: Values) -> str:
        try:
            return part(values)
        except UnknownNameError:
            return UNKNOWN

    return show


Conversion = Callable[[Any, int, int], str]
"""(value, width, precision) -> text; -1 where there is none."""


def _converted(convert: Conversion, width: Expression, precision: Expression, value: Expression) -> Printer:
    return lambda values: convert(value(values), width(values), precision(values))


def _extended(
    extension: str, flags: str, width: Expression, node: Node, names: Names | None, byte_order: str
) -> Printer:
    """`%pS`, `%pM`, `%*ph` and the like."""
    show = show_memory(extension, byte_order)
    if show is None:
        value = node.run
        named = show_pointer(extension, names)
        return _known(lambda values: _padded(named(value(values)), flags, width(values)))
    memory = memory_of(node, byte_order)
    if extension[0] in "hb":  # the width is a number of bytes or bits
        return _known(lambda values: show(memory(values), width(values)))
    return _known(lambda values: _padded(show(memory(values), -1), flags, width(values)))


def _conversion(kind: str, flags: str, bits: int) -> Conversion:
    if kind == "s":
        return lambda value, width, precision: _padded(_as_text(value, precision), flags, width)
    if kind == "c":
        return lambda value, width, precision: _padded(escape(chr(value & 0xFF)), flags, width)
    if kind == "p":
        return lambda value, width, precision: _padded(symbol(_address(value), None, False), flags, width)
    return lambda value, width, precision: _integer(value, kind, flags, bits, width, precision)


def _address(value: Any) -> int:
    if not isinstance(value, int):
        raise TypeError("not an address")
    return value


def _padded(text: str, flags: str, width: int) -> str:
    if width <= len(text):
        return text
    width = min(width, WIDTH_MAX)
    return text.ljust(width) if "-" in flags else text.rjust(width)


def _as_text(value: Any, precision: int) -> str:
    if isinstance(value, bytes):
        value = value.partition(b"\0")[0].decode("utf-8", "surrogateescape")
    if isinstance(value, int):
        if value:
            return symbol(value, None, False)
        value = "(null)"
    if not isinstance(value, str):
        raise TypeError("not a string")
    return escape(value[:precision] if precision >= 0 else value)


def _integer(value: Any, kind: str, flags: str, bits: int, width: int, precision: int) -> str:
    if isinstance(value, float):
        return _padded(repr(value), flags, width)
    if not isinstance(value, int):
        raise TypeError("not a number")
    value &= (1 << bits) - 1
    if kind in "di" and value >> (bits - 1):
        value -= 1 << bits
    digits = format(abs(value), {"d": "d", "i": "d", "u": "d"}.get(kind, kind))
    if precision >= 0:
        digits = digits.rjust(min(precision, WIDTH_MAX), "0")
    sign = "-" if value < 0 else "+" if "+" in flags and kind in "di" else " " if " " in flags and kind in "di" else ""
    if "#" in flags and value:
        sign += {"x": "0x", "X": "0X", "o": "0"}.get(kind, "")
    if "0" in flags and "-" not in flags and precision < 0:
        digits = digits.rjust(min(width, WIDTH_MAX) - len(sign), "0")
    return _padded(sign + digits, flags, width)
