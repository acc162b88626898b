"""R12: a slow sink that skips costs the others nothing, and what it missed is counted and told to it."""

from __future__ import annotations

import anyio
import pytest

import aiotrace
from aiotrace.abc import PageStream
from support.laws import PAGE, Collect, check_closed, check_laws, check_sink_has, number

pytestmark = [pytest.mark.anyio, pytest.mark.pure_too]


class Slow(Collect):
    """Takes a page only when it is let: what a page a second would be, without the clock."""

    def __init__(self) -> None:
        super().__init__()
        self.tick = anyio.Event()
        self.got = anyio.Event()

    async def __call__(self, stream: PageStream) -> None:
        from support.laws import numbers_on

        async for page in stream:
            self.got.set()
            await self.tick.wait()
            if not self.open:
                self.tick = anyio.Event()
            self.take(page, numbers_on(page.data, page.timestamp))
            stream.acknowledge(page)
        self.ledger = stream.ledger

    open = False


async def test_a_slow_sink_that_skips_does_not_hold_back_the_fast_one() -> None:
    slow, fast = Slow(), Collect()
    async with aiotrace.record(
        aiotrace.sink(slow, on_full="skip", quota=2), fast, page_size=PAGE, pages=16
    ) as recording:
        for n in range(5000):
            with anyio.fail_after(60):
                await number.send(n, "")
            if n % 1000 == 999:
                slow.tick.set()  # one page while the fast one gets some fifteen
                check_laws(recording.statistics(), n + 1)
        await anyio.wait_all_tasks_blocked()
        assert len(slow.pages) <= 6
        assert len(fast.numbers) > 4000, "all but what a resting reader leaves in the ring"
        slow.open = True
        slow.tick.set()
    statistics = recording.statistics()
    check_closed(statistics, 5000)
    assert statistics.events_dropped == 0
    check_sink_has(fast, statistics, range(5000))
    check_sink_has(slow, statistics)
    account = statistics.sinks[0]
    assert account.events_missed > 3000
    assert slow.ledger is not None
    assert slow.lost + slow.ledger.writers[0].lost_after == account.events_missed


async def test_slow_sink_that_waits_blocks_senders() -> None:
    slow = Slow()
    sent: list[int] = []

    async def produce() -> None:
        for n in range(2000):
            await number.send(n, "")
            sent.append(n)

    async with aiotrace.record(slow, page_size=PAGE, pages=6) as recording, anyio.create_task_group() as group:
        group.start_soon(produce)
        await slow.got.wait()
        await anyio.wait_all_tasks_blocked()
        assert len(sent) < 1200, "it waits: that is all that six pages hold"
        check_laws(recording.statistics(), len(sent))
        slow.open = True
        slow.tick.set()
    check_closed(recording.statistics(), 2000)
    check_sink_has(slow, recording.statistics(), range(2000))
    assert recording.statistics().sends_waited > 0


async def test_plain_calls_are_dropped_rather_than_blocked_by_a_slow_sink() -> None:
    slow = Slow()
    async with aiotrace.record(slow, page_size=PAGE, pages=6) as recording:
        for n in range(3000):
            number(n, "")
            if n % 100 == 0:
                await anyio.lowlevel.checkpoint()
        slow.open = True
        slow.tick.set()
    statistics = recording.statistics()
    check_closed(statistics, 3000)
    check_sink_has(slow, statistics)
    assert statistics.dropped["no_page"] > 1500
