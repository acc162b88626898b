"""What a benchmark returns: rows under headings, for people and as JSON."""

from __future__ import annotations

import json
import os
import platform
from dataclasses import dataclass, field
from pathlib import Path

Cell = str | int | float


@dataclass
class Table:
    """A benchmark's outcome."""

    title: str
    columns: tuple[str, ...]
    rows: list[tuple[Cell, ...]] = field(default_factory=list)
    notes: tuple[str, ...] = ()
    """Sentences below the table: what the numbers are and are not."""

    def __str__(self) -> str:
        texts = [self.columns, *(tuple(map(_format, row)) for row in self.rows)]
        widths = [max(map(len, column)) for column in zip(*texts, strict=True)]
        lines = ["  ".join(text.rjust(width) for text, width in zip(row, widths, strict=True)) for row in texts]
        return "\n".join([self.title, "", *lines, "", *self.notes])

    def write_json(self, path: Path) -> None:
        """Write the table, and the machine that it was measured on."""
        machine = {"python": platform.python_version(), "system": platform.platform(), "processors": os.cpu_count()}
        rows = [dict(zip(self.columns, row, strict=True)) for row in self.rows]
        outcome = {"title": self.title, "machine": machine, "rows": rows, "notes": self.notes}
        path.write_text(json.dumps(outcome, indent=2) + "\n", encoding="utf-8")


def _format(cell: Cell) -> str:
    return f"{cell:.3f}" if isinstance(cell, float) else f"{cell:,}" if isinstance(cell, int) else cell
