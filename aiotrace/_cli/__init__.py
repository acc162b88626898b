"""The command line: one module for each command, found in a table.

A command's module has `NAME`, `HELP`, `add_arguments(parser)` and `run(arguments) -> exit status`; it is imported with
the others, so its heavy imports stand inside `run`.

    0  done    1  a file cannot be read    2  wrong arguments    3  done, but events are missing    130  interrupted
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from typing import Final

from .. import __version__
from .._base.errors import AiotraceError, ConfigurationError
from . import list_events, listen, record, report, restore, snapshot, stat

COMMANDS: Final = (record, report, stat, list_events, restore, listen, snapshot)

FAILED: Final = 1
WRONG_ARGUMENTS: Final = 2
INTERRUPTED: Final = 130


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; returns the exit status.

    Args:
        arguments: Without the program's name; None for those of the process.
    """
    if sys.stdout is None:  # started with it closed: >&-
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115  # for as long as the process lives
    parsed = _parser().parse_args(arguments)
    try:
        status: int = parsed.run(parsed)
        sys.stdout.flush()
        return status
    except BrokenPipeError:
        # Whoever read our output has had enough, as `head` has. Python would complain when it flushes at exit.
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
    """As other programs say it: the file, then what is wrong with it."""
    if isinstance(error, OSError) and error.filename is not None:
        return f"{os.fsdecode(error.filename)}: {error.strerror}"
    return str(error)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="aiotrace",
        description="The ftrace of async Python.",
        epilog="aiotrace COMMAND --help tells of each.",
    )
    parser.add_argument("--version", action="version", version=f"aiotrace {__version__}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for module in COMMANDS:
        command = commands.add_parser(
            module.NAME,
            help=module.HELP,
            description=module.__doc__,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        module.add_arguments(command)
        command.set_defaults(run=module.run)
    return parser
