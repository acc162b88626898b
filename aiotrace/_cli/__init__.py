"""The command line: one module for each command, found in a table.

A command's module has `add_arguments(parser)` and `run(arguments) -> exit status`; its docstring is the description.
Only the module of the requested command is imported; `aiotrace --help` needs the table alone.

    0  done    1  a file cannot be read    2  wrong arguments    3  done, but events are missing    130  interrupted
"""

from __future__ import annotations

import argparse
import importlib
import os
import sys
from collections.abc import Iterable, Sequence
from typing import Final

from .. import __version__
from .._base.errors import AiotraceError, ConfigurationError

COMMANDS: Final = {
    "record": (".record", "run a program and record its events"),
    "report": (".report", "print the events of traces in the order of time"),
    "stat": (".stat", "summarize a trace: counts, sizes, rates and losses"),
    "list": (".list_events", "list the events of a trace, or the installed sinks and tracers"),
    "restore": (".restore", "complete the trace that a killed program left"),
    "listen": (".listen", "receive streams of events over sockets and store them as traces"),
    "snapshot": (".snapshot", "write a trace from the arena of a running program"),
}
"""For each command its module and what it does, in the order of the help."""

FAILED: Final = 1
WRONG_ARGUMENTS: Final = 2
INTERRUPTED: Final = 130


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command.

    Args:
        arguments: Without the program's name; None for those of this process.

    Returns:
        The exit status.
    """
    if sys.stdout is None:  # closed by the caller: >&-
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115  # for as long as the process lives
    words = sys.argv[1:] if arguments is None else arguments
    command = next((word for word in words if not word.startswith("-")), "")
    parsed = _parser([command]).parse_args(words)
    try:
        status: int = parsed.run(parsed)
        sys.stdout.flush()
        return status
    except BrokenPipeError:
        # The reader of stdout has closed it, as `head` does. Without this Python would complain at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        return 0
    except KeyboardInterrupt:
        return INTERRUPTED
    except ConfigurationError as error:
        print(f"aiotrace {parsed.command}: {error}", file=sys.stderr)
        return WRONG_ARGUMENTS
    except (AiotraceError, OSError) as error:
        print(f"aiotrace {parsed.command}: {_describe(error)}", file=sys.stderr)
        return FAILED


def _describe(error: AiotraceError | OSError) -> str:
    """As other programs print it: "FILE: what is wrong"."""
    if isinstance(error, OSError) and error.filename is not None:
        return f"{os.fsdecode(error.filename)}: {error.strerror}"
    return str(error)


def _parser(wanted: Iterable[str] = COMMANDS) -> argparse.ArgumentParser:
    """The parser, with the arguments of the wanted commands; of the others it knows the names."""
    parser = argparse.ArgumentParser(
        prog="aiotrace",
        description="Record and analyse events of async Python programs, in the format of Linux ftrace.",
        epilog="Run 'aiotrace COMMAND --help' for details.",
    )
    parser.add_argument("--version", action="version", version=f"aiotrace {__version__}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for name, (module, help) in COMMANDS.items():
        command = commands.add_parser(name, help=help, formatter_class=argparse.RawDescriptionHelpFormatter)
        if name in wanted:
            imported = importlib.import_module(module, __package__)
            command.description = imported.__doc__
            imported.add_arguments(command)
            command.set_defaults(run=imported.run)
    return parser
