"""The ring: pages leave in the order in which they were sealed, and one that is looked at is not overrun."""

from __future__ import annotations

import pytest

from aiotrace._page import layout as L
from aiotrace._ring.arena import Arena
from aiotrace._ring.pool import Pool
from aiotrace._ring.ring import Ring

pytestmark = pytest.mark.pure_too


@pytest.fixture
def ring() -> Ring:
    """With pages 0, 1 and 2."""
    arena = Arena(4096, 4)
    pool, ring = Pool(arena), Ring(arena)
    for _ in range(3):
        page = pool.take()
        assert page is not None
        ring.seal(page)
    return ring


def test_pages_are_swapped_oldest_first(ring: Ring) -> None:
    assert [ring.swap(2), ring.swap(1), ring.swap(0)] == [[0, 1], [2], []]
    assert ring._arena.states() == (1, 0, 0, 3)
    assert not len(ring)


def test_overrun_takes_the_oldest_page_not_being_read(ring: Ring) -> None:
    ring._arena.set(0, L.HOLDERS, 1)
    assert ring.overrun() == 1
    assert list(ring) == [0, 2]
    assert ring._arena.get(1, L.STATE) == L.FILLING


def test_overrun_finds_no_page_when_all_are_being_read(ring: Ring) -> None:
    for page in ring:
        ring._arena.set(page, L.HOLDERS, 1)
    assert ring.overrun() is None
    assert len(ring) == 3


def test_page_not_being_filled_cannot_be_sealed(ring: Ring) -> None:
    with pytest.raises(AssertionError, match="page 3 is free, not filling"):
        ring.seal(3)


def test_interrupted_ring_holds_each_full_page_exactly_once(ring: Ring) -> None:
    for page in (2, 0, 1):
        ring.keep(page)
    assert list(ring) == [0, 1, 2], "in the order in which they were sealed"
    ring.drop(1)
    ring.drop(1)
    assert list(ring) == [0, 2]
    ring._arena.move(3, L.FREE, L.FILLING)
    ring._arena.move(3, L.FILLING, L.FULL)
    ring.keep(3)
    assert list(ring) == [0, 2, 3]


def test_closing_empties_the_ring_oldest_first_and_frees_its_pages(ring: Ring) -> None:
    assert ring.clear() == [0, 1, 2]
    assert len(ring) == 0
    assert ring._arena.states() == (4, 0, 0, 0)
