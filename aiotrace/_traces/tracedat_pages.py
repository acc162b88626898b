"""The pages of a trace.dat, by CPU: plain or compressed, and checked if there is a crc32.

    plain         page page page ...                     read in batches, compared with the rows of aiotrace's option
    compressed    count | size size piece | size size piece ...

Damage is local: a damaged page is returned with its problem; a damaged piece is noted and loses only its own pages.
This module knows nothing of records.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import Final

from .._base.crc32 import crc32
from .._base.errors import TraceFormatError
from .._formats.tracedat import PAGE_DAMAGED, PageRow, pack_page_rows, page_crc, unpack_page_rows
from .._page import layout as L
from .checked_bytes import ByteCursor, Expand, Source
from .page_sources import CpuData, DamageLog, FoundPage, PageShape, TraceBuffer

__all__ = ["CHUNK_MAX", "FilePages"]

CHUNK_MAX: Final = 8 << 20
"""The largest piece of compressed pages, in bytes after decompression. trace-cmd packs 10 pages into one."""
BATCH_SIZE: Final = 1 << 18
"""Bytes of pages read at once."""

_ROW_SIZE: Final = len(pack_page_rows([PageRow(0, 0, 0, 0, 0)]))
_ROWS_AT_ONCE: Final = 1024


class FilePages:
    """Reads a file's pages.

    Args:
        listed: The rows of aiotrace's own option, one for each page; None if there is no such option.
        damage: Where unreadable parts are noted.
    """

    def __init__(
        self,
        source: Source,
        shape: PageShape,
        listed: bytes | None,
        expand: Expand,
        damage: DamageLog,
    ) -> None:
        self._source = source
        self._shape = shape
        self._listed = listed
        self._expand = expand
        self._damage = damage

    def pages(self, buffer: TraceBuffer, cpu: CpuData) -> Iterator[FoundPage]:
        """The pages of one CPU, in order; what cannot be read is noted as damage."""
        if buffer.compressed:
            yield from self._compressed_pages(buffer, cpu)
            return

        # A batch is whole pages; each is compared with its row of aiotrace's option, if there is one.
        rows = self._rows(buffer, cpu)
        size = buffer.page_size
        batch = max(BATCH_SIZE // size, 1) * size
        position, end = cpu.offset, cpu.offset + cpu.size
        while position < end:
            data = self._source.read_some(position, min(batch, end - position))
            for at in range(0, len(data), size):
                page = FoundPage(position + at, data[at : at + size])
                yield _checked(page, next(rows, None), self._shape) if rows is not None else page
            position += len(data)
            if len(data) < batch and position < end:
                self._damage.note(position, f"CPU {cpu.cpu}: pages up to {end} should follow, the file ends here")
                return

    def _rows(self, buffer: TraceBuffer, cpu: CpuData) -> Iterator[PageRow] | None:
        """The rows of aiotrace's own option for this CPU's pages; None if there is no such option."""
        content = self._listed
        if content is None:
            return None
        before = 0
        for other in buffer.cpus:
            if other == cpu:
                break
            before += other.size // buffer.page_size
        begin, end = before * _ROW_SIZE, (before + cpu.size // buffer.page_size) * _ROW_SIZE
        return (
            row
            for at in range(begin, min(end, len(content)), _ROWS_AT_ONCE * _ROW_SIZE)
            for row in unpack_page_rows(content[at : min(at + _ROWS_AT_ONCE * _ROW_SIZE, end)])
        )

    def _compressed_pages(self, buffer: TraceBuffer, cpu: CpuData) -> Iterator[FoundPage]:
        # trace-cmd's size leaves out the count at the beginning.
        position, end = cpu.offset, min(cpu.offset + 4 + cpu.size, self._source.size)
        if not cpu.size:
            return
        try:
            count = ByteCursor(self._source.read(position, 4), self._shape.byte_order).u32()
            position += 4
            for _ in range(count):
                packed_size, size = struct.unpack(self._shape.byte_order + "II", self._source.read(position, 8))
                # Both sizes are checked before anything is read or allocated.
                if packed_size > end - position - 8 or size > CHUNK_MAX:
                    raise TraceFormatError(f"{packed_size} bytes that become {size} should follow", offset=position)
                data = self._source.read(position + 8, packed_size)

                try:
                    expanded = self._expand(data, size)
                except TraceFormatError as error:  # the next piece can still be read
                    self._damage.note(position, f"CPU {cpu.cpu}: {error.message}")
                    expanded = b""
                for at in range(0, len(expanded), buffer.page_size):
                    yield FoundPage(position, expanded[at : at + buffer.page_size])
                position += 8 + packed_size
        except TraceFormatError as error:
            self._damage.note(position, f"CPU {cpu.cpu}: {error.message}")


def _checked(page: FoundPage, row: PageRow | None, shape: PageShape) -> FoundPage:
    """The page, with the problem that its row shows, if any."""
    if row is None:
        return FoundPage(page.offset, page.data, "the file does not list this page")
    if row.flags & PAGE_DAMAGED:
        return FoundPage(page.offset, page.data, "it was damaged before the file was closed", row.events_count)
    if _crc_of(page.data, shape) != row.crc:
        return FoundPage(page.offset, page.data, "its crc is another one", row.events_count)
    return page


def _crc_of(page: bytes, shape: PageShape) -> int:
    """The crc32 of a page, over the records that its header states; -1 if it is too short for a header."""
    start = shape.data_offset
    if len(page) < start:
        return -1
    commit = struct.unpack_from(shape.byte_order + "I", page, 8)[0]
    end = start + (commit & L.COMMIT_MASK)
    counted = commit & L.COMMIT_MISSED_EVENTS and commit & L.COMMIT_MISSED_STORED
    lost_count = page[end : end + L.LOST_COUNT_SIZE] if counted else b""
    return page_crc(crc32(page[start:end]), page[:start], lost_count)
