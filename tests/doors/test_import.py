"""What `import aiotrace` imports, and that names which are imported late are there all the same."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

import aiotrace
import aiotrace_sinks

TOO_MUCH = {"anyio", "asyncio", "concurrent", "dataclasses", "inspect", "logging", "socket", "ssl", "subprocess"}
"""Of the standard library and others, what no command line imports that only says what there is."""
EMIT_LIBRARY = {
    "__future__", "_collections_abc", "_contextvars", "_struct", "abc", "contextvars", "genericpath", "io", "os",
    "os.path", "posixpath", "stat", "struct",
}  # fmt: skip
"""All of the standard library that emitting an event needs, besides what is compiled into Python."""
FOLDER = str(Path(aiotrace.__file__).parents[1])
ROOMS = {"_base", "_events", "_page"}
"""Of aiotrace, all that emitting an event needs: pages, recording, reading and sinks are imported later."""
EMIT = """
import sys
before = set(sys.modules)
import aiotrace
aiotrace.event("a:b", n="u32")(1)
with aiotrace.span("c"):
    pass
print(*(set(sys.modules) - before - set(sys.builtin_module_names)))
"""
LATE = """
for name in aiotrace.__all__:
    imported = {}
    exec(f"from aiotrace import {name}", imported)
    assert imported[name] is getattr(aiotrace, name), name
"""


def too_much(modules: list[str]) -> set[str]:
    return TOO_MUCH & {name.partition(".")[0] for name in modules}


def run(code: str, *options: str) -> str:
    command = [sys.executable, *options, "-c", code]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=True).stdout


def test_a_program_that_only_emits_events_imports_no_more_than_it_needs() -> None:
    """Without `site`: what its .pth files import would hide what we do."""
    modules = set(run(f"import sys; sys.path.insert(0, {FOLDER!r})\n{EMIT}", "-I", "-S").split())
    ours = {name for name in modules if name.partition(".")[0] == "aiotrace"}
    assert "aiotrace._events.event" in ours
    assert {name.split(".")[1] for name in ours - {"aiotrace", "aiotrace._c"}} - ROOMS == set()
    assert modules - ours - EMIT_LIBRARY == set()


def test_a_name_that_is_imported_late_is_listed_and_found() -> None:
    listed = run(f"import aiotrace; assert 'record' not in vars(aiotrace); print(*dir(aiotrace))\n{LATE}")
    assert set(aiotrace.__all__) <= set(listed.split())


def test_star_import_has_all_names() -> None:
    run(f"from aiotrace import *; print({', '.join(aiotrace.__all__)})")


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="module 'aiotrace' has no attribute 'bogus'"):
        _ = aiotrace.bogus  # type: ignore[attr-defined]


@pytest.mark.parametrize("option", ["--version", "--help"])
def test_the_command_line_imports_no_command_that_it_does_not_run(option: str) -> None:
    code = f"""
import atexit, json, sys
sys.path.insert(0, {FOLDER!r})
sys.argv[1:] = [{option!r}]
atexit.register(lambda: print(json.dumps(sorted(sys.modules))))
import runpy
runpy.run_module("aiotrace", run_name="__main__")
"""
    modules = json.loads(run(code, "-I", "-S").splitlines()[-1])
    assert "argparse" in modules
    assert "aiotrace._cli.record" not in modules
    assert too_much(modules) == set()


def test_a_sink_of_aiotrace_is_opened_without_reading_entry_points() -> None:
    code = "import sys, aiotrace; aiotrace.sink('null:'); print('importlib.metadata' in sys.modules)"
    path = [str(Path(aiotrace_sinks.__file__).parents[1]), *sys.path]
    assert run(f"import sys; sys.path[:0] = {path!r}\n{code}", "-I", "-S").split() == ["False"]
