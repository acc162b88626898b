"""S1 and S2 on arenas: whatever the file holds, a reader ends soon, in bounded memory, and reads what is intact."""

from __future__ import annotations

import struct
import tracemalloc
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from aiotrace._arena.file import HEADER_SIZE
from aiotrace._arena.file_reader import ArenaReader
from aiotrace._arena.scan import DamagedPage
from aiotrace._base.errors import TraceFormatError
from aiotrace._page import layout as L
from aiotrace._page.entry import PageCopy
from support.arenas import PAGE, Filled, numbers

IN_FOLDER = settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
PAGES = 6


@pytest.fixture(scope="module")
def arena(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """Full pages and filling ones of two writers, with definitions."""
    path = tmp_path_factory.mktemp("arena") / "arena"
    filled = Filled(path, pages=PAGES, writers=2, size=8192)
    for number in range(150):
        filled.write(number % 2)
    filled.release()
    return path.read_bytes()


def read(path: Path, content: bytes) -> tuple[list[PageCopy], list[DamagedPage], int]:
    """Copies, damaged pages, and how many damages there are to the definitions; or TraceFormatError."""
    path.write_bytes(content)
    with ArenaReader(str(path)) as reader:
        assert not reader.is_alive
        found = list(reader.scan())
        assert reader.info.page_size == reader.page_size
        damage = len(reader.damage)
    copies = [each for each in found if isinstance(each, PageCopy)]
    return copies, [each for each in found if isinstance(each, DamagedPage)], damage


def test_an_arena_is_read_from_its_file(tmp_path: Path, arena: bytes) -> None:
    copies, bad, damage = read(tmp_path / "arena", arena)
    assert (bad, damage) == ([], 0)
    assert sorted(n for copy in copies for n in numbers(copy)) == sorted([*range(75), *range(75)])
    assert {copy.definitions_needed for copy in copies} == {2}


DESCRIPTORS, DEFINITIONS, RECORDS, END = 4096, 8192, 16384, 16384 + PAGES * PAGE
places = st.sampled_from(
    [*range(HEADER_SIZE), *range(L.ARENA_USED, L.ARENA_USED + 16), *range(DESCRIPTORS, DESCRIPTORS + PAGES * 128)]
) | st.one_of(st.integers(DEFINITIONS, DEFINITIONS + 1000), st.integers(RECORDS, END - 1))


def contents(copies: list[PageCopy]) -> set[tuple[int, int, bytes]]:
    return {(copy.writer, copy.sequence, bytes(copy.data)) for copy in copies}


@IN_FOLDER
@given(places, st.integers(0, 7))
def test_flipped_bit_is_an_error_or_loses_one_page_or_one_value(
    tmp_path: Path, arena: bytes, place: int, bit: int
) -> None:
    whole, _, _ = read(tmp_path / "arena", arena)
    content = bytearray(arena)
    content[place] ^= 1 << bit
    try:
        copies, bad, damage = read(tmp_path / "arena", bytes(content))
    except TraceFormatError:
        assert place < HEADER_SIZE
        return
    assert place >= HEADER_SIZE, "a damaged header is not read"
    assert len(bad) <= 1
    assert len(contents(whole) - contents(copies)) <= 1, "the other pages are as they were"
    if place >= RECORDS:
        assert len(copies) + len(bad) == len(whole)
    used = struct.unpack_from("<Q", arena, L.ARENA_USED)[0]
    assert bool(damage) == (DEFINITIONS <= place < DEFINITIONS + used or L.ARENA_USED <= place < L.ARENA_USED + 8)


@IN_FOLDER
@given(st.integers(0, 2**17))
def test_a_cut_file_is_an_error(tmp_path: Path, arena: bytes, length: int) -> None:
    with pytest.raises(TraceFormatError, match=r"it was cut|no arena begins here"):
        read(tmp_path / "arena", arena[: min(length, len(arena) - 1)])


@IN_FOLDER
@given(
    st.lists(
        st.tuples(
            st.integers(0, END // 8 - 1),
            st.sampled_from([0, 1, 2**31, 2**63, 2**64 - 1, PAGE, PAGE - 16]) | st.integers(0, 2**64 - 1),
        ),
        min_size=1,
        max_size=20,
    )
)
def test_words_that_lie_are_an_error_or_damage(tmp_path: Path, arena: bytes, words: list[tuple[int, int]]) -> None:
    content = bytearray(arena)
    for place, value in words:
        content[place * 8 : place * 8 + 8] = struct.pack("<Q", value)
    tracemalloc.start()
    try:
        copies, bad, _ = read(tmp_path / "arena", bytes(content))
    except TraceFormatError:
        return
    finally:
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < 4 << 20, "the counts of a walk, and a few pages"
    assert len(copies) + len(bad) <= PAGES
    assert sum(len(numbers(copy)) for copy in copies) <= 200


@IN_FOLDER
@given(st.binary(max_size=600))
def test_bytes_that_only_begin_as_an_arena_are_an_error(tmp_path: Path, content: bytes) -> None:
    with pytest.raises(TraceFormatError):
        read(tmp_path / "arena", L.ARENA_MAGIC + content)


def test_used_size_beyond_the_file_loses_no_definition(tmp_path: Path, arena: bytes) -> None:
    content = bytearray(arena)
    content[L.ARENA_USED : L.ARENA_USED + 8] = struct.pack("<Q", 2**64 - 1)
    copies, bad, damage = read(tmp_path / "arena", bytes(content))
    assert (bad, damage) == ([], 1)
    assert {copy.definitions_needed for copy in copies} == {2}


def test_header_describes_the_stream_when_definitions_are_lost(tmp_path: Path, arena: bytes) -> None:
    content = bytearray(arena)
    content[DEFINITIONS:RECORDS] = bytes(RECORDS - DEFINITIONS)
    (tmp_path / "arena").write_bytes(content)
    with ArenaReader(str(tmp_path / "arena")) as reader:
        assert len(list(reader.scan())) > 2
        assert reader.damage
        assert reader.definitions == []
        info = reader.info
    assert (info.stream_id, info.writers, info.pid) == (b"0123456789abcdef", 2, 4321)


def test_a_file_that_is_cut_while_it_is_read_is_an_error(tmp_path: Path, arena: bytes) -> None:
    path = tmp_path / "arena"
    path.write_bytes(arena)
    with ArenaReader(str(path)) as reader:
        looking = reader.scan()
        path.write_bytes(arena[: len(arena) // 2])
        with pytest.raises(OSError, match="it was cut"):
            list(looking)
