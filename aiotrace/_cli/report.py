"""Print the events of one or more traces in the order of time, or what they say of its tasks.

examples:
  aiotrace report | head
  aiotrace report trace.dat -e 'http:*' -F 'status >= 500 && path ~ "/api/*"'
  aiotrace report app.dat kernel.dat --from 961.2 --to 961.3
  aiotrace report trace.dat --json --pid 4615 > events.jsonl
  aiotrace report trace.dat --follow
  aiotrace report trace.dat --tasks
  aiotrace report trace.dat --stalls --threshold 50
  aiotrace report trace.*.dat trace.dat --latency --json

Several files are merged by their clock, which must be the same, and of the same boot. The exit status is 3 if events
are missing: a line on stderr says how many and where.
"""

from __future__ import annotations

import argparse
import contextlib
import heapq
import json
import math
import os
import sys
from collections.abc import Callable, Iterator
from decimal import Decimal, InvalidOperation
from typing import Any, Final

from .._base.clock import MONO
from .._base.errors import ConfigurationError
from .._base.terminal_text import escape
from .._decode.event_format import EventFormat
from .._page.derived_fields import ALL as DERIVED
from .._page.filter import OF_EVENT, Filter, compile_filter
from .._traces.query import matches
from ..decode import Event, Trace, format_line, open_trace
from . import _analyses, _losses
from ._progress import with_progress
from .record import OUTPUT

NAME: Final = "report"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add(
        "files",
        nargs="*",
        default=[OUTPUT],
        metavar="FILE",
        help=f"a trace.dat, of aiotrace or of the kernel (default: {OUTPUT})",
    )
    add("-e", "--event", action="append", default=[], metavar="GLOB", help="only events like 'http:*'; may be repeated")
    add(
        "-F",
        "--filter",
        type=_filter,
        metavar="FILTER",
        help="""only events with such fields: 'n > 5 && name == "x"'""",
    )
    add("--from", dest="start", type=_seconds, metavar="SECONDS", help="only events from this time on")
    add("--to", dest="end", type=_seconds, metavar="SECONDS", help="only events up to this time")
    add("--cpu", type=_numbers, metavar="LIST", help="only these writers (CPUs): 0,2-5")
    add("--pid", type=_numbers, metavar="LIST", help="only these tasks: 4615,4619")
    form = parser.add_mutually_exclusive_group()
    form.add_argument("--json", action="store_true", help="one JSON object for each event")
    form.add_argument(
        "--raw", action="store_true", help="name=value for each field, not what the print fmt makes of it"
    )
    add("--follow", action="store_true", help="go on while the file grows, until its recording ends")
    _analyses.add_arguments(parser)


def _filter(text: str) -> Filter:
    try:
        return compile_filter(text)
    except ConfigurationError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def _seconds(text: str) -> int:
    """As the report prints them, to nanoseconds."""
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
            raise argparse.ArgumentTypeError(f"{part!r} are too many numbers")
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
            raise ConfigurationError("--follow takes one file")
        write = sys.stdout.write
        texts = _texts(arguments, traces)
        if arguments.follow or sys.stdout.isatty():
            for text in texts:
                write(text)
                sys.stdout.flush()
        else:
            for text in with_progress(texts, traces):
                write(text)
        sys.stdout.flush()
        _tell_unmatched(arguments, [format for trace in traces for format in trace.formats])
        for trace in traces if not arguments.follow else ():
            _losses.tell_unfinished(NAME, trace)
        lost = [_losses.tell(NAME, trace) for trace in traces]
    return _losses.LOST if any(lost) else 0


def _tell_unmatched(arguments: argparse.Namespace, formats: list[EventFormat]) -> None:
    """Say what was asked for and is in no trace: most often a spelling mistake."""
    known = [format.full_name for format in formats]
    for glob in arguments.event:
        if glob != "all" and not any(matches(glob, format) for format in formats):
            has = f"{', '.join(known[:10])}{', …' if len(known) > 10 else ''}" if known else "none"
            print(f"aiotrace report: -e {glob!r} is of no event; there are {escape(has)}", file=sys.stderr)
    if arguments.filter is not None and formats:
        chosen = [format for format in formats if not arguments.event or _is_of(arguments.event, format)]
        fields = {field.name for format in chosen for field in format.fields}
        for name in sorted(arguments.filter.fields - fields - DERIVED - OF_EVENT):
            print(f"aiotrace report: -F {arguments.filter.text!r}: no event has a field {name}", file=sys.stderr)


def _is_of(globs: list[str], format: EventFormat) -> bool:
    return any(glob == "all" or matches(glob, format) for glob in globs)


def _check_clocks(traces: list[Trace]) -> None:
    clocks = {trace.clock for trace in traces}
    if len(clocks) > 1:
        found = ", ".join(f"{trace.path}: {trace.clock or 'unknown'}" for trace in traces)
        raise ConfigurationError(f"traces of different clocks cannot be merged: {found}")
    boots = {trace.path: trace.anchor.boot_id for trace in traces if trace.anchor and trace.anchor.boot_id}
    if clocks == {MONO} and len(set(boots.values())) > 1:
        found = ", ".join(f"{path}: boot {boot}" for path, boot in boots.items())
        raise ConfigurationError(f"times since different boots cannot be merged: {found}; report each trace by itself")


def _texts(arguments: argparse.Namespace, traces: list[Trace]) -> Iterator[str]:
    """A line or more at a time."""
    choice: dict[str, Any] = {
        "names": arguments.event,
        "start_ns": arguments.start,
        "end_ns": arguments.end,
        "cpus": arguments.cpu,
        "pids": arguments.pid,
    }
    is_plain = not (arguments.json or arguments.raw or arguments.follow or arguments.filter)
    if is_plain and len(traces) == 1 and not any(traces[0].buffers):
        return traces[0].text(**choice)
    show = _shower(arguments, traces)
    choice["where"] = arguments.filter
    return (show(trace, event) for trace, event in _merged(arguments, traces, choice))


def _merged(
    arguments: argparse.Namespace, traces: list[Trace], choice: dict[str, Any]
) -> Iterator[tuple[Trace, Event]]:
    if len(traces) == 1:
        trace = traces[0]
        events = trace.follow(**choice) if arguments.follow else trace.events(**choice)
        return ((trace, event) for event in events)
    streams = [_keyed(trace, order, trace.events(**choice)) for order, trace in enumerate(traces)]
    return ((trace, event) for _, _, trace, event in heapq.merge(*streams, key=lambda item: item[:2]))


def _keyed(trace: Trace, order: int, events: Iterator[Event]) -> Iterator[tuple[int, int, Trace, Event]]:
    return ((event.timestamp_ns, order, trace, event) for event in events)


def _shower(arguments: argparse.Namespace, traces: list[Trace]) -> Callable[[Trace, Event], str]:
    """A function that gives an event's line."""
    labels = {id(trace): escape(os.path.basename(trace.path)) for trace in traces}
    if arguments.json:
        if len(traces) > 1:
            return lambda trace, event: to_json(event, os.fsdecode(trace.path))
        return lambda trace, event: to_json(event)
    width = max(map(len, labels.values())) + 2 if len(traces) > 1 else 0
    names = [escape(name) for trace in traces for name in trace.buffers if name]
    inner = max(map(len, names)) + 2 if names else 0

    def show(trace: Trace, event: Event) -> str:
        label = f"{labels[id(trace)] + ':':<{width}}" if width else ""
        instance = f"{escape(event.buffer) + ':' if event.buffer else '':<{inner}}" if inner else ""
        return f"{label}{instance}{format_line(event, raw=arguments.raw)}\n"

    return show


def to_json(event: Event, path: str | None = None) -> str:
    """A line. Bytes are in hex; numbers that JSON does not have (nan, inf) are strings."""
    value: dict[str, Any] = {
        "timestamp_ns": event.timestamp_ns,
        "name": event.name,
        "cpu": event.cpu,
        "pid": event.pid,
        "comm": event.comm,
        "fields": {name: _plain(field) for name, field in event.fields.items()},
    }
    if event.buffer:
        value["buffer"] = event.buffer
    if path is not None:
        value["file"] = path
    return json.dumps(value, separators=(",", ":")) + "\n"


def _plain(value: Any) -> Any:
    if isinstance(value, bytes):
        return value.hex()
    if isinstance(value, tuple):
        return [_plain(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return value
