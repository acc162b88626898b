"""The journal: what stands in a trace that is not finished yet. Sans-IO, append-only.

    hello | definitions | placed | placed | definitions | placed | ... | end
                             |
                             +--> writer, sequence, place, events, losses, crc32 of the records

It is made of stream frames (`_formats/frames`) whose page frames have no body: the records are where
`PagePlacement` says, in the trace itself or in the spool of their writer. The law: **a page is in
the trace when its `placed` frame is in the journal, whole**; whatever else lies in the files is not
there. So a journal cut anywhere is a journal, and a torn tail is no damage to what stands before
it.

The same holds for each part of a page that comes in parts. They have one place, and the crc32 goes
on from part to part: each can be checked alone, and the last one's is that of the page.

This module knows no file: `_store` writes them, `_store/unfinished` and `_store/finish` read them.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Final, NamedTuple

from .._base.crc32 import crc32
from .._base.errors import TraceFormatError
from .._page import layout as L
from .._page.definitions import Definition
from .._page.entry import PageEntry
from ..abc import Ledger, StreamInfo
from .frames import (
    HEADER_SIZE,
    PAGE_ENTRY_SIZE,
    Buffer,
    Damage,
    Frame,
    FrameReader,
    Kind,
    encode_frame,
    pack_definitions,
    pack_end,
    pack_hello,
    pack_page_entry,
    pack_positions,
    unpack_definitions,
    unpack_end,
    unpack_hello,
    unpack_page_entry,
    unpack_positions,
)
from .journal_runs import BODY_SIZE, Expected, Run, pack_placed, pack_whole, take_whole

_PLACE = struct.Struct("<QIIII")
_CHECKPOINT = struct.Struct("<QQII")
_NO_WRITER: Final = (1 << 32) - 1
PLACED_SIZE: Final = HEADER_SIZE + PAGE_ENTRY_SIZE + _PLACE.size
"""Bytes that a page, or a part of one, takes in the journal."""

Position = tuple[int, int]
"""How far a writer's stream has come: the number of a page, and bytes of its records."""
Positions = dict[int, Position]
"""By writer."""


class PagePlacement(NamedTuple):
    """A page, or a part of one, and where it is."""

    entry: PageEntry
    spooled: bool
    """False: in the trace itself. True: in the spool of its writer."""
    place: int
    """Offset of the page's header in that file, in bytes; always a multiple of the page size."""
    start: int
    """Bytes of records that stand before these at this place. Other than `entry.offset` if the
    beginning of the page is in an earlier file."""
    crc_before: int
    """crc32 of those; 0 if there are none."""
    crc: int
    """crc32 of all records at this place up to the end of these."""

    @classmethod
    def of(
        cls, entry: PageEntry, spooled: bool, place: int, data: Buffer, start: int = 0, crc_before: int = 0
    ) -> PagePlacement:
        """With the crc32 of the records."""
        return cls(entry, spooled, place, start, crc_before, crc32(data, crc_before))

    @classmethod
    def of_body(cls, entry: PageEntry, bodies: bytes, number: int) -> PagePlacement:
        """From the bodies of frames, one after the other, of which this is the page's."""
        place, spooled, start, crc_before, crc = _PLACE.unpack_from(bodies, number * BODY_SIZE + PAGE_ENTRY_SIZE)
        return cls(entry, bool(spooled), place, start, crc_before, crc)

    @property
    def records_place(self) -> int:
        """Offset of the records in that file, in bytes."""
        return self.place + L.PAGE_HEADER_SIZE + self.start

    @property
    def end(self) -> Position:
        """How far its writer's stream has come with it."""
        return self.entry.sequence, self.entry.offset + self.entry.committed

    def check(self, data: Buffer) -> bool:
        """Whether these are the records that were written."""
        return len(data) == self.entry.committed and crc32(data, self.crc_before) == self.crc


class Checkpoint(NamedTuple):
    """What a journal has said so far."""

    pages: int
    """Places that are taken."""
    definitions: int
    in_place: int | None
    """The writer whose pages are in the trace itself."""
    last: list[PagePlacement]
    """The last page of each writer, or part of one."""
    stored: Positions


class JournalWriter:
    """Makes the bytes to append. The caller appends them in this order, whole, or says `rewind`."""

    def __init__(self, info: StreamInfo, *, after: JournalReader | None = None) -> None:
        """
        Args:
            after: What the journal holds already.
        """
        self._info = info
        self._sequence = after.frames_count if after is not None else 0
        self.definitions_count = after.definitions_count if after is not None else 0
        """Definitions that are in the journal."""

    def mark(self) -> tuple[int, int]:
        """The state now, for `rewind`."""
        return self._sequence, self.definitions_count

    def rewind(self, mark: tuple[int, int]) -> None:
        """What was encoded since `mark` did not get into the file."""
        self._sequence, self.definitions_count = mark

    def hello(self) -> bytes:
        return self._frame(Kind.HELLO, pack_hello(self._info))

    def definitions(self, definitions: Sequence[Definition], count: int) -> bytes:
        """Those of the first `count` that are not in the journal yet."""
        first = self.definitions_count
        if count <= first:
            return b""
        new = definitions[first:count]
        self.definitions_count = first + len(new)
        return b"".join(self._frame(Kind.DEFINITIONS, body) for body in pack_definitions(first, new))

    def placed(self, placed: list[PagePlacement]) -> bytes:
        frames = pack_placed(self._info.stream_id, self._sequence, placed)
        self._sequence += len(placed)
        return frames

    def whole(self, bodies: bytes) -> bytes:
        """The same for pages of which there is what their frames say."""
        frames = pack_whole(self._info.stream_id, self._sequence, bodies)
        self._sequence += len(bodies) // BODY_SIZE
        return frames

    @property
    def sequence(self) -> int:
        """The number of the next frame."""
        return self._sequence

    def pass_over(self, frames: int) -> None:
        """So many frames were made elsewhere, numbered from `sequence` on."""
        self._sequence += frames

    def checkpoint(self, pages: int, in_place: int | None, last: Iterable[PagePlacement], stored: Positions) -> bytes:
        """What the frames before it come to."""
        bodies = [
            pack_page_entry(each.entry)
            + _PLACE.pack(each.place, int(each.spooled), each.start, each.crc_before, each.crc)
            for each in last
        ]
        place = _NO_WRITER if in_place is None else in_place
        head = _CHECKPOINT.pack(pages, self.definitions_count, place, len(bodies))
        return self._frame(Kind.CHECKPOINT, b"".join((head, *bodies, pack_positions(stored))))

    def stored(self, positions: Mapping[int, Position]) -> bytes:
        """How far each writer's stream has come elsewhere; nothing if there is nothing to say."""
        return self._frame(Kind.STORED, pack_positions(positions)) if positions else b""

    def end(self, ledger: Ledger) -> bytes:
        return self._frame(Kind.END, pack_end(ledger))

    def _frame(self, kind: Kind, body: bytes) -> bytes:
        frame = encode_frame(kind, self._info.stream_id, self._sequence, body)
        self._sequence += 1
        return frame


class JournalReader:
    """What a journal says, as far as it was fed."""

    def __init__(self, info: StreamInfo | None = None, *, offset: int = 0) -> None:
        """
        Args:
            info: The stream, and `offset` the place of a checkpoint: the frames before it will not
                be fed.
        """
        self._frames = FrameReader()
        self._frames.offset = offset
        self.start = offset
        """Where reading began; 0: at the journal's beginning."""
        self.fed = offset
        """Bytes that were given to it."""
        self.info = info
        """None until hello was read."""
        self.checkpoint: Checkpoint | None = None
        """The last one."""
        self.definitions: list[Definition] = []
        self.definitions_missing = 0
        """Definitions that damage has cost."""
        self.ledger: Ledger | None = None
        """None until the stream's end was read."""
        self.stored: Positions = {}
        """By writer, what `Kind.STORED` says: how far its stream had come in the files before
        this one; at the end of a trace.dat, how far it has come with it."""
        self.frames_count = 0
        """The number of the next frame."""
        self.damage: list[Damage] = []

    def feed(self, data: Buffer, *, final: bool = False) -> Iterator[PagePlacement]:
        """The pages that `data` completes, in the order in which they were written.

        Args:
            data: The bytes that follow those fed before.
            final: No more is coming: an incomplete frame is damage, not the next one's beginning.
        """
        self._frames.feed(data)
        self.fed += len(data)
        for item in self._frames.frames(final=final):
            if (placed := self._take(item)) is not None:
                yield placed

    def feed_runs(self, data: Buffer, expected: Expected, *, final: bool = False) -> Iterator[PagePlacement | Run]:
        """As `feed`, but pages that are `expected` come many at once. It is looked at again
        after each that is not."""
        self._frames.feed(data)
        self.fed += len(data)
        frames = self._frames.frames(final=final)
        while True:
            if expected and self.info is not None:
                size, count, runs = take_whole(self._frames.pending, self.info.stream_id, self.info.page_size, expected)
                if size:
                    self._frames.pass_over(size)
                    self.frames_count = count
                    yield from runs
            item = next(frames, None)
            if item is None:
                return
            if (placed := self._take(item)) is not None:
                yield placed

    def _take(self, item: Frame | Damage) -> PagePlacement | None:
        if isinstance(item, Damage):
            self.damage.append(item)
            return None
        self.frames_count = item.sequence + 1
        try:
            return self._read(item)
        except TraceFormatError as error:
            self.damage.append(Damage(item.offset, len(item.body), str(error)))
            return None

    @property
    def definitions_count(self) -> int:
        """Those that were read, and those that damage has cost."""
        return len(self.definitions) + self.definitions_missing

    @property
    def end(self) -> int:
        """Bytes up to the end of the last whole frame, or of damage."""
        return self._frames.offset

    def forget_incomplete(self) -> None:
        """Feed again from `fed`, which goes back to the end of the last whole frame."""
        self._frames.forget_incomplete()
        self.fed = self._frames.offset

    def _read(self, frame: Frame) -> PagePlacement | None:
        match frame.kind:
            case Kind.PLACED:
                return self._unpack_placed(frame.body)
            case Kind.HELLO:
                self.info = unpack_hello(frame.body)
            case Kind.DEFINITIONS:
                first, definitions = unpack_definitions(frame.body)
                self._define(first, definitions)
            case Kind.STORED:
                self.stored.update(unpack_positions(frame.body))
            case Kind.END:
                self.ledger = unpack_end(frame.body)
            case Kind.CHECKPOINT:
                self.checkpoint = checkpoint = self._unpack_checkpoint(frame.body)
                self.definitions_missing = max(self.definitions_missing, checkpoint.definitions - len(self.definitions))
            case _:
                raise TraceFormatError(f"a frame of kind {frame.kind.name} does not belong into a journal")
        return None

    def _define(self, first: int, definitions: list[Definition]) -> None:
        known = self.definitions_count
        self.definitions_missing += max(0, first - known)
        self.definitions += definitions[max(0, known - first) :]

    def _unpack_checkpoint(self, body: bytes) -> Checkpoint:
        size = PAGE_ENTRY_SIZE + _PLACE.size
        if len(body) < _CHECKPOINT.size:
            raise TraceFormatError(f"a checkpoint of {len(body)} bytes, not {_CHECKPOINT.size} at least")
        pages, definitions, in_place, count = _CHECKPOINT.unpack_from(body)
        end = _CHECKPOINT.size + count * size
        if end > len(body):
            raise TraceFormatError(f"a checkpoint of {len(body)} bytes; {count} pages take {end}")
        last = [self._unpack_placed(body[at : at + size]) for at in range(_CHECKPOINT.size, end, size)]
        place = None if in_place == _NO_WRITER else in_place
        return Checkpoint(pages, definitions, place, last, unpack_positions(body[end:]))

    def _unpack_placed(self, body: bytes) -> PagePlacement:
        entry = unpack_page_entry(body)
        if len(body) != PAGE_ENTRY_SIZE + _PLACE.size:
            raise TraceFormatError(f"{len(body)} bytes where {PAGE_ENTRY_SIZE + _PLACE.size} say where a page is")
        place, spooled, start, crc_before, crc = _PLACE.unpack_from(body, PAGE_ENTRY_SIZE)
        if self.info is None:
            raise TraceFormatError("a page before hello: its size is unknown")
        if place % self.info.page_size or entry.writer >= self.info.writers:
            raise TraceFormatError(f"a page of writer {entry.writer} at {place} cannot be")
        if start + entry.committed > self.info.page_size - L.PAGE_HEADER_SIZE:
            raise TraceFormatError(f"{start} + {entry.committed} bytes of records on a page of {self.info.page_size}")
        return PagePlacement(entry, bool(spooled), place, start, crc_before, crc)
