"""Snapshots: what is in the ring and what follows goes to a sink, one at a time, while recording continues."""

from __future__ import annotations

import os
import re
import signal
import threading
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path

import anyio
import pytest

import aiotrace
from aiotrace import ConfigurationError, record
from aiotrace._events.selection import parse_trigger
from aiotrace._page.entry import PageCopy
from aiotrace._recording import snapshot
from aiotrace._recording.snapshot import SnapshotStream, name_for
from aiotrace.abc import Page, PageStream
from aiotrace.decode import open_trace
from support.arenas import Filled, numbers
from support.laws import PAGE, Collect, check_closed, check_laws, number

pytestmark = pytest.mark.pure_too

THREAD = pytest.mark.parametrize("thread", [False, True], ids=["task", "thread"])


@pytest.fixture
def no_pause(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(snapshot, "PAUSE", 0.0)


def numbers_in(path: str | Path) -> list[int]:
    with open_trace(path) as trace:
        events = list(trace.events(["laws:number"]))
        assert trace.damage_count == 0
        assert trace.complete
    assert not [event for event in events if event.is_loss]
    return [event.fields["n"] for event in events]


# --- the stream -----------------------------------------------------------------------------------


async def collect(stream: SnapshotStream, *, prefixes: bool, meanwhile: Callable[[int], object]) -> list[PageCopy]:
    if prefixes:
        stream.accept_prefixes()
    found: list[PageCopy] = []
    async for page in stream:
        assert isinstance(page, PageCopy)
        found.append(page)
        stream.acknowledge(page)
        meanwhile(len(found))
    return found


@pytest.mark.anyio
@pytest.mark.parametrize("prefixes", [False, True])
async def test_stream_has_earlier_and_later_events_until_its_end(prefixes: bool) -> None:
    filled = Filled(pages=8)
    for _ in range(100):
        filled.write()
    stream = SnapshotStream(filled.arena, filled.info, filled.definitions, float("inf"))

    def meanwhile(pages: int) -> None:
        for _ in range(30 if pages <= 5 else 0):
            filled.write()
        if pages == 5:
            stream.cut()

    found = await collect(stream, prefixes=prefixes, meanwhile=meanwhile)
    written = filled.all[0].written
    assert [n for copy in found for n in numbers(copy)] == list(range(written))
    assert stream.events == written
    assert stream.ledger.written == written
    assert stream.lost == 0
    if not prefixes:
        assert all(copy.complete and not copy.offset for copy in found), "whole pages alone, and the last as it is"
    else:
        assert any(copy.offset for copy in found)
    assert all(copy.definitions_needed == len(filled.definitions) for copy in found)


@pytest.mark.anyio
async def test_stream_of_an_empty_ring_ends_and_scans_once_more_at_its_end() -> None:
    filled = Filled()
    stream = SnapshotStream(filled.arena, filled.info, filled.definitions, 0.0)
    filled.write()
    assert [numbers(page) for page in await stream.next_batch(5) if isinstance(page, PageCopy)] == [[0]]
    assert await stream.next_batch(5) == []
    with pytest.raises(ValueError, match="a batch of 0 pages"):
        await stream.next_batch(0)


@pytest.mark.anyio
async def test_page_not_held_cannot_be_acknowledged() -> None:
    filled = Filled()
    filled.write()
    stream = SnapshotStream(filled.arena, filled.info, filled.definitions, 0.0)
    batch = await stream.next_batch(5)
    stream.acknowledge_all(batch)
    with pytest.raises(aiotrace.AcknowledgeError, match="not held by this stream"):
        stream.acknowledge(batch[0])


@pytest.mark.anyio
async def test_events_overwritten_before_they_were_read_are_reported() -> None:
    filled = Filled(pages=4)
    filled.write()
    stream = SnapshotStream(filled.arena, filled.info, filled.definitions, 0.0)
    stream.accept_prefixes()
    await stream.next_batch(5)
    for _ in range(1000):
        filled.write()
    batch = await stream.next_batch(9)
    assert batch[0].lost_before == stream.lost > 0


# --- of a recording -------------------------------------------------------------------------------


@pytest.mark.anyio
@THREAD
async def test_snapshot_leaves_the_ring_unchanged_for_the_next_one(tmp_path: Path, thread: bool) -> None:
    sink = Collect(prefixes=True)
    async with record(overrun="drop_oldest", page_size=PAGE, pages=16, thread=thread) as recording:
        for n in range(300):
            number(n, "x")
        before = recording.statistics()
        made = await recording.snapshot(tmp_path / "one.dat")
        assert (made.events, made.lost) == (300, 0)
        assert recording.statistics().pages_full == before.pages_full
        number(300, "y")
        await recording.snapshot(sink)
        await recording.snapshot(f"file:{tmp_path}/three.dat")
        check_laws(recording.statistics(), 301)
    check_closed(recording.statistics(), 301)
    assert recording.statistics().snapshots == 3
    assert numbers_in(tmp_path / "one.dat") == list(range(300))
    assert sorted(sink.numbers) == list(range(301))
    assert numbers_in(tmp_path / "three.dat") == list(range(301))


@pytest.mark.anyio
@THREAD
async def test_snapshot_runs_until_its_end_or_that_of_the_recording(tmp_path: Path, thread: bool) -> None:
    path = tmp_path / "trace.dat"
    async with record(overrun="drop_oldest", page_size=PAGE, pages=16, thread=thread) as recording:
        number(0, "before")
        recording.trigger("laws:number", 'snapshot:after=3600 if text == "now"')
        recording._core.snapshots._base = str(path)
        number(1, "now")
        for n in range(2, 1000):
            number(n, "after")
            await anyio.lowlevel.checkpoint()
    check_closed(recording.statistics(), 1000)
    (made,) = recording.snapshot_paths
    found = numbers_in(made)
    assert found[:2] == [0, 1] or found[0] > 1, "what the ring had not forgotten by then"
    assert found == list(range(found[0], 1000))


@pytest.mark.anyio
async def test_sink_error_is_raised_to_the_caller_and_recording_continues() -> None:
    async def fail(stream: PageStream) -> None:
        await stream.next_batch(1)
        raise RuntimeError("no room")

    async with record(overrun="drop_oldest", page_size=PAGE) as recording:
        number(0, "x")
        with pytest.raises(RuntimeError, match="no room"):
            await recording.snapshot(fail)
        sink = Collect()
        await recording.snapshot(sink)
        assert list(sink.numbers) == [0]


@pytest.mark.anyio
async def test_snapshots_are_taken_one_at_a_time() -> None:
    inside: list[str] = []

    def sink(name: str) -> Callable[[PageStream], Awaitable[None]]:
        async def take(stream: PageStream) -> None:
            assert not inside
            inside.append(name)
            async for page in stream:
                await anyio.lowlevel.checkpoint()
                stream.acknowledge(page)
            inside.remove(name)

        return take

    async with record(overrun="drop_oldest", page_size=PAGE) as recording, anyio.create_task_group() as tasks:
        for n in range(500):
            number(n, "x")
        for name in "abc":
            tasks.start_soon(recording.snapshot, sink(name))
    assert recording.statistics().snapshots == 3


@pytest.mark.anyio
async def test_a_cancelled_snapshot_cancels_the_sink_and_the_next_is_taken() -> None:
    async def wait(stream: PageStream) -> None:
        await stream.next_batch(1)
        started.set()
        await anyio.sleep_forever()

    started = anyio.Event()
    async with record(overrun="drop_oldest", page_size=PAGE) as recording:
        number(0, "x")
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(recording.snapshot, wait)
            await started.wait()
            tasks.cancel_scope.cancel()
        sink = Collect()
        await recording.snapshot(sink)
        assert list(sink.numbers) == [0]


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("to", "after", "reason"),
    [
        ("nobody:there", 0, "no sink is known"),
        ("a?b", 0, "choose a name without"),
        (3, 0, "is no sink"),
        ("x.dat", -1, "after=-1"),
        ("x.dat", 4000, "after=4000"),
        ("x.dat", None, "after=None"),
    ],
)
async def test_invalid_snapshot_arguments_are_refused(to: str, after: float, reason: str) -> None:
    async with record() as recording:
        with pytest.raises(ConfigurationError, match=re.escape(reason)):
            await recording.snapshot(to, after=after)
    with pytest.raises(ConfigurationError, match="not open"):
        await recording.snapshot("x.dat")
    assert not recording.request_snapshot("late")


@pytest.mark.anyio
async def test_reader_is_not_woken_for_unwanted_pages(monkeypatch: pytest.MonkeyPatch) -> None:
    async with record(overrun="drop_oldest", page_size=PAGE, pages=16) as recording:
        wakes: list[int] = []
        monkeypatch.setattr(recording._core.service._waker, "wake", lambda: wakes.append(1))
        for n in range(500):
            number(n, "x")
        assert wakes == []


# --- triggers and requests ------------------------------------------------------------------------


def wait_for(condition: Callable[[], object]) -> None:
    done = threading.Event()
    while not condition():
        done.wait(0.01)


def test_a_trigger_writes_a_file_named_by_time_and_cause_and_not_too_often(tmp_path: Path) -> None:
    with aiotrace.recording(
        overrun="drop_oldest", page_size=PAGE, pages=16, snapshots=tmp_path / "app.dat"
    ) as recording:
        recording.trigger("laws:number", "snapshot if n >= 10")
        for n in range(20):
            number(n, "x")
        wait_for(lambda: recording.snapshot_paths)
        number(20, "x")
    (path,) = recording.snapshot_paths
    assert re.fullmatch(r"app-\d{8}-\d{6}-laws-number\.dat", os.path.basename(path))
    found = numbers_in(path)
    assert found[:11] == list(range(11))
    statistics = recording.statistics()
    assert (statistics.snapshots, statistics.snapshots_skipped, statistics.snapshots_failed) == (1, 10, 0)
    assert "snapshots: 1 taken, 10 skipped, 0 failed" in str(statistics)
    assert os.listdir(tmp_path) == [os.path.basename(path)]


@pytest.mark.usefixtures("no_pause")
def test_a_count_is_of_snapshots_that_were_taken(tmp_path: Path) -> None:
    with aiotrace.recording(overrun="drop_oldest", page_size=PAGE, snapshots=tmp_path / "app.dat") as recording:
        recording.trigger("laws:number", "snapshot:2")
        for n in range(2):
            while len(recording.snapshot_paths) == n:
                number(n, "x")
        for n in range(100):
            number(n, "x")
        assert recording.statistics().snapshots == 2
    assert len(os.listdir(tmp_path)) == 2
    assert len(set(recording.snapshot_paths)) == 2, "of one second: the second has a number behind it"


def test_a_snapshot_that_was_set_off_just_before_the_end_is_taken(tmp_path: Path) -> None:
    for n in range(5):
        with aiotrace.recording(overrun="drop_oldest", snapshots=tmp_path / f"{n}.dat") as recording:
            number(n, "x")
            assert recording.request_snapshot("the end", after=3600)
        (path,) = recording.snapshot_paths
        assert numbers_in(path) == [n]
        assert "-the-end.dat" in path


@pytest.mark.filterwarnings("ignore:aiotrace. the snapshot for cause failed:RuntimeWarning")
def test_request_covered_by_the_previous_is_skipped_only_if_that_fails(tmp_path: Path) -> None:
    with aiotrace.recording(overrun="drop_oldest", snapshots=tmp_path / "app.dat") as recording:
        assert recording.request_snapshot("first", after=3600)
        assert not recording.request_snapshot("second")
        assert recording.statistics().snapshots_skipped == 0
    with aiotrace.recording(overrun="drop_oldest", snapshots=tmp_path / "nowhere" / "app.dat") as recording:
        assert recording.request_snapshot("cause", after=3600)
        wait_for(lambda: recording.statistics().snapshots_failed)
        assert not recording.request_snapshot("second")
        assert recording.statistics().snapshots_skipped == 1


@pytest.mark.filterwarnings("ignore:aiotrace. the snapshot for cause failed:RuntimeWarning")
@pytest.mark.usefixtures("no_pause")
def test_failed_snapshot_warns_and_is_counted_and_the_next_is_taken(tmp_path: Path) -> None:
    folder = tmp_path / "later"
    with aiotrace.recording(overrun="drop_oldest", snapshots=folder / "app.dat") as recording:
        number(0, "x")
        recording.request_snapshot("cause")
        wait_for(lambda: recording.statistics().snapshots_failed)
        folder.mkdir()
        wait_for(lambda: recording.request_snapshot("cause"))
        wait_for(lambda: recording.snapshot_paths)
    assert numbers_in(recording.snapshot_paths[0]) == [0]


@pytest.fixture
def alarm() -> Iterator[Callable[[Callable[[], object]], None]]:
    """Sets what SIGUSR1 does."""
    before = signal.getsignal(signal.SIGUSR1)
    yield lambda do: signal.signal(signal.SIGUSR1, lambda *_: do()) and None
    signal.signal(signal.SIGUSR1, before)


def test_request_from_a_signal_handler_never_blocks(
    tmp_path: Path, alarm: Callable[[Callable[[], object]], None]
) -> None:
    with aiotrace.recording(
        overrun="drop_oldest", page_size=PAGE, pages=16, snapshots=tmp_path / "app.dat"
    ) as recording:
        alarm(lambda: recording.request_snapshot("signal"))
        for n in range(2000):
            if n % 20 == 0:
                os.kill(os.getpid(), signal.SIGUSR1)
            number(n, "x" * (n % 100))
    assert recording.statistics().snapshots == 1
    assert recording.statistics().snapshots_skipped > 10
    with open_trace(recording.snapshot_paths[0]) as trace:
        found = [event.fields["n"] for event in trace if not event.is_loss]  # the ring is small: some may be missing
        assert trace.damage_count == 0
    assert found == sorted(set(found))
    assert found


@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")
def test_a_forked_child_takes_no_snapshot_of_its_parent(tmp_path: Path) -> None:
    with aiotrace.recording(overrun="drop_oldest", snapshots=tmp_path / "app.dat") as recording:
        pid = os.fork()
        if not pid:
            os._exit(int(recording.request_snapshot("child")))
        assert os.waitpid(pid, 0)[1] == 0
    assert os.listdir(tmp_path) == []


def test_names_are_of_time_and_cause_and_none_is_used_twice(tmp_path: Path) -> None:
    base = str(tmp_path / "my trace.dat")
    first = name_for(base, "task:step/../x y", 1_795_580_100)
    assert first == str(tmp_path / "my trace-20261125-041500-task-step-x-y.dat")
    Path(first).touch()
    assert name_for(base, "task:step/../x y", 1_795_580_100) == first.replace(".dat", ".2.dat")
    assert name_for(str(tmp_path / "x"), "c" * 200, 0) == str(tmp_path / f"x-19700101-000000-{'c' * 80}")


def test_trigger_sets_how_far_a_snapshot_looks_forward() -> None:
    trigger = parse_trigger("snapshot:3:after=2.5 if n > 1")
    assert (trigger.action, trigger.remaining, trigger.after) == ("snapshot", 3, 2.5)
    assert parse_trigger("snapshot:after=2").after == 2
    assert parse_trigger("snapshot").after == 0
    for text, reason in (
        ("traceoff:after=2", "only snapshot takes after=, not 'traceoff'"),
        ("snapshot:after=4000", "after= is at most 3600 s"),
        ("snapshot:after=x", "write ACTION"),
        ("snapshot:after=-1", "write ACTION"),
    ):
        with pytest.raises(ConfigurationError, match=reason):
            parse_trigger(text)


@pytest.mark.anyio
async def test_pages_of_a_snapshot_are_the_sinks_for_as_long_as_it_holds_them() -> None:
    held: list[Page] = []

    async def keep(stream: PageStream) -> None:
        held.extend(await stream.next_batch(100))

    async with record(overrun="drop_oldest", page_size=PAGE, pages=4) as recording:
        number(0, "x")
        await recording.snapshot(keep)
        for n in range(1000):
            number(n, "overwritten")
        assert all(isinstance(page, PageCopy) for page in held)
        assert held == [] or b"x\0" in bytes(held[0].data)
