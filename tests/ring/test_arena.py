"""The arena: where pages and descriptors lie, and that nothing of one page is another's."""

from __future__ import annotations

import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aiotrace._page import layout as L
from aiotrace._ring.arena import Arena

pytestmark = pytest.mark.pure_too


@pytest.mark.parametrize(("page_size", "pages"), [(4096, 1), (4096, 33), (65536, 3), (1 << 20, 2)])
def test_pages_have_their_size_and_overlap_nothing(page_size: int, pages: int) -> None:
    arena = Arena(page_size, pages)
    assert (arena.page_size, arena.pages) == (page_size, pages)
    for index in range(pages):
        page = arena.page(index)
        assert len(page) == page_size
        page[:] = bytes([index + 1]) * page_size
    assert not any(arena.descriptors), "descriptors lie beside the pages"
    for word in range(len(arena.descriptors)):
        arena.descriptors[word] = 2**64 - 1
    for index in range(pages):
        assert bytes(arena.page(index)) == bytes([index + 1]) * page_size
    assert arena.close()


def test_new_arena_is_zero_with_every_page_free() -> None:
    arena = Arena(4096, 5)
    assert arena.states() == (5, 0, 0, 0)
    assert not any(arena.descriptors)
    assert not any(map(any, (arena.page(index) for index in range(5))))
    with pytest.raises(IndexError):
        arena.page(5)


@given(st.integers(0, 3), st.integers(0, L.DESCRIPTOR_WORDS - 1), st.lists(st.integers(0, 2**64 - 1), max_size=16))
def test_words_are_set_where_they_are_named_and_nowhere_else(page: int, field: int, values: list[int]) -> None:
    values = values[: L.DESCRIPTOR_WORDS - field]
    one, other = Arena(4096, 4), Arena(4096, 4)
    one.set_from(page, field, *values)
    for index, value in enumerate(values):
        other.set(page, field + index, value)
        assert one.get(page, field + index) == value
    assert list(one.descriptors) == list(other.descriptors)
    assert sum(map(bool, one.descriptors)) == sum(map(bool, values))


def test_states_are_counted_by_kind() -> None:
    arena = Arena(4096, 7)
    for page, path in enumerate([(), (), (), (L.FILLING,), (L.FILLING,), (L.FILLING, L.FULL)]):
        old = L.FREE
        for new in path:
            arena.move(page, old, new)
            old = new
    arena.set(0, L.EVENTS, 3)  # another word of a descriptor is no state
    for old, new in ((L.FREE, L.FILLING), (L.FILLING, L.FULL), (L.FULL, L.IN_FLIGHT)):
        arena.move(6, old, new)
    assert arena.states() == (3, 2, 1, 1)


def test_page_in_an_unexpected_state_is_not_moved() -> None:
    arena = Arena(4096, 2)
    with pytest.raises(AssertionError, match="page 1 is free, not filling"):
        arena.move(1, L.FILLING, L.FULL)
    assert arena.states() == (2, 0, 0, 0)


@pytest.mark.parametrize("view", ["page", "part of a page"])
def test_memory_still_being_read_stays(view: str) -> None:
    arena = Arena(4096, 2)
    kept = arena.page(1) if view == "page" else arena.page(1)[10:20]
    arena.page(1)[10:14] = b"stay"
    if view == "page":
        assert arena.close(), "the page's own view goes with the arena"
        with pytest.raises(ValueError, match="released"):
            kept[0]
    else:
        assert not arena.close()
        assert bytes(kept[:4]) == b"stay"


def test_forked_child_writes_to_its_own_copy() -> None:
    arena = Arena(4096, 1)
    arena.page(0)[:6] = b"parent"
    child = os.fork()
    if not child:
        arena.page(0)[:6] = b"child!"
        os._exit(0)
    os.waitpid(child, 0)
    assert bytes(arena.page(0)[:6]) == b"parent"
