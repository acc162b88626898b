"""printf as the kernel has it: a format's conversions, paired with expressions that give their values.

    "dev %d,%-5s %pS"  +  [values -> 8, values -> "sda", values -> address]  -->  values -> "dev 8,sda   do_fork+0x10"

A record costs time in proportion to the text: no width or precision pads further than WIDTH_MAX. A value that does not
fit its conversion raises TypeError or ValueError. Control characters of values are escaped.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any, Final, Protocol

from .._base.errors import TraceFormatError
from .._base.terminal_text import escape, escape_literal
from .c_expression import Expression, PrintFormat, Values
from .c_operators import MASK, as_bytes

__all__ = ["CONVERSION", "INTEGER_BITS", "WIDTH_MAX", "Names", "Printer", "compile_printf", "symbol"]

WIDTH_MAX: Final = 1000
"""The widest padding, in characters."""

Printer = Callable[[Values], str]


class Names(Protocol):
    """Resolves addresses to names."""

    def find(self, address: int) -> tuple[str, int] | None:
        """The function that contains an address, and the offset in it; None if there is none."""

    def locate(self, address: int) -> str | None:
        """The place of an address in a source file, like `app.py:17`; None if it is not known."""


CONVERSION: Final = re.compile(
    r"%(?P<flags>[-+ #0]*)(?P<width>\*|\d+)?(?:\.(?P<precision>\*|\d*))?"
    r"(?P<length>hh|h|ll|l|L|q|z|t|j)?(?P<conversion>[diouxXcsp%])",
    re.ASCII,
)
_POINTER: Final = re.compile(r"I[46]c?|i[46]|IS[pfsc]*|U[bBlL]?|MF?|mF?|[SsFfB]|x|b?l|K|h|e", re.ASCII)
INTEGER_BITS: Final = {"hh": 8, "h": 16, "": 32, "ll": 64, "L": 64, "q": 64, "j": 64}

Piece = str | Callable[[Values], str]


def compile_printf(format: PrintFormat, names: Names | None, long_size: int) -> Printer:
    """Pair a printf format's conversions with their arguments.

    trace-cmd can only show the bits of a float, after a 0x; here it is a number.

    Args:
        names: Gives `%ps` its names; without it addresses are printed.
        long_size: Bytes of a C `long`.

    Raises:
        TraceFormatError: A conversion is not known, or has no argument.
    """
    text = format.text.rstrip("\n")
    parts: list[Piece] = []
    queue = iter(format.arguments)
    position = 0
    while position < len(text):
        mark = text.find("%", position)
        if mark < 0:
            break
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
        if match["conversion"] == "p" and (found := _POINTER.match(text, position)):
            extension, position = found.group(), found.end()
        try:
            width = next(queue) if match["width"] == "*" else _constant(match["width"])
            precision = next(queue) if match["precision"] == "*" else _constant(match["precision"])
            value = next(queue)
            if value in format.floats:
                parts[-1] = literal.removesuffix("0x")
        except StopIteration:
            raise TraceFormatError("print fmt: more conversions than arguments") from None
        bits = INTEGER_BITS.get(match["length"] or "", long_size * 8)
        convert = _conversion(match["conversion"], extension, match["flags"], bits, names)
        parts.append(
            (lambda c, w, p, v: lambda values: c(v(values), w(values), p(values)))(convert, width, precision, value)
        )
    parts.append(escape_literal(text[position:]))
    return _joined(parts)


def _constant(text: str | None) -> Expression:
    number = -1 if text is None else int(text[:6] or "0")
    return lambda values: number


def _joined(parts: list[Piece]) -> Printer:
    template = "".join(part.replace("%", "%%") if isinstance(part, str) else "%s" for part in parts)
    functions = [part for part in parts if not isinstance(part, str)]
    return lambda values: template % tuple([function(values) for function in functions])


Conversion = Callable[[Any, int, int], str]
"""(value, width, precision) -> text; -1 where there is none."""


def _conversion(kind: str, extension: str, flags: str, bits: int, names: Names | None) -> Conversion:
    if kind == "s":
        return lambda value, width, precision: _padded(_as_text(value, precision, names), flags, width)
    if kind == "c":
        return lambda value, width, precision: _padded(escape(chr(value & 0xFF)), flags, width)
    if kind == "p":
        return lambda value, width, precision: _padded(_pointer(value, extension, names), flags, width)
    return lambda value, width, precision: _integer(value, kind, flags, bits, width, precision)


def _padded(text: str, flags: str, width: int) -> str:
    if width <= len(text):
        return text
    width = min(width, WIDTH_MAX)
    return text.ljust(width) if "-" in flags else text.rjust(width)


def _as_text(value: Any, precision: int, names: Names | None) -> str:
    if isinstance(value, bytes):
        value = value.partition(b"\0")[0].decode("utf-8", "surrogateescape")
    if isinstance(value, int):
        return symbol(value, None, False) if value else "(null)"
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


def _pointer(value: Any, extension: str, names: Names | None) -> str:
    if extension[:1] in ("S", "s", "F", "f", "B") and isinstance(value, int):
        return symbol(value, names, extension[0] in "SFB")
    if isinstance(value, (bytes, tuple)) and extension:
        data = as_bytes(value)
        if extension[0] in "Ii" and extension[1:2] == "4":
            return ".".join(str(byte) for byte in data[:4])
        if extension[0] in "Ii" and extension[1:2] == "6":
            return _ip6(data[:16])
        if extension.startswith("IS"):
            return _socket_address(data, "p" in extension)
        if extension[0] == "U":
            return _uuid(data[:16], extension)
        if extension[0] in "Mm":
            return ("" if extension[0] == "m" else ":").join(f"{byte:02x}" for byte in data[:6])
        raise TypeError(extension)
    if not isinstance(value, int):
        raise TypeError("not an address")
    return f"0x{value & MASK:x}"


def _ip6(data: bytes) -> str:
    import ipaddress

    return str(ipaddress.IPv6Address(data))


def _socket_address(data: bytes, with_port: bool) -> str:
    family = int.from_bytes(data[:2], "little")
    port = int.from_bytes(data[2:4], "big")
    if family == 2:
        address = ".".join(str(byte) for byte in data[4:8])
        return f"{address}:{port}" if with_port else address
    if family == 10:
        return f"[{_ip6(data[8:24])}]:{port}" if with_port else _ip6(data[8:24])
    raise TypeError(f"address family {family}")


def _uuid(data: bytes, extension: str) -> str:
    if len(data) != 16:
        raise ValueError("a UUID of another size")
    if extension[1:2] in ("l", "L"):
        data = data[3::-1] + data[5:3:-1] + data[7:5:-1] + data[8:]
    text = "-".join((data[:4].hex(), data[4:6].hex(), data[6:8].hex(), data[8:10].hex(), data[10:].hex()))
    return text.upper() if extension[1:2] in ("B", "L") else text


def symbol(address: int, names: Names | None, with_offset: bool) -> str:
    """The name of the function at an address, or the address."""
    found = names.find(address) if names is not None else None
    if found is None:
        return f"0x{address & MASK:x}"
    return f"{escape(found[0])}+0x{found[1]:x}" if with_offset else escape(found[0])
