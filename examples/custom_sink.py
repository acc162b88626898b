"""A custom sink: an async callable that receives pages and acknowledges them.

    python examples/custom_sink.py

The sink may read a page's memory until it acknowledges the page; then the recording reuses it.
"""

from __future__ import annotations

import argparse
import asyncio
from collections import Counter

import aiotrace
from aiotrace.abc import PageStream

tick = aiotrace.event("clock:tick", number="u64")


class CountingSink:
    """Counts events and bytes by writer. A plain async function would do as well; a class has room for results."""

    def __init__(self) -> None:
        self.events: Counter[int] = Counter()
        self.bytes: Counter[int] = Counter()

    async def __call__(self, stream: PageStream) -> None:
        async for page in stream:
            self.events[page.writer] += page.events_count
            self.bytes[page.writer] += len(page.data)
            stream.acknowledge(page)


async def run(ticks: int) -> None:
    sink = CountingSink()
    async with aiotrace.record(sink):
        for number in range(ticks):
            await tick.send(number)
    for writer, events in sorted(sink.events.items()):
        print(f"writer {writer}: {events:,} events in {sink.bytes[writer]:,} bytes")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ticks", type=int, default=100_000, help="events to write; default: %(default)s")
    asyncio.run(run(parser.parse_args().ticks))


if __name__ == "__main__":
    main()
