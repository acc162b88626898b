"""What a trace is read from, whichever kind of file it is: buffers, their CPUs and pages, and damage.

    PageSource  --buffers-->  TraceBuffer ""  --+-- CpuData 0 (offset, size)  --pages-->  FoundPage  FoundPage  ...
                                                `-- CpuData 1

`TraceDatSource`, `UnfinishedSource` and `ArenaSource` are the page sources; this module knows none of them. All offsets
are bytes from the beginning of the file.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Final, Protocol

from .._decode.event_format import EventFormat
from .._decode.printf import Names
from .._page import layout as L
from .._page.definitions import Definition
from ..abc import Ledger, StreamInfo

__all__ = [
    "DAMAGE_MAX",
    "CpuData",
    "Damage",
    "DamageLog",
    "FoundPage",
    "PageShape",
    "PageSource",
    "TraceBuffer",
    "losses_after",
    "with_writers_of",
]

DAMAGE_MAX: Final = 1000
"""At most this many parts are kept; more are only counted."""


@dataclass(frozen=True, slots=True)
class Damage:
    """A part of a file that could not be read."""

    offset: int
    """Bytes from the beginning of the file."""
    message: str
    """What was expected there, and what was found."""


class DamageLog:
    """The parts that could not be read: the first are kept, all are counted."""

    def __init__(self) -> None:
        self.found: list[Damage] = []
        """At most DAMAGE_MAX."""
        self.count = 0
        self._kept = 0, 0

    def note(self, offset: int, message: str) -> None:
        """Count a part that could not be read."""
        self.count += 1
        if len(self.found) < DAMAGE_MAX:
            self.found.append(Damage(offset, message))

    def keep(self) -> None:
        """Keep what was noted until now when `forget` is called."""
        self._kept = len(self.found), self.count

    def forget(self) -> None:
        """Forget what was noted since `keep`, because it will be read again."""
        kept, self.count = self._kept
        del self.found[kept:]


@dataclass(frozen=True, slots=True)
class PageShape:
    """The layout of a page header, from the file's header_page text."""

    byte_order: str = L.BYTE_ORDER
    commit_size: int = 8
    """Bytes of `commit`: 4 where the kernel's long has 4."""

    @property
    def data_offset(self) -> int:
        return 8 + self.commit_size


@dataclass(frozen=True, slots=True)
class CpuData:
    """The location of one CPU's pages."""

    cpu: int
    offset: int
    """Bytes from the beginning of the file."""
    size: int
    """Bytes in the file."""


@dataclass(frozen=True, slots=True)
class TraceBuffer:
    """One ring buffer: the main one, or an instance."""

    name: str
    """"" for the main one."""
    clock: str
    page_size: int
    cpus: tuple[CpuData, ...]
    compressed: bool = False


@dataclass(frozen=True, slots=True)
class FoundPage:
    """A page's bytes, and where they were found."""

    offset: int
    """Bytes from the beginning of the file, to the page or to the compressed piece that contains it."""
    data: bytes
    problem: str = ""
    """Why the page must not be read, like a wrong crc32; "" if nothing is known against it."""
    events_count: int | None = None
    """Events on it; None if unknown."""


class PageSource(Protocol):
    """A file of pages, as `Trace` and `CpuStreams` read it.

    One that grows is read in rounds: `pages` until it is exhausted, `refresh`, `pages` again, until `ended` was True
    before a `refresh`.
    """

    @property
    def path(self) -> str: ...

    @property
    def size(self) -> int:
        """Bytes of the file, or of the pages in it."""

    @property
    def complete(self) -> bool:
        """False if the recording has not ended, or was killed."""

    @property
    def ended(self) -> bool:
        """Whether nothing more will be written."""

    @property
    def by_aiotrace(self) -> bool:
        """Whether aiotrace wrote it: its strings are UTF-8, and its pages are listed with a crc32 each."""

    @property
    def byte_order(self) -> str:
        """As `struct` has it: "<" or ">"."""

    @property
    def time_offset(self) -> int:
        """Nanoseconds to add to each timestamp."""

    @property
    def shape(self) -> PageShape: ...

    @property
    def formats(self) -> dict[int, EventFormat]:
        """Events by id (common_type)."""

    @property
    def symbols(self) -> dict[int, str]:
        """Strings that `char *` fields point to."""

    @property
    def commands(self) -> dict[int, str]:
        """Names of tasks by pid."""

    @property
    def functions(self) -> Names: ...

    @property
    def definitions(self) -> Sequence[Definition]:
        """aiotrace's own definitions, append-only; they take precedence over the tables above."""

    @property
    def buffers(self) -> Sequence[TraceBuffer]: ...

    @property
    def info(self) -> StreamInfo | None:
        """None for a trace that aiotrace did not write."""

    @property
    def damage(self) -> Sequence[Damage]:
        """At most DAMAGE_MAX."""

    @property
    def damage_count(self) -> int: ...

    def note_damage(self, offset: int, message: str) -> None:
        """Count a part that could not be read."""

    def forget_page_damage(self) -> None:
        """Start over: pages are read from the first again, and their damage is noted again."""

    def refresh(self) -> bool:
        """Read what was written since. From now on `pages` and `losses_after` return only what is new.

        Returns:
            Whether there is anything new. Always False for a file that does not grow.
        """

    def pages(self, buffer: TraceBuffer, cpu: CpuData) -> Iterator[FoundPage]:
        """The pages of one CPU, in order. What cannot be read is noted as damage, or is a page with a `problem`."""

    def losses_after(self, buffer: TraceBuffer, cpu: CpuData) -> list[tuple[int | None, str]]:
        """(count, reason) of what is missing after the last page of a CPU. None for an unknown number."""

    def close(self) -> None: ...


def with_writers_of(ledger: Ledger | None, buffer: TraceBuffer) -> TraceBuffer:
    """The buffer, with an empty CPU added for each writer that lost events and has no page."""
    known = {cpu.cpu for cpu in buffer.cpus}
    more = [
        CpuData(writer.writer, 0, 0)
        for writer in (ledger.writers if ledger is not None else ())
        if writer.writer not in known and writer.lost_after
    ]
    return replace(buffer, cpus=(*buffer.cpus, *more))


def losses_after(ledger: Ledger | None, cpu: int) -> list[tuple[int | None, str]]:
    """(count, reason) of a writer's events that were lost after its last page, from the ledger."""
    if ledger is None:
        return []
    return [
        (writer.lost_after, "after the last page")
        for writer in ledger.writers
        if writer.writer == cpu and writer.lost_after
    ]
