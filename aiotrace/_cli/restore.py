"""Complete the trace that a killed program left: FILE, FILE.journal and its spool files, or an arena.

examples:
  aiotrace restore trace.dat
  aiotrace restore /dev/shm/app.arena -o trace.dat

An unfinished trace or an arena can also be read as it is: aiotrace report FILE. An arena is removed once the trace
contains all of it. The exit status is 3 if pages were damaged.
"""

from __future__ import annotations

import argparse
import errno
import os
import sys
from typing import Final

from .._base.errors import ConfigurationError
from .._base.terminal_text import escape
from . import _losses, _restore_summary

NAME: Final = "restore"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("file", metavar="FILE", help="an unfinished trace with its FILE.journal, or an arena")
    parser.add_argument("-o", dest="output", metavar="TRACE", help="write the trace of an arena to TRACE")


def run(arguments: argparse.Namespace) -> int:
    from .._arena.file import is_arena
    from .._store.restore import restore
    from .._store.trace_files import journal_path

    if is_arena(arguments.file):
        return _restore_arena(arguments)
    if _finish_abandoned(arguments.file):
        return 0
    if arguments.output is not None:
        raise ConfigurationError(
            f"-o {arguments.output}: {arguments.file} is not an arena, so it is completed in place: remove -o"
        )
    if os.path.exists(arguments.file) and not os.path.lexists(journal_path(arguments.file)):
        text = "there is no journal beside it, so there is nothing to restore"
        raise FileNotFoundError(errno.ENOENT, text, arguments.file)
    report = restore(arguments.file)
    name = escape(arguments.file)
    if report.was_complete:
        print(f"{name} was complete")
        return 0
    print(f"{name}: {report.events} events on {report.pages} pages")
    for placed in report.damaged[:20]:
        entry = placed.entry
        print(
            f"aiotrace restore: {name}: page {entry.sequence} of writer {entry.writer} is damaged: "
            f"{entry.events_count} events lost",
            file=sys.stderr,
        )
    if len(report.damaged) > 20:
        print(f"aiotrace restore: {name}: {len(report.damaged)} pages are damaged", file=sys.stderr)
    for found in report.journal_damage:
        print(f"aiotrace restore: {name}: the journal, at {found.offset}: {found.reason}", file=sys.stderr)
    return _losses.LOST if report.damaged else 0


def _finish_abandoned(path: str) -> bool:
    """Finish the traces in the folder whose recorder was killed: what they lack is in their buffers. Returns whether
    this one is complete then."""
    from .._launcher import run_folder

    place = os.path.dirname(os.path.abspath(path))
    if not run_folder.has_abandoned(place):
        return False

    from .._launcher.leftovers import finish_abandoned

    lines = list(finish_abandoned(place))
    for line in lines:
        print(escape(line))
    return any(line.startswith(f"{os.path.abspath(path)}: finished") for line in lines)


def _restore_arena(arguments: argparse.Namespace) -> int:
    from .._arena.restore import restore_arena

    if arguments.output is None:
        raise ConfigurationError(f"{arguments.file} is an arena: give the file for its trace with -o")
    report = restore_arena(arguments.file, arguments.output)

    # One that `aiotrace record` left in a folder of its own.
    from .._launcher.run_folder import remove_after

    if not os.path.lexists(arguments.file):
        remove_after(arguments.file)
    return _restore_summary.print_result(NAME, arguments.file, arguments.output, report)
