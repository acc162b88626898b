"""The floors of docs/architecture.md, held as data: an import may only point down.

    source file --ast--> the modules that it imports, wherever the statement stands --FLOORS--> up or down

Imports on one floor are allowed as long as there is no circle. Imports inside functions and under TYPE_CHECKING
count like the others: they are dependencies too.
"""

from __future__ import annotations

import ast
import graphlib
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from support import ROOT

FLOORS: dict[str, int] = {
    # standard library only
    "aiotrace._errors": 0,
    "aiotrace._backend": 0,
    "aiotrace._c": 0,  # the C module, where it is compiled: it imports nothing of ours
    "aiotrace._layout": 0,
    "aiotrace._clock": 0,
    "aiotrace._descriptors": 0,
    "aiotrace._guard": 0,
    "aiotrace._warn": 0,
    # sans-IO: time is an argument
    "aiotrace._page": 1,
    "aiotrace._arena": 1,
    "aiotrace._cursor": 1,
    "aiotrace._ring": 1,
    "aiotrace._crc": 1,
    "aiotrace._records": 1,
    "aiotrace._definitions": 1,
    "aiotrace.abc": 1,  # a public door, but types alone: whoever hands pages over speaks in them
    # the parts, and the file formats, which are sans-IO too
    "aiotrace._pool": 2,
    "aiotrace._delivery": 2,
    "aiotrace._pages": 2,
    "aiotrace._schema": 2,
    "aiotrace._statistics": 2,
    "aiotrace._budget": 2,
    "aiotrace._format": 2,
    "aiotrace._escape": 2,
    "aiotrace._tokens": 2,
    "aiotrace._operators": 2,
    "aiotrace._expression": 2,
    "aiotrace._printf": 2,
    "aiotrace._print": 2,
    "aiotrace._columns": 2,
    "aiotrace._lines": 2,
    "aiotrace._decoded": 2,
    "aiotrace._account": 2,
    "aiotrace._filter": 2,
    "aiotrace._derived": 2,
    "aiotrace._tracedat": 2,
    "aiotrace._lateheaders": 2,
    "aiotrace._ftrace": 2,
    "aiotrace._frames": 2,
    "aiotrace._journal": 2,
    "aiotrace._arenafile": 2,
    "aiotrace._arenareader": 2,
    "aiotrace._look": 2,
    "aiotrace._handover": 2,
    "aiotrace._takenarena": 2,
    "aiotrace._protocol": 2,
    "aiotrace._protocol_wire": 2,
    "aiotrace._protocol_producer": 2,
    "aiotrace._protocol_collector": 2,
    "aiotrace._wholepages": 2,
    "aiotrace._source": 2,
    "aiotrace._found": 2,
    "aiotrace._eventtables": 2,
    "aiotrace._filepages": 2,
    "aiotrace._tracefile": 2,
    # tasks; anyio; still no file, no socket
    "aiotrace._loop": 3,
    "aiotrace._own": 3,
    "aiotrace._selection": 3,
    "aiotrace._stack": 3,
    "aiotrace._tracing": 3,
    "aiotrace._writer": 3,
    "aiotrace._active": 3,
    "aiotrace._event": 3,
    "aiotrace._span": 3,
    "aiotrace._stream": 3,
    "aiotrace._reader": 3,
    "aiotrace._chooser": 3,
    "aiotrace._servicethread": 3,
    "aiotrace._threadloop": 3,
    "aiotrace._sinkoptions": 3,
    "aiotrace._snapshot": 3,
    "aiotrace._meter": 3,
    "aiotrace._budgetthread": 3,
    "aiotrace.worker": 3,  # a public door over _loop alone
    # the one file that knows all parts
    "aiotrace._recording": 4,
    "aiotrace._syncrecording": 4,
    # the public doors, and the commands behind one of them
    "aiotrace": 5,
    "aiotrace.formats": 5,
    "aiotrace.protocol": 5,
    "aiotrace.testing": 5,
    "aiotrace.decode": 5,
    "aiotrace._trace": 5,
    "aiotrace._cpustreams": 5,
    "aiotrace._files": 5,
    "aiotrace._growing": 5,
    "aiotrace._closing": 5,
    "aiotrace._store": 5,
    "aiotrace._wholewrite": 5,
    "aiotrace._rescue": 5,
    "aiotrace._recorder": 5,
    "aiotrace._arenatrace": 5,
    "aiotrace._unfinished": 5,
    "aiotrace._collectfolder": 5,
    "aiotrace._collectstream": 5,
    "aiotrace._collectkeeper": 5,
    "aiotrace._collectaccess": 5,
    "aiotrace._collecttransport": 5,
    "aiotrace._collectclient": 5,
    "aiotrace._collecttext": 5,
    "aiotrace._collector": 5,
    "aiotrace._collect": 5,
    "aiotrace._external": 4,
    "aiotrace._asked": 4,
    "aiotrace._launch": 5,
    "aiotrace._children": 5,
    "aiotrace._shim": 5,
    "aiotrace._commands": 5,
    "aiotrace._reports": 5,
    # beside the floors above 4: what produces events by itself
    "aiotrace._tracers": 5,
    "aiotrace.__main__": 5,
    # sinks use the doors alone
    "aiotrace_sinks": 6,
    # whoever uses it all
    "examples": 7,
    "benchmarks": 7,
    "tests": 7,
}
"""A package stands for all modules in it that are not named themselves, except `aiotrace`, which is its __init__."""

DOORS = {
    "aiotrace",
    "aiotrace.abc",
    "aiotrace.decode",
    "aiotrace.formats",
    "aiotrace.protocol",
    "aiotrace.testing",
    "aiotrace.worker",
}
"""What sinks and examples, ours as anyone's, may import of aiotrace."""

NO_IO = {"asyncio", "selectors", "socket", "ssl", "subprocess"}
"""What floors 0 to 2 may not import."""

REQUIRED = {"anyio"}
"""What `pip install .` brings; anything else is imported where it is used, not at the top of a module."""


class Import(NamedTuple):
    """One import statement's target."""

    source: str
    target: str
    line: int
    top_level: bool

    def __str__(self) -> str:
        return f"{self.source}:{self.line} imports {self.target}"


def find_modules() -> dict[str, Path]:
    """All source files by module name: folder path = import path, from the two source roots."""
    modules = {}
    for base, folder in (
        (ROOT, "aiotrace"),
        (ROOT / "sinks", "aiotrace_sinks"),
        (ROOT, "examples"),
        (ROOT, "benchmarks"),
        (ROOT, "tests"),
    ):
        for path in (base / folder).rglob("*.py"):
            parts = path.relative_to(base).with_suffix("").parts
            modules[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return modules


MODULES = find_modules()


def floor_of(module: str) -> int | None:
    """The floor of one of our modules; None if it has none."""
    name = module
    while name not in FLOORS and "." in name:
        name = name.rpartition(".")[0]
        if name == "aiotrace":
            return None
    return FLOORS.get(name)


def is_ours(module: str) -> bool:
    return module.partition(".")[0] in {name.partition(".")[0] for name in FLOORS}


def find_imports(module: str, text: str, is_package: bool = False, known: set[str] | None = None) -> Iterator[Import]:
    """Every import statement of a module; relative ones are resolved, and `from x import y` may name a submodule."""
    known = {*MODULES, *FLOORS} if known is None else known
    tree = ast.parse(text)
    top_level = set(map(id, tree.body))
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            targets = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            package = module.split(".") if is_package else module.split(".")[:-1]
            base = package[: len(package) + 1 - node.level] if node.level else []
            name = ".".join([*base, node.module] if node.module else base)
            submodules = [f"{name}.{alias.name}" for alias in node.names]
            targets = [submodule if submodule in known else name for submodule in submodules]
        else:
            continue
        for target in dict.fromkeys(targets):
            yield Import(module, target, node.lineno, id(node) in top_level)


def imports_of(module: str) -> list[Import]:
    path = MODULES[module]
    return list(find_imports(module, path.read_text(encoding="utf-8"), path.name == "__init__.py"))


def faults_of(found: Import) -> str | None:
    """What is wrong with an import, or None."""
    floor = floor_of(found.source)
    assert floor is not None, found.source
    if is_ours(found.target):
        target = floor_of(found.target)
        if target is None:
            return f"{found}, which is on no floor"
        if target > floor:
            return f"{found}, up from floor {floor} to floor {target}"
        door = not found.target.startswith("aiotrace.") or found.target in DOORS
        if not door and found.source.partition(".")[0] in {"aiotrace_sinks", "examples"}:
            return f"{found}, which is no public door"
        return None
    package = found.target.partition(".")[0]
    if floor <= 2 and package in NO_IO:
        return f"{found}, but floor {floor} does no input and output"
    if floor <= 6 and found.top_level and package not in sys.stdlib_module_names | REQUIRED:
        return f"{found} at its top, but {package} is optional"
    return None


def test_every_file_stands_on_a_floor() -> None:
    homeless = [str(MODULES[module].relative_to(ROOT)) for module in MODULES if floor_of(module) is None]
    assert not homeless, f"on no floor: {homeless}; add each to FLOORS in tests/test_floors.py and in architecture.md"


@pytest.mark.parametrize("module", [module for module in sorted(MODULES) if floor_of(module) is not None])
def test_imports_point_down(module: str) -> None:
    faults = [fault for fault in map(faults_of, imports_of(module)) if fault]
    assert not faults


def test_the_table_in_the_architecture_is_this_one() -> None:
    text = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8").partition("## Floors")[2]
    table = re.split(r"^    (?=\d  )", text.partition("\n\nThe doors")[0], flags=re.MULTILINE)[1:]
    written = {int(floor[0]): set(re.findall(r"\w+", floor)) for floor in table}
    missing = [name for name, floor in FLOORS.items() if name.rpartition(".")[2] not in written[floor]]
    assert not missing, "not on their floor in docs/architecture.md"


def find_circle(graph: dict[str, set[str]]) -> list[str]:
    try:
        graphlib.TopologicalSorter(graph).prepare()
    except graphlib.CycleError as error:
        return list(error.args[1])
    return []


def test_no_imports_go_in_a_circle() -> None:
    graph = {module: {found.target for found in imports_of(module)} & set(MODULES) - {module} for module in MODULES}
    assert find_circle(graph) == []


def test_a_circle_is_found() -> None:
    assert set(find_circle({"a": {"b"}, "b": {"c"}, "c": {"a"}, "d": {"a"}})) == {"a", "b", "c"}


@pytest.mark.parametrize(
    ("source", "text", "fault"),
    [
        ("aiotrace._page", "from ._recording import x", "up from floor 1 to floor 4"),
        ("aiotrace._page", "def f():\n    from . import _recording", "up from floor 1 to floor 4"),
        ("aiotrace._pool", "import aiotrace", "up from floor 2 to floor 5"),
        ("aiotrace._pool", "import socket", "does no input and output"),
        ("aiotrace._reader", "import zstandard", "zstandard is optional"),
        ("aiotrace._reader", "from ._unheard import x", "on no floor"),
        ("aiotrace_sinks.file", "from aiotrace._page import walk", "no public door"),
        ("aiotrace_sinks.file", "from aiotrace import _page", "no public door"),
        ("examples.load", "import aiotrace._page", "no public door"),
        ("aiotrace.testing", "import aiotrace_sinks", "up from floor 5 to floor 6"),
    ],
)
def test_an_import_against_the_rules_is_found(source: str, text: str, fault: str) -> None:
    known = {"aiotrace._page", "aiotrace._recording"}
    faults = [faults_of(found) for found in find_imports(source, text, known=known)]
    assert [fault in str(found) for found in faults] == [True]


@pytest.mark.parametrize(
    ("source", "text"),
    [
        ("aiotrace._page", "from . import _layout as L\nfrom ._errors import TraceFormatError"),
        ("aiotrace._loop", "def f():\n    import trio"),
        ("aiotrace_sinks.file", "from aiotrace import abc\nfrom aiotrace.worker import worker_thread"),
        ("benchmarks.pages", "from aiotrace import _page"),
    ],
)
def test_an_import_within_the_rules_is_none(source: str, text: str) -> None:
    known = {"aiotrace._page", "aiotrace._layout", "aiotrace.abc"}
    assert [fault for fault in map(faults_of, find_imports(source, text, known=known)) if fault] == []
