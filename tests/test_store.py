"""aiotrace._store: traces that grow, are closed, are killed and restored."""

from __future__ import annotations

import errno
import os
import random
import signal
import stat
import subprocess
import sys
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

import fakes
import pytest

from aiotrace import TraceFormatError, _store
from aiotrace import _tracedat as trace_dat
from aiotrace._frames import MAGIC
from aiotrace._journal import PLACED_SIZE, JournalReader
from aiotrace._store import RestoreReport, TraceStore, UnfinishedTrace, is_unfinished, journal_path, remove, restore
from aiotrace.abc import Ledger, WriterLedger

INFO = fakes.make_info()
LEDGER = Ledger((WriterLedger(0, 1200, 1, 2, 3, 4),))
EIO = OSError(errno.EIO, "injected")
NO_SPACE = OSError(errno.ENOSPC, "injected")


@pytest.fixture
def path(tmp_path: Path) -> str:
    return str(tmp_path / "trace.dat")


def make_store(path: str, pages: Sequence[fakes.FakePage] = (), **options: bool) -> TraceStore:
    store = TraceStore(path, INFO, **options)  # type: ignore[arg-type]
    for start in range(0, len(pages), 7):
        store.write(pages[start : start + 7], fakes.DEFINITIONS)
    return store


def finish(store: TraceStore, ledger: Ledger | None = LEDGER) -> None:
    store.end(fakes.DEFINITIONS, ledger)
    for _ in store.finish():
        pass


def report(trace_cmd: str, path: str) -> list[str]:
    done = subprocess.run([trace_cmd, "report", path], capture_output=True, check=True, text=True)
    return [line for line in done.stdout.splitlines() if not line.startswith("cpus=") and "is empty" not in line]


def numbers(lines: Iterable[str]) -> Counter[tuple[int, int]]:
    """(CPU, n) of each event that trace-cmd printed."""
    found = (line.partition("[")[2].partition("]")[0::2] for line in lines if "count:" in line)
    return Counter((int(cpu), int(rest.partition("n=")[2].split()[0])) for cpu, rest in found)


def expected(pages: Iterable[fakes.FakePage]) -> Counter[tuple[int, int]]:
    return Counter((page.writer, page.sequence * 1000 + n) for page in pages for n in range(page.events_count))


def rest(path: str) -> list[str]:
    return sorted(name for name in os.listdir(os.path.dirname(path)) if name != os.path.basename(path))


def flip(path: str, offset: int) -> None:
    with open(path, "r+b") as file:
        file.seek(offset)
        byte = file.read(1)[0]
        file.seek(offset)
        file.write(bytes([byte ^ 1]))


# --- writing and closing ------------------------------------------------------------------------


@pytest.mark.parametrize("writers", [1, 4])
def test_a_closed_trace_is_one_file_that_trace_cmd_reads(trace_cmd: str, path: str, writers: int) -> None:
    pages = fakes.make_pages(50, writers)
    finish(make_store(path, pages))
    assert numbers(report(trace_cmd, path)) == expected(pages)
    assert rest(path) == []
    assert not is_unfinished(path)


def test_an_empty_trace_is_a_trace(trace_cmd: str, path: str) -> None:
    finish(make_store(path))
    assert report(trace_cmd, path) == []


def test_losses_are_told_where_they_were(trace_cmd: str, path: str) -> None:
    finish(make_store(path, [fakes.make_page(0, 0, 2), fakes.make_page(0, 1, 2, lost=41)]))
    assert [n for n, line in enumerate(report(trace_cmd, path)) if "[41 EVENTS DROPPED]" in line] == [2]


def test_the_files_are_private_and_the_empty_part_of_a_page_is_a_hole(path: str) -> None:
    info = fakes.make_info(page_size=1 << 20)
    store = TraceStore(path, info)
    store.write(fakes.make_pages(20, 2), fakes.DEFINITIONS)
    modes = {stat.S_IMODE(os.stat(os.path.join(os.path.dirname(path), name)).st_mode) for name in [path, *rest(path)]}
    assert (modes, len(rest(path))) == ({0o600}, 2)
    finish(store)
    status = os.stat(path)
    assert status.st_size > 20 << 20
    assert status.st_blocks * 512 < 1 << 20


def test_what_the_stream_says_of_itself_is_in_the_trace(path: str) -> None:
    pages = fakes.make_pages(6, 2)
    finish(make_store(path, pages))
    content = Path(path).read_bytes()
    start = content.index(MAGIC)
    reader = JournalReader()
    assert list(reader.feed(content[start:])) == []
    assert (reader.info, reader.definitions, reader.ledger) == (INFO, fakes.DEFINITIONS, LEDGER)


def test_definitions_that_no_page_needed_are_in_the_trace(trace_cmd: str, path: str) -> None:
    page = fakes.make_page()
    page.definitions_needed = 3
    finish(make_store(path, [page]))
    assert "worker_one-4200000" in report(trace_cmd, path)[0]


def test_an_end_that_could_not_be_written_is_written_again(
    trace_cmd: str, path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    page = fakes.make_page()
    page.definitions_needed = 3
    store = make_store(path, [page])
    monkeypatch.setattr(_store, "os", fakes.FaultyOs({"pwritev": [NO_SPACE]}))
    with pytest.raises(OSError, match="injected"):
        store.end(fakes.DEFINITIONS, LEDGER)
    store.end(fakes.DEFINITIONS, LEDGER)
    with UnfinishedTrace(path) as trace:
        assert (trace.definitions, trace.ledger) == (fakes.DEFINITIONS, LEDGER)


def test_a_failed_write_keeps_no_view_of_a_page(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    memory = bytearray(fakes.make_page().data)
    page = fakes.make_page()
    page.data = memoryview(memory)
    store = make_store(path)
    monkeypatch.setattr(_store, "os", fakes.FaultyOs({"pwritev": [100, NO_SPACE]}))
    with pytest.raises(OSError, match="injected") as caught:
        store.write([page], fakes.DEFINITIONS)
    page.data.release()
    memory.clear()  # a BufferError if the traceback held one
    assert caught.value.__traceback__ is not None


def test_nothing_of_a_page_that_does_not_count_is_in_the_trace(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The spooled page comes to lie where the failed one was, and is shorter."""
    store = make_store(path, [fakes.make_page(0, 0, 1), fakes.make_page(1, 0, 1)])
    secret = fakes.make_page(0, 1, 60, payload=lambda n: b"secret!!" * 3)
    monkeypatch.setattr(_store, "os", fakes.FaultyOs({"pwritev": [None, NO_SPACE]}))
    with pytest.raises(OSError, match="injected"):
        store.write([secret], fakes.DEFINITIONS)
    assert b"secret" in Path(path).read_bytes()
    finish(store)
    assert b"secret" not in Path(path).read_bytes()


def test_a_page_that_is_offered_again_is_stored_once(trace_cmd: str, path: str) -> None:
    pages = fakes.make_pages(10, 2)
    store = make_store(path, pages[:6])
    store.write(pages[2:], fakes.DEFINITIONS)
    assert store.pages_count == 10
    finish(store)
    assert numbers(report(trace_cmd, path)) == expected(pages)


def test_sequence_numbers_may_begin_anywhere_and_leave_gaps(trace_cmd: str, path: str) -> None:
    pages = [fakes.make_page(0, n, 3, start_ns=0) for n in (2**32 - 1, 2**32, 2**32 + 7)]
    finish(make_store(path, pages))
    assert numbers(report(trace_cmd, path)) == expected(pages)


def test_a_closed_store_can_be_opened_again(trace_cmd: str, path: str) -> None:
    pages = fakes.make_pages(20, 3)
    store = make_store(path, pages[:10])
    store.close()
    store.write(pages[10:], fakes.DEFINITIONS)
    store.close()
    finish(store)
    assert numbers(report(trace_cmd, path)) == expected(pages)


def test_a_store_whose_files_were_replaced_does_not_write_into_the_new_ones(path: str) -> None:
    store = make_store(path, fakes.make_pages(3))
    store.close()
    remove(path)
    other = TraceStore(path, fakes.make_info(stream_id=b"another stream!!"))
    other.write(fakes.make_pages(3), fakes.DEFINITIONS)
    other.close()
    with pytest.raises(FileNotFoundError, match="replaced"):
        store.write(fakes.make_pages(5), fakes.DEFINITIONS)
    with UnfinishedTrace(path) as trace:
        assert len(trace.pages) == 3


# --- what is there already ----------------------------------------------------------------------


def test_an_existing_file_is_left_alone(path: str) -> None:
    Path(path).write_text("mine")
    with pytest.raises(FileExistsError, match="overwrite=True"):
        make_store(path)
    assert (Path(path).read_text(), rest(path)) == ("mine", [])


def test_an_unfinished_trace_is_left_alone_and_the_error_says_how_to_restore_it(path: str) -> None:
    make_store(path, fakes.make_pages(3)).close()
    with pytest.raises(FileExistsError, match=f"aiotrace restore {path}"):
        make_store(path)
    assert restore(path).pages == 3


def test_a_spool_without_a_journal_is_in_the_way(path: str) -> None:
    Path(path + ".cpu3").write_text("whose?")
    with pytest.raises(FileExistsError, match=r"cpu3"):
        make_store(path)


def test_links_are_not_followed(path: str, tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    for name in (path, path + ".journal", path + ".cpu1"):
        os.symlink(victim, name)
        with pytest.raises(OSError, match=r"exists|links|unfinished|remove"):
            make_store(path, fakes.make_pages(4, 2))
        for left in rest(path):
            os.unlink(tmp_path / left)
        Path(path).unlink(missing_ok=True)
    store = make_store(path)
    os.symlink(victim, path + ".cpu1")
    with pytest.raises(OSError, match="symbolic links"):
        store.write(fakes.make_pages(4, 2), fakes.DEFINITIONS)
    assert not victim.exists()


@pytest.mark.parametrize("folder", ["missing/trace.dat", "file/trace.dat"])
def test_a_path_that_cannot_be_written_leaves_nothing_behind(tmp_path: Path, folder: str) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match=f"/{os.path.dirname(folder)}'"):
        make_store(str(tmp_path / folder))
    assert os.listdir(tmp_path) == ["file"]


def test_a_disk_that_is_full_from_the_start_leaves_nothing_behind(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in range(2):
        monkeypatch.setattr(_store, "os", fakes.FaultyOs({"pwritev": [None] * number + [NO_SPACE]}))
        with pytest.raises(OSError, match="injected"):
            make_store(path)
        assert os.listdir(os.path.dirname(path)) == []


def test_remove_deletes_a_trace_and_what_belongs_to_it_but_not_a_living_one(path: str) -> None:
    store = make_store(path, fakes.make_pages(8, 4))
    with pytest.raises(BlockingIOError, match="running program"):
        remove(path)
    store.close()
    Path(path + ".cpuX").write_text("not a spool")
    remove(path)
    assert os.listdir(os.path.dirname(path)) == ["trace.dat.cpuX"]
    remove(path)


# --- faults -------------------------------------------------------------------------------------


@pytest.mark.parametrize("call", range(12))
@pytest.mark.parametrize("fault", [NO_SPACE, 1, 17, 100], ids=str)
def test_a_batch_that_failed_can_be_written_again(
    trace_cmd: str, path: str, monkeypatch: pytest.MonkeyPatch, call: int, fault: OSError | int
) -> None:
    """The write fails, or falls short and then fails, at each of the calls that a batch makes."""
    pages = fakes.make_pages(10, 3)
    store = make_store(path, pages[:5])
    plan = [fault] if fault is NO_SPACE else [fault, NO_SPACE]
    faulty = fakes.FaultyOs({"pwritev": [None] * call + plan})
    monkeypatch.setattr(_store, "os", faulty)
    try:
        store.write(pages[5:], fakes.DEFINITIONS)
    except OSError:
        with UnfinishedTrace(path) as trace:
            known = [(placed.entry.writer, placed.entry.sequence) for placed in trace.pages if trace.read(placed)]
            assert known == [(page.writer, page.sequence) for page in pages[: len(known)]]
            assert len(known) == store.pages_count >= 5
            assert trace.damage == []
    store.write(pages[5:], fakes.DEFINITIONS)
    monkeypatch.undo()
    finish(store)
    assert numbers(report(trace_cmd, path)) == expected(pages)


def test_the_pages_before_one_that_cannot_be_written_are_in_the_trace(
    path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = make_store(path)
    monkeypatch.setattr(_store, "os", fakes.FaultyOs({"pwritev": [None] * 3 + [NO_SPACE]}))
    with pytest.raises(OSError, match="injected"):
        store.write(fakes.make_pages(9), fakes.DEFINITIONS)
    assert store.stored == {0: 2}
    assert restore_copy(store, path) == 3


def restore_copy(store: TraceStore, path: str) -> int:
    store.close()
    return restore(path).pages


def test_a_shorter_batch_after_a_torn_one_leaves_no_old_frame_behind_it(
    path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The beginning of the torn batch is whole frames: they must not come back behind the new ones."""
    store = make_store(path, [fakes.make_page(0, 0)])
    pages = fakes.make_pages(6)[1:]
    short = PLACED_SIZE * 4 + 20
    plan = [None] * 5 + [short, NO_SPACE]
    monkeypatch.setattr(_store, "os", fakes.FaultyOs({"pwritev": plan, "ftruncate": [EIO]}))
    with pytest.raises(OSError, match="injected"):
        store.write(pages, fakes.DEFINITIONS)
    store.write(pages[:1], fakes.DEFINITIONS)
    with UnfinishedTrace(path) as trace:
        assert [placed.entry.sequence for placed in trace.pages] == [0, 1]


def test_short_writes_and_errors_at_random_lose_and_double_nothing(
    trace_cmd: str, path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    pages = fakes.make_pages(120, 3)
    store = make_store(path)
    monkeypatch.setattr(_store, "os", fakes.FaultyOs(seed=5, rate=0.05, short=0.2))
    position = 0
    failures = 0
    while position < len(pages):
        try:
            store.write(pages[position : position + 5], fakes.DEFINITIONS)
            position += 5
        except OSError:
            failures += 1
    while True:
        try:
            finish(store)
            break
        except OSError:
            failures += 1
    assert failures > 5
    assert numbers(report(trace_cmd, path)) == expected(pages)


@pytest.mark.parametrize("name", ["pwritev", "copy_file_range", "ftruncate"])
def test_closing_that_fails_anywhere_can_be_begun_again(
    trace_cmd: str, path: str, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    pages = fakes.make_pages(6, 2)
    failures = 0
    for call in range(30):
        store = make_store(path, pages)
        faulty = fakes.FaultyOs({name: [None] * call + [NO_SPACE]})
        monkeypatch.setattr(_store, "os", faulty)
        try:
            finish(store)
        except OSError:
            failures += 1
            assert is_unfinished(path)
            if call % 2:
                store.close()
                restore(path)
            else:
                finish(store)
        monkeypatch.undo()
        assert numbers(report(trace_cmd, path)) == expected(pages)
        assert rest(path) == []
        remove(path)
        if faulty.calls.count(name) <= call:
            break
    assert failures >= 1


def test_closing_without_copy_file_range_copies_by_hand(
    trace_cmd: str, path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    pages = fakes.make_pages(6, 2)
    store = make_store(path, pages)
    plan: list[int | OSError | None] = [OSError(errno.EXDEV, "another file system")] * 3
    monkeypatch.setattr(_store, "os", fakes.FaultyOs({"copy_file_range": plan}))
    finish(store)
    assert plan == []
    assert numbers(report(trace_cmd, path)) == expected(pages)


def test_after_a_failed_fsync_the_pages_since_the_last_one_are_taken_out(
    trace_cmd: str, path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    pages = fakes.make_pages(10, 2)
    store = make_store(path, pages[:4], fsync=True)
    monkeypatch.setattr(_store, "os", fakes.FaultyOs({"fdatasync": [EIO]}))
    with pytest.raises(OSError, match="injected"):
        store.write(pages[4:], fakes.DEFINITIONS)
    assert store.sync_failed
    store.discard_unsynced()
    assert store.stored == {0: 1, 1: 1}
    finish(store)
    assert numbers(report(trace_cmd, path)) == expected(pages[:4])


def test_fsync_comes_before_a_page_counts_as_written(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    faulty = fakes.FaultyOs()
    monkeypatch.setattr(_store, "os", faulty)
    store = make_store(path, fsync=True)
    faulty.calls.clear()
    store.write(fakes.make_pages(2, 2), fakes.DEFINITIONS)
    assert faulty.calls == ["pwritev", "open", "pwritev", "pwritev", "fdatasync", "fdatasync", "fdatasync"]
    faulty.calls.clear()
    finish(store)
    assert faulty.calls[-7:] == ["fdatasync", "pwritev", "fdatasync", "unlink", "unlink", "open", "fsync"]


# --- reading while it grows ---------------------------------------------------------------------


def test_a_growing_trace_is_read_as_far_as_it_is(path: str) -> None:
    pages = fakes.make_pages(20, 3)
    store = make_store(path, pages[:4])
    with UnfinishedTrace(path) as trace:
        assert (trace.info, trace.ledger, trace.refresh()) == (INFO, None, 0)
        store.write(pages[4:], fakes.DEFINITIONS)
        assert trace.refresh() == 16
        for placed, page in zip(trace.pages, pages, strict=True):
            found = trace.read(placed)
            assert bytes(found.data) == bytes(page.data)
            assert (found.header(), found.lost_count()) == (page.header(), page.lost_count())
            assert (found.writer, found.sequence, found.timestamp) == (page.writer, page.sequence, page.timestamp)
            assert (found.offset, found.complete, found.definitions_needed) == (0, True, len(fakes.DEFINITIONS))
        store.end(fakes.DEFINITIONS, LEDGER)
        trace.refresh()
        assert (trace.ledger, trace.definitions, trace.definitions_missing) == (LEDGER, fakes.DEFINITIONS, 0)


def test_a_torn_end_that_was_read_and_then_cut_off_does_no_harm(path: str) -> None:
    pages = fakes.make_pages(4)
    store = make_store(path, pages[:2])
    with UnfinishedTrace(path) as trace:
        with open(journal_path(path), "ab") as file:
            file.write(MAGIC + bytes(30))
        assert trace.refresh() == 0
        store._torn = True
        store.write(pages[2:], fakes.DEFINITIONS)
        assert (trace.refresh(), trace.damage) == (2, [])


def test_a_changed_bit_is_found_when_the_page_is_read(path: str) -> None:
    make_store(path, fakes.make_pages(4, 2)).close()
    flip(path, 4096 + 16 + 5)
    flip(path + ".cpu1", 4096 + 16 + 5)
    with UnfinishedTrace(path) as trace:
        bad = []
        for placed in trace.pages:
            try:
                trace.read(placed)
            except TraceFormatError as error:
                bad.append((error.path, error.offset))
    assert bad == [(path, 4096), (path + ".cpu1", 4096)]


def test_a_finished_trace_has_no_journal_to_read(path: str) -> None:
    finish(make_store(path, fakes.make_pages(2)))
    with pytest.raises(FileNotFoundError):
        UnfinishedTrace(path)


# --- restoring ----------------------------------------------------------------------------------


def test_a_trace_that_nobody_closed_is_restored_whole(trace_cmd: str, path: str) -> None:
    pages = fakes.make_pages(30, 3)
    make_store(path, pages).close()
    assert is_unfinished(path)
    found = restore(path)
    assert (found.pages, found.events, found.damaged, found.journal_damage) == (30, 600, [], [])
    assert numbers(report(trace_cmd, path)) == expected(pages)
    assert rest(path) == []


def test_a_living_trace_is_not_restored(path: str) -> None:
    store = make_store(path, fakes.make_pages(3))
    with pytest.raises(BlockingIOError, match="running program"):
        restore(path)
    store.close()
    assert restore(path).pages == 3


def test_a_trace_without_a_journal_is_not_restored(path: str) -> None:
    finish(make_store(path))
    with pytest.raises(FileNotFoundError):
        restore(path)


def test_damaged_pages_are_counted_as_lost_in_their_place(trace_cmd: str, path: str) -> None:
    pages = fakes.make_pages(20, 2)
    pages[4] = fakes.make_page(0, 2, 20, lost=5)
    make_store(path, pages).close()
    flip(path, 4096 * 2 + 100)  # writer 0, its second page: a loss before the third, which has one of its own
    flip(path + ".cpu1", 4096 * 9 + 100)  # writer 1, its last
    found = restore(path)
    assert [(placed.entry.writer, placed.entry.sequence) for placed in found.damaged] == [(0, 1), (1, 9)]
    lines = report(trace_cmd, path)
    assert numbers(lines) == expected(page for n, page in enumerate(pages) if n not in (2, 19))
    assert [line for line in lines if "DROPPED" in line] == ["CPU:0 [25 EVENTS DROPPED]"]


def test_a_page_header_is_restored_from_the_journal(trace_cmd: str, path: str) -> None:
    pages = fakes.make_pages(6, 2)
    make_store(path, pages).close()
    for name, offset in ((path, 4096 + 3), (path, 8192 + 9), (path + ".cpu1", 9)):
        flip(name, offset)
    assert restore(path).damaged == []
    assert numbers(report(trace_cmd, path)) == expected(pages)


@pytest.mark.parametrize("hit", [1, 2])
def test_damage_to_the_journal_costs_the_page_that_it_told_of(trace_cmd: str, path: str, hit: int) -> None:
    pages = fakes.make_pages(8, 2)
    make_store(path, pages).close()
    size = os.path.getsize(journal_path(path))
    flip(journal_path(path), size - hit * PLACED_SIZE + 60)  # the seventh or eighth frame: of writer 0 or writer 1
    found = restore(path)
    assert (found.pages, len(found.journal_damage)) == (7, 1)
    assert numbers(report(trace_cmd, path)) == expected(page for n, page in enumerate(pages) if n != 8 - hit)


def test_a_page_lost_in_the_middle_of_the_journal_leaves_the_others_in_place(trace_cmd: str, path: str) -> None:
    pages = fakes.make_pages(9)
    store = make_store(path)
    for page in pages:
        store.write([page], fakes.DEFINITIONS)
    store.close()
    size = os.path.getsize(journal_path(path))
    flip(journal_path(path), size - 5 * PLACED_SIZE + 60)
    assert restore(path).pages == 8
    assert numbers(report(trace_cmd, path)) == expected(page for page in pages if page.sequence != 4)


def test_a_journal_that_tells_of_impossible_places_costs_no_memory(path: str) -> None:
    store = make_store(path, fakes.make_pages(2))
    empty = fakes.make_page(0, 7, 0)
    entry = _store.page_entry(empty)
    store._append(store._journal.placed(_store.Placed(entry, False, 1 << 62, 0)))
    store._append(store._journal.placed(_store.Placed(entry._replace(writer=1), False, 4096, 0)))
    store._append(store._journal.placed(_store.Placed(entry._replace(sequence=8), True, 0, 0)))
    store.close()
    found = restore(path)
    assert (found.pages, len(found.damaged)) == (2, 3)


@pytest.mark.parametrize("content", [b"", b"no journal", bytes(5000)])
def test_what_is_no_journal_is_refused_and_nothing_is_deleted(path: str, content: bytes) -> None:
    make_store(path, fakes.make_pages(2)).close()
    Path(journal_path(path)).write_bytes(content)
    with pytest.raises(TraceFormatError, match="nothing can be restored"):
        restore(path)
    assert os.path.exists(journal_path(path))


def test_a_kill_after_the_commit_point_only_leaves_litter(trace_cmd: str, path: str) -> None:
    pages = fakes.make_pages(6, 2)
    store = make_store(path, pages)
    for _ in _store._make(store._files, fsync=False, verify=False, report=RestoreReport()):
        pass
    os.unlink(path + ".cpu1")
    store.close()
    assert not is_unfinished(path)
    assert restore(path).was_complete
    assert rest(path) == []
    assert numbers(report(trace_cmd, path)) == expected(pages)


def test_the_commit_point_is_written_last(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    store = make_store(path, fakes.make_pages(6, 2))
    faulty = fakes.FaultyOs()
    monkeypatch.setattr(_store, "os", faulty)
    finish(store)
    writes = faulty.calls.count("pwritev")
    remove(path)
    monkeypatch.undo()
    store = make_store(path, fakes.make_pages(6, 2))
    monkeypatch.setattr(_store, "os", fakes.FaultyOs({"pwritev": [None] * (writes - 1) + [EIO]}))
    with pytest.raises(OSError, match="injected"):
        finish(store)
    header = Path(path).read_bytes()[: trace_dat.INITIAL_HEADER_SIZE]
    assert trace_dat.unpack_options_offset(header) == 0


# --- other processes ----------------------------------------------------------------------------


def test_a_forked_child_leaves_the_files_alone_and_the_lock_to_the_parent(path: str) -> None:
    pages = fakes.make_pages(9, 3)
    store = make_store(path, pages[:6])
    before = {name: Path(os.path.dirname(path), name).read_bytes() for name in os.listdir(os.path.dirname(path))}
    child = os.fork()
    if child == 0:
        try:
            store.write(pages[6:], fakes.DEFINITIONS)
            store.end(fakes.DEFINITIONS, LEDGER)
            list(store.finish())
            store.discard_unsynced()
            os._exit(0 if store._files.closed else 1)
        except BaseException:
            os._exit(2)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    after = {name: Path(os.path.dirname(path), name).read_bytes() for name in os.listdir(os.path.dirname(path))}
    assert before == after
    store.write(pages[6:], fakes.DEFINITIONS)
    finish(store)


KILLED = """
import sys, itertools
import fakes
from aiotrace._store import TraceStore
store = TraceStore(sys.argv[1], fakes.make_info())
for start in itertools.count(0, 6):
    store.write([fakes.make_page(n % 3, n // 3) for n in range(start, start + 6)], fakes.DEFINITIONS)
    print(start + 6, flush=True)
"""


def run_and_kill(path: str, lines: int, delay: float) -> int:
    """Run a program that writes pages until it is killed; returns how many it knew to be in the trace."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([os.path.dirname(__file__), *sys.path])}
    with subprocess.Popen(
        [sys.executable, "-c", KILLED, path], stdout=subprocess.PIPE, text=True, env=environment
    ) as program:
        assert program.stdout is not None
        known = 0
        for _ in range(lines):
            known = int(program.stdout.readline())
        try:
            program.wait(delay)
        except subprocess.TimeoutExpired:
            pass
        program.send_signal(signal.SIGKILL)
        for line in program.stdout:
            known = int(line) if line.endswith("\n") else known
    return known


def check_killed(trace_cmd: str, path: str, seed: int) -> None:
    generator = random.Random(seed)
    known = run_and_kill(path, generator.randrange(1, 20), generator.random() / 100)
    found = restore(path)
    assert found.damaged == [], seed
    assert known <= found.pages <= known + 6, seed
    pages = [fakes.make_page(n % 3, n // 3) for n in range(found.pages)]
    assert numbers(report(trace_cmd, path)) == expected(pages), seed


@pytest.mark.parametrize("seed", range(3))
def test_what_a_killed_program_knew_to_be_written_is_restored(trace_cmd: str, path: str, seed: int) -> None:
    check_killed(trace_cmd, path, seed)


@pytest.mark.long
@pytest.mark.parametrize("seed", range(3, 200))
def test_two_hundred_killed_programs_lose_nothing(trace_cmd: str, path: str, seed: int) -> None:
    check_killed(trace_cmd, path, seed)
