"""The exceptions of the package are those that `_base/errors` draws."""

from __future__ import annotations

import ast
import re

from aiotrace._base import errors
from support import ROOT


def test_every_exception_class_is_in_the_drawing() -> None:
    paths = [*(ROOT / "aiotrace").rglob("*.py"), *(ROOT / "sinks").rglob("*.py")]
    defined = {
        node.name
        for path in paths
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.ClassDef) and re.fullmatch(r"[A-Z]\w+Error", node.name)
    }
    assert errors.__doc__ is not None
    assert set(re.findall(r"\b[A-Z]\w+Error\b", errors.__doc__)) - {"ValueError", "RuntimeError"} == (
        defined | {"OSError", "AssertionError"}
    )
