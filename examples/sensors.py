"""Back-pressure: sensors that are faster than the sink that stores their readings.

    python examples/sensors.py

The same readings are written twice. A plain call, `reading(...)`, never waits: when the sink has all the pages, the
reading is dropped and counted. `await reading.send(...)` waits for a free page: nothing is lost, and the
sensors run as fast as the sink does.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Coroutine
from typing import Any

import anyio

import aiotrace
from aiotrace.abc import PageStream

reading = aiotrace.event("sensor:reading", sensor="symbol", number="u32", celsius="f64")

PAGES = 8
PAGE_SIZE = 4096


async def slow_storage(stream: PageStream) -> None:
    """Takes 2 ms for a page."""
    async for page in stream:
        await anyio.sleep(0.002)
        stream.acknowledge(page)


async def measure_dropping(sensor: str, readings: int) -> None:
    for number in range(readings):
        reading(sensor, number, 20.0 + number % 10)
        if number % 1000 == 0:  # a burst is more than the pool holds
            await anyio.sleep(0)  # let the other sensors have their turn, as a real one would


async def measure_waiting(sensor: str, readings: int) -> None:
    for number in range(readings):
        await reading.send(sensor, number, 20.0 + number % 10)


async def record(
    measure: Callable[[str, int], Coroutine[Any, Any, None]], sensors: int, readings: int
) -> tuple[float, aiotrace.Statistics]:
    """Seconds that the sensors took, and the ledger."""
    async with aiotrace.record(slow_storage, pages=PAGES, page_size=PAGE_SIZE) as recording:
        started = anyio.current_time()
        async with anyio.create_task_group() as group:
            for index in range(sensors):
                group.start_soon(measure, f"sensor {index}", readings)
        seconds = anyio.current_time() - started
    return seconds, recording.statistics()


async def run(sensors: int, readings: int) -> None:
    print(f"{'':18} {'seconds':>8} {'written':>9} {'delivered':>9} {'dropped':>9}")
    for name, measure in {"reading(...)": measure_dropping, "reading.send(...)": measure_waiting}.items():
        seconds, statistics = await record(measure, sensors, readings)
        counts = (statistics.events_written, statistics.events_delivered, statistics.events_dropped)
        print(f"{name:18} {seconds:8.2f}", *(f"{count:9,}" for count in counts))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sensors", type=int, default=4, help="default: %(default)s")
    parser.add_argument("--readings", type=int, default=10_000, help="of each; default: %(default)s")
    parser.add_argument("--backend", choices=("asyncio", "trio"), default="asyncio", help="default: %(default)s")
    arguments = parser.parse_args()
    anyio.run(run, arguments.sensors, arguments.readings, backend=arguments.backend)


if __name__ == "__main__":
    main()
