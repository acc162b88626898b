"""The page source for an arena, of a program that was killed or still runs.

    descriptors --plan, on opening--> the pages present then --copied again in each reading--> `FoundPage`

Pages that a running program reuses after the arena was opened are missing in later readings, and reported as lost.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from .._arena.file_reader import ArenaReader
from .._arena.scan import ArenaScan, DamagedPage, PageCandidate
from .._page.definitions import Definition
from .event_tables import UnclosedTables
from .page_sources import DAMAGE_MAX, CpuData, Damage, DamageLog, FoundPage, TraceBuffer

__all__ = ["ArenaSource"]


class ArenaSource(UnclosedTables):
    """A `PageSource`; see the module's docstring."""

    def __init__(self, path: str) -> None:
        """
        Raises:
            OSError: The file cannot be read.
            TraceFormatError: The file is not a valid arena.
        """
        super().__init__(path)
        self._damage = DamageLog()
        self._reader = ArenaReader(path)
        try:
            self._writers: dict[int, list[PageCandidate]] = {}
            for each in ArenaScan(self._reader, self._reader.header.writers).plan():
                if isinstance(each, DamagedPage):
                    self._damage.note(self._place(each.page), each.reason)
                else:
                    self._writers.setdefault(each.writer, []).append(each)
            self._reader.read_definitions()
        except BaseException:
            self.close()
            raise
        for found in self._reader.damage:
            self._damage.note(found.offset, f"the definitions: {found.reason}")
        self._damage.keep()
        self.info = self._reader.info
        size = self.info.page_size
        cpus = tuple(CpuData(writer, 0, len(pages) * size) for writer, pages in sorted(self._writers.items()))
        self.buffers = [TraceBuffer("", self.info.clock, size, cpus)]

    def _place(self, page: int) -> int:
        return self._reader.shape.first_page + page * self._reader.page_size

    @property
    def size(self) -> int:
        """Bytes of the pages that are there."""
        return sum(cpu.size for cpu in self.buffers[0].cpus)

    @property
    def ended(self) -> bool:
        """An arena is read as it was when it was opened."""
        return True

    def refresh(self) -> bool:
        """False: see `ended`."""
        return False

    @property
    def definitions(self) -> Sequence[Definition]:
        return self._reader.definitions

    @property
    def damage(self) -> list[Damage]:
        return self._damage.found[:DAMAGE_MAX]

    @property
    def damage_count(self) -> int:
        return self._damage.count

    def note_damage(self, offset: int, message: str) -> None:
        """Count a page that could not be read."""
        self._damage.note(offset, message)

    def forget_page_damage(self) -> None:
        """The pages are read again, from the first."""
        self._damage.forget()

    def pages(self, buffer: TraceBuffer, cpu: CpuData) -> Iterator[FoundPage]:
        """The pages of one writer, in order."""
        scan = ArenaScan(self._reader, self._reader.header.writers)
        for candidate in self._writers.get(cpu.cpu, ()):
            found = scan.copy(candidate)
            place = self._place(candidate.page)
            if isinstance(found, DamagedPage):
                yield FoundPage(place, b"", found.reason, 0)  # its events are counted by the next page's loss
            elif found is not None:
                yield FoundPage(place, found.header() + found.data + found.lost_count())

    def losses_after(self, buffer: TraceBuffer, cpu: CpuData) -> list[tuple[int | None, str]]:
        """Empty: an arena does not record what is missing after the last page."""
        return []

    def close(self) -> None:
        self._reader.close()
