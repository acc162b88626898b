"""Traces made of arenas: of dead programs and of living ones, whole, and nothing half-done left behind."""

from __future__ import annotations

import errno
import os
from collections.abc import Sequence
from pathlib import Path

import pytest

import aiotrace
from aiotrace._arena import restore
from aiotrace._arena.file_reader import ArenaReader
from aiotrace._arena.restore import find_arenas, restore_arena, save
from aiotrace._base.errors import TraceFormatError
from aiotrace._page import layout as L
from aiotrace._page.entry import PageCopy
from aiotrace.decode import open_trace
from support.arenas import Filled


def numbers_in(path: Path) -> list[tuple[int, int]]:
    """(writer, number) of the events of a trace, which says of no damage and no loss."""
    with open_trace(path) as trace:
        events = list(trace)
        assert trace.damage_count == 0
    assert not [event for event in events if event.is_loss]
    return [(event.cpu, event.fields["n"]) for event in events]


@pytest.fixture
def filled(tmp_path: Path) -> Filled:
    filled = Filled(tmp_path / "arena", pages=16, writers=2)
    for number in range(EVENTS_COUNT):
        filled.write(number % 2)
    return filled


EVENTS_COUNT = 200
EVENTS = [(number % 2, number // 2) for number in range(EVENTS_COUNT)]


def test_restored_trace_has_the_whole_arena_and_the_arena_is_removed(tmp_path: Path, filled: Filled) -> None:
    filled.release()
    done: list[int] = []
    report = restore_arena(str(tmp_path / "arena"), str(tmp_path / "trace.dat"), progress=done.append)
    assert (report.events, report.lost, report.damaged) == (EVENTS_COUNT, 0, [])
    assert numbers_in(tmp_path / "trace.dat") == EVENTS
    assert os.listdir(tmp_path) == ["trace.dat"]
    assert sum(done) > 10_000
    assert oct((tmp_path / "trace.dat").stat().st_mode)[-3:] == "600"


def test_arena_of_a_living_program_is_saved_but_not_restored(tmp_path: Path, filled: Filled) -> None:
    arena = tmp_path / "arena"
    before = arena.read_bytes()
    with pytest.raises(BlockingIOError, match=f"process 4321 records into it: `aiotrace snapshot {arena}`"):
        restore_arena(str(arena), str(tmp_path / "trace.dat"))
    for name in ("one.dat", "two.dat"):
        with ArenaReader(str(arena)) as reader:
            assert save(reader, str(tmp_path / name)).events == EVENTS_COUNT
        assert numbers_in(tmp_path / name) == EVENTS
    assert arena.read_bytes() == before
    filled.release()


def test_what_a_killed_program_was_refused_last_is_counted(tmp_path: Path) -> None:
    filled = Filled(tmp_path / "arena", pages=4, writers=3, overrun=False)
    for _ in range(100):
        filled.write(0)
        filled.write(1)
    refused = [writer.dropped_total for writer in filled.all]
    assert refused[0] > 0
    assert refused[1] > 0
    assert refused[2] == 0
    filled.release()

    report = restore_arena(str(tmp_path / "arena"), str(tmp_path / "trace.dat"))
    assert report.events == 200 - sum(refused)
    assert report.lost == sum(refused)
    with open_trace(tmp_path / "trace.dat") as trace:
        assert {writer.cpu: writer.lost for writer in trace.statistics().writers} == {0: refused[0], 1: refused[1]}
        assert [(event.cpu, event.fields["count"]) for event in trace if event.is_loss] == [
            (0, refused[0]),
            (1, refused[1]),
        ]


def test_damaged_page_loses_only_itself_and_the_arena_stays(tmp_path: Path, filled: Filled) -> None:
    second = next(page for page in filled.pages.ring if filled.arena.get(page, L.SEQUENCE) == 1)
    writer, events = filled.arena.get(second, L.WRITER), filled.arena.get(second, L.EVENTS)
    filled.arena.set(second, L.CHECK, 0)
    filled.release()
    report = restore_arena(str(tmp_path / "arena"), str(tmp_path / "trace.dat"))
    assert [(bad.page, bad.writer) for bad in report.damaged] == [(second, writer)]
    with open_trace(tmp_path / "trace.dat") as trace:
        found = list(trace)
    (loss,) = [event for event in found if event.is_loss]
    assert (loss.cpu, loss.fields["count"]) == (writer, events)
    assert len(found) - 1 == report.events == EVENTS_COUNT - events
    assert (tmp_path / "arena").exists()


@pytest.mark.parametrize("fails", ["write", "finish"])
def test_failed_restore_leaves_the_arena_and_no_partial_trace(
    tmp_path: Path, filled: Filled, monkeypatch: pytest.MonkeyPatch, fails: str
) -> None:
    def fail(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    filled.release()
    with monkeypatch.context() as patch:
        patch.setattr(restore.TraceStore, fails, fail)
        with pytest.raises(OSError, match="No space left"):
            restore_arena(str(tmp_path / "arena"), str(tmp_path / "trace.dat"))
    assert os.listdir(tmp_path) == ["arena"]
    assert restore_arena(str(tmp_path / "arena"), str(tmp_path / "trace.dat")).events == EVENTS_COUNT


def test_a_trace_that_is_there_is_left_alone(tmp_path: Path, filled: Filled) -> None:
    filled.release()
    (tmp_path / "trace.dat").write_text("mine")
    with pytest.raises(FileExistsError):
        restore_arena(str(tmp_path / "arena"), str(tmp_path / "trace.dat"))
    assert (tmp_path / "trace.dat").read_text() == "mine"
    assert (tmp_path / "arena").exists()


def test_file_that_is_not_an_arena_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "other").write_text("something else, long enough to hold a header" * 10)
    with pytest.raises(TraceFormatError, match="no arena begins here"):
        restore_arena(str(tmp_path / "other"), str(tmp_path / "trace.dat"))


def test_an_arena_is_written_in_batches(tmp_path: Path, filled: Filled, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes: list[int] = []
    real = restore.TraceStore.write

    def write(self: restore.TraceStore, pages: Sequence[PageCopy], definitions: Sequence[object]) -> None:
        sizes.append(sum(len(page.data) for page in pages))
        real(self, pages, definitions)  # type: ignore[arg-type]  # as it is called

    monkeypatch.setattr(restore, "BATCH_BYTES", 8192)
    monkeypatch.setattr(restore.TraceStore, "write", write)
    with ArenaReader(str(tmp_path / "arena")) as reader:
        save(reader, str(tmp_path / "trace.dat"))
    assert len(sizes) > 1
    assert all(size < 8192 + 4096 for size in sizes)
    assert numbers_in(tmp_path / "trace.dat") == EVENTS
    filled.release()


# --- recordings -----------------------------------------------------------------------------------

event = aiotrace.event("rescue:number", n="u64", what="symbol")


def test_arena_of_a_recording_holds_its_events_until_it_is_closed(tmp_path: Path) -> None:
    arena = tmp_path / "arena"
    with aiotrace.recording(arena=arena, overrun="drop_oldest") as recording:
        for number in range(1000):
            event(number, f"what {number % 3}")
        late = aiotrace.event("rescue:defined_later", text="str")
        late("x")
        with open_trace(arena) as trace:
            found = [(each.name, each.fields) for each in trace]
            assert trace.complete is False
            assert trace.statistics().events["rescue:number"].count == 1000
        assert find_arenas(os.getpid()) == [f"/proc/{os.getpid()}/root{arena}"]
        with pytest.raises(FileExistsError, match="a running process has its arena there"):
            aiotrace.recording(arena=arena)
        assert recording.statistics().events_written == 1001
    assert found[:1000] == [("rescue:number", {"n": n, "what": f"what {n % 3}"}) for n in range(1000)]
    assert found[1000] == ("rescue:defined_later", {"text": "x"})
    assert not arena.exists()
    assert find_arenas(os.getpid()) == []


def test_a_recording_that_is_never_entered_leaves_no_arena(tmp_path: Path) -> None:
    made = aiotrace.record(arena=str(tmp_path / "arena"))
    assert (tmp_path / "arena").exists()
    del made
    assert os.listdir(tmp_path) == []
