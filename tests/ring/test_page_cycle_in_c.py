"""What C does of the life of pages (`_csrc/ring/`: delivery.c for many, turn.c their turn) is what Python does."""

from __future__ import annotations

import random
import struct
import zlib
from dataclasses import astuple
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aiotrace._base.backend import c_module
from aiotrace._page import layout as L
from aiotrace._ring import delivery, page_cycle
from aiotrace._ring.arena import Arena
from aiotrace._ring.delivery import CommittedPrefix, Delivery, Part
from aiotrace._ring.page_cycle import PageCycle
from aiotrace._ring.writer import Writer, Writers

pytestmark = pytest.mark.skipif(c_module is None, reason="compares both implementations")

PAYLOAD = bytes(1000)
"""Four fill a page."""


class World:
    """Pages, two writers and two sinks. `plain`: without the C functions."""

    def __init__(self, plain: bool, quota: int, skips: bool) -> None:
        self.plain = plain
        self.time = 10**15
        self.pages = PageCycle(Arena(4096, 16), overrun=False)
        writers = Writers(self.pages, 2, self.clock, range(3))
        other = writers.reserve(Writer)
        assert other is not None
        self.writers = [writers.all[0], other]
        self.sinks = [
            Delivery(self.pages.arena, quota, "skip" if skips else "wait", "one"),
            Delivery(self.pages.arena, 6, "wait", "two"),
        ]
        for sink in self.sinks:
            sink.prefixes = True
        self.looked: list[list[Part]] = [[], []]

    def clock(self) -> int:
        self.time += 1000
        return self.time

    def step(self, step: tuple[str, int, int]) -> None:
        with pytest.MonkeyPatch.context() as patch:
            if self.plain:
                patch.setattr(delivery, "_c_offer_sealed", None)
                patch.setattr(delivery, "_c_settle", None)
                patch.setattr(page_cycle, "_c_turn_page", None)
            getattr(self, step[0])(*step[1:])

    def attach(self, which: int, _: int) -> None:
        if self.sinks[which] not in self.pages.deliveries and not self.sinks[which].closed:
            next_events = {writer.slot: writer.first_unsealed for writer in self.writers}
            for page in reversed(tuple(self.pages.ring)):  # it is offered what is in the ring, too
                next_events[self.pages.arena.get(page, L.WRITER)] = self.pages.arena.get(page, L.FIRST_EVENT)
            self.pages.attach(self.sinks[which], next_events)

    def write(self, which: int, count: int) -> None:
        for _ in range(count):
            self.writers[which].write(PAYLOAD)

    def swap(self, _: int, count: int) -> None:
        self.pages.swap(count)

    def peek(self, which: int, _: int) -> None:
        prefix = self.writers[which].committed_prefix()
        if isinstance(prefix, CommittedPrefix) and prefix.events:
            self.pages.offer_prefix(prefix)

    def look(self, which: int, count: int) -> None:
        self.looked[which] += self.sinks[which].look(count)

    def acknowledge(self, which: int, seed: int) -> None:
        """Some of what was looked at, in some order."""
        if self.sinks[which] in self.pages.deliveries:
            looked = self.looked[which]
            random.Random(seed).shuffle(looked)
            count = seed % (len(looked) + 1)
            self.looked[which] = looked[count:]
            self.pages.acknowledge(self.sinks[which], looked[:count])

    def acknowledge_in_order(self, which: int, _: int) -> None:
        if self.sinks[which] in self.pages.deliveries:
            parts, self.looked[which] = self.looked[which], []
            self.pages.acknowledge(self.sinks[which], parts)

    def fail(self, which: int, _: int) -> None:
        self.sinks[which].rewind()
        self.looked[which].clear()

    def detach(self, which: int, _: int) -> None:
        if self.sinks[which] in self.pages.deliveries:
            self.pages.detach(self.sinks[which])
            self.looked[which].clear()

    def state(self) -> Any:
        pages = self.pages
        return (
            pages.arena.descriptors.tolist(),
            [bytes(pages.arena.page(page)[: L.PAGE_HEADER_SIZE]) for page in range(pages.arena.pages)],
            list(pages.ring),
            list(pages.pool.free),
            (pages.pool.recycled, pages.pool.allocated, pages.delivered, pages.abandoned),
            [(writer.page, writer.sequence, writer.number, writer.pending_events) for writer in self.writers],
            [
                (
                    {writer: astuple(position) for writer, position in sorted(sink.positions.items())},
                    [tuple(part) for part in sink._queue],
                    {number: tuple(part) for number, part in sink._looked.items()},
                    {page: list(map(tuple, parts)) for page, parts in sink._by_page.items()},
                    sink._early,
                    (sink.offered, sink.delivered, sink.missed, sink.abandoned, sink.missed_by_writer),
                    (sink.pages_offered, sink.pages_acknowledged, sink.held, sink.closed),
                )
                for sink in self.sinks
            ],
        )


STEPS = [name for name in vars(World) if not name.startswith("_") and name not in ("clock", "step", "state")]


@given(
    st.lists(st.tuples(st.sampled_from(STEPS), st.integers(0, 1), st.integers(0, 20)), max_size=60),
    st.integers(1, 5),
    st.booleans(),
)
def test_both_implementations_agree_on_any_sequence(steps: list[tuple[str, int, int]], quota: int, skips: bool) -> None:
    worlds = [World(plain, quota, skips) for plain in (False, True)]
    for step in [("attach", 0, 0), *steps]:
        for world in worlds:
            world.step(step)
        assert worlds[0].state() == worlds[1].state(), step


# --- the functions by themselves ------------------------------------------------------------------


def sealed(arena: Arena, page: int, *, writer: int = 0, sequence: int, first: int, events: int = 5) -> None:
    struct.pack_into("=Q", arena.page(page), 0, 7_000 + page)
    arena.set_from(page, L.STATE, L.IN_FLIGHT, writer, sequence, first)
    arena.set_sealed(page, events, 100 * events, 8_000, 3)


def offer_in_c(sink: Delivery, pages: list[int]) -> int:
    return sink._offer_whole(pages, 0)


@pytest.fixture
def arena() -> Arena:
    return Arena(4096, 8)


@pytest.fixture
def sink(arena: Arena) -> Delivery:
    """It knows writer 0, and had its first page."""
    sink = Delivery(arena, 8, "wait")
    sealed(arena, 0, sequence=0, first=0)
    sink.offer_sealed([0])
    return sink


def test_c_offers_pages_up_to_the_first_special_case(arena: Arena, sink: Delivery) -> None:
    sealed(arena, 1, sequence=1, first=5)
    sealed(arena, 2, sequence=2, first=13)
    assert offer_in_c(sink, [1, 2]) == 2, "a gap is usual"
    assert [part.lost_before for part in sink.look(3)] == [0, 0, 3]
    sealed(arena, 3, sequence=3, first=18, events=0)
    assert offer_in_c(sink, [3]) == 0, "nothing is on it"
    sealed(arena, 3, sequence=3, first=17)
    assert offer_in_c(sink, [3]) == 0, "out of order"
    sealed(arena, 3, sequence=2, first=18)
    assert offer_in_c(sink, [3]) == 0, "it had a part of this page"
    sealed(arena, 3, writer=1, sequence=0, first=0)
    assert offer_in_c(sink, [3]) == 0, "a writer of which it has had nothing"
    sink.quota = sink.held
    sealed(arena, 3, sequence=3, first=18)
    assert offer_in_c(sink, [3]) == 0, "no room"
    assert arena.get(3, L.HOLDERS) == 0


def test_a_sink_may_have_room_for_more_than_there_can_be(arena: Arena, sink: Delivery) -> None:
    sink.quota = 2**70
    sealed(arena, 1, sequence=1, first=5)
    arena.set(1, L.HOLDERS, 1)
    assert offer_in_c(sink, [1]) == 1
    assert arena.get(1, L.HOLDERS) == 2, "another sink had it first"


def test_a_page_that_is_not_there_is_an_error(sink: Delivery) -> None:
    for page in (8, -1):
        with pytest.raises(IndexError, match=f"page index {page} "):
            offer_in_c(sink, [page])
    with pytest.raises(TypeError):
        offer_in_c(sink, ["0"])  # type: ignore[list-item]  # that is it


def test_c_settles_parts_up_to_the_first_special_case(arena: Arena, sink: Delivery) -> None:
    freed: list[int] = []
    assert sink.settle(list(sink._queue), 0, freed) == (0, 0, 0), "not looked at"
    (part,) = sink.look(1)
    assert sink.settle([part], 0, freed) == (1, 5, 0)
    assert (freed, arena.get(0, L.STATE), sink.pages_acknowledged) == ([0], L.FREE, 1)
    assert sink.settle([part], 0, freed) == (0, 0, 0), "a second time"
    with pytest.raises(TypeError, match="is not a Part"):
        sink.settle([(1, 2)], 0, freed)  # type: ignore[list-item]  # that is it
    for page, first in ((1, 5), (2, 10)):
        sealed(arena, page, sequence=page, first=first)
    sink.offer_sealed([1, 2])
    arena.set(1, L.HOLDERS, 2)
    one, two = sink.look(2)
    assert sink.settle([one, two], 1, freed) == (1, 5, 0), "from the second on"
    arena.set(1, L.DELIVERED, 6)
    assert sink.settle([one], 0, freed) == (1, 0, 0), "another had acknowledged all of it, and more"
    assert arena.get(1, L.DELIVERED) == 6
    assert freed == [0, 2], "another sink holds page 1"


@pytest.fixture
def turning() -> World:
    """Writer 0 fills page 1; page 0 was used before, the others never were."""
    world = World(False, 4, False)
    for step in ("attach", "write", "swap", "look", "acknowledge_in_order"):
        world.step((step, 0, 5))
    assert (world.writers[0].page, world.pages.pool.free[-2:]) == (1, [2, 0])
    return world


def turn(world: World, full: int = 1) -> int | None:
    pages, arena = world.pages, world.pages.arena
    assert c_module is not None
    memory, first, size = arena.memory, arena.first_page, arena.page_size
    found: int | None = c_module.turn_page(
        arena.descriptors, memory, first, size, full, pages.ring.full, pages.pool.free, 1, 2, 3
    )
    return found


def test_a_page_that_was_used_before_is_taken_in_c(turning: World) -> None:
    struct.pack_into("=Q", turning.pages.arena.page(0), 8, 500)
    turning.pages.arena.set(0, L.LAST_TIME, 9)
    assert turn(turning) == 0
    assert (list(turning.pages.ring), turning.pages.pool.free[-1]) == ([1], 2)
    words = turning.pages.arena.get_all(0)
    assert words[L.STATE : L.HOLDERS] == (L.FILLING, 1, 2, 3, 0, 0, 0, 0)
    assert (words[L.TAKES], words[L.CHECK]) == (2, zlib.crc32(struct.pack("=3Q", 1, 2, 3)))
    assert turning.pages.arena.get(1, L.STATE) == L.FULL
    assert struct.unpack_from("=Q", turning.pages.arena.page(0), 8) == (0,), "an old page is not read as a new one"


@pytest.mark.parametrize("why", ["none is free", "never used", "not free", "not filling"])
def test_turn_that_is_a_special_case_changes_nothing(turning: World, why: str) -> None:
    pages = turning.pages
    if why == "none is free":
        pages.pool.free.clear()
    elif why == "never used":
        pages.pool.free.pop()
    elif why == "not free":
        pages.arena.set(0, L.STATE, L.FULL)
    else:
        pages.arena.set(1, L.STATE, L.FULL)
    before = turning.state()
    assert turn(turning) is None
    assert turning.state() == before


def test_a_turn_of_a_page_that_is_not_there_is_an_error(turning: World) -> None:
    for full in (16, -1):
        with pytest.raises(IndexError, match=f"page index {full} "):
            turn(turning, full)
    turning.pages.pool.free.append(16)
    with pytest.raises(IndexError, match="page index 16 "):
        turn(turning)
    turning.pages.pool.free[-1] = "0"  # type: ignore[call-overload]  # that is it
    with pytest.raises(TypeError):
        turn(turning)
