r"""Text for a terminal: fields as name=value, and whatever could act on a terminal as an escape.

    ESC [31m  -->  \x1b[31m        b"\x00\xff"  -->  00ff        (1, "x")  -->  [1, x]

Everything that is printed goes through here. This module knows no event and no format.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

__all__ = ["escape", "escape_literal", "format_pairs", "format_value"]


def escape(text: str) -> str:
    r"""The same text with everything that could act on a terminal as an escape: \n, \x1b, \u202e."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else _ESCAPES.get(c) or _escaped(ord(c)) for c in text)


def escape_literal(text: str) -> str:
    """Like `escape`, except that tabs stay. A newline does not: an event is one line, and must not forge another."""
    return "\t".join(escape(part) for part in text.split("\t"))


_ESCAPES: Final = {"\n": "\\n", "\t": "\\t", "\r": "\\r"}


def _escaped(code: int) -> str:
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"


def format_value(value: object) -> str:
    """A field's value for people: text as it is, bytes in hex, the rest as Python shows it."""
    if isinstance(value, str):
        return escape(value)
    if isinstance(value, bytes):
        return value.hex()
    if isinstance(value, tuple):
        return "[" + ", ".join(format_value(item) for item in value) + "]"
    return str(value)


def format_pairs(values: Mapping[str, object]) -> str:
    """`name=value` for each field."""
    return " ".join(f"{escape(name)}={format_value(value)}" for name, value in values.items())
