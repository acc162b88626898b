"""python -m benchmarks [NAME] [--json FILE]: run one, or list them."""

from __future__ import annotations

import argparse
import inspect
from collections.abc import Callable
from pathlib import Path

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
    tracing,
)
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
    "tracing": (tracing.__doc__, tracing.run),
}


def main() -> None:
    listing = "\n".join(f"  {name}: {(text or '').splitlines()[0]}" for name, (text, _) in BENCHMARKS.items())
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks",
        description=f"Benchmarks of aiotrace:\n{listing}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("name", nargs="?", choices=BENCHMARKS, metavar="NAME")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the table there too")
    parser.add_argument(
        "--seconds", type=float, metavar="S", help="pipeline: how long the sustained rate is kept up; flat: the flight"
    )
    arguments = parser.parse_args()
    if arguments.name is None:
        parser.print_help()
        return
    run = BENCHMARKS[arguments.name][1]
    options = {} if arguments.seconds is None else {"seconds": arguments.seconds}
    if not options.keys() <= inspect.signature(run).parameters.keys():
        parser.error(f"{arguments.name} takes no --seconds")
    table = run(**options)
    print(table)
    if arguments.json:
        table.write_json(arguments.json)


if __name__ == "__main__":
    main()
