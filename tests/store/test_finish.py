"""aiotrace._store.finish: traces are closed, and unclosed ones are restored."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from aiotrace import TraceFormatError, open_trace
from aiotrace._formats import tracedat as trace_dat
from aiotrace._formats.frames import MAGIC
from aiotrace._formats.journal import PLACED_SIZE, JournalReader, PagePlacement
from aiotrace._page.entry import page_entry
from aiotrace._store.finish import make_trace
from aiotrace._store.restore import RestoreReport, restore
from aiotrace._store.trace_files import journal_path, remove
from aiotrace._store.unfinished import is_unfinished
from support import fakes, stores
from support.stores import EIO, INFO, LEDGER, NO_SPACE, expected, finish, flip, make_store, numbers, report, rest


@pytest.fixture
def path(tmp_path: Path) -> str:
    return str(tmp_path / "trace.dat")


def test_an_empty_trace_is_a_trace(trace_cmd: str, path: str) -> None:
    finish(make_store(path))
    assert report(trace_cmd, path) == []


def test_trace_has_the_description_of_its_stream(path: str) -> None:
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


def test_page_that_does_not_count_is_not_in_the_trace(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The spooled page comes to lie where the failed one was, and is shorter."""
    store = make_store(path, [fakes.make_page(0, 0, 1), fakes.make_page(1, 0, 1)])
    secret = fakes.make_page(0, 1, 60, payload=lambda n: b"secret!!" * 3)
    stores.replace_os(monkeypatch, fakes.FaultyOs({"pwritev": [None, NO_SPACE]}))
    with pytest.raises(OSError, match="injected"):
        store.write([secret], fakes.DEFINITIONS)
    assert b"secret" in Path(path).read_bytes()
    finish(store)
    assert b"secret" not in Path(path).read_bytes()


@pytest.mark.parametrize("name", ["pwritev", "copy_file_range", "ftruncate"])
def test_closing_that_fails_anywhere_can_be_begun_again(
    trace_cmd: str, path: str, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    pages = fakes.make_pages(6, 2)
    failures = 0
    for call in range(30):
        store = make_store(path, pages)
        faulty = fakes.FaultyOs({name: [None] * call + [NO_SPACE]})
        stores.replace_os(monkeypatch, faulty)
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
    plan: list[int | OSError | None] = [OSError(errno.EXDEV, "another file system")]
    stores.replace_os(monkeypatch, fakes.FaultyOs({"copy_file_range": plan}))
    finish(store)
    assert plan == []
    assert numbers(report(trace_cmd, path)) == expected(pages)


def test_unclosed_trace_is_restored_completely(trace_cmd: str, path: str) -> None:
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
    with open_trace(path) as trace:
        assert trace.statistics().lost == 25 + 20


@pytest.mark.parametrize("writer", [0, 1])
@pytest.mark.parametrize(("hit", "kept"), [(0, 0), (1, 5), (2, 10), (3, 15)])
def test_a_damaged_part_costs_its_page_from_there_on(
    trace_cmd: str, path: str, writer: int, hit: int, kept: int
) -> None:
    page = fakes.make_page(writer, 1, 20, lost=3)
    parts = fakes.cut(page, 5, 5, 5)
    others = [fakes.make_page(0, 0), fakes.make_page(1, 0), fakes.make_page(writer, 2)]
    make_store(path, [*others[:2], *parts, others[2]]).close()
    flip(path + ".cpu1" if writer else path, 4096 * (2 - writer) + 16 + parts[hit].offset + 9)
    found = restore(path)
    assert [placed.entry.offset for placed in found.damaged] == [part.offset for part in parts[hit:]]
    assert (found.pages, found.events) == (4 if hit else 3, 60 + kept)
    lines = report(trace_cmd, path)
    intact = numbers([]) + expected(others)
    intact.update((writer, 1000 + n) for n in range(kept))
    assert numbers(lines) == intact
    told = [f"CPU:{writer} [{lost} EVENTS DROPPED]" for lost in ([3, 20 - kept] if hit else [23])]
    assert [line for line in lines if "DROPPED" in line] == told
    with open_trace(path) as trace:
        assert trace.statistics().lost == 23 - kept


@pytest.mark.parametrize("hit", range(4))
def test_the_frame_of_a_part_that_is_lost_costs_its_page_from_there_on(trace_cmd: str, path: str, hit: int) -> None:
    """The number of events of the part itself is unknown."""
    pages = [fakes.make_page(0, number) for number in range(3)]
    make_store(path, [pages[0], *fakes.cut(pages[1], 5, 5, 5), pages[2]]).close()
    size = os.path.getsize(journal_path(path))
    flip(journal_path(path), size - (5 - hit) * PLACED_SIZE + 60)
    found = restore(path)
    assert [placed.entry.offset // 140 for placed in found.damaged] == list(range(hit + 1, 4))
    lines = report(trace_cmd, path)
    intact = expected([pages[0], pages[2]])
    intact.update((0, 1000 + n) for n in range(5 * hit))
    assert numbers(lines) == intact
    assert ["DROPPED" in line for line in lines].count(True) == (hit < 3)


def test_a_page_header_is_restored_from_the_journal(trace_cmd: str, path: str) -> None:
    pages = fakes.make_pages(6, 2)
    make_store(path, pages).close()
    for name, offset in ((path, 4096 + 3), (path, 8192 + 9), (path + ".cpu1", 9)):
        flip(name, offset)
    assert restore(path).damaged == []
    assert numbers(report(trace_cmd, path)) == expected(pages)


@pytest.mark.parametrize("hit", [1, 2])
def test_damaged_journal_frame_loses_only_its_page(trace_cmd: str, path: str, hit: int) -> None:
    pages = fakes.make_pages(8, 2)
    make_store(path, pages).close()
    size = os.path.getsize(journal_path(path))
    flip(journal_path(path), size - hit * PLACED_SIZE + 60)  # the seventh or eighth frame: of writer 0 or writer 1
    found = restore(path)
    assert (found.pages, len(found.journal_damage)) == (7, 1)
    assert numbers(report(trace_cmd, path)) == expected(page for n, page in enumerate(pages) if n != 8 - hit)


def test_page_lost_in_the_middle_of_the_journal_leaves_other_pages(trace_cmd: str, path: str) -> None:
    pages = fakes.make_pages(9)
    store = make_store(path)
    for page in pages:
        store.write([page], fakes.DEFINITIONS)
    store.close()
    size = os.path.getsize(journal_path(path))
    flip(journal_path(path), size - 5 * PLACED_SIZE + 60)
    assert restore(path).pages == 8
    assert numbers(report(trace_cmd, path)) == expected(page for page in pages if page.sequence != 4)


def test_journal_with_impossible_offsets_takes_no_memory(path: str) -> None:
    store = make_store(path, fakes.make_pages(2))
    empty = fakes.make_page(0, 7, 0)
    entry = page_entry(empty)
    store._append(store._journal.placed([PagePlacement.of(entry, False, 1 << 62, b"")]))
    store._append(store._journal.placed([PagePlacement.of(entry._replace(writer=1), False, 4096, b"")]))
    store._append(store._journal.placed([PagePlacement.of(entry._replace(sequence=8), True, 0, b"")]))
    store.close()
    found = restore(path)
    assert (found.pages, len(found.damaged)) == (2, 3)


@pytest.mark.parametrize("content", [b"", b"no journal", bytes(5000)])
def test_file_that_is_not_a_journal_is_refused_and_kept(path: str, content: bytes) -> None:
    make_store(path, fakes.make_pages(2)).close()
    Path(journal_path(path)).write_bytes(content)
    with pytest.raises(TraceFormatError, match="nothing can be restored"):
        restore(path)
    assert os.path.exists(journal_path(path))


def test_a_kill_after_the_commit_point_only_leaves_litter(trace_cmd: str, path: str) -> None:
    pages = fakes.make_pages(6, 2)
    store = make_store(path, pages)
    for _ in make_trace(store._files, fsync=False, verify=False, report=RestoreReport()):
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
    stores.replace_os(monkeypatch, faulty)
    finish(store)
    writes = faulty.calls.count("pwritev")
    remove(path)
    monkeypatch.undo()
    store = make_store(path, fakes.make_pages(6, 2))
    stores.replace_os(monkeypatch, fakes.FaultyOs({"pwritev": [None] * (writes - 1) + [EIO]}))
    with pytest.raises(OSError, match="injected"):
        finish(store)
    header = Path(path).read_bytes()[: trace_dat.INITIAL_HEADER_SIZE]
    assert trace_dat.unpack_options_offset(header) == 0
