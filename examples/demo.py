"""The whole path once, for real: `./dev demo`.

A service on asyncio, then the same on trio, answers real requests from load.py over the loopback interface and traces
them into a trace.dat. Then the real trace-cmd prints each file, and what it prints is counted and compared with the
recording's own ledger. Exit status: 0 if they agree, 1 if not, 2 if trace-cmd is missing, so that nothing was compared.
"""

from __future__ import annotations

import argparse
import re
import shutil
import subprocess
import sys
import tempfile
import textwrap
from collections import Counter
from collections.abc import Awaitable, Callable
from functools import partial
from pathlib import Path

import anyio
from anyio.abc import TaskStatus

import aiotrace
import http_service
import http_service_trio

SERVICES: dict[str, Callable[..., Awaitable[aiotrace.Statistics]]] = {
    "asyncio": http_service.serve,
    "trio": http_service_trio.serve,
}
LOAD = Path(__file__).with_name("load.py")
EVENT_LINE = re.compile(r"\[\d+\]\s+\d+\.\d+:\s+(\w+):")
"""An event in trace-cmd's output: `[cpu] time: name:`. A newline in a string makes a second line, so lines as such
do not count."""


async def serve_requests(backend: str, trace: Path, requests: int, connections: int) -> aiotrace.Statistics:
    """Serve requests that load.py, in a process of its own, makes.

    Raises:
        subprocess.CalledProcessError: load.py did not get every answer.
    """
    results: list[aiotrace.Statistics] = []

    async def service(*, task_status: TaskStatus[int]) -> None:
        results.append(await SERVICES[backend](str(trace), 0, requests, task_status=task_status))

    async with anyio.create_task_group() as group:
        port: int = await group.start(service)
        options = [f"--port={port}", f"--requests={requests}", f"--connections={connections}"]
        await anyio.run_process([sys.executable, str(LOAD), *options], stdout=None, stderr=None)
    return results[0]


def count_printed(trace_cmd: str, trace: Path) -> Counter[str]:
    """How many events of each name `trace-cmd report` prints."""
    printed: Counter[str] = Counter()
    with subprocess.Popen([trace_cmd, "report", "-i", str(trace)], stdout=subprocess.PIPE, text=True) as report:
        assert report.stdout is not None
        for line in report.stdout:
            if match := EVENT_LINE.search(line):
                printed[match[1]] += 1
    if report.returncode:
        sys.exit(f"trace-cmd report ended with status {report.returncode}")
    return printed


def check_trace(trace: Path, statistics: aiotrace.Statistics) -> bool:
    """Compare what trace-cmd prints with the ledger. True also where there is no trace-cmd: main says so."""
    trace_cmd = shutil.which("trace-cmd")
    if trace_cmd is None:
        print("  NOT RUN: trace-cmd is missing: apt-get install trace-cmd")
        return True
    printed = count_printed(trace_cmd, trace)
    for name, count in sorted(printed.items()):
        print(f"  trace-cmd prints {count:9,} x {name}")
    agree = printed.total() == statistics.events_delivered
    print(f"  trace-cmd prints {printed.total():9,} events: {'as' if agree else 'NOT as'} the ledger says")
    return agree


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, default=20_000, help="for each service; default: %(default)s")
    parser.add_argument("--connections", type=int, default=16, help="of the client; default: %(default)s")
    parser.add_argument("--directory", type=Path, help="where to write; default: a new one in the temporary directory")
    arguments = parser.parse_args()
    directory: Path = arguments.directory or Path(tempfile.mkdtemp(prefix="aiotrace-demo-"))

    agree = True
    traces: dict[Path, aiotrace.Statistics] = {}
    for backend in SERVICES:
        trace = directory / f"{backend}.dat"
        print(f"An HTTP service on {backend}, {arguments.requests:,} requests:", flush=True)
        run = partial(serve_requests, backend, trace, arguments.requests, arguments.connections)
        traces[trace] = anyio.run(run, backend=backend)
        print(textwrap.indent(str(traces[trace]), "  "))
        agree &= check_trace(trace, traces[trace])

    print("\nThe traces:")
    for trace, statistics in traces.items():
        size = trace.stat().st_size / 1e6
        lost = statistics.events_lost or "nothing"
        print(f"  {trace}: {statistics.events_delivered:,} events, {size:.1f} MB, {lost} lost")
    first = next(iter(traces))
    print(f"Open one with:\n  trace-cmd report {first} | less\n  kernelshark {first}")
    if not agree:
        sys.exit("demo: trace-cmd and the ledger DISAGREE")
    if not shutil.which("trace-cmd"):
        print("demo: NOT RUN: the comparison with trace-cmd, which is missing", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()
