"""Run a program and record its events.

examples:
  aiotrace record app.py --port 8000
  aiotrace record -o run.dat -m mypackage ARGUMENTS
  aiotrace record -e 'http:*' -f 'status >= 500' -e task -- uvicorn app:app
  aiotrace record --service -- uvicorn app:app --workers 4
  aiotrace record -e all -v 'http:debug_*' -b 64M --overrun app.py
  aiotrace record -e task -e 'stall:*' -R snapshot:after=2 app.py
  aiotrace record --budget 1% -p function_graph -e all app.py
  aiotrace record -p function_graph -l '__main__.*' -n '*.<lambda>' app.py

Without -e, the program's own events, the steps of its tasks, and stalls are recorded. The program is a child of this
command, which ends as the program does: with its exit status, or by the signal that ended it. However the program ends,
FILE is finished by then. Each child started by fork or multiprocessing gets a trace of its own: FILE with the child's
pid in its name; `aiotrace report` merges them. With --exec the program replaces this process instead.

In FILE, %p is the process's pid, %t the time when it started, %h the host, %n the program and %% a percent sign; a name
that is in use gets .2, .3 and so on.

With a "snapshot" trigger, --snapshot-signal or --arena, and neither -o nor --sink, this is a flight recorder: the
buffer keeps the newest events, and only snapshots are written. Their names contain the time (UTC) and what caused them.

exit status: the program's. If the program was not started: 1 the trace cannot be written, 2 wrong arguments,
126 the program cannot be recorded, 127 no such program
"""

from __future__ import annotations

import argparse
import os
import re
import signal
import sys
from typing import TYPE_CHECKING, Any, Final

from .._base.errors import ConfigurationError
from .._events.selection import STALL_MIN
from .._events.tracer_switch import TRACERS
from . import _program
from ._recording_plan import OUTPUT, SERVICE, SERVICE_KEEP, VARIABLE, environment_of, make_plan

if TYPE_CHECKING:
    from .._launcher.plan import Plan
    from .._launcher.rules import Rule


BUFFER: Final = "4M"
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
        help=f"write the trace to FILE (default: {OUTPUT}, unless there is a --sink); %%p, %%t, %%h, %%n are replaced",
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
        help="keep the buffer in this file until FILE is finished, best in /dev/shm; aiotrace restore reads it",
    )
    where = parser.add_mutually_exclusive_group()
    where.add_argument(
        "--external",
        action="store_true",
        help="read the buffer and write the trace outside of the program (the default)",
    )
    where.add_argument(
        "--exec",
        dest="is_exec",
        action="store_true",
        help="let the program replace this process, and read and write inside it; a kill leaves the trace unfinished",
    )
    add("--wait", action="store_true", help="return when the program's children have ended, too")
    add(
        "--service",
        action="store_true",
        help=f"for services: the same as -o '{SERVICE.replace('%', '%%')}' --keep {SERVICE_KEEP}",
    )
    add(
        "--keep",
        type=_count,
        metavar="N",
        help="keep at most N finished traces with names like FILE, which has a %%t or %%p; remove the oldest",
    )
    add(
        "--max-size",
        type=_size,
        metavar="SIZE",
        help="keep at most SIZE of such finished traces, in KiB or with a unit: 512, 64M",
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


def _count(text: str) -> int:
    """At least 1."""
    if not text.isdecimal() or not int(text):
        raise argparse.ArgumentTypeError(f"{text!r} should be a number, at least 1")
    return int(text)


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
    """Start the program as a child that is waited for, or, with --exec, in place of this process."""
    try:
        path, *argv = _program.command_of(_words(arguments))
        _finish_earlier_runs(arguments)
        plan = make_plan(arguments, argv)
        if plan.options.arena is not None:
            _restore_arena(plan.options.arena, plan)
        if not arguments.quiet:
            _warn_of_old_children(plan)
        environment = environment_of(plan)
        is_exec = arguments.is_exec or not _has_c_module(arguments)
        if not is_exec:
            from .._launcher.front import parent

            return parent.run((path, *argv), plan, environment, VARIABLE, wait=arguments.wait)
        if arguments.is_exec and not arguments.quiet:
            _tell("--exec: the trace is unfinished if the program is killed, or ends by os._exit")
        os.execve(path, argv, environment)  # noqa: S606  # this is what the command is for
    except _program.RefusedError as error:
        print(f"aiotrace record: {error}", file=sys.stderr)
        return error.status


def _has_c_module(arguments: argparse.Namespace) -> bool:
    """Whether another process can read the program's buffer."""
    from .._base.backend import c_module

    if c_module is None and not arguments.external and not arguments.quiet:
        _tell(
            "without aiotrace's C module (`pip install .` with a C compiler builds it) the program records itself, as "
            "with --exec: the trace is unfinished if it is killed, or ends by os._exit"
        )
    return c_module is not None or arguments.external


def _tell(line: str) -> None:
    print(f"aiotrace record: {line}", file=sys.stderr, flush=True)


def _finish_earlier_runs(arguments: argparse.Namespace) -> None:
    """Make traces of what runs into the same folder left in their buffers, when their recorder was killed."""
    from .._launcher import run_folder

    place = os.path.dirname(os.path.abspath(arguments.output or arguments.snapshots or OUTPUT))
    if run_folder.has_abandoned(place):
        from .._launcher.leftovers import finish_abandoned

        for line in finish_abandoned(place):
            _tell(line)


def _restore_arena(arena: str | os.PathLike[str], plan: Plan) -> None:
    """Make a trace of the arena that the process before this one left."""
    from .._launcher.leftovers import restore_named

    for line in restore_named(os.fspath(arena), plan):
        _tell(line)


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


def _warn_of_old_children(plan: Plan) -> None:
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
