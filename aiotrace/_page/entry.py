"""What is kept and sent about a page, or a part of one, beside its records."""

from __future__ import annotations

from typing import NamedTuple

__all__ = ["PageEntry"]


class PageEntry(NamedTuple):
    """A page, without its records."""

    writer: int
    sequence: int
    offset: int
    """Bytes of the page's records that came before, as a prefix of it: 0 for a whole page."""
    complete: bool
    """Whether the page ends with this part."""
    events_count: int
    lost_before: int
    """Events missing before this page: -1 some, not said how many."""
    definitions_needed: int
    timestamp: int
    """Nanoseconds."""
    committed: int
    """Bytes of records."""
