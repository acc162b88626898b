"""Names of tests are short enough to be read in a list: one clause, subject first."""

from __future__ import annotations

import re

from support import ROOT

LONGEST = 70


def test_every_test_name_has_at_most_70_characters() -> None:
    texts = [path.read_text(encoding="utf-8") for path in (ROOT / "tests").rglob("test_*.py")]
    names = [name for text in texts for name in re.findall(r"^\s*(?:async )?def (test_\w+)", text, re.MULTILINE)]
    assert "test_every_test_name_has_at_most_70_characters" in names
    assert [name for name in names if len(name) > LONGEST] == []
