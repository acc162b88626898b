"""Decoding the pages that a sink receives, page by page."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from .._decode.event import Event, Tables, make_lost
from .._decode.event_format import parse_format
from .._page import kernel_events
from .._page.definitions import Definition
from .._page.walk import walk
from ..abc import Page

__all__ = ["Decoder"]


class Decoder:
    """Decodes the pages that a sink receives.

    Args:
        definitions: `PageStream.definitions`; read as far as each page needs.
    """

    def __init__(self, definitions: Sequence[Definition]) -> None:
        self._definitions = definitions
        self._known = 0
        known = [parse_format(event.format, event.system) for event in kernel_events.EVENTS]
        self._tables = Tables({format.id: format for format in known}, {}, {}, None)

    def events(self, page: Page) -> Iterator[Event]:
        """The events of a page, oldest first. If events were lost before the page, a loss comes first.

        The data is copied when iteration starts: events stay valid after the page is acknowledged.

        Raises:
            TraceFormatError: The page is damaged.
        """
        self._define(page.definitions_needed)
        data = bytes(page.data)
        timestamp, cpu = page.timestamp, page.writer
        tables = self._tables
        if page.lost_before:
            count = page.lost_before if page.lost_before > 0 else None
            yield make_lost(count, "overrun, dropped or missed", timestamp, cpu, tables)
        for now, id, pid, start, length in walk(data, timestamp):
            yield Event(tables.kind(id), now, pid, cpu, data[start : start + length], tables)

    def _define(self, needed: int) -> None:
        for definition in self._definitions[self._known : needed]:
            self._tables.define(definition)
        self._known = max(self._known, needed)
