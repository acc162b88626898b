"""R15: a forked child writes nothing into its parent's recording, and may open its own.

Each scenario runs in a process of its own, so that the fork is of a program and not of pytest.
"""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from support import TESTS

pytestmark = pytest.mark.pure_too

PRELUDE = """
import os, sys, threading, warnings
warnings.simplefilter("ignore", DeprecationWarning)  # 3.12: fork with threads is what is tested
import aiotrace
from support.laws import PAGE, Collect, check_closed, check_sink_has, number

def in_child(function):
    pid = os.fork()
    if not pid:
        try:
            function()
        except BaseException:
            import traceback
            traceback.print_exc()
            os._exit(1)
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
"""


def run(program: str) -> str:
    """Returns what it printed; it must end well, in time, and say nothing on standard error."""
    done = subprocess.run(
        [sys.executable, "-W", "error", "-X", "faulthandler", "-c", PRELUDE + program],
        capture_output=True,
        text=True,
        timeout=60,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(TESTS), *map(os.path.abspath, sys.path)])},
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert not done.stderr
    return done.stdout


def test_events_of_a_child_are_not_in_the_trace_of_its_parent() -> None:
    run("""
sink = Collect()
with aiotrace.recording(sink, page_size=PAGE, pages=16) as recording:
    number(1, "parent")
    def child():
        for n in range(100, 1000):
            number(n, "child")
        assert recording.statistics().events_written == 1
    in_child(child)
    number(2, "parent")
check_closed(recording.statistics(), 2)
check_sink_has(sink, recording.statistics(), [1, 2])
""")


def test_a_child_leaves_the_parents_recording_open() -> None:
    run("""
sink = Collect()
with aiotrace.recording(sink, page_size=PAGE, pages=16) as recording:
    number(1, "")
    in_child(recording.close)
    number(2, "")
check_sink_has(sink, recording.statistics(), [1, 2])
""")


def test_child_opens_its_own_recording() -> None:
    run("""
outer = Collect()
with aiotrace.recording(outer, page_size=PAGE, pages=16) as recording:
    number(1, "")
    def child():
        inner = Collect()
        with aiotrace.recording(inner, page_size=PAGE, pages=16) as own:
            for n in range(500):
                number(n, "")
        check_closed(own.statistics(), 500)
        check_sink_has(inner, own.statistics())
        assert own.info.stream_id != recording.info.stream_id
        assert own.info.pid == os.getpid()
    in_child(child)
check_sink_has(outer, recording.statistics(), [1])
""")


def test_events_of_foreign_fork_hooks_are_refused_and_counted() -> None:
    run("""
sink = Collect()
os.register_at_fork(before=lambda: number(50, ""), after_in_parent=lambda: None)
# The hooks that run after aiotrace's in the parent, and after aiotrace's in the child:
os.register_at_fork(after_in_parent=lambda: number(51, ""), after_in_child=lambda: number(52, ""))
with aiotrace.recording(sink, page_size=PAGE, pages=16) as recording:
    number(1, "")
    in_child(lambda: None)
    number(2, "")
statistics = recording.statistics()
check_closed(statistics, 4)
assert set(sink.numbers) <= {1, 2, 50, 51} and {1, 2, 51} <= set(sink.numbers), sink.numbers
check_sink_has(sink, statistics)
""")


def test_child_works_although_another_thread_held_every_lock_at_the_fork() -> None:
    run("""
from aiotrace._events import event, open_recordings
from aiotrace._page.definitions import DEFINITIONS
with aiotrace.recording():  # what is imported lazily is: the import system's locks are not tested here
    pass
held, done = threading.Event(), threading.Event()
def hold():
    with DEFINITIONS._lock, event._events_lock, open_recordings.active.lock:
        held.set()
        done.wait()
thread = threading.Thread(target=hold)
thread.start()
held.wait()
def child():
    aiotrace.event("fork:child", n="u8")
    inner = Collect()
    with aiotrace.recording(inner) as own:
        with aiotrace.span("a name that is new"):
            number(1, "")
    assert own.statistics().events_delivered == 3
in_child(child)
done.set()
thread.join()
""")


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_a_child_of_an_async_program_leaves_its_trace_alone(backend: str) -> None:
    run(f"""
import anyio
async def main():
    sink = Collect()
    async with aiotrace.record(sink, page_size=PAGE, pages=16) as recording:
        await number.send(1, "")
        def child():
            number(100, "")
        in_child(child)
        await number.send(2, "")
    check_closed(recording.statistics(), 2)
    check_sink_has(sink, recording.statistics(), [1, 2])
anyio.run(main, backend={backend!r})
""")
