"""The small tracers: gc, threads, log records, warnings, exceptions, audit events."""

from __future__ import annotations

import _thread
import gc
import logging
import sys
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest

import aiotrace
from aiotrace._events.tracer_switch import TRACERS
from aiotrace._tracers.task import find_inner
from aiotrace_sinks import MemorySink

pytestmark = pytest.mark.pure_too

foreign = aiotrace.event("foreign:thread")
OF_OURS = {"audit:gc_get_referents", "audit:object___getattr__", "audit:its_own"}


@contextmanager
def traced(*globs: str) -> Iterator[Callable[[], list[Any]]]:
    """Record what the globs take; what is yielded gives the events, after the block."""
    sink = MemorySink()
    with aiotrace.recording(sink) as recording:
        recording.disable("all")
        for glob in globs:
            recording.enable(glob)
        yield lambda: list(sink.events())
    assert recording.statistics().events_lost == 0


def hooks() -> list[Any]:
    return [
        threading.Thread._bootstrap_inner,  # type: ignore[attr-defined]
        logging.Logger.handle,
        warnings._showwarnmsg,  # type: ignore[attr-defined]
        sys.excepthook,
        threading.excepthook,
        sys.unraisablehook,
        list(gc.callbacks),
    ]


@pytest.mark.parametrize("system", sorted(set(TRACERS) & {"audit", "exception", "gc", "log", "thread", "warning"}))
def test_a_tracer_leaves_the_program_as_it_found_it(system: str) -> None:
    before = hooks()
    with traced(f"{system}:*"):
        if system != "audit":  # its hook cannot be taken out, and does nothing
            assert hooks() != before
    assert hooks() == before


def test_patch_above_ours_stays_and_ours_delegates(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    with traced("log:*"):
        ours = logging.Logger.handle

        def theirs(self: logging.Logger, record: logging.LogRecord) -> None:
            calls.append(record.msg)
            ours(self, record)

        monkeypatch.setattr(logging.Logger, "handle", theirs)
    logging.getLogger("tests.tracers").warning("after")
    assert calls == ["after"]
    assert logging.Logger.handle is theirs


def test_a_run_of_the_collector_has_begin_end_and_length() -> None:
    with traced("gc") as events:
        gc.collect(1)
    begin, end = [event for event in events() if event.fields["generation"] == 1][-2:]
    assert (begin.name, end.name) == ("gc:start", "gc:stop")
    assert 0 < end.fields["duration_ns"] <= end.timestamp_ns - begin.timestamp_ns + 1_000_000


def test_thread_event_is_emitted_by_the_thread_itself() -> None:
    ids = []
    with traced("thread:*") as events:
        thread = threading.Thread(target=lambda: ids.append(threading.get_native_id()), name="worker-7")
        thread.start()
        thread.join()
    start, exit = [event for event in events() if event.fields["name"] == "worker-7"]
    assert (start.name, exit.name) == ("thread:start", "thread:exit")
    assert start.pid == exit.pid == ids[0]
    assert start.fields["daemon"] in (0, False)


def test_log_record_is_captured_without_adding_a_handler(caplog: pytest.LogCaptureFixture) -> None:
    handlers = list(logging.getLogger().handlers)
    with traced("log:record") as events:
        assert logging.getLogger().handlers == handlers
        logging.getLogger("shop.cart").warning("%d items", 3)
        logging.getLogger("shop.cart").debug("not enabled")
        with pytest.raises(TypeError):
            logging.getLogger("shop.cart").warning("%d", "three")  # caplog's handler raises; we only note it
    first, second = events()
    assert first.fields["message"] == "3 items"
    assert first.fields["logger"] == "shop.cart"
    assert first.fields["level"] == logging.WARNING
    assert first.fields["site"].startswith("test_tracers.py:")
    assert "TypeError" in second.fields["message"]


@pytest.mark.parametrize("event", ["start", "exit"])
def test_a_thread_has_its_name_and_no_second_thread_is_made_of_it(event: str) -> None:
    before = threading.enumerate()
    with traced(f"thread:{event}") as events:
        thread = threading.Thread(target=int, name="worker")
        thread.start()
        thread.join()
    assert threading.enumerate() == before
    assert [found.comm for found in events()] == ["worker"]


def test_thread_without_a_thread_object_is_named_without_creating_one() -> None:
    before = threading.enumerate()
    ended = threading.Lock()
    ended.acquire()

    def run() -> None:
        foreign()
        ended.release()

    with traced("foreign:*") as events:
        _thread.start_new_thread(run, ())
        ended.acquire()
    assert threading.enumerate() == before
    assert [found.comm for found in events()] == ["thread"]


def test_a_warning_that_is_shown_is_recorded(monkeypatch: pytest.MonkeyPatch) -> None:
    shown = []
    monkeypatch.setattr(warnings, "showwarning", lambda *arguments, **_: shown.append(str(arguments[0])))
    with traced("warning:*") as events, warnings.catch_warnings():
        warnings.simplefilter("always")
        warnings.warn("mind the gap", UserWarning, stacklevel=1)
        warnings.simplefilter("ignore")
        warnings.warn("not shown", UserWarning, stacklevel=1)
    assert [event.fields["message"] for event in events()] == ["mind the gap"] == shown


def test_a_warning_is_shown_with_the_object_that_it_is_about(monkeypatch: pytest.MonkeyPatch) -> None:
    shown: list[Any] = []
    monkeypatch.setattr(warnings, "_showwarnmsg_impl", shown.append)
    monkeypatch.setattr(warnings, "showwarning", warnings._showwarning_orig)  # type: ignore[attr-defined]
    left_open = object()
    with traced("warning:*") as events, warnings.catch_warnings():
        warnings.simplefilter("always")
        warnings.warn("left open", ResourceWarning, stacklevel=1, source=left_open)
    assert [event.fields["category"] for event in events()] == ["ResourceWarning"]
    assert [message.source for message in shown] == [left_open]


def test_uncaught_exception_has_a_type_and_a_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(threading, "excepthook", lambda arguments: None)
    with traced("exception:unhandled") as events:
        thread = threading.Thread(target=lambda: [][1])
        thread.start()
        thread.join()
    (event,) = events()
    assert event.fields["where"] == "thread"
    assert event.fields["type"] == "IndexError"
    assert event.fields["site"].startswith("test_tracers.py:")


@pytest.mark.skipif(sys.version_info < (3, 12), reason="sys.monitoring is of 3.12 and newer")
def test_a_raised_exception_is_recorded_where_it_is_raised() -> None:
    with traced("exception:raised") as events, pytest.raises(ZeroDivisionError):
        1 / 0  # noqa: B018
    sites = [event.fields["site"] for event in events() if event.fields["type"] == "ZeroDivisionError"]
    assert sites
    assert sites[0].startswith("test_tracers.py:")


def test_each_audit_event_is_a_separate_event(tmp_path: Any) -> None:
    class Own:
        def __repr__(self) -> str:
            raise AssertionError("a repr is foreign code")

    with traced("audit:open", "audit:my.event") as events:
        open(tmp_path / "file", "w").close()
        sys.audit("my.event", "text", 7, Own())
        sys.audit("not.wanted", 1)
    found = {event.name: event.fields["arguments"] for event in events()}
    assert set(found) == {"audit:open", "audit:my_event"}
    assert found["audit:my_event"] == "'text', 7, <Own>"


def test_audit_events_caused_by_us_are_not_recorded() -> None:
    async def suspended() -> None: ...

    coroutine = suspended()
    with traced("audit:*") as events:
        find_inner(coroutine)  # the tracer of tasks looks at coroutines so, when they are spawned
        sys.audit("its.own")
    coroutine.close()
    assert [name for event in events() if (name := event.name) in OF_OURS] == ["audit:its_own"]


def test_audit_events_with_invalid_names_are_recorded_as_other() -> None:
    with traced("audit:other") as events:
        sys.audit("no name\n", 1)
    assert [(event.fields["name"], event.fields["arguments"]) for event in events()] == [("no name\n", "1")]


def test_a_tracer_that_cannot_run_is_refused_by_name_and_left_out_of_all(monkeypatch: pytest.MonkeyPatch) -> None:
    import aiotrace._tracers.gc_runs as tracer

    def refuse() -> None:
        raise aiotrace.ConfigurationError("not here")

    monkeypatch.setattr(tracer, "start", refuse)
    monkeypatch.setattr("aiotrace._events.tracer_switch.TRACERS", {"gc": "aiotrace._tracers.gc_runs"})
    with aiotrace.recording() as recording:
        recording.enable("all")
        with pytest.raises(aiotrace.ConfigurationError, match="not here"):
            recording.enable("gc:*")
        recording.disable("thread:*")  # the rule that failed is not there any more
    with aiotrace.recording():  # nor at the close
        pass
