"""Frames on a connection: bytes in, frames out, in place; frames in, buffers out, none copied. Sans-IO.

    recv_into(inbox.buffer()) --> inbox.fed(n) --> inbox.frame(), until None       a body is a view of where it came in
    outbox.put(header, body)  --> sendmsg(outbox.pending()) --> outbox.sent(n)     a body is a view of its page

Bytes come into *blocks*. A body that is kept holds its block; one that nobody holds is used again, so that a collector
that is busy for hours allocates what it did in its first second. Who does not give a body back costs no more than the
memory: it is never used again while a view of it is alive.

Unlike `frames.FrameReader`, which reads what a crash or a disk has left, this reads what a peer says: the first thing
that is not as it should be is an error, and nothing is looked for behind it.
"""

from __future__ import annotations

import struct
from collections import deque
from collections.abc import Mapping
from typing import Final

from .._base.crc32 import crc32
from .._base.errors import TraceFormatError
from .._formats.frames import FLAG_BODY_UNCHECKED, HEADER_SIZE, MAGIC, VERSION, Buffer, Kind, pack_frame_header

_HEADER = struct.Struct("<4sBBHII16sQII")
_HEAD = struct.Struct("<8sII16sQI")
_U32 = struct.Struct("<I")
_CHECKED, _UNCHECKED = (struct.pack("<4sBBH", MAGIC, VERSION, Kind.PAGE, flags) for flags in (0, FLAG_BODY_UNCHECKED))
"""What every page's header begins with."""
_PAGE: Final = int(Kind.PAGE)
BLOCK_SMALL: Final = 8192
"""Bytes of a block for what is small: handshakes, acknowledgements."""
BLOCKS_FREE: Final = 2
"""Blocks that are kept for use: the one that is filled next, while one is drained."""
BUFFERS_MAX: Final = 32
"""Buffers for one gathering write: 16 pages, which is 1 MiB where nobody chose another size. More would keep the loop
for longer."""


class Block:
    """Memory that bytes are received into."""

    __slots__ = ("held", "view")

    def __init__(self, size: int) -> None:
        self.view = memoryview(bytearray(size))
        self.held = 0
        """Bodies in it that are kept."""


Arrived = tuple[int, memoryview, Block]
"""Kind, body and block of a frame; the body may be looked at until the next call of `Inbox.buffer`, or for as long as
the block is held."""


class Inbox:
    """The frames of a connection, as they arrive."""

    def __init__(self, limits: Mapping[int, int], stream_id: bytes | None = None) -> None:
        """
        Args:
            limits: The kinds of frames that may come now, and bytes of their bodies at most.
            stream_id: Of all frames; None: the first one's.
        """
        self.limits = limits
        self.may_waive = False
        """Whether pages may come without the crc32 of their bodies."""
        self.block_size = BLOCK_SMALL
        """Bytes of blocks from the next one on."""
        self._stream_id = stream_id
        self._sequence = 0
        """Number of the next frame."""
        self._block = Block(BLOCK_SMALL)
        self._start = 0
        """In the block: where the next frame begins."""
        self._end = 0
        """In the block: up to where bytes have come."""
        self._needed = HEADER_SIZE
        """Bytes of the next frame, as far as is known."""
        self._header: tuple[int, int, int] | None = None
        """Kind, flags and crc32 of the next frame's body, when its header was checked."""
        self._free: list[Block] = []

    def buffer(self) -> memoryview:
        """Where to receive the next bytes."""
        missing = self._start + self._needed - self._end
        room = len(self._block.view) - self._end
        if self._start == self._end and not self._block.held:
            self._start = self._end = 0
            room = len(self._block.view)
        if room < missing or (room < self.block_size // 8 and self._start):
            self._move()
        return self._block.view[self._end :]

    def _move(self) -> None:
        """Go on in a block that has room, and take the beginning of the next frame along."""
        old, begun = self._block, self._end - self._start
        size = max(self.block_size, self._needed)
        if old.held or len(old.view) < size:
            self._block = self._take(size)
        self._block.view[:begun] = old.view[self._start : self._end]
        self._start, self._end = 0, begun
        if old is not self._block:
            self.release(old)

    def _take(self, size: int) -> Block:
        for index, block in enumerate(self._free):
            if len(block.view) >= size:
                return self._free.pop(index)
        return Block(size)

    @property
    def unread(self) -> int:
        """Bytes that have come and are not read."""
        return self._end - self._start

    def release(self, block: Block) -> None:
        """Nobody holds a body in it any more: it is used again, unless there are enough, or bytes go into it now."""
        is_spare = not block.held and block is not self._block and block not in self._free
        if is_spare and len(block.view) == self.block_size and len(self._free) < BLOCKS_FREE:
            self._free.append(block)

    def fed(self, count: int) -> None:
        """So many bytes were received into `buffer`."""
        self._end += count

    def frame(self) -> Arrived | None:
        """The next frame, if it has come whole.

        Raises:
            TraceFormatError: What came is none that may come here; what was expected is said.
        """
        arrived = self._end - self._start
        if self._header is None:
            if arrived < HEADER_SIZE:
                self._check_magic(min(arrived, len(MAGIC)))
                return None
            self._read_header()
        if arrived < self._needed or self._header is None:
            return None
        kind, flags, crc = self._header
        end = self._start + self._needed
        body = self._block.view[self._start + HEADER_SIZE : end]
        if not flags & FLAG_BODY_UNCHECKED and crc32(body) != crc:
            raise TraceFormatError(f"the crc32 of the body of a frame of kind {_name(kind)} is wrong")
        self._start, self._needed, self._header = end, HEADER_SIZE, None
        return kind, body, self._block

    def _check_magic(self, length: int) -> None:
        """At once: who speaks another protocol may say less than a header, and wait."""
        begin = bytes(self._block.view[self._start : self._start + length])
        if begin != MAGIC[:length]:
            raise TraceFormatError(f"no frame begins with {begin!r}: is the peer no aiotrace?")

    def _read_header(self) -> None:
        header = bytes(self._block.view[self._start : self._start + HEADER_SIZE])
        magic, version, kind, flags, length, crc, stream_id, sequence, _, header_crc = _HEADER.unpack(header)
        if magic != MAGIC:
            self._check_magic(len(MAGIC))
        if crc32(header[:-4]) != header_crc:
            raise TraceFormatError("the crc32 of a frame's header is wrong")
        if version != VERSION:
            raise TraceFormatError(f"a frame of version {version}; this side has {VERSION}")
        limit = self.limits.get(kind)
        if limit is None:
            names = ", ".join(map(_name, self.limits))
            raise TraceFormatError(f"a frame of kind {_name(kind)} where one of {names} was expected")
        if length > limit:
            raise TraceFormatError(f"{length} bytes in a frame of kind {_name(kind)}, over the limit of {limit}")
        if flags & FLAG_BODY_UNCHECKED and not (self.may_waive and kind == _PAGE):
            raise TraceFormatError(f"a frame of kind {_name(kind)} without the crc32 of its body, which was not agreed")
        if self._stream_id is None:
            self._stream_id = stream_id
        if stream_id != self._stream_id and kind != Kind.ERROR:  # who refuses may not know the stream yet
            raise TraceFormatError(f"a frame of stream {stream_id.hex()} among those of {self._stream_id.hex()}")
        if sequence != self._sequence:
            raise TraceFormatError(f"frame number {sequence} where {self._sequence} was expected")
        self._sequence += 1
        self._header = kind, flags, crc
        self._needed = HEADER_SIZE + length


def _name(number: int) -> str:
    try:
        return Kind(number).name
    except ValueError:
        return str(number)


class Outbox:
    """What is to be sent, in order."""

    def __init__(self, stream_id: bytes) -> None:
        self.stream_id = stream_id
        self._sequence = 0
        self._buffers: deque[Buffer] = deque()
        self.put_total = 0
        """Bytes that were put in."""
        self.sent_total = 0
        """Bytes of those that were sent."""

    def __bool__(self) -> bool:
        return bool(self._buffers)

    def put(self, kind: Kind, body: bytes = b"") -> None:
        """A frame."""
        self._buffers.append(pack_frame_header(kind, self.stream_id, self._sequence, body) + body)
        self._sequence += 1
        self.put_total += HEADER_SIZE + len(body)

    def put_page(self, entry: bytes, data: Buffer, *, check_body: bool) -> int:
        """A page's frame, whose records stay where they are. Returns `put_total` after it."""
        length = len(entry) + len(data)
        begin, crc = (_CHECKED, crc32(data, crc32(entry))) if check_body else (_UNCHECKED, 0)
        header = _HEAD.pack(begin, length, crc, self.stream_id, self._sequence, 0)
        self._buffers += (header + _U32.pack(crc32(header)) + entry, data)
        self._sequence += 1
        self.put_total = total = self.put_total + HEADER_SIZE + length
        return total

    def pending(self) -> list[Buffer]:
        """The next buffers for a gathering write; empty if there is nothing to send."""
        buffers = self._buffers
        if len(buffers) <= BUFFERS_MAX:
            return list(buffers)
        return [buffers[index] for index in range(BUFFERS_MAX)]

    def sent(self, count: int) -> None:
        """So many bytes of `pending` were taken by the transport."""
        self.sent_total += count
        buffers = self._buffers
        while count:
            size = len(buffers[0])
            if count < size:
                buffers[0] = memoryview(buffers[0])[count:]
                return
            count -= size
            buffers.popleft()

    def clear(self) -> None:
        """The connection is over: no view of a page is kept."""
        self._buffers.clear()
