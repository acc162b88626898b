"""aiotrace._store.unfinished: traces are read while they grow, and when they were never closed."""

from __future__ import annotations

from pathlib import Path

import pytest

from aiotrace import TraceFormatError
from aiotrace._formats.frames import MAGIC
from aiotrace._store.trace_files import journal_path
from aiotrace._store.unfinished import UnfinishedTrace
from support import fakes
from support.stores import INFO, LEDGER, finish, flip, make_store


@pytest.fixture
def path(tmp_path: Path) -> str:
    return str(tmp_path / "trace.dat")


def test_growing_trace_is_read_up_to_its_current_end(path: str) -> None:
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


def test_parts_of_a_page_are_read_on_arrival_and_each_can_be_checked(path: str) -> None:
    parts = fakes.cut(fakes.make_page(0, 3, 20, lost=4), 5, 5, 5)
    store = make_store(path)
    with UnfinishedTrace(path) as trace:
        for number, part in enumerate(parts):
            store.write([part], fakes.DEFINITIONS)
            assert trace.refresh() == 1
            found = trace.read(trace.pages[number])
            assert (bytes(found.data), found.header(), found.offset) == (part.data, part.header(), part.offset)
        flip(path, 4096 + 16 + parts[1].offset + 5)
        with pytest.raises(TraceFormatError, match="not what was written"):
            trace.read(trace.pages[1])
        assert trace.read(trace.pages[2]).events_count == 5


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
