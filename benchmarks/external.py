"""What tracing costs an echo server when another process reads its events, and when its own does: windows on and off.

The example's server and clients (examples/echo.py) answer messages in windows; tracing is on in every second one, in
changing order. "task" traces each step of each task; wall is seconds for a window, CPU those of the program's own
process (the recorder's is another). A ratio is of the medians, or of the minima: on a busy machine CPU says more.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Final

from .table import Table

WINDOWS: Final = 20
MESSAGES: Final = 4000
ROOT: Final = Path(__file__).resolve().parent.parent

PROGRAM: Final = """
import asyncio, contextlib, gc, io, json, sys, time
sys.path.insert(0, sys.argv[1])
import echo
from aiotrace._launcher import process

windows, messages, out = int(sys.argv[2]), int(sys.argv[3]), sys.argv[4]
recording = process.current._recording
found = {"on": [], "off": []}

async def window(on):
    (recording.enable if on == "on" else recording.disable)("task")
    gc.collect()
    wall, cpu = time.perf_counter(), time.process_time()
    with contextlib.redirect_stdout(io.StringIO()):
        await echo.main(16, messages)
    found[on].append((time.perf_counter() - wall, time.process_time() - cpu))

async def main():
    for on in ("on", "off"):
        await window(on)
        found[on].clear()
    for number in range(windows):
        for on in (("on", "off"), ("off", "on"))[number % 2]:
            await window(on)

asyncio.run(main())
with open(out, "w") as file:
    json.dump(found, file)
"""


def measure(folder: Path, options: list[str], windows: int, messages: int) -> dict[str, list[list[float]]]:
    """[wall, CPU] in seconds of each window, on and off."""
    out = folder / "out.json"
    record = [sys.executable, "-m", "aiotrace", "record", *options, "-q", "--force", "-e", "task"]
    record += ["-b", "16M", "-o", str(folder / "t.dat")]
    path = os.pathsep.join(entry for entry in (str(ROOT), os.environ.get("PYTHONPATH")) if entry)
    subprocess.run(
        [*record, "-c", PROGRAM, str(ROOT / "examples"), str(windows), str(messages), str(out)],
        check=True, env={**os.environ, "PYTHONPATH": path},
    )  # fmt: skip
    found: dict[str, list[list[float]]] = json.loads(out.read_text())
    return found


def run(windows: int = WINDOWS, messages: int = MESSAGES) -> Table:
    """Measure both."""
    table = Table(
        f"{windows} windows of {messages} messages each, traced and not, in turn",
        ("reader", "", "off, min s", "off, median s", "on, min s", "on, median s", "ratio of min", "of medians"),
    )
    with tempfile.TemporaryDirectory() as name:
        for reader, options in (("another process", ["--external"]), ("a thread of the program", ["--exec"])):
            found = measure(Path(name), options, windows, messages)
            for place, what in enumerate(("wall", "CPU")):
                off, on = ([window[place] for window in found[each]] for each in ("off", "on"))
                medians = statistics.median(off), statistics.median(on)
                ratios = min(on) / min(off), medians[1] / medians[0]
                table.rows.append((reader, what, min(off), medians[0], min(on), medians[1], *ratios))
    table.notes = (f"load average at the end: {os.getloadavg()[0]:.1f}, on {os.cpu_count()} processors",)
    return table
