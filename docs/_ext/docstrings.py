"""Docstrings as Sphinx is to see them: our docstrings are plain text that an editor shows, with `names` in backticks.

Runs before napoleon, which makes Google style sections into reStructuredText.
"""

from __future__ import annotations

import re
from typing import Any, Final

CODE: Final = re.compile(r"(?<![`:])`([^`\n]+)`(?![`_])")
OPENS_BLOCK: Final = re.compile(r"(?:async )?(?:with|for|if|def|class|try)\b.*:$")


def convert(what: str, lines: list[str]) -> list[str]:
    # 1. `name` is code. With one backtick it would be a cross-reference, and napoleon would look for a colon in it.
    lines = [CODE.sub(r"``\1``", line) for line in lines]

    # 2. An example that is not indented is code all the same.
    paragraphs = re.split(r"\n(?=\n)", "\n".join(lines))
    lines = "\n".join(map(_indent_example, paragraphs)).split("\n")

    # 3. Napoleon takes "Bytes: ..." of an attribute for its type. It looks at the first line only: an empty comment.
    return ["..", "", *lines] if what in ("attribute", "data", "property") else lines


def _indent_example(paragraph: str) -> str:
    lines = paragraph.split("\n")
    if not any(OPENS_BLOCK.match(line) for line in lines):
        return paragraph
    return "::\n\n" + "\n".join(f"    {line}" for line in lines)


def setup(app: Any) -> dict[str, Any]:
    """Called by Sphinx."""

    def process(app: Any, what: str, name: str, subject: object, options: object, lines: list[str]) -> None:
        lines[:] = convert(what, lines)

    app.connect("autodoc-process-docstring", process, priority=400)
    return {"parallel_read_safe": True}
