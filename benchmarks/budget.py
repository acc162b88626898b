"""Whether a budget is held: programs under `aiotrace record --budget`, by aiotrace's own account and seen from outside.

Each program does the same small piece of work over and over and notes the processor time of its process, our threads
in it too, that each piece took. "outside" is that of a piece, by that of a piece untraced, less 1, without the first
seconds; the account is of that time too. Rounds are interleaved. On a busy machine the least of the rounds says most;
processor time still varies with what else is in the caches.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any, Final

from .table import Cell, Table

ROUNDS: Final = 3
SECONDS: Final = 7.0
"""Of a run, of which the first are left out."""
SETTLE: Final = 3.0
BUDGETS: Final = ("", "5%", "1%")
"""None, and two."""
ROOT: Final = Path(__file__).resolve().parent.parent

PROGRAM: Final = """
import json, sys, time
import anyio

backend, seconds, settle, out = sys.argv[1], float(sys.argv[2]), float(sys.argv[3]), sys.argv[4]

def parse(depth):
    return {} if not depth else {"a": parse(depth - 1), "b": parse(depth - 1), "c": [1, 2, 3]}

def walk(value):
    return sum(map(walk, value.values())) + 1 if isinstance(value, dict) else len(value)

async def serve(number, sending):
    await anyio.sleep(0)
    await sending.send(walk(parse(5)) + len(json.dumps(parse(3), indent=1)) + number)

async def piece():
    sending, receiving = anyio.create_memory_object_stream(100)
    async with sending, receiving, anyio.create_task_group() as group:
        for number in range(20):
            group.start_soon(serve, number, sending)
        for _ in range(20):
            await receiving.receive()

def account():
    launch = sys.modules.get("aiotrace._launcher.process")
    budget = launch.current._recording.statistics().budget if launch is not None and launch.current else None
    if budget is None:
        return None
    return [budget.spent * budget.busy_ns, budget.busy_ns, list(budget.off)]

async def main():
    end = time.monotonic() + seconds
    while time.monotonic() < end - (seconds - settle):
        await piece()
    before, began, pieces = account(), time.process_time(), 0
    while time.monotonic() < end:
        await piece()
        pieces += 1
    found = {"piece": (time.process_time() - began) / pieces, "before": before, "after": account()}
    with open(out, "w") as file:
        json.dump(found, file)

anyio.run(main, backend=backend)
"""


def measure(folder: Path, backend: str, options: list[str] | None, seconds: float, settle: float) -> dict[str, Any]:
    """One run; no options: untraced."""
    out = folder / "out.json"
    words = [sys.executable]
    if options is not None:
        words += ["-m", "aiotrace", "record", "-q", "--force", "-b", "16M", "-o", str(folder / "t.dat"), *options]
    path = os.pathsep.join(entry for entry in (str(ROOT), os.environ.get("PYTHONPATH")) if entry)
    words += ["-c", PROGRAM, backend, str(seconds), str(settle), str(out)]
    subprocess.run(words, check=True, env={**os.environ, "PYTHONPATH": path}, capture_output=True, timeout=120)
    found: dict[str, Any] = json.loads(out.read_text())
    return found


def _account(found: dict[str, Any]) -> float:
    """What aiotrace measured after the first seconds, as a share."""
    (cost, busy, _), (cost_after, busy_after, _) = found["before"], found["after"]
    return float((cost_after - cost) / max(busy_after - busy, 1))


def run(rounds: int = ROUNDS, seconds: float = SECONDS, settle: float = SETTLE) -> Table:
    """Measure, on asyncio and trio."""
    ways: dict[tuple[str, str], list[str] | None] = {("untraced", ""): None}
    for budget in BUDGETS:
        options = ["-e", "all", "-p", "function_graph", *(["--budget", budget] if budget else [])]
        ways["in the program", budget] = [*options, "--exec"]
    ways["another process", "1%"] = options
    rows: list[tuple[Cell, ...]] = []
    with tempfile.TemporaryDirectory() as name:
        for backend in ("asyncio", "trio"):
            found: dict[tuple[str, str], list[dict[str, Any]]] = {way: [] for way in ways}
            for _ in range(rounds):
                for way, words in ways.items():
                    found[way].append(measure(Path(name), backend, words, seconds, settle))
            rows += _rows(backend, found)
    return Table(
        f"Programs with every call recorded, under a budget, after {settle:.0f} s; cost in percent",
        ("loop", "reader", "budget", "outside, of min", "of medians", "by its account, median", "off"),
        rows,
        (
            "outside: processor time of a piece of work, by that of the untraced program, less 1.",
            f"load average at the end: {os.getloadavg()[0]:.1f}, on {os.cpu_count()} processors; {rounds} rounds",
        ),
    )


def _rows(backend: str, found: dict[tuple[str, str], list[dict[str, Any]]]) -> list[tuple[Cell, ...]]:
    plain = [each["piece"] for each in found["untraced", ""]]
    rows: list[tuple[Cell, ...]] = []
    for (reader, budget), runs in found.items():
        if reader == "untraced":
            continue
        pieces = [each["piece"] for each in runs]
        outside = (
            100 * (min(pieces) / min(plain) - 1),
            100 * (statistics.median(pieces) / statistics.median(plain) - 1),
        )
        account: Cell = round(100 * statistics.median(map(_account, runs)), 3) if budget else "-"
        off = ", ".join(runs[-1]["after"][2]) if budget else "-"
        rows.append((backend, reader, budget or "none", *outside, account, off))
    return rows
