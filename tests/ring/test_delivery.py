"""One sink's queue and account: what it is offered, in which parts, and that its equation holds."""

from __future__ import annotations

import struct
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aiotrace._page import layout as L
from aiotrace._page.entry import PageEntry
from aiotrace._ring.arena import Arena
from aiotrace._ring.delivery import Delivery, OnFull, Part, Position

pytestmark = pytest.mark.pure_too

EVENT = 100
"""Bytes that an event takes on these pages."""
START = 10**15


@pytest.fixture
def arena() -> Arena:
    return Arena(4096, 4)


def page_time(page: int) -> int:
    return START + 1000 * page


def try_to_offer(
    delivery: Delivery,
    page: int,
    events: int,
    *,
    writer: int = 0,
    sequence: int | None = None,
    first: int,
    full: bool = True,
) -> Part | None:
    """Offer what there is of a page that has come so far. Returns the part, if it is one."""
    arena, offered = delivery._arena, delivery.pages_offered
    struct.pack_into("=Q", arena.page(page), 0, page_time(page))
    arena.set_from(page, L.WRITER, writer, page if sequence is None else sequence, first)
    arena.set_sealed(page, events, events * EVENT, page_time(page) + events, 7)
    if full:
        delivery.offer_sealed([page])
    else:
        delivery.offer(page, arena.get_all(page), complete=False)
    return delivery._queue[-1] if delivery.pages_offered > offered else None


def offer(delivery: Delivery, page: int, events: int, **how: Any) -> Part:
    part = try_to_offer(delivery, page, events, **how)
    assert part is not None
    return part


def account(delivery: Delivery) -> tuple[int, int, int, int, int]:
    d = delivery
    assert d.offered == d.delivered + d.missed + d.abandoned + d.events_in_flight
    return d.offered, d.delivered, d.missed, d.abandoned, d.events_in_flight


def test_a_whole_page_is_one_part_from_its_first_byte_to_its_last(arena: Arena) -> None:
    delivery = Delivery(arena, 2, "wait")
    part = offer(delivery, 1, 5, writer=3, sequence=2**32, first=0)
    assert part.entry == PageEntry(3, 2**32, 0, True, 5, 0, 7, page_time(1), 500)
    assert (part.page, part.writer, part.sequence, part.complete, part.definitions) == (1, 3, 2**32, True, 7)
    assert (part.offset, part.end, part.events, part.page_events) == (0, 500, 5, 5)
    assert part.timestamp == page_time(1)
    assert delivery.holds(1)
    assert not delivery.holds(0)


def test_delivered_prefix_is_not_offered_again(arena: Arena) -> None:
    delivery = Delivery(arena, 4, "wait")
    offer(delivery, 0, 2, first=0, full=False)
    assert try_to_offer(delivery, 0, 2, first=0, full=False) is None, "nothing came since"
    rest = offer(delivery, 0, 5, first=0)
    assert (rest.offset, rest.end, rest.events, rest.page_events) == (200, 500, 3, 5)
    assert (rest.complete, rest.lost_before) == (True, 0)
    assert rest.timestamp == page_time(0) + 2, "the time of the last event before it is the base of its first delta"
    assert try_to_offer(delivery, 0, 5, first=0) is None, "it had all of it"
    assert delivery.next_event(0) == 5
    assert delivery.held == 2


def test_page_without_events_is_not_offered(arena: Arena) -> None:
    assert try_to_offer(Delivery(arena, 1, "wait"), 0, 0, first=0) is None


def test_a_gap_between_two_pages_of_a_writer_is_the_loss_before_the_second(arena: Arena) -> None:
    delivery = Delivery(arena, 4, "wait")
    assert offer(delivery, 0, 5, first=3).lost_before == 3, "before its first page too"
    assert offer(delivery, 1, 5, writer=1, first=0).lost_before == 0, "of another writer"
    assert offer(delivery, 2, 5, first=20).lost_before == 12
    assert delivery.next_event(0) == 25
    assert delivery.next_event(1) == 5
    assert delivery.next_event(9) == 0, "an unknown writer"


def test_losses_before_a_sink_was_attached_are_not_counted_for_it(arena: Arena) -> None:
    delivery = Delivery(arena, 4, "wait")
    delivery.positions[0] = Position(100)
    assert delivery.next_event(0) == 100
    assert offer(delivery, 0, 5, first=103).lost_before == 3


def test_page_earlier_than_those_delivered_is_a_bug(arena: Arena) -> None:
    delivery = Delivery(arena, 4, "wait")
    offer(delivery, 1, 5, first=5)
    with pytest.raises(AssertionError, match="writer 0: page 0 out of order"):
        try_to_offer(delivery, 0, 5, first=0)


def test_second_page_of_a_sequence_does_not_continue_the_first(arena: Arena) -> None:
    """Sequence and not place: the memory of a page is used again."""
    delivery = Delivery(arena, 4, "wait")
    offer(delivery, 0, 5, sequence=8, first=0)
    part = offer(delivery, 0, 6, sequence=9, first=5)
    assert (part.offset, part.events, part.lost_before) == (0, 6, 0)


def test_missed_pages_are_counted_and_reported_with_the_next(arena: Arena) -> None:
    delivery = Delivery(arena, 1, "skip")
    offer(delivery, 0, 5, first=0)
    for page in (1, 2):
        assert try_to_offer(delivery, page, 5, first=5 * page) is None
    assert account(delivery) == (15, 0, 10, 0, 5)
    assert delivery.missed_by_writer == {0: 10}
    assert delivery.pages_offered == 1
    assert not delivery.holds(1)
    assert arena.get(1, L.HOLDERS) == 0
    delivery.acknowledge(*delivery.look(1))
    assert offer(delivery, 3, 5, first=15).lost_before == 10


@pytest.mark.parametrize("on_full", ["wait", "skip"])
def test_quota_counts_read_and_unread_parts(arena: Arena, on_full: OnFull) -> None:
    delivery = Delivery(arena, 2, on_full)
    assert delivery.has_room
    offer(delivery, 0, 5, first=0)
    offer(delivery, 1, 5, first=5)
    assert not delivery.has_room
    (part,) = delivery.look(1)
    assert not delivery.has_room, "looking settles nothing"
    assert (delivery.held, delivery.waiting) == (2, 1)
    delivery.acknowledge(part)
    assert delivery.has_room
    assert (delivery.held, delivery.waiting) == (1, 1)


def test_parts_are_read_oldest_first_up_to_those_available(arena: Arena) -> None:
    delivery = Delivery(arena, 4, "wait")
    assert delivery.look(3) == []
    parts = [offer(delivery, page, 5, first=5 * page) for page in range(3)]
    assert delivery.look(2) == parts[:2]
    assert delivery.look(2) == parts[2:]
    assert delivery.look(2) == []


def test_each_part_of_a_page_is_a_holder_of_it_until_settled(arena: Arena) -> None:
    """Who settles a part takes its holder away; here is where they are counted."""
    one, two = Delivery(arena, 4, "wait"), Delivery(arena, 4, "wait")
    offer(one, 0, 2, first=0, full=False)
    offer(one, 0, 5, first=0)
    offer(two, 0, 5, first=0)
    assert arena.get(0, L.HOLDERS) == 3


def test_pages_settle_in_any_order_and_the_parts_of_one_in_theirs(arena: Arena) -> None:
    delivery = Delivery(arena, 4, "wait")
    first = offer(delivery, 0, 2, first=0, full=False)
    rest = offer(delivery, 0, 5, first=0)
    other = offer(delivery, 1, 5, first=5)
    delivery.look(3)
    assert delivery.acknowledge(other) == [other]
    assert delivery.acknowledge(rest) == []
    assert account(delivery) == (10, 5, 0, 0, 5)
    assert delivery.holds(0)
    assert delivery.acknowledge(first) == [first, rest]
    assert account(delivery) == (10, 10, 0, 0, 0)
    assert not delivery.holds(0)
    assert delivery.pages_acknowledged == delivery.pages_offered == 3


def test_unread_part_cannot_be_acknowledged(arena: Arena) -> None:
    delivery = Delivery(arena, 4, "wait")
    part = offer(delivery, 0, 5, first=0)
    with pytest.raises(KeyError):
        delivery.acknowledge(part)
    assert account(delivery) == (5, 0, 0, 0, 5)
    delivery.look(1)
    delivery.acknowledge(part)
    with pytest.raises(KeyError):
        delivery.acknowledge(part)
    assert delivery.pages_acknowledged == 1


def test_failed_sink_gets_its_unacknowledged_pages_first_and_in_order(arena: Arena) -> None:
    delivery = Delivery(arena, 4, "wait")
    parts = [offer(delivery, page, 5, first=5 * page) for page in range(4)]
    delivery.look(3)
    delivery.acknowledge(parts[1])
    delivery.rewind()
    assert (delivery.held, delivery.waiting) == (3, 3)
    assert delivery.look(4) == [parts[0], parts[2], parts[3]]
    assert [part.lost_before for part in parts] == [0, 0, 0, 0]
    assert account(delivery) == (20, 5, 0, 0, 15)
    assert delivery.pages_offered == 4, "again is not another"


def test_an_early_acknowledgement_outlives_a_failure(arena: Arena) -> None:
    """The sink has kept its promise for the second part: it is not given that again."""
    delivery = Delivery(arena, 4, "wait")
    first = offer(delivery, 0, 2, first=0, full=False)
    rest = offer(delivery, 0, 5, first=0)
    delivery.look(2)
    delivery.acknowledge(rest)
    delivery.rewind()
    assert delivery.look(4) == [first]
    assert delivery.acknowledge(first) == [first, rest]


def test_failed_sink_abandons_all_unsettled_pages(arena: Arena) -> None:
    delivery = Delivery(arena, 4, "wait")
    done = offer(delivery, 0, 5, first=0)
    first = offer(delivery, 1, 2, first=5, full=False)
    rest = offer(delivery, 1, 5, first=5)
    queued = offer(delivery, 2, 5, first=10)
    delivery.look(3)
    delivery.acknowledge(done)
    delivery.acknowledge(rest)  # early: not settled, and now it never is
    assert delivery.abandon() == [first, rest, queued]
    assert account(delivery) == (15, 5, 0, 10, 0)
    assert (delivery.held, delivery.waiting, delivery.closed) == (0, 0, True)
    assert delivery.abandon() == [], "a second time gives up nothing"
    assert delivery.look(1) == []


@given(st.data(), st.integers(1, 3), st.booleans())
def test_the_account_balances_after_any_steps(data: st.DataObject, quota: int, skips: bool) -> None:
    """And what is delivered of a page is a prefix of it."""
    arena = Arena(4096, 4)
    delivery = Delivery(arena, quota, "skip" if skips else "wait")
    sequence, first, events, looked = 0, 0, 0, list[Part]()
    settled: dict[int, int] = {}
    for step in data.draw(st.lists(st.sampled_from(["event", "prefix", "page", "look", "acknowledge", "fail"]))):
        if step == "event":
            events += 1
        elif step in ("prefix", "page"):
            full = step == "page"
            if full or delivery.has_room:
                try_to_offer(delivery, sequence % 4, events, sequence=sequence, first=first, full=full)
            if full:
                sequence, first, events = sequence + 1, first + events, 0
        elif step == "look":
            looked += delivery.look(2)
        elif step == "acknowledge" and looked:
            for part in delivery.acknowledge(looked.pop(data.draw(st.integers(0, len(looked) - 1)))):
                assert settled.get(part.sequence, 0) == part.page_events - part.events
                settled[part.sequence] = part.page_events
        elif step == "fail":
            delivery.rewind()
            looked.clear()
        offered, delivered, missed, _, in_flight = account(delivery)
        assert delivered == sum(settled.values())
        assert delivery.held <= quota
        assert offered - missed == delivered + in_flight
    delivery.abandon()
    assert account(delivery)[4] == 0
    arena.close()
