"""Summarize a trace: events by kind and by writer, their sizes and rates, and what is missing.

examples:
  aiotrace stat
  aiotrace stat other.dat

The exit status is 3 if events are missing.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable
from typing import Final

from .._base.terminal_text import escape
from ..decode import TraceStatistics, format_time, open_trace
from . import _losses
from ._recording_plan import OUTPUT

NAME: Final = "stat"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    text = f"a trace.dat of aiotrace or of the kernel (default: {OUTPUT})"
    parser.add_argument("file", nargs="?", default=OUTPUT, metavar="FILE", help=text)


def run(arguments: argparse.Namespace) -> int:
    with open_trace(arguments.file) as trace:
        statistics = trace.statistics()
        print("\n".join(_lines(statistics, trace.complete)))
        _losses.report_unfinished(NAME, trace)
        return _losses.LOST if _losses.report(NAME, trace) else 0


def _lines(statistics: TraceStatistics, complete: bool) -> Iterable[str]:
    yield f"file     {escape(statistics.path)}, {statistics.size} bytes{'' if complete else ', not finished'}"
    yield f"clock    {escape(statistics.clock) or 'unknown'}"
    first, last = statistics.first_ns, statistics.last_ns
    if first is not None and last is not None:
        seconds = (last - first) / 1e9
        yield f"time     {format_time(first).strip()} to {format_time(last).strip()}, {seconds:.6f} s"
    else:
        seconds = 0.0
    yield f"events   {statistics.count}{_rate(statistics.count, seconds)}"
    if statistics.damage:
        yield f"damage   {statistics.damage} places could not be read"
    yield ""
    yield from _table(
        ("writer", "pages", "events", "bytes", "events/s", "lost", "first", "last"),
        (
            (
                f"{escape(w.buffer)}:{w.cpu}" if w.buffer else str(w.cpu),
                str(w.pages),
                str(w.count),
                str(w.bytes),
                _rate(w.count, seconds, bare=True),
                _losses.amount(w.lost, w.uncounted_losses),
                format_time(w.first_ns).strip() if w.first_ns is not None else "-",
                format_time(w.last_ns).strip() if w.last_ns is not None else "-",
            )
            for w in statistics.writers
        ),
    )
    yield ""
    yield from _table(
        ("event", "events", "bytes", "bytes/event", "events/s"),
        (
            (escape(name), str(c.count), str(c.bytes), f"{c.bytes / c.count:.1f}", _rate(c.count, seconds, bare=True))
            for name, c in sorted(statistics.events.items(), key=lambda item: -item[1].count)
        ),
    )


def _rate(count: int, seconds: float, *, bare: bool = False) -> str:
    if seconds <= 0:
        return "-" if bare else ""
    return f"{count / seconds:.0f}" if bare else f", {count / seconds:.0f}/s"


def _table(head: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> Iterable[str]:
    """Aligned columns: the first to the left, the numbers to the right."""
    table = [head, *rows]
    widths = [max(len(row[column]) for row in table) for column in range(len(head))]
    for row in table:
        cells = [row[0].ljust(widths[0])] + [cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True)]
        yield "  ".join(cells).rstrip()
