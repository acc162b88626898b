"""Run a program and record its events.

examples:
  aiotrace record app.py --port 8000
  aiotrace record -o run.dat -m mypackage ARGUMENTS
  aiotrace record -e 'http:*' -f 'status >= 500' -e task -- uvicorn app:app
  aiotrace record -e all -v 'http:debug_*' -b 64M --overrun app.py
  aiotrace record -e task -e 'stall:*' -R snapshot:after=2 --arena /dev/shm/app.arena app.py
  aiotrace record --budget 1% -p function_graph -e all app.py
  aiotrace record -p function_graph -l '__main__.*' -n '*.<lambda>' app.py

Without -e, the program's own events, the steps of its tasks, and stalls are recorded. The program replaces this process
(execve): its exit status and its signals are its own. Each child started by fork or multiprocessing gets a trace of its
own: FILE with the child's pid in its name; `aiotrace report` merges them. A program that is killed by a signal leaves
its trace unfinished: `aiotrace report` reads it as it is, and `aiotrace restore` completes it.

With --arena, --snapshot-signal or a "snapshot" trigger, and neither -o nor --sink, this is a flight recorder: the
buffer keeps the newest events, and only snapshots are written. Their names contain the time (UTC) and what caused them.

exit status: the program's. If the program was not started: 1 the trace cannot be written, 2 wrong arguments,
126 the program cannot be recorded, 127 no such program
"""

from __future__ import annotations

import argparse
import fnmatch
import json
import os
import re
import signal
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Final

from .._base.errors import ConfigurationError
from .._base.package import PACKAGE_FOLDER
from .._events.selection import STALL_MIN, parse_trigger
from .._events.tracer_switch import TRACERS
from . import _program

if TYPE_CHECKING:
    from .._launcher.plan import Plan
    from .._launcher.rules import Rule


OUTPUT: Final = "trace.dat"
VARIABLE: Final = "AIOTRACE_RECORD"
"""The environment variable that carries the plan to the recorded program."""
BUFFER: Final = "4M"
PAGE_SIZE: Final = 65536
PAGES_WANTED: Final = 16
"""A buffer too small for this many pages of PAGE_SIZE gets smaller pages."""
PAGE_SIZE_MIN: Final = 4096
_SIZE: Final = re.compile(r"(?P<number>\d+)(?P<unit>[kKmMgG]?)")
_UNITS: Final = {"": 1 << 10, "k": 1 << 10, "m": 1 << 20, "g": 1 << 30}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.usage = "aiotrace record [OPTIONS] [--] PROGRAM | -m MODULE | -c CODE [ARGUMENTS]"
    add = parser.add_argument
    rule: dict[str, Any] = {"dest": "rules", "action": _AddRule, "default": []}
    add("-e", metavar="GLOB", **rule, help="record only events matching GLOB, e.g. 'http:*'; may be repeated")
    add("-v", metavar="GLOB", **rule, help="exclude events matching GLOB; the last matching option wins")
    add("-f", metavar="FILTER", **rule, help="filter for the preceding -e, e.g. 'status >= 500'")
    add("-R", metavar="TRIGGER", **rule, help="trigger for the preceding -e, e.g. 'traceoff:1 if status >= 500'")
    add("-p", metavar="TRACER", **rule, help="enable a tracer that 'all' leaves out, e.g. function_graph")
    add("-l", metavar="GLOB", **rule, help="with -p function_graph, trace only functions matching GLOB, e.g. 'json.*'")
    add(
        "-n",
        metavar="GLOB",
        **rule,
        help="with -p function_graph, exclude functions matching GLOB; -l and -n may be repeated",
    )
    add(
        "--stall",
        type=_milliseconds,
        metavar="MS",
        help="report steps that last longer than MS, with their stack, while they last (100 if there is no -e)",
    )
    add(
        "--cancel-timeout",
        type=_milliseconds,
        metavar="MS",
        help="report tasks that have not obeyed a cancellation after MS, with the line they are at",
    )
    add(
        "-o",
        dest="output",
        metavar="FILE",
        help=f"write the trace to FILE (default: {OUTPUT}, unless there is a --sink)",
    )
    add("--force", action="store_true", help="overwrite FILE")
    add(
        "--sink",
        dest="sinks",
        action="append",
        default=[],
        metavar="URL",
        help="send the events to URL, e.g. tcp://HOST:PORT; may be repeated",
    )
    add(
        "-b",
        dest="buffer",
        type=_size,
        default=_size(BUFFER),
        metavar="SIZE",
        help=f"size of the buffer, in KiB or with a unit: 512, 64M (default: {BUFFER})",
    )
    add("--overrun", action="store_true", help="when the buffer is full, drop the oldest events instead of the newest")
    add(
        "--arena",
        metavar="PATH",
        help="keep the buffer in this file, best in /dev/shm; after a kill, aiotrace restore reads it",
    )
    add(
        "--external",
        action="store_true",
        help="read the buffer and write the trace in a process of its own, not in the program",
    )
    add(
        "--budget",
        type=_share,
        metavar="PERCENT",
        help="limit aiotrace's overhead to PERCENT of the program's CPU time (1%%) by disabling expensive event groups",
    )
    add("--snapshots", metavar="FILE", help="derive the names of snapshots from FILE (default: trace.dat)")
    add(
        "--snapshot-signal",
        dest="signal",
        type=_signal,
        default=0,
        metavar="NAME",
        help="signal that takes a snapshot, e.g. USR2",
    )
    add("--clock", default="mono", metavar="CLOCK", help="mono (the default), or tsc: the same time, faster to read")
    add("-q", dest="quiet", action="store_true", help="print nothing at the end unless events are missing")
    what: dict[str, Any] = {"nargs": argparse.REMAINDER, "metavar": "..."}
    add("-m", dest="module", **what, help="run a module, like python -m; the rest are its arguments")
    add("-c", dest="code", **what, help="run CODE, like python -c; the rest are its arguments")
    add("program", **what, help="a Python file, or a command that is a Python program, and its arguments")


class _AddRule(argparse.Action):
    """Keeps -e, -v, -f, -R, -p, -l and -n in the order they were given: their meaning depends on it."""

    def __call__(
        self, parser: argparse.ArgumentParser, namespace: argparse.Namespace, value: Any, option: str | None = None
    ) -> None:
        from .._launcher.rules import Rule

        rules: list[Rule] = list(getattr(namespace, self.dest))
        if option in ("-f", "-R"):
            globs = [rule.glob for rule in rules if rule.action == "enable"]
            if not globs:
                parser.error(f"{option} {value!r} is for the preceding -e, and there is none: put -e GLOB before it")
            rules.append(Rule("filter" if option == "-f" else "trigger", globs[-1], value))
        elif option in ("-l", "-n"):
            rules.append(Rule("limit" if option == "-l" else "notrace", value))
        else:
            if option == "-p" and value not in TRACERS:
                parser.error(f"-p {value!r}: no such tracer; choose from {', '.join(TRACERS)}")
            rules.append(Rule("disable" if option == "-v" else "enable", value))
        setattr(namespace, self.dest, rules)


def _milliseconds(text: str) -> int:
    """Nanoseconds."""
    try:
        value = float(text)
    except ValueError:
        value = 0
    if not 1e3 * STALL_MIN <= value < 1e9:
        raise argparse.ArgumentTypeError(f"{text!r} should be milliseconds, at least {1e3 * STALL_MIN:.0f}")
    return int(value * 1e6)


def _size(text: str) -> int:
    """Bytes."""
    match = _SIZE.fullmatch(text)
    if match is None or not int(match["number"]):
        raise argparse.ArgumentTypeError(f"{text!r} should be a size in KiB, or with a unit: 512, 64M, 1G")
    return int(match["number"]) * _UNITS[match["unit"].lower()]


def _share(text: str) -> float:
    from .._budget.policy import parse_percent

    try:
        return parse_percent(text)
    except ConfigurationError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def _signal(text: str) -> int:
    """The number of a signal that a program can handle."""
    number = getattr(signal, f"SIG{text.upper().removeprefix('SIG')}", None)
    if not isinstance(number, signal.Signals) or number in (signal.SIGKILL, signal.SIGSTOP):
        raise argparse.ArgumentTypeError(f"{text!r} should be a signal that a program can handle: USR1, USR2, HUP")
    return int(number)


def run(arguments: argparse.Namespace) -> int:
    """Start the program in place of this process, or, with --external, as a child that is waited for."""
    try:
        path, *argv = _program.command_of(_words(arguments))
        plan = _plan(arguments)
        environment = _environment(plan)
        if not arguments.quiet:
            _tell_of_children(plan)
        if arguments.external:
            from . import _external

            return _external.run((path, *argv), plan, environment, VARIABLE)
        os.execve(path, argv, environment)  # noqa: S606  # this is what the command is for
    except _program.RefusedError as error:
        print(f"aiotrace record: {error}", file=sys.stderr)
        return error.status


def _words(arguments: argparse.Namespace) -> list[str]:
    """
    Raises:
        ConfigurationError: There is no program among the arguments.
    """
    words: list[str] = arguments.program
    if arguments.module is not None:
        words = ["-m", *arguments.module]
    elif arguments.code is not None:
        words = ["-c", *arguments.code]
    elif words[:1] == ["--"]:
        words = words[1:]
    if not words or (words[0] in ("-m", "-c") and len(words) < 2):
        raise ConfigurationError("no program to record; usage: aiotrace record [OPTIONS] PROGRAM [ARGUMENTS]")
    return words


def _plan(arguments: argparse.Namespace) -> Plan:
    """What to record.

    Raises:
        ConfigurationError: The recording cannot work.
        OSError: The trace cannot be written.
    """
    from .._arena.file import refuse_existing
    from .._launcher.plan import Plan
    from .._recording.options import RecordingOptions

    if arguments.arena:
        _check_folder(arguments.arena)
        refuse_existing(arguments.arena)
    if arguments.snapshots:
        _check_folder(arguments.snapshots)

    # Where to: a trace, unless there are other sinks, or snapshots of the buffer are all that is wanted.
    sinks = list(arguments.sinks)
    is_flight = not sinks and arguments.output is None and _takes_snapshots(arguments)
    if not is_flight and (arguments.output is not None or not sinks):
        sinks.insert(0, file_url(arguments.output or OUTPUT, force=arguments.force))
    page_size, pages = _divide(arguments.buffer, len(sinks))
    if arguments.external and arguments.arena:
        raise ConfigurationError(
            f"--arena {arguments.arena}: --external makes an arena of its own; remove one of the two options"
        )

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
    )


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


def _environment(plan: Plan) -> dict[str, str]:
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


def _tell_of_children(plan: Plan) -> None:
    """Warn about traces of children of an earlier run: a report of all traces would mix them with this run's.

    They are not removed: the user did not name them.
    """
    from .._launcher.plan import FILE, children_of, file_of

    for path in (file_of(url) for url in plan.sinks if url.startswith(FILE)):
        there = children_of(path)
        if there:
            first, more = min(there), f" and {len(there) - 1} more" if there[1:] else ""
            print(
                f"aiotrace record: {first}{more}: of children of an earlier run; a report of all traces would "
                "mix them with this run's, so remove them first",
                file=sys.stderr,
                flush=True,
            )


def file_url(path: str, *, force: bool) -> str:
    """The URL of a file sink for `path`.

    Raises:
        ConfigurationError: The path cannot be written as a URL.
        OSError: A trace exists already, or the folder cannot be written.
    """
    from .._store.trace_files import journal_path, spool_paths

    if "?" in path:
        raise ConfigurationError(f"-o {path!r}: a '?' starts the options of a sink URL; choose a name without it")
    _check_folder(path)
    if os.path.isdir(path):
        raise IsADirectoryError(f"-o {path} is a folder: give the name of a file")
    there = [each for each in (path, journal_path(path), *spool_paths(path)) if os.path.lexists(each)]
    if there and not force:
        raise FileExistsError(f"{there[0]} exists: choose another name with -o, or overwrite it with --force")
    return f"file:{path}{'?overwrite=yes' if force else ''}"


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
