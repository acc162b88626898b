"""A batch of whole pages into the files of a trace, and their frames into its journal: in one call. Blocking file I/O.

    pages of writers 1, 4, 1, 1, 4 ...  --+--> lane of 1: crc32, pwritev where its next page belongs
                                          +--> lane of 4: the same in its spool
                                          +--> when all are written: their frames, one pwritev to the journal

This runs for every batch of a busy program, so `_csrc/store/batch_write.c` does it in C, which lets others have
the interpreter once for the whole batch: each time that it is asked back, a busy thread may keep it for up to 5 ms.

The laws. **Only what is as expected is written**: whole pages of writers that have a lane, from their beginning on,
each in the order of its writer, and each but a lane's last fills its page of the file. Of anything else nothing is
written, and `_store` looks at each page. **Pages first, then frames**: where a page could not be written no frame is.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from operator import itemgetter
from typing import Any, Final, NamedTuple, cast

from .._base.backend import c_module
from .._base.crc32 import crc32
from .._formats.journal import PagePlacement, Positions
from .._formats.journal_runs import pack_body, pack_whole
from .._page import layout as L
from .._page.encode import pack_header, pack_lost_count
from .._page.entry import PageEntry
from .trace_files import Buffer, TraceFiles, reserve_for, write_most

__all__ = ["Lane", "LaneEnd", "Outcome", "open_lanes", "python_write_whole", "write_whole"]

_WRITER: Final = itemgetter(PageEntry._fields.index("writer"))


class Lane(NamedTuple):
    """Where the pages of one writer go."""

    writer: int
    first: int
    """The least number that its next page may have."""
    fd: int
    place: int
    """Of its next page, in bytes."""
    spooled: bool
    reserved: int
    """Bytes of the file for which there are blocks."""


def open_lanes(
    entries: Sequence[PageEntry],
    files: TraceFiles,
    page_size: int,
    in_place: int,
    stored: Positions,
    last: Mapping[int, PagePlacement],
    reserved: Mapping[int, int],
) -> tuple[Lane, ...] | None:
    """Where the next pages of the writers of these entries go; None if a spool cannot be opened.

    Args:
        in_place: The writer whose pages go into the trace itself.
        stored: By writer, how far its stream is stored.
        last: By writer, its last page in these files.
        reserved: By descriptor, the offset up to which blocks are allocated.
    """
    lanes: list[Lane] = []
    for writer in dict.fromkeys(map(_WRITER, entries)):
        spooled = writer != in_place
        try:
            fd = files.spool(writer) if spooled else files.data
        except OSError:
            return None
        position, page = stored.get(writer), last.get(writer)
        first = position[0] + 1 if position is not None else 0
        place = page.place + page_size if page is not None else 0 if spooled else page_size
        lanes.append(Lane(writer, first, fd, place, spooled, reserved.get(fd, 0)))
    return tuple(lanes)


class LaneEnd(NamedTuple):
    """What was written in a lane."""

    last: int
    """Which page of the batch was the lane's last; -1: none is its."""
    pages: int
    """Of the batch."""
    whole: int
    """How many of these are whole in the file."""
    reserved: int


class Outcome(NamedTuple):
    """Of a batch that was as expected."""

    bodies: bytes
    """Of the pages' frames, in the order of the batch."""
    lanes: tuple[LaneEnd, ...]
    error: OSError | None
    """Why pages are not written; then none is in the journal."""
    journal_error: OSError | None
    """Why the frames are not in the journal, or not all."""


@dataclass(slots=True)
class _LaneState:
    """A lane on the way."""

    lane: Lane
    first: int
    buffers: list[Buffer]
    pages: int = 0
    last: int = -1
    is_open: bool = True
    """The page before fills its page of the file."""


def python_write_whole(
    entries: tuple[PageEntry, ...],
    data: tuple[Buffer, ...],
    lanes: tuple[Lane, ...],
    page_size: int,
    stream_id: bytes,
    sequence: int,
    prefix: bytes,
    journal: int,
    journal_end: int,
) -> Outcome | None:
    """
    Args:
        entries: What is said of each page.
        data: The records of each.
        lanes: Of all writers that have a page here.
        sequence: Number of the first page's frame.
        prefix: Frames that stand before those of the pages.
        journal: Its descriptor, and where to write.

    Returns:
        None, without effect, if the pages are not as expected.
    """
    paths = {lane.writer: _LaneState(lane, lane.first, []) for lane in lanes}
    bodies: list[bytes] = []
    for number, (entry, records) in enumerate(zip(entries, data, strict=True)):
        body = _add_page(paths, number, entry, records, page_size)
        if body is None:
            return None
        bodies.append(body)
    ends: list[LaneEnd] = []
    error: OSError | None = None
    for path in paths.values():
        lane, whole, reserved = path.lane, 0, path.lane.reserved
        if path.pages and error is None:
            reserved = reserve_for(lane.fd, lane.place, lane.place + path.pages * page_size, reserved)
            written, error = write_most(lane.fd, path.buffers, lane.place)
            whole = path.pages if error is None else written // page_size
        ends.append(LaneEnd(path.last, path.pages, whole, reserved))
    outcome = Outcome(b"".join(bodies), tuple(ends), error, None)
    if error is not None:
        return outcome
    frames = prefix + pack_whole(stream_id, sequence, outcome.bodies)
    return outcome._replace(journal_error=write_most(journal, [frames], journal_end)[1])


def _add_page(
    paths: dict[int, _LaneState], number: int, entry: PageEntry, records: Buffer, page_size: int
) -> bytes | None:
    """Put a page into its lane; returns the body of its frame. None: it is not as expected."""
    path = paths.get(entry.writer)
    size = L.PAGE_HEADER_SIZE + entry.committed
    if entry.offset or entry.lost_before < 0 or len(records) != entry.committed:
        return None
    if path is None or not path.is_open or entry.sequence < path.first or size + L.LOST_COUNT_SIZE > page_size:
        return None
    lost_count = pack_lost_count(entry.lost_before)
    size += len(lost_count)
    rest = -size % L.BLOCK
    header = pack_header(entry.timestamp, entry.committed, entry.lost_before)
    path.buffers += header, records, lost_count + bytes(rest)
    place = path.lane.place + path.pages * page_size
    path.is_open = size + rest == page_size
    path.first = entry.sequence + 1
    path.last = number
    path.pages += 1
    return pack_body(entry, path.lane.spooled, place, 0, 0, crc32(records))


def _c_write_whole(*arguments: Any) -> Outcome | None:
    assert c_module is not None
    outcome = c_module.write_whole(*arguments)
    if outcome is None:
        return None
    bodies, lanes, error, journal_error = outcome
    return Outcome(bodies, tuple([LaneEnd(*lane) for lane in lanes]), error, journal_error)


write_whole: Final = python_write_whole if c_module is None else cast("Callable[..., Outcome | None]", _c_write_whole)
