"""Stream frames: one self-describing framing for everything that is not a trace.dat. Sans-IO.

    offset 0   4s   magic
           4   u8   version
           5   u8   kind
           6   u16  flags            bit 0: the body's crc32 is waived (it is 0)
           8   u32  length           bytes of body
          12   u32  crc32 of the body
          16   16s  stream id        new for each recording and process
          32   u64  sequence         number of the frame in its stream
          40   u32  reserved         0
          44   u32  crc32 of the 44 bytes before
          48   body

Everything is little-endian; only a page's records are in the order of the machine that wrote them, which hello names.

Three laws. **A length is believed only after the header's crc32**, and never over the limit, so nothing is allocated
for a lie. **Damage costs what it hit**: the reader looks for the next magic, and says what it passed over. **A frame
found by searching counts only if it is of the stream that was being read**, so bytes inside a page that look like a
frame cannot be taken for one.

This module knows no file and no socket. The bodies are below the framing: JSON where people may look at it and speed
does not matter (hello, definitions, end), packed numbers where it does (page, acknowledge).
"""

from __future__ import annotations

import enum
import json
import struct
import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final, NamedTuple

from .._base.clock import Anchor
from .._base.crc32 import crc32
from .._base.errors import TraceFormatError
from .._page import layout as L
from .._page.definitions import CommandDefinition, Definition, EventDefinition, FunctionDefinition, SymbolDefinition
from .._page.entry import PageEntry
from ..abc import Ledger, StreamInfo, WriterLedger

MAGIC: Final = b"\xf7aio"
"""No UTF-8 text holds its first byte."""
VERSION: Final = 1
FLAG_BODY_UNCHECKED: Final = 1
HEADER_SIZE: Final = 48
LENGTH_MAX: Final = L.PAGE_SIZE_MAX + 4096
"""Bytes: no body of ours is longer. The largest page, and its entry."""
DEFINITIONS_LENGTH: Final = 1 << 18
"""Bytes after which definitions go on in the next frame."""
DEFINITION_LENGTH_MAX: Final = 1 << 20
"""Bytes of a definition; the texts of a longer one are cut to `TEXT_CUT` characters, of up to 12 bytes each."""
TEXT_CUT: Final = 20_000

_HEADER = struct.Struct("<4sBBHII16sQI")
_U32 = struct.Struct("<I")
_ENTRY = struct.Struct("<IIQQqIIII")
_POSITION = struct.Struct("<IIQ")

Buffer = bytes | bytearray | memoryview


class Kind(enum.IntEnum):
    """What a frame holds."""

    HELLO = 1
    DEFINITIONS = 2
    PAGE = 3
    ACKNOWLEDGE = 4
    END = 5
    ERROR = 6
    PLACED = 7
    """A page that is stored elsewhere: only a journal has these."""
    HEARTBEAT = 8
    """Nothing, from a peer that is there: only connections have these."""
    STORED = 32
    """How far each writer's stream had come before this file, or at its end: only journals and traces have these."""
    CHECKPOINT = 33
    """What the frames before it come to, so that nobody has to read them: only journals have these."""


_KINDS: Final = {kind.value: kind for kind in Kind}


class Frame(NamedTuple):
    """An intact frame."""

    kind: Kind
    stream_id: bytes
    sequence: int
    body: bytes
    offset: int
    """Bytes from the beginning of what was fed."""


class Damage(NamedTuple):
    """What a reader passed over."""

    offset: int
    """Bytes from the beginning of what was fed."""
    length: int
    """Bytes."""
    reason: str


def pack_frame_header(kind: Kind, stream_id: bytes, sequence: int, *body: Buffer, check_body: bool = True) -> bytes:
    """The 48 bytes before a body that is given in parts and not copied, for a gathering write.

    Args:
        check_body: False leaves out the body's crc32: only where both sides agreed and the way is memory.
    """
    length = sum(len(part) for part in body)
    assert length <= LENGTH_MAX, length
    crc = 0
    if check_body:
        for part in body:
            crc = crc32(part, crc)
    return _pack_header(kind, 0 if check_body else FLAG_BODY_UNCHECKED, length, crc, stream_id, sequence)


def encode_frame(kind: Kind, stream_id: bytes, sequence: int, body: bytes = b"") -> bytes:
    """A whole frame."""
    assert len(body) <= LENGTH_MAX, len(body)
    return _pack_header(kind, 0, len(body), crc32(body), stream_id, sequence) + body


def _pack_header(kind: Kind, flags: int, length: int, crc: int, stream_id: bytes, sequence: int) -> bytes:
    header = _HEADER.pack(MAGIC, VERSION, kind, flags, length, crc, stream_id, sequence, 0)
    return header + _U32.pack(crc32(header))


class FrameReader:
    """Finds the frames in bytes that arrive in any portions."""

    def __init__(self, *, length_max: int = LENGTH_MAX) -> None:
        """
        Args:
            length_max: Bytes of body: a frame that claims more is damage. At most this much, and what was fed at
                once, is held.
        """
        self._length_max = length_max
        self._buffer = bytearray()
        self._start = 0
        self._skipped = 0
        self._reason = ""
        self._stream_id: bytes | None = None
        self.offset = 0
        """Bytes up to the end of the last intact frame or reported damage: a reader of a growing file that
        starts again goes on here."""

    def feed(self, data: Buffer) -> None:
        self._buffer += data

    def forget_incomplete(self) -> None:
        """Drop what is fed but not read: the bytes from `offset` on will be fed again."""
        self._buffer.clear()
        self._skipped = 0

    @property
    def pending(self) -> bytearray:
        """What is fed and not read; empty in the middle of damage. For whoever can read frames faster, and says so by
        `pass_over`."""
        return self._buffer if not self._skipped else bytearray()

    def pass_over(self, size: int) -> None:
        """The next `size` bytes of `pending` are frames, and intact."""
        del self._buffer[:size]
        self.offset += size

    def frames(self, *, final: bool = False) -> Iterator[Frame | Damage]:
        """What is complete by now.

        Args:
            final: No more is coming: what is incomplete is damage.
        """
        while True:
            found = self._take(final)
            if found is None:
                break
            if self._skipped:
                yield self._report_damage()
            self.offset += HEADER_SIZE + len(found.body)
            yield found
        if final and self._skipped:
            yield self._report_damage()

    def _take(self, final: bool) -> Frame | None:
        """The next intact frame; bytes that are none are counted in `_skipped` on the way."""
        try:
            while (position := self._find_magic(final)) is not None:
                if len(self._buffer) - position < HEADER_SIZE:
                    if not final:
                        return None
                    self._skip(1, "the header is cut off")
                    continue
                header = bytes(self._buffer[position : position + HEADER_SIZE])
                _, version, kind, flags, length, crc, stream_id, sequence, _ = _HEADER.unpack_from(header)
                if reason := self._refuse(header, version, kind, length, stream_id):
                    self._skip(1, reason)
                    continue
                body_start = position + HEADER_SIZE
                if len(self._buffer) - body_start < length:
                    if not final:
                        return None
                    self._skip(1, f"{len(self._buffer) - body_start} bytes are there of a body of {length}")
                    continue
                body = bytes(self._buffer[body_start : body_start + length])
                if not flags & FLAG_BODY_UNCHECKED and crc32(body) != crc:
                    self._skip(1, "the body's crc32 is wrong")
                    continue
                self._start = body_start + length
                self._stream_id = stream_id
                return Frame(_KINDS[kind], stream_id, sequence, body, self.offset + self._skipped)
            return None
        finally:
            del self._buffer[: self._start]
            self._start = 0

    def _find_magic(self, final: bool) -> int | None:
        """Where a frame may begin; what stands before is skipped."""
        if self._buffer.startswith(MAGIC, self._start):
            return self._start
        position = self._buffer.find(MAGIC, self._start)
        if position < 0:
            left = len(self._buffer) - self._start
            kept = 0 if final else next((n for n in (3, 2, 1) if self._buffer.endswith(MAGIC[:n])), 0)
            self._skip(left - min(left, kept), "no frame begins here")
            return None
        self._skip(position - self._start, "no frame begins here")
        return position

    def _refuse(self, header: bytes, version: int, kind: int, length: int, stream_id: bytes) -> str:
        """Why this is no frame to be read; "" if it is one."""
        if crc32(header[:-4]) != _U32.unpack_from(header, HEADER_SIZE - 4)[0]:
            return "the header's crc32 is wrong"
        if version != VERSION:
            return f"version {version} is not {VERSION}"
        if kind not in _KINDS:
            return f"kind {kind} is unknown"
        if length > self._length_max:
            return f"a body of {length} bytes is over the limit of {self._length_max}"
        if self._skipped and self._stream_id not in (None, stream_id):
            return "a frame of another stream"
        return ""

    def _skip(self, count: int, reason: str) -> None:
        if count and not self._skipped:
            self._reason = reason
        self._start += count
        self._skipped += count

    def _report_damage(self) -> Damage:
        damage = Damage(self.offset, self._skipped, self._reason)
        self.offset += self._skipped
        self._skipped = 0
        return damage


# --- bodies -------------------------------------------------------------------------------------


class Level(enum.IntEnum):
    """How safe a page is that is acknowledged."""

    RECEIVED = 1
    WRITTEN = 2
    FSYNCED = 3


def pack_hello(info: StreamInfo) -> bytes:
    anchor = info.anchor
    return _to_json(
        {
            "byte_order": sys.byteorder,
            "stream_id": info.stream_id.hex(),
            "page_size": info.page_size,
            "writers": info.writers,
            "clock": info.clock,
            "anchor": [anchor.monotonic_ns, anchor.realtime_ns, anchor.boot_id],
            "pid": info.pid,
            "host": info.host,
            "command": info.command[:1024],
        }
    )


def unpack_hello(body: Buffer) -> StreamInfo:
    """
    Raises:
        TraceFormatError: It is no hello, its numbers are out of range, or it is from a machine of the other byte order.
    """
    fields = _as(dict, _from_json(body))
    if (order := fields.get("byte_order")) != sys.byteorder:
        raise TraceFormatError(f"byte order {order!r}; this machine's is {sys.byteorder!r}")
    page_size = _number(fields.get("page_size"), L.PAGE_SIZE_MIN, L.PAGE_SIZE_MAX)
    if page_size & (page_size - 1):
        raise TraceFormatError(f"page_size {page_size} is no power of two")
    try:
        stream_id = bytes.fromhex(_as(str, fields.get("stream_id")))
    except ValueError:
        stream_id = b""
    if len(stream_id) != 16:
        raise TraceFormatError(f"stream_id {fields.get('stream_id')!r} is not 16 bytes")
    monotonic, realtime, boot_id = _list(fields.get("anchor"), 3)
    return StreamInfo(
        stream_id=stream_id,
        page_size=page_size,
        writers=_number(fields.get("writers"), 1, 1 << 16),
        clock=_as(str, fields.get("clock")),
        anchor=Anchor(_number(monotonic, 0), _number(realtime, 0), _as(str, boot_id)),
        pid=_number(fields.get("pid"), 0, (1 << 31) - 1),
        host=_as(str, fields.get("host")),
        command=_as(str, fields.get("command")),
    )


def pack_definitions(first: int, definitions: Sequence[Definition]) -> Iterator[bytes]:
    """Bodies of as many frames as are needed; `first` is the index of the first of them among all."""
    items: list[bytes] = []
    size = 0
    for number, definition in enumerate(definitions, first):
        item = _pack_definition(definition)
        if items and size + len(item) > DEFINITIONS_LENGTH:
            yield _join_definitions(number - len(items), items)
            items, size = [], 0
        items.append(item)
        size += len(item) + 1
    if items:
        yield _join_definitions(first + len(definitions) - len(items), items)


def _join_definitions(first: int, items: list[bytes]) -> bytes:
    return b'{"first":%d,"definitions":[%s]}' % (first, b",".join(items))


def _pack_definition(definition: Definition) -> bytes:
    match definition:
        case EventDefinition(id, system, name, text):
            item: list[int | str] = ["event", id, system, name, text]
        case SymbolDefinition(key, text):
            item = ["symbol", key, text]
        case CommandDefinition(pid, name):
            item = ["command", pid, name]
        case FunctionDefinition(address, lines, name, file, line):
            item = ["function", address, lines, name, file, line]
    packed = _to_json(item)
    if len(packed) > DEFINITION_LENGTH_MAX:  # nobody makes such a name but to break something
        packed = _to_json([part[:TEXT_CUT] if isinstance(part, str) else part for part in item])
    return packed


def unpack_definitions(body: Buffer) -> tuple[int, list[Definition]]:
    """The index of the first, and the definitions.

    Raises:
        TraceFormatError: They are none.
    """
    fields = _as(dict, _from_json(body))
    items = _as(list, fields.get("definitions"))
    return _number(fields.get("first"), 0), [_unpack_definition(_as(list, item)) for item in items]


def _unpack_definition(item: list[Any]) -> Definition:
    match item:
        case ["event", id, str(system), str(name), str(text)]:
            return EventDefinition(_number(id, 1, 65535), system, name, text)
        case ["symbol", key, str(text)]:
            return SymbolDefinition(_number(key, 0), text)
        case ["command", pid, str(name)]:
            return CommandDefinition(_number(pid, -(1 << 31), (1 << 31) - 1), name)
        case ["function", address, lines, str(name), str(file), line]:
            return FunctionDefinition(_number(address, 0), _number(lines, 1), name, file, _number(line, 0))
    raise TraceFormatError(f"{str(item)[:80]} is no definition")


pack_entry: Final = _ENTRY.pack
"""As `pack_page_entry`, for a page on its way to a socket: writer, complete, sequence, timestamp, lost_before, offset,
events_count, definitions_needed, committed."""


def pack_page_entry(entry: PageEntry) -> bytes:
    """What comes before the records in the body of a page frame."""
    flags = 1 if entry.complete else 0
    return _ENTRY.pack(
        entry.writer, flags, entry.sequence, entry.timestamp, entry.lost_before,
        entry.offset, entry.events_count, entry.definitions_needed, entry.committed,
    )  # fmt: skip


def unpack_page_entry(body: Buffer) -> PageEntry:
    """
    Raises:
        TraceFormatError: The body is too short, or a number out of range.
    """
    if len(body) < _ENTRY.size:
        raise TraceFormatError(f"a page entry of {len(body)} bytes, not {_ENTRY.size}", offset=0)
    writer, flags, sequence, timestamp, lost, offset, events, needed, committed = _ENTRY.unpack_from(body)
    if lost < -1 or offset + committed > L.PAGE_SIZE_MAX - L.PAGE_HEADER_SIZE:
        raise TraceFormatError(f"a page with lost_before {lost}, offset {offset}, committed {committed}", offset=0)
    return PageEntry(writer, sequence, offset, bool(flags & 1), events, lost, needed, timestamp, committed)


def unpack_page(body: Buffer) -> tuple[PageEntry, memoryview]:
    """A page frame's entry and records.

    Raises:
        TraceFormatError: As for `unpack_page_entry`, or the records are not as long as it says.
    """
    entry = unpack_page_entry(body)
    data = memoryview(body)[_ENTRY.size :]
    if len(data) != entry.committed:
        raise TraceFormatError(f"{len(data)} bytes of records where {entry.committed} are announced")
    return entry, data


PAGE_ENTRY_SIZE: Final = _ENTRY.size


def pack_positions(positions: Mapping[int, tuple[int, int]]) -> bytes:
    """By writer, how far its stream has come: the number of a page, and bytes of its records."""
    return b"".join(_POSITION.pack(writer, offset, sequence) for writer, (sequence, offset) in positions.items())


def unpack_positions(body: Buffer) -> dict[int, tuple[int, int]]:
    """
    Raises:
        TraceFormatError: The length is none of theirs.
    """
    if len(body) % _POSITION.size:
        raise TraceFormatError(f"positions of {len(body)} bytes, no multiple of {_POSITION.size}")
    return {writer: (sequence, offset) for writer, offset, sequence in _POSITION.iter_unpack(body)}


def pack_end(ledger: Ledger) -> bytes:
    return _to_json({"writers": [[getattr(writer, name) for name in _LEDGER_FIELDS] for writer in ledger.writers]})


def unpack_end(body: Buffer) -> Ledger:
    """
    Raises:
        TraceFormatError: It is no ledger.
    """
    rows = _as(list, _as(dict, _from_json(body)).get("writers"))
    return Ledger(tuple(WriterLedger(*(_number(n, 0) for n in _list(row, len(_LEDGER_FIELDS)))) for row in rows))


_LEDGER_FIELDS: Final = ("writer", "written", "dropped", "overrun", "missed", "lost_after")


def pack_error(message: str) -> bytes:
    return message.encode("utf-8", "backslashreplace")[:4096]


def unpack_error(body: Buffer) -> str:
    return bytes(body).decode("utf-8", "replace")


def _to_json(value: object) -> bytes:
    # ASCII: a lone surrogate survives, and so does any control character.
    return json.dumps(value, separators=(",", ":")).encode("ascii")


def _from_json(body: Buffer) -> Any:
    try:
        return json.loads(bytes(body))
    except (ValueError, RecursionError) as error:
        raise TraceFormatError(f"JSON was expected: {error}", offset=0) from None


def _as(kind: type, value: Any) -> Any:
    if type(value) is not kind:
        raise TraceFormatError(f"{kind.__name__} was expected, not {str(value)[:80]!r}")
    return value


def _list(value: Any, length: int) -> list[Any]:
    items: list[Any] = _as(list, value)
    if len(items) != length:
        raise TraceFormatError(f"{length} items were expected, not {len(items)}")
    return items


def _number(value: Any, low: int, high: int = (1 << 64) - 1) -> int:
    number: int = _as(int, value)
    if not low <= number <= high:
        raise TraceFormatError(f"{number} is not between {low} and {high}")
    return number
