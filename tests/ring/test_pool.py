"""The pool is a stack of free pages."""

from __future__ import annotations

import pytest

from aiotrace._page import layout as L
from aiotrace._ring.arena import Arena
from aiotrace._ring.pool import Pool

pytestmark = pytest.mark.pure_too


def go_home(pool: Pool, arena: Arena, page: int) -> None:
    arena.move(page, L.FILLING, L.FREE)
    pool.give_back(page)


def test_last_returned_page_is_taken_first() -> None:
    arena = Arena(4096, 8)
    pool = Pool(arena)
    for _ in range(100):
        pages = [pool.take(), pool.take()]
        for page in pages:
            assert page is not None
            go_home(pool, arena, page)
    assert pool.allocated == 2
    assert pool.recycled == 200


def test_an_empty_pool_gives_nothing_and_changes_nothing() -> None:
    arena = Arena(4096, 1)
    pool = Pool(arena)
    assert pool.take() == 0
    states = arena.states()
    assert pool.take() is None
    assert arena.states() == states == (0, 1, 0, 0)


def test_giving_back_a_page_that_is_not_free_is_an_error() -> None:
    arena = Arena(4096, 2)
    pool = Pool(arena)
    page = pool.take()
    assert page is not None
    with pytest.raises(AssertionError):
        pool.give_back(page)


def test_interrupted_pool_holds_each_free_page_exactly_once() -> None:
    arena = Arena(4096, 3)
    pool = Pool(arena)
    for page in range(3):
        pool.keep(page)
    assert len(pool) == 3
    pool.drop(1)
    pool.drop(1)
    assert [pool.take(), pool.take(), pool.take()] == [0, 2, None]
    arena.move(2, L.FILLING, L.FREE)
    pool.keep(2)
    assert pool.take() == 2
