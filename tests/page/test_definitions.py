"""The table of definitions: append-only, each thing once, bounded, and whole under threads."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from types import CodeType

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aiotrace._page import definitions as _definitions
from aiotrace._page.definitions import (
    FUNCTION_BASE,
    SYMBOL_BASE,
    CommandDefinition,
    Definitions,
    EventDefinition,
    FunctionDefinition,
    SymbolDefinition,
)


@pytest.fixture
def table() -> Definitions:
    return Definitions()


def make_code(name: str, lines: int = 3, first: int = 10) -> CodeType:
    body = "    pass\n" * (lines - 1)
    source = "\n" * (first - 1) + f"def {name}():\n{body}"
    code = next(part for part in compile(source, "/srv/app.py", "exec").co_consts if isinstance(part, CodeType))
    assert code.co_firstlineno == first
    return code


def test_a_new_table_knows_the_symbol_for_what_it_does_not_know(table: Definitions) -> None:
    assert list(table) == [SymbolDefinition(SYMBOL_BASE, "?")]
    assert table.intern("?") == table.unknown_symbol == SYMBOL_BASE
    assert len(table) == 1


def test_a_symbol_has_one_key_and_is_defined_once(table: Definitions) -> None:
    keys = [table.intern(text) for text in ("users", "orders", "users", "")]
    assert keys == [SYMBOL_BASE + 16, SYMBOL_BASE + 32, SYMBOL_BASE + 16, SYMBOL_BASE + 48]
    assert table[1:] == [
        SymbolDefinition(SYMBOL_BASE + 16, "users"),
        SymbolDefinition(SYMBOL_BASE + 32, "orders"),
        SymbolDefinition(SYMBOL_BASE + 48, ""),
    ]
    assert table.refused == 0


@given(st.lists(st.sampled_from(["symbol", "command", "event", "function"])))
def test_definitions_keep_their_position(kinds: list[str]) -> None:
    table = Definitions()
    for n, kind in enumerate(kinds):
        before = table[:]
        if kind == "symbol":
            table.intern(str(n))
        elif kind == "command":
            table.name_command(n, "x")
        elif kind == "function":
            table.locate(make_code(f"f{n}"), None)
        else:
            table.append(EventDefinition(n + 1, "a", "b", ""))
        assert table[:-1] == before
        assert len(table) == len(before) + 1
        assert table[len(before)] == table[-1] == list(table)[-1]


def test_changed_name_of_a_pid_is_announced(table: Definitions) -> None:
    for name in ("a", "a", "b", "b", "a"):
        table.name_command(7, name)
    assert table[1:] == [CommandDefinition(7, "a"), CommandDefinition(7, "b"), CommandDefinition(7, "a")]


def test_a_table_full_of_symbols_or_names_refuses_new_ones_and_counts_them(
    table: Definitions, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_definitions, "SYMBOLS_MAX", 2)
    monkeypatch.setattr(_definitions, "COMMANDS_MAX", 2)
    known = table.intern("a")
    assert known != table.unknown_symbol
    table.name_command(1, "a")
    table.name_command(2, "b")
    assert (len(table), table.refused) == (4, 0)
    assert table.intern("b") == table.unknown_symbol
    table.name_command(3, "c")
    assert (len(table), table.refused) == (4, 2)
    assert table.intern("a") == known, "what is known stays known"
    table.name_command(1, "another name for a pid that has one")
    assert (len(table), table.refused) == (5, 2)


DEFINE: list[Callable[[Definitions, int], object]] = [
    lambda table, n: table.intern(f"symbol {n}"),
    lambda table, n: table.name_command(n, f"name {n}"),
    lambda table, n: table.locate(make_code(f"f{n}"), None),
]


@pytest.mark.parametrize("define", DEFINE, ids=["symbols", "commands", "functions"])
def test_threads_that_define_the_same_define_it_once(
    table: Definitions, define: Callable[[Definitions, int], object]
) -> None:
    barrier = threading.Barrier(4)

    def run() -> list[object]:
        barrier.wait()
        return [define(table, n) for n in range(100)]

    with ThreadPoolExecutor(4) as threads:
        answers = [future.result() for future in [threads.submit(run) for _ in range(4)]]
    assert all(answer == answers[0] for answer in answers)
    assert len(set(table)) == len(table) == 101


def test_a_forked_child_needs_no_lock_of_its_parent(table: Definitions) -> None:
    table._lock.acquire()  # a thread of the parent's holds it, and is not there
    table.forget_lock()
    with ThreadPoolExecutor(1) as thread:
        assert thread.submit(table.intern, "from the child").result(timeout=60) == SYMBOL_BASE + 16


def test_a_function_is_named_with_its_class(table: Definitions) -> None:
    module = compile("class C:\n    def m(self):\n        pass\n", "/srv/app.py", "exec")
    (body,) = [part for part in module.co_consts if isinstance(part, CodeType)]
    (method,) = [part for part in body.co_consts if isinstance(part, CodeType)]
    table.locate(method, 2)
    assert table[1] == FunctionDefinition(FUNCTION_BASE, 2, "C.m", "/srv/app.py", 2)


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


def test_unknown_line_becomes_the_first_line_of_the_code() -> None:
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


def test_the_same_lines_in_another_file_or_class_are_another_function(table: Definitions) -> None:
    def method(owner: str, file: str) -> CodeType:
        source = f"class {owner}:\n    def m(self):\n        pass\n"
        (body,) = [part for part in compile(source, file, "exec").co_consts if isinstance(part, CodeType)]
        return next(part for part in body.co_consts if isinstance(part, CodeType))

    one, two, three = method("A", "/srv/a.py"), method("A", "/srv/b.py"), method("B", "/srv/a.py")
    assert one == two, "CPython compares neither file nor qualified name"
    assert len({table.locate(code, None) for code in (one, two, three)}) == 3
    assert [(each.name, each.file) for each in table[1:] if isinstance(each, FunctionDefinition)] == [
        ("A.m", "/srv/a.py"),
        ("A.m", "/srv/b.py"),
        ("B.m", "/srv/a.py"),
    ]
