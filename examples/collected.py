"""Two programs and a collector: what each program's ledger says was delivered is what its trace holds.

    python examples/collected.py

The collector receives two streams on a Unix socket and keeps a trace.dat of each. The programs write orders as fast as
they can, faster than the disk stores them; when no page is free, an order is dropped, and the ledger counts it.
At the end each program's ledger is compared with the orders that its trace holds.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path

import anyio

import aiotrace
from aiotrace_sinks import SocketSink

order = aiotrace.event("shop:order", shop="symbol", number="u32", item="str")


async def produce(address: str, shop: str, orders: int) -> None:
    """The program that is traced. The last line that it prints is its ledger."""
    async with aiotrace.record(SocketSink(address), page_size=4096, pages=128) as recording:
        for number in range(orders):
            order(shop, number, "tea" if number % 3 else "a very large teapot")
            if number % 100 == 0:
                await anyio.sleep(0)
    statistics = recording.statistics()
    print(json.dumps({"delivered": statistics.events_delivered, "lost": statistics.events_dropped}))


async def collect(folder: Path, orders: int) -> dict[str, dict[str, int]]:
    """The ledgers of two programs, when the collector has everything."""
    address = f"unix:{folder}/socket"
    ledgers: dict[str, dict[str, int]] = {}

    async def run(shop: str) -> None:
        command = [sys.executable, __file__, "--produce", shop, "--address", address, "--orders", str(orders)]
        done = await anyio.run_process(command, stderr=sys.stderr)
        ledgers[shop] = json.loads(done.stdout)

    async with aiotrace.collect(address, folder=folder / "traces"), anyio.create_task_group() as group:
        group.start_soon(run, "corner shop")
        group.start_soon(run, "market hall")
    return ledgers


def read_traces(folder: Path) -> dict[str, set[int]]:
    """The numbers of the orders in all traces, by shop; an order that is there twice ends the program."""
    numbers: dict[str, set[int]] = {}
    for path in sorted(folder.glob("**/*.dat")):
        with aiotrace.open_trace(path) as events:
            for event in events:
                if event.name != "shop:order":
                    continue
                found = numbers.setdefault(str(event.fields["shop"]), set())
                if event.fields["number"] in found:
                    sys.exit(f"{path} has order {event.fields['number']} twice")
                found.add(int(event.fields["number"]))
    return numbers


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--orders", type=int, default=20_000, help="of each program (default: 20000)")
    parser.add_argument("--produce", metavar="SHOP", help="be one of the programs")
    parser.add_argument("--address", help="where its collector is")
    arguments = parser.parse_args()
    if arguments.produce is not None:
        anyio.run(produce, arguments.address, arguments.produce, arguments.orders)
        return
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        ledgers = anyio.run(collect, folder, arguments.orders)
        numbers = read_traces(folder / "traces")
    wrong = False
    for shop, ledger in sorted(ledgers.items()):
        stored = len(numbers.get(shop, ()))
        wrong |= stored != ledger["delivered"] or ledger["delivered"] + ledger["lost"] != arguments.orders
        print(
            f"{shop}: {ledger['delivered']:,} orders delivered and {ledger['lost']:,} lost; its trace holds {stored:,}"
        )
    if wrong:
        sys.exit("the traces DISAGREE with the ledgers")
    print("the traces hold exactly what the ledgers say was delivered")


if __name__ == "__main__":
    main()
