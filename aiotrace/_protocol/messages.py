"""The stream protocol: what a producer and a collector say to each other. Sans-IO; docs/reference/protocol.md.

    producer                          collector
    HELLO      stream, what it asks -->
                                    <-- HELLO        what it grants
                                    <-- ACKNOWLEDGE  what it has of this stream already
    DEFINITIONS                     -->
    PAGE, PAGE, ...                 -->              at most `credit` of them unacknowledged
                                    <-- ACKNOWLEDGE  by writer: all up to here has reached the level that was asked for
    END        the ledger           -->
                                    <-- END          that too
    HEARTBEAT                      <-->              when there is nothing else to say
    ERROR      why                 <-->              the last word

The laws. **A page is the collector's when the collector has said so**, at the level that was asked for; until then the
producer keeps it, and sends it again on its next connection unless the collector's first words are that it has it.
**Nothing is believed that was not sent**: an acknowledgement names the end of a page that went out whole, once.
**Nothing is allocated for a lie**: a length is checked against the limit of its kind before a byte of it is received.

On a connection there is no damage to pass over, as in a file: whatever is wrong ends the connection, says what was
expected, and the next connection begins with what the collector has.

Here is what both sides share: the limits, the bodies of the handshake and of acknowledgements, and the events that
both can report. `_protocol_wire` turns bytes into frames; `_protocol_producer` and `_protocol_collector` are the sides.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

from .._base.errors import TraceFormatError
from .._formats.frames import Buffer, Level, pack_hello, unpack_hello
from ..abc import StreamInfo

PROTOCOL_VERSION: Final = 1
HANDSHAKE_MAX: Final = 4096
"""Bytes of the body of either side's hello: all that is held for a peer that nobody knows yet."""
HANDSHAKE_PATIENCE: Final = 5.0
"""Seconds that a peer has for its hello."""
ERROR_MAX: Final = 4096
"""Bytes of an error's text."""
TOKEN_MAX: Final = 1024
"""Characters."""
HEARTBEAT_DEFAULT: Final = 5.0
"""Seconds: nobody is silent for longer, and who is silent for twice as long is gone."""
HEARTBEAT_RANGE: Final = (0.05, 300.0)
"""Seconds that a producer may ask for."""
CREDIT_MAX: Final = 1 << 20
"""Pages."""

_LEVEL = struct.Struct("<II")
_POSITION = struct.Struct("<IIQ")

Position = tuple[int, int]
"""How far a writer's stream has come: the number of a page, and bytes of its records. Ordered as tuples are."""
Positions = Mapping[int, Position]
"""By writer."""


# --- what both sides report -----------------------------------------------------------------------


class Broken(NamedTuple):
    """The peer broke the protocol, or was silent for too long: close the connection. `pending` may still hold an error
    for it: worth one attempt to send, no wait."""

    reason: str


class Refused(NamedTuple):
    """The peer ended the connection, and said why."""

    reason: str


# --- the handshake --------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Request:
    """What a producer asks for."""

    level: Level = Level.FSYNCED
    """What is to have happened to a page before it is acknowledged."""
    check_bodies: bool = True
    """False: it would leave out the crc32 of pages' bodies, if the collector agrees."""
    heartbeat: float = HEARTBEAT_DEFAULT
    """Seconds."""
    token: str | None = None

    def __repr__(self) -> str:
        token = "None" if self.token is None else "'...'"  # logs are read by others
        return f"Request({self.level!r}, check_bodies={self.check_bodies}, heartbeat={self.heartbeat}, token={token})"


@dataclass(frozen=True, slots=True)
class Grant:
    """What a collector answers."""

    credit: int
    """Pages that may be sent and not acknowledged."""
    check_bodies: bool = True
    """False: pages come without the crc32 of their bodies. Only where the producer asked for it."""
    definitions: int = 0
    """Definitions of this stream that it has: the producer goes on with the next."""
    ended: bool = False
    """It has the end of this stream."""


def pack_request(info: StreamInfo, request: Request) -> bytes:
    """The body of a producer's hello: the stream's, as in a journal, and what it asks for.

    Raises:
        ValueError: It is over the limit: host, command or token are too long.
    """
    fields = json.loads(pack_hello(info))
    fields["protocol"] = {
        "version": PROTOCOL_VERSION,
        "level": int(request.level),
        "check_bodies": request.check_bodies,
        "heartbeat_ms": round(request.heartbeat * 1000),
        "token": request.token,
    }
    body = _to_json(fields)
    for name in ("command", "host"):  # for people; escapes make up to 12 bytes of a character
        if len(body) > HANDSHAKE_MAX:
            fields[name] = fields[name][: 1024 // 12]
            body = _to_json(fields)
    if len(body) > HANDSHAKE_MAX:
        raise ValueError(f"a hello of {len(body)} bytes; at most {HANDSHAKE_MAX} are allowed: is the token so long?")
    return body


def unpack_request(body: Buffer) -> tuple[StreamInfo, Request]:
    """
    Raises:
        TraceFormatError: It is no hello of a producer, or a number in it is out of range.
    """
    info = unpack_hello(body)
    asked = _protocol_of(body)
    token = asked.get("token")
    if token is not None and (type(token) is not str or len(token) > TOKEN_MAX):
        raise TraceFormatError(f"a token is a text of at most {TOKEN_MAX} characters, or null")
    low, high = HEARTBEAT_RANGE
    return info, Request(
        level=Level(_number(asked, "level", min(Level), max(Level))),
        check_bodies=_flag(asked, "check_bodies"),
        heartbeat=_number(asked, "heartbeat_ms", int(low * 1000), int(high * 1000)) / 1000,
        token=token,
    )


def pack_grant(grant: Grant) -> bytes:
    """The body of a collector's hello."""
    return _to_json(
        {
            "protocol": {
                "version": PROTOCOL_VERSION,
                "credit": grant.credit,
                "check_bodies": grant.check_bodies,
                "definitions": grant.definitions,
                "ended": grant.ended,
            }
        }
    )


def unpack_grant(body: Buffer) -> Grant:
    """
    Raises:
        TraceFormatError: It is no hello of a collector, or a number in it is out of range.
    """
    granted = _protocol_of(body)
    return Grant(
        credit=_number(granted, "credit", 1, CREDIT_MAX),
        check_bodies=_flag(granted, "check_bodies"),
        definitions=_number(granted, "definitions", 0, 1 << 32),
        ended=_flag(granted, "ended"),
    )


def _protocol_of(body: Buffer) -> dict[str, Any]:
    try:
        fields = json.loads(bytes(body))
    except (ValueError, RecursionError) as error:
        raise TraceFormatError(f"a hello is JSON: {error}") from None
    protocol = fields.get("protocol") if type(fields) is dict else None
    if type(protocol) is not dict:
        raise TraceFormatError("a hello without 'protocol': an object was expected, with its 'version'")
    if protocol.get("version") != PROTOCOL_VERSION:
        raise TraceFormatError(
            f"protocol version {str(protocol.get('version'))[:40]}; this side has {PROTOCOL_VERSION}"
        )
    return protocol


def _number(fields: dict[str, Any], name: str, low: int, high: int) -> int:
    value = fields.get(name)
    if type(value) is not int or not low <= value <= high:
        raise TraceFormatError(f"{name} {str(value)[:40]}: a number from {low} to {high} was expected")
    return value


def _flag(fields: dict[str, Any], name: str) -> bool:
    value = fields.get(name)
    if type(value) is not bool:
        raise TraceFormatError(f"{name} {str(value)[:40]}: true or false was expected")
    return value


def _to_json(value: object) -> bytes:
    return json.dumps(value, separators=(",", ":")).encode("ascii")


# --- acknowledgements -----------------------------------------------------------------------------


def acknowledgement_size(writers: int) -> int:
    """Bytes of the longest acknowledgement of a stream with so many writers."""
    return _LEVEL.size + writers * _POSITION.size


def pack_acknowledgement(level: Level, positions: Positions) -> bytes:
    """Of each writer, all up to its position has reached the level."""
    parts = [_POSITION.pack(writer, end, sequence) for writer, (sequence, end) in positions.items()]
    return _LEVEL.pack(level, 0) + b"".join(parts)


def unpack_acknowledgement(body: Buffer) -> tuple[int, dict[int, Position]]:
    """The level, which may be none that is known, and the positions.

    Raises:
        TraceFormatError: The length is none of theirs, or a writer is in it twice.
    """
    if len(body) < _LEVEL.size or (len(body) - _LEVEL.size) % _POSITION.size:
        raise TraceFormatError(f"an acknowledgement of {len(body)} bytes, not {_LEVEL.size} + n * {_POSITION.size}")
    level, _ = _LEVEL.unpack_from(body)
    rows = list(_POSITION.iter_unpack(memoryview(body)[_LEVEL.size :]))
    positions = {writer: (sequence, end) for writer, end, sequence in rows}
    if len(positions) != len(rows):
        raise TraceFormatError("an acknowledgement that names a writer twice")
    return level, positions
