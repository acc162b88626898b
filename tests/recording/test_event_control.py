"""What is asked of an open recording and cannot be: refused, or warned of, and nothing has changed."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

import aiotrace
from aiotrace import ConfigurationError

pytestmark = pytest.mark.pure_too

hit = aiotrace.event("chooser:hit", x="u32", name="str")
miss = aiotrace.event("chooser:miss", x="u32")


@pytest.fixture
def recording() -> Iterator[aiotrace.SyncRecording]:
    with aiotrace.recording(page_size=4096, pages=8) as recording:
        yield recording
        before = recording.statistics().events_written
        hit(1, "a")
        miss(2)
        assert recording.statistics().events_written == before + 2, "what was refused changed nothing"


ASK: list[Callable[[aiotrace.SyncRecording, str], None]] = [
    lambda recording, glob: recording.enable(glob),
    lambda recording, glob: recording.disable(glob),
    lambda recording, glob: recording.filter(glob, "x == 1"),
    lambda recording, glob: recording.trigger(glob, "traceoff"),
]


@pytest.mark.parametrize("ask", ASK, ids=["enable", "disable", "filter", "trigger"])
@pytest.mark.parametrize("glob", ["", " "])
def test_a_glob_that_is_of_no_event_is_refused(
    recording: aiotrace.SyncRecording, ask: Callable[[aiotrace.SyncRecording, str], None], glob: str
) -> None:
    with pytest.raises(ConfigurationError, match="matches no event: write 'system:event'"):
        ask(recording, glob)


@pytest.mark.parametrize("text", ["status >= 500", "x == 1 || status >= 500", "pid == 5"])
def test_a_filter_by_a_field_that_the_event_has_not_is_refused(recording: aiotrace.SyncRecording, text: str) -> None:
    with pytest.raises(ConfigurationError, match=r"chooser:hit has no field (status|pid); chooser:hit has x, name"):
        recording.filter("chooser:hit", text)


def test_trigger_by_a_field_of_other_events_is_refused(recording: aiotrace.SyncRecording) -> None:
    with pytest.raises(ConfigurationError, match="chooser:miss has no field name; chooser:miss has x"):
        recording.trigger("chooser:miss", 'traceoff if name == "a"')


def test_a_filter_by_a_field_that_no_event_has_so_far_is_warned_of() -> None:
    with aiotrace.recording(page_size=4096, pages=8) as recording:
        with pytest.warns(RuntimeWarning, match="'chooser:.*' is of so far have no field status; chooser:hit") as told:
            recording.filter("chooser:*", "status >= 500")
        assert [warning.filename for warning in told] == [__file__]
        hit(1, "a")
        assert recording.statistics().events_written == 0


def test_filter_by_a_field_of_some_or_of_future_events_does_not_warn() -> None:
    with aiotrace.recording(page_size=4096, pages=8) as recording:
        recording.filter("chooser:*", 'name == "a" || x == 7')
        recording.filter("chooser_later:*", "status >= 500")
        later = aiotrace.event("chooser_later:request", status="u16")
        for status in (200, 500):
            later(status)
        hit(1, "a")
        miss(1)
        assert recording.statistics().events_written == 2
