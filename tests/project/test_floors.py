"""The floors of docs/internals/architecture.md, held as data: a room imports rooms on lower floors only.

    source file --ast--> the modules that it imports, wherever the statement stands --ROOMS--> down, or a fault

A room is a sub-package of aiotrace; its files may import each other, without a circle. Rooms on one floor do not import
each other. Imports inside functions and under TYPE_CHECKING count like the others: they are dependencies too.
A new file in a room needs no row here.
"""

from __future__ import annotations

import ast
import graphlib
import re
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import NamedTuple

import pytest

from support import ROOT

ROOMS = {
    # the standard library alone
    "_base": 0,
    # a host loop and threads; what stands on a page
    "_threads": 1,
    "_page": 1,
    # pages in memory; bytes outside of it; a kernel's print fmts
    "_ring": 2,
    "_formats": 2,
    "_decode": 2,
    # what is called, what is sent, what is kept
    "_events": 3,
    "_protocol": 3,
    "_store": 3,
    # an arena seen from another process; what produces events by itself; what it may cost
    "_arena": 4,
    "_tracers": 4,
    "_budget": 4,
    # from ring to sinks; from a file to events
    "_recording": 5,
    "_traces": 5,
    # whole services, and views of a trace
    "_collector": 6,
    "_launcher": 6,
    "_reports": 6,
    # the public names
    "doors": 7,
    # who uses the doors
    "_cli": 8,
    "aiotrace_sinks": 8,
    "examples": 9,
    "benchmarks": 9,
    "tests": 10,
}
"""The floor of each room. A room imports rooms on lower floors only, never one beside it."""

DOORS = {
    "aiotrace",
    "aiotrace.abc",
    "aiotrace.decode",
    "aiotrace.formats",
    "aiotrace.protocol",
    "aiotrace.testing",
    "aiotrace.worker",
}
"""All that sinks and examples, aiotrace's or anyone's, may import of it."""

PLACED = {"aiotrace.abc": "_page", "aiotrace.__main__": "_cli"}
"""Modules outside of the rooms' folders. `abc` is the types in which the rooms speak: it counts with the pages."""

NO_IO = {"asyncio", "selectors", "socket", "ssl", "subprocess"}
SANS_IO = {"_base", "_page", "_ring", "_formats", "_decode", "_protocol"}
"""Rooms that may import none of these: time and bytes are their arguments."""

REQUIRED = {"anyio"}
"""What may be imported at the top of a module; anything else is imported where it is used. That holds for
backports.zstd too: only Pythons before 3.14 have it."""

KNOWN_HERE = {"aiotrace._page.walk", "aiotrace._page.layout", "aiotrace._recording.service", "aiotrace._formats.frames"}
KNOWN_HERE |= {"aiotrace.abc", "aiotrace._page"}
"""The modules that the examples below import from."""


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


def room_of(module: str) -> str | None:
    """The room of one of this project's modules, or None if there is no such room."""
    top, _, rest = module.partition(".")
    if top != "aiotrace":
        return top if top in ROOMS else None
    if module in PLACED:
        return PLACED[module]
    if module in DOORS:
        return "doors"
    room = rest.partition(".")[0]
    return room if room in ROOMS else None


def is_ours(module: str) -> bool:
    return module.partition(".")[0] in {"aiotrace", "aiotrace_sinks", "examples", "benchmarks", "tests"}


def find_imports(module: str, text: str, is_package: bool = False, known: set[str] | None = None) -> Iterator[Import]:
    """Every import statement of a module; relative ones are resolved, and `from x import y` may name a submodule."""
    known = {*MODULES} if known is None else known
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


@cache
def imports_of(module: str) -> list[Import]:
    path = MODULES[module]
    return list(find_imports(module, path.read_text(encoding="utf-8"), path.name == "__init__.py"))


def fault_of(found: Import) -> str | None:
    """What is wrong with an import, or None."""
    room = room_of(found.source)
    assert room is not None, found.source
    if is_ours(found.target):
        return _fault_between(found, room)

    package = found.target.partition(".")[0]
    if room in SANS_IO and package in NO_IO:
        return f"{found}, but {room} does no input and output"
    if ROOMS[room] <= 8 and found.top_level and package not in sys.stdlib_module_names | REQUIRED:
        return f"{found} at its top, but {package} is optional"
    return None


def _fault_between(found: Import, room: str) -> str | None:
    """What is wrong with an import of one of this project's modules."""
    target = room_of(found.target)
    if found.target == "aiotrace._c":
        return None
    if target is None:
        return f"{found}, which is in no room"
    if target != room and ROOMS[target] > ROOMS[room]:
        return f"{found}, up from {room} to {target}"
    if target != room and ROOMS[target] == ROOMS[room]:
        return f"{found}, sideways from {room} to {target}"
    is_door = not found.target.startswith("aiotrace.") or found.target in DOORS
    if room in {"aiotrace_sinks", "examples"} and not is_door:
        return f"{found}, which is no public door"
    return None


def test_every_file_is_in_a_room() -> None:
    homeless = [str(path.relative_to(ROOT)) for module, path in MODULES.items() if room_of(module) is None]
    assert not homeless, f"in no room: {homeless}; see docs/internals/architecture.md"


@pytest.mark.parametrize("module", [module for module in sorted(MODULES) if room_of(module) is not None])
def test_imports_point_down(module: str) -> None:
    assert not [fault for fault in map(fault_of, imports_of(module)) if fault]


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
        ("aiotrace._page.walk", "from .._recording.service import x", "up from _page to _recording"),
        ("aiotrace._page.walk", "def f():\n    from .._recording import service", "up from _page to _recording"),
        ("aiotrace._ring.pool", "from .._formats import frames", "sideways from _ring to _formats"),
        ("aiotrace._ring.pool", "if TYPE_CHECKING:\n    from .._formats.frames import x", "sideways from _ring"),
        ("aiotrace._ring.pool", "import aiotrace", "up from _ring to doors"),
        ("aiotrace._ring.pool", "import socket", "does no input and output"),
        ("aiotrace._recording.service", "from backports import zstd", "backports is optional"),
        ("aiotrace._recording.service", "from .._unheard import x", "in no room"),
        ("aiotrace_sinks.file", "from aiotrace._page.walk import walk", "no public door"),
        ("aiotrace_sinks.file", "from aiotrace._page import walk", "no public door"),
        ("examples.load", "import aiotrace._page.walk", "no public door"),
        ("aiotrace.testing", "import aiotrace_sinks", "up from doors to aiotrace_sinks"),
        ("aiotrace._base.clock", "from ..abc import Page", "up from _base to _page"),
    ],
)
def test_an_import_against_the_rules_is_found(source: str, text: str, fault: str) -> None:
    faults = [fault_of(found) for found in find_imports(source, text, known=KNOWN_HERE)]
    assert [fault in str(found) for found in faults] == [True]


@pytest.mark.parametrize(
    ("source", "text"),
    [
        ("aiotrace._page.walk", "from . import layout as L\nfrom .._base.errors import TraceFormatError"),
        ("aiotrace._threads.loop", "def f():\n    import trio"),
        ("aiotrace._ring.pool", "from ..abc import Page\nfrom .._page import layout"),
        ("aiotrace_sinks.file", "from aiotrace import abc\nfrom aiotrace.worker import worker_thread"),
        ("benchmarks.pages", "from aiotrace._page import walk"),
    ],
)
def test_an_import_within_the_rules_is_allowed(source: str, text: str) -> None:
    assert [fault for fault in map(fault_of, find_imports(source, text, known=KNOWN_HERE)) if fault] == []


# --- C sources ----------------------------------------------------------------------------------

FAMILIES = {"common": 0, "ring": 1, "store": 1, "decode": 1, "events": 2, "stalls": 3, "calls": 3, "tasks": 4}
"""The floor of each folder of _csrc. A file includes headers of its own family and of lower ones; module.c, of any."""


def find_includes(root: Path) -> list[str]:
    """Includes of C sources that do not point down, and those of or in an unknown family."""
    found = []
    for path in sorted([*root.rglob("*.c"), *root.rglob("*.h")]):
        name = path.relative_to(root).as_posix()
        family = name.rpartition("/")[0]
        for header in re.findall(r'^ *# *include "([^"]+)"', path.read_text(encoding="utf-8"), re.MULTILINE):
            other = header.rpartition("/")[0]
            if other == "internal":  # CPython's own
                continue
            is_down = other in FAMILIES and (other == family or FAMILIES[other] < FAMILIES.get(family, -1))
            if not is_down and not (name == "module.c" and other in FAMILIES):
                found.append(f"{name} includes {header}")
    return found


def test_includes_of_c_point_down() -> None:
    root = ROOT / "aiotrace" / "_csrc"
    assert {path.name for path in root.iterdir() if path.is_dir()} == {*FAMILIES}
    assert find_includes(root) == []


def test_an_include_that_points_up_or_sideways_is_found(tmp_path: Path) -> None:
    for name, header in (
        ("ring/a.c", "events/event.h"),
        ("ring/b.h", "store/store.h"),
        ("ring/c.c", "clock.h"),
        ("ring/d.c", "ring/cursor.h"),
        ("tasks/e.c", "stalls/watch.h"),
        ("tasks/f.c", "internal/pycore_frame.h"),
        ("module.c", "tasks/tasks.h"),
    ):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(f'/* A file. */\n#include "{header}"\n#include <errno.h>\n')
    assert find_includes(tmp_path) == [
        "ring/a.c includes events/event.h",
        "ring/b.h includes store/store.h",
        "ring/c.c includes clock.h",
    ]


# --- sizes --------------------------------------------------------------------------------------

FILES_MAX = 17
"""Files of a room, without its sub-rooms; one that needs more is two rooms, or has a sub-room."""
LINES_MAX = {".py": 500, ".c": 600, ".h": 600}


def find_large(root: Path) -> list[str]:
    """Which folders and files of a source tree are larger than a reader can hold in mind."""
    found = []
    for folder in (root, *(path for path in root.rglob("*") if path.is_dir() and path.name != "__pycache__")):
        files = [path for path in folder.iterdir() if path.suffix in LINES_MAX]
        if len(files) > FILES_MAX:
            found.append(f"{folder.name}: {len(files)} files")
        for path in files:
            lines = path.read_text(encoding="utf-8").count("\n")
            if lines > LINES_MAX[path.suffix]:
                found.append(f"{path.name}: {lines} lines")
    return sorted(found)


@pytest.mark.parametrize("root", [ROOT / "aiotrace", ROOT / "sinks" / "aiotrace_sinks"], ids=["aiotrace", "sinks"])
def test_rooms_and_files_are_small(root: Path) -> None:
    assert find_large(root) == []


def test_what_is_too_large_is_found(tmp_path: Path) -> None:
    room = tmp_path / "_room"
    room.mkdir()
    for number in range(FILES_MAX + 1):
        (room / f"{number}.py").write_text("\n" * (501 if number == 3 else 500))
    assert find_large(tmp_path) == ["3.py: 501 lines", "_room: 18 files"]
