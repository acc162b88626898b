"""aiotrace._events.python_stack and the trigger "stacktrace": after an event, the Python stack that it happened in."""

from __future__ import annotations

import re
import subprocess
import sys
import threading
from pathlib import Path

import pytest

import aiotrace
from aiotrace.decode import Event
from aiotrace_sinks import FileSink
from support import fakes

pytestmark = pytest.mark.pure_too

hit = aiotrace.event("stack:hit", x="u32")
LINE = 0


def inner(x: int) -> None:
    global LINE
    LINE = sys._getframe().f_lineno + 1
    hit(x)


class Outer:
    def method(self, x: int) -> None:
        inner(x)


def deep(levels: int, x: int) -> None:
    if levels:
        deep(levels - 1, x)
    else:
        hit(x)


def stack_of(event: Event) -> list[str]:
    """The calls of a stack trace, as they are printed."""
    head, *lines = event.text().splitlines()
    assert head == "<stack trace >"
    return [line.removeprefix("=> ") for line in lines]


def test_stack_follows_its_event_innermost_first_without_our_frames() -> None:
    sink = fakes.Collect()
    with aiotrace.recording(sink) as recording:
        recording.trigger("stack:hit", "stacktrace")
        Outer().method(7)
    event, stack = sink.events
    assert (event.name, stack.name) == ("stack:hit", "ftrace:kernel_stack")
    assert (stack.pid, stack.cpu) == (event.pid, event.cpu)
    calls = stack_of(stack)
    assert calls[0] == f"inner (test_python_stack.py:{LINE})"
    assert calls[1].startswith("Outer.method (test_python_stack.py:")
    assert not any("PythonEvent" in call or "_events/event.py" in call for call in calls)


def test_a_count_and_a_filter_hold() -> None:
    sink = fakes.Collect()
    with aiotrace.recording(sink) as recording:
        recording.trigger("stack:hit", "stacktrace:2 if x > 10")
        for x in (1, 11, 2, 12, 13):
            hit(x)
    kinds = [event.fields.get("x", "stack") for event in sink.events]
    assert kinds == [1, 11, "stack", 2, 12, "stack", 13]


def test_a_deep_stack_is_cut_to_its_64_innermost_calls() -> None:
    sink = fakes.Collect()
    with aiotrace.recording(sink, page_size=4096) as recording:
        recording.trigger("stack:hit", "stacktrace")
        deep(100, 1)
    _, stack = sink.events
    assert stack.fields["size"] == 64
    assert [call.partition(" ")[0] for call in stack_of(stack)] == ["deep"] * 64


def test_only_the_recording_with_the_trigger_has_stacks() -> None:
    plain, traced = fakes.Collect(), fakes.Collect()
    with aiotrace.recording(plain), aiotrace.recording(traced) as recording:
        recording.trigger("stack:*", "stacktrace")
        hit(1)
    assert [event.name for event in plain.events] == ["stack:hit"]
    assert [event.name for event in traced.events] == ["stack:hit", "ftrace:kernel_stack"]


@pytest.mark.parametrize("finished", [True, False])
def test_a_file_shows_stacks_finished_or_not(tmp_path: Path, finished: bool) -> None:
    path = tmp_path / "trace.dat"
    with aiotrace.recording(FileSink(path), page_size=4096, flush_interval=0.01) as recording:
        recording.trigger("stack:hit", "stacktrace")
        for x in range(100):  # more than a page: files take full pages only
            inner(x)
        if not finished:
            wait_for_pages(recording)
            check_file(path, complete=False)
    if finished:
        check_file(path, complete=True)


def wait_for_pages(recording: aiotrace.SyncRecording) -> None:
    for _ in range(10_000):
        if recording.statistics().pages_recycled >= 3:
            return
        threading.Event().wait(0.001)
    raise AssertionError("no page was written")


def check_file(path: Path, *, complete: bool) -> None:
    with aiotrace.open_trace(path) as trace:
        assert trace.complete is complete
        events = list(trace)
        text = b"".join(map(str.encode, trace.text())).decode()
    assert stack_of(events[1])[0] == f"inner (test_python_stack.py:{LINE})"
    assert text.count(f"=> inner (test_python_stack.py:{LINE})\n") == sum(
        event.name == "ftrace:kernel_stack" for event in events
    )


def test_stack_directly_follows_its_event_while_audit_events_are_traced() -> None:
    sink = fakes.Collect()
    with aiotrace.recording(sink) as recording:
        recording.enable("audit:*")
        recording.trigger("stack:hit", "stacktrace")
        hit(1)
        sys._getframe()
    names = [event.name for event in sink.events]
    assert names[names.index("stack:hit") + 1] == "ftrace:kernel_stack"
    assert names.count("audit:sys__getframe") == 1, "the program's own"


def test_trace_cmd_prints_the_same_stacks(tmp_path: Path, trace_cmd: str) -> None:
    path = tmp_path / "trace.dat"
    with aiotrace.recording(FileSink(path)) as recording:
        recording.trigger("stack:hit", "stacktrace:1")
        Outer().method(1)
    done = subprocess.run([trace_cmd, "report", path], capture_output=True, text=True, check=True)
    theirs = re.findall(r"^=> (\S+)@(\S+):\d+ \([0-9a-f]+\)$", done.stdout, re.MULTILINE)
    with aiotrace.open_trace(path) as trace:
        (stack,) = trace.events("kernel_stack")
        ours = re.findall(r"(.+) \((.+):\d+\)", "\n".join(stack_of(stack)))
    assert theirs[:2] == [("inner", "test_python_stack.py"), ("Outer.method", "test_python_stack.py")]
    assert [(name, file.replace(" ", "_")) for name, file in ours] == theirs
