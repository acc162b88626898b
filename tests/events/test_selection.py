"""Which events a recording takes: rules, filters and triggers."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

import aiotrace
from aiotrace._events.selection import PLAIN, Selection, matches, parse_trigger

hit = aiotrace.event("selection:hit", x="u32", name="str")
miss = aiotrace.event("selection:miss", x="u32")


@pytest.fixture
def recording() -> Iterator[aiotrace.SyncRecording]:
    with aiotrace.recording(page_size=4096, pages=8) as recording:
        yield recording


def written(recording: aiotrace.SyncRecording) -> int:
    statistics = recording.statistics()
    assert statistics.events_dropped == 0, "what a selection turns away is not lost"
    return statistics.events_written


@pytest.mark.parametrize(
    ("glob", "expected"),
    [
        ("all", True),
        ("*", True),
        ("http:*", True),
        ("http:request", True),
        ("http", True),
        ("request", True),
        ("req*", True),
        ("http:req", False),
        ("ttp", False),
        ("HTTP", False),
        ("db:*", False),
    ],
)
def test_a_glob_is_of_the_whole_name_or_of_either_part(glob: str, expected: bool) -> None:
    assert matches(glob, "http:request") is expected


def test_the_last_rule_that_matches_decides() -> None:
    selection = Selection()
    assert selection.decide("a:b", by_default=True) is PLAIN
    assert selection.decide("a:b", by_default=False) is None
    selection.disable("all")
    selection.enable("a:*")
    assert selection.decide("a:b", by_default=True) is PLAIN
    assert selection.decide("c:d", by_default=True) is None
    selection.disable("a:b")
    assert selection.decide("a:b", by_default=True) is None


def test_only_the_disabled_event_is_not_recorded(recording: aiotrace.SyncRecording) -> None:
    recording.disable("selection:miss")
    hit(1, "a")
    miss(1)
    hit.emit(1, "a")
    miss.emit(1)
    assert written(recording) == 2
    recording.enable("miss")
    miss(1)
    assert written(recording) == 3


def test_a_filter_is_applied_before_the_record_is_written(recording: aiotrace.SyncRecording) -> None:
    recording.filter("selection:hit", 'x > 5 && name == "yes"')
    hit(6, "yes")
    hit(6, "no")
    hit(5, "yes")
    hit(x=6, name="yes")
    hit(name="no", x=6)
    miss(0)
    assert written(recording) == 3
    recording.filter("hit", "x < 7")
    hit(8, "yes")
    assert written(recording) == 3


def test_each_recording_has_its_own_selection(recording: aiotrace.SyncRecording) -> None:
    with aiotrace.recording(page_size=4096, pages=8) as other:
        other.disable("all")
        hit(1, "a")
        assert (written(recording), written(other)) == (1, 0)


def test_traceoff_and_traceon_switch_the_recording(recording: aiotrace.SyncRecording) -> None:
    recording.trigger("selection:hit", "traceoff if x == 100")
    hit(99, "")
    hit(100, "")  # the event that sets it off is recorded
    hit(101, "")
    miss(1)
    assert written(recording) == 2
    recording.trigger("selection:miss", "traceon:1 if x == 3")
    miss(2)
    assert written(recording) == 2
    miss(3)  # switches on; recording begins after it
    miss(4)
    assert written(recording) == 3
    hit(100, "")
    miss(3)  # its one time is used up
    assert written(recording) == 4


def test_a_filter_of_a_trigger_may_name_keywords(recording: aiotrace.SyncRecording) -> None:
    recording.trigger("selection:hit", 'traceoff if name == "stop"')
    hit(x=1, name="stop")
    hit(x=1, name="go")
    assert written(recording) == 1


@pytest.mark.parametrize("text", ["", "fly", "traceoff:x", "traceoff if", "traceoff if x >", "traceoff x == 1"])
def test_a_trigger_that_does_not_parse_is_refused_by_name(text: str) -> None:
    with pytest.raises(aiotrace.ConfigurationError):
        parse_trigger(text)


def test_a_filter_that_does_not_parse_changes_nothing(recording: aiotrace.SyncRecording) -> None:
    with pytest.raises(aiotrace.ConfigurationError):
        recording.filter("all", "x >>")
    hit(1, "a")
    assert written(recording) == 1


@pytest.mark.parametrize(
    ("rules", "wanted"),
    [
        ([], False),
        ([("all", True)], True),
        ([("gc:*", True)], True),
        ([("gc", True)], True),
        ([("gc:start", True)], True),
        ([("task:*", True)], False),
        ([("all", True), ("gc:*", False)], False),
        ([("all", True), ("gc:start", False)], True),
        ([("gc:*", True), ("all", False)], False),
    ],
)
def test_a_tracer_runs_while_a_rule_may_take_one_of_its_events(rules: list[tuple[str, bool]], wanted: bool) -> None:
    selection = Selection()
    for glob, on in rules:
        (selection.enable if on else selection.disable)(glob)
    assert selection.wants_system("gc", explicit=False) is wanted


def test_expensive_tracer_runs_only_when_it_is_named() -> None:
    selection = Selection()
    selection.enable("all")
    assert not selection.wants_system("function", explicit=True)
    selection.enable("function:*")
    assert selection.wants_system("function", explicit=True)
    selection.disable("all")
    assert not selection.wants_system("function", explicit=True)
