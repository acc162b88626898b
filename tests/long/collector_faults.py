"""The table of docs/measurements/reliability.md: the collector under faults, at large counts.

    ./dev faults                 all of it, some 20 minutes; as root, or R8 and the cable of R11 are NOT RUN
    ./dev faults R5 R10          these
    ./dev faults --scale 0.01    fewer, to see that it works
    ./dev faults --seed 7        another order of things

Each line is a run of its own: a collector (`aiotrace listen`), producers (programs with a recording and a SocketSink,
page_size 4096), and an oracle that wrote down, in each producer, what it was told is safe before it believed it.
"""

from __future__ import annotations

import argparse
import os
import platform
import random
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from support import faults
from support.faults import Cutter, Listener, Scene, Verdict

Result = tuple[str, Verdict]
"""What was done, with its counts, and what the oracle says."""


@contextmanager
def scene_in(folder: Path, size: str | None = None) -> Iterator[Scene]:
    """A collector and its folder, on a disk of its own if it is to be a small one."""
    traces = folder / "traces"
    traces.mkdir()
    if size is not None:
        subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", traces], check=True)
    scene = Scene(folder, Listener(f"unix:{folder / 'socket'}", traces))
    try:
        scene.listener.start() if size is None else None
        yield scene
    finally:
        scene.close()
        if size is not None:
            subprocess.run(["umount", "-l", traces], check=True)


def r5(folder: Path, generator: random.Random, scale: float) -> Result:
    kills, pages = max(2, round(100 * scale)), max(200, round(60_000 * scale))
    with scene_in(folder) as scene:
        scene.produce(2)
        scene.produce(1, waits=False)
        scene.produce(1, waits=False, backend="trio")
        resumed = faults.kill_collector(scene, generator, kills, pages)
        verdict = scene.finish()
    verdict.resumed = resumed
    return f"{kills} SIGKILLs of the collector, 4 producers", verdict


def r8(folder: Path, generator: random.Random, scale: float) -> Result:
    times = max(2, round(50 * scale))
    with scene_in(folder, "64m") as scene:
        scene.listener.start()
        scene.produce(4, pause=0.05)
        resumed = faults.fill_disk(scene, generator, times, 40 * times)
        verdict = scene.finish()
    verdict.resumed = resumed
    return f"disk full {times} times (tmpfs), 4 producers", verdict


def r9(folder: Path, generator: random.Random, scale: float) -> Result:
    pages = max(200, round(20_000 * scale))
    fiu_run = shutil.which("fiu-run")
    assert fiu_run is not None
    traces = folder / "traces"
    scene = Scene(folder, Listener(f"unix:{folder / 'socket'}", traces))
    faults.make_faulty(scene.listener, fiu_run)
    try:
        scene.listener.start()
        scene.produce(4)
        faults.wait_for_long(lambda: scene.pages() >= pages)
        verdict = scene.finish()
        failed = scene.listener.errors().count("an fsync failed")
    finally:
        scene.close()
    return f"10 % EIO, 20 % short writes, 5 % of fsyncs fail ({failed} did), 4 producers", verdict


def r10(folder: Path, generator: random.Random, scale: float) -> Result:
    cuts = max(20, round(1000 * scale))
    with scene_in(folder) as scene:
        cutter = Cutter(str(folder / "cut"), scene.listener.address, generator, most=1 << 16)
        scene.produce(4, cutter.address)
        faults.cut_connections(scene, cutter, cuts)
        verdict = scene.finish()
        cutter.close()
    return f"{cuts} connections reset after byte k, k random", verdict


def r11_stopped(folder: Path, generator: random.Random, scale: float) -> Result:
    times = max(1, round(20 * scale))
    with scene_in(folder) as scene:
        scene.produce(4, heartbeat=1.0)
        resumed = faults.stop_collector(scene, generator, times, heartbeat=1.0)
        verdict = scene.finish()
    verdict.resumed = resumed
    return f"SIGSTOP of the collector {times} times, for 3 to 4 heartbeats of 1 s", verdict


def r11_cable(folder: Path, generator: random.Random, scale: float) -> Result:
    times = max(1, round(20 * scale))
    with faults.between_machines(folder) as (scene, namespaces):
        scene.listener.start()
        scene.produce(2, heartbeat=1.0)
        resumed = faults.pull_cable(scene, namespaces, generator, times, heartbeat=1.0)
        verdict = scene.finish()
    verdict.resumed = resumed
    return (
        f"link down {times} times between two network namespaces, for 2.5 to 3.5 heartbeats of 1 s, TLS and token",
        verdict,
    )


def r12(folder: Path, generator: random.Random, scale: float) -> Result:
    pages = max(20, round(300 * scale))
    with scene_in(folder) as scene:
        cutter = Cutter(str(folder / "cut"), scene.listener.address, generator)
        cutter.wanted, cutter.bytes_a_second = 0, 40_000.0
        scene.produce(1, cutter.address, on_full="skip", file=str(folder / "file.dat"))
        scene.wait_for_pages(pages)
        cutter.bytes_a_second = None
        verdict = scene.finish()
        cutter.close()
        calls = scene.producers[0].ledger["calls"]
        missed = scene.producers[0].ledger["missed"]
        in_file = faults.numbers_in(folder / "file.dat")
        verdict.unaccounted += in_file != list(range(calls))
    return f"a collector of 40 kB/s beside a FileSink: of {calls} events it missed {missed}, the file 0", verdict


def r21(folder: Path, generator: random.Random, scale: float) -> Result:
    steps = max(4, round(150 * scale))
    is_root = os.geteuid() == 0
    with scene_in(folder, "512m" if is_root else None) as scene:
        if is_root:
            scene.listener.start()
        cutter = Cutter(str(folder / "cut"), scene.listener.address, generator, most=1 << 16)
        cutter.wanted = 0
        scene.produce(2, cutter.address, pause=0.02)
        scene.produce(1, cutter.address, waits=False, page_size=8192, pause=0.02)
        scene.produce(1, cutter.address, waits=False, backend="trio", pause=0.02)
        done = faults.at_random(scene, cutter, generator, steps, disk=is_root)
        verdict = scene.finish()
        cuts = cutter.cuts
        cutter.close()
    order = ", ".join(f"{count} {kind}" for kind, count in sorted(done.items()))
    return f"{steps} faults at random: {order} ({cuts} resets)", verdict


faults.PATIENCE = 600.0  # such a run is niced, on a machine that has other things to do

ROWS: dict[str, tuple[Callable[[Path, random.Random, float], Result], bool]] = {
    "R5": (r5, False),
    "R8": (r8, True),
    "R9": (r9, False),
    "R10": (r10, False),
    "R11": (r11_stopped, False),
    "R11-link": (r11_cable, True),
    "R12": (r12, False),
    "R21": (r21, False),
}
"""Each fault, and whether it needs to be root."""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("faults", nargs="*", metavar="FAULT", help=f"of {', '.join(ROWS)}; default: all")
    parser.add_argument("--scale", type=float, default=1.0, help="of the counts (default: 1)")
    parser.add_argument("--seed", type=int, default=1)
    arguments = parser.parse_args()
    if unknown := set(arguments.faults) - set(ROWS):
        parser.error(f"there is no fault {', '.join(sorted(unknown))}; there are {', '.join(ROWS)}")
    system = f"Python {platform.python_version()}, Linux {platform.release()}, {os.cpu_count()} cores"
    print(f"{system}, load {os.getloadavg()[0]:.1f}, seed {arguments.seed}, scale {arguments.scale:g}\n")
    print("| # | fault | pages acknowledged | missing | doubled | torn | unaccounted | goes on after, s | took, s |")
    print("|---|---|---|---|---|---|---|---|---|")
    good = True
    for name in arguments.faults or ROWS:
        function, needs_root = ROWS[name]
        if needs_root and os.geteuid() != 0:
            print(f"| {name} | NOT RUN: needs to be root |")
            continue
        good &= _run(name, function, arguments.seed, arguments.scale)
    return 0 if good else 1


def _run(name: str, function: Callable[[Path, random.Random, float], Result], seed: int, scale: float) -> bool:
    with tempfile.TemporaryDirectory() as folder:
        begun = time.monotonic()
        what, found = function(Path(folder), random.Random(seed), scale)
        took = time.monotonic() - begun
    resumed = "-"
    if found.resumed:
        within = sum(seconds <= 2 for seconds in found.resumed)
        resumed = f"median {statistics.median(found.resumed):.2f}, most {max(found.resumed):.2f}; "
        resumed += f"{within} of {len(found.resumed)} within 2"
    print(
        f"| {name} | {what} | {found.pages} | {found.missing} | {found.doubled} | {found.torn} | {found.unaccounted} "
        f"| {resumed} | {took:.0f} |",
        flush=True,
    )
    return found.is_good


if __name__ == "__main__":
    sys.exit(main())
