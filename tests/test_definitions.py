"""aiotrace._definitions: functions have addresses, one for each line."""

from __future__ import annotations

import itertools
from types import CodeType

import pytest

from aiotrace import _definitions
from aiotrace._definitions import FUNCTION_BASE, Definitions, FunctionDefinition


def make_code(name: str, lines: int = 3, first: int = 10) -> CodeType:
    body = "    pass\n" * (lines - 1)
    source = "\n" * (first - 1) + f"def {name}():\n{body}"
    code = next(part for part in compile(source, "/srv/app.py", "exec").co_consts if isinstance(part, CodeType))
    assert code.co_firstlineno == first
    return code


def test_a_function_is_defined_once_and_each_of_its_lines_has_an_address() -> None:
    definitions, code = Definitions(), make_code("handler")
    base = definitions.locate(code, 10)
    assert [definitions.locate(code, line) for line in (10, 11, 12)] == [base, base + 1, base + 2]
    assert list(definitions)[1:] == [FunctionDefinition(base, 3, "handler", "/srv/app.py", 10)]


def test_addresses_of_functions_do_not_overlap() -> None:
    definitions = Definitions()
    for number in range(50):
        definitions.locate(make_code(f"f{number}", lines=number + 2), None)
    functions = [each for each in definitions if isinstance(each, FunctionDefinition)]
    assert len(functions) == 50
    assert functions[0].address >= FUNCTION_BASE
    for one, next_one in itertools.pairwise(functions):
        assert one.address + one.lines <= next_one.address


def test_a_line_that_nobody_knows_is_the_first() -> None:
    definitions, code = Definitions(), make_code("handler")
    assert definitions.locate(code, None) == definitions.locate(code, 10) == definitions.locate(code, 3)


def test_a_full_table_refuses_and_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_definitions, "FUNCTIONS_MAX", 1)
    definitions = Definitions()
    known = definitions.locate(make_code("a"), 10)
    assert known
    assert definitions.locate(make_code("b"), 10) == 0
    assert definitions.refused == 1
    assert definitions.locate(make_code("a"), 10) == known, "an equal function is the same one"
