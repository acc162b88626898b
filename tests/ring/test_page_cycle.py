"""The life of pages under one guard: what the model test cannot say in a sentence."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from aiotrace._ring.arena import Arena
from aiotrace._ring.delivery import Delivery
from aiotrace._ring.page_cycle import PageCycle
from aiotrace._ring.writer import Writers
from support.page_events import PageEvents

pytestmark = pytest.mark.pure_too

PAYLOAD = bytes(1000)


def make(pages: int = 8, on_freed: Callable[[], object] | None = None) -> tuple[PageCycle, Writers]:
    listener = PageEvents()
    if on_freed is not None:
        listener.on_freed = on_freed
    made = PageCycle(Arena(4096, pages), overrun=False, listener=listener)
    return made, Writers(made, 1, lambda: 1000, ())


def test_a_prefix_does_not_overtake_full_pages_of_its_writer() -> None:
    """A sink that waits is full, so the ring keeps a page; the other must not get the next page's prefix first."""
    pages, writers = make()
    full, quick = Delivery(pages.arena, 1, "wait"), Delivery(pages.arena, 4, "wait")
    quick.prefixes = True
    pages.attach(full, {})
    pages.attach(quick, {})
    writer = writers.all[0]
    for _ in range(9):  # two full pages, and one event on the third
        assert writer.write(PAYLOAD)
    assert pages.swap()
    assert not pages.room
    prefix = writer.committed_prefix()
    assert prefix is not None
    pages.offer_prefix(prefix)
    assert quick.waiting == 1, "the first page only"
    pages.acknowledge(full, full.look(1))
    assert pages.swap()
    assert [part.sequence for part in quick.look(4)] == [0, 1]


def test_page_is_returned_by_its_last_holder() -> None:
    freed: list[int] = []
    pages, writers = make(on_freed=lambda: freed.append(1))
    one, two = Delivery(pages.arena, 4, "wait"), Delivery(pages.arena, 4, "wait")
    pages.attach(one, {})
    pages.attach(two, {})
    for _ in range(5):
        writers.all[0].write(PAYLOAD)
    pages.swap()
    pages.acknowledge(one, one.look(1))
    assert not freed
    assert pages.delivered == 4
    pages.detach(two)
    assert freed
    assert two.abandoned == 4
    assert pages.abandoned == 0, "one of them has it"


def test_unheld_pages_are_returned_when_offering_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    freed: list[int] = []
    pages, writers = make(on_freed=lambda: freed.append(1))
    sink = Delivery(pages.arena, 4, "wait")
    pages.attach(sink, {})
    for _ in range(9):
        writers.all[0].write(PAYLOAD)

    def fail(offered: list[int]) -> None:
        sink.offer(offered[0], pages.arena.get_all(offered[0]))
        raise MemoryError

    monkeypatch.setattr(sink, "offer_sealed", fail)
    with pytest.raises(MemoryError):
        pages.swap(2)
    assert pages.arena.states() == (6, 1, 0, 1)
    assert freed == [1], "a caller that waits for a page is notified"
    assert len(pages.pool) == 6
    assert pages.abandoned == 4
    pages.acknowledge(sink, sink.look(1))
    assert (pages.delivered, pages.arena.states()) == (4, (7, 1, 0, 0))


def test_the_parts_of_a_page_settle_in_order() -> None:
    pages, writers = make()
    sink = Delivery(pages.arena, 4, "wait")
    sink.prefixes = True
    pages.attach(sink, {})
    writer = writers.all[0]
    writer.write(PAYLOAD)
    prefix = writer.committed_prefix()
    assert prefix is not None
    pages.offer_prefix(prefix)
    for _ in range(4):
        writer.write(PAYLOAD)
    pages.swap()
    first, rest = sink.look(2)
    assert (first.complete, rest.complete, first.end) == (False, True, rest.offset)
    pages.acknowledge(sink, [rest])
    assert sink.delivered == 0
    pages.acknowledge(sink, [first])
    assert sink.delivered == pages.delivered == 4


def test_page_fully_delivered_as_prefixes_returns_to_the_pool_when_swapped() -> None:
    freed: list[int] = []
    pages, writers = make(on_freed=lambda: freed.append(1))
    sink = Delivery(pages.arena, 4, "wait")
    sink.prefixes = True
    pages.attach(sink, {})
    writer = writers.all[0]
    for _ in range(4):
        writer.write(PAYLOAD)
    prefix = writer.committed_prefix()
    assert prefix is not None
    pages.offer_prefix(prefix)
    pages.acknowledge(sink, sink.look(1))
    assert writer.make_room(1000)  # seals it with nothing more on it
    assert pages.swap()
    assert freed == [1], "a caller that waits for a page is notified"
    assert (sink.waiting, pages.delivered, pages.abandoned) == (0, 4, 0)
    assert pages.arena.states() == (7, 1, 0, 0)


def test_sink_gets_no_second_part_while_it_holds_the_first_or_is_closed() -> None:
    pages, writers = make()
    sink, other = Delivery(pages.arena, 8, "wait"), Delivery(pages.arena, 8, "wait")
    sink.prefixes = True
    pages.attach(sink, {})
    pages.attach(other, {})
    writer = writers.all[0]
    for _ in range(3):
        writer.write(PAYLOAD)
        prefix = writer.committed_prefix()
        assert prefix is not None
        pages.offer_prefix(prefix)
    assert sink.waiting == 1
    pages.acknowledge(sink, sink.look(1))
    sink.closed = True
    pages.offer_prefix(prefix)
    for _ in range(2):
        writer.write(PAYLOAD)
    assert pages.swap()
    assert (sink.held, other.held) == (0, 1)


def test_page_completed_by_one_sink_is_delivered_despite_another() -> None:
    pages, writers = make()
    sink, other = Delivery(pages.arena, 8, "wait"), Delivery(pages.arena, 8, "wait")
    sink.prefixes = True
    pages.attach(sink, {})
    pages.attach(other, {})
    writer = writers.all[0]
    writer.write(PAYLOAD)
    prefix = writer.committed_prefix()
    assert prefix is not None
    pages.offer_prefix(prefix)
    for _ in range(4):
        writer.write(PAYLOAD)
    pages.swap()
    pages.acknowledge(other, other.look(1))
    assert pages.delivered == 4
    pages.acknowledge(sink, sink.look(1))  # its first event
    assert pages.delivered == 4
    pages.detach(sink)
    assert (pages.delivered, pages.abandoned) == (4, 0)


def test_full_pages_are_swapped_oldest_first_up_to_request_and_room() -> None:
    pages, writers = make()
    sink = Delivery(pages.arena, 3, "wait")
    pages.attach(sink, {})
    for _ in range(4 * 5 + 1):
        assert writers.all[0].write(PAYLOAD)
    assert (pages.swap(2), pages.swap(16), pages.swap(16), len(pages.ring)) == (2, 1, 0, 2)
    assert [part.sequence for part in sink.look(9)] == [0, 1, 2]


def test_swaps_are_limited_by_the_room_of_waiting_sinks_else_of_any() -> None:
    pages, writers = make()
    assert (pages.room, pages.swap(9)) == (0, 0)
    small, large = Delivery(pages.arena, 1, "skip"), Delivery(pages.arena, 2, "skip")
    pages.attach(small, {})
    pages.attach(large, {})
    assert pages.room == 2
    for _ in range(20):
        writers.all[0].write(PAYLOAD)
    full = len(pages.ring)
    assert full > 2
    assert pages.swap(9) == 2
    assert (small.waiting, small.missed > 0, large.waiting, large.missed) == (1, True, 2, 0)
    waiting = Delivery(pages.arena, 3, "wait")
    pages.attach(waiting, {})
    assert (pages.room, pages.swap(1), pages.room) == (3, 1, 2)
    waiting.closed = True
    assert pages.room == 0
