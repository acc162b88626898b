"""What tracing of tasks costs: whole programs traced and untraced, interleaved in one process.

A pair is one run of a program untraced (the tracer's hooks are out) and one with its tasks recorded into a ring without
a sink, in either order; the ratio of a pair is traced by untraced, so below 1 the traced program was the faster one.
"one record a step" is task:step alone, "all events" is task:*. The ring has been full once, as that of a recorder that
is always on: who fills memory for the first time pays the system for it. VizTracer, where it is installed, is measured
in the same way.
"""

from __future__ import annotations

import asyncio
import gc
import socket
import statistics
import time
from collections.abc import Callable, Coroutine, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from typing import Any

import aiotrace

from .table import Table

Program = Callable[[], Coroutine[Any, Any, float]]

PAIRS = 25
CLIENTS, ROUND_TRIPS = 20, 60
HANDLERS, BATCH = 4000, 100
YIELDERS, YIELDS = 20, 1000
WARM = aiotrace.event("benchmarks:warm", a="u64", b="u64", c="u64")
WARM_BYTES = 32

# --- programs: each returns the processor seconds of its thread that the work took ------------------


async def _echo() -> float:
    """Clients and a server that sends back what it gets, over TCP."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while line := await reader.readline():
            writer.write(line)
            await writer.drain()
        writer.close()

    async def ask() -> None:
        reader, writer = await asyncio.open_connection(*address)
        for _ in range(ROUND_TRIPS):
            writer.write(b"a line to echo\n")
            await reader.readline()
        writer.close()
        await writer.wait_closed()

    server = await asyncio.start_server(serve, "127.0.0.1", 0, family=socket.AF_INET)
    address = server.sockets[0].getsockname()
    began = time.thread_time()
    await asyncio.gather(*(ask() for _ in range(CLIENTS)))
    took = time.thread_time() - began
    server.close()
    await server.wait_closed()
    return took


async def _handlers() -> float:
    """Many short tasks, each with three steps."""

    async def handle(lock: asyncio.Lock, total: list[int]) -> None:
        await asyncio.sleep(0)
        async with lock:
            total[0] += sum(range(50))
        await asyncio.sleep(0)

    lock, total = asyncio.Lock(), [0]
    began = time.thread_time()
    for _ in range(HANDLERS // BATCH):
        await asyncio.gather(*(asyncio.create_task(handle(lock, total)) for _ in range(BATCH)))
    return time.thread_time() - began


async def _yields() -> float:
    """Tasks that do nothing but yield: the worst case."""

    async def go_round() -> None:
        for _ in range(YIELDS):
            await asyncio.sleep(0)

    began = time.thread_time()
    await asyncio.gather(*(go_round() for _ in range(YIELDERS)))
    return time.thread_time() - began


async def _trio_yields() -> float:
    import trio

    async def go_round() -> None:
        for _ in range(YIELDS // 4):
            await trio.lowlevel.checkpoint()

    began = time.thread_time()
    async with trio.open_nursery() as nursery:
        for _ in range(YIELDERS):
            nursery.start_soon(go_round)
    return time.thread_time() - began


async def _trio_channels() -> float:
    import trio

    async def receive(channel: Any) -> None:
        async for _ in channel:
            pass

    began = time.thread_time()
    async with trio.open_nursery() as nursery:
        for _ in range(10):
            sending, receiving = trio.open_memory_channel[int](0)
            nursery.start_soon(receive, receiving)
            nursery.start_soon(_send_all, sending)
    return time.thread_time() - began


async def _send_all(channel: Any) -> None:
    async with channel:
        for number in range(200):
            await channel.send(number)


async def _trio_handlers() -> float:
    import trio

    async def handle() -> None:
        await trio.lowlevel.checkpoint()
        await trio.lowlevel.checkpoint()

    began = time.thread_time()
    for _ in range(10):
        async with trio.open_nursery() as nursery:
            for _ in range(BATCH):
                nursery.start_soon(handle)
    return time.thread_time() - began


# --- runtimes -------------------------------------------------------------------------------------


def _run_asyncio(program: Program) -> float:
    return asyncio.run(program())


def _run_uvloop(program: Program) -> float:
    import uvloop

    took: float = uvloop.run(program())
    return took


def _run_trio(program: Program) -> float:
    import trio

    return trio.run(program)


RUNS: list[tuple[str, str, Callable[..., float], Program]] = [
    ("asyncio", "echo server", _run_asyncio, _echo),
    ("asyncio", "short handlers", _run_asyncio, _handlers),
    ("asyncio", "bare yields", _run_asyncio, _yields),
    ("uvloop", "echo server", _run_uvloop, _echo),
    ("uvloop", "short handlers", _run_uvloop, _handlers),
    ("uvloop", "bare yields", _run_uvloop, _yields),
    ("trio", "channels", _run_trio, _trio_channels),
    ("trio", "short handlers", _run_trio, _trio_handlers),
    ("trio", "bare yields", _run_trio, _trio_yields),
]

# --- tracers --------------------------------------------------------------------------------------


Switch = Callable[[], AbstractContextManager[None]]
"""Traces while its context is open."""


def _aiotrace(glob: str) -> AbstractContextManager[Switch]:
    @contextmanager
    def record() -> Iterator[Switch]:
        with aiotrace.recording(overrun="drop_oldest", flush_interval=3600) as recording:
            size = recording.statistics()
            for number in range(size.pages_total * size.page_size // WARM_BYTES):
                WARM(number, number, number)  # a recorder that is always on has had each of its pages

            @contextmanager
            def trace() -> Iterator[None]:
                before = recording.statistics().events_written
                recording.enable(glob)
                try:
                    yield
                finally:
                    recording.disable(glob)
                assert recording.statistics().events_written > before + 100

            yield trace

    return record()


def _viztracer() -> AbstractContextManager[Switch]:
    from viztracer import VizTracer

    @contextmanager
    def trace() -> Iterator[None]:
        tracer = VizTracer(verbose=0, tracer_entries=2_000_000)
        tracer.start()
        yield
        tracer.stop()
        tracer.clear()

    return nullcontext(trace)


def _tracers() -> dict[str, Callable[[], AbstractContextManager[Switch]]]:
    tracers: dict[str, Callable[[], AbstractContextManager[Switch]]] = {
        "one record a step": partial(_aiotrace, "task:step"),
        "all events": partial(_aiotrace, "task:*"),
    }
    try:
        import viztracer  # noqa: F401
    except ImportError:
        return tracers
    return {**tracers, "VizTracer": _viztracer}


def _measure(run: Callable[..., float], program: Program, trace: Switch) -> list[float]:
    """Sorted ratios of the pairs."""

    def once(switch: Switch) -> float:
        gc.collect()
        with switch():
            return run(program)

    once(trace)
    once(nullcontext)
    ratios = []
    for pair in range(PAIRS):
        if pair % 2:
            traced = once(trace)
            plain = once(nullcontext)
        else:
            plain = once(nullcontext)
            traced = once(trace)
        ratios.append(traced / plain)
    return sorted(ratios)


def run() -> Table:
    rows: list[tuple[str | int | float, ...]] = []
    for runtime, name, runner, program in RUNS:
        for tracer, open_tracer in _tracers().items():
            with open_tracer() as trace:
                ratios = _measure(runner, program, trace)
            lower, median, upper = statistics.quantiles(ratios, n=4)
            rows.append((runtime, name, tracer, median, lower, upper, len(ratios)))
    return Table(
        "Programs with their tasks traced, in relation to the same untraced",
        ("runtime", "program", "tracer", "median", "lower quartile", "upper quartile", "pairs"),
        rows,
        (
            "Processor time of the program's thread, interleaved pairs in one process; below 1.000 tracing was faster.",
            "aiotrace records into a ring that overwrites its oldest pages; nothing is written to a file.",
        ),
    )
