"""What it costs to read events: into columns, as objects, as text; beside `trace-cmd report`.

    a trace.dat by aiotrace: three numbers (uniform), or by turns those, a string and a symbol (mixed); two threads

      columns          every page's records into arrays: timestamp, id, pid, place, and each field of each event
      columns, pure    the same in Python
      counts           `statistics()`: what `stat` does; no field is decoded
      events           `for event in open_trace(path)`, no field looked at; then with `event.fields`
      text             `Trace.text()`, thrown away
      report           the program `aiotrace report FILE > /dev/null`, from its start to its end
      trace-cmd        the program `trace-cmd report FILE > /dev/null`, likewise
      babeltrace2      the program `babeltrace2 FOLDER > /dev/null`, of the same events as CTF: it reads no trace.dat
      babeltrace2, no text  the same with its sink that prints nothing

All rows are measured in one run, interleaved: each round takes every row once, in random order, and the ratio is the
median over the rounds of a row's events per second to trace-cmd's in the same round. A second is one of a core's (all
rows use one): other work of the machine does not count. Rows in Python read a part.
"""

from __future__ import annotations

import os
import random
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import aiotrace
from aiotrace._decode import columns as _columns
from aiotrace._decode.columns import ColumnPlan
from aiotrace._page.walk import ALL, PythonWalk, walk
from aiotrace._traces.cpu_streams import read_page_header
from aiotrace._traces.page_sources import FoundPage
from aiotrace._traces.tracedat_file import TraceDatSource
from aiotrace.decode import Trace, open_trace
from aiotrace_sinks import FileSink

from .ctf import write_ctf
from .table import Cell, Table

EVENTS: Final = 2_000_000
ROUNDS: Final = 7
PART: Final = 40
"""Pages that rows in Python read: they would take the run's time otherwise."""
TRACE_CMD: Final = "trace-cmd"
BABELTRACE: Final = "babeltrace2"
CTF_EVENTS: Final = 500_000
"""At most: as CTF they are written in Python."""
CTF_FIELDS: Final = {
    "benchmark:done": {"status": "u16", "latency_ns": "u64", "size": "u32"},
    "benchmark:fetched": {"path": "str", "count": "u32", "table": "str"},
}

done = aiotrace.event("benchmark:done", status="u16", latency_ns="u64", size="u32")
fetched = aiotrace.event("benchmark:fetched", path="str", count="u32", table="symbol")


def _cpu_seconds() -> float:
    """Of this process and of the programs that it waited for."""
    spent = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(usage.ru_utime + usage.ru_stime for usage in spent)


@dataclass
class Row:
    """One way to read."""

    name: str
    events: int
    read: Callable[[], object]
    seconds: list[float] = field(default_factory=list)

    def measure(self) -> None:
        began = _cpu_seconds()
        self.read()
        self.seconds.append(_cpu_seconds() - began)

    def rate(self, round: int) -> float:
        return self.events / self.seconds[round]


def write_trace(path: Path, events: int, *, mixed: bool) -> int:
    """Record them from two threads; returns how many came into the file."""

    def work() -> None:
        for number in range(events // 4 if mixed else events // 2):
            done(200, number, 77)
            if mixed:
                fetched(f"/index/{number % 100}", 5, "users")

    with aiotrace.recording(aiotrace.sink(FileSink(path), quota=192), pages=256) as recording:
        threads = [threading.Thread(target=work) for _ in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    return recording.statistics().events_delivered


class Pages:
    """A file's pages in memory, so that columns are measured without its reading."""

    def __init__(self, path: Path) -> None:
        file = TraceDatSource(path)
        self.found: list[FoundPage] = [
            found for buffer in file.buffers for cpu in buffer.cpus for found in file.pages(buffer, cpu)
        ]
        self.headers = [read_page_header(found.data, file.shape) for found in self.found]
        self.plan = ColumnPlan(format for format in file.formats.values() if format.system == "benchmark")
        self.events = tuple((f.id, f.size, tuple(map(_columns._planned, f.own_fields))) for f in self.plan.formats)
        file.close()

    def columns(self) -> int:
        rows = 0
        for found, header in zip(self.found, self.headers, strict=True):
            records = walk(found.data, header.timestamp, header.start, header.end)
            rows += len(self.plan.name(self.plan.decode(records), found.data, 0))
        return rows

    def pure(self) -> int:
        rows = 0
        plan = _columns._PythonPlan(self.events)
        for found, header in zip(self.found[:PART], self.headers, strict=False):
            records = PythonWalk(found.data, header.timestamp, header.start, header.end, 0, False, *ALL.bounds)
            rows += len(plan.decode(records)[0])
        return rows


def _read(path: Path, use: Callable[[Trace], object]) -> None:
    with open_trace(path) as trace:
        use(trace)


def _some(trace: Trace, count: int, fields: bool) -> None:
    for number, event in enumerate(trace):
        if fields:
            event.fields  # noqa: B018  # reading it is what is measured
        if number == count:
            return


def _run(*command: str | Path) -> None:
    with open(os.devnull, "wb") as nothing:
        done = subprocess.run(command, stdout=nothing, stderr=subprocess.PIPE, check=False)
    assert done.returncode in (0, 3), (command, done.stderr[-1000:])  # 3: events were lost when it was recorded


def rows_of(path: Path, events: int) -> list[Row]:
    pages = Pages(path)
    assert pages.columns() == events
    part = min(events, 100_000)
    rows = [
        Row("columns", events, pages.columns),
        Row("columns, pure", pages.pure(), pages.pure),
        Row("counts", events, lambda: _read(path, Trace.statistics)),
        Row("events", part, lambda: _read(path, lambda trace: _some(trace, part, False))),
        Row("events, fields", part, lambda: _read(path, lambda trace: _some(trace, part, True))),
        Row("text", events, lambda: _read(path, lambda trace: sum(map(len, trace.text())))),
        Row("report", events, lambda: _run(sys.executable, "-m", "aiotrace", "report", path)),
    ]
    tool = shutil.which(TRACE_CMD)
    if tool is not None:
        rows.append(Row(TRACE_CMD, events, lambda: _run(tool, "report", "-i", path)))
    return rows + babeltrace_rows(path, events)


def babeltrace_rows(path: Path, events: int) -> list[Row]:
    """None where it is not installed."""
    tool = shutil.which(BABELTRACE)
    if tool is None:
        return []
    folder = path.with_suffix(".ctf")
    with open_trace(path) as trace:
        part = write_ctf(trace, folder, CTF_FIELDS, min(events, CTF_EVENTS))
    silent = ("--component", "sink.utils.dummy")
    return [
        Row(BABELTRACE, part, lambda: _run(tool, folder)),
        Row(f"{BABELTRACE}, no text", part, lambda: _run(tool, folder, *silent)),
    ]


def line(kind: str, row: Row, reference: Row | None) -> tuple[Cell, ...]:
    rates = [row.rate(round) / 1e6 for round in range(len(row.seconds))]
    ratio: Cell = "NOT RUN"
    if reference is not None:
        ratio = statistics.median(row.rate(r) / reference.rate(r) for r in range(len(row.seconds)))
    return kind, row.name, row.events, min(rates), statistics.median(rates), max(rates), ratio


def run(events: int | None = None, rounds: int | None = None) -> Table:
    """
    Args:
        events: How many each trace has.
        rounds: How often each row is measured.
    """
    lines: list[tuple[Cell, ...]] = []
    with tempfile.TemporaryDirectory() as folder:
        for kind in ("uniform", "mixed"):
            path = Path(folder) / f"{kind}.dat"
            rows = rows_of(path, write_trace(path, events or EVENTS, mixed=kind == "mixed"))
            for _ in range(rounds or ROUNDS):
                for row in random.sample(rows, len(rows)):
                    row.measure()
            reference = next((row for row in rows if row.name == TRACE_CMD), None)
            lines += [line(kind, row, reference) for row in rows]
    return Table(
        title=f"Reading a trace.dat, in millions of events per second of a core; back end {aiotrace.__backend__!r}",
        columns=("trace", "what", "events", "min", "median", "max", "x trace-cmd"),
        rows=lines,
        notes=(
            "x trace-cmd: the median over the rounds of the ratio within a round.",
            "Goals: report at least 4, columns at least 30 million events per second.",
            "report and trace-cmd are whole programs, with their start; the others run in this one.",
        ),
    )
