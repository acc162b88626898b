"""The result of restoring an arena: a line on stdout, and on stderr what could not be read."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Final

from .._base.terminal_text import escape
from . import _losses

if TYPE_CHECKING:
    from .._arena.restore import RescueReport

SHOWN: Final = 20
"""At most this many damaged pages are listed."""


def print_result(command: str, arena: str, output: str, report: RescueReport) -> int:
    """Print it; returns the exit status."""
    lost = f", {report.lost} lost between them" if report.lost else ""
    print(f"{escape(output)}: {report.events} events on {report.pages} pages{lost}")
    name = f"aiotrace {command}: {escape(arena)}"
    lines = [f"page {bad.sequence} of writer {bad.writer} is damaged: {bad.reason}" for bad in report.damaged[:SHOWN]]
    if len(report.damaged) > SHOWN:
        lines.append(f"{len(report.damaged)} pages are damaged")
    lines += [f"the definitions, at {found.offset}: {found.reason}" for found in report.definitions_damage]
    if report.definitions_refused:
        lines.append(
            f"{report.definitions_refused} definitions did not fit into the arena: what they name is shown as a number"
        )
    for line in lines:
        print(f"{name}: {escape(line)}", file=sys.stderr)
    return _losses.LOST if report.damaged or report.definitions_damage else 0
