"""R1 and R2: cancelled anywhere, nothing is lost, doubled or left held, and cancelled means no effect.

R1 cancels at the N-th suspension of each public coroutine, for N = 1 to the end: by an anyio scope, and on asyncio by a
native `Task.cancel()`, which goes through shields. R2 cancels producers and guests at random, by seed.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Awaitable, Callable, Generator
from types import coroutine
from typing import Any

import anyio
import pytest

from aiotrace import record
from aiotrace.abc import Page, PageStream
from aiotrace.worker import worker_thread
from support.cancellation import random_cancellation
from support.laws import PAGE, Collect, check_closed, check_laws, check_sink_has, number, numbers_on

pytestmark = [pytest.mark.anyio, pytest.mark.pure_too]
BY = pytest.mark.parametrize("by", ["scope", "native"])
SUSPENSIONS_MAX = 60


class Cancels:
    """Cancels the awaiting task, at the N-th suspension of what it awaits."""

    def __init__(self, at: int, by: str) -> None:
        self.at = at
        self.by = by
        self.count = 0
        self.scope = anyio.CancelScope()

    @coroutine
    def _step(self, awaitable: Awaitable[Any]) -> Generator[Any, Any, Any]:
        inner = awaitable.__await__()
        send: Any = None
        error: BaseException | None = None
        while True:
            try:
                waits_for = inner.send(send) if error is None else inner.throw(error)  # type: ignore[attr-defined]
            except StopIteration as end:
                return end.value
            self.count += 1
            if self.count == self.at:
                self._cancel()
            send = error = None
            try:
                send = yield waits_for
            except BaseException as thrown:
                error = thrown

    def _cancel(self) -> None:
        if self.by == "scope":
            self.scope.cancel()
        else:
            task = asyncio.current_task()
            assert task is not None
            task.cancel()

    async def run(self, awaitable: Awaitable[Any]) -> bool:
        """Returns whether it was cancelled; what it raises otherwise is raised."""
        try:
            with self.scope:
                await self._step(awaitable)
        except asyncio.CancelledError:
            task = asyncio.current_task()
            assert task is not None and self.by == "native"
            task.uncancel()
            return True
        return self.scope.cancelled_caught


async def at_each(by: str, backend: Any, scenario: Callable[[Cancels], Awaitable[None]]) -> None:
    """Run a scenario with a cancellation at each suspension of what it runs, until there are no more."""
    if by == "native" and backend == "trio":
        pytest.skip("trio has no native cancel beside its scopes")
    for at in range(1, SUSPENSIONS_MAX):
        cancels = Cancels(at, by)
        await scenario(cancels)
        if cancels.count < at:
            break
    assert 1 < at < SUSPENSIONS_MAX - 1, f"{at - 1} suspensions"


@BY
async def test_opening_a_recording(by: str, anyio_backend: Any) -> None:
    async def scenario(cancels: Cancels) -> None:
        sinks = Collect(), Collect()
        recording = record(*sinks, page_size=PAGE, pages=8)
        if not await cancels.run(recording.__aenter__()):
            await recording.__aexit__(None, None, None)
        number(1, "")
        check_closed(recording.statistics(), 0)

    await at_each(by, anyio_backend, scenario)


@BY
async def test_closing_a_recording(by: str, anyio_backend: Any) -> None:
    async def scenario(cancels: Cancels) -> None:
        sink = Collect()
        recording = record(sink, page_size=PAGE, pages=16)
        await recording.__aenter__()
        for n in range(600):
            number(n, "")
        await cancels.run(recording.__aexit__(None, None, None))
        statistics = recording.statistics()
        check_closed(statistics, 600)
        if by == "scope":  # shielded: the drain continues
            check_sink_has(sink, statistics)
        else:
            assert len(sink.numbers) == statistics.events_delivered
            assert set(sink.numbers.values()) <= {1}

    await at_each(by, anyio_backend, scenario)


@BY
async def test_attaching_a_sink(by: str, anyio_backend: Any) -> None:
    async def scenario(cancels: Cancels) -> None:
        sink, guest = Collect(), Collect()
        async with record(sink, page_size=PAGE, pages=32) as recording:
            for n in range(300):
                await number.send(n, "")
            cancelled = await cancels.run(recording.attach(guest))
            for n in range(300, 600):
                await number.send(n, "")
            check_laws(recording.statistics(), 600)
            if cancelled:
                assert recording.statistics().sinks[1].state == "detached"
        check_closed(recording.statistics(), 600)
        check_sink_has(sink, recording.statistics(), range(600))
        assert set(guest.numbers.values()) <= {1}
        assert guest.numbers or cancelled
        assert not {n for n in guest.numbers if n >= 300} or not cancelled, "it is let go at once"

    await at_each(by, anyio_backend, scenario)


@BY
async def test_detaching_a_sink(by: str, anyio_backend: Any) -> None:
    async def scenario(cancels: Cancels) -> None:
        sink, guest = Collect(), Collect()
        async with record(sink, guest, page_size=PAGE, pages=32) as recording:
            for n in range(300):
                number(n, "")
            await anyio.lowlevel.checkpoint()
            await cancels.run(recording.detach(guest))
            for n in range(300, 600):
                await number.send(n, "")
            check_laws(recording.statistics(), 600)
        check_closed(recording.statistics(), 600)
        check_sink_has(sink, recording.statistics(), range(600))
        assert set(guest.numbers.values()) <= {1}
        assert guest.lost == 0

    await at_each(by, anyio_backend, scenario)


@BY
async def test_send_waiting_for_room_may_be_cancelled_at_any_await(by: str, anyio_backend: Any) -> None:
    async def scenario(cancels: Cancels) -> None:
        go_on = anyio.Event()
        sink = Collect()

        async def waits(stream: PageStream) -> None:
            await sink(Gated(stream, go_on))  # type: ignore[arg-type]  # as much of a stream as is used

        calls = 0
        async with record(waits, page_size=PAGE, pages=5) as recording:
            while not recording.statistics().events_dropped:
                number(calls, "")
                calls += 1
            async with anyio.create_task_group() as others:
                others.start_soon(number.send, 10_001, "")
                others.start_soon(number.send, 10_002, "")

                async def open_soon() -> None:
                    for _ in range(3):
                        await anyio.lowlevel.checkpoint()
                    go_on.set()

                others.start_soon(open_soon)
                cancelled = await cancels.run(number.send(10_000, ""))
                go_on.set()
        statistics = recording.statistics()
        check_closed(statistics, calls + (2 if cancelled else 3))
        check_sink_has(sink, statistics)
        assert (10_000 in sink.numbers) is not cancelled, "cancelled means: not written"
        assert {10_001, 10_002} <= set(sink.numbers)

    await at_each(by, anyio_backend, scenario)


class Gated:
    """A stream that gives nothing until it is let."""

    def __init__(self, stream: PageStream, go_on: anyio.Event) -> None:
        self._stream = stream
        self._go_on = go_on

    def __aiter__(self) -> Gated:
        return self

    async def __anext__(self) -> Page:
        page = await self._stream.__anext__()
        await self._go_on.wait()
        return page

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


@BY
@pytest.mark.parametrize("batch", [0, 3])
async def test_asking_for_a_page(by: str, batch: int, anyio_backend: Any) -> None:
    async def scenario(cancels: Cancels) -> None:
        sink = Collect()
        cancelled: list[bool] = []

        async def asks(stream: PageStream) -> None:
            looked: list[Page] = []

            async def ask() -> None:
                if batch:
                    looked.extend(await stream.next_batch(batch))
                else:
                    looked.append(await stream.__anext__())

            cancelled.append(await cancels.run(ask()))
            assert not (cancelled[0] and looked), "cancelled means: no page was looked at"
            for page in looked:
                sink.take(page, numbers_on(page.data, page.timestamp))
                stream.acknowledge(page)
            await sink(stream)

        async with record(asks, page_size=PAGE, pages=16) as recording:
            for n in range(600):
                await number.send(n, "")
        check_closed(recording.statistics(), 600)
        check_sink_has(sink, recording.statistics(), range(600))

    await at_each(by, anyio_backend, scenario)


@BY
async def test_a_job_of_a_worker_thread(by: str, anyio_backend: Any) -> None:
    async def scenario(cancels: Cancels) -> None:
        began: list[int] = []
        ended: list[int] = []

        def job() -> None:
            began.append(1)
            ended.append(1)

        async with worker_thread("test") as worker:
            if not await cancels.run(worker.run(job)):
                assert ended
            assert len(began) == len(ended), "a job that began has ended"

    await at_each(by, anyio_backend, scenario)


# --- R2 -----------------------------------------------------------------------------------------


async def test_random_cancellation_loses_and_doubles_nothing() -> None:
    await random_cancellation(int(os.environ.get("AIOTRACE_SEED", "1")), 400)
