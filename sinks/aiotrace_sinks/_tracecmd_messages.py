"""What `trace-cmd listen` and its clients say to each other: version 3 of trace-cmd's network protocol. Sans-IO.

    listener  "tracecmd"                     a port for each CPU, in ASCII     ---- on the control connection ----
    client              "-1V3"        magic         TINIT       SEND_DATA ... FIN_DATA          CLOSE
    listener                    "V3"         "OK"         RINIT
    client                                                      pages, on a TCP connection for each CPU

A message is u32 size, u32 command, u32 size of the command's own fields, all big-endian, then those fields, then data.
The source of it all is trace-cmd's own: lib/trace-cmd/trace-msg.c, tracecmd/trace-listen.c; checked with 3.1.6.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import Final

GREETING: Final = b"tracecmd"
VERSION_WANTED: Final = b"-1V3\0"
VERSION_TAKEN: Final = b"V3\0"
MAGIC: Final = b"766679\0\0"
AGREED: Final = b"OK"

MESSAGE_MAX: Final = 8192
"""Bytes of a message: MSG_MAX_LEN."""

TINIT, RINIT, SEND_DATA, FIN_DATA, NOT_SUPPORTED = 1, 2, 3, 4, 5
_CLOSE = 0

_HEADER: Final = struct.Struct(">III")
_TINIT: Final = struct.Struct(">III")
_RINIT: Final = struct.Struct(">I")
HEADER_SIZE: Final = _HEADER.size


class NonsenseError(ValueError):
    """What the peer said is not what a listener says; the message shows it."""


def make_tinit(cpus: int, page_size: int) -> bytes:
    """What will come: pages of so many CPUs, over TCP."""
    option = b"tcp\0"
    return _pack(TINIT, _TINIT.pack(cpus, page_size, 1), option)


def make_data(content: bytes) -> Iterator[bytes]:
    """The messages that bring a part of the headers."""
    size = MESSAGE_MAX - _HEADER.size
    for at in range(0, len(content), size):
        yield _pack(SEND_DATA, b"", content[at : at + size])


FIN: Final = _HEADER.pack(_HEADER.size, FIN_DATA, 0)
"""The headers are complete."""
CLOSE: Final = _HEADER.pack(_HEADER.size, _CLOSE, 0)
"""The trace is: make a file of it."""


def unpack_header(header: bytes) -> tuple[int, int]:
    """The command of a message, and the bytes that follow its header.

    Raises:
        NonsenseError: It is none.
    """
    size, command, fields_size = _HEADER.unpack(header)
    if not _HEADER.size + fields_size <= size <= MESSAGE_MAX:
        raise NonsenseError(f"a message of {size} bytes with fields of {fields_size}: {header!r}")
    return command, size - _HEADER.size


def unpack_ports(command: int, body: bytes, cpus: int) -> list[int]:
    """The ports that an RINIT names, one for each CPU.

    Raises:
        NonsenseError: It is none, or has others.
    """
    if command != RINIT or len(body) < _RINIT.size:
        raise NonsenseError(f"message {command} with {body[:40]!r}, where RINIT ({RINIT}) was expected")
    (count,) = _RINIT.unpack_from(body)
    texts = body[_RINIT.size :].split(b"\0")
    ports = [int(text) for text in texts[:-1] if text.isdigit() and len(text) <= 5 and 0 < int(text) < 65536]
    if not count == cpus == len(ports) == len(texts) - 1 or texts[-1]:
        raise NonsenseError(f"{count} ports {body[4:44]!r}, where {cpus} numbers were expected")
    return ports


def _pack(command: int, fields: bytes, data: bytes) -> bytes:
    return _HEADER.pack(_HEADER.size + len(fields) + len(data), command, len(fields)) + fields + data
