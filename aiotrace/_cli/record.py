"""Run a program and record its events.

examples:
  aiotrace record app.py --port 8000
  aiotrace record -o run.dat -m mypackage ARGUMENTS
  aiotrace record -e 'http:*' -f 'status >= 500' -e task -- uvicorn app:app
  aiotrace record -e all -v 'http:debug_*' -b 64M --overrun app.py
  aiotrace record -e task -e 'stall:*' -R snapshot:after=2 --arena /dev/shm/app.arena app.py
  aiotrace record --budget 1% -p function_graph -e all app.py
  aiotrace record -p function_graph -l '__main__.*' -n '*.<lambda>' app.py

Without -e it records the program's own events, the steps of its tasks, and stalls. The program is started by execve:
its exit status, its signals and all that it sees are its own. Children by fork and multiprocessing get a trace each,
FILE with their pid in its name; `aiotrace report` takes them all. A program that a signal kills leaves its trace
unfinished: `aiotrace report` reads it as it is, and `aiotrace restore` finishes it.

With --arena, --snapshot-signal or a trigger "snapshot", and neither -o nor --sink, it is a flight recorder: the buffer
keeps the newest events, and only snapshots are written, named by the time (UTC) and what set them off.

exit status: the program's; before it begins: 1 the trace cannot be written, 2 wrong arguments, 126 no program that
can be recorded, 127 no such program
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

NAME: Final = "record"
HELP: Final = "run a program and record its events"

OUTPUT: Final = "trace.dat"
VARIABLE: Final = "AIOTRACE_RECORD"
"""Of the environment: what the shim finds the plan in."""
BUFFER: Final = "4M"
PAGE_SIZE: Final = 65536
PAGES_WANTED: Final = 16
"""A buffer that has fewer pages of the usual size gets smaller ones."""
PAGE_SIZE_MIN: Final = 4096
_SIZE: Final = re.compile(r"(?P<number>\d+)(?P<unit>[kKmMgG]?)")
_UNITS: Final = {"": 1 << 10, "k": 1 << 10, "m": 1 << 20, "g": 1 << 30}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.usage = "aiotrace record [OPTIONS] [--] PROGRAM | -m MODULE | -c CODE [ARGUMENTS]"
    add = parser.add_argument
    rule: dict[str, Any] = {"dest": "rules", "action": _AddRule, "default": []}
    add("-e", metavar="GLOB", **rule, help="record events like 'http:*', and no others; may be repeated")
    add("-v", metavar="GLOB", **rule, help="but not events like this; what stands last decides")
    add("-f", metavar="FILTER", **rule, help="of the -e before it only events with such fields: 'status >= 500'")
    add("-R", metavar="TRIGGER", **rule, help="what the -e before it sets off: 'traceoff:1 if status >= 500'")
    add("-p", metavar="TRACER", **rule, help="switch on a tracer that is not part of 'all', like function_graph")
    add("-l", metavar="GLOB", **rule, help="of functions, -p function_graph sees only those like 'json.*'")
    add("-n", metavar="GLOB", **rule, help="and none like this; both may be repeated")
    add(
        "--stall",
        type=_milliseconds,
        metavar="MS",
        help="report steps that last longer while they last, with their stack (without -e: 100)",
    )
    add(
        "--cancel-timeout",
        type=_milliseconds,
        metavar="MS",
        help="report tasks that have not obeyed a cancellation by then, with the line where they are",
    )
    add("-o", dest="output", metavar="FILE", help=f"the trace (default: {OUTPUT}, unless there is a --sink)")
    add("--force", action="store_true", help="overwrite FILE")
    add("--sink", dest="sinks", action="append", default=[], metavar="URL", help="where else to; may be repeated")
    add(
        "-b",
        dest="buffer",
        type=_size,
        default=_size(BUFFER),
        metavar="SIZE",
        help=f"the buffer, in KiB or with a unit: 512, 64M (default: {BUFFER})",
    )
    add("--overrun", action="store_true", help="a full buffer loses the oldest events, not the newest")
    add(
        "--arena", metavar="PATH", help="have the buffer in this file: after a kill, restore reads it; best in /dev/shm"
    )
    add(
        "--external", action="store_true", help="read the buffer and write the trace in this process, not the program's"
    )
    add(
        "--budget",
        type=_share,
        metavar="PERCENT",
        help="switch off what makes all this cost more of the program's time, like 1%%; it is on again when it fits",
    )
    add("--snapshots", metavar="FILE", help="what snapshots are named after (default: trace.dat)")
    add("--snapshot-signal", dest="signal", type=_signal, default=0, metavar="NAME", help="takes one, like USR2")
    add("--clock", default="mono", metavar="CLOCK", help="mono, or tsc: the same time, read faster")
    add("-q", dest="quiet", action="store_true", help="say nothing at the end, unless events are missing")
    what: dict[str, Any] = {"nargs": argparse.REMAINDER, "metavar": "..."}
    add("-m", dest="module", **what, help="a module, as python -m; what follows are its arguments")
    add("-c", dest="code", **what, help="a program, as python -c; what follows are its arguments")
    add("program", **what, help="a file, or a command that is a Python program, and its arguments")


class _AddRule(argparse.Action):
    """Keeps -e, -v, -f, -R, -p, -l and -n in the order in which they were given: what they mean depends on it."""

    def __call__(
        self, parser: argparse.ArgumentParser, namespace: argparse.Namespace, value: Any, option: str | None = None
    ) -> None:
        from .._launcher.rules import Rule

        rules: list[Rule] = list(getattr(namespace, self.dest))
        if option in ("-f", "-R"):
            globs = [rule.glob for rule in rules if rule.action == "enable"]
            if not globs:
                parser.error(f"{option} {value!r} needs the events that it is for: put -e GLOB before it")
            rules.append(Rule("filter" if option == "-f" else "trigger", globs[-1], value))
        elif option in ("-l", "-n"):
            rules.append(Rule("limit" if option == "-l" else "notrace", value))
        else:
            if option == "-p" and value not in TRACERS:
                parser.error(f"-p {value!r}: there is no such tracer; known: {', '.join(TRACERS) or 'none yet'}")
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
    """A signal's number, by its name."""
    number = getattr(signal, f"SIG{text.upper().removeprefix('SIG')}", None)
    if not isinstance(number, signal.Signals) or number in (signal.SIGKILL, signal.SIGSTOP):
        raise argparse.ArgumentTypeError(f"{text!r} should be a signal that a program can handle: USR1, USR2, HUP")
    return int(number)


def run(arguments: argparse.Namespace) -> int:
    """Does not return, if the program can be started; with --external, when it has ended."""
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
        raise ConfigurationError("no program to record: aiotrace record [OPTIONS] PROGRAM [ARGUMENTS]")
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
        raise ConfigurationError("--external has an arena of its own: leave --arena out")

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
    """Ours, with what makes the program's Python begin with the recording.

    Raises:
        ConfigurationError: Python could not find us.
    """
    shim = os.path.join(PACKAGE_FOLDER, "_launcher", "shim")
    if os.pathsep in shim:
        raise ConfigurationError(
            f"{shim!r} cannot stand in PYTHONPATH: install aiotrace where no {os.pathsep!r} is in the path"
        )
    before = os.environ.get("PYTHONPATH")
    return {
        **os.environ,
        "PYTHONPATH": f"{shim}{os.pathsep}{before}" if before else shim,
        VARIABLE: json.dumps(plan.to_dict()),
    }


def _takes_snapshots(arguments: argparse.Namespace) -> bool:
    """Whether anything makes a snapshot or a copy of the buffer."""
    triggers = [parse_trigger(rule.text) for rule in arguments.rules if rule.action == "trigger"]
    return bool(arguments.arena or arguments.signal or any(trigger.action == "snapshot" for trigger in triggers))


def _only(rules: Sequence[Rule]) -> tuple[Rule, ...]:
    """With an -e, only the events that are named; -v alone excludes from what is recorded by default.

    Raises:
        ConfigurationError: Functions are chosen that nothing traces.
    """
    from .._launcher.rules import Rule

    functions = [rule for rule in rules if rule.action in ("limit", "notrace")]
    events = [rule for rule in rules if rule not in functions]
    enabled = [rule.glob for rule in events if rule.action == "enable"]
    for rule in functions:
        if not any(_traces_functions(glob) for glob in enabled):
            option = "-l" if rule.action == "limit" else "-n"
            raise ConfigurationError(f"{option} {rule.glob!r} is for functions: add -p function_graph, or -p function")
    only = [Rule("disable", "all")] if enabled else []
    return (*functions, *only, *events)


def _traces_functions(glob: str) -> bool:
    return any(fnmatch.fnmatchcase(system, glob.partition(":")[0]) for system in ("function", "function_graph"))


def _tell_of_children(plan: Plan) -> None:
    """Say that traces of an earlier run's children are there, which a report of all would take for this run's. They
    are not ours to remove: nobody named them."""
    from .._launcher.plan import FILE, children_of, file_of

    for path in (file_of(url) for url in plan.sinks if url.startswith(FILE)):
        there = children_of(path)
        if there:
            first, more = min(there), f" and {len(there) - 1} more" if there[1:] else ""
            print(
                f"aiotrace record: {first}{more}: of children of an earlier run, which a report of all traces would "
                "take for this run's: remove them first",
                file=sys.stderr,
                flush=True,
            )


def file_url(path: str, *, force: bool) -> str:
    """The URL of a file that can be written.

    Raises:
        ConfigurationError: It cannot stand in a URL.
        OSError: A trace is there already, or the folder cannot be written.
    """
    from .._store.trace_files import journal_path, spool_paths

    if "?" in path:
        raise ConfigurationError(f"{path!r}: choose a name without '?'")
    _check_folder(path)
    if os.path.isdir(path):
        raise IsADirectoryError(f"{path} is a folder: -o takes the name of a file")
    there = [each for each in (path, journal_path(path), *spool_paths(path)) if os.path.lexists(each)]
    if there and not force:
        raise FileExistsError(f"{there[0]} exists: choose another name with -o, or overwrite it with --force")
    return f"file:{path}{'?overwrite=yes' if force else ''}"


def _check_folder(path: str) -> None:
    """
    Raises:
        OSError: No file of this name can be made.
    """
    folder = os.path.dirname(os.path.abspath(path))
    if not os.path.isdir(folder):
        raise FileNotFoundError(f"{path}: there is no folder {folder}")
    if not os.access(folder, os.W_OK | os.X_OK):
        raise PermissionError(f"{path}: the folder {folder} cannot be written")


def _absolute(url: str) -> str:
    """A URL of a file or a Unix socket whose path does not depend on where the program goes."""
    path, mark, query = url.partition("?")
    scheme, _, name = path.partition(":")
    return f"{scheme}:{os.path.abspath(name)}{mark}{query}" if scheme in ("file", "unix") and name else url
