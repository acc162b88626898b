"""aiotrace._store.batch_write: C and Python write the same, wherever a file fails, and nothing unexpected."""

from __future__ import annotations

import errno
import fcntl
import os
import struct
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aiotrace._base.backend import c_module
from aiotrace._base.crc32 import crc32
from aiotrace._formats.journal import PLACED_SIZE, PagePlacement
from aiotrace._formats.journal_runs import python_pack_placed
from aiotrace._page import layout as L
from aiotrace._page.entry import PageCopy, PageEntry
from aiotrace._store.batch_write import Lane, Outcome, python_write_whole, write_whole
from aiotrace._store.trace_files import RESERVE_FROM, RESERVED, reserve
from support import fakes

pytestmark = pytest.mark.pure_too

STREAM = fakes.make_info().stream_id
SIZE = 2 * L.BLOCK
FULL = SIZE - L.PAGE_HEADER_SIZE - L.LOST_COUNT_SIZE
"""Bytes of records on a page of two blocks that is full."""
WRITERS = (3, 7, 0)
U32 = st.integers(0, (1 << 32) - 1)
U64 = st.integers(0, (1 << 64) - 1)

both = pytest.mark.parametrize("write", [write_whole, python_write_whole], ids=["c", "python"])


@contextmanager
def memory_file(size: int | None = None) -> Iterator[int]:
    """A file; if a size is given, a write that goes over it falls short, and the next fails."""
    fd = os.memfd_create("test", os.MFD_ALLOW_SEALING)
    try:
        if size is not None:
            os.ftruncate(fd, size)
            fcntl.fcntl(fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_GROW)
        yield fd
    finally:
        os.close(fd)


def content(fd: int) -> bytes:
    return os.pread(fd, os.fstat(fd).st_size, 0)


def make_lanes(fds: list[int], place: int = SIZE) -> tuple[Lane, ...]:
    return tuple(
        Lane(writer, 10, fd, place * n, n > 0, 0) for n, (writer, fd) in enumerate(zip(WRITERS, fds, strict=True))
    )


def make_batch(*changes: dict[str, Any]) -> tuple[tuple[PageEntry, ...], tuple[memoryview, ...]]:
    """Whole pages of the writers by turns, each full, and with `data` of its own."""
    entries, data = [], []
    for number, change in enumerate(changes):
        fields = {"writer": WRITERS[number % 3], "committed": FULL - 4 * number, **change}
        data.append(memoryview(bytes([number % 251 + 1]) * fields["committed"]))
        fields.setdefault("lost_before", number % 2)
        entries.append(PageEntry(0, 10 + number, 0, True, 20, 0, number, 1000 + number, 0)._replace(**fields))
    return tuple(entries), tuple(data)


@both
def test_pages_are_written_to_writer_files_before_their_journal_frames(write: Any) -> None:
    entries, data = make_batch({}, {"complete": False}, {}, {}, {}, {"committed": 100}, {})
    with memory_file() as one, memory_file() as two, memory_file() as three, memory_file() as journal:
        outcome = write(entries, data, make_lanes([one, two, three]), SIZE, STREAM, 7, b"prefix", journal, 50)
        files, found = [content(one), content(two)[SIZE:], content(three)[2 * SIZE :]], content(journal)
    assert (outcome.error, outcome.journal_error) == (None, None)
    assert [tuple(end) for end in outcome.lanes] == [(6, 3, 3, 0), (4, 2, 2, 0), (5, 2, 2, 0)]
    placed = []
    for number, (entry, records) in enumerate(zip(entries, data, strict=True)):
        page = PageCopy(entry, records)
        whole = page.header() + bytes(records) + page.lost_count()
        lane, nth = number % 3, number // 3
        assert files[lane][nth * SIZE :][: len(whole)] == whole
        placed.append(PagePlacement(entry, lane > 0, (lane + nth) * SIZE, 0, 0, crc32(records)))
    assert list(map(len, files)) == [3 * SIZE, 2 * SIZE, SIZE + L.BLOCK]
    assert not any(files[2][SIZE + L.PAGE_HEADER_SIZE + 100 + L.LOST_COUNT_SIZE :])
    assert found == bytes(50) + b"prefix" + python_pack_placed(STREAM, 7, placed)
    assert [PagePlacement.of_body(entry, outcome.bodies, number) for number, entry in enumerate(entries)] == placed


@both
@pytest.mark.parametrize(
    ("number", "change"),
    [
        (4, {"writer": 9}),
        (4, {"sequence": 11}),
        (1, {"sequence": 9}),
        (4, {"offset": 4}),
        (4, {"lost_before": -1}),
        (4, {"committed": FULL + 4}),
        (1, {"committed": FULL - L.BLOCK}),
        (4, {"data": FULL - 20}),
    ],
    ids=str,
)
def test_batch_with_an_unexpected_page_is_not_written_at_all(write: Any, number: int, change: dict[str, Any]) -> None:
    def outcome_of(change: dict[str, Any]) -> Outcome | None:
        size = change.pop("data", None)
        entries, data = make_batch(*[change if number == n else {} for n in range(6)])
        data = tuple(records[:size] if number == n else records for n, records in enumerate(data))
        with memory_file() as one, memory_file() as two, memory_file() as three, memory_file() as journal:
            files = [one, two, three]
            outcome: Outcome | None = write(entries, data, make_lanes(files), SIZE, STREAM, 0, b"", journal, 0)
            assert (outcome is None) == (not any(os.fstat(fd).st_size for fd in (*files, journal)))
        return outcome

    assert outcome_of(dict(change)) is None
    assert outcome_of({}) is not None


@both
def test_invalid_page_is_not_written(write: Any) -> None:
    entries, data = make_batch({}, {})
    with memory_file() as fd:
        lanes = make_lanes([fd] * 3)
        for wrong in (
            ((entries[0], entries[1][:-1]), data, lanes),
            ((entries[0], entries[1]._replace(timestamp=1 << 64)), data, lanes),
            (entries, data[:1], lanes),
        ):
            with pytest.raises((TypeError, ValueError, OverflowError, struct.error, AttributeError)):
                write(*wrong, SIZE, STREAM, 0, b"", fd, 0)
        for wrong in ((entries, (data[0], "text"), lanes), (entries, data, (lanes[0], lanes[1][:-1], lanes[2]))):
            if write is not python_write_whole:
                with pytest.raises(TypeError):
                    write(*wrong, SIZE, STREAM, 0, b"", fd, 0)
        assert os.fstat(fd).st_size == 0
        assert write((), (), (), SIZE, STREAM, 0, b"prefix", fd, 0) == Outcome(b"", (), None, None)
        assert content(fd) == b"prefix"


@both
def test_a_batch_of_any_size_is_written_and_blocks_are_reserved_for_it(write: Any, tmp_path: Path) -> None:
    """More buffers than one pwritev takes, over more than one piece."""
    entries, data = make_batch(*[{"writer": 3, "committed": FULL - 4 * (n % 3)} for n in range(600)])
    path = tmp_path / "trace"
    with memory_file() as journal, open(path, "w+b") as file:
        lane = Lane(3, 0, file.fileno(), SIZE, False, 0)
        outcome = write(entries, data, (lane,), SIZE, STREAM, 0, b"", journal, 0)
        can_reserve = reserve(file.fileno(), 0, L.BLOCK)
    assert outcome.lanes == ((599, 600, 600, SIZE + RESERVED),)
    written = path.read_bytes()
    assert len(written) == 601 * SIZE > RESERVE_FROM
    for number, (entry, records) in enumerate(zip(entries, data, strict=True)):
        assert written[(1 + number) * SIZE :].startswith(PageCopy(entry, records).header() + bytes(records))
    if can_reserve and c_module is not None:
        assert path.stat().st_blocks * 512 >= SIZE + RESERVED


@both
def test_a_failed_write_keeps_no_view_of_a_page(write: Any) -> None:
    entries, data = make_batch({}, {})
    memory = bytearray(data[1])
    view = memoryview(memory)
    with memory_file(L.BLOCK) as one, memory_file() as two, memory_file() as journal:
        outcome = write(entries, (data[0], view), make_lanes([two, one, two]), SIZE, STREAM, 0, b"", journal, 0)
    assert outcome.error.errno == errno.EPERM
    view.release()
    memory.clear()  # a BufferError if there was one left


def run(write: Any, batch: Any, limits: list[int | None], *arguments: Any) -> Any:
    """The outcome, and what is in the files."""
    with ExitStack() as stack:
        *fds, journal = [stack.enter_context(memory_file(limit)) for limit in limits]
        outcome = write(*batch, make_lanes(fds), SIZE, STREAM, *arguments, journal, 20)
        files = [content(fd) for fd in (*fds, journal)]
    if outcome is None:
        return None, files
    errors = [error and (type(error), error.args) for error in outcome[2:]]
    return outcome[:2], errors, files


CHANGES = st.fixed_dictionaries(
    {},
    optional={
        "writer": st.sampled_from(WRITERS),
        "lost_before": st.sampled_from([0, 0, 0, 7, -1]),
        "committed": st.sampled_from([FULL, FULL - 4080, FULL - 4084, FULL - 4088, FULL - 4092, 0]),
        "sequence": st.integers(9, 20),
        "timestamp": U64,
        "complete": st.booleans(),
    },
)
LIMITS = st.lists(st.none() | st.none() | st.integers(0, 5 * SIZE), min_size=4, max_size=4)


@given(changes=st.lists(st.just({}) | CHANGES, max_size=7), limits=LIMITS, sequence=U32, prefix=st.binary(max_size=9))
def test_both_implementations_write_alike_wherever_a_file_fails(
    changes: list[dict[str, Any]], limits: list[int | None], sequence: int, prefix: bytes
) -> None:
    batch = make_batch(*changes)
    ours = run(write_whole, batch, limits, sequence, prefix)
    assert ours == run(python_write_whole, batch, limits, sequence, prefix)


def test_journal_frame_follows_only_a_completely_written_page() -> None:
    batch = make_batch(*[{"writer": 3}] * 5)
    for limit in (0, SIZE - 1, SIZE, 3 * SIZE + 5, 5 * SIZE):
        for write in (write_whole, python_write_whole):
            (_, lanes), (error, journal_error), files = run(write, batch, [limit, None, None, None], 0, b"")
            assert (lanes[0].whole, journal_error) == (limit // SIZE, None)
            assert (error is None) == (limit == 5 * SIZE)
            assert len(files[-1]) == (0 if error else 20 + 5 * PLACED_SIZE)
