"""The tracers function and function_graph, and `_csrc/calls/`: calls of Python functions as the kernel's events."""

from __future__ import annotations

import asyncio
import os
import re
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Generator
from pathlib import Path
from types import CodeType

import pytest

import aiotrace
from aiotrace import ConfigurationError
from aiotrace._page import definitions
from aiotrace._tracers import function as functions
from aiotrace.abc import PageStream
from aiotrace.decode import Decoder, Event
from aiotrace_sinks import FileSink

pytestmark = pytest.mark.skipif(aiotrace.__backend__ != "c", reason="functions are traced by the C module alone")

OWN = {"leaf", "middle", "top", "fails", "catches", "numbers", "Thing.method", "recursive", "call"}
DEPTH_MAX = 65536
"""Calls that function_stack.c keeps of a thread."""
ASTRAY = 20_000
"""Nanoseconds by which a time may be beside the clock: it is read once in a millisecond, and to some 400 ns."""


def leaf() -> None:
    pass


def middle() -> None:
    leaf()
    leaf()


def top() -> None:
    middle()
    leaf()


def fails() -> None:
    raise ValueError


def catches() -> None:
    try:
        fails()
    except ValueError:
        leaf()


def numbers() -> Generator[int, None, None]:
    yield 1
    leaf()
    yield 2


def recursive(levels: int) -> None:
    if levels:
        recursive(levels - 1)


class Thing:
    def method(self) -> None:
        leaf()


class Calls:
    """A sink that keeps the calls of this file's functions: ">name depth" and "<name depth"."""

    def __init__(self) -> None:
        self.events: list[Event] = []
        self.calls: list[str] = []

    async def __call__(self, stream: PageStream) -> None:
        decoder = Decoder(stream.definitions)
        async for page in stream:
            for event in decoder.events(page):
                self.take(event)
            stream.acknowledge(page)

    def take(self, event: Event) -> None:
        self.events.append(event)
        match = re.match(r"(-->|<--) (\S+) \((\d+)\)", event.text())
        if match and match[2].rpartition("<locals>.")[2] in OWN:
            self.calls.append(f"{match[1].strip('-')}{match[2]} {match[3]}")


@pytest.fixture
def calls() -> Calls:
    return Calls()


def relative(calls: list[str]) -> list[str]:
    """With depths that count from the least."""
    least = min((int(call.split()[1]) for call in calls), default=0)
    return [f"{call.split()[0]} {int(call.split()[1]) - least}" for call in calls]


def test_calls_and_returns_nest(calls: Calls) -> None:
    with aiotrace.recording(calls) as recording:
        recording.enable("function_graph:*")
        top()
        Thing().method()
        recording.disable("function_graph")
        top()
    assert relative(calls.calls) == [
        ">top 0", ">middle 1", ">leaf 2", "<leaf 2", ">leaf 2", "<leaf 2", "<middle 1", ">leaf 1", "<leaf 1", "<top 0",
        ">Thing.method 0", ">leaf 1", "<leaf 1", "<Thing.method 0",
    ]  # fmt: skip


def test_a_function_that_raises_has_left(calls: Calls) -> None:
    with aiotrace.recording(calls) as recording:
        recording.enable("function_graph:*")
        catches()
        leaf()
        recording.disable("function_graph")
    assert relative(calls.calls) == [
        ">catches 0", ">fails 1", "<fails 1", ">leaf 1", "<leaf 1", "<catches 0", ">leaf 0", "<leaf 0",
    ]  # fmt: skip


def test_a_generator_leaves_when_it_is_suspended(calls: Calls) -> None:
    with aiotrace.recording(calls) as recording:
        recording.enable("function_graph:*")
        for _ in numbers():
            leaf()
        started = numbers()
        next(started)
        started.close()
        leaf()
        recording.disable("function_graph")
    found = relative(calls.calls)
    assert [call for call in found if call in (">leaf 0", "<leaf 0")] == [">leaf 0", "<leaf 0"] * 3
    assert [call for call in found if "leaf" in call and call.endswith("1")] == [">leaf 1", "<leaf 1"]
    entered, left = found.count(">numbers 0"), found.count("<numbers 0")
    assert entered == left >= 4, "3.13 closes a generator without going into it"
    assert not [call for call in found if call.endswith("2")]


async def step(times: int) -> None:
    for _ in range(times):
        middle()
        await asyncio.sleep(0)


def test_coroutines_of_one_loop_do_not_nest_in_each_other(calls: Calls) -> None:
    async def main() -> None:
        await asyncio.gather(*[step(3) for _ in range(3)])

    with aiotrace.recording(calls) as recording:
        recording.enable("function_graph:*")
        asyncio.run(main())
        recording.disable("function_graph")
    assert len({call for call in calls.calls if "middle" in call}) == 2, "all at the same depth"
    assert len(calls.calls) == 9 * 6


def test_exit_event_has_its_duration(calls: Calls) -> None:
    with aiotrace.recording(calls) as recording:
        recording.enable("function_graph:*")
        middle()
        middle()  # the first fell back to Python, which takes its time later
        recording.disable("function_graph")
    names = [re.match(r"(-->|<--) (\S+)", event.text()) for event in calls.events]
    pairs = [(name[0], event) for name, event in zip(names, calls.events, strict=True) if name]
    _, entry = [event for name, event in pairs if name == "--> middle"]
    _, exit = [event for name, event in pairs if name == "<-- middle"]
    assert entry.timestamp_ns == exit.fields["calltime"]
    assert exit.timestamp_ns == exit.fields["rettime"] > exit.fields["calltime"]
    inner = [event for name, event in pairs if name == "<-- leaf"][2:]
    total = sum(event.fields["rettime"] - event.fields["calltime"] for event in inner)
    assert 0 < total < exit.fields["rettime"] - exit.fields["calltime"]


def test_function_event_has_callee_and_caller(calls: Calls) -> None:
    with aiotrace.recording(calls) as recording:
        recording.enable("function:*")
        top()
        recording.disable("function")
    texts = [event.text().strip() for event in calls.events]
    assert [text for text in texts if "middle" in text or "leaf" in text] == [
        "middle <-- top", "leaf <-- middle", "leaf <-- middle", "leaf <-- top",
    ]  # fmt: skip


def test_both_tracers_run_together_and_stop_independently(calls: Calls) -> None:
    with aiotrace.recording(calls) as recording:
        recording.enable("function")
        recording.enable("function_graph")
        leaf()
        recording.disable("function")
        leaf()
        recording.disable("function_graph")
        leaf()
    assert relative(calls.calls) == [">leaf 0", "<leaf 0"] * 2
    assert sum(event.name == "ftrace:function" and "leaf" in event.text() for event in calls.events) == 1


def test_neither_is_part_of_all(calls: Calls) -> None:
    with aiotrace.recording(calls) as recording:
        recording.enable("all")
        leaf()
    assert not [event for event in calls.events if event.name.startswith("ftrace:")]


def test_another_recording_has_none_of_it(calls: Calls) -> None:
    other = Calls()
    with aiotrace.recording(other), aiotrace.recording(calls) as recording:
        recording.enable("function_graph:*")
        leaf()
        recording.disable("function_graph")
    assert relative(calls.calls) == [">leaf 0", "<leaf 0"]
    assert not other.events


@pytest.mark.parametrize("before", [True, False])
def test_each_thread_is_traced_with_its_own_stack(calls: Calls, before: bool) -> None:
    go = threading.Event()
    threads = [threading.Thread(target=lambda: (go.wait(), [top() for _ in range(50)])) for _ in range(3)]
    with aiotrace.recording(calls, pages=256, page_size=4096) as recording:
        if before:
            for thread in threads:
                thread.start()
        recording.enable("function_graph:*")
        if not before:
            for thread in threads:
                thread.start()
        go.set()
        for thread in threads:
            thread.join()
        recording.disable("function_graph")
        assert recording.statistics().events_dropped == 0
    tops = {call for call in calls.calls if "top" in call}
    assert len(calls.calls) == 150 * 10
    assert len(tops) == 2, "at one depth"


def test_deep_recursion_is_reported(calls: Calls) -> None:
    with aiotrace.recording(calls, pages=64) as recording:
        recording.enable("function_graph:*")
        recursive(600)
        recording.disable("function_graph")
    found = relative(calls.calls)
    assert found == [f">recursive {n}" for n in range(601)] + [f"<recursive {n}" for n in range(600, -1, -1)]


def test_aiotraces_own_functions_are_left_out(calls: Calls) -> None:
    own = aiotrace.event("calls:own", text="str")
    with aiotrace.recording(calls) as recording:
        recording.enable("function_graph:*")
        recording.filter("calls:own", 'text != "no"')  # so that the call goes the way through Python
        for _ in range(100):
            own("yes")
        recording.statistics()
        recording.disable("function_graph")
    assert not [event.text() for event in calls.events if "PythonEvent" in event.text() or "statistics" in event.text()]


def call(function: Callable[[], object]) -> None:
    function()
    leaf()


def test_a_call_in_whose_middle_tracing_begins_or_ends_is_left_out(calls: Calls) -> None:
    with aiotrace.recording(calls) as recording:

        def middle() -> None:
            recording.enable("function_graph:*")
            leaf()

        def top() -> None:
            leaf()
            recording.disable("function_graph")
            leaf()

        middle()
        leaf()
        top()
        recording.enable("function_graph:*")
        leaf()
        recording.disable("function_graph")
    found = [re.sub(r"[^<>\s]\S*<locals>\.", "", call) for call in calls.calls]
    assert found == [
        ">leaf 0", "<leaf 0", ">leaf 0", "<leaf 0", ">top 0", ">leaf 1", "<leaf 1", ">leaf 0", "<leaf 0",
    ]  # fmt: skip


def test_return_from_a_call_entered_in_an_earlier_tracing_is_omitted(calls: Calls) -> None:
    with aiotrace.recording(calls) as recording:

        def top() -> None:
            recording.disable("function_graph")
            recording.enable("function_graph:*")  # and nothing is called from here to the end

        recording.enable("function_graph:*")
        top()
        leaf()
        recording.disable("function_graph")
    found = [re.sub(r"[^<>\s]\S*<locals>\.", "", call) for call in calls.calls]
    assert found == [">top 0", ">leaf 0", "<leaf 0"]


def test_calls_deeper_than_the_limit_are_omitted_and_the_rest_is_right(calls: Calls) -> None:
    limit = sys.getrecursionlimit()
    sys.setrecursionlimit(100_000)
    try:
        with aiotrace.recording(overrun="drop_oldest", page_size=4096, pages=8) as recording:
            recording.enable("function_graph:*")
            recursive(DEPTH_MAX + 1000)
            catches()
            recording.disable("function_graph")
            recording.attach(calls)
    finally:
        sys.setrecursionlimit(limit)
    assert calls.calls[-7:] == [
        "<recursive 0", ">catches 0", ">fails 1", "<fails 1", ">leaf 1", "<leaf 1", "<catches 0",
    ]  # fmt: skip


def test_times_are_those_of_the_clock_and_never_go_back(calls: Calls) -> None:
    bounds: list[tuple[int, int]] = []
    with aiotrace.recording(calls, pages=256) as recording:
        recording.enable("function_graph:*")
        leaf()  # the first takes its time later: it falls back to Python
        end = time.monotonic_ns() + 8_000_000  # ns: some windows of function_clock.c's clock
        while time.monotonic_ns() < end and len(bounds) < 20_000:
            before = time.monotonic_ns()
            leaf()
            bounds.append((before, time.monotonic_ns()))
        recording.disable("function_graph")
    texts = [(event, event.text()) for event in calls.events]
    leaves = [event.fields for event, text in texts if "<-- leaf" in text][1:]
    assert len(leaves) == len(bounds)
    for fields, (before, after) in zip(leaves, bounds, strict=True):
        assert before - ASTRAY <= fields["calltime"] <= fields["rettime"] <= after + ASTRAY
    cpu = next(event.cpu for event, text in texts if "<-- leaf" in text)
    times = [event.timestamp_ns for event in calls.events if event.cpu == cpu]  # the sink's thread is traced too
    assert times == sorted(times)


# --- which functions ------------------------------------------------------------------------------


def traced(*globs: tuple[str, str], call: Callable[[], object] = lambda: (top(), Thing().method())) -> list[str]:
    calls = Calls()
    with aiotrace.recording(calls) as recording:
        for action, glob in globs:
            getattr(recording, action)(glob)
        recording.enable("function_graph:*")
        call()
        call()
        recording.disable("function_graph")
    half = len(calls.calls) // 2
    assert calls.calls[:half] == calls.calls[half:], "what a function is does not change with its second call"
    return calls.calls[:half]


def test_a_limit_lets_only_its_functions_be_seen() -> None:
    assert traced(("limit", f"{__name__}.top"), ("limit", "*.lea?")) == [
        ">top 0", *[">leaf 1", "<leaf 1"] * 3, "<top 0", ">leaf 0", "<leaf 0",
    ]  # fmt: skip
    assert traced(("limit", f"{__name__}.Thing.*")) == [">Thing.method 0", "<Thing.method 0"]
    assert traced(("limit", "top")) == [], "a name is module.qualified_name"


def test_notrace_is_stronger_than_a_limit() -> None:
    assert traced(("notrace", "*.leaf"), ("notrace", "*.Thing.*"), ("notrace", "*<lambda>")) == [
        ">top 0", ">middle 1", "<middle 1", "<top 0",
    ]  # fmt: skip
    names = (
        ("limit", f"{__name__}.*"),
        ("notrace", f"{__name__}.t*"),
        ("notrace", f"{__name__}.T*"),
        ("notrace", "*<lambda>"),
    )
    assert traced(*names) == [
        *[">middle 0", ">leaf 1", "<leaf 1", ">leaf 1", "<leaf 1", "<middle 0"], *[">leaf 0", "<leaf 0"] * 2,
    ]  # fmt: skip


def test_a_limit_is_of_functions_that_raise_and_of_generators_too() -> None:
    def run() -> None:
        catches()
        list(numbers())

    assert traced(("limit", "*.fails"), ("limit", "*.numbers"), call=run) == [
        ">fails 0", "<fails 0", *[">numbers 0", "<numbers 0"] * 3,
    ]  # fmt: skip
    assert traced(("notrace", "*.fails"), ("notrace", "*.numbers"), ("limit", "*.leaf"), call=run) == [
        ">leaf 0", "<leaf 0",
    ] * 2  # fmt: skip


def test_limits_may_change_in_the_middle_and_end_with_their_recording(calls: Calls) -> None:
    with aiotrace.recording(calls) as recording:
        recording.enable("function_graph:*")
        middle()
        with aiotrace.recording() as other:
            other.limit("nothing.*")
            middle()
            other.enable("function:*")
        recording.notrace("*.leaf")
        middle()
        recording.limit("*.top")
        top()
        recording.disable("function_graph")
    whole = [">middle 0", ">leaf 1", "<leaf 1", ">leaf 1", "<leaf 1", "<middle 0"]
    assert calls.calls == [*whole, *whole, ">middle 0", "<middle 0", ">top 0", "<top 0"]
    assert [call for call in traced() if "middle" in call] == [">middle 2", "<middle 2"], "nothing of it is left"


def test_both_recordings_see_what_either_of_them_records(calls: Calls) -> None:
    with aiotrace.recording(calls) as recording:
        recording.limit("*.leaf")
        recording.enable("function_graph:*")
        with aiotrace.recording() as other:
            other.limit("*.middle")
            other.enable("function_graph:*")
            middle()
        middle()
        recording.disable("function_graph")
    leaves = [">leaf 0", "<leaf 0"] * 2
    assert calls.calls == [">middle 0", ">leaf 1", "<leaf 1", ">leaf 1", "<leaf 1", "<middle 0", *leaves]


def test_selection_names_limits_that_matched_no_function() -> None:
    with aiotrace.recording() as recording:
        recording.limit("*.leaf")
        recording.limit("*.laef")
        recording.notrace("*.middle")
        recording.notrace("*.midle")
        recording.enable("function_graph:*")
        middle()
        recording.disable("function_graph")
        assert recording.selection.functions.unmatched == {"*.laef"}


@pytest.mark.skipif(sys.version_info < (3, 12), reason="a profile function is called always")
def test_a_function_that_is_not_wanted_costs_nothing_after_its_first_call(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    native = functions.c_module

    def watch(hook: Callable[..., object]) -> Callable[..., object]:
        def watched(code: CodeType, *arguments: object) -> object:
            asked.append(code.co_name)
            return hook(code, *arguments)

        return watched

    for name in ("function_enter", "function_leave"):
        monkeypatch.setattr(native, name, watch(getattr(native, name)))
    with aiotrace.recording() as recording:
        recording.notrace("*.leaf")
        recording.enable("function_graph:*")
        for _ in range(5):
            middle()
        recording.disable("function_graph")
    assert asked.count("middle") == 10
    assert asked.count("leaf") == 2


@pytest.mark.skipif(sys.version_info < (3, 12), reason="a profile function is not called from Python")
@pytest.mark.parametrize("name", ["function_enter", "function_leave", "function_throw", "function_unwind"])
def test_a_hook_that_is_called_with_no_function_does_nothing(name: str) -> None:
    hook = getattr(functions.c_module, name)
    with aiotrace.recording() as recording:
        recording.enable("function_graph:*")
        results = [hook(), hook(1, 2), hook(None), hook("f", offset=0)]
        recording.disable("function_graph")
    assert results == [None] * 4


def test_function_that_cannot_be_located_is_skipped(calls: Calls, monkeypatch: pytest.MonkeyPatch) -> None:
    locate = definitions.DEFINITIONS.locate

    def fail(code: CodeType, line: int | None) -> int:
        if code is leaf.__code__:
            raise MemoryError
        return locate(code, line)

    with aiotrace.recording(calls) as recording:
        monkeypatch.setattr(definitions.DEFINITIONS, "locate", fail)
        recording.enable("function_graph:*")
        middle()
        recording.disable("function_graph")
    assert calls.calls == [">middle 0", "<middle 0"]


def test_functions_that_the_table_has_no_room_for_are_passed_over(
    calls: Calls, monkeypatch: pytest.MonkeyPatch
) -> None:
    with aiotrace.recording(calls) as recording:
        recording.enable("function_graph:*")
        call(leaf)
        monkeypatch.setattr(definitions, "FUNCTIONS_MAX", 0)
        refused = definitions.DEFINITIONS.refused
        call(lambda: middle())
        monkeypatch.undo()
        recording.disable("function_graph")
    assert definitions.DEFINITIONS.refused > refused
    known = [">call 0", ">leaf 1", "<leaf 1", ">leaf 1", "<leaf 1", "<call 0"]
    assert relative(calls.calls)[:6] == known
    rest = [name for name in relative(calls.calls)[6:] if "middle" not in name]
    assert (rest[0], rest[-1]) == (">call 0", "<call 0")
    assert rest[-3:-1] == [">leaf 1", "<leaf 1"]


def test_a_full_page_costs_nothing_and_is_counted(calls: Calls) -> None:
    with aiotrace.recording(calls, page_size=4096, pages=8) as recording:
        recording.enable("function_graph:*")
        for _ in range(20_000):
            leaf()
        recording.disable("function_graph")
    statistics = recording.statistics()
    lost = sum(event.fields["count"] for event in calls.events if event.is_loss)
    assert statistics.events_delivered == sum(not event.is_loss for event in calls.events) > 0
    assert lost <= statistics.events_dropped == statistics.dropped["no_page"]
    assert statistics.events_delivered + statistics.events_dropped >= 40_000


@pytest.mark.skipif(sys.version_info >= (3, 12), reason="from 3.12 on several tools may trace")
def test_another_profiler_is_not_removed() -> None:
    def other(*_: object) -> None:
        pass

    with aiotrace.recording() as recording:
        sys.setprofile(other)
        try:
            with pytest.raises(ConfigurationError, match="another profiler"):
                recording.enable("function_graph:*")
            assert sys.getprofile() is other
        finally:
            sys.setprofile(None)
        recording.disable("function_graph")


def test_the_program_is_left_as_it_was() -> None:
    before = sys.getprofile(), threading.getprofile()
    tools = [sys.monitoring.get_tool(n) for n in range(6)] if sys.version_info >= (3, 12) else []
    with aiotrace.recording() as recording:
        recording.enable("function_graph:*")
        recording.enable("function:*")
        leaf()
    assert (sys.getprofile(), threading.getprofile()) == before
    if sys.version_info >= (3, 12):
        assert [sys.monitoring.get_tool(n) for n in range(6)] == tools


def test_trace_cmd_draws_the_graph(tmp_path: Path, trace_cmd: str) -> None:
    with aiotrace.recording(FileSink(tmp_path / "t.dat")) as recording:
        recording.enable("function_graph:*")
        top()
        recording.disable("function_graph")
    command = [trace_cmd, "report", tmp_path / "t.dat"]
    plain = {**os.environ, "LD_PRELOAD": ""}  # the sanitizers' library is for Python
    text = subprocess.run(command, capture_output=True, text=True, check=True, env=plain).stdout
    drawn = re.findall(
        r"(funcgraph_\w+): .*?\| +((?:\w+@test_function_tracers\.py:\d+)?\S*(?: \{)?)$", text, re.MULTILINE
    )
    body = [re.sub(r"@test_function.py:\d+", "", shown) for _, shown in drawn]
    start = body.index("top() {")
    assert body[start : start + 7] == ["top() {", "middle() {", "leaf();", "leaf();", "}", "leaf();", "}"]
