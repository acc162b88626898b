"""Durations, counts and tables as text."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Final

from .._base.terminal_text import escape

INDENT: Final = "    "


def duration(ns: int) -> str:
    """Three digits and a unit: 950 ns, 45.1 us, 150 ms, 1.20 s."""
    value, unit = float(ns), "ns"
    for larger in ("us", "ms", "s"):
        if value < 999.5:
            break
        value /= 1000
        unit = larger
    digits = 0 if unit == "ns" or value >= 99.95 else 1 if value >= 9.995 else 2
    return f"{value:.{digits}f} {unit}"


def times(count: int, what: str) -> str:
    """1 task, 2,000 tasks."""
    return f"{count:,} {what}{'' if count == 1 else 's'}"


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> Iterator[str]:
    """Numbers to the right, and the last column, which is text, to the left."""
    all_rows = [list(map(escape, row)) for row in (head, *rows)]
    widths = [max(len(row[column]) for row in all_rows) for column in range(len(head) - 1)]
    for row in all_rows:
        numbers = (f"{cell:>{width}}" for cell, width in zip(row, widths, strict=False))
        yield f"{'  '.join(numbers)}  {row[-1]}".rstrip()


def block(title: str, facts: Iterable[tuple[str, str]]) -> Iterator[str]:
    """A line, and below it a line for each fact that is known."""
    yield escape(title)
    for name, value in facts:
        if value:
            yield f"{INDENT}{name:<13} {escape(value)}"
