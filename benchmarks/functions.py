"""What tracing every call of a Python function costs: function_graph beside VizTracer, interleaved in one process.

A round runs the same calls untraced, with each tracer, and untraced again; a tracer's cost is what it adds to the mean
of the two untraced runs around it, per call. The ratio is that of the costs, in the same round. Ours goes into a ring
without a sink (the oldest events give way); VizTracer, with its default settings, into its own ring.
"""

from __future__ import annotations

import statistics
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import aiotrace

from .table import Table

ROUNDS = 60
CALLS = 20_000
WARM_UP = 9
"""Runs of a program with a tracer before the one that counts: functions are met for the first time, and the buffers (4
MiB of ours, 100,000 calls of VizTracer's) are gone round once, so that no memory is touched for the first time."""


def _leaf() -> None:
    pass


def _empty() -> None:
    """Calls of an empty function."""
    leaf = _leaf
    for _ in range(CALLS):
        leaf()


def _fibonacci(n: int) -> int:
    return n if n < 2 else _fibonacci(n - 1) + _fibonacci(n - 2)


def _recursive() -> None:
    """21,891 calls, up to 20 deep."""
    _fibonacci(20)


PROGRAMS: dict[str, tuple[Callable[[], None], int]] = {
    "an empty function": (_empty, CALLS),
    "fibonacci(20)": (_recursive, 21_891),
}
Tracer = Callable[[], AbstractContextManager[Any]]


@contextmanager
def _ours(glob: str, clock: str) -> Iterator[None]:
    with aiotrace.recording(overrun="drop_oldest", clock=clock) as recording:
        recording.enable(glob)
        yield
        recording.disable(glob.partition(":")[0])


def _viztracer() -> Tracer | None:
    try:
        from viztracer import VizTracer
    except ImportError:
        return None

    @contextmanager
    def trace() -> Iterator[None]:
        tracer = VizTracer(verbose=0, tracer_entries=100_000)
        tracer.start()
        yield
        tracer.stop()
        tracer.clear()
        sys.setprofile(None)  # on 3.11 it leaves a profile function behind, in this thread and for new ones
        threading.setprofile(None)

    return trace


def _run(program: Callable[[], None]) -> float:
    began = time.thread_time_ns()
    program()
    return time.thread_time_ns() - began


def _measure(program: Callable[[], None], tracers: dict[str, Tracer]) -> dict[str, list[float]]:
    """Nanoseconds that each tracer adds to the program, by round."""
    costs: dict[str, list[float]] = {name: [] for name in tracers}
    for _ in range(ROUNDS):
        for name, tracer in tracers.items():
            before = _run(program)
            with tracer():
                for _ in range(WARM_UP):
                    program()
                traced = _run(program)
            costs[name].append(traced - (before + _run(program)) / 2)
    return costs


def run() -> Table:
    tracers: dict[str, Tracer] = {
        "function_graph": lambda: _ours("function_graph:*", "mono"),
        'function_graph, clock="tsc"': lambda: _ours("function_graph:*", "tsc"),
        "function": lambda: _ours("function:*", "mono"),
    }
    peer = _viztracer()
    if peer is not None:
        tracers["VizTracer"] = peer
    rows: list[tuple[str | int | float, ...]] = []
    for title, (program, calls) in PROGRAMS.items():
        costs = _measure(program, tracers)
        for name, values in costs.items():
            ratios = [
                ours / theirs for ours, theirs in zip(values, costs.get("VizTracer", ()), strict=False) if theirs > 0
            ]
            quartiles = statistics.quantiles(ratios, n=4) if len(ratios) > 1 else []
            shown: tuple[str | float, ...] = tuple(quartiles) if quartiles else ("not installed",) * 3
            rows.append((title, name, round(statistics.median(values) / calls), *shown))
    return Table(
        "Cost of tracing a call of a Python function",
        ("calls of", "tracer", "ns a call", "of VizTracer's: lower quartile", "median", "upper quartile"),
        rows,
        notes=(
            "ns a call: processor time of the program's thread that the tracer adds to a call and its return (median).",
            "The ratio: ours by VizTracer's, in the same round.",
        ),
    )
