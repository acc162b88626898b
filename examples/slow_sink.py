"""Several sinks, one of them slow: a file that gets everything, and a viewer that takes one page a second.

    python examples/slow_sink.py trace.dat

The viewer is attached with on_full="skip": pages that arrive while it is full are skipped and counted, and the next
page that it receives states how many events it missed. The file is not slower for it, nor is the program.
"""

from __future__ import annotations

import argparse

import anyio

import aiotrace
from aiotrace.abc import PageStream
from aiotrace_sinks import FileSink

step = aiotrace.event("work:step", number="u64", text="str")


async def view(stream: PageStream) -> None:
    """Takes one page a second, as one does who looks at each."""
    async for page in stream:
        print(f"  viewer: page {page.sequence}, {page.events_count:,} events, missed {page.lost_before:,} before it")
        await anyio.sleep(1)
        stream.acknowledge(page)


async def run(trace: str, steps: int) -> None:
    viewer = aiotrace.sink(view, quota=2, on_full="skip")
    async with aiotrace.record(FileSink(trace), viewer) as recording:
        for number in range(steps):
            await step.send(number, "a step of some work")
            if number % 1000 == 999:
                await anyio.sleep(0.005)
    statistics = recording.statistics()
    print(f"{statistics.events_written:,} events written, {statistics.events_dropped:,} dropped")
    for sink in statistics.sinks:
        print(
            f"{sink.name}: {sink.events_delivered:,} of {sink.events_offered:,} events, {sink.events_missed:,} missed"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("trace", help="the file to write; it must not exist")
    parser.add_argument("--steps", type=int, default=150_000, help="how much to work; default: %(default)s")
    parser.add_argument("--backend", choices=("asyncio", "trio"), default="asyncio", help="default: %(default)s")
    arguments = parser.parse_args()
    anyio.run(run, arguments.trace, arguments.steps, backend=arguments.backend)


if __name__ == "__main__":
    main()
