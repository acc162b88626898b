"""One arena, two sides: whatever the order of their steps, each page is taken once, whole and in order, or overrun."""

from __future__ import annotations

import itertools
import mmap
import struct
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aiotrace._arena import handover
from aiotrace._arena.handover import hand_over, taken_over
from aiotrace._base.backend import c_module
from aiotrace._base.errors import ConfigurationError
from aiotrace._page import layout as L
from aiotrace._page.definitions import Definitions
from aiotrace._ring.arena import Arena, Shape
from aiotrace._ring.delivery import Delivery
from aiotrace._ring.page_cycle import PageCycle
from aiotrace._ring.state import TRANSITIONS, transition
from aiotrace._ring.writer import Writers
from support.arenas import EVENT_ID, PAGE, SCHEMA, Filled
from support.page_oracle import walk

atomic = pytest.mark.skipif(c_module is None, reason="pure Python refuses: it has no compare-and-swap")
PER_PAGE = (PAGE - L.PAGE_HEADER_SIZE - L.LOST_COUNT_SIZE) // 132


class _Memory:
    """Anonymous memory that two arenas map, as two processes do."""

    def __init__(self, pages: int) -> None:
        self.shape = Shape(PAGE, pages)
        self.memory = mmap.mmap(-1, self.shape.size)

    def allocate(self, offset: int, size: int) -> bool:
        return True


class Both:
    """A program's writers, and a reader with one sink; each event says its number."""

    def __init__(self, pages: int = 4, writers: int = 1, overrun: bool = True, quota: int = 64) -> None:
        memory = _Memory(pages)
        self.arena = Arena(PAGE, pages, memory)
        self.pages = PageCycle(self.arena, overrun=overrun)
        hand_over(self.pages)
        self.time = 0
        self.times: dict[tuple[int, int], int] = {}
        """Of each event: writer, number."""
        self.writers = Writers(self.pages, writers, self._clock, Definitions())
        self.all = [self.writers.lease()[0] for _ in range(writers)]
        self.taken, self.ring = taken_over(Arena(PAGE, pages, memory), writers, lambda: 1)
        self.delivery = Delivery(self.taken.arena, quota, "wait")
        self.taken.attach(self.delivery, {})
        self.got: dict[int, list[int]] = {writer: [] for writer in range(writers)}
        self.lost = dict.fromkeys(range(writers), 0)

        self.delivery.prefixes = True

    def _clock(self) -> int:
        self.time += 1000
        return self.time

    def write(self, writer: int = 0, events: int = 1) -> None:
        slot = self.all[writer]
        for _ in range(events):
            number = slot.number
            slot.write(SCHEMA.encode(EVENT_ID, 7, (number, bytes(100)), lambda text: 0))
            self.times[writer, number] = self.time

    def fill(self, writer: int = 0, pages: int = 1) -> None:
        """Write until `pages` more pages are sealed."""
        for _ in range(pages):
            self.write(writer, PER_PAGE)

    def read(self, most: int = 64) -> None:
        """Take pages, look at them as a sink does, and acknowledge them."""
        self.taken.swap(most)
        self.acknowledge()

    def peek(self, writer: int = 0) -> None:
        """Have what a writer's page holds that still fills; the sink looks at it later."""
        prefix = self.ring.committed_prefix(writer)
        if prefix is not None:
            self.taken.offer_prefix(prefix)

    def acknowledge(self, most: int = 64) -> None:
        for part in self.delivery.look(most):
            page = self.taken.arena.page(part.page)
            start, end = L.PAGE_HEADER_SIZE + part.offset, L.PAGE_HEADER_SIZE + part.end
            data = bytes(page[start:end])
            found = []
            for record in walk(data, part.timestamp):
                found.append(struct.unpack_from("=Q", data, record.start + 8)[0])
                assert record.timestamp == self.times[part.writer, found[-1]]
            got = self.got[part.writer]
            self.lost[part.writer] += part.lost_before
            first = len(got) + self.lost[part.writer]
            assert found == list(range(first, first + part.events)), "torn, of another page, out of order, or twice"
            got += found
            self.taken.acknowledge(self.delivery, [part])

    def end(self) -> None:
        """The writers are dead; the reader takes all that is left."""
        self.ring.finish()
        for _ in range(2 * self.arena.pages + 1):
            self.read()

    def check(self) -> None:
        """Nothing is missing but what was overrun or refused, and every page is home."""
        assert self.ring.bad == []
        assert self.arena.states() == (self.arena.pages, 0, 0, 0)
        ours = self.taken.arena
        assert ours.states() == (ours.pages, 0, 0, 0)
        assert (self.taken.delivered, self.taken.abandoned) == (sum(map(len, self.got.values())), 0)
        saved = self.ring.saved
        overrun = {slot: count - saved.get(slot, 0) for slot, count in self.pages.overrun.items()}
        for slot, writer in enumerate(self.all):
            got = self.got[slot]
            assert self.lost[slot] == self.ring.lost.get(slot, 0)
            if got:
                assert len(got) + self.lost[slot] == got[-1] + 1
            assert len(got) + overrun.get(slot, 0) + writer.dropped_total == writer.number
            assert self.ring.numbers.get(slot, 0) == (got[-1] + 1 if got else 0)


@atomic
@given(
    st.lists(
        st.tuples(st.sampled_from(["write", "fill", "read", "peek", "acknowledge"]), st.integers(0, 1)), max_size=30
    ),
    st.booleans(),
)
def test_events_neither_overrun_nor_refused_arrive_once_and_in_order(
    steps: list[tuple[str, int]], overrun: bool
) -> None:
    both = Both(writers=2, overrun=overrun)
    for step, writer in steps:
        if step in ("read", "acknowledge"):
            getattr(both, step)(1 + writer)
        else:
            getattr(both, step)(writer)
    both.end()
    both.check()


@atomic
@given(st.lists(st.integers(0, 6), max_size=30))
def test_writer_may_continue_between_any_two_steps_of_the_reader(paces: list[int]) -> None:
    both = Both(pages=5)
    left = iter(paces)
    reading = False

    def interleave(function: Callable[..., bool]) -> Callable[..., bool]:
        def first(*arguments: object) -> bool:
            nonlocal reading
            if reading:
                reading = False  # the writer's own steps are not the reader's
                both.fill(pages=next(left, 0))
                reading = True
            return function(*arguments)

        return first

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(handover, "transition", interleave(transition))
        patch.setattr(both.ring, "_identify", interleave(both.ring._identify))  # type: ignore[arg-type]
        patch.setattr(both.ring._theirs, "read", interleave(both.ring._theirs.read))  # type: ignore[arg-type]
        for _ in range(10):
            both.fill()
            both.write(events=3)
            reading = True
            both.peek()
            both.read()
            both.peek()
            reading = False
    both.end()
    both.check()


@atomic
def test_either_the_overrun_or_the_take_wins(monkeypatch: pytest.MonkeyPatch) -> None:
    both = Both(pages=4)
    both.fill(pages=4)
    plan = both.ring._plan

    def overtaken() -> object:
        found = plan()
        both.fill(pages=2)  # overruns the two oldest, of which the reader knows
        return found

    monkeypatch.setattr(both.ring, "_plan", overtaken)
    both.read(1)
    monkeypatch.setattr(both.ring, "_plan", plan)
    assert both.got[0][0] >= PER_PAGE, "the oldest was overrun"
    both.end()
    both.check()
    assert both.pages.overrun[0]


@atomic
def test_page_sealed_behind_the_reader_waits_for_earlier_pages(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    both = Both(pages=8, overrun=False)
    both.fill(pages=1)
    look = both.ring._scan_full
    looks = 0

    def slow() -> object:
        nonlocal looks
        looks += 1
        found = look()
        if looks == 1:
            both.fill(pages=3)
        return found

    monkeypatch.setattr(both.ring, "_scan_full", slow)
    both.read(1)
    assert both.got[0] == list(range(len(both.got[0]))), "nothing is passed by"
    assert len(both.got[0]) <= 2 * PER_PAGE
    both.end()
    both.check()


@atomic
def test_events_of_a_quiet_writer_arrive_once_before_its_page_is_full() -> None:
    both = Both(overrun=False)
    for expected in (3, 5, 5, 6):
        both.write(events=expected - both.all[0].number)
        both.peek()
        both.acknowledge()
        assert both.got[0] == list(range(expected))
        assert both.arena.states() == (3, 1, 0, 0), "the page is still its writer's"
    both.fill(pages=2)
    both.end()
    both.check()
    assert both.ring.saved == {}


@atomic
def test_earlier_sealed_pages_arrive_first() -> None:
    both = Both(pages=8, overrun=False)
    both.write(events=PER_PAGE + 3)
    both.peek()
    assert both.delivery.held == 0
    both.read()
    both.peek()
    both.acknowledge()
    assert both.got[0] == list(range(PER_PAGE + 3))
    both.end()
    both.check()


@atomic
def test_delivered_part_of_a_page_overwritten_later_is_not_a_loss() -> None:
    both = Both(pages=2)
    both.write(events=3)
    both.peek()
    both.fill(pages=4)  # the rest of it is gone, and so is the page after it
    both.read(2)
    assert both.got[0][:3] == [0, 1, 2]
    assert both.got[0][3] - 3 == both.lost[0]
    assert both.ring.saved == {0: 3}
    both.end()
    both.check()


@atomic
def test_part_held_by_a_sink_is_unchanged_when_its_page_is_overwritten() -> None:
    both = Both(pages=2)
    both.write(events=3)
    both.peek()
    both.fill(pages=3)
    both.write(events=5)
    both.peek()  # another page, and the part of the first is not acknowledged yet
    both.peek()
    both.fill(pages=3)
    both.write(events=7)
    both.peek()
    both.acknowledge()
    assert both.got[0][:3] == [0, 1, 2]
    both.end()
    both.check()


@atomic
def test_part_delivered_before_another_writer_overwrites_is_not_awaited() -> None:
    both = Both(pages=2, writers=2)
    both.write(0, 3)
    both.peek(0)
    both.all[0].close()
    both.fill(1, pages=3)
    both.end()
    both.check()
    assert both.got[0] == [0, 1, 2]


@atomic
def test_a_page_that_still_fills_is_not_taken_for_the_one_before_it() -> None:
    both = Both(pages=2, writers=2)
    both.write(1)
    both.write(0, 3)
    both.peek(0)
    both.fill(0)  # its one page: sealed, and overrun at once
    both.write(0, 5)
    both.peek(0)
    both.read()
    both.peek(0)
    both.acknowledge()
    assert both.got[0] == [0, 1, 2, *range(both.got[0][3], both.all[0].number)]
    assert both.got[0][3] - 3 == both.lost[0]
    both.end()
    both.check()


@atomic
def test_pages_being_filled_always_find_stand_ins() -> None:
    both = Both(pages=3)
    for _ in range(10):
        both.write(events=3)
        both.read()  # what it sealed
        both.peek()
        both.acknowledge()
        assert both.got[0][-1] == both.all[0].number - 1
        both.fill(pages=7)
        both.read()
        both.read()
    both.end()
    both.check()


@atomic
def test_partly_delivered_page_returns_to_the_pool_after_its_last_sink() -> None:
    both = Both(overrun=False)
    both.write(events=3)
    both.peek()
    both.fill()
    both.taken.swap(64)
    assert both.arena.states()[L.IN_FLIGHT] == 1, "until then, restoring the arena finds it"
    both.acknowledge()
    assert both.arena.states()[L.IN_FLIGHT] == 0
    both.end()
    both.check()


@atomic
def test_failed_sink_abandons_only_what_it_had_not_acknowledged() -> None:
    both = Both(overrun=False)
    both.write(events=3)
    both.peek()
    both.acknowledge()
    both.fill()
    both.taken.swap(64)
    both.taken.detach(both.delivery)
    assert (both.taken.delivered, both.taken.abandoned) == (3, both.ring.numbers[0] - 3)
    both.taken.clear_ring()
    assert both.arena.states()[L.IN_FLIGHT] == 0


@atomic
def test_stand_ins_of_untaken_pages_are_abandoned_at_the_close() -> None:
    both = Both(overrun=False)
    both.write(events=3)
    both.peek()
    both.taken.detach(both.delivery)
    both.taken.clear_ring()
    ours = both.taken.arena
    assert ours.states() == (ours.pages, 0, 0, 0)
    assert both.arena.states() == (3, 1, 0, 0), "it is still in their arena"


@atomic
@pytest.mark.parametrize("word", [L.CHECK, L.EVENTS, L.COMMITTED])
def test_delivered_part_of_a_page_damaged_later_is_not_a_loss(word: int) -> None:
    both = Both(pages=8, overrun=False)
    both.write(events=3)
    both.peek()
    both.fill()
    both.arena.set(both.arena.descriptors[L.STATE :: L.DESCRIPTOR_WORDS].tolist().index(L.FULL), word, 1)
    both.end()
    assert len(both.ring.bad) == 1
    assert both.got[0][:3] == [0, 1, 2]
    assert both.lost[0] == both.ring.lost[0] == both.got[0][3] - 3


@atomic
def test_page_being_filled_by_a_dead_writer_is_also_taken() -> None:
    both = Both(writers=2)
    both.write(0, 3)
    both.fill(1)
    both.write(1, 5)
    both.end()
    assert both.got[0] == [0, 1, 2]
    assert both.got[1] == list(range(PER_PAGE + 5))
    both.check()


@atomic
def test_a_writer_that_died_between_taking_and_writing_leaves_nothing() -> None:
    both = Both()
    page = both.pages.turn(both.all[0], None, 0)
    assert page is not None
    both.end()
    assert both.got[0] == []
    assert both.arena.states()[0] == both.arena.pages


@atomic
def test_page_being_overrun_at_the_death_is_still_there() -> None:
    both = Both(pages=2)
    both.fill(pages=2)
    page = both.pages.ring.overrun()
    assert page is not None
    both.end()
    assert both.got[0][0] == 0


@atomic
@pytest.mark.parametrize("word", [L.WRITER, L.SEQUENCE, L.FIRST_EVENT, L.CHECK, L.EVENTS, L.COMMITTED, L.STATE])
def test_damaged_page_loses_only_itself(word: int) -> None:
    both = Both(pages=8)
    both.fill(pages=4)
    (second,) = [page for page in range(8) if both.arena.get(page, L.STATE) and both.arena.get(page, L.SEQUENCE) == 1]
    both.arena.set(second, word, 77777)
    both.end()
    assert len(both.ring.bad) == 1
    lost = set(range(both.all[0].number)) - set(both.got[0])
    assert lost == set(range(min(lost), min(lost) + len(lost)))
    assert 0 < len(lost) <= PER_PAGE + 1
    assert both.lost[0] == len(lost)


LIES = st.sampled_from([0, 1, 2, 3, 2**31, 2**63, 2**64 - 1, PAGE, PAGE - 16]) | st.integers(0, 2**64 - 1)


@atomic
@given(
    st.lists(
        st.tuples(st.integers(0, 5), st.sampled_from(["descriptor", "page"]), st.integers(0, 15), LIES), max_size=8
    ),
    st.booleans(),
)
def test_arbitrary_words_of_the_other_process_never_raise_or_repeat_a_page(
    lies: list[tuple[int, str, int, int]], is_early: bool
) -> None:
    both = Both(pages=6, writers=2, overrun=False)
    both.write(0, 3)
    both.peek(0)
    both.fill(0, pages=2)
    both.write(1, 5)
    if is_early:
        both.peek(1)
    for page, where, word, value in lies:
        if where == "descriptor":
            both.arena.set(page, word, value)
        else:
            struct.pack_into("=Q", both.arena.page(page), 8 * word, value)
    for _ in range(2):
        both.peek(0)
        both.peek(1)
        both.taken.swap(64)
    both.ring.finish()
    parts = set()
    for _ in range(20):
        both.taken.swap(64)
        for part in both.delivery.look(64):
            assert (part.writer, part.sequence, part.offset) not in parts
            parts.add((part.writer, part.sequence, part.offset))
            both.taken.acknowledge(both.delivery, [part])
    assert both.delivery.held == 0


@atomic
def test_most_pages_stay_for_the_overrun_when_sinks_have_no_room() -> None:
    both = Both(pages=32, quota=1)
    both.fill(pages=20)
    both.taken.swap(64)
    len(both.taken.ring)
    assert both.arena.states()[3] <= 1 + 32 // 16


@atomic
def test_pages_of_a_fast_reader_are_reused_and_others_never_touched() -> None:
    both = Both(pages=32, overrun=False)
    for _ in range(50):
        both.fill()
        both.read()
    assert both.pages.pool.allocated <= 3
    both.end()
    both.check()


def test_handover_without_compare_and_swap_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(handover, "c_module", None)
    with pytest.raises(ConfigurationError, match="C module"):
        hand_over(Filled().pages)
    with pytest.raises(ConfigurationError, match="AIOTRACE_PURE"):
        taken_over(Arena(PAGE, 4), 1, int)


@atomic
def test_a_transition_is_refused_outside_of_the_descriptors() -> None:
    assert c_module is not None
    words = memoryview(bytearray(2 * L.DESCRIPTOR_SIZE)).cast("Q")
    assert c_module.page_transition(words, 1, L.FREE, L.FILLING)
    assert not c_module.page_transition(words, 1, L.FREE, L.FILLING)
    assert words[L.DESCRIPTOR_WORDS] == L.FILLING and sum(words) == L.FILLING
    for page in (-1, 2):
        with pytest.raises(IndexError, match="out of range"):
            c_module.page_transition(words, page, L.FREE, L.FILLING)
    with pytest.raises(BufferError):
        c_module.page_transition(words.toreadonly(), 0, L.FREE, L.FILLING)
    with pytest.raises(OverflowError):
        c_module.page_transition(words, 0, -1, L.FILLING)
    with pytest.raises(ValueError, match="not a state"):
        c_module.page_transition(words, 0, L.FREE, 4)
    c_module.fence()


@atomic
def test_page_states_change_only_as_the_table_says() -> None:
    assert c_module is not None
    states = range(len(L.STATE_NAMES))
    for old, new in itertools.product(states, states):
        words = memoryview(bytearray(L.DESCRIPTOR_SIZE)).cast("Q")
        words[L.STATE] = old
        if (old, new) in TRANSITIONS:
            assert c_module.page_transition(words, 0, old, new)
            assert words[L.STATE] == new
        else:
            with pytest.raises(AssertionError, match=f"{L.STATE_NAMES[old]} -> {L.STATE_NAMES[new]}"):
                c_module.page_transition(words, 0, old, new)
            assert words[L.STATE] == old
