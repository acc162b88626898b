"""python -m benchmarks [NAME] [--write] [--json FILE]: run one, or list them.

It measures the aiotrace that it finds first, which in a checkout is the checkout's: where nothing was compiled in it
that is the pure-Python implementation, and stderr says so. `pip install -e .` compiles it there.

exit status: 0 measured, whatever the figures, 1 it cannot be measured here, 2 wrong arguments, 130 interrupted
"""

from __future__ import annotations

import argparse
import inspect
import math
import os
import sys
from collections.abc import Callable
from pathlib import Path

from aiotrace import ConfigurationError
from aiotrace._base.backend import WHY_PYTHON

from . import (
    arena,
    budget,
    decode,
    events,
    external,
    external_kills,
    files,
    flat,
    functions,
    kills,
    page_allocations,
    pipeline,
    sockets,
    startup,
    tracing,
)
from .floor import FOLDER, NotCompiledError
from .table import Table

BENCHMARKS: dict[str, tuple[str | None, Callable[..., Table]]] = {
    "arena": (arena.__doc__, arena.run),
    "budget": (budget.__doc__, budget.run),
    "decode": (decode.__doc__, decode.run),
    "events": (events.__doc__, events.run),
    "external": (external.__doc__, external.run),
    "external_kills": (external_kills.__doc__, external_kills.run),
    "files": (files.__doc__, files.run),
    "flat": (flat.__doc__, flat.run),
    "functions": (functions.__doc__, functions.run),
    "kills": (kills.__doc__, kills.run),
    "page_allocations": (page_allocations.__doc__, page_allocations.run),
    "pipeline": (pipeline.__doc__, pipeline.run),
    "sockets": (sockets.__doc__, sockets.run),
    "startup": (startup.__doc__, startup.run),
    "tracing": (tracing.__doc__, tracing.run),
}

PAGES = FOLDER.parent / "docs" / "measurements"


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = math.nan
    if not 0 < seconds < math.inf:
        raise argparse.ArgumentTypeError(f"{text!r} should be seconds: 10, or 0.5")
    return seconds


def _writable(text: str) -> Path:
    """Known before hours are measured for it."""
    path = Path(text)
    if path.is_dir() or not os.access(path if path.exists() else path.parent, os.W_OK):
        raise argparse.ArgumentTypeError(f"{text!r} cannot be written")
    return path


def main() -> int:
    listing = "\n".join(f"  {name}: {(text or '').splitlines()[0]}" for name, (text, _) in BENCHMARKS.items())
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks",
        description=f"Benchmarks of aiotrace:\n{listing}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("name", nargs="?", choices=BENCHMARKS, metavar="NAME")
    parser.add_argument("--write", action="store_true", help="write the table into docs/measurements/NAME.md too")
    parser.add_argument("--json", type=_writable, metavar="FILE", help="write the table there too")
    parser.add_argument(
        "--seconds",
        type=_seconds,
        metavar="S",
        help="pipeline: how long the sustained rate is kept up; flat: the flight",
    )
    arguments = parser.parse_args()
    if arguments.name is None:
        if arguments.json or arguments.write or arguments.seconds:
            parser.error("which benchmark?")
        parser.print_help()
        return 0
    run = BENCHMARKS[arguments.name][1]
    options = {} if arguments.seconds is None else {"seconds": arguments.seconds}
    if not options.keys() <= inspect.signature(run).parameters.keys():
        parser.error(f"{arguments.name} takes no --seconds")
    if WHY_PYTHON:
        print(f"benchmarks: the pure-Python implementation is measured: {WHY_PYTHON}", file=sys.stderr)
    try:
        table = run(**options)
    except (ConfigurationError, ModuleNotFoundError, NotCompiledError) as error:
        print(f"benchmarks: {arguments.name} cannot be measured here: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("benchmarks: interrupted", file=sys.stderr)
        return 130
    print(table)
    if arguments.write:
        table.write_page(PAGES / f"{arguments.name}.md")
    if arguments.json:
        table.write_json(arguments.json)
    return 0


if __name__ == "__main__":
    sys.exit(main())
