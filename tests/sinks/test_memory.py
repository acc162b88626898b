"""aiotrace_sinks.MemorySink and NullSink."""

from __future__ import annotations

import pytest

from aiotrace import ConfigurationError
from aiotrace.testing import check_sink
from aiotrace_sinks import MemorySink, NullSink
from support import fakes

pytestmark = pytest.mark.anyio


async def test_pages_are_copies_that_outlive_the_stream() -> None:
    pages = fakes.make_pages(4, 2)
    contents = [bytes(page.data) for page in pages]
    sink = MemorySink()
    stream = fakes.FakeStream(pages)
    await sink(stream)
    for page in pages:
        page.data.release()
    assert [bytes(page.data) for page in sink.pages] == contents
    assert [(page.writer, page.sequence, page.timestamp, page.events_count) for page in sink.pages] == [
        (page.writer, page.sequence, page.timestamp, page.events_count) for page in pages
    ]
    assert (stream.held, sink.info, sink.ledger) == ([], stream.info, stream.ledger)


async def test_events_are_decoded_in_the_order_of_time() -> None:
    sink = MemorySink()
    await sink(fakes.FakeStream([fakes.make_page(1, 1, 2), fakes.make_page(0, 0, 2, lost=5)]))
    found = [(event.name, event.cpu, event.fields.get("n")) for event in sink.events()]
    assert found == [
        ("aiotrace:lost", 0, None),
        ("demo:count", 0, 0),
        ("demo:count", 0, 1),
        ("demo:count", 1, 1000),
        ("demo:count", 1, 1001),
    ]


async def test_the_oldest_pages_are_discarded_and_counted() -> None:
    sink = MemorySink(max_pages=3)
    await sink(fakes.FakeStream(fakes.make_pages(8)))
    assert [page.sequence for page in sink.pages] == [5, 6, 7]
    assert sink.events_discarded == 100


def test_a_sink_without_room_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="max_pages=0"):
        MemorySink(max_pages=0)


async def test_the_null_sink_acknowledges_everything() -> None:
    stream = fakes.FakeStream(fakes.make_pages(8))
    await NullSink.from_url("null:")(stream)
    assert (stream.held, len(stream.acknowledged)) == ([], 8)


async def test_sink_keeps_the_contract() -> None:
    for make_sink in (MemorySink, NullSink):
        await check_sink(make_sink)
