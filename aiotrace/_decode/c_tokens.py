r"""The text of a print fmt as tokens of C, and the values of literals.

    "dev %d", REC->dev >> 20  -->  string  op ,  name REC  op ->  name dev  op >>  number 20

The text is untrusted: its length is limited, and a character that begins no token is an error. This module knows no
grammar.
"""

from __future__ import annotations

import re
from typing import Final

from .._base.errors import TraceFormatError

__all__ = ["ExcessiveFormatError", "split_tokens", "unquoted"]


class ExcessiveFormatError(TraceFormatError):
    """A print fmt asks for what no kernel's does: people are told, beside the event's fields."""


TEXT_MAX: Final = 1 << 16
"""Characters of the longest print fmt that is interpreted; the longest of Linux 6.18 has 14,000."""

_TOKEN: Final = re.compile(
    r"""\s*(?:
        (?P<string>"(?:[^"\\]|\\.)*")
      | (?P<char>'(?:[^'\\]|\\.[0-7x]{0,3})')
      | (?P<number>(?:0[xX][0-9a-fA-F]+|\d+)[uUlL]*)
      | (?P<name>[A-Za-z_]\w*)
      | (?P<op><<|>>|<=|>=|==|!=|&&|\|\||->|[-+*/%&|^~!<>?:(){}\[\],.=;])
    )""",
    re.VERBOSE | re.ASCII | re.DOTALL,
)


def split_tokens(text: str) -> list[tuple[str, str]]:
    """(kind, text) of each token.

    Raises:
        TraceFormatError: The text is too long, or a part of it is no token.
    """
    if len(text) > TEXT_MAX:
        raise ExcessiveFormatError(f"print fmt: {len(text)} characters, more than {TEXT_MAX}")
    tokens, position, text = [], 0, text.rstrip()
    while position < len(text):
        match = _TOKEN.match(text, position)
        if match is None:
            raise TraceFormatError(f"print fmt: {text[position : position + 20]!r}", offset=position)
        kind = match.lastgroup or ""
        tokens.append((kind, match.group(kind)))
        position = match.end()
    return tokens


_C_ESCAPE: Final = re.compile(r"\\(x[0-9a-fA-F]{1,2}|[0-7]{1,3}|.)", re.DOTALL)
_C_ESCAPES: Final = {"n": "\n", "t": "\t", "r": "\r", "a": "\a", "b": "\b", "f": "\f", "v": "\v", "e": "\x1b"}


def unquoted(literal: str) -> str:
    """What stands between the quotes of a literal, its escapes resolved."""

    def replace(match: re.Match[str]) -> str:
        found = match.group(1)
        if found[0] == "x" and len(found) > 1:
            return chr(int(found[1:], 16))
        if found[0] in "01234567":
            return chr(int(found, 8) & 0xFF)
        return _C_ESCAPES.get(found, found)

    return _C_ESCAPE.sub(replace, literal[1:-1])
