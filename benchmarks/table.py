"""What a benchmark returns: rows under headings, printed, as JSON, or written into a page of the documentation."""

from __future__ import annotations

import json
import os
import platform
import re
import shutil
import subprocess
import time
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from .floor import FOLDER

Cell = str | int | float
BEGIN, END = "<!-- measured -->", "<!-- end of measured -->"
"""Around what a benchmark writes into a page; text outside of them is kept."""


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
        lines = ["  ".join(map(str.rjust, row, widths)).rstrip() for row in texts]
        return "\n".join([self.title, "", *lines, "", *self.notes])

    def write_json(self, path: Path) -> None:
        """Write the table, and the machine that it was measured on."""
        rows = [dict(zip(self.columns, row, strict=True)) for row in self.rows]
        outcome = {"title": self.title, "machine": machine(), "rows": rows, "notes": self.notes}
        path.write_text(json.dumps(outcome, indent=2) + "\n", encoding="utf-8")

    def write_page(self, path: Path) -> None:
        """Write the table, and when and where it was measured, between the markers of a page.

        A page without markers gets them at its end; a page that does not exist is made, named like the file.
        """
        where = "; ".join(f"{name} {value}" for name, value in machine().items())
        measured = f"{BEGIN}\n\n{where}\n\n```text\n{self}\n```\n\n{END}"
        page = path.read_text(encoding="utf-8") if path.exists() else f"# {path.stem}\n"
        page, found = re.subn(f"{BEGIN}.*?{END}", lambda _: measured, page, flags=re.DOTALL)
        path.write_text(page if found else f"{page}\n{measured}\n", encoding="utf-8")


def _format(cell: Cell) -> str:
    return f"{cell:.3f}" if isinstance(cell, float) else f"{cell:,}" if isinstance(cell, int) else cell


def machine() -> dict[str, str | int | None]:
    """When, where and of which commit a benchmark measured."""
    cpuinfo = Path("/proc/cpuinfo")
    model = re.search(r"^model name\s*: (.*)", cpuinfo.read_text() if cpuinfo.exists() else "", re.MULTILINE)
    return {
        "date": time.strftime("%Y-%m-%d", time.gmtime()),
        "commit": _commit(),
        "python": platform.python_version(),
        "system": platform.platform(),
        "processors": os.cpu_count(),
        "processor": model[1] if model else "unknown",
        "load": f"{os.getloadavg()[0]:.1f}",
    }


def _commit() -> str:
    """The commit of this checkout, with "+" if what is measured has changed since."""
    if shutil.which("git") is None:
        return "unknown"
    git = partial(subprocess.run, capture_output=True, text=True, check=False, cwd=FOLDER.parent)
    changed = git(["git", "status", "--porcelain", "--", "aiotrace", "sinks", FOLDER.name]).stdout
    return (git(["git", "rev-parse", "--short", "HEAD"]).stdout.strip() or "unknown") + "+" * bool(changed)
