"""A page outside of the arena: its entry (everything but the records), and a copy with its
records."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from .encode import pack_header, pack_lost_count

if TYPE_CHECKING:
    from ..abc import Page

__all__ = ["PageCopy", "PageEntry", "page_entry"]


class PageEntry(NamedTuple):
    """A page, or a part of one, without its records."""

    writer: int
    """Slot of the writer, from 0."""
    sequence: int
    """Number of the page in its writer's stream, from 0."""
    offset: int
    """Bytes of the page's records before this part; 0 for a whole page."""
    complete: bool
    """Whether the page ends with this part."""
    events_count: int
    """Events in these records."""
    lost_before: int
    """Events missing before this page; -1: some, their number is unknown."""
    definitions_needed: int
    """Definitions, from the first, that are needed to decode these records."""
    timestamp: int
    """Nanoseconds on the stream's clock: the base of the first delta."""
    committed: int
    """Bytes of records."""


@dataclass(frozen=True, slots=True)
class PageCopy:
    """A copy of a page, or of a part of one. Implements `aiotrace.abc.Page`; its memory is its own.

    Args:
        entry: Everything but the records.
        data: The records.
    """

    entry: PageEntry
    data: memoryview

    @classmethod
    def copy(cls, page: Page) -> PageCopy:
        """Copy a page that may be acknowledged afterwards."""
        return cls(page_entry(page), memoryview(bytes(page.data)))

    @property
    def writer(self) -> int:
        return self.entry.writer

    @property
    def sequence(self) -> int:
        return self.entry.sequence

    @property
    def offset(self) -> int:
        return self.entry.offset

    @property
    def complete(self) -> bool:
        return self.entry.complete

    @property
    def timestamp(self) -> int:
        return self.entry.timestamp

    @property
    def events_count(self) -> int:
        return self.entry.events_count

    @property
    def lost_before(self) -> int:
        return self.entry.lost_before

    @property
    def definitions_needed(self) -> int:
        return self.entry.definitions_needed

    def header(self) -> bytes:
        """The 16 bytes before the records, in the kernel's format."""
        return pack_header(self.timestamp, self.entry.committed, self.lost_before)

    def lost_count(self) -> bytes:
        """What follows the records: the number of lost events as a u64, or nothing."""
        return pack_lost_count(self.lost_before)


def page_entry(page: Page) -> PageEntry:
    """Everything about a page but its records, as a frame stores it."""
    entry = getattr(page, "entry", None)  # aiotrace's own pages have it ready
    if type(entry) is PageEntry:
        return entry
    return PageEntry(
        page.writer, page.sequence, page.offset, page.complete, page.events_count,
        page.lost_before, page.definitions_needed, page.timestamp, len(page.data),
    )  # fmt: skip
