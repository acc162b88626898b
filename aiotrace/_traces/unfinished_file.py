"""The page source for an unfinished trace: while it grows, or after a crash.

    NAME.journal --> writer, place, events, losses, crc32 of each page --> `FoundPage`

Definitions come from the journal; there are no tables.
"""

from __future__ import annotations

import os
from collections.abc import Iterator

from .._base.errors import TraceFormatError
from .._formats.journal import PagePlacement
from .._page.definitions import Definition
from .._store.trace_files import journal_path
from .._store.unfinished import UnfinishedTrace
from .event_tables import UnclosedTables
from .page_sources import DAMAGE_MAX, CpuData, Damage, DamageLog, FoundPage, TraceBuffer, losses_after, with_writers_of

__all__ = ["UnfinishedSource"]


class UnfinishedSource(UnclosedTables):
    """A `PageSource` that grows; see the module's docstring."""

    def __init__(self, path: str) -> None:
        """
        Raises:
            OSError: A file cannot be read.
            TraceFormatError: The journal has no intact beginning.
        """
        super().__init__(path)
        self._page_damage = DamageLog()
        self._taken = 0
        self._writers: dict[int, list[PagePlacement]] = {}
        self._unread: dict[int, int] = {}
        self._told: set[int] = set()
        self._trace = UnfinishedTrace(path)
        try:
            self.info = self._trace.info
        except TraceFormatError:
            self._trace.close()
            raise
        self._sort()

    @property
    def size(self) -> int:
        """Bytes of the pages that are there."""
        return sum(buffer_cpu.size for buffer_cpu in self.buffers[0].cpus)

    @property
    def definitions(self) -> list[Definition]:
        """All that the journal has so far: append-only."""
        return self._trace.definitions

    @property
    def ended(self) -> bool:
        """Whether nothing more will be written: the stream has ended, or continues in another file."""
        return self._trace.ledger is not None or not os.path.exists(journal_path(self.path))

    @property
    def buffers(self) -> list[TraceBuffer]:
        size = self.info.page_size
        cpus = tuple(CpuData(writer, 0, len(pages) * size) for writer, pages in sorted(self._writers.items()))
        return [with_writers_of(self._trace.ledger, TraceBuffer("", self.info.clock, size, cpus))]

    @property
    def damage(self) -> list[Damage]:
        journal = [Damage(found.offset, f"the journal: {found.reason}") for found in self._trace.damage]
        return (journal + self._page_damage.found)[:DAMAGE_MAX]

    @property
    def damage_count(self) -> int:
        return len(self._trace.damage) + self._page_damage.count

    def note_damage(self, offset: int, message: str) -> None:
        """Count a page that could not be read."""
        self._page_damage.note(offset, message)

    def forget_page_damage(self) -> None:
        """The pages are read again, from the first."""
        self._page_damage.forget()
        self._unread.clear()
        self._told.clear()

    def refresh(self) -> bool:
        """Read what was added to the journal: pages, or the ledger, which says what is missing at the end."""
        self._unread = {writer: len(pages) for writer, pages in self._writers.items()}
        had_ledger = self._trace.ledger is not None
        self._trace.refresh()
        has_new_pages = self._sort()
        return has_new_pages or (self._trace.ledger is not None and not had_ledger)

    def _sort(self) -> bool:
        new = self._trace.pages[self._taken :]
        for placed in new:
            self._writers.setdefault(placed.entry.writer, []).append(placed)
        self._taken += len(new)
        return bool(new)

    def pages(self, buffer: TraceBuffer, cpu: CpuData) -> Iterator[FoundPage]:
        """The pages of one writer, in order."""
        for placed in self._writers.get(cpu.cpu, [])[self._unread.get(cpu.cpu, 0) :]:
            try:
                page = self._trace.read(placed)
            except (TraceFormatError, OSError) as error:
                message = error.message if isinstance(error, TraceFormatError) else str(error)
                yield FoundPage(placed.place, b"", message, placed.entry.events_count)
                continue
            yield FoundPage(placed.place, page.header() + page.data + page.lost_count())

    def losses_after(self, buffer: TraceBuffer, cpu: CpuData) -> list[tuple[int | None, str]]:
        """(count, reason) of what is missing after the last page of a writer; returned once in each reading."""
        if self._trace.ledger is None or cpu.cpu in self._told:
            return []
        self._told.add(cpu.cpu)
        return losses_after(self._trace.ledger, cpu.cpu)

    def close(self) -> None:
        self._trace.close()
