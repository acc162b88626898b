"""The conformance kit passes good sinks and names the rule that a bad one breaks.

Each bad sink is a good one with one mistake that people make.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

import anyio
import pytest

import aiotrace.testing
from aiotrace.abc import Page, PageStream, Sink
from aiotrace.testing import SinkRuleError, check_sink

pytestmark = pytest.mark.anyio


@pytest.fixture
def little_patience(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the wait is always in vain: a machine that stalls takes nothing from it."""
    monkeypatch.setattr(aiotrace.testing, "PATIENCE", 0.7)


async def one_by_one(stream: PageStream) -> None:
    async for page in stream:
        bytes(page.data)
        stream.acknowledge(page)


async def in_batches(stream: PageStream) -> None:
    while batch := await stream.next_batch(4):
        data = [page.data for page in batch]
        b"".join(data)
        for page in reversed(batch):
            stream.acknowledge(page)


async def with_local_views(stream: PageStream) -> None:
    async for page in stream:
        part = page.data[4:]
        bytes(part)
        stream.acknowledge(page)


async def with_prefixes(stream: PageStream) -> None:
    stream.accept_prefixes()
    await one_by_one(stream)


async def test_a_good_sink_passes_on_every_backend() -> None:
    await check_sink(lambda: one_by_one)


@pytest.mark.parametrize("anyio_backend", ["trio"])
@pytest.mark.parametrize("sink", [in_batches, with_local_views, with_prefixes])
async def test_a_good_sink_of_another_kind_passes(sink: Sink) -> None:
    await check_sink(lambda: sink)


async def never_acknowledges(stream: PageStream) -> None:
    async for _ in stream:
        pass


async def acknowledges_all_but_the_last(stream: PageStream) -> None:
    before: Page | None = None
    async for page in stream:
        if before is not None:
            stream.acknowledge(before)
        before = page


async def acknowledges_twice(stream: PageStream) -> None:
    async for page in stream:
        stream.acknowledge(page)
        stream.acknowledge(page)


async def returns_early(stream: PageStream) -> None:
    async for page in stream:
        stream.acknowledge(page)
        if page.sequence == 3:
            return


async def does_not_return(stream: PageStream) -> None:
    await one_by_one(stream)
    await anyio.sleep_forever()


async def swallows_the_streams_error(stream: PageStream) -> None:
    try:
        await one_by_one(stream)
    except ConnectionError:
        pass


async def fails_on_losses(stream: PageStream) -> None:
    async for page in stream:
        if page.lost_before:
            raise RuntimeError("a loss? never heard of it")
        stream.acknowledge(page)


async def fails_when_nothing_comes(stream: PageStream) -> None:
    count = 0
    async for page in stream:
        count += 1
        stream.acknowledge(page)
    if not count:
        raise RuntimeError("no page at all")


def keeps_views() -> Sink:
    kept = []

    async def sink(stream: PageStream) -> None:
        async for page in stream:
            kept.append(page.data[8:16])
            stream.acknowledge(page)

    return sink


def keeps_one_view() -> Sink:
    async def sink(stream: PageStream) -> None:
        async for page in stream:
            if page.sequence == 0 and page.offset == 0:
                sink.kept = page.data[:4]  # type: ignore[attr-defined]
            stream.acknowledge(page)

    return sink


def keeps_an_export() -> Sink:
    import struct

    async def sink(stream: PageStream) -> None:
        async for page in stream:
            records = struct.iter_unpack("<I", page.data)
            next(records)
            stream.acknowledge(page)

    return sink


def acknowledges_pages_of_the_call_before() -> Sink:
    held: list[Page] = []

    async def sink(stream: PageStream) -> None:
        while held:
            stream.acknowledge(held.pop())
        async for page in stream:
            held.append(page)
            if len(held) == 2:
                stream.acknowledge(held.pop(0))
        while held:
            stream.acknowledge(held.pop())

    return sink


@pytest.mark.parametrize("anyio_backend", ["asyncio"])
@pytest.mark.parametrize(
    ("make_sink", "rule"),
    [
        (lambda: acknowledges_all_but_the_last, "acknowledges every page that it is given"),
        (lambda: acknowledges_twice, "once"),
        (lambda: returns_early, "asks for pages until the stream ends"),
        (lambda: swallows_the_streams_error, "asks for pages until the stream ends"),
        (keeps_views, "keeps no view"),
        (keeps_one_view, "keeps no view"),
        (keeps_an_export, "keeps no view"),
        (acknowledges_pages_of_the_call_before, "looked at in this call"),
    ],
)
async def test_a_bad_sink_is_caught_and_the_rule_is_named(make_sink: Callable[[], Sink], rule: str) -> None:
    with pytest.raises(SinkRuleError, match=rule):
        await check_sink(make_sink)


@pytest.mark.usefixtures("little_patience")
@pytest.mark.parametrize("anyio_backend", ["asyncio"])
@pytest.mark.parametrize(
    ("sink", "rule"),
    [
        (never_acknowledges, "acknowledges pages while the stream goes on"),
        (does_not_return, "returns when the stream has ended"),
        (fails_when_nothing_comes, "no page at all"),
    ],
)
async def test_a_sink_that_is_waited_for_in_vain_is_caught_and_the_rule_is_named(sink: Sink, rule: str) -> None:
    with pytest.raises(SinkRuleError, match=rule):
        await check_sink(lambda: sink)


@pytest.mark.usefixtures("little_patience")
@pytest.mark.filterwarnings("ignore::RuntimeWarning")
@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_a_sink_that_fails_whenever_there_is_a_loss_is_caught() -> None:
    with pytest.raises(SinkRuleError, match="never heard of it"):
        await aiotrace.testing._goes_on_after_losses(lambda: fails_on_losses)


@pytest.mark.usefixtures("little_patience")
async def test_a_sink_that_ignores_cancellation_is_caught() -> None:
    let_go = anyio.Event()

    async def ignores(stream: PageStream) -> None:
        try:
            await one_by_one(stream)
        except BaseException:
            with anyio.CancelScope(shield=True):
                await let_go.wait()
            raise

    with pytest.raises(SinkRuleError, match="cancelled sink ends promptly"):
        await aiotrace.testing._obeys_cancellation(lambda: ignores)
    let_go.set()


async def test_error_of_a_sink_before_its_first_request_is_raised() -> None:
    async def refuses(stream: PageStream) -> None:
        raise FileNotFoundError("no such folder")

    with pytest.raises(FileNotFoundError, match="no such folder"):
        await check_sink(lambda: refuses)


@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_each_check_gets_a_new_sink() -> None:
    made: list[int] = []

    def make() -> Callable[[PageStream], Awaitable[None]]:
        calls: list[Any] = []

        async def sink(stream: PageStream) -> None:
            calls.append(stream.info.stream_id)
            assert len(set(calls)) == 1
            await one_by_one(stream)

        made.append(1)
        return sink

    await check_sink(make)
    assert len(made) > 6
