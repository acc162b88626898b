"""The page stream of one sink: waiting, looking, acknowledging, and what is over when its call is."""

from __future__ import annotations

import os
import struct
from collections.abc import Awaitable, Callable
from pickle import PickleBuffer  # the plainest thing that exports a buffer
from typing import Any

import anyio
import pytest

from aiotrace._base.errors import AcknowledgeError
from aiotrace._page.entry import PageEntry, page_entry
from aiotrace._recording import page_stream
from aiotrace._recording.page_stream import Stream
from aiotrace._ring.arena import Arena
from aiotrace._ring.delivery import Delivery
from aiotrace._ring.page_cycle import PageCycle
from aiotrace._ring.writer import Writers
from aiotrace.abc import Ledger, Page, WriterLedger
from support.fakes import make_info
from support.page_oracle import unpack_header, walk

pytestmark = [pytest.mark.anyio, pytest.mark.pure_too]

LEDGER = Ledger((WriterLedger(0, 10, 1, 2, 3, 4),))
START = 10**15


class Setup:
    """A writer, a sink's delivery, and the stream of the sink's first call; `told` is what the stream told."""

    def __init__(self) -> None:
        self.told: list[str] = []
        self.pages = PageCycle(Arena(4096, 8), overrun=False)
        self.writer = Writers(self.pages, 1, lambda: START, range(3)).all[0]
        self.delivery = Delivery(self.pages.arena, 4, "wait")
        self.pages.attach(self.delivery, {})
        self.stream = self.make_stream()
        self.number = 0

    def make_stream(self) -> Stream:
        def tell(what: str) -> Callable[[], None]:
            return lambda: self.told.append(what)

        return Stream(
            self.pages,
            self.delivery,
            make_info(),
            [],
            on_first_request=tell("request"),
            on_prefixes=tell("prefixes"),
            on_room=tell("room"),
            account=lambda delivery: LEDGER if delivery is self.delivery else Ledger(()),
        )

    def write(self, events: int = 4) -> None:
        """Four fill a page."""
        for _ in range(events):
            assert self.writer.write(struct.pack("=Q", self.number).ljust(1000, b"x"))
            self.number += 1

    def offer(self, pages: int = 1) -> None:
        """Full pages for the sink."""
        for _ in range(pages):
            self.write()
            with self.writer.guard:
                self.seal()
            assert self.pages.swap()
        self.stream.notify()

    def seal(self) -> None:
        """As the writer's end does: it has no page then."""
        assert self.writer.page is not None
        self.writer.freeze()
        self.writer._describe(self.writer.page)
        self.pages.seal(self.writer.page)
        self.writer.leave()
        self.writer.page = None

    def end(self) -> None:
        self.delivery.closed = True
        self.stream.notify()


def numbers_on(page: Page) -> list[int]:
    return [struct.unpack_from("=Q", page.data, record.start)[0] for record in walk(page.data, page.timestamp)]


async def waits(stream: Stream) -> bool:
    """Whether a request finds nothing, now and after the loop has gone round a few times."""
    answer: list[object] = []

    async def ask() -> None:
        answer.append(await stream.next_batch(1))

    async with anyio.create_task_group() as group:
        group.start_soon(ask)
        for _ in range(5):
            await anyio.lowlevel.checkpoint()
        group.cancel_scope.cancel()
    return not answer


async def steps_of_the_loop(request: Callable[[], Awaitable[object]]) -> int:
    """How often another task went on while this one asked."""
    steps: list[int] = []
    done: list[bool] = []

    async def count() -> None:
        while not done:
            steps.append(0)
            await anyio.lowlevel.cancel_shielded_checkpoint()

    async with anyio.create_task_group() as group:
        group.start_soon(count)
        await request()
        done.append(True)
        return len(steps)


async def test_ready_batch_yields_to_the_loop_only_after_a_long_time(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    now = 1000.0
    monkeypatch.setattr(page_stream, "monotonic", lambda: now)
    steps: list[int] = []

    async def step() -> None:
        steps.append(len(setup.delivery._looked))
        await anyio.lowlevel.checkpoint()

    monkeypatch.setattr(page_stream, "checkpoint", step)
    setup = Setup()
    setup.offer(4)

    def request() -> Awaitable[list[Page]]:
        return setup.stream.next_batch(1)

    assert await steps_of_the_loop(request) == 0
    now += page_stream.ALONE_MAX
    await request()
    await request()
    assert steps == [1], "before the second batch; and before the third there was one just now"
    now += page_stream.ALONE_MAX
    async with anyio.create_task_group() as group:
        group.cancel_scope.cancel()
        with pytest.raises(anyio.get_cancelled_exc_class()):
            await request()
    assert setup.delivery.waiting == 1, "cancelled: no page was looked at"


async def test_a_sink_that_waited_has_its_next_batch_without_a_step(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 1000.0
    monkeypatch.setattr(page_stream, "monotonic", lambda: now)
    setup = Setup()

    async def ask() -> None:
        await setup.stream.next_batch(1)

    async with anyio.create_task_group() as group:
        group.start_soon(ask)
        await anyio.wait_all_tasks_blocked()
        now += page_stream.ALONE_MAX
        setup.offer(2)
        setup.stream.notify()
    assert await steps_of_the_loop(lambda: setup.stream.next_batch(1)) == 0


async def test_page_has_all_of_its_attributes() -> None:
    setup = Setup()
    setup.writer.refuse("wrong_type")
    setup.offer()
    page = await anext(setup.stream)
    assert (page.writer, page.sequence, page.offset, page.complete) == (0, 0, 0, True)
    assert (page.timestamp, page.events_count, page.lost_before, page.definitions_needed) == (START, 4, 1, 3)
    assert numbers_on(page) == [0, 1, 2, 3]
    assert page.data.readonly
    whole = page.header() + bytes(page.data) + page.lost_count()
    assert tuple(unpack_header(whole)) == (START, len(page.data), 1)
    assert repr(page) == "<page 0 of writer 0, bytes 0-4032, 4 events>"


async def test_the_parts_of_a_page_are_pages_of_their_own() -> None:
    setup = Setup()
    setup.write(1)
    prefix = setup.writer.committed_prefix()
    assert prefix is not None
    setup.delivery.prefixes = True
    setup.pages.offer_prefix(prefix)
    setup.write(3)
    setup.write(1)
    setup.pages.swap()
    first, rest = await setup.stream.next_batch(4)
    assert (first.offset, first.complete, rest.offset, rest.complete) == (0, False, 1008, True)
    assert numbers_on(first) + numbers_on(rest) == [0, 1, 2, 3]
    assert tuple(unpack_header(rest.header() + bytes(rest.data))) == (START, len(rest.data), 0)
    assert rest.lost_count() == b""


async def test_a_request_waits_until_a_page_is_offered() -> None:
    setup = Setup()
    got: list[Page] = []

    async def ask() -> None:
        got.append(await anext(setup.stream))

    async with anyio.create_task_group() as group:
        group.start_soon(ask)
        for _ in range(3):
            await anyio.lowlevel.checkpoint()
            setup.stream.notify()  # for nothing: it keeps waiting
        assert not got
        setup.offer()
    assert numbers_on(got[0]) == [0, 1, 2, 3]


async def test_a_wake_that_came_before_the_wait_is_not_lost() -> None:
    setup = Setup()
    assert await waits(setup.stream)
    setup.offer()
    assert len(await setup.stream.next_batch(1)) == 1
    setup.stream.notify()
    assert await waits(setup.stream), "what it was woken for is looked at"


async def test_batch_holds_available_pages_up_to_the_requested_number() -> None:
    setup = Setup()
    setup.offer(3)
    assert [page.sequence for page in await setup.stream.next_batch(2)] == [0, 1]
    assert [page.sequence for page in await setup.stream.next_batch(2)] == [2]
    with pytest.raises(ValueError, match="at least 1"):
        await setup.stream.next_batch(0)


async def test_iteration_yields_each_page_and_ends_with_the_stream() -> None:
    setup = Setup()
    setup.offer(2)
    setup.end()
    seen = []
    async for page in setup.stream:
        assert not setup.stream.reached_end
        seen.append(page.sequence)
        setup.stream.acknowledge(page)
    assert seen == [0, 1]
    assert setup.stream.reached_end
    assert await setup.stream.next_batch(9) == [], "and stays ended"


async def test_a_waiting_request_hears_of_the_end() -> None:
    setup = Setup()
    async with anyio.create_task_group() as group:
        group.start_soon(setup.stream.next_batch, 1)
        await anyio.lowlevel.checkpoint()
        setup.end()
    assert setup.stream.reached_end


async def test_first_request_is_announced_before_it_waits() -> None:
    setup = Setup()
    assert setup.told == []
    setup.offer()
    await anext(setup.stream)
    assert setup.told[0] == "request"


async def test_every_request_is_a_checkpoint() -> None:
    """A sink that acknowledges at once must not keep the loop to itself, and can be cancelled."""
    setup = Setup()
    setup.offer()
    with anyio.CancelScope() as scope:
        scope.cancel()
        await setup.stream.next_batch(1)
    assert scope.cancelled_caught
    assert setup.delivery.waiting == 1, "no page was looked at"


async def test_acknowledging_settles_the_page_once_and_releases_its_memory() -> None:
    setup = Setup()
    setup.offer(2)
    first, second = await setup.stream.next_batch(2)
    setup.told.clear()
    setup.stream.acknowledge(second)
    assert setup.told == ["room"]
    assert setup.pages.delivered == 4
    assert setup.pages.arena.states()[3] == 1
    with pytest.raises(ValueError, match="released"):
        second.data[0]
    with pytest.raises(AcknowledgeError, match=r"page 1 of writer 0.* is not held by this stream"):
        setup.stream.acknowledge(second)
    setup.stream.acknowledge(first)
    assert setup.pages.arena.states() == (8, 0, 0, 0)


async def test_page_of_another_stream_cannot_be_acknowledged() -> None:
    setup, other = Setup(), Setup()
    setup.offer()
    other.offer()
    page, stranger = await anext(setup.stream), await anext(other.stream)
    not_one: Any = object()
    for each in (stranger, not_one):
        with pytest.raises(AcknowledgeError, match="not held by this stream"):
            setup.stream.acknowledge(each)
    assert (setup.pages.delivered, other.pages.delivered) == (0, 0)
    setup.stream.acknowledge(page)


async def test_a_page_whose_memory_is_in_use_is_not_acknowledged_yet() -> None:
    setup = Setup()
    setup.offer()
    page = await anext(setup.stream)
    kept = PickleBuffer(page.data)
    with pytest.raises(AcknowledgeError, match="a view of its data is still in use"):
        setup.stream.acknowledge(page)
    assert setup.pages.delivered == 0
    kept.release()
    setup.stream.acknowledge(page)
    assert setup.pages.delivered == 4


async def test_acknowledging_several_pages_stops_at_the_first_invalid_one() -> None:
    setup = Setup()
    setup.offer(4)
    pages = await setup.stream.next_batch(4)
    setup.told.clear()
    setup.stream.acknowledge_all(pages[:2])
    assert (setup.told, setup.delivery.pages_acknowledged, setup.pages.pool.recycled) == (["room"], 2, 2)
    with pytest.raises(AcknowledgeError, match="not held by this stream"):
        setup.stream.acknowledge_all([pages[2], pages[0], pages[3]])
    assert (setup.told, setup.delivery.pages_acknowledged) == (["room"] * 2, 3)
    setup.stream.acknowledge_all([])
    setup.stream.acknowledge_all(pages[3:])
    assert (setup.told, setup.delivery.held, setup.pages.pool.recycled) == (["room"] * 3, 0, 4)


async def test_ended_stream_stops_and_refuses_acknowledgements() -> None:
    setup = Setup()
    setup.offer(2)
    page = await anext(setup.stream)
    setup.stream.finish()
    with pytest.raises(ValueError, match="released"):
        page.data[0]
    with pytest.raises(AcknowledgeError, match="of an earlier call"):
        setup.stream.acknowledge(page)
    setup.delivery.rewind()
    setup.stream = setup.make_stream()
    again = await setup.stream.next_batch(9)
    assert [each.sequence for each in again] == [0, 1], "the next call gets it again"
    assert numbers_on(again[0]) == [0, 1, 2, 3]


async def test_view_kept_by_a_sink_does_not_block_the_end_of_its_call() -> None:
    setup = Setup()
    setup.offer(2)
    first, second = await setup.stream.next_batch(2)
    kept = PickleBuffer(first.data)
    setup.stream.finish()
    with pytest.raises(ValueError, match="released"):
        second.data[0]
    assert kept.raw().nbytes == 4032
    kept.release()


async def test_a_request_to_a_stream_that_is_over_ends() -> None:
    setup = Setup()
    setup.stream.finish()
    with anyio.fail_after(60):
        assert await setup.stream.next_batch(1) == []


async def test_request_for_prefixes_is_announced_and_outlives_the_call() -> None:
    setup = Setup()
    assert not setup.delivery.prefixes
    setup.stream.accept_prefixes()
    assert setup.told == ["prefixes"]
    assert setup.delivery.prefixes


async def test_a_stream_knows_what_is_true_of_all_of_it() -> None:
    setup = Setup()
    assert setup.stream.info == make_info()
    assert setup.stream.definitions == []
    assert setup.stream.ledger is LEDGER


async def test_a_forked_childs_copy_of_a_sink_gets_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    setup = Setup()
    setup.end()
    parent = os.getpid()
    monkeypatch.setattr(os, "getpid", lambda: parent + 1)
    assert await waits(setup.stream), "neither the end"
    setup.delivery.closed = False
    setup.offer()
    monkeypatch.setattr(os, "getpid", lambda: parent)
    assert len(await setup.stream.next_batch(1)) == 1


async def test_page_entry_equals_the_single_attributes_of_the_page() -> None:
    setup = Setup()
    setup.offer()
    (page,) = await setup.stream.next_batch(1)
    assert type(page.entry) is PageEntry  # type: ignore[attr-defined]
    assert page_entry(page) == (
        page.writer, page.sequence, page.offset, page.complete, page.events_count, page.lost_before,
        page.definitions_needed, page.timestamp, len(page.data),
    )  # fmt: skip
    assert page_entry(page).events_count == 4
