"""Scanning an arena: committed bytes are copied once and in order, whatever the writers do at the same time."""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aiotrace._arena.scan import ArenaScan, DamagedPage, PageCandidate
from aiotrace._page import layout as L
from aiotrace._page.entry import PageCopy
from aiotrace._ring.arena import Arena
from support.arenas import PAGE, Filled, numbers


def scan_all(scan: ArenaScan) -> list[PageCopy]:
    found = [each if isinstance(each, DamagedPage) else scan.copy(each) for each in scan.plan()]
    assert not [each for each in found if isinstance(each, DamagedPage)]
    return [each for each in found if isinstance(each, PageCopy)]


class Watch:
    """Takes looks and holds them to the laws: each event once, in order, and gaps are reported."""

    def __init__(self) -> None:
        self.following: dict[int, int] = {}
        self.events = 0

    def take(self, copies: list[PageCopy]) -> None:
        for copy in copies:
            found = numbers(copy)
            first = self.following.get(copy.writer)
            if first is None:
                first = found[0] - copy.lost_before
            assert found == list(range(first + copy.lost_before, first + copy.lost_before + len(found)))
            self.following[copy.writer] = found[-1] + 1
            self.events += len(found)


def test_one_scan_returns_full_pages_and_those_being_filled() -> None:
    filled = Filled(writers=2)
    for n in range(100):
        filled.write(n % 2)
    copies = scan_all(ArenaScan(filled.arena, 2))
    assert {copy.complete for copy in copies} == {True, False}
    for writer in (0, 1):
        found = [n for copy in copies if copy.writer == writer for n in numbers(copy)]
        assert found == list(range(50))
    assert not sum(copy.lost_before for copy in copies)
    assert all(copy.definitions_needed == len(filled.definitions) for copy in copies if copy.complete)


def test_only_events_overwritten_after_the_first_scan_count_as_lost() -> None:
    filled = Filled(pages=4)
    for _ in range(1000):
        filled.write()
    scan = ArenaScan(filled.arena, 1)
    first = scan_all(scan)
    assert numbers(first[0])[0] > 0
    assert [copy.timestamp for copy in first] == sorted(copy.timestamp for copy in first)
    assert not sum(copy.lost_before for copy in first)
    for _ in range(1000):
        filled.write()
    second = scan_all(scan)
    assert sum(copy.lost_before for copy in second) == numbers(second[0])[0] - numbers(first[-1])[-1] - 1 > 0


def test_events_refused_before_the_first_page_are_a_loss() -> None:
    filled = Filled(pages=1, overrun=False)
    page = filled.pages.pool.take()
    assert page is not None
    for _ in range(3):
        filled.write()
    filled.arena.move(page, L.FILLING, L.FREE)
    filled.pages.pool.give_back(page)
    filled.write()
    (copy,) = scan_all(ArenaScan(filled.arena, 1))
    assert (copy.lost_before, numbers(copy)) == (3, [3])


def test_next_scan_continues_in_the_middle_of_a_page() -> None:
    filled = Filled()
    scan, watch = ArenaScan(filled.arena, 1), Watch()
    assert scan_all(scan) == []
    filled.write()
    watch.take(scan_all(scan))
    assert scan_all(scan) == []
    for _ in range(5):
        filled.write()
    (part,) = scan_all(scan)
    assert part.offset > 0
    assert numbers(part) == [1, 2, 3, 4, 5]
    watch.take([part])
    for _ in range(50):
        filled.write()
    watch.take(scan_all(scan))
    assert watch.events == 56


@given(
    st.lists(
        st.one_of(
            st.tuples(st.just("write"), st.integers(0, 2), st.integers(0, 3000)),
            st.tuples(st.just("many"), st.integers(0, 2), st.integers(1, 60)),
            st.tuples(st.just("look"), st.just(0), st.just(0)),
        ),
        max_size=40,
    ),
    st.booleans(),
)
def test_scans_return_each_event_at_most_once_and_count_missing_ones(
    steps: list[tuple[str, int, int]], overrun: bool
) -> None:
    filled = Filled(pages=6, writers=3, overrun=overrun)
    scan, watch = ArenaScan(filled.arena, 3), Watch()
    for step, writer, count in steps:
        if step == "write":
            filled.write(writer, count)
        elif step == "many":
            for _ in range(count):
                filled.write(writer, 200)
        else:
            watch.take(scan_all(scan))
    watch.take(scan_all(scan))
    for writer, following in watch.following.items():
        lost_since = filled.all[writer].number - following
        assert overrun is False or lost_since == 0, "the last event is on the page that fills"


class Disturbed(Arena):
    """An arena whose writers continue between any two reads of the scan."""

    disturb: Callable[[], object] = staticmethod(lambda: None)

    def descriptor(self, page: int) -> tuple[int, ...]:
        self.disturb()
        return super().descriptor(page)

    def read(self, page: int, offset: int, size: int) -> bytes:
        self.disturb()
        return super().read(page, offset, size)


@given(st.integers(0, 2**32), st.integers(0, 25), st.booleans())
def test_page_reused_during_a_scan_is_not_copied(seed: int, most: int, overrun: bool) -> None:
    generator = random.Random(seed)
    filled = Filled(pages=5, writers=2, overrun=overrun)
    filled.arena.__class__ = Disturbed
    for _ in range(200):
        filled.write(generator.randrange(2))

    def disturb() -> None:
        for _ in range(generator.randrange(most + 1)):
            filled.write(generator.randrange(2), generator.randrange(300))

    scan, watch = ArenaScan(filled.arena, 2), Watch()
    for _ in range(4):
        filled.arena.disturb = disturb  # type: ignore[attr-defined]  # of the class above
        watch.take(scan_all(scan))


def test_page_taken_during_a_scan_is_left_to_the_next_scan() -> None:
    filled = Filled(pages=8)
    for _ in range(100):
        filled.write()
    scan = ArenaScan(filled.arena, 1)
    plan = scan.plan()
    for _ in range(100):
        filled.write()
    copies = [scan.copy(each) for each in plan if isinstance(each, PageCandidate)]
    found = [n for copy in copies if isinstance(copy, PageCopy) for n in numbers(copy)]
    assert found == list(range(100))


def test_page_empty_when_the_scan_began_is_left_to_the_next_scan() -> None:
    filled = Filled()
    page = filled.pages.turn(filled.all[0], None, 0)
    assert page is not None
    scan = ArenaScan(filled.arena, 1)
    plan = scan.plan()
    filled.all[0].enter(filled.arena.page(page))
    filled.write()
    assert plan == []
    assert [numbers(copy) for copy in scan_all(scan)] == [[0]]


@pytest.mark.parametrize("steps", [0, 1, 2, 3, 4])
def test_page_being_taken_is_empty_wherever_its_writer_is_killed(steps: int) -> None:
    filled = Filled(pages=2)
    while filled.all[0].sequence < 2:
        filled.write()
    (oldest,) = filled.pages.ring
    doings = iter(
        [
            lambda: filled.arena.move(oldest, L.FULL, L.FILLING),
            lambda: filled.arena.clear(oldest),
            lambda: filled.arena.set(oldest, L.SEQUENCE, 2),
            lambda: filled.arena.set(oldest, L.FIRST_EVENT, filled.all[0].number),
        ]
    )
    for _ in range(steps):
        next(doings)()
    (*old, last) = scan_all(ArenaScan(filled.arena, 1))
    assert [copy.sequence for copy in old] == ([0] if steps < 2 else [])
    assert last.sequence == 1


def test_numbers_that_change_while_they_are_read_are_read_again() -> None:
    filled = Filled()
    filled.write()
    filled.arena.__class__ = Disturbed
    check = filled.arena.get(0, L.CHECK)
    filled.arena.set(0, L.CHECK, 0)
    reads = itertools.count()

    def settle() -> None:
        if next(reads) == 2:
            filled.arena.set(0, L.CHECK, check)

    filled.arena.disturb = settle  # type: ignore[attr-defined]  # of the class above
    (candidate,) = [each for each in ArenaScan(filled.arena, 1).plan() if isinstance(each, PageCandidate)]
    assert candidate.page == 0


def test_page_acknowledged_during_a_scan_is_still_copied() -> None:
    filled = Filled()
    filled.arena.__class__ = Disturbed
    while not filled.pages.ring:
        filled.write()
    (page,) = filled.pages.ring.swap(1)
    scan = ArenaScan(filled.arena, 1)
    plan = [each for each in scan.plan() if isinstance(each, PageCandidate) and each.page == page]
    reads = iter(range(9))

    def settle() -> None:  # word by word, as another process may see it
        filled.arena.set(page, L.EVENTS + next(reads), 0)

    filled.arena.disturb = settle  # type: ignore[attr-defined]  # of the class above
    copy = scan.copy(plan[0])
    assert isinstance(copy, PageCopy)
    assert numbers(copy)[0] == 0


def test_invalid_records_lose_the_page_being_filled() -> None:
    filled = Filled()
    for _ in range(3):
        filled.write()
    filled.arena.page(0)[L.PAGE_HEADER_SIZE : L.PAGE_HEADER_SIZE + 8] = bytes(8)
    scan = ArenaScan(filled.arena, 1)
    (candidate,) = scan.plan()
    assert isinstance(candidate, PageCandidate)
    bad = scan.copy(candidate)
    assert isinstance(bad, DamagedPage)
    assert "a record of" in bad.reason


def test_page_with_sequence_numbers_of_another_is_damaged_despite_its_crc() -> None:
    filled = Filled()
    while len(filled.pages.ring) < 2:
        filled.write()
    second = tuple(filled.pages.ring)[1]
    _, writer, sequence, _, *rest = filled.arena.get_all(second)
    filled.arena.give(second, writer, sequence, 1)
    filled.arena.set_from(second, L.EVENTS, *rest[: L.TAKES - L.EVENTS])
    scan = ArenaScan(filled.arena, 1)
    found = [scan.copy(each) for each in scan.plan() if isinstance(each, PageCandidate)]
    assert [each.page for each in found if isinstance(each, DamagedPage)] == [second]


@pytest.mark.parametrize(
    ("field", "value", "reason"),
    [
        (L.STATE, 77, "its state is 77"),
        (L.WRITER, 5, "it is of writer 5, there are 1"),
        (L.SEQUENCE, 2**63, "its numbers are"),
        (L.FIRST_EVENT, 2**62, "its numbers are"),
        (L.FIRST_EVENT, 12, "the crc32 of its numbers is wrong"),
        (L.CHECK, 1, "the crc32 of its numbers is wrong"),
        (L.EVENTS, 1, "it was sealed with"),
        (L.COMMITTED, 1, "it was sealed with"),
        (L.LAST_TIME, 1, "it was sealed with"),
    ],
)
def test_page_with_an_invalid_descriptor_loses_only_itself(field: int, value: int, reason: str) -> None:
    filled = Filled()
    while len(filled.pages.ring) < 3:
        filled.write()
    second = tuple(filled.pages.ring)[1]
    events = filled.arena.get(second, L.EVENTS)
    filled.arena.set(second, field, value)
    scan = ArenaScan(filled.arena, 1)
    copies = [each if isinstance(each, DamagedPage) else scan.copy(each) for each in scan.plan()]
    (bad,) = [each for each in copies if isinstance(each, DamagedPage)]
    assert bad.page == second
    assert reason in bad.reason
    good = [each for each in copies if isinstance(each, PageCopy)]
    assert [copy.sequence for copy in good] == [0, 2, 3]
    assert sum(copy.lost_before for copy in good) == events


def test_two_pages_with_one_number_are_damage() -> None:
    filled = Filled()
    while len(filled.pages.ring) < 2:
        filled.write()
    first, second = filled.pages.ring
    filled.arena.set_from(second, L.WRITER, *(filled.arena.get(first, L.WRITER + n) for n in range(9)))
    filled.arena.set(second, L.CHECK, filled.arena.get(first, L.CHECK))
    scan = ArenaScan(filled.arena, 1)
    bad = [each for each in scan.plan() if isinstance(each, DamagedPage)]
    assert [each.page for each in bad] == [max(first, second)]
    assert "has its number" in bad[0].reason


def test_a_page_longer_than_a_page_is_damage() -> None:
    filled = Filled()
    filled.write()
    filled.arena.page(0)[8:16] = (PAGE - 15).to_bytes(8, "little")
    (bad,) = ArenaScan(filled.arena, 1).plan()
    assert isinstance(bad, DamagedPage)
    assert "commit is 4081" in bad.reason
