"""Whole pages, many at once: what the journal says of them, packed and read in one call. Sans-IO.

    bodies of frames --pack_whole---> the frames, one after the other
    pages and parts  --pack_placed--> their frames
    a journal        --take_whole---> for each writer: how many pages side by side, and their rows for the trace.dat

This runs for every page, so it has twins in C (`_csrc/store/`). The law: **only what is as expected is taken**: a whole
page, in the place where its writer's next one belongs, its frame intact. Taking stops at anything else, and `journal`
and `_store/finish` look at that frame by itself; so they alone say what is damage and what that costs.
"""

from __future__ import annotations

import struct
from array import array
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final, NamedTuple, cast

from .._base.backend import c_module
from .._base.crc32 import crc32
from .._page import layout as L
from .._page.encode import pack_header, pack_lost_count
from .._page.entry import PageEntry
from . import tracedat as T
from .frames import HEADER_SIZE, MAGIC, VERSION, Buffer, Kind

__all__ = [
    "BODY_SIZE",
    "Expected",
    "Run",
    "pack_body",
    "pack_placed",
    "pack_whole",
    "python_pack_placed",
    "python_pack_whole",
    "python_take_whole",
    "take_whole",
]

_HEADER: Final = struct.Struct("<4sBBHII16sQI")
_BODY: Final = struct.Struct("<IIQQqIIIIQIIII")
_U32: Final = struct.Struct("<I")
_FRAME: Final = struct.Struct(_HEADER.format + _U32.format[1:] + _BODY.format[1:])
assert _HEADER.size + _U32.size == HEADER_SIZE
BODY_SIZE: Final = _BODY.size
"""Bytes of what a frame says of a page."""

if TYPE_CHECKING:
    Expected = array[int]
else:
    Expected = array  # which takes no argument before Python 3.12
"""For each writer (array("Q")) the place of its next page, plus 1 if that is in its spool; 0: none is expected."""


class Run(NamedTuple):
    """Whole pages of one writer, side by side."""

    writer: int
    place: int
    """Offset of the first in its file, in bytes."""
    pages: int
    events: int
    committed: int
    """Bytes of records, of all."""
    lost: int
    """Events lost before and between them."""
    rows: bytes
    """A `PageRow` for each, packed."""
    end: tuple[int, int]
    """The number of the last, and bytes of records up to its end."""
    timestamp: int
    """Nanoseconds: the last one's."""


def python_pack_placed(stream_id: bytes, sequence: int, placed: list[Any]) -> bytes:
    """The frames of pages.

    Args:
        sequence: Number of the first frame.
        placed: `_formats/journal.PagePlacement`, each.
    """
    frames: list[bytes] = []
    for number, each in enumerate(placed, sequence):
        body = pack_body(*each)
        frames += _pack_header(body, stream_id, number), body
    return b"".join(frames)


def pack_body(entry: PageEntry, spooled: bool, place: int, start: int, crc_before: int, crc: int) -> bytes:
    """What a frame says of a page; the arguments are a `_formats/journal.PagePlacement`."""
    writer, page, offset, complete, events, lost, definitions, timestamp, committed = entry
    return _BODY.pack(
        writer, 1 if complete else 0, page, timestamp, lost, offset, events, definitions, committed,
        place, 1 if spooled else 0, start, crc_before, crc,
    )  # fmt: skip


def _pack_header(body: bytes, stream_id: bytes, number: int) -> bytes:
    header = _HEADER.pack(MAGIC, VERSION, Kind.PLACED, 0, len(body), crc32(body), stream_id, number, 0)
    return header + _U32.pack(crc32(header))


def python_pack_whole(stream_id: bytes, sequence: int, bodies: bytes) -> bytes:
    """The frames that have these bodies; the other arguments as those of `pack_placed`."""
    frames: list[bytes] = []
    for number, at in enumerate(range(0, len(bodies), BODY_SIZE), sequence):
        body = bodies[at : at + BODY_SIZE]
        frames += _pack_header(body, stream_id, number), body
    return b"".join(frames)


def python_take_whole(data: Buffer, stream_id: bytes, page_size: int, expected: Expected) -> tuple[int, int, list[Run]]:
    """The whole pages at the beginning of `data`, up to the first frame that is not as expected.

    Args:
        data: What follows the frames that were read.
        expected: Is moved on.

    Returns:
        Bytes of the frames that were taken; the number of the frame that comes next; the runs, by writer.
    """
    found: dict[int, list[Run]] = {}
    next_frame = 0
    for at in range(0, len(data) - _FRAME.size + 1, _FRAME.size):
        fields = _FRAME.unpack_from(data, at)
        if not _is_expected(fields, bytes(data[at : at + _FRAME.size]), stream_id, page_size, expected):
            break
        writer, _, sequence, timestamp, lost, offset, events, _, committed, place, _, _, _, crc = fields[10:]
        expected[writer] += page_size
        next_frame = fields[7] + 1
        crc = T.page_crc(crc, pack_header(timestamp, committed, lost), pack_lost_count(lost))
        row = T.pack_page_rows([T.PageRow(sequence, writer, events, crc, 0)])
        run = Run(writer, place, 1, events, committed, lost, row, (sequence, offset + committed), timestamp)
        found.setdefault(writer, []).append(run)
    runs = [_joined(found[writer]) for writer in sorted(found)]
    return sum(run.pages for run in runs) * _FRAME.size, next_frame, runs


def _joined(runs: list[Run]) -> Run:
    last = runs[-1]
    return Run(
        last.writer, runs[0].place, len(runs), sum(run.events for run in runs), sum(run.committed for run in runs),
        sum(run.lost for run in runs), b"".join(run.rows for run in runs), last.end, last.timestamp,
    )  # fmt: skip


def _is_expected(fields: tuple[Any, ...], frame: bytes, stream_id: bytes, page_size: int, expected: Expected) -> bool:
    magic, version, kind, flags, length, body_crc, stream, _, _, header_crc, writer, entry_flags = fields[:12]
    _, _, lost, offset, _, _, committed, place, spooled, start, _, _ = fields[12:]
    if (magic, version, kind, flags, length, stream) != (MAGIC, VERSION, Kind.PLACED, 0, _BODY.size, stream_id):
        return False
    if writer >= len(expected) or spooled > 1 or place % page_size or not expected[writer] == place + spooled > 0:
        return False
    if entry_flags != 1 or start or lost < 0 or offset + committed > L.PAGE_SIZE_MAX - L.PAGE_HEADER_SIZE:
        return False
    size = L.PAGE_HEADER_SIZE + committed
    if size > page_size or (spooled and size + len(pack_lost_count(lost)) + L.BLOCK <= page_size):
        return False  # what a page of a spool leaves empty must not be copied
    return (header_crc, body_crc) == (crc32(frame[: _HEADER.size]), crc32(frame[HEADER_SIZE:]))


def _c_take_whole(data: Buffer, stream_id: bytes, page_size: int, expected: Expected) -> tuple[int, int, list[Run]]:
    assert c_module is not None
    taken, next_frame, runs = c_module.take_whole(data, stream_id, page_size, expected)
    return taken, next_frame, [Run(*run) for run in runs]


pack_placed: Final = cast(
    "Callable[[bytes, int, list[Any]], bytes]", getattr(c_module, "pack_placed", python_pack_placed)
)
pack_whole: Final = cast("Callable[[bytes, int, bytes], bytes]", getattr(c_module, "pack_whole", python_pack_whole))
take_whole: Final = python_take_whole if c_module is None else _c_take_whole
