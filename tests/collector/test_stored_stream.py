"""aiotrace._collector.stored_stream: one stream's traces; rotation, failed fsyncs, where a killed collector resumes."""

from __future__ import annotations

import os
import random
from collections import Counter
from pathlib import Path

import pytest

from aiotrace._collector.folder import BudgetError, Folder
from aiotrace._collector.stored_stream import StoredStream, check_after_power_loss
from aiotrace._store import store as _store
from aiotrace._store.store import TraceStore
from aiotrace._store.unfinished import is_unfinished
from aiotrace.decode import open_trace
from support import fakes, stores
from support.stores import EIO, INFO, LEDGER


@pytest.fixture
def folder(tmp_path: Path) -> Folder:
    return Folder(str(tmp_path / "traces"))


def make_stream(folder: Folder, **options: float) -> StoredStream:
    stream = StoredStream(folder, INFO, **options)  # type: ignore[arg-type]
    stream.definitions = list(fakes.DEFINITIONS)
    return stream


def close_all(stream: StoredStream) -> None:
    while stream.closings:
        for _ in stream.closings.pop()():
            pass


def kill(stream: StoredStream) -> None:
    """What SIGKILL does to all that this process has open."""
    stream.release()
    for store in list(_store._stores):
        store.close()


def events(folder: Folder) -> Counter[tuple[int, int]]:
    found: Counter[tuple[int, int]] = Counter()
    for name in folder.traces_of(INFO.stream_id):
        with open_trace(name.path) as trace:
            found.update((event.cpu, event.fields["n"]) for event in trace if not event.is_loss)
            assert not trace.damage_count
    return found


def files(folder: Folder) -> list[str]:
    stem = os.path.basename(folder.first_path(INFO)).removesuffix(".dat")
    return sorted(name.removeprefix(stem) for name in os.listdir(folder.path) if name.startswith(stem))


def test_a_stream_that_ends_is_one_finished_trace(folder: Folder) -> None:
    pages = fakes.make_pages(40, 3)
    stream = make_stream(folder)
    stream.write(pages)
    assert stream.synced == {}
    stream.sync()
    assert stream.synced == stream.written != {}
    stream.end(LEDGER)
    assert stream.ended
    assert stream.synced == stream.written
    close_all(stream)
    assert files(folder) == [".dat"]
    assert events(folder) == stores.expected(pages)
    again = make_stream(folder)
    assert (again.ended, again.written, again.closings) == (True, stream.written, [])


def test_repeated_page_is_counted_and_skipped(folder: Folder) -> None:
    pages = fakes.make_pages(10, 2)
    stream = make_stream(folder)
    stream.write(pages)
    stream.write([*pages[6:], *fakes.make_pages(12, 2)[10:]])
    stream.end(LEDGER)
    close_all(stream)
    assert stream.duplicates == 4
    assert events(folder) == stores.expected(fakes.make_pages(12, 2))


def test_full_trace_is_closed_and_its_stream_continues_in_the_next(folder: Folder) -> None:
    pages = fakes.make_pages(50, 2)
    stream = make_stream(folder, max_size=15 * 4096)
    for start in range(0, 50, 7):
        stream.write(pages[start : start + 7])
    assert len(files(folder)) == 4 * 3, "of each the trace, a spool and the journal"
    stream.end(LEDGER)
    close_all(stream)
    assert files(folder) == [".2.dat", ".3.dat", ".4.dat", ".dat"]
    assert events(folder) == stores.expected(pages)


def test_a_page_larger_than_a_trace_may_be_has_one_for_itself(folder: Folder) -> None:
    stream = make_stream(folder, max_size=100)
    stream.write(fakes.make_pages(3))
    assert len(folder.traces_of(INFO.stream_id)) == 3


def test_a_trace_is_old_from_its_first_page_on(folder: Folder, monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr("aiotrace._collector.stored_stream.time.monotonic", lambda: now)
    stream = make_stream(folder, max_age=60)
    assert not stream.is_old()
    pages = fakes.make_pages(3)
    stream.write(pages[:1])
    now = 159.0
    stream.write(pages[1:2])
    assert not stream.is_old()
    now = 160.0
    assert stream.is_old()
    stream.write(pages[2:])
    assert not stream.is_old()
    assert len(folder.traces_of(INFO.stream_id)) == 2


def test_pages_that_do_not_fit_the_budget_are_refused_and_fit_later(tmp_path: Path) -> None:
    folder = Folder(str(tmp_path / "traces"), budget=1 << 20)
    ballast = tmp_path / "traces" / "ballast"
    ballast.write_bytes(bytes(1 << 20))
    stream = make_stream(folder)
    with pytest.raises(BudgetError):
        stream.write(fakes.make_pages(4))
    assert (stream.written, files(folder)) == ({}, [])
    ballast.unlink()
    stream.write(fakes.make_pages(4))
    assert stream.written == {0: (3, len(fakes.make_page().data))}


def test_after_a_failed_fsync_what_was_not_on_the_disk_does_not_count(
    folder: Folder, monkeypatch: pytest.MonkeyPatch
) -> None:
    pages = fakes.make_pages(30, 2)
    stream = make_stream(folder)
    stream.write(pages[:10])
    stream.sync()
    stream.write(pages[10:20])
    faulty = fakes.FaultyOs({"fdatasync": [EIO]})
    stores.replace_os(monkeypatch, faulty)
    with pytest.raises(OSError, match="injected"):
        stream.sync()
    assert stream.sync_failed
    faulty.faults["open"] = [EIO]
    with pytest.raises(OSError, match="injected"):
        stream.recover()  # the next trace cannot be made at once
    stream.write(pages[10:])  # sent again: never into the trace whose fsync failed
    assert stream.duplicates == 0
    stream.end(LEDGER)
    close_all(stream)
    assert events(folder) == stores.expected(pages)
    with open_trace(folder.first_path(INFO)) as trace:
        assert sum(not event.is_loss for event in trace) == 200


@pytest.mark.parametrize("seed", range(5))
def test_collector_killed_anywhere_resumes_where_it_was(folder: Folder, seed: int) -> None:
    """A kill between any two steps; the producer sends again what was not acknowledged, and the rest."""
    generator = random.Random(seed)
    pages = [part for page in fakes.make_pages(60, 3) for part in fakes.cut(page, 5, 5)]
    offered = 0
    half_done = []
    stream = make_stream(folder, max_size=8 * 4096)
    while offered < len(pages):
        count = generator.randrange(1, 9)
        stream.write(pages[max(0, offered - generator.randrange(20)) : offered + count])
        offered += count
        if generator.random() < 0.3:
            stream.sync()
        if generator.random() < 0.3:
            steps = iter(stream.closings.pop()()) if stream.closings else iter([])
            if generator.random() < 0.5:
                next(steps, None)
                half_done.append(steps)
            else:
                list(steps)
        if generator.random() < 0.3:
            kill(stream)
            written = stream.written
            for _ in range(2):
                stream = make_stream(folder, max_size=8 * 4096)
                assert stream.written == written
                kill(stream)
            stream.resume()
    stream.end(LEDGER)
    if generator.random() < 0.5:
        kill(stream)
        stream = make_stream(folder)
        assert stream.ended
    close_all(stream)
    assert not folder.unfinished()
    assert events(folder) == stores.expected(fakes.make_pages(60, 3))


def test_a_kill_between_two_files_of_a_rotation_leaves_both_to_be_used(folder: Folder) -> None:
    stream = make_stream(folder)
    stream.write(fakes.make_pages(8, 2))
    stream.rotate()
    kill(stream)
    again = make_stream(folder)
    assert again.written == stream.written
    assert len(again.closings) == 1
    close_all(again)
    assert not is_unfinished(folder.first_path(INFO))


@pytest.mark.parametrize("left", [[".journal"], ["", ".journal"]])
def test_a_trace_that_was_not_begun_is_not_taken_for_the_last_one(folder: Folder, left: list[str]) -> None:
    stream = make_stream(folder)
    stream.write(fakes.make_pages(8, 2))
    kill(stream)
    next_name = folder.next_path(INFO, folder.traces_of(INFO.stream_id)).path
    for end in left:
        Path(next_name + end).touch()
    again = make_stream(folder)
    assert again.written == stream.written
    again.write(fakes.make_pages(10, 2))
    assert len(folder.traces_of(INFO.stream_id)) == 1


def test_trace_with_a_lost_beginning_is_left_unchanged(folder: Folder) -> None:
    stream = make_stream(folder)
    stream.write(fakes.make_pages(8, 2))
    kill(stream)
    os.truncate(folder.first_path(INFO) + ".journal", 20)
    again = make_stream(folder)
    assert again.written == {}
    again.write(fakes.make_pages(8, 2))
    assert [name.number for name in folder.traces_of(INFO.stream_id)] == [1, 2]


def test_stream_resumes_in_a_new_trace_if_its_trace_was_finished(folder: Folder) -> None:
    pages = fakes.make_pages(20, 2)
    stream = make_stream(folder)
    stream.write(pages[:10])
    stream.leave()
    close_all(stream)
    again = make_stream(folder)
    assert (again.written, again.ended) == (stream.written, False)
    again.write(pages[6:])
    again.end(LEDGER)
    close_all(again)
    assert events(folder) == stores.expected(pages)
    assert len(folder.traces_of(INFO.stream_id)) == 2


def test_pages_lost_by_a_power_loss_do_not_count(folder: Folder, monkeypatch: pytest.MonkeyPatch) -> None:
    folder.trust_boot()
    stream = make_stream(folder)
    stream.write(fakes.make_pages(8))
    kill(stream)
    stores.flip(folder.first_path(INFO), 4096 * 6 + 40)
    folder.close()
    monkeypatch.setattr("aiotrace._collector.folder.boot_id", lambda: "another")
    folder = Folder(folder.path)
    assert folder.was_rebooted
    check_after_power_loss(folder)
    assert make_stream(folder).written == {0: (4, len(fakes.make_page().data))}
    folder.close()
    assert not Folder(folder.path).was_rebooted


def test_a_stream_that_ends_without_a_page_has_a_trace_with_its_ledger(folder: Folder) -> None:
    stream = make_stream(folder)
    stream.end(LEDGER)
    close_all(stream)
    with open_trace(folder.first_path(INFO)) as trace:
        assert not [event for event in trace if not event.is_loss]
        assert sum(loss.count for loss in trace.losses) == LEDGER.writers[0].lost_after


def test_sequences_continue_beyond_32_bits(folder: Folder) -> None:
    pages = [fakes.make_page(1, (1 << 32) - 3 + n, first=n * 1000) for n in range(6)]
    stream = make_stream(folder)
    stream.write(pages[:4])
    kill(stream)
    again = make_stream(folder)
    again.write(pages)
    assert again.duplicates == 4
    again.end(LEDGER)
    close_all(again)
    assert events(folder) == Counter((1, n * 1000 + k) for n in range(6) for k in range(20))


def test_released_stream_may_be_restored_by_another_process(folder: Folder) -> None:
    stream = make_stream(folder)
    stream.write(fakes.make_pages(4))
    stream.release()
    TraceStore.resume(folder.first_path(INFO)).close()
    stream.resume()
    with pytest.raises(BlockingIOError):
        TraceStore.resume(folder.first_path(INFO))
