"""What is found in a trace file before any record is read: buffers, their CPUs and pages, and damage.

    TraceBuffer ""  --+-- CpuData 0 (offset, size)  -->  FoundPage  FoundPage  ...
                      `-- CpuData 1

The law: **a place is told in bytes from the beginning of the file**. Finished and unfinished traces are both told in
these words; this module knows neither.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Final

from .._page import layout as L
from ..abc import Ledger

__all__ = [
    "DAMAGE_MAX",
    "CpuData",
    "Damage",
    "DamageLog",
    "FoundPage",
    "PageShape",
    "TraceBuffer",
    "losses_after",
    "with_writers_of",
]

DAMAGE_MAX: Final = 1000
"""Damages that are remembered; more are only counted."""


@dataclass(frozen=True, slots=True)
class Damage:
    """A part of a file that could not be read."""

    offset: int
    """Bytes from the beginning of the file."""
    message: str


class DamageLog:
    """What could not be read: the first parts by name, all by number."""

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
        """What was noted until now stays when the rest is forgotten."""
        self._kept = len(self.found), self.count

    def forget(self) -> None:
        """Forget what was noted since `keep`: it is read again."""
        kept, self.count = self._kept
        del self.found[kept:]


@dataclass(frozen=True, slots=True)
class PageShape:
    """How a page begins, as the file's header_page text says."""

    byte_order: str = L.BYTE_ORDER
    commit_size: int = 8
    """Bytes of `commit`: 4 where the kernel's long has 4."""

    @property
    def data_offset(self) -> int:
        return 8 + self.commit_size


@dataclass(frozen=True, slots=True)
class CpuData:
    """Where one CPU's pages are."""

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
    """A page's bytes, and where they were."""

    offset: int
    """Bytes from the beginning of the file; of the compressed piece that holds it, where there is one."""
    data: bytes
    problem: str = ""
    """What is wrong with it, where more is known than its structure: then none of it is to be read."""
    events_count: int | None = None
    """Events on it, where that is known."""


def with_writers_of(ledger: Ledger | None, buffer: TraceBuffer) -> TraceBuffer:
    """The buffer with a CPU, empty, for each writer that has no page here and whose account tells of losses."""
    known = {cpu.cpu for cpu in buffer.cpus}
    more = [
        CpuData(writer.writer, 0, 0)
        for writer in (ledger.writers if ledger is not None else ())
        if writer.writer not in known and writer.lost_after
    ]
    return replace(buffer, cpus=(*buffer.cpus, *more))


def losses_after(ledger: Ledger | None, cpu: int) -> list[tuple[int | None, str]]:
    """What the closing account says of a writer's events after its last page."""
    if ledger is None:
        return []
    return [
        (writer.lost_after, "after the last page")
        for writer in ledger.writers
        if writer.writer == cpu and writer.lost_after
    ]
