"""The docs against the code: the reference is complete, and links and named files exist. Needs no Sphinx.

__all__ of each door     -> reference/api.md has a directive for it
options of each command  -> what cli_reference makes of reference/cli.md
events and their fields  -> the tables of reference/events.md
AIOTRACE_* in the code   -> reference/environment.md
"""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import pkgutil
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import aiotrace._budget.thread
import aiotrace._events.internal_events  # noqa: F401  # they define events
from aiotrace._events.event import defined_events
from aiotrace._events.tracer_switch import TRACERS
from support import ROOT

DOCS = ROOT / "docs"
REFERENCE = DOCS / "reference"
PAGES = sorted([ROOT / "README.md", ROOT / "CONTRIBUTING.md", *DOCS.rglob("*.md")])
DOORS = (
    "aiotrace",
    "aiotrace.abc",
    "aiotrace.decode",
    "aiotrace.formats",
    "aiotrace.protocol",
    "aiotrace.testing",
    "aiotrace.worker",
    "aiotrace_sinks",
)


def page(name: str) -> str:
    return (REFERENCE / name).read_text(encoding="utf-8")


# --- the reference ---------------------------------------------------------------------------------


@pytest.mark.parametrize("door", DOORS)
def test_every_public_name_is_in_the_api(door: str) -> None:
    directives = set(re.findall(r"^\.\. \w+:: ([\w.]+)", page("api.md"), re.MULTILINE))
    names = {f"{door}.{name}" for name in importlib.import_module(door).__all__}
    assert names <= directives
    written = {name for name in directives if name.rpartition(".")[0] == door} - set(DOORS)
    assert written <= names, "the page has names that the door has not"


@pytest.fixture(scope="module")
def cli() -> Any:
    """docs/_ext/cli_reference.py, which is in no package."""
    path = DOCS / "_ext" / "cli_reference.py"
    spec = importlib.util.spec_from_file_location("cli_reference", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("command", ["", "record", "report", "stat", "list", "restore", "listen", "snapshot"])
def test_every_option_is_in_the_reference(cli: Any, command: str) -> None:
    parser = cli.find_parser()
    section = dict(sections(cli.write(parser, page("cli.md"))))[f"aiotrace {command}" if command else ""]

    part = {"": parser, **dict(cli.subcommands(parser))}[command]
    own = (argparse._HelpAction, argparse._SubParsersAction)
    actions = [action for action in part._actions if not isinstance(action, own) and action.help != argparse.SUPPRESS]
    options = [option for action in actions for option in action.option_strings or [cli.metavar(action)]]
    assert options
    assert [option for option in options if f"`{option}" not in section] == []


def test_every_command_has_a_section(cli: Any) -> None:
    commands = ["", *[name for name, _ in cli.subcommands(cli.find_parser())]]
    assert sorted(cli.MARK.findall(page("cli.md"))) == sorted(commands)


def sections(text: str) -> Iterator[tuple[str, str]]:
    """The sections of a page by heading; what comes before the first has an empty one."""
    first, *others = re.split(r"^## ", text, flags=re.MULTILINE)
    yield "", first
    for other in others:
        heading, _, body = other.partition("\n")
        yield heading, body


def own_events() -> dict[str, dict[str, str]]:
    """Events that aiotrace itself defines, with their fields and types: those of tracers, and the internal ones."""
    for tracer in TRACERS.values():
        pkgutil.resolve_name(tracer)
    systems = {*TRACERS, "aiotrace", "span"}
    return {name: dict(event.fields) for name, event in defined_events().items() if name.partition(":")[0] in systems}


def documented_events() -> dict[str, dict[str, str]]:
    rows = re.findall(r"^\| `(\w+:\w+)` \| (.*?) \|", page("events.md"), re.MULTILINE)
    return {name: dict(re.findall(r"`(\w+)` (\w+)", fields)) for name, fields in rows}


def test_every_event_is_in_the_reference_with_its_fields() -> None:
    known, written = own_events(), documented_events()
    audited = {name for name in known if name.startswith("audit:") and name != "audit:other"}
    assert {name: fields for name, fields in known.items() if name not in audited and written.get(name) != fields} == {}
    assert set(written) - set(known) == {"aiotrace:lost"}, "what only readers make, and nothing else"


def test_every_environment_variable_is_in_the_reference() -> None:
    sources = [ROOT / "dev", ROOT / "setup.py"]
    sources += [path for folder in ("aiotrace", "sinks", "tests") for path in (ROOT / folder).rglob("*.py")]
    found = {
        name
        for path in sources
        for name in re.findall(r"(?:\"|\$\{|\b)(AIOTRACE_[A-Z][A-Z_]*[A-Z])\b", path.read_text(encoding="utf-8"))
    }
    found -= {name for name in found if name.startswith("AIOTRACE_NO")}  # one that a test must not find
    written = set(re.findall(r"^\| `(\w+)`", page("environment.md"), re.MULTILINE))
    assert found == written


def test_every_room_is_in_the_architecture() -> None:
    text = (DOCS / "internals" / "architecture.md").read_text(encoding="utf-8").partition("## Rooms and floors")[2]
    written = re.findall(r"^\| \d+ \| `(\w+)` \|", text, re.MULTILINE)
    rooms = [path.parent.name for path in (ROOT / "aiotrace").glob("_*/__init__.py")]
    assert sorted(written) == sorted([*rooms, "doors", "aiotrace_sinks", "examples", "benchmarks", "tests"])


# --- links and names -------------------------------------------------------------------------------


def links(path: Path) -> Iterator[str]:
    text = re.sub(r"```.*?```", "", path.read_text(encoding="utf-8"), flags=re.DOTALL)
    for target in re.findall(r"\]\(\s*([^)\s]+)\s*\)", text):
        if not re.match(r"[a-z]+:", target):
            yield target


def anchors(path: Path) -> set[str]:
    """As GitHub makes them of headings."""
    headings = re.findall(r"^#+ (.*)$", path.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("path", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_and_images_exist(path: Path) -> None:
    broken = []
    for link in links(path):
        name, _, anchor = link.partition("#")
        target = (path.parent / name).resolve() if name else path
        if not target.exists() or (anchor and target.suffix == ".md" and anchor not in anchors(target)):
            broken.append(link)
    assert broken == []


NAMED = re.compile(r"(?<![\w/.{…-])((?:[\w-]+/)*[\w-]+\.(?:py|c|h|pml))\b")
"""What looks like a file of the sources; a folder before it is checked too, as far as it is written."""
IN_EXAMPLES = {"app.py", "server.py", "worker.py", "setup.py", "planted.py"}
"""Files of the reader's, of Python's own or at the root of the tree."""
OF_PYTHON = {"base_events.py", "streams.py", "queues.py", "runners.py", "trace-msg.c"}


def sources() -> list[str]:
    folders = ("aiotrace", "sinks", "tests", "benchmarks", "examples", "models", "docs")
    return [
        "/" + str(path.relative_to(ROOT))
        for folder in folders
        for path in (ROOT / folder).rglob("*")
        if path.suffix in {".py", ".c", ".h", ".pml"} or path.is_dir()
    ]


@pytest.mark.parametrize("path", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_no_page_names_a_file_that_is_not_there(path: Path) -> None:
    text = re.sub(r"https?://\S+", "", path.read_text(encoding="utf-8"))
    known = sources()
    named = {name for name in NAMED.findall(text) if name.rpartition("/")[2] not in IN_EXAMPLES | OF_PYTHON}
    named |= set(re.findall(r"`((?:aiotrace/)?_[a-z_]+(?:/[a-z_]+)*)/`", text))
    missing = [name for name in sorted(named) if not any(there.endswith("/" + name) for there in known)]
    assert missing == []


def test_no_page_names_an_event_that_is_not_there() -> None:
    known = {*own_events(), *documented_events()}
    systems = {name.partition(":")[0] for name in known} - {"audit"}
    for path in PAGES:
        named = set(re.findall(r"`(\w+:\w+)`", path.read_text(encoding="utf-8")))
        wrong = {name for name in named if name.partition(":")[0] in systems and name not in known}
        assert wrong == set(), path


def test_readme_is_short_and_explains_how_to_begin() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert len(text.split()) <= 600
    assert all(command in text for command in ("./dev demo", "./dev test", "pip install ."))
