"""Losses and damage, as commands report them on stderr and in their exit status."""

from __future__ import annotations

import sys
from typing import Final

from .._base.terminal_text import escape
from ..decode import Loss, Trace

LOST: Final = 3


def report(command: str, trace: Trace) -> bool:
    """Print a line to stderr for missing events and one for damage; returns whether there was any."""
    losses = trace.losses
    if losses:
        print(f"aiotrace {command}: {escape(trace.path)}: {describe(losses)}", file=sys.stderr)
    if trace.damage_count:
        first = trace.damage[0]
        print(
            f"aiotrace {command}: {escape(trace.path)}: damaged in {trace.damage_count} places, the first "
            f"at offset {first.offset}: {escape(first.message)}",
            file=sys.stderr,
        )
    return bool(losses) or trace.damage_count > 0


def report_unfinished(command: str, trace: Trace) -> None:
    """Print a line to stderr if the trace was never closed: its program still runs, or was killed."""
    if not trace.complete:
        print(
            f"aiotrace {command}: {escape(trace.path)}: not finished, read as far as it goes; if its program has "
            f"ended, complete it with: aiotrace restore {escape(trace.path)}",
            file=sys.stderr,
        )


def describe(losses: list[Loss]) -> str:
    """How many events are missing, and where."""
    where = ", ".join(
        f"{escape(loss.buffer) + ' ' if loss.buffer else ''}CPU {loss.cpu}: {amount(loss.count, loss.uncounted)}"
        for loss in losses[:8]
    )
    more = f", and {len(losses) - 8} more" if len(losses) > 8 else ""
    total = amount(sum(loss.count for loss in losses), sum(loss.uncounted for loss in losses))
    return f"events lost: {total} ({where}{more})"


def amount(count: int, uncounted: int) -> str:
    """ "5", "some in 2 places", or both."""
    some = f"some in {uncounted} place{'s' if uncounted != 1 else ''}"
    return f"{count} and {some}" if count and uncounted else some if uncounted else str(count)
