"""R17: events from inside events: signal handlers, finalisers, gc callbacks, logging handlers, `__index__`.

The law: no torn record, no deadlock, and what is refused is counted. `interrupted` does what a signal handler could do:
it calls something between any two bytecodes of the core where CPython would look for signals.
"""

from __future__ import annotations

import gc
import logging
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import pytest

import aiotrace
from support.laws import PAGE, Collect, check_closed, check_laws, check_sink_has, number

pytestmark = pytest.mark.pure_too

CORE = str(Path(aiotrace.__file__).parent)


@contextmanager
def interrupted(handler: Callable[[], object], *, every: int = 1) -> Iterator[list[int]]:
    """Run `handler` in this thread at every line of the core, as a signal handler would run."""
    count = [0, 0]
    inside = False

    def trace(frame: FrameType, event: str, argument: Any) -> Any:
        nonlocal inside
        if not frame.f_code.co_filename.startswith(CORE) or inside:
            return None
        if event == "line":
            count[0] += 1
            if count[0] % every == 0:
                count[1] += 1
                inside = True
                try:
                    handler()
                finally:
                    inside = False
        return trace

    sys.settrace(trace)
    try:
        yield count
    finally:
        sys.settrace(None)


def test_events_of_a_handler_at_any_core_line_are_written_or_counted() -> None:
    sink = Collect()
    calls = 0

    def handler() -> None:
        nonlocal calls
        number(10_000 + calls, "from the handler")
        calls += 1

    with aiotrace.recording(sink, page_size=PAGE, pages=64) as recording:
        with interrupted(handler, every=3):
            for n in range(400):
                number(n, "x" * (n % 60))
        check_laws(recording.statistics(), 400 + calls)
    statistics = recording.statistics()
    check_closed(statistics, 400 + calls)
    check_sink_has(sink, statistics)
    assert calls > 5, "the handler ran: in C there are few lines, in Python many"
    assert {n for n in sink.numbers if n < 10_000} == set(range(400)), "who is interrupted is not who is refused"


def test_statistics_are_available_at_every_line_of_the_core() -> None:
    sink = Collect()
    recording = aiotrace.recording(sink, page_size=PAGE, pages=64)
    with recording, interrupted(recording.statistics, every=2):
        for n in range(300):
            number(n, "x" * (n % 60))
    check_closed(recording.statistics(), 300)
    check_sink_has(sink, recording.statistics(), range(300))


def test_a_signal_handler_that_emits() -> None:
    sink = Collect()
    calls = 0

    def handler(*_: object) -> None:
        nonlocal calls
        calls += 1  # first: the handler may be interrupted too
        number(100_000 + calls, "")

    before = signal.signal(signal.SIGALRM, handler)
    try:
        with aiotrace.recording(sink, page_size=PAGE, pages=128) as recording:
            signal.setitimer(signal.ITIMER_REAL, 0.0002, 0.0002)
            for n in range(5000):
                number(n, "")
            signal.setitimer(signal.ITIMER_REAL, 0)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    check_closed(recording.statistics(), 5000 + calls)
    check_sink_has(sink, recording.statistics())
    assert calls


def test_a_finaliser_and_a_gc_callback_that_emit() -> None:
    sink = Collect()
    calls = 0

    class Loud:
        def __init__(self) -> None:
            self.me = self

        def __del__(self) -> None:
            nonlocal calls
            number(10_000, "")
            calls += 1

    def callback(phase: str, info: dict[str, int]) -> None:
        nonlocal calls
        number(10_000, "")
        calls += 1

    threshold = gc.get_threshold()
    gc.callbacks.append(callback)
    gc.set_threshold(1)
    try:
        with aiotrace.recording(sink, page_size=PAGE, pages=128) as recording:
            for n in range(500):
                Loud()
                number(n, "x" * (n % 60))
    finally:
        gc.set_threshold(*threshold)
        gc.callbacks.remove(callback)
    statistics = recording.statistics()
    check_laws(statistics)
    assert calls > 500
    assert set(range(500)) <= set(sink.numbers)
    assert set(sink.numbers) - set(range(500)) <= {10_000}


def test_an_argument_whose_index_emits() -> None:
    sink = Collect()

    class Loud:
        def __index__(self) -> int:
            number(20_000, "")
            return 7

    with aiotrace.recording(sink, page_size=PAGE, pages=64) as recording:
        for _ in range(300):
            number(Loud(), "x")
    statistics = recording.statistics()
    check_closed(statistics)
    assert sink.numbers[7] == 300
    assert sink.numbers[20_000] == statistics.events_written - 300 >= 300
    assert statistics.events_dropped == 0


def test_a_logging_handler_that_emits_and_an_event_that_warns() -> None:
    sink = Collect()

    class Handler(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            number(int(record.getMessage()), "")

    log = logging.getLogger("aiotrace.test")
    handler = Handler()
    log.addHandler(handler)
    log.propagate = False
    try:
        with aiotrace.recording(sink, page_size=PAGE, pages=64) as recording:
            for n in range(500):
                log.warning("%d", n)
    finally:
        log.removeHandler(handler)
    check_sink_has(sink, recording.statistics(), range(500))


def test_a_keyboard_interrupt_anywhere_in_a_write_leaves_no_lock_behind() -> None:
    """Where CPython looks for signals: after each call, and where a function begins or jumps back."""
    at = 0
    while True:
        at += 1
        sink = Collect()
        with aiotrace.recording(sink, page_size=PAGE, pages=8) as recording:
            number(0, "")
            struck = _strike(at, lambda: number(2, "x" * 1500))
            other = threading.Thread(target=number, args=(3, ""))
            other.start()
            other.join(60)
            assert not other.is_alive(), f"a lock is left behind (strike {at})"
            number(4, "")
        check_laws(recording.statistics())
        assert {3, 4} <= set(sink.numbers), f"strike {at}: {recording.statistics()}"
        if not struck:
            break


@pytest.mark.parametrize("overrun", ["drop_newest", "drop_oldest"])
@pytest.mark.parametrize("sinks", [0, 1])
def test_a_keyboard_interrupt_anywhere_in_a_turn_loses_no_page(overrun: Any, sinks: int) -> None:
    """The turn's own steps: seal, take, overrun. What was done by half is rolled forward at the next turn."""
    at = 0
    while True:
        at += 1
        sink = Collect()
        calls = 0
        with aiotrace.recording(*[sink] * sinks, page_size=PAGE, pages=5, overrun=overrun) as recording:
            for n in range(20):  # in the ring: full, or as full as it gets
                number(n, "x" * 1500)
                calls += 1
            struck = _strike(at, lambda: [number(n, "y" * 1500) for n in (100, 101, 102)] and None)
            for n in range(200, 210):
                number(n, "z" * 1500)
        statistics = recording.statistics()
        check_laws(statistics)
        check_closed(statistics)
        asked = calls + 10
        assert asked <= statistics.calls <= asked + 3
        assert len(sink.numbers) == len(set(sink.numbers)) == statistics.events_delivered
        assert statistics.pages_free == 5
        if not struck:
            assert statistics.calls == asked + 3
            break


def _strike(at: int, function: Callable[[], object]) -> bool:
    """Call, and raise KeyboardInterrupt at the at-th place where CPython would. Returns whether there was one."""
    import dis

    calls = {"CALL", "CALL_FUNCTION_EX", "RESUME", "JUMP_BACKWARD", "CALL_KW"}
    count = 0
    last: dict[FrameType, str] = {}

    def trace(frame: FrameType, event: str, argument: Any) -> Any:
        nonlocal count
        if not frame.f_code.co_filename.startswith(CORE):
            return None
        frame.f_trace_opcodes = True
        if event == "opcode":
            if last.get(frame) in calls:
                count += 1
                if count == at:
                    sys.settrace(None)
                    raise KeyboardInterrupt
            last[frame] = dis.opname[frame.f_code.co_code[frame.f_lasti]]
        return trace

    sys.settrace(trace)
    try:
        function()
    except KeyboardInterrupt:
        return True
    finally:
        sys.settrace(None)
        last.clear()
    return False
