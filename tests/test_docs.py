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
from types import ModuleType

import pytest

pytestmark = pytest.mark.once


def find_root() -> Path:
    return next(folder for folder in Path(__file__).resolve().parents if (folder / "pyproject.toml").exists())


ROOT = find_root()
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


def load(name: str, path: Path) -> ModuleType:
    """A module from outside of the packages."""
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def first_of(*names: str) -> ModuleType:
    """The first of some modules that is there."""
    for name in names:
        try:
            return importlib.import_module(name)
        except ModuleNotFoundError:
            continue
    raise ModuleNotFoundError(str(names))


# --- the reference ---------------------------------------------------------------------------------


@pytest.mark.parametrize("door", DOORS)
def test_every_public_name_is_in_the_api(door: str) -> None:
    directives = set(re.findall(r"^\.\. auto\w+:: (\S+)$", page("api.md"), re.MULTILINE))
    names = {f"{door}.{name}" for name in importlib.import_module(door).__all__}
    assert names <= directives
    written = {name for name in directives if name.rpartition(".")[0] == door} - set(DOORS)
    assert written <= names, "the page has names that the door has not"


def find_parser() -> argparse.ArgumentParser:
    parser: argparse.ArgumentParser = first_of("aiotrace._cli", "aiotrace._commands")._parser()
    return parser


def find_options() -> Iterator[tuple[str, str]]:
    """The option strings, and names of arguments, of each command."""
    cli = load("cli_reference", DOCS / "_ext" / "cli_reference.py")
    parser = find_parser()
    for command, part in [("", parser), *cli.subcommands(parser)]:
        for action in cli.visible_actions(part):
            for option in action.option_strings or [cli.metavar(action)]:
                yield command, option


@pytest.mark.parametrize("command", ["", "record", "report", "stat", "list", "restore", "listen", "snapshot"])
def test_every_option_is_in_the_reference(command: str) -> None:
    cli = load("cli_reference", DOCS / "_ext" / "cli_reference.py")
    section = dict(sections(cli.write(find_parser(), page("cli.md"))))["aiotrace " + command if command else ""]
    options = [option for of, option in find_options() if of == command]
    assert options
    assert [option for option in options if f"`{option}" not in section] == []


def test_every_command_has_a_section() -> None:
    cli = load("cli_reference", DOCS / "_ext" / "cli_reference.py")
    commands = ["", *[name for name, _ in cli.subcommands(find_parser())]]
    assert sorted(cli.MARK.findall(page("cli.md"))) == sorted(commands)


def sections(text: str) -> Iterator[tuple[str, str]]:
    """The sections of a page by heading; what comes before the first has an empty one."""
    first, *others = re.split(r"^## ", text, flags=re.MULTILINE)
    yield "", first
    for other in others:
        heading, _, body = other.partition("\n")
        yield heading, body


def defined_events() -> dict[str, dict[str, str]]:
    """Events that aiotrace itself defines, with their fields and types: those of tracers, and the internal ones."""
    switch = first_of("aiotrace._events.tracer_switch", "aiotrace._tracing")
    for target in switch.TRACERS.values():
        pkgutil.resolve_name(target)
    for internal in (
        ("aiotrace._events.internal_events", "aiotrace._own"),
        ("aiotrace._budget.thread", "aiotrace._budgetthread"),
    ):
        first_of(*internal)
    systems = {*switch.TRACERS, "aiotrace", "span"}
    events = first_of("aiotrace._events.event", "aiotrace._event").defined_events()
    return {name: dict(event.fields) for name, event in events.items() if name.partition(":")[0] in systems}


def documented_events() -> dict[str, dict[str, str]]:
    rows = re.findall(r"^\| `(\w+:\w+)` \| (.*?) \|", page("events.md"), re.MULTILINE)
    return {name: dict(re.findall(r"`(\w+)` (\w+)", fields)) for name, fields in rows}


def test_every_event_is_in_the_reference_with_its_fields() -> None:
    known, written = defined_events(), documented_events()
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
    known = {*defined_events(), *documented_events()}
    systems = {name.partition(":")[0] for name in known} - {"audit"}
    for path in PAGES:
        named = set(re.findall(r"`(\w+:\w+)`", path.read_text(encoding="utf-8")))
        wrong = {name for name in named if name.partition(":")[0] in systems and name not in known}
        assert wrong == set(), path


def test_the_readme_is_short_and_says_how_to_begin() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert len(text.split()) <= 600
    assert all(command in text for command in ("./dev demo", "./dev test", "pip install ."))
