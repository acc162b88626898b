"""Names of tests are short enough to be read in a list: one clause, subject first."""

from __future__ import annotations

import ast

from support import ROOT

LONGEST = 70


def test_every_test_name_has_at_most_70_characters() -> None:
    trees = [ast.parse(path.read_text(encoding="utf-8")) for path in (ROOT / "tests").rglob("test_*.py")]
    functions = [
        node for tree in trees for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    ]
    names = [function.name for function in functions if function.name.startswith("test_")]
    assert "test_every_test_name_has_at_most_70_characters" in names
    assert [name for name in names if len(name) > LONGEST] == []
