"""The reference of the command line, made from the argparse parsers when the site is built.

A page holds `<!-- command: record -->`, or `<!-- command: -->` for `aiotrace` itself; it is replaced by the
command's usage, description, arguments and options. `write` needs no Sphinx, so that tests can compare its result with
the parsers.
"""

from __future__ import annotations

import argparse
import importlib
import re
from collections.abc import Iterator
from typing import Any, Final

MARK: Final = re.compile(r"^<!-- command: *([\w-]*) *-->$", re.MULTILINE)


def write(parser: argparse.ArgumentParser, text: str) -> str:
    """The text of a page with each mark replaced.

    Raises:
        KeyError: A mark names no command.
    """
    commands = {"": parser, **dict(subcommands(parser))}
    return MARK.sub(lambda mark: "\n".join(describe(commands[mark[1]])), text)


def subcommands(parser: argparse.ArgumentParser) -> Iterator[tuple[str, argparse.ArgumentParser]]:
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            yield from action.choices.items()


def visible_actions(parser: argparse.ArgumentParser) -> list[argparse.Action]:
    """The arguments and options that --help shows, without --help itself and the list of commands."""
    hidden = (argparse._HelpAction, argparse._SubParsersAction)
    return [a for a in parser._actions if a.help is not argparse.SUPPRESS and not isinstance(a, hidden)]


def describe(parser: argparse.ArgumentParser) -> Iterator[str]:
    # 1. How it is called.
    parser.formatter_class = lambda prog: argparse.HelpFormatter(prog, width=96)  # type: ignore[assignment,method-assign]
    usage = parser.format_usage().removeprefix("usage: ").rstrip()
    yield from ("```text", usage, "```", "")

    # 2. What it does: the docstring of the command's module, which is laid out for a terminal.
    if parser.description:
        yield from ("```text", parser.description.strip(), "```", "")

    # 3. One row for each argument.
    actions = visible_actions(parser)
    if actions:
        yield from ("| argument | |", "|---|---|")
    for action in actions:
        yield f"| {', '.join(f'`{name}`' for name in names(action))} | {cell(expand(parser, action))} |"


def names(action: argparse.Action) -> list[str]:
    """What is typed: `-o FILE`, or the argument's own name."""
    value = "" if action.nargs == 0 else metavar(action)
    return [f"{option} {value}".rstrip() for option in action.option_strings] or [value]


def metavar(action: argparse.Action) -> str:
    name: Any = action.metavar or (action.option_strings and action.dest.upper()) or action.dest
    if name == "...":
        return f"{action.dest.upper()} ..."
    if action.choices is not None and action.metavar is None:
        return "{" + ",".join(map(str, action.choices)) + "}"
    return " ".join(name) if isinstance(name, tuple) else str(name)


def expand(parser: argparse.ArgumentParser, action: argparse.Action) -> str:
    """The help text, with %(default)s and %% replaced as argparse does."""
    return parser._get_formatter()._expand_help(action) if action.help else ""


def cell(text: str) -> str:
    """As a cell of a Markdown table."""
    return re.sub(r"\s+", " ", text).replace("|", "\\|").replace("<", "&lt;").replace("*", "\\*")


def find_parser() -> argparse.ArgumentParser:
    """aiotrace's own: where its command line is, `python -m aiotrace` knows."""
    from aiotrace.__main__ import main

    parser: argparse.ArgumentParser = importlib.import_module(main.__module__)._parser()
    return parser


def setup(app: Any) -> dict[str, Any]:
    """Called by Sphinx."""

    def fill(app: Any, page: str, source: list[str]) -> None:
        if MARK.search(source[0]):
            source[0] = write(find_parser(), source[0])

    app.connect("source-read", fill)
    return {"parallel_read_safe": True}
