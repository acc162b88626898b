"""Print the events of one or more traces in the order of time, or an analysis of their tasks.

examples:
  aiotrace report | head
  aiotrace report trace.dat -e 'http:*' -F 'status >= 500 && path ~ "/api/*"'
  aiotrace report app.dat kernel.dat --from 961.2 --to 961.3
  aiotrace report trace.dat --json --pid 4615 > events.jsonl
  aiotrace report trace.dat --follow
  aiotrace report trace.dat --tasks
  aiotrace report trace.dat --stalls --threshold 50
  aiotrace report trace.*.dat trace.dat --latency --json

Several files are merged by time: they must have the same clock, and be of the same boot. The exit status is 3 if events
are missing; stderr says how many, and where.
"""

from __future__ import annotations

import argparse
import contextlib
import sys
from decimal import Decimal, InvalidOperation
from typing import Final

from .._base.clock import MONO
from .._base.errors import ConfigurationError
from .._base.terminal_text import escape
from .._decode.event_format import EventFormat
from .._page.derived_fields import ALL as DERIVED
from .._page.filter import OF_EVENT, Filter, compile_filter
from .._traces.query import Query, matches
from ..decode import Trace, open_trace
from . import _analyses, _losses
from ._lines_out import Form, lines_of
from ._progress import with_progress
from ._recording_plan import OUTPUT

NAME: Final = "report"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add(
        "files",
        nargs="*",
        default=[OUTPUT],
        metavar="FILE",
        help=f"a trace.dat of aiotrace or of the kernel (default: {OUTPUT})",
    )
    add(
        "-e",
        "--event",
        action="append",
        default=[],
        metavar="GLOB",
        help="print only events matching GLOB, e.g. 'http:*'; may be repeated",
    )
    add(
        "-F",
        "--filter",
        type=_filter,
        metavar="FILTER",
        help="""print only events whose fields pass FILTER, e.g. 'n > 5 && name == "x"'""",
    )
    add("--from", dest="start", type=_seconds, metavar="SECONDS", help="print only events at or after this time")
    add("--to", dest="end", type=_seconds, metavar="SECONDS", help="print only events up to and including this time")
    add("--cpu", type=_numbers, metavar="LIST", help="print only events of these writers (CPUs), e.g. 0,2-5")
    add("--pid", type=_numbers, metavar="LIST", help="print only events of these tasks, e.g. 4615,4619")
    form = parser.add_mutually_exclusive_group()
    form.add_argument("--json", action="store_true", help="print one JSON object per line")
    form.add_argument(
        "--raw", action="store_true", help="print name=value for each field instead of using the print fmt"
    )
    add("--follow", action="store_true", help="continue while the file grows, until its recording ends")
    _analyses.add_arguments(parser)


def _filter(text: str) -> Filter:
    try:
        return compile_filter(text)
    except ConfigurationError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def _seconds(text: str) -> int:
    """Seconds as `report` prints them, in nanoseconds."""
    try:
        return int(Decimal(text) * 1_000_000_000)
    except (InvalidOperation, ValueError, OverflowError):
        raise argparse.ArgumentTypeError(f"{text!r} should be seconds, like 961.25") from None


def _numbers(text: str) -> list[int]:
    numbers: list[int] = []
    for part in text.split(","):
        first, dash, last = part.partition("-")
        try:
            begin, end = int(first), int(last if dash else first)
        except ValueError:
            raise argparse.ArgumentTypeError(f"{text!r} should be numbers, like 0,2-5") from None
        if end - begin > 1 << 20:
            raise argparse.ArgumentTypeError(f"{part!r} is too many numbers: at most {1 << 20} in one range")
        numbers.extend(range(begin, end + 1))
    return numbers


def run(arguments: argparse.Namespace) -> int:
    _analyses.check(arguments)
    if arguments.question:
        return _analyses.run(arguments)
    with contextlib.ExitStack() as stack:
        traces = [stack.enter_context(open_trace(path)) for path in arguments.files]
        _check_clocks(traces)
        if arguments.follow and len(traces) > 1:
            raise ConfigurationError(f"--follow takes one file, not {len(traces)}")

        # A reader at a terminal, or of a trace that grows, sees each event at once.
        lines = lines_of(traces, _query(arguments), _form(arguments), follow=arguments.follow)
        if arguments.follow or sys.stdout.isatty():
            for text in lines:
                sys.stdout.write(text)
                sys.stdout.flush()
        else:
            for text in with_progress(lines, traces):
                sys.stdout.write(text)
        sys.stdout.flush()

        # Only now is it known which events the traces define and what is missing.
        _warn_unmatched(arguments, [format for trace in traces for format in trace.formats])
        for trace in traces if not arguments.follow else ():
            _losses.report_unfinished(NAME, trace)
        lost = [_losses.report(NAME, trace) for trace in traces]
    return _losses.LOST if any(lost) else 0


def _query(arguments: argparse.Namespace) -> Query:
    return Query.of(
        arguments.event,
        start_ns=arguments.start,
        end_ns=arguments.end,
        cpus=arguments.cpu,
        pids=arguments.pid,
        where=arguments.filter,
    )


def _form(arguments: argparse.Namespace) -> Form:
    return Form.JSON if arguments.json else Form.RAW if arguments.raw else Form.TEXT


def _warn_unmatched(arguments: argparse.Namespace, formats: list[EventFormat]) -> None:
    """Warn about globs that match no event and fields that no event has: most often a spelling mistake."""
    known = [format.full_name for format in formats]
    for glob in arguments.event:
        if glob != "all" and not any(matches(glob, format) for format in formats):
            has = f"{', '.join(known[:10])}{', …' if len(known) > 10 else ''}" if known else "none"
            print(f"aiotrace report: -e {glob!r} matches no event; there are {escape(has)}", file=sys.stderr)
    if arguments.filter is not None and formats:
        chosen = [format for format in formats if not arguments.event or _is_chosen(arguments.event, format)]
        fields = {field.name for format in chosen for field in format.fields}
        for name in sorted(arguments.filter.fields - fields - DERIVED - OF_EVENT):
            print(f"aiotrace report: -F {arguments.filter.text!r}: no event has a field {name}", file=sys.stderr)


def _is_chosen(globs: list[str], format: EventFormat) -> bool:
    return any(glob == "all" or matches(glob, format) for glob in globs)


def _check_clocks(traces: list[Trace]) -> None:
    """
    Raises:
        ConfigurationError: The traces' times cannot be compared.
    """
    clocks = {trace.clock for trace in traces}
    if len(clocks) > 1:
        found = ", ".join(f"{trace.path}: {trace.clock or 'unknown'}" for trace in traces)
        raise ConfigurationError(f"traces of different clocks cannot be merged: {found}; report each trace by itself")
    boots = {trace.path: trace.anchor.boot_id for trace in traces if trace.anchor and trace.anchor.boot_id}
    if clocks == {MONO} and len(set(boots.values())) > 1:
        found = ", ".join(f"{path}: boot {boot}" for path, boot in boots.items())
        raise ConfigurationError(f"times since different boots cannot be merged: {found}; report each trace by itself")
