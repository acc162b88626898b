"""What the tests of the core check after every run: laws 1 and 2, and that no event is lost or doubled unnoticed.

`Collect` is a sink that decodes what it is given by hand, from the bytes: the number that each event carries, and the
losses that each page reports. `check_laws` compares that with what the test itself counted and with `statistics()`.
"""

from __future__ import annotations

import struct
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

import aiotrace
from aiotrace import Statistics
from aiotrace.abc import Ledger, Page, PageStream
from support.page_oracle import walk

number = aiotrace.event("laws:number", n="u64", text="str")
PAGE = 4096


def numbers_on(data: memoryview, timestamp: int) -> list[int]:
    """The numbers of the events among these records."""
    return [struct.unpack_from("=Q", data, record.start + 8)[0] for record in walk(data, timestamp)]


@dataclass
class Collect:
    """A sink that keeps numbers, not pages. `before` is awaited with each page before it is acknowledged."""

    before: Callable[[Page], object] | None = None
    prefixes: bool = False
    numbers: Counter[int] = field(default_factory=Counter)
    """Events by number; a second delivery of the same page counts again."""
    pages: list[tuple[int, int, int]] = field(default_factory=list)
    """Writer, sequence and offset of what was acknowledged."""
    lost: int = 0
    lost_by_writer: Counter[int] = field(default_factory=Counter)
    ledger: Ledger | None = None
    __name__ = "collect"

    async def __call__(self, stream: PageStream) -> None:
        if self.prefixes:
            stream.accept_prefixes()
        async for page in stream:
            numbers = numbers_on(page.data, page.timestamp)
            assert len(numbers) == page.events_count
            if self.before is not None:
                self.before(page)
            self.take(page, numbers)
            stream.acknowledge(page)
        self.ledger = stream.ledger

    def take(self, page: Page, numbers: Iterable[int]) -> None:
        self.numbers.update(numbers)
        self.pages.append((page.writer, page.sequence, page.offset))
        self.lost += page.lost_before
        self.lost_by_writer[page.writer] += page.lost_before


def check_laws(statistics: Statistics, calls: int | None = None) -> None:
    """Laws 1 and 2, at any moment.

    Args:
        calls: Event calls of the test, by its own count.
    """
    s = statistics
    assert s.pages_free + s.pages_filling + s.pages_full + s.pages_in_flight == s.pages_total
    assert s.events_written == s.events_delivered + s.events_overrun + s.events_abandoned + s.events_in_flight, s
    assert s.events_dropped == sum(s.dropped.values())
    for sink in s.sinks:
        settled = sink.events_delivered + sink.events_missed + sink.events_abandoned
        assert sink.events_offered == settled + sink.events_in_flight, sink
    if calls is not None:
        assert calls == s.events_written + s.events_dropped, s


def check_closed(statistics: Statistics, calls: int | None = None) -> None:
    """The same after the end: nothing is in flight, and all pages are home."""
    check_laws(statistics, calls)
    assert statistics.events_in_flight == 0
    assert statistics.pages_free == statistics.pages_total
    assert all(sink.events_in_flight == 0 for sink in statistics.sinks)
    assert statistics.failure is None


def check_sink_has(sink: Collect, statistics: Statistics, written: Iterable[int] | None = None) -> None:
    """A sink that was there from the beginning has each event once, or its loss was reported to it.

    Args:
        written: The numbers that it should have, when the test knows them.
    """
    assert set(sink.numbers.values()) <= {1}, "an event came twice"
    assert len(set(sink.pages)) == len(sink.pages), "a page came twice"
    assert sink.ledger is not None, "the stream did not end"
    lost = sink.lost + sum(writer.lost_after for writer in sink.ledger.writers)
    assert len(sink.numbers) + lost == statistics.calls, (len(sink.numbers), lost, statistics)
    if written is not None:
        assert set(sink.numbers) == set(written)
