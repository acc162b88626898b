"""Rows R22 and R4 of docs/measurements/reliability.md: however a recorded program ends, its traces are finished.

    ./dev ends                   all of it, some hours
    ./dev ends SIGKILL os._exit  these ends
    ./dev ends --scale 0.02      fewer, to see that it works
    ./dev ends --seed 7          other moments
    ./dev ends --write           the table into docs/measurements/reliability.md, too

Each run is a busy server under `aiotrace record` and its end at a random moment; half of them have two to eight workers
(fork, spawn, forkserver, uvicorn, gunicorn), and there a worker ends first, or the main process. `support.ends` says
what is compared. A fault is printed with the case that it was found in.
"""

from __future__ import annotations

import argparse
import datetime
import os
import platform
import random
import re
import shutil
import signal
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from aiotrace._base.backend import c_module
from support import ROOT, ends
from support.ends import Verdict

RUNS = 200
"""Of each end, half of them with workers."""
PAGE = ROOT / "docs" / "measurements" / "reliability.md"
BEGIN, END = "<!-- program ends -->", "<!-- end of program ends -->"
"""Around what --write replaces."""
HEAD = (
    "| end | processes | runs | traces | committed | one more | missing | wrong | refused | unfinished | not read "
    "| arenas left | other status | outlived | took, s |\n" + "|---" * 15 + "|"
)


def row(end: str, servers: list[str], seed: int, runs: int, trace_cmd: str) -> tuple[str, Verdict]:
    """Run one end `runs` times. Returns a line of the table, and what was found."""
    generator = random.Random(f"{seed} {end} {servers}")
    first = generator.randrange(len(servers))  # a small run of all ends has all servers
    found = Verdict()
    begun = time.monotonic()
    for number in range(runs):
        case = ends.draw(generator, end, servers[(first + number) % len(servers)])
        with tempfile.TemporaryDirectory() as folder:
            verdict = ends.run_once(Path(folder), case, trace_cmd)
        found.add(verdict)
        for fault in verdict.faults:
            print(f"FAULT: {fault}", file=sys.stderr, flush=True)
        if sys.stderr.isatty():
            print(f"\r{end}: {number + 1} of {runs} ", end="", file=sys.stderr, flush=True)
    processes = "one" if servers == ["alone"] else "with workers"
    line = (
        f"| {end} | {processes} | {found.runs} | {found.files} | {found.committed:,} | {found.extra} | {found.missing} "
        f"| {found.wrong} | {found.refused} | {found.unfinished} | {found.unread} | {found.left} | {found.statuses} "
        f"| {found.orphaned} | {time.monotonic() - begun:.0f} |"
    )
    return line, found


def write(lines: list[str]) -> None:
    page = PAGE.read_text(encoding="utf-8")
    text = "\n".join([BEGIN, "", *lines, "", END])
    page, replaced = re.subn(f"{BEGIN}.*?{END}", lambda _: text, page, flags=re.DOTALL)
    assert replaced == 1, f"{PAGE} has no markers"
    PAGE.write_text(page, encoding="utf-8")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("ends", nargs="*", metavar="END", help=f"of {', '.join(ends.KINDS)}; default: all")
    parser.add_argument("--scale", type=float, default=1.0, help=f"of {RUNS} runs of each (default: 1)")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--write", action="store_true", help=f"write the table into {PAGE.relative_to(ROOT)}, too")
    arguments = parser.parse_args()
    if unknown := set(arguments.ends) - set(ends.KINDS):
        parser.error(f"there is no end {', '.join(sorted(unknown))}; there are {', '.join(ends.KINDS)}")
    trace_cmd = shutil.which("trace-cmd")
    if trace_cmd is None or c_module is None:
        print("NOT RUN: needs trace-cmd, and aiotrace's C module", file=sys.stderr)
        return 1

    # A shell starts what runs in its background with SIGINT ignored, which a program inherits.
    signal.signal(signal.SIGINT, signal.default_int_handler)

    servers = [server for server in ends.SERVERS if ends.can_run(server)]
    today = datetime.datetime.now(datetime.UTC).date()
    lines = [
        f"Python {platform.python_version()}, Linux {platform.release()}, {os.cpu_count()} cores, load "
        f"{os.getloadavg()[0]:.1f}, {today}, seed {arguments.seed}, scale {arguments.scale:g}; workers of "
        f"{', '.join(servers)}",
        "",
        *HEAD.splitlines(),
    ]
    print("\n".join(lines), flush=True)
    is_good = True
    for end in arguments.ends or ends.KINDS:
        for having in (["alone"], servers):
            line, found = row(end, having, arguments.seed, max(1, round(RUNS * arguments.scale / 2)), trace_cmd)
            print(line, flush=True)
            lines.append(line)
            is_good &= found.is_good
    for server in set(ends.SERVERS) - set(servers):
        lines.append(f"| all | with workers of {server} | NOT RUN: it is not installed |" + " |" * 12)
        print(lines[-1])
    if arguments.write:
        write(lines)
    return 0 if is_good else 1


if __name__ == "__main__":
    sys.exit(main())
