"""Reads the file of an arena, after its program was killed or while it lives. Changes nothing.

    header --shape--> definitions --frames--> tables          descriptors, pages --`_arena/scan`--> copies of pages

Invariant (held by tests/arena/test_file.py): no length in the file is trusted. Every part must be where the version
says, within the file, so memory is bounded by 16 MiB of definitions and a page. The file is not mapped: if it were
truncated while it is read, SIGBUS would kill the reader.
"""

from __future__ import annotations

import errno
import os
import struct
from collections import deque
from collections.abc import Iterator, Mapping
from typing import Final

from .._base.clock import MONO, Anchor
from .._base.errors import TraceFormatError
from .._formats.frames import Damage
from .._formats.journal import JournalReader
from .._page import layout as L
from .._page.definitions import Definition
from .._page.entry import PageCopy
from .._ring.arena import REFUSED
from ..abc import StreamInfo
from .file import HEADER_SIZE, READ, Header, is_owned, unpack_header
from .scan import ArenaScan, DamagedPage, PageCandidate, Position, with_definitions

_DESCRIPTOR: Final = struct.Struct(f"={L.DESCRIPTOR_WORDS}Q")
_STATE: Final = struct.Struct("=QQ")
_U64: Final = struct.Struct("=Q")
_CHUNK: Final = 1 << 20


class ArenaReader:
    """A context manager that implements `_arena/scan.Memory` over a file."""

    def __init__(self, path: str) -> None:
        """
        Raises:
            OSError: The file cannot be opened.
            TraceFormatError: Not an arena that can be read; the message says why.
        """
        self.path = path
        self.fd = os.open(path, READ)
        try:
            self.header: Header = unpack_header(os.pread(self.fd, HEADER_SIZE, 0), os.fstat(self.fd).st_size)
        except TraceFormatError as error:
            self.close()
            raise error.at(path) from None
        except BaseException:
            self.close()
            raise
        self.shape = self.header.shape
        self.page_size, self.pages = self.shape.page_size, self.shape.pages
        self.definitions_refused = 0
        """Definitions that did not fit into the arena, so far."""
        self._journal = JournalReader()

    @property
    def info(self) -> StreamInfo:
        """What is true of the whole stream; if the definitions are damaged, only what the header has."""
        info, header = self._journal.info, self.header
        anchor = Anchor(header.monotonic_ns, header.realtime_ns, header.boot_id)
        if info is not None and (info.stream_id, info.page_size) == (header.stream_id, self.page_size):
            return info
        return StreamInfo(header.stream_id, self.page_size, header.writers, MONO, anchor, header.pid, "", "")

    @property
    def definitions(self) -> list[Definition]:
        """The definitions as of the last `read_definitions`."""
        return self._journal.definitions

    @property
    def damage(self) -> list[Damage]:
        """Damage of the definitions; offsets are in the file."""
        start = self.shape.definitions
        return [Damage(start + found.offset, found.length, found.reason) for found in self._journal.damage]

    @property
    def is_alive(self) -> bool:
        """Whether its process lives and still records."""
        return is_owned(self.fd)

    @property
    def is_delivered(self) -> bool:
        """Whether another process has delivered all that is in it."""
        return _U64.unpack(self._read(L.ARENA_READER, _U64.size)) == (L.ARENA_DELIVERED,)

    def refused_events(self, writer: int) -> tuple[int, ...]:
        """The events that a writer refused until now, by cause as in `_ring/writer.CAUSES`."""
        if writer >= min(self.header.writers, L.ARENA_COUNTED_WRITERS):
            return ()
        return REFUSED.unpack(self._read(L.ARENA_REFUSED_EVENTS + writer * REFUSED.size, REFUSED.size))

    def read_definitions(self) -> None:
        """Read new definitions. Call it after `plan`, so that no page in the plan needs a missing one."""
        used, self.definitions_refused = _STATE.unpack(self._read(L.ARENA_USED, _STATE.size))
        used = min(used, self.shape.definitions_size)
        while self._journal.fed < used:
            size = min(_CHUNK, used - self._journal.fed)
            data = self._read(self.shape.definitions + self._journal.fed, size)
            final = self._journal.fed + size == used
            deque(self._journal.feed(data, final=final), maxlen=0)  # the journal in an arena has no page frames

    # --- memory -----------------------------------------------------------------------------------

    def descriptor(self, page: int) -> tuple[int, ...]:
        """All words of a page's descriptor."""
        place = self.shape.descriptors + page * L.DESCRIPTOR_SIZE
        return _DESCRIPTOR.unpack(self._read(place, L.DESCRIPTOR_SIZE))

    def read(self, page: int, offset: int, size: int) -> bytes:
        """Some bytes of a page."""
        return self._read(self.shape.first_page + page * self.page_size + offset, size)

    def _read(self, offset: int, size: int) -> bytes:
        data = os.pread(self.fd, size, offset)
        if len(data) != size:
            raise OSError(errno.EIO, f"{size} bytes should be at {offset}, {len(data)} are: it was cut", self.path)
        return data

    def scan(self, seen: Mapping[int, Position] | None = None) -> Iterator[PageCopy | DamagedPage]:
        """What is on its pages now. The definitions that these need are read before this returns.

        Args:
            seen: Per writer, how far its stream is stored elsewhere: that is left out.
        """
        scan = ArenaScan(self, self.header.writers, seen=seen)
        plan = scan.plan()
        self.read_definitions()
        return self._copies(scan, plan)

    def _copies(self, scan: ArenaScan, plan: list[PageCandidate | DamagedPage]) -> Iterator[PageCopy | DamagedPage]:
        for each in plan:
            found = each if isinstance(each, DamagedPage) else scan.copy(each)
            if isinstance(found, PageCopy):
                yield with_definitions(found, len(self.definitions))
            elif found is not None:
                yield found

    # ----------------------------------------------------------------------------------------------

    def close(self) -> None:
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1

    def __enter__(self) -> ArenaReader:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
