"""`report --tasks`, `--latency`, ...: events of traces --> a Report --> lines or JSON.

Traces are read one after the other, ordered by their first events: the parts of a rotated trace are joined, and traces
of several processes are reported side by side.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import sys
from collections.abc import Callable, Iterator
from typing import Any, Final

from .._base.errors import ConfigurationError
from .._base.terminal_text import escape, format_pairs
from .._decode.report_lines import format_time
from .._reports import Report
from ..decode import Event, Trace, open_trace
from . import _losses
from ._progress import with_progress

THRESHOLD_MS: Final = 100.0
_NAMES: Final = {
    "tasks": "where the time goes: busy, waiting and idle, by spawn site and by task",
    "latency": "histograms of how long ready tasks wait for the loop, and of how long steps take",
    "cancellations": "who requested each cancellation, where, and its outcome",
    "lost_tasks": "tasks destroyed while pending, exceptions never retrieved, tasks that have not ended",
    "stalls": "steps that blocked their loop, where, and which events occurred in them",
}
_NOT_WITH: Final = {
    "event": "-e",
    "filter": "-F",
    "cpu": "--cpu",
    "pid": "--pid",
    "raw": "--raw",
    "follow": "--follow",
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("analyses of tasks, one at a time (record with -e 'task:*')")
    choice = group.add_mutually_exclusive_group()
    for name, text in _NAMES.items():
        choice.add_argument(f"--{name.replace('_', '-')}", dest="question", action="store_const", const=name, help=text)
    group.add_argument(
        "--threshold",
        type=_milliseconds,
        metavar="MS",
        help="with --stalls: only stalls of at least MS milliseconds (default: "
        f"{THRESHOLD_MS:.0f}, or what the recording watched for if that is less)",
    )


def _milliseconds(text: str) -> int:
    """Nanoseconds."""
    try:
        value = float(text)
    except ValueError:
        value = -1
    if not 0 <= value < 1e9:
        raise argparse.ArgumentTypeError(f"{text!r} should be milliseconds, like 100 or 2.5")
    return int(value * 1e6)


def check(arguments: argparse.Namespace) -> None:
    """
    Raises:
        ConfigurationError: Options that exclude each other are combined.
    """
    if arguments.threshold is not None and arguments.question != "stalls":
        raise ConfigurationError("--threshold needs --stalls")
    option = next((option for name, option in _NOT_WITH.items() if getattr(arguments, name)), None)
    if arguments.question and option:
        raise ConfigurationError(f"{option} cannot be combined with {_option(arguments)}, which selects its own events")


def _option(arguments: argparse.Namespace) -> str:
    return f"--{arguments.question.replace('_', '-')}"


def run(arguments: argparse.Namespace) -> int:
    with contextlib.ExitStack() as stack:
        traces = [stack.enter_context(open_trace(path)) for path in arguments.files]
        report = _make(arguments, traces)
        seen = _feed(report, arguments, traces)
        if not seen & report.evidence:
            raise ConfigurationError(_missing_events(arguments, report))
        report.finish()
        for text in _json(report) if arguments.json else report.lines():
            print(text)
        sys.stdout.flush()
        for trace in traces:
            _losses.report_unfinished("report", trace)
        lost = [_losses.report("report", trace) for trace in traces]
    if any(lost):
        print("aiotrace report: the missing events may change this result", file=sys.stderr)
    return _losses.LOST if any(lost) else 0


def _make(arguments: argparse.Namespace, traces: list[Trace]) -> Report:
    from .._reports.cancellations import CancellationsReport
    from .._reports.latency import LatencyReport
    from .._reports.lost_tasks import LostTasksReport
    from .._reports.stalls import StallsReport
    from .._reports.tasks import TasksReport

    is_logged = any(format.full_name == "log:record" for trace in traces for format in trace.formats)
    reports: dict[str, Callable[[], Report]] = {
        "tasks": TasksReport,
        "latency": LatencyReport,
        "cancellations": CancellationsReport,
        "lost_tasks": lambda: LostTasksReport(is_logged=is_logged),
        "stalls": lambda: StallsReport(int(THRESHOLD_MS * 1e6), arguments.threshold),
    }
    return reports[arguments.question]()


def _feed(report: Report, arguments: argparse.Namespace, traces: list[Trace]) -> set[str]:
    """Returns the names of the events that the report was given."""
    choice: dict[str, Any] = {"start_ns": arguments.start, "end_ns": arguments.end}
    seen: set[str] = set()
    for trace in sorted(traces, key=lambda trace: _first_ns(trace)):
        for event in with_progress(trace.events(report.wanted, **choice), traces):
            if not event.is_loss:
                seen.add(event.name)
                try:
                    report.add(event)
                except (LookupError, TypeError, ValueError) as error:
                    raise ConfigurationError(_wrong_fields(trace, event, _option(arguments))) from error
        report.end_part()
    return seen


def _wrong_fields(trace: Trace, event: Event, option: str) -> str:
    """Somebody else's events with the names of aiotrace's, or damaged ones."""
    path, at = escape(os.fsdecode(trace.path)), format_time(event.timestamp_ns).strip()
    return (
        f"{path}: {option} cannot use {escape(event.name)} at {at}: it lacks fields, or has others than aiotrace's: "
        f"{format_pairs(event.fields) or 'none'}"
    )


def _first_ns(trace: Trace) -> int:
    event: Event | None = next(trace.events(), None)
    return event.timestamp_ns if event is not None else 0


def _missing_events(arguments: argparse.Namespace, report: Report) -> str:
    paths = ", ".join(arguments.files)
    return (
        f"{paths}: {_option(arguments)} needs {' or '.join(sorted(report.evidence))} events, and there are none; "
        "record the task tracer: aiotrace record -e 'task:*' PROGRAM"
    )


def _json(report: Report) -> Iterator[str]:
    return (json.dumps(row, separators=(",", ":")) for row in report.rows())
