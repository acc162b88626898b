"""What one event costs, beside the least that it could cost and beside what others cost.

All rows are measured in one run, interleaved: each round gives every row one window of a few milliseconds, in random
order, so that a machine whose speed changes changes all of them. A window is one loop over the row's own call site:

    for _ in repeat(None, n):          the row "empty loop" has `pass` there, and what it costs
        call(a, b, c)                  is subtracted from each other row, minimum from minimum, median from median,
                                       and round by round for the ratios

An eighth of a window comes before it and does not count: it wakes a thread that slept, and fills the caches.

The ratio is the median over the rounds of a row's cost to its reference's cost in the same round.

Events are really recorded, pages are turned: into a NullSink whose reader has a thread. A window is smaller than the
pool, and the reader is woken between windows, when every page is returned to the pool; what it costs while events come
in is measured by the benchmark "pipeline". That no event was dropped is asserted.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import random
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import aiotrace
from aiotrace._events.open_recordings import activate, deactivate
from aiotrace_sinks import NullSink

from .floor import NotCompiledError, compile_extension
from .table import Cell, Table

ROUNDS = 200
WINDOW = 0.003
"""Seconds. Recorded events of one window must fit into the pool: see `EVENTS_MAX`."""
EVENTS_MAX = 45_000
"""Events in one window: 28 pages of 64 KiB, of the 32 that the sink may hold."""
THREE = {"a": 200, "b": -1_250_000, "c": 0.5}
"""The three numbers: u64, s64, f64."""
CALL = "call(a, b, c)"
EMPTY_LOOP: Final = "empty loop"
REFERENCE: Final = "floor, object"

three = aiotrace.event("benchmark:three", a="u64", b="s64", c="f64")
text = aiotrace.event("benchmark:text", a="u64", b="s64", path="str")


def _nothing() -> None:
    pass


@dataclass
class Row:
    """Something to measure."""

    name: str
    statement: str
    names: dict[str, Any] = field(default_factory=dict)
    reference: str = ""
    """The row that its ratio is to."""
    goal: tuple[str, float] | None = None
    """("<=" or ">=", ratio)."""
    before: Callable[[], None] = _nothing
    """Called before each window, and `after` after it."""
    after: Callable[[], None] = _nothing
    costs: list[float] = field(default_factory=list)
    """Nanoseconds for one execution of the statement, loop included, by round."""

    def __post_init__(self) -> None:
        arguments = ", ".join(self.names)
        source = (
            f"def loop(n, {arguments}):\n"
            "    begin = clock()\n"
            "    for _ in repeat(None, n):\n"
            f"        {self.statement}\n"
            "    return clock() - begin\n"
        )
        scope: dict[str, Any] = {}
        exec(f"from itertools import repeat\nfrom time import perf_counter_ns as clock\n{source}", scope)
        self._loop: Callable[..., int] = scope["loop"]
        self._count = 16

    def run(self, count: int) -> float:
        """Nanoseconds for one execution."""
        self.before()
        try:
            self._loop(count // 8, **self.names)
            return self._loop(count, **self.names) / count
        finally:
            self.after()

    def calibrate(self, window: float) -> None:
        """Find how many executions fill a window, and let the interpreter specialise the call site."""
        for _ in range(4):
            self._count = max(4, min(EVENTS_MAX, int(window * 1e9 / self.run(self._count))))

    def measure(self) -> None:
        self.costs.append(self.run(self._count))


def measure(rows: list[Row], rounds: int, window: float) -> None:
    """Fill in the rows' costs."""
    for row in rows:
        row.calibrate(window)
    order = list(rows)
    for _ in range(rounds):
        random.shuffle(order)
        for row in order:
            row.measure()


def base_rows() -> list[Row]:
    """The loop, and the floors where there is a C compiler."""
    rows = [Row(EMPTY_LOOP, "pass")]
    try:
        floor = compile_extension("floor.c")
    except NotCompiledError as error:
        print(f"no floors: {error}", file=sys.stderr)
        return rows
    for name in ("empty", "floor"):
        for kind in ("object", "bound"):
            rows.append(Row(f"{name}, {kind}", CALL, {"call": getattr(floor, f"{name}_{kind}"), **THREE}))
    return rows


# --- aiotrace -------------------------------------------------------------------------------------


class Recorded:
    """A recording that stays open, and takes events only in its own windows."""

    def __init__(self, clock: str = "mono") -> None:
        self._sync = aiotrace.recording(NullSink(), clock=clock)
        self._sync.__enter__()
        self._recording = self._sync._core
        self._service = self._recording.service
        self._service._is_listening = False
        deactivate(self._recording)

    def begin(self) -> None:
        activate(self._recording)
        three(**THREE)  # the thread's lease is renewed outside of what is measured

    def end(self) -> None:
        """Wait until the reader has every full page, and the sink has given it back."""
        deactivate(self._recording)
        self._service._is_listening = True
        self._service.page_full()
        while (now := self._sync.statistics()).pages_full or now.pages_in_flight:
            time.sleep(0.0002)
        self._service._is_listening = False

    def close(self) -> None:
        self._service._is_listening = True
        self._sync.close()
        told = self._sync.statistics()
        assert told.events_dropped == 0 and told.events_delivered == told.events_written, str(told)


def pure_row(recorded: Recorded) -> Row:
    return Row("event, pure Python", CALL, {"call": three, **THREE}, REFERENCE, None, recorded.begin, recorded.end)


def aiotrace_rows(mono: Recorded, tsc: Recorded | None) -> list[Row]:
    def row(name: str, statement: str, reference: str, goal: float | None, **names: Any) -> Row:
        limit = ("<=", goal) if goal is not None else None
        return Row(name, statement, names, reference, limit, mono.begin, mono.end)

    rows = [
        row("event", CALL, REFERENCE, 1.15, call=three, **THREE),
        row("event.emit", CALL, "floor, bound", 1.15, call=three.emit, **THREE),
        row("event, keywords", "call(a=a, b=b, c=c)", REFERENCE, None, call=three, **THREE),
        row("event, a str of 16", CALL, REFERENCE, None, call=text, a=200, b=-1_250_000, c="/index/page.html"),
        row("span, begin and end", "with span('db.query'): pass", REFERENCE, None, span=aiotrace.span),
        Row("event, disabled", CALL, {"call": three, **THREE}, "empty, object", ("<=", 1.3)),
    ]
    if tsc is not None:
        names = {"call": three, **THREE}
        rows.append(Row("event, clock='tsc'", CALL, names, REFERENCE, ("<=", 0.9), tsc.begin, tsc.end))
    return rows


# --- the others -----------------------------------------------------------------------------------


@contextlib.contextmanager
def lttng_row() -> Iterator[Row]:
    """A tracepoint in a C extension, recorded by a session in LTTng's snapshot mode: its buffers overwrite the oldest,
    so that, as here, no files are written at the same time.

    Raises:
        NotCompiledError: LTTng is not installed, or has no session daemon here.
    """
    if shutil.which("lttng") is None:
        raise NotCompiledError("not installed (lttng-tools)")
    session = f"aiotrace-benchmark-{os.getpid()}"

    def lttng(*arguments: str) -> None:
        done = subprocess.run(["lttng", *arguments], capture_output=True, text=True)
        if done.returncode:
            raise NotCompiledError(f"lttng {arguments[0]}: {done.stderr.strip().splitlines()[:1]}")

    with tempfile.TemporaryDirectory() as folder:
        lttng("create", session, "--snapshot", f"--output={folder}")
        try:
            lttng("enable-event", f"--session={session}", "--userspace", "aiotrace_benchmark:three")
            lttng("start", session)
            module = compile_extension("tracepoint.c", "lttng-ust")
            names = {"call": module.tracepoint, **THREE}
            yield Row("LTTng-UST from a C extension", CALL, names, "event", (">=", 2.5))
            lttng("snapshot", "record", f"--session={session}")
            written = sum(path.stat().st_size for path in Path(folder).rglob("*") if path.is_file())
            if written < 1 << 20:
                print(f"LTTng recorded next to nothing, {written} bytes: disregard its row", file=sys.stderr)
        finally:
            subprocess.run(["lttng", "destroy", session], capture_output=True, check=False)


@contextlib.contextmanager
def viztracer_row() -> Iterator[Row]:
    """As it is used: while it traces, which means its function hook is on."""
    from viztracer import VizTracer

    tracer = VizTracer(verbose=0)

    def after() -> None:
        tracer.stop()
        tracer.clear()

    names = {"log": tracer.log_instant, **THREE}
    statement = "log('three', {'a': a, 'b': b, 'c': c})"
    yield Row("VizTracer log_instant", statement, names, "event", (">=", 15), tracer.start, after)
    tracer.terminate()


@contextlib.contextmanager
def logging_row() -> Iterator[Row]:
    with tempfile.NamedTemporaryFile("w") as file:
        handler = logging.FileHandler(file.name)
        handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s %(message)s"))
        logger = logging.Logger("benchmark", logging.INFO)
        logger.addHandler(handler)
        names = {"info": logger.info, **THREE}
        yield Row("logging to a file", "info('three a=%d b=%d c=%f', a, b, c)", names, "event", (">=", 200))
        handler.close()
        assert Path(file.name).stat().st_size > 0


@contextlib.contextmanager
def structlog_row() -> Iterator[Row]:
    """The recipe for speed of its documentation, with the standard library's json."""
    import structlog

    with tempfile.TemporaryDirectory() as folder, open(Path(folder) / "log", "w") as file:
        logger = structlog.wrap_logger(
            structlog.WriteLogger(file),
            wrapper_class=structlog.make_filtering_bound_logger(logging.INFO),
            processors=[
                structlog.contextvars.merge_contextvars,
                structlog.processors.add_log_level,
                structlog.processors.TimeStamper(fmt="iso", utc=True),
                structlog.processors.JSONRenderer(),
            ],
            cache_logger_on_first_use=True,
        ).bind()
        yield Row("structlog to a file", "info('three', a=a, b=b, c=c)", {"info": logger.info, **THREE}, "event")
        assert Path(file.name).stat().st_size > 0


@contextlib.contextmanager
def opentelemetry_row() -> Iterator[Row]:
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter, SpanExportResult

    def export(_: Any, spans: Any) -> Any:
        exported.extend(span.name for span in spans[:1])
        return SpanExportResult.SUCCESS

    exported: list[str] = []
    provider = TracerProvider()
    provider.add_span_processor(BatchSpanProcessor(type("NullExporter", (SpanExporter,), {"export": export})()))
    tracer = provider.get_tracer("benchmark")
    statement = "start('three', attributes={'a': a, 'b': b, 'c': c}).end()"
    yield Row("OpenTelemetry span, null exporter", statement, {"start": tracer.start_span, **THREE}, "event")
    provider.shutdown()
    assert exported


OTHERS: dict[str, Callable[[], contextlib.AbstractContextManager[Row]]] = {
    "LTTng-UST from a C extension": lttng_row,
    "VizTracer log_instant": viztracer_row,
    "logging to a file": logging_row,
    "structlog to a file": structlog_row,
    "OpenTelemetry span, null exporter": opentelemetry_row,
}


def enter_others(stack: contextlib.ExitStack) -> tuple[list[Row], list[tuple[str, str]]]:
    """The rows of the others that are here, and why the rest is not."""
    rows, absent = [], []
    for name, make in OTHERS.items():
        try:
            rows.append(stack.enter_context(make()))
        except ImportError as error:
            absent.append((name, f"not installed ({error.name})"))
        except NotCompiledError as error:
            absent.append((name, str(error)))
    return rows, absent


# --- the outcome ----------------------------------------------------------------------------------

Costs = dict[str, list[float]]


def net(costs: Costs, name: str) -> list[float]:
    """A row's costs by round, less the loop's in the same round."""
    return [cost - loop for cost, loop in zip(costs[name], costs[EMPTY_LOOP], strict=True)]


def ratio(costs: Costs, name: str, reference: str) -> float:
    """The median, over the rounds, of one row's cost to another's in the same round."""
    pairs = zip(net(costs, name), net(costs, reference), strict=True)
    return statistics.median(cost / max(floor, 0.1) for cost, floor in pairs)


def judge(row: Row, costs: Costs) -> tuple[Cell, ...]:
    """A line of the table."""
    loop = costs[EMPTY_LOOP]
    if row.name == EMPTY_LOOP:
        return row.name, min(loop), statistics.median(loop), *[""] * 5
    numbers = min(costs[row.name]) - min(loop), statistics.median(costs[row.name]) - statistics.median(loop)
    if not row.reference or row.reference not in costs:
        return row.name, *numbers, *[""] * 5
    least = numbers[0] / (min(costs[row.reference]) - min(loop))
    found = ratio(costs, row.name, row.reference)
    if row.goal is None:
        return row.name, *numbers, found, least, row.reference, "", ""
    how, limit = row.goal
    reached = found <= limit if how == "<=" else found >= limit
    return row.name, *numbers, found, least, row.reference, f"{how} {limit}", "yes" if reached else "no"


PURE_GOAL = 1500.0
"""Nanoseconds."""


def judge_pure(costs: Costs, pure: Costs) -> tuple[Cell, ...]:
    """Measured by another process: its figures are scaled to this one's speed by the floor's."""
    name = "event, pure Python"
    if REFERENCE not in costs or REFERENCE not in pure:
        return name, "", "", "", "", "no C compiler", "", ""
    there = ratio(pure, name, REFERENCE)
    least_there = (min(pure[name]) - min(pure[EMPTY_LOOP])) / (min(pure[REFERENCE]) - min(pure[EMPTY_LOOP]))
    least = least_there * (min(costs[REFERENCE]) - min(costs[EMPTY_LOOP]))
    median = there * (statistics.median(costs[REFERENCE]) - statistics.median(costs[EMPTY_LOOP]))
    reached = "yes" if least <= PURE_GOAL else "no"
    return name, least, median, there, least_there, REFERENCE, "<= 1,500 ns", reached


def measure_pure(rounds: int, window: float) -> Costs:
    """The rows of a process with AIOTRACE_PURE=1."""
    command = [sys.executable, "-m", "benchmarks.events", str(rounds), str(window)]
    environment = {**os.environ, "AIOTRACE_PURE": "1"}
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True)
    costs: Costs = json.loads(done.stdout)
    return costs


def run(rounds: int | None = None, window: float | None = None) -> Table:
    rounds, window = rounds or ROUNDS, window or WINDOW
    rows = base_rows()
    with contextlib.ExitStack() as stack:
        mono = Recorded()
        stack.callback(mono.close)
        tsc = None
        try:
            tsc = Recorded("tsc")
            stack.callback(tsc.close)
        except aiotrace.ConfigurationError as error:
            print(error, file=sys.stderr)
        rows += aiotrace_rows(mono, tsc)
        others, absent = enter_others(stack)
        rows += others
        measure(rows, rounds, window)
        pure = measure_pure(max(2, rounds // 4), window)
    costs = {row.name: row.costs for row in rows}
    outcome = [judge(row, costs) for row in rows]
    outcome.append(judge_pure(costs, pure))
    outcome += [(name, "", "", "", "", why, "", "") for name, why in absent]
    return Table(
        title=f"An event of three numbers, in nanoseconds; back end {aiotrace.__backend__!r}",
        columns=("what", "min", "median", "ratio", "of minima", "to", "goal", "reached"),
        rows=outcome,
        notes=(
            f"{rounds} rounds, windows of {window * 1e3:g} ms, random order; the empty loop's cost is subtracted from",
            "every row below it; ratio: the median of the ratios within a round, (row - loop) / (reference - loop).",
            "For others (goal >=) the ratio says how many aiotrace events they cost. Another process measured pure",
            "Python: its nanoseconds are its ratio to the floor there times the floor here (of minima).",
        ),
    )


def _main() -> None:
    """The pure-Python side of `measure_pure`: the costs as JSON."""
    rounds, window = int(sys.argv[1]), float(sys.argv[2])
    recorded = Recorded()
    rows = [*base_rows(), pure_row(recorded)]
    measure(rows, rounds, window)
    recorded.close()
    json.dump({row.name: row.costs for row in rows}, sys.stdout)


if __name__ == "__main__":
    _main()
