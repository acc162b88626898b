"""Keeps the last pages in memory: for tests and notebooks."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence

from aiotrace import ConfigurationError
from aiotrace.abc import Definition, Ledger, PageStream, StreamInfo
from aiotrace.decode import Decoder, Event
from aiotrace.formats import StoredPage


class MemorySink:
    """A sink that keeps copies of pages, the newest `max_pages` of them.

    sink = MemorySink()
    async with aiotrace.record(sink):
        ...
    for event in sink.events():
        print(event.name, event.fields)
    """

    def __init__(self, max_pages: int = 1024) -> None:
        """
        Args:
            max_pages: When there are more, the oldest is discarded: 1024 pages of 64 KiB are 64 MiB.

        Raises:
            ConfigurationError: `max_pages` is below 1.
        """
        if max_pages < 1:
            raise ConfigurationError(f"max_pages={max_pages}: at least 1")
        self.pages: deque[StoredPage] = deque(maxlen=max_pages)
        self.definitions: Sequence[Definition] = ()
        """All of the stream's."""
        self.info: StreamInfo | None = None
        """None until the sink was started."""
        self.ledger: Ledger | None = None
        """None until the stream has ended."""
        self.events_discarded = 0
        """Events on pages that were discarded to make room."""

    async def __call__(self, stream: PageStream) -> None:
        self.info = stream.info
        self.definitions = stream.definitions
        async for page in stream:
            if len(self.pages) == self.pages.maxlen:
                self.events_discarded += self.pages[0].events_count
            self.pages.append(StoredPage.copy(page))
            stream.acknowledge(page)
        self.ledger = stream.ledger

    def events(self) -> Iterator[Event]:
        """The events of the pages that are kept now, in the order of time; losses among them as events, as in
        `aiotrace.open_trace`."""
        decoder = Decoder(self.definitions)
        events = [event for page in list(self.pages) for event in decoder.events(page)]
        return iter(sorted(events, key=lambda event: event.timestamp_ns))
