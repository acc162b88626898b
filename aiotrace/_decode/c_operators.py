"""Parts of C, and of the kernel's print helpers, that work on values of fields alone.

Every number is cut to 64 bits, so that no expression grows. What C leaves undefined raises an ArithmeticError or a
LookupError; the caller then prints the fields instead. All take time in proportion to their value's size.
"""

from __future__ import annotations

import re
from typing import Any, Final

__all__ = ["MASK", "as_bytes", "cpu_list", "cut", "divide", "hex_mask", "item"]

MASK: Final = (1 << 64) - 1


def cut(value: int) -> int:
    """To 64 bits; negative numbers stay what they are while they fit."""
    if -(1 << 63) <= value < 1 << 64:
        return value
    return value & MASK


def divide(a: Any, b: Any) -> Any:
    """As C does, towards zero.

    Raises:
        ZeroDivisionError: `b` is 0.
    """
    if isinstance(a, float) or isinstance(b, float):
        return a / b
    quotient = abs(a) // abs(b)
    return quotient if (a < 0) == (b < 0) else -quotient


def item(value: Any, index: int) -> Any:
    """`value[index]`; behind the end of a string stand zeros.

    Raises:
        LookupError: There is no such element.
        TypeError: It is no array.
    """
    if isinstance(value, str):
        value = as_bytes(value)
        return value[index] if 0 <= index < len(value) else 0
    if index < 0:
        raise LookupError(index)
    return value[index]


def as_bytes(value: Any) -> bytes:
    """The memory that a string or bytes has, without the string's NUL.

    Raises:
        TypeError: It is neither.
    """
    if isinstance(value, str):
        try:
            return value.encode("utf-8", "surrogateescape")
        except UnicodeEncodeError:  # surrogates that were written as such
            return value.encode("utf-8", "surrogatepass")
    if isinstance(value, bytes):
        return value
    raise TypeError("not an array of bytes")


def hex_mask(words: Any, bits: int) -> str:
    """A bitmask as the kernel's `%*pb` prints it: `00000000,000000f1`."""
    digits = _hex(words, bits)
    first = len(digits) % 8
    groups = [digits[at : at + 8] for at in range(first, len(digits), 8)]
    return ",".join([digits[:first], *groups] if first else groups)


def cpu_list(words: Any, bits: int) -> str:
    """A bitmask as the kernel's `%*pbl` prints it: `0-3,7`."""
    places = f"{int(_hex(words, bits) or '0', 16):b}"[::-1]
    runs = [(match.start(), match.end() - 1) for match in re.finditer("1+", places)]
    return ",".join(f"{first}-{last}" if last > first else str(first) for first, last in runs)


def _hex(words: Any, bits: int) -> str:
    """All words as one number, its last word first; bits a word."""
    if not isinstance(words, (tuple, bytes)):
        raise TypeError("not a bitmask")
    mask, width = (1 << bits) - 1, -(-bits // 4)
    return "".join([f"{int(word) & mask:0{width}x}" for word in reversed(words)])
