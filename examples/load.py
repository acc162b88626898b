"""A client that keeps N connections to a local HTTP service busy, counts the answers and checks each.

    python examples/load.py --port 8080 --requests 20000 --connections 16

It talks to the loopback interface only. Exit status 1 if an answer was missing or not the one expected.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import sys
import time
from collections import Counter
from collections.abc import Iterator

PATHS = (("/", 200), ("/users/42", 200), ("/users/ada", 200), ("/nowhere", 404))
"""The paths to request in turn, and the status that each must return."""


class Load:
    """A number of requests over a number of connections."""

    def __init__(self, port: int, requests: int) -> None:
        self._port = port
        self._numbers: Iterator[int] = iter(range(requests))
        self._latencies_ns: list[int] = []
        self.requests = requests
        self.answers: Counter[int] = Counter()
        self.wrong = 0

    @property
    def answered(self) -> int:
        return self.answers.total()

    async def connection(self) -> None:
        """Take numbers from the common supply until it is empty, over one kept-alive connection."""
        reader, writer = await asyncio.open_connection("127.0.0.1", self._port)
        for number in self._numbers:
            path, expected = PATHS[number % len(PATHS)]
            started = time.monotonic_ns()
            writer.write(f"GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
            status = await self._read_status(reader)
            self._latencies_ns.append(time.monotonic_ns() - started)
            self.answers[status] += 1
            self.wrong += status != expected
        writer.close()
        await writer.wait_closed()

    async def _read_status(self, reader: asyncio.StreamReader) -> int:
        head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
        status_line, *headers = head.split("\r\n")
        lengths = [header.split(":")[1] for header in headers if header.lower().startswith("content-length:")]
        await reader.readexactly(int(lengths[0]))
        return int(status_line.split(" ")[1])

    async def show_progress(self) -> None:
        for second in itertools.count(1):
            await asyncio.sleep(1)
            print(f"  {second:3} s: {self.answered:,} of {self.requests:,} requests answered", flush=True)

    def print_result(self, seconds: float) -> None:
        statuses = ", ".join(f"{count:,} with {status}" for status, count in sorted(self.answers.items()))
        print(f"  {self.answered:,} requests answered in {seconds:.1f} s ({statuses}), {self.wrong} of them wrongly")
        if self._latencies_ns:
            ordered = sorted(self._latencies_ns)
            median, high = ordered[len(ordered) // 2], ordered[len(ordered) * 99 // 100]
            print(f"  latency as the client sees it: median {median / 1e6:.2f} ms, 99th percentile {high / 1e6:.2f} ms")


async def run(port: int, requests: int, connections: int) -> bool:
    """Whether every request got the answer expected.

    Raises:
        ExceptionGroup: of OSError and EOFError: the service is not there, or has closed a connection too early.
    """
    load = Load(port, requests)
    started = time.monotonic()
    progress = asyncio.create_task(load.show_progress())
    try:
        async with asyncio.TaskGroup() as group:
            for _ in range(connections):
                group.create_task(load.connection())
    finally:
        progress.cancel()
        load.print_result(time.monotonic() - started)
    return load.answered == requests and not load.wrong


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--port", type=int, default=8080, help="default: %(default)s")
    parser.add_argument("--requests", type=int, default=20_000, help="in all; default: %(default)s")
    parser.add_argument("--connections", type=int, default=16, help="at a time; default: %(default)s")
    arguments = parser.parse_args()
    try:
        good = asyncio.run(run(arguments.port, arguments.requests, arguments.connections))
    except ExceptionGroup as errors:
        sys.exit(f"load.py: port {arguments.port}: {errors.exceptions[0]}")
    sys.exit(not good)


if __name__ == "__main__":
    main()
