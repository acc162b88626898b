"""`report --tasks`, `--latency`, ...: the events of traces go through a report, which is printed.

Traces are read one after the other, in the order of their first events, so that the parts of a rotated trace make one
and those of several processes stand side by side.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import sys
from collections.abc import Callable, Iterator
from typing import Any, Final

from .._base.errors import ConfigurationError
from .._reports import Report
from ..decode import Event, Trace, open_trace
from . import _losses
from ._progress import with_progress

THRESHOLD_MS: Final = 100.0
_NAMES: Final = {
    "tasks": "where the time goes: busy, waiting and idle, by spawn site and by task",
    "latency": "histograms: how long ready tasks wait for their turn, and how long steps take",
    "cancellations": "who asked for them, where, and what became of them",
    "lost_tasks": "tasks destroyed while pending, exceptions never retrieved, tasks that have not ended",
    "stalls": "steps that held their loop up, where, and what went on in them",
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
    group = parser.add_argument_group("questions about tasks, one at a time (record with -e 'task:*')")
    choice = group.add_mutually_exclusive_group()
    for name, text in _NAMES.items():
        choice.add_argument(f"--{name.replace('_', '-')}", dest="question", action="store_const", const=name, help=text)
    group.add_argument(
        "--threshold",
        type=_milliseconds,
        metavar="MS",
        help=f"with --stalls: how long a stall is at least (default: {THRESHOLD_MS:.0f})",
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
        ConfigurationError: Options stand together that do not go together.
    """
    if arguments.threshold is not None and arguments.question != "stalls":
        raise ConfigurationError("--threshold goes with --stalls alone")
    option = next((option for name, option in _NOT_WITH.items() if getattr(arguments, name)), None)
    if arguments.question and option:
        raise ConfigurationError(f"{option} does not go with {_option(arguments)}, which chooses its events itself")


def _option(arguments: argparse.Namespace) -> str:
    return f"--{arguments.question.replace('_', '-')}"


def run(arguments: argparse.Namespace) -> int:
    with contextlib.ExitStack() as stack:
        traces = [stack.enter_context(open_trace(path)) for path in arguments.files]
        report = _make(arguments, traces)
        seen = _feed(report, arguments, traces)
        if not seen & report.evidence:
            raise ConfigurationError(_nothing(arguments, report))
        report.finish()
        for text in _json(report) if arguments.json else report.lines():
            print(text)
        sys.stdout.flush()
        for trace in traces:
            _losses.tell_unfinished("report", trace)
        lost = [_losses.tell("report", trace) for trace in traces]
    if any(lost):
        print("aiotrace report: what is missing may have changed the answer", file=sys.stderr)
    return _losses.LOST if any(lost) else 0


def _make(arguments: argparse.Namespace, traces: list[Trace]) -> Report:
    from .._reports.cancellations import CancellationsReport
    from .._reports.latency import LatencyReport
    from .._reports.lost_tasks import LostTasksReport
    from .._reports.stalls import StallsReport
    from .._reports.tasks import TasksReport

    threshold = int(THRESHOLD_MS * 1e6) if arguments.threshold is None else arguments.threshold
    is_logged = any(format.full_name == "log:record" for trace in traces for format in trace.formats)
    reports: dict[str, Callable[[], Report]] = {
        "tasks": TasksReport,
        "latency": LatencyReport,
        "cancellations": CancellationsReport,
        "lost_tasks": lambda: LostTasksReport(is_logged=is_logged),
        "stalls": lambda: StallsReport(threshold),
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
                report.add(event)
        report.end_part()
    return seen


def _first_ns(trace: Trace) -> int:
    event: Event | None = next(trace.events(), None)
    return event.timestamp_ns if event is not None else 0


def _nothing(arguments: argparse.Namespace, report: Report) -> str:
    paths = ", ".join(arguments.files)
    return (
        f"{paths}: no {' or '.join(sorted(report.evidence))} in there, which {_option(arguments)} is made of: was it "
        "recorded without the task tracer? aiotrace record -e 'task:*' PROGRAM"
    )


def _json(report: Report) -> Iterator[str]:
    return (json.dumps(row, separators=(",", ":")) for row in report.rows())
