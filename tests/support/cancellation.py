"""R2: producers and guests are cancelled at random, by seed."""

from __future__ import annotations

import random

import anyio
import anyio.lowlevel

from aiotrace import record
from support.laws import PAGE, Collect, check_closed, check_laws, check_sink_has, number


async def random_cancellation(seed: int, cancellations: int) -> None:
    """Four producers and a guest are cancelled at random, beside two sinks that stay."""
    print(f"seed {seed}")
    rng = random.Random(seed)
    sinks = Collect(), Collect()
    guests: list[Collect] = []
    sent: set[int] = set()
    asked: set[int] = set()
    done = 0
    calls = 0

    async def produce(scope: anyio.CancelScope, first: int) -> None:
        nonlocal calls
        with scope:
            for n in range(first, first + 400):
                asked.add(n)
                await number.send(n, "x" * (n % 300))
                sent.add(n)
                if n % 7 == 0:
                    await anyio.lowlevel.checkpoint()

    async def visit(scope: anyio.CancelScope) -> None:
        guest = Collect()
        guests.append(guest)
        with scope:
            await recording.attach(guest)
            for _ in range(rng.randrange(4)):
                await anyio.lowlevel.checkpoint()
            await recording.detach(guest)

    async def one(first: int, kind: int) -> None:
        nonlocal done
        scope = anyio.CancelScope()
        async with anyio.create_task_group() as group:
            if kind:
                group.start_soon(produce, scope, first)
            else:
                group.start_soon(visit, scope)
            for _ in range(rng.randrange(8)):
                await anyio.lowlevel.checkpoint()
            scope.cancel()
        done += 1

    async with record(*sinks, page_size=PAGE, pages=24) as recording:
        first = 0
        while done < cancellations:
            async with anyio.create_task_group() as group:
                for kind in (1, 1, 1, 1, done % 40):
                    group.start_soon(one, first, kind)
                    first += 400
            statistics = recording.statistics()
            check_laws(statistics)
    statistics = recording.statistics()
    check_closed(statistics)
    for sink in sinks:
        check_sink_has(sink, statistics)
        assert sent <= set(sink.numbers) <= asked, "sent is delivered, and cancelled is not written"
        assert len(asked) - len(sink.numbers) <= done
    assert statistics.events_dropped == 0
    assert all(set(guest.numbers.values()) <= {1} for guest in guests)
