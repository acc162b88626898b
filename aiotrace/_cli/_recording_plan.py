"""What `aiotrace record` was asked for, as a `Plan`: arguments are checked here, before any process starts."""

from __future__ import annotations

import argparse
import fnmatch
import json
import os
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

from .._base.errors import ConfigurationError
from .._base.package import PACKAGE_FOLDER
from .._events.selection import parse_trigger

if TYPE_CHECKING:
    from .._launcher.plan import Plan
    from .._launcher.rules import Rule


OUTPUT: Final = "trace.dat"
SERVICE: Final = "trace-%p-%t.dat"
"""The names of a service's traces: each start, and each process, has its own."""
SERVICE_KEEP: Final = 5
VARIABLE: Final = "AIOTRACE_RECORD"
"""The environment variable that carries the plan to the recorded program."""
PAGE_SIZE: Final = 65536
PAGES_WANTED: Final = 16
"""A buffer too small for this many pages of PAGE_SIZE gets smaller pages."""
PAGE_SIZE_MIN: Final = 4096


def make_plan(arguments: argparse.Namespace, argv: Sequence[str]) -> Plan:
    """What to record.

    Args:
        arguments: Of the command line.
        argv: The program's, for its name.

    Raises:
        ConfigurationError: The recording cannot work.
        OSError: The trace cannot be written.
    """
    from .._launcher.names import program_name
    from .._launcher.plan import Plan
    from .._recording.options import RecordingOptions

    if arguments.arena:
        _check_folder(arguments.arena)
        _refuse_foreign(arguments.arena)
    if arguments.snapshots:
        _check_folder(arguments.snapshots)

    # Where to: a trace, unless there are other sinks, or snapshots of the buffer are all that is wanted.
    output = arguments.output or (SERVICE if arguments.service else None)
    keep = arguments.keep if arguments.keep is not None or not arguments.service else SERVICE_KEEP
    sinks = list(arguments.sinks)
    is_flight = not sinks and output is None and _takes_snapshots(arguments)
    has_file = not is_flight and (output is not None or not sinks)
    pattern = _pattern(output or OUTPUT) if has_file else ""
    if not pattern and (keep is not None or arguments.max_size is not None):
        option = "--keep" if arguments.keep is not None else "--max-size"
        raise ConfigurationError(
            f"{option}: traces are kept by names that differ: give -o a name with %t or %p, like -o '{SERVICE}'"
        )
    if has_file and not pattern:
        sinks.insert(0, file_url(output or OUTPUT, force=arguments.force))
    page_size, pages = _divide(arguments.buffer, len(sinks) + bool(pattern))

    for rule in arguments.rules:
        rule.check()
    return Plan(
        pid=os.getpid(),
        path=tuple(os.path.abspath(entry) for entry in sys.path),
        sinks=tuple(map(_absolute, sinks)),
        rules=_only(arguments.rules),
        options=RecordingOptions(
            page_size=page_size,
            pages=pages,
            overrun="drop_oldest" if arguments.overrun or is_flight else "drop_newest",
            clock=arguments.clock,
            arena=os.path.abspath(arguments.arena) if arguments.arena else None,
            snapshots=os.path.abspath(arguments.snapshots or OUTPUT),
            budget=arguments.budget,
        ),
        stall_ns=arguments.stall,
        cancel_ns=arguments.cancel_timeout,
        quiet=arguments.quiet,
        snapshot_signal=arguments.signal,
        pattern=pattern,
        program=program_name(argv),
        keep=keep,
        max_bytes=arguments.max_size,
    )


def _pattern(output: str) -> str:
    """The pattern of the names, absolute; empty if `output` is not a pattern.

    Raises:
        ConfigurationError: The pattern is wrong.
        OSError: The folder cannot be written.
    """
    from .._launcher import names

    if not names.is_pattern(output):
        return ""
    names.check_pattern(output)
    _check_name(output)
    return os.path.abspath(output)


def _refuse_foreign(arena: str) -> None:
    """
    Raises:
        FileExistsError: Something else than the arena of a process that has ended has this name.
    """
    from .._arena.file import is_abandoned, refuse_existing

    if not is_abandoned(arena):  # or a trace is made of it
        refuse_existing(arena)


def _divide(buffer: int, sinks: int) -> tuple[int, int]:
    """The size and the number of pages in a buffer: small ones where it would have too few of the usual size.

    Raises:
        ConfigurationError: It is too small for these sinks.
    """
    from .._recording.sinks import pages_needed

    page_size = PAGE_SIZE
    while page_size > PAGE_SIZE_MIN and buffer // page_size < PAGES_WANTED:
        page_size //= 2
    needed = pages_needed(sinks)
    if buffer // page_size < needed:
        raise ConfigurationError(
            f"-b {buffer >> 10}: at least {needed * PAGE_SIZE_MIN >> 10} (KiB) are needed: "
            f"{needed} pages of {PAGE_SIZE_MIN >> 10} KiB"
        )
    return page_size, buffer // page_size


def environment_of(plan: Plan) -> dict[str, str]:
    """This process's environment, plus what makes the program's Python start the recording first.

    Raises:
        ConfigurationError: aiotrace's path cannot be put into PYTHONPATH.
    """
    shim = os.path.join(PACKAGE_FOLDER, "_launcher", "shim")
    if os.pathsep in shim:
        raise ConfigurationError(
            f"{shim!r} contains {os.pathsep!r}, which PYTHONPATH cannot express: install aiotrace in another folder"
        )
    before = os.environ.get("PYTHONPATH")
    return {
        **os.environ,
        "PYTHONPATH": f"{shim}{os.pathsep}{before}" if before else shim,
        VARIABLE: json.dumps(plan.to_dict()),
    }


def _takes_snapshots(arguments: argparse.Namespace) -> bool:
    """Whether snapshots can be taken: from an arena, by a signal or by a trigger."""
    triggers = [parse_trigger(rule.text) for rule in arguments.rules if rule.action == "trigger"]
    return bool(arguments.arena or arguments.signal or any(trigger.action == "snapshot" for trigger in triggers))


def _only(rules: Sequence[Rule]) -> tuple[Rule, ...]:
    """With an -e, only the events that are named; -v alone excludes from what is recorded by default.

    Raises:
        ConfigurationError: There is a -l or -n, but no function tracer.
    """
    from .._launcher.rules import Rule

    functions = [rule for rule in rules if rule.action in ("limit", "notrace")]
    events = [rule for rule in rules if rule not in functions]
    enabled = [rule.glob for rule in events if rule.action == "enable"]
    for rule in functions:
        if not any(_traces_functions(glob) for glob in enabled):
            option = "-l" if rule.action == "limit" else "-n"
            raise ConfigurationError(f"{option} {rule.glob!r} is for functions: add -p function_graph or -p function")
    only = [Rule("disable", "all")] if enabled else []
    return (*functions, *only, *events)


def _traces_functions(glob: str) -> bool:
    return any(fnmatch.fnmatchcase(system, glob.partition(":")[0]) for system in ("function", "function_graph"))


def file_url(path: str, *, force: bool) -> str:
    """The URL of a file sink for `path`.

    Raises:
        ConfigurationError: The path cannot be written as a URL.
        OSError: A trace exists already, or the folder cannot be written.
    """
    from .._store.trace_files import journal_path, spool_paths

    _check_name(path)
    if os.path.isdir(path):
        raise IsADirectoryError(f"-o {path} is a folder: give the name of a file")
    there = [each for each in (path, journal_path(path), *spool_paths(path)) if os.path.lexists(each)]
    if there and not force:
        raise FileExistsError(f"{there[0]} exists: choose another name with -o, or overwrite it with --force")
    return f"file:{path}{'?overwrite=yes' if force else ''}"


def _check_name(output: str) -> None:
    """
    Raises:
        ConfigurationError: The name cannot be written as a URL.
        OSError: No file of this name can be created.
    """
    if "?" in output:
        raise ConfigurationError(f"-o {output!r}: a '?' starts the options of a sink URL; choose a name without it")
    _check_folder(output)


def _check_folder(path: str) -> None:
    """
    Raises:
        OSError: No file of this name can be created.
    """
    folder = os.path.dirname(os.path.abspath(path))
    if not os.path.isdir(folder):
        raise FileNotFoundError(f"{path}: there is no folder {folder}")
    if not os.access(folder, os.W_OK | os.X_OK):
        raise PermissionError(f"{path}: the folder {folder} cannot be written to")


def _absolute(url: str) -> str:
    """The URL with an absolute path if it names a file or a Unix socket: the program may change its folder."""
    path, mark, query = url.partition("?")
    scheme, _, name = path.partition(":")
    return f"{scheme}:{os.path.abspath(name)}{mark}{query}" if scheme in ("file", "unix") and name else url
