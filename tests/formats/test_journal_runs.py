"""aiotrace._formats.journal_runs: both implementations pack and take the same, and take only what they expect."""

from __future__ import annotations

import struct
from array import array
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aiotrace._formats import tracedat as T
from aiotrace._formats.frames import HEADER_SIZE
from aiotrace._formats.journal import PLACED_SIZE, JournalReader, JournalWriter, PagePlacement
from aiotrace._formats.journal_runs import (
    Expected,
    Run,
    pack_placed,
    pack_whole,
    python_pack_placed,
    python_pack_whole,
    python_take_whole,
    take_whole,
)
from aiotrace._page.entry import page_entry
from support import fakes

pytestmark = pytest.mark.pure_too

INFO = fakes.make_info()
STREAM = INFO.stream_id
SIZE = INFO.page_size

U32 = st.integers(0, (1 << 32) - 1)
U64 = st.integers(0, (1 << 64) - 1)
ENTRIES = st.builds(
    lambda *fields: page_entry(fakes.make_page())._replace(
        **dict(
            zip(
                (
                    "writer", "sequence", "offset", "complete", "events_count",
                    "lost_before", "definitions_needed", "timestamp", "committed",
                ),
                fields,
                strict=True,
            )
        )
    ),
    U32, U64, U32, st.booleans(), U32, st.integers(-(1 << 63), (1 << 63) - 1), U32, U64, U32,
)  # fmt: skip
PLACED = st.builds(PagePlacement, ENTRIES, st.booleans(), U64, U32, U32, U32)


@given(sequence=st.integers(0, (1 << 64) - 9), placed=st.lists(PLACED, max_size=8))
def test_both_implementations_pack_alike(sequence: int, placed: list[PagePlacement]) -> None:
    assert pack_placed(STREAM, sequence, placed) == python_pack_placed(STREAM, sequence, placed)


@pytest.mark.parametrize(
    "change",
    [{"place": 1 << 64}, {"place": -1}, {"start": 1 << 32}, {"crc": -1}, {"crc": "crc"}, {"crc_before": None}],
    ids=str,
)
@pytest.mark.parametrize("pack", [pack_placed, python_pack_placed])
def test_a_number_that_does_not_fit_is_an_error(pack: Any, change: dict[str, Any]) -> None:
    with pytest.raises((OverflowError, TypeError, struct.error)):
        pack(STREAM, 0, [make_placed(0)._replace(**change)])


def make_placed(number: int, writer: int = 0, **changes: Any) -> PagePlacement:
    page = fakes.make_page(writer, number, 100, lost=changes.pop("lost", 0))
    place = SIZE * (number if writer else number + 1)
    placed = PagePlacement(page_entry(page), writer > 0, place, 0, 0, 0x1234567 * (number + 1))
    return placed._replace(
        **{name: value for name, value in changes.items() if name in PagePlacement._fields},
        entry=placed.entry._replace(
            **{name: value for name, value in changes.items() if name not in PagePlacement._fields}
        ),
    )


@given(placed=st.lists(PLACED, max_size=8), sequence=st.integers(0, (1 << 64) - 9))
def test_frames_are_packed_from_their_bodies_as_from_what_they_say(placed: list[PagePlacement], sequence: int) -> None:
    whole = python_pack_placed(STREAM, sequence, placed)
    bodies = b"".join(whole[at + HEADER_SIZE : at + PLACED_SIZE] for at in range(0, len(whole), PLACED_SIZE))
    assert pack_whole(STREAM, sequence, bodies) == python_pack_whole(STREAM, sequence, bodies) == whole


def make_expected(*places: int) -> Expected:
    return array("Q", places)


FIRST = make_expected(SIZE, 1, 0, 0)
"""Writer 0 is in place, writer 1 in its spool, of the others nothing is expected."""

taking = pytest.mark.parametrize("take", [take_whole, python_take_whole])


@taking
def test_pages_side_by_side_become_the_rows_of_the_trace(take: Any) -> None:
    placed = [make_placed(n // 2, n % 2, lost=n // 6) for n in range(9)]
    expected = FIRST[:]
    size, following, runs = take(bytearray(pack_placed(STREAM, 7, placed)), STREAM, SIZE, expected)
    assert (size, following, list(expected)) == (9 * PLACED_SIZE, 16, [SIZE * 6, SIZE * 4 + 1, 0, 0])
    assert [run.writer for run in runs] == [0, 1]
    for run in runs:
        mine = [each for each in placed if each.entry.writer == run.writer]
        entries = [each.entry for each in mine]
        assert (run.place, run.pages) == (mine[0].place, len(mine))
        assert (run.events, run.committed) == (100 * len(mine), sum(entry.committed for entry in entries))
        assert (run.lost, run.end) == (sum(entry.lost_before for entry in entries), mine[-1].end)
        assert run.timestamp == entries[-1].timestamp
        assert [row[:3] for row in T.unpack_page_rows(run.rows)] == [(e.sequence, e.writer, 100) for e in entries]
    page = fakes.make_page(0, 4, 100, lost=1)
    crc = T.page_crc(placed[-1].crc, page.header(), page.lost_count())
    assert list(T.unpack_page_rows(runs[0].rows))[-1] == T.PageRow(4, 0, 100, crc, 0)


UNEXPECTED: list[dict[str, Any]] = [
    {"complete": False},
    {"start": 8},
    {"place": SIZE * 3},
    {"place": SIZE * 2 + 1, "spooled": False},
    {"place": SIZE * 2 - 1, "spooled": True},
    {"spooled": True},
    {"writer": 2},
    {"writer": 4},
    {"lost_before": -1},
    {"committed": SIZE - 15},
    {"offset": (1 << 20) - 2000},
]


SOME = [change for change in UNEXPECTED if "writer" not in change]


@taking
@pytest.mark.parametrize("change", UNEXPECTED, ids=str)
def test_taking_stops_at_what_is_not_as_expected(take: Any, change: dict[str, Any]) -> None:
    expected = FIRST[:]
    packed = pack_placed(STREAM, 0, [make_placed(0), make_placed(1, **change), make_placed(2)])
    size, following, runs = take(packed, STREAM, SIZE, expected)
    assert (size, following, [run.pages for run in runs]) == (PLACED_SIZE, 1, [1])
    assert expected[0] == 2 * SIZE


@taking
def test_a_page_of_a_spool_with_a_hole_is_not_taken(take: Any) -> None:
    size = 4 * SIZE
    for committed, taken in ((size - 16 - 4096, 0), (size - 16 - 4095, 1)):
        page = make_placed(0, 1, committed=committed)
        assert take(pack_placed(STREAM, 0, [page]), STREAM, size, FIRST[:])[0] == taken * PLACED_SIZE
        page = make_placed(0, 0, committed=committed, place=size)
        assert take(pack_placed(STREAM, 0, [page]), STREAM, size, make_expected(size))[0] == PLACED_SIZE


@taking
def test_taking_stops_at_every_flipped_bit(take: Any) -> None:
    whole = pack_placed(STREAM, 0, [make_placed(0), make_placed(1)])
    for bit in range(8 * PLACED_SIZE, 16 * PLACED_SIZE):
        flipped = bytearray(whole)
        flipped[bit // 8] ^= 1 << bit % 8
        assert take(flipped, STREAM, SIZE, FIRST[:])[0] == PLACED_SIZE


@taking
def test_incomplete_frame_or_one_of_another_stream_is_not_taken(take: Any) -> None:
    packed = pack_placed(STREAM, 0, [make_placed(0)])
    nothing = (0, 0, [])
    assert take(b"", STREAM, SIZE, FIRST[:]) == nothing
    assert take(packed[:-1], STREAM, SIZE, FIRST[:]) == nothing
    assert take(packed, b"another stream!!", SIZE, FIRST[:]) == nothing
    assert take(packed, STREAM, SIZE, make_expected()) == nothing


@given(data=st.data())
def test_both_implementations_accept_alike(data: st.DataObject) -> None:
    placed, numbers = [], [0, 0, 0]
    for _ in range(data.draw(st.integers(0, 12))):
        writer = data.draw(st.sampled_from([0, 0, 1, 1, 2]))
        change = data.draw(st.sampled_from([{}] * 20 + SOME))
        placed.append(make_placed(numbers[writer], writer, lost=data.draw(st.sampled_from([0, 0, 5])), **change))
        numbers[writer] += 1
    packed = pack_placed(STREAM, data.draw(st.integers(0, 1 << 40)), placed)
    packed += data.draw(st.sampled_from([b"", packed[:50], JournalWriter(INFO).hello()]))
    in_c, in_python = FIRST[:], FIRST[:]
    assert take_whole(packed, STREAM, SIZE, in_c) == python_take_whole(packed, STREAM, SIZE, in_python)
    assert in_c == in_python


def test_journal_returns_complete_pages_together_and_others_alone() -> None:
    writer = JournalWriter(INFO)
    data = writer.hello() + writer.placed([make_placed(n) for n in range(4)])
    data += writer.definitions(fakes.DEFINITIONS, 2) + writer.placed([make_placed(4), make_placed(5, complete=False)])
    for step in (len(data), 1000, 1):
        reader, expected, found = JournalReader(), make_expected(), list[PagePlacement | Run]()
        for at in range(0, len(data), step):
            for item in reader.feed_runs(data[at : at + step], expected):
                found.append(item)
                if not expected:
                    expected.extend([2 * SIZE, 0, 0, 0])
        pages = [item.pages if isinstance(item, Run) else item.entry.sequence for item in found]
        assert (pages[0], pages[-1]) == (0, 5)
        assert sum(pages[1:-1]) == 4
        assert (reader.frames_count, len(reader.definitions), reader.damage) == (8, 2, [])
        assert (reader.end, reader.fed) == (len(data), len(data))
