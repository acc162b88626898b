"""List the events that a trace defines or, without a file, the installed sinks and tracers.

examples:
  aiotrace list
  aiotrace list trace.dat
  aiotrace list --versions
"""

from __future__ import annotations

import argparse
import importlib.metadata
import platform
from typing import Final

from .._base.backend import WHY_PYTHON
from .._base.terminal_text import escape
from .._events.tracer_switch import TRACERS
from ..decode import open_trace

LIBRARIES: Final = ("anyio", "trio", "uvloop", "backports.zstd")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    what = parser.add_mutually_exclusive_group()
    what.add_argument("file", nargs="?", metavar="FILE", help="a trace.dat of aiotrace or of the kernel")
    what.add_argument(
        "--versions", action="store_true", help="print the versions of aiotrace, Python and the libraries it uses"
    )


def run(arguments: argparse.Namespace) -> int:
    if arguments.versions:
        _list_versions()
    elif arguments.file is not None:
        _list_events(arguments.file)
    else:
        _list_installed()
    return 0


def _list_events(path: str) -> None:
    with open_trace(path) as trace:
        for format in trace.formats:
            fields = ", ".join(f"{escape(field.type)} {escape(field.name)}" for field in format.own_fields)
            print(f"{escape(format.full_name)}  [{format.id}]  {fields}")


def _list_installed() -> None:
    print("sinks:")
    for entry in sorted(importlib.metadata.entry_points(group="aiotrace.sinks"), key=lambda entry: entry.name):
        print(f"  {entry.name:<14} {entry.value}")
    print("tracers:")
    for system, module in sorted(TRACERS.items()):
        print(f"  {system:<14} {module}")


def _list_versions() -> None:
    import aiotrace

    why = f", {WHY_PYTHON}" if WHY_PYTHON else ""
    print(f"aiotrace {aiotrace.__version__} ({aiotrace.__backend__}{why})")
    print(f"{platform.python_implementation()} {platform.python_version()}")
    print(f"{platform.system()} {platform.release()} {platform.machine()}")
    for name in LIBRARIES:
        try:
            version = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            version = "not installed"
        print(f"{name} {version}")
