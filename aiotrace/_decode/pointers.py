"""What `%p` and its extensions print, as the kernel's Documentation/core-api/printk-formats.rst has them.

    names      %ps %pS %pf %pF %pB             function, function+0x10
    errors     %pe                             -ENOENT
    memory     %pM %pMF %pMR %pm %pmR          00:11:22:33:44:55, with -, reversed, without
               %pI4 %pi4 %pI6 %pi6 %pI6c %pIS  addresses; hnbl: the byte order of the first two
               %pU %pUb %pUB %pUl %pUL         UUIDs, little-endian or upper case
               %*ph %*phC %*phD %*phN          as many bytes in hex, separated by blanks, : - or nothing
               %*pb %*pbl                      as many bits: 00000000,000000f1 or 0,4-7

An extension that is not here is refused. A value that does not fit raises TypeError or ValueError.
"""

from __future__ import annotations

import errno
import re
from collections.abc import Callable
from typing import Any, Final, Protocol

from .._base.errors import TraceFormatError
from .._base.terminal_text import escape
from .c_operators import MASK, cpu_list, hex_mask

__all__ = ["Names", "show_memory", "show_pointer", "symbol"]

HEX_MAX: Final = 64
"""Bytes that %*ph prints at most: lib/vsprintf.c, hex_string."""
_SEPARATORS: Final = {"": " ", "C": ":", "D": "-", "N": ""}
_PORT_OFFSET, _FLOW_OFFSET, _IP4_OFFSET, _IP6_OFFSET, _SCOPE_OFFSET = 2, 4, 4, 8, 24
"""In a struct sockaddr_in and sockaddr_in6."""
_INET, _INET6 = 2, 10
"""Linux's AF_INET and AF_INET6."""

Show = Callable[[bytes, int], str]
"""(memory, width or -1) -> text."""


class Names(Protocol):
    """Resolves addresses to names."""

    def find(self, address: int) -> tuple[str, int] | None:
        """The function that contains an address, and the offset in it; None if there is none."""

    def locate(self, address: int) -> str | None:
        """The place of an address in a source file, like `app.py:17`; None if it is not known."""


def symbol(address: int, names: Names | None, with_offset: bool) -> str:
    """The name of the function at an address, or the address."""
    found = names.find(address) if names is not None else None
    if found is None:
        return f"0x{address & MASK:x}"
    return f"{escape(found[0])}+0x{found[1]:x}" if with_offset else escape(found[0])


def show_pointer(extension: str, names: Names | None) -> Callable[[Any], str]:
    """What prints a pointer for itself.

    Raises:
        TraceFormatError: The extension is not known.
    """
    if extension[0] in "SsFfB" and extension[1:] in ("", "R", "b"):
        with_offset = extension[0] in "SFB"
        return lambda value: symbol(_address(value), names, with_offset)
    if extension == "e":
        return lambda value: _error(_address(value))
    if extension in ("x", "K"):
        return lambda value: symbol(_address(value), None, False)
    raise TraceFormatError(f"print fmt: %p{extension[:10]} is not known")


def _address(value: Any) -> int:
    if not isinstance(value, int):
        raise TypeError("not an address")
    return value


def _error(value: int) -> str:
    number = -(value & MASK) & MASK
    return f"-{errno.errorcode[number]}" if number in errno.errorcode else symbol(value, None, False)


def show_memory(extension: str, byte_order: str) -> Show | None:
    """What prints the memory that a pointer points to; None if the extension is not of that kind."""
    if match := re.fullmatch(r"h([CDN]?)", extension):
        separator = _SEPARATORS[match[1]]
        return lambda data, width: _hex(data, width, separator)
    if extension in ("b", "bl") and byte_order == "<":
        show = cpu_list if extension == "bl" else hex_mask
        return lambda data, width: show(_bits(data, width), width)
    if re.fullmatch(r"M[FR]?|mR?", extension):
        return lambda data, width: _mac(_exactly(data, 6), extension)
    if match := re.fullmatch(r"([Ii])4([hnbl]?)", extension):
        is_reversed = match[2] == "l" or (match[2] == "h" and byte_order == "<")
        pad = 3 if match[1] == "i" else 1
        return lambda data, width: _ip4(_exactly(data, 4)[:: -1 if is_reversed else 1], pad)
    if match := re.fullmatch(r"([Ii])6(c?)", extension):
        style = match[1] + match[2]
        return lambda data, width: _ip6(_exactly(data, 16), style)
    if match := re.fullmatch(r"([Ii])S([pfschnbl]*)", extension):
        style, options = match[1], match[2]
        return lambda data, width: _socket_address(data, style, options, byte_order)
    if re.fullmatch(r"U[bBlL]?", extension):
        return lambda data, width: _uuid(_exactly(data, 16), extension[1:])
    return None


def _exactly(data: bytes, size: int) -> bytes:
    """The first bytes."""
    if len(data) < size:
        raise ValueError(f"{len(data)} bytes, where {size} should be")
    return data[:size]


def _hex(data: bytes, width: int, separator: str) -> str:
    count = 1 if width < 0 else min(width, HEX_MAX)
    return separator.join(f"{byte:02x}" for byte in data[:count])


def _bits(data: bytes, width: int) -> tuple[int]:
    """The first bits, as one number."""
    if width <= 0 or width > 8 * len(data):
        raise ValueError(f"{width} bits of {len(data)} bytes")
    return (int.from_bytes(data, "little"),)


def _mac(data: bytes, extension: str) -> str:
    if "R" in extension:
        data = data[::-1]
    separator = "" if extension[0] == "m" else "-" if "F" in extension else ":"
    return separator.join(f"{byte:02x}" for byte in data)


def _ip4(data: bytes, pad: int) -> str:
    return ".".join(f"{byte:0{pad}d}" for byte in data)


def _ip6(data: bytes, style: str) -> str:
    """`I`: all digits; `i`: without colons; `Ic`: compressed, and what holds an IPv4 address with its dots."""
    words = [f"{int.from_bytes(data[at : at + 2], 'big'):04x}" for at in range(0, 16, 2)]
    if style[0] == "i":
        return "".join(words)
    if style != "Ic":
        return ":".join(words)

    # The kernel's ip6_compressed_string: v4-mapped and ISATAP addresses end with the IPv4 address
    is_mapped = data[:12] == bytes(10) + b"\xff\xff"
    is_isatap = data[8] | 2 == 2 and data[9:12] == b"\x00\x5e\xfe"
    tail = _ip4(data[12:], 1) if is_mapped or is_isatap else ""
    short = [word.lstrip("0") or "0" for word in (words[:6] if tail else words)]

    # The first of the longest runs of two zeros or more is left out
    first, length = 0, 1
    for at in range(len(short)):
        end = at
        while end < len(short) and short[end] == "0":
            end += 1
        if end - at > length:
            first, length = at, end - at
    if length > 1:
        before, after = ":".join(short[:first]), ":".join(short[first + length :] + ([tail] if tail else []))
        return f"{before}::{after}"
    return ":".join(short + ([tail] if tail else []))


def _socket_address(data: bytes, style: str, options: str, byte_order: str) -> str:
    """With a port `p`, a flow label `f`, a scope `s`, compressed `c`."""
    order: Any = "little" if byte_order == "<" else "big"
    family = int.from_bytes(data[:2], order)
    port = f":{int.from_bytes(data[_PORT_OFFSET : _PORT_OFFSET + 2], 'big')}" if "p" in options else ""
    if family == _INET and len(data) >= _IP4_OFFSET + 4:
        return _ip4(data[_IP4_OFFSET : _IP4_OFFSET + 4], 3 if style == "i" else 1) + port
    if family != _INET6 or len(data) < _IP6_OFFSET + 16:
        raise TypeError(f"address family {family}")

    text = _ip6(data[_IP6_OFFSET : _IP6_OFFSET + 16], style + ("c" if "c" in options and style == "I" else ""))
    if "f" in options:
        port += f"/{int.from_bytes(data[_FLOW_OFFSET : _FLOW_OFFSET + 4], 'big') & 0x0FFFFFFF}"
    if "s" in options:
        port += f"%{int.from_bytes(data[_SCOPE_OFFSET : _SCOPE_OFFSET + 4], order)}"
    return f"[{text}]{port}" if port else text


def _uuid(data: bytes, style: str) -> str:
    if style in ("l", "L"):
        data = data[3::-1] + data[5:3:-1] + data[7:5:-1] + data[8:]
    text = "-".join((data[:4].hex(), data[4:6].hex(), data[6:8].hex(), data[8:10].hex(), data[10:].hex()))
    return text.upper() if style in ("B", "L") else text
