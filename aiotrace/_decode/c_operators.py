"""C's operators and the kernel's print helpers, applied to values of fields.

Every number is cut to 64 bits, so that no expression grows. What C leaves undefined raises an ArithmeticError or a
LookupError; the caller then prints the fields instead.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import Any, Final

__all__ = ["BINARY", "MASK", "as_bytes", "cpu_list", "cut", "item"]

MASK: Final = (1 << 64) - 1

BINARY: Final[tuple[dict[str, Callable[[Any, Any], Any]], ...]] = (
    {"|": lambda a, b: a | b},
    {"^": lambda a, b: a ^ b},
    {"&": lambda a, b: a & b},
    {"==": lambda a, b: int(a == b), "!=": lambda a, b: int(a != b)},
    {
        "<": lambda a, b: int(a < b),
        ">": lambda a, b: int(a > b),
        "<=": lambda a, b: int(a <= b),
        ">=": lambda a, b: int(a >= b),
    },
    {"<<": lambda a, b: cut(a << (b & 63)), ">>": lambda a, b: a >> (b & 63)},
    {"+": lambda a, b: cut(a + b), "-": lambda a, b: cut(a - b)},
    {"*": lambda a, b: cut(a * b), "/": lambda a, b: _divide(a, b), "%": lambda a, b: a - b * _divide(a, b)},
)
"""By precedence, the weakest first."""


def cut(value: int) -> int:
    """To 64 bits; negative numbers stay what they are while they fit."""
    if -(1 << 63) <= value < 1 << 64:
        return value
    return value & MASK


def _divide(a: int, b: int) -> int:
    quotient = abs(a) // abs(b)
    return quotient if (a < 0) == (b < 0) else -quotient


def item(value: Any, index: int) -> Any:
    """`value[index]`; behind the end of a string stand zeros.

    Raises:
        LookupError: There is no such element.
    """
    if isinstance(value, str):
        return as_bytes(value)[index] if index < len(as_bytes(value)) else 0
    if index < 0:
        raise LookupError(index)
    return value[index]


def as_bytes(value: Any) -> bytes:
    """The memory that a string, bytes or an array of numbers of 64 bits has."""
    if isinstance(value, str):
        return value.encode("utf-8", "surrogatepass")
    if isinstance(value, bytes):
        return value
    return b"".join(struct.pack("<Q", number & MASK) for number in value)


def cpu_list(words: Any, bits: int) -> str:
    """A bitmask as the kernel prints it: `0-3,7`."""
    total = 0
    for index, word in enumerate(words if isinstance(words, tuple) else ()):
        total |= (word & MASK) << (index * bits)
    ranges, cpu = [], 0
    while total >> cpu:
        if total >> cpu & 1:
            first = cpu
            while total >> cpu & 1:
                cpu += 1
            ranges.append(f"{first}-{cpu - 1}" if cpu - 1 > first else str(first))
        else:
            cpu += 1
    return ",".join(ranges)
