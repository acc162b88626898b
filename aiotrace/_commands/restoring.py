"""Make a complete trace.dat of what a killed program left: FILE, FILE.journal and its spools.

examples:
  aiotrace restore trace.dat

The trace can also be read as it is: aiotrace report trace.dat. The exit status is 3 if pages were damaged.
"""

from __future__ import annotations

import argparse
import errno
import os
import sys
from typing import Final

from .._escape import escape
from . import _losses

NAME: Final = "restore"
HELP: Final = "make a complete trace of what a killed program left"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("file", metavar="FILE", help="the trace, whose journal is FILE.journal")


def run(arguments: argparse.Namespace) -> int:
    from .._closing import restore
    from .._files import journal_path

    if os.path.exists(arguments.file) and not os.path.lexists(journal_path(arguments.file)):
        text = "no journal stands beside it, so there is nothing to restore"
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
