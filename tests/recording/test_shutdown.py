"""R16: programs that end in every way: what was written is delivered or counted, nothing hangs, nothing is said.

Each is a process of its own. A program prints what its sink got; standard error must be empty unless it is the
program's own exception.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys

import pytest

from support import TESTS

pytestmark = pytest.mark.pure_too

PRELUDE = """
import asyncio, atexit, os, signal, sys, threading
import anyio
import aiotrace
from support.laws import PAGE, Collect, check_closed, check_sink_has, number

sink = Collect()

def report(statistics, calls):
    check_closed(statistics, calls)
    check_sink_has(sink, statistics)
    print("got", len(sink.numbers), flush=True)
"""
BACKENDS = pytest.mark.parametrize("backend", ["asyncio", "trio"])


def run(program: str, code: int = 0) -> tuple[str, str]:
    """Returns standard output and error of a program that must end in time, with this code."""
    done = subprocess.run(
        [sys.executable, "-W", "error", "-X", "faulthandler", "-c", PRELUDE + program],
        capture_output=True,
        text=True,
        timeout=60,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(TESTS), *map(os.path.abspath, sys.path)])},
        check=False,
    )
    assert done.returncode == code, (done.returncode, done.stdout, done.stderr)
    return done.stdout, done.stderr


@BACKENDS
@pytest.mark.parametrize("thread", [False, True])
def test_ending_program_prints_nothing(backend: str, thread: bool) -> None:
    out, err = run(f"""
async def main():
    global recording
    async with aiotrace.record(sink, page_size=PAGE, pages=64, thread={thread}) as recording:
        for n in range(500):
            await number.send(n, "")
anyio.run(main, backend={backend!r})
report(recording.statistics(), 500)
""")
    assert (out, err) == ("got 500\n", "")


@BACKENDS
@pytest.mark.parametrize("thread", [False, True])
def test_an_exception_ends_the_program_and_the_trace_is_whole(backend: str, thread: bool) -> None:
    out, err = run(
        f"""
async def main():
    async with aiotrace.record(sink, page_size=PAGE, pages=64, thread={thread}) as recording:
        atexit.register(lambda: report(recording.statistics(), 500))
        for n in range(500):
            await number.send(n, "")
        raise RuntimeError("the program's own")
anyio.run(main, backend={backend!r})
""",
        code=1,
    )
    assert out == "got 500\n"
    assert "RuntimeError: the program's own" in err
    assert err.count("Traceback") == 1
    assert "Group" not in err


@BACKENDS
@pytest.mark.parametrize("thread", [False, True])
def test_a_keyboard_interrupt_ends_the_program_and_the_trace_is_whole(backend: str, thread: bool) -> None:
    out, err = run(
        f"""
calls = 0
async def main():
    global calls
    async with aiotrace.record(sink, page_size=PAGE, pages=64, thread={thread}) as recording:
        atexit.register(lambda: report(recording.statistics(), calls))
        for n in range(500):
            calls += 1
            await number.send(n, "")
        os.kill(os.getpid(), signal.SIGINT)
        await anyio.sleep_forever()
anyio.run(main, backend={backend!r})
""",
        code=-signal.SIGINT,
    )
    assert out == "got 500\n"
    assert err.rstrip().endswith("KeyboardInterrupt")


def test_a_sweep_over_all_tasks_ends_the_program_and_the_trace_is_whole() -> None:
    out, err = run("""
async def main():
    global recording
    async with aiotrace.record(sink, page_size=PAGE, pages=64) as recording:
        for n in range(250):
            await number.send(n, "")
        for task in asyncio.all_tasks():
            if task is not asyncio.current_task():
                task.cancel()
        await asyncio.sleep(0)
        for n in range(250, 500):
            await number.send(n, "")
asyncio.run(main())
report(recording.statistics(), 500)
""")
    assert (out, err) == ("got 500\n", "")


def test_a_sweep_that_ends_the_main_task_too() -> None:
    out, err = run("""
async def main():
    global recording
    async with aiotrace.record(sink, page_size=PAGE, pages=64) as recording:
        for n in range(500):
            await number.send(n, "")
        for task in asyncio.all_tasks():
            task.cancel()
        await asyncio.sleep(10)
try:
    asyncio.run(main())
except asyncio.CancelledError:
    report(recording.statistics(), 500)
""")
    assert (out, err) == ("got 500\n", "")


def test_recording_left_open_is_drained_at_interpreter_exit() -> None:
    out, err = run("""
recording = aiotrace.recording(sink, page_size=PAGE, pages=64)
atexit.register(lambda: report(recording.statistics(), 500))  # hooks run in reverse: after the recording's
recording.__enter__()
for n in range(500):
    number(n, "")
""")
    assert (out, err) == ("got 500\n", "")


def test_sys_exit_in_the_middle_of_a_recording() -> None:
    out, err = run(
        """
with aiotrace.recording(sink, page_size=PAGE, pages=64) as recording:
    atexit.register(lambda: report(recording.statistics(), 500))
    for n in range(500):
        number(n, "")
    sys.exit(3)
""",
        code=3,
    )
    assert (out, err) == ("got 500\n", "")


def test_a_stuck_sink_does_not_keep_the_interpreter() -> None:
    out, _ = run("""
async def stuck(stream):
    await stream.__anext__()
    while True:
        try:
            await anyio.sleep_forever()
        except BaseException:
            pass
recording = aiotrace.recording(stuck, page_size=PAGE, pages=16, drain_timeout=0.1)
atexit.register(lambda: print("abandoned", recording.statistics().events_abandoned))
recording.__enter__()
number(1, "")
""")
    assert out == "abandoned 1\n"


def test_an_async_recording_that_is_never_left_does_not_hang() -> None:
    _, err = run("""
async def main():
    recording = aiotrace.record(sink, page_size=PAGE, pages=64)
    await recording.__aenter__()
    number(1, "")
asyncio.run(main())
number(2, "")
""")
    assert err == ""


def test_events_after_the_loop_has_ended_are_harmless() -> None:
    run("""
async def main():
    global recording
    recording = aiotrace.record(sink, page_size=PAGE, pages=8)
    await recording.__aenter__()
asyncio.run(main())
for n in range(5000):
    number(n, "")
statistics = recording.statistics()
assert statistics.calls == 5000 and statistics.dropped["no_page"] > 3000
""")


def test_recording_closes_although_its_loop_lost_its_descriptors() -> None:
    """A daemon closes what it did not open when it begins: the trace ends there, and the program says nothing of it."""
    out, err = run("""
with aiotrace.recording(sink, page_size=PAGE, pages=64) as recording:
    for n in range(200):
        number(n, "")
    service = recording._core.thread
    os.close(service._loop._epoll._selector.fileno())
    try:
        service._loop.call_soon_threadsafe(int)
    except RuntimeError:
        pass  # it woke by itself, and is closed
    service._thread.join(30)
    assert not service._thread.is_alive()
    number(200, "")
check_closed(recording.statistics(), 201)
print("closed")
""")
    assert out == "closed\n"
    assert "Traceback" not in err
