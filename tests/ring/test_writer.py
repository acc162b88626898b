"""Writers: numbers of events, pages that turn, refusals by cause, and slots that threads share."""

from __future__ import annotations

import struct
import threading
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aiotrace._page import layout as L
from aiotrace._recording.writing import WRITERS_MAX
from aiotrace._ring.arena import Arena
from aiotrace._ring.delivery import Delivery
from aiotrace._ring.page_cycle import PageCycle
from aiotrace._ring.writer import CAUSES, Writer, Writers, payload_max
from support.page_events import PageEvents
from support.page_oracle import unpack_header, walk

pytestmark = pytest.mark.pure_too

PAGE = 4096
PAYLOAD = bytes(1000)
"""Four of them fill a page."""
START = 10**15


class Core:
    """Pages, and writers whose clock the test sets."""

    def __init__(self, pages: int = 4, *, overrun: bool = False, slots: int = 1, first_sequence: int = 0) -> None:
        self.now = START
        self.definitions: list[object] = []
        self.arena = Arena(PAGE, pages)
        self.listener = PageEvents()
        self.pages = PageCycle(self.arena, overrun=overrun, listener=self.listener)
        self.writers = Writers(self.pages, slots, lambda: self.now, self.definitions, first_sequence)
        self.writer = self.writers.all[0]

    def write(self, count: int, writer: Writer | None = None) -> int:
        """How many of `count` events were written."""
        return sum((writer or self.writer).write(PAYLOAD) for _ in range(count))

    def words(self, page: int) -> tuple[int, int, int, int, int, int]:
        fields = (L.SEQUENCE, L.FIRST_EVENT, L.EVENTS, L.COMMITTED, L.LAST_TIME, L.DEFINITIONS)
        words = [self.arena.get(page, field) for field in fields]
        return words[0], words[1], words[2], words[3], words[4], words[5]


def test_a_writer_takes_its_first_page_with_its_first_event() -> None:
    core = Core()
    assert core.arena.states() == (4, 0, 0, 0)
    assert core.writer.page is None
    assert core.write(1) == 1
    assert core.arena.states() == (3, 1, 0, 0)
    assert core.writer.page == 0
    assert core.arena.get(0, L.STATE) == L.FILLING


def test_full_page_enters_the_ring_and_the_event_starts_the_next_page() -> None:
    core = Core(first_sequence=2**32 - 1)
    full: list[tuple[int, ...]] = []
    core.listener.on_full = lambda: full.append(tuple(core.pages.ring))
    core.definitions += "abc"
    core.write(3)
    core.now += 5
    core.write(1)
    core.definitions += "d"
    core.now += 5
    assert not full
    core.write(1)
    assert full == [(0,)]
    assert core.words(0) == (2**32 - 1, 0, 4, 4 * 1008, START + 5, 4)
    header = unpack_header(core.arena.page(0))
    assert (header.committed, header.timestamp) == (4 * 1008, START)
    assert core.writer.page == 1
    assert core.words(1)[:2] == (2**32, 4)
    assert core.writer.committed_prefix() is not None
    assert core.writer.events_on_page == 1


def test_every_event_has_a_number_refused_ones_too() -> None:
    core = Core()
    core.write(2)
    core.writer.refuse("wrong_type")
    core.writer.refuse("fork")
    core.write(3)
    assert core.writer.number == 7
    assert (core.writer.written, core.writer.dropped_total) == (5, 2)
    assert core.words(1)[1] == 6, "the second page begins with the seventh event"
    assert core.writer.dropped_by_cause() == {**dict.fromkeys(CAUSES, 0), "wrong_type": 1, "fork": 1}


def test_events_are_dropped_and_counted_until_a_page_is_returned() -> None:
    core = Core(pages=2)
    assert core.write(11) == 8
    assert core.writer.dropped_by_cause()["no_page"] == 3
    assert core.writer.page is None
    assert core.arena.states() == (0, 0, 2, 0)
    core.pages.clear_ring()
    assert core.write(1) == 1
    page = core.writer.page
    assert page is not None
    assert core.words(page)[:2] == (2, 11), "a sequence has no gap; the numbers have"


def test_drop_oldest_overwrites_the_oldest_page() -> None:
    core = Core(pages=2, overrun=True)
    assert core.write(9) == 9
    assert core.pages.overrun == {0: 4}
    assert core.writer.page == 0
    assert core.words(0)[:2] == (2, 8)


def test_payload_longer_than_a_page_is_refused_without_a_page_turn() -> None:
    core = Core()
    core.write(1)
    longest = core.writer.payload_max
    assert longest == payload_max(PAGE) == PAGE - 40
    assert not core.writer.write(bytes(longest + 4))
    assert core.writer.dropped_by_cause()["too_long"] == 1
    assert core.arena.states() == (3, 1, 0, 0)
    core.now += 1 << 40  # with a time extend in front
    assert core.writer.write(bytes(longest))
    assert not core.write(1) or core.writer.page == 2


def test_the_longest_payload_fits_on_an_empty_page_after_any_pause() -> None:
    core = Core(pages=2)
    assert core.writer.make_room(core.writer.payload_max)
    core.now += 1 << 40
    assert core.writer.write(bytes(core.writer.payload_max))
    assert len(core.pages.ring) == 0, "on the page that was there"


def test_a_call_from_inside_a_write_is_refused_and_counted() -> None:
    core = Core(pages=2)
    answers: list[bool] = []
    core.listener.on_full = lambda: answers.append(core.writer.write(PAYLOAD))  # runs in the middle of a turn
    assert core.write(5) == 5
    assert answers == [False]
    assert core.writer.dropped_by_cause()["reentrant"] == 1
    assert core.writer.number == 6
    assert not core.writer.guard.busy


def test_a_refusal_is_counted_once_before_and_after_the_turn() -> None:
    core = Core()
    for _ in range(3):
        core.writer.refuse("wrong_type")
        core.write(4)
        assert core.writer.dropped_total == sum(core.writer.dropped_by_cause().values())
    core.writers.close()
    assert core.writer.dropped_by_cause()["wrong_type"] == core.writer.dropped_total == 3


def test_each_refusal_is_in_the_arena_before_the_call_returns() -> None:
    core = Core(pages=2, slots=2)
    core.writers.lease()
    second, _ = core.writers.lease()
    for refused in range(1, 4):
        core.writer.refuse("wrong_type")
        assert core.arena.get_refused(0) == (0, 0, refused, 0, 0)
    assert core.write(9, second) == 8
    assert core.arena.get_refused(1) == (1, 0, 0, 0, 0)
    assert not second.write(bytes(PAGE))
    assert core.arena.get_refused(1) == (1, 0, 0, 1, 0)
    assert core.arena.get_refused(0) == tuple(core.writer.dropped_by_cause().values())


def test_a_refusal_inside_a_call_is_in_the_arena_after_the_next() -> None:
    core = Core(pages=2)
    core.listener.on_full = lambda: core.writer.write(PAYLOAD)  # runs in the middle of a turn
    core.write(5)
    core.writer.refuse("wrong_type")
    assert core.arena.get_refused(0) == (0, 1, 1, 0, 0)


def test_every_writer_of_a_recording_has_its_counts_in_the_arena() -> None:
    assert WRITERS_MAX <= L.ARENA_COUNTED_WRITERS
    assert L.ARENA_REFUSED_EVENTS >= L.ARENA_CLOSED + 8 + 24 * WRITERS_MAX
    assert L.ARENA_REFUSED_EVENTS + 8 * len(CAUSES) * L.ARENA_COUNTED_WRITERS <= L.ARENA_ASKED


def test_a_mark_is_how_far_the_page_has_come() -> None:
    core = Core()
    assert core.writer.committed_prefix() is None
    core.write(1)
    core.now += 7
    core.write(1)
    core.definitions += "ab"
    prefix = core.writer.committed_prefix()
    assert prefix is not None
    assert prefix == (0, 2, 2016, START + 7, 2)
    data = bytes(core.arena.page(0))
    assert len(list(walk(data, START, 16, 16 + prefix.committed))) == 2
    core.write(3)
    prefix = core.writer.committed_prefix()
    assert prefix is not None
    assert (prefix.page, prefix.events) == (1, 1), "of the page that it fills now"


def test_the_first_unsealed_event_is_the_first_of_its_page_or_the_next_one() -> None:
    core = Core(pages=2)
    assert core.writer.first_unsealed == 0
    core.write(5)
    assert core.writer.first_unsealed == 4
    core.write(4)
    assert core.writer.page is None
    assert core.writer.first_unsealed == core.writer.number == 9


def test_an_account_says_what_is_on_no_sealed_page() -> None:
    core = Core()
    assert core.writer.account() == (0, None, 0)
    core.write(6)
    assert core.writer.account() == (6, 1, 2)


# --- room ---------------------------------------------------------------------------------------


def test_room_is_on_the_page_or_on_one_that_can_be_taken() -> None:
    core = Core(pages=1)
    assert core.writer.has_room(1000)
    core.write(3)
    assert core.writer.has_room(1000)
    assert not core.writer.would_turn(1000)
    core.write(1)
    assert core.writer.would_turn(1000)
    assert core.writer.would_turn(8) is False, "a short one still fits"
    assert not core.writer.has_room(1000)
    assert core.writer.has_room(8)


def test_drop_oldest_has_room_if_a_page_can_be_overwritten() -> None:
    core = Core(pages=2, overrun=True)
    core.write(4)
    assert core.writer.make_room(1000)
    core.write(4)
    assert core.arena.states() == (0, 1, 1, 0)
    assert core.writer.has_room(1000)
    assert core.write(1) == 1


def test_making_room_turns_the_page_and_only_when_it_must() -> None:
    core = Core(pages=2)
    assert core.writer.make_room(1000)
    assert core.writer.page == 0
    core.write(3)
    assert core.writer.make_room(1000)
    assert core.writer.page == 0, "there was room"
    core.write(1)
    assert core.writer.make_room(1000)
    assert (core.writer.page, tuple(core.pages.ring)) == (1, (0,))
    core.write(4)
    assert not core.writer.make_room(1000), "no page is free"
    assert core.writer.dropped_total == 0, "no call was made"
    assert not core.writer.guard.busy


def test_closed_writer_has_room_so_that_no_caller_waits() -> None:
    core = Core(pages=1)
    core.write(4)
    assert not core.writer.make_room(1000)
    core.writers.close()
    assert core.writer.make_room(1000)
    assert core.writer.make_room(PAGE * 2)


def test_a_call_from_inside_is_not_made_to_wait_for_room() -> None:
    core = Core(pages=1)
    answers: list[bool] = []
    core.listener.on_full = lambda: answers.append(core.writer.make_room(1000))
    core.write(5)
    assert answers == [True]


def test_waiters_are_woken_one_at_a_time_in_order() -> None:
    core = Core()
    woken: list[str] = []
    core.writer.waiters.extend([lambda: woken.append("first"), lambda: woken.append("second")])
    core.writer.wake_one()
    assert woken == ["first"]
    core.writer.wake_one()
    core.writer.wake_one()
    assert woken == ["first", "second"]


def test_taking_one_of_the_last_pages_calls_on_scarce_without_the_guard() -> None:
    core = Core(pages=8)
    told: list[int] = []

    def scarce() -> None:
        assert not core.writer.guard.busy
        told.append(len(core.pages.pool))

    core.listener.on_scarce = scarce
    core.write(4 * 8 + 1)
    assert told == [1, 0], "with less than a quarter free, once a page"


def test_pages_are_not_scarce_when_the_oldest_can_be_overwritten() -> None:
    core = Core(pages=8, overrun=True)
    core.listener.on_scarce = lambda: pytest.fail("a writer waits for a sink that is not there")
    core.write(4 * 20)
    assert len(core.pages.pool) == 0
    core.pages.attach(Delivery(core.arena, 2, "wait", "sink"), {})
    assert core.pages.is_scarce


# --- the end ------------------------------------------------------------------------------------


def test_closing_moves_written_events_into_the_ring_and_ends_writing() -> None:
    core = Core()
    core.write(2)
    core.writers.close()
    assert core.arena.states() == (3, 0, 1, 0)
    assert core.words(0)[2:4] == (2, 2016)
    assert not core.write(1)
    assert core.writer.number == 2, "nothing is counted after the close"
    core.writers.close()
    assert core.arena.states() == (3, 0, 1, 0), "a second time does nothing"


def test_closing_returns_an_empty_page_to_the_pool() -> None:
    core = Core()
    core.writer.make_room(8)
    assert core.arena.states() == (3, 1, 0, 0)
    core.writers.close()
    assert core.arena.states() == (4, 0, 0, 0)
    assert core.pages.pool.recycled == 1
    assert core.writer.page is None
    assert core.writer.committed_prefix() is None


# --- slots --------------------------------------------------------------------------------------


def test_a_lease_is_of_a_free_slot_then_of_a_new_one_then_of_a_shared_one() -> None:
    core = Core(slots=3)
    leases = [core.writers.lease() for _ in range(7)]
    assert [own for _, own in leases] == [True] * 3 + [False] * 4
    slots = [writer.slot for writer, _ in leases]
    assert slots[:3] == [0, 1, 2]
    assert sorted(slots[3:6]) == [0, 1, 2], "shared in turn"
    assert len(core.writers.all) == 3


def test_next_thread_continues_the_page_of_an_ended_one() -> None:
    core = Core(slots=2)
    writer, own = core.writers.lease()
    assert own
    core.write(2, writer)
    core.writers.give_back(writer)
    again, own = core.writers.lease()
    assert (again, own) == (writer, True)
    core.write(1, again)
    assert again.events_on_page == 3


def test_after_the_close_a_lease_is_of_a_writer_that_refuses() -> None:
    core = Core(slots=3)
    core.writers.lease()
    core.writers.close()
    writer, own = core.writers.lease()
    assert not own
    assert not writer.write(PAYLOAD)
    assert len(core.writers.all) == 1


def test_lease_requested_within_another_is_shared() -> None:
    """A finaliser that runs while this thread is just in `lease`."""
    core = Core(slots=3)
    with core.writers._guard:
        assert core.writers.lease() == (core.writer, False)
    assert core.writers.lease() == (core.writer, True)


def test_every_slot_starts_at_the_same_sequence() -> None:
    core = Core(slots=2, first_sequence=2**32)
    core.writers.lease()
    second, _ = core.writers.lease()
    core.write(1, second)
    page = second.page
    assert page is not None
    assert core.words(page)[0] == 2**32
    assert core.arena.get(page, L.WRITER) == 1


def test_threads_that_share_a_writer_lose_nothing_between_them() -> None:
    core = Core(pages=64)
    threads = [threading.Thread(target=core.write, args=(50,)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert core.writer.number == core.writer.written == 200
    assert sum(core.words(page)[2] for page in core.pages.ring) + core.writer.events_on_page == 200


OPERATIONS = st.one_of(
    st.tuples(st.just("write"), st.integers(2, 1100).map(lambda words: 4 * words)),
    st.tuples(st.just("pause"), st.sampled_from([1, L.TIME_DELTA_MAX, L.TIME_DELTA_MAX + 1, 1 << 50])),
    st.tuples(st.sampled_from(["refuse", "make_room", "free"]), st.just(0)),
)


@given(st.lists(OPERATIONS, max_size=40))
def test_numbers_and_pages_agree_whatever_is_written(operations: list[tuple[str, int]]) -> None:
    core = Core(pages=3)
    calls, written = 0, dict[int, tuple[int, int]]()
    read = dict[int, tuple[int, int]]()

    def take_out() -> None:
        for page in core.pages.ring:
            header = unpack_header(core.arena.page(page))
            records = list(walk(bytes(core.arena.page(page)), header.timestamp, 16, 16 + header.committed))
            assert len(records) == core.words(page)[2]
            for record in records:
                number, size = struct.unpack_from("=II", core.arena.page(page), record.start)
                assert number not in read
                assert number >= core.words(page)[1]
                read[number] = size, record.timestamp
        core.pages.clear_ring()

    for name, argument in operations:
        if name == "write":
            payload = struct.pack("=II", calls, argument).ljust(argument, b"x")
            fits = argument <= core.writer.payload_max and core.writer.has_room(argument)
            assert core.writer.write(payload) is fits or core.writer.written == len(written) + 1
            if core.writer.written > len(written):
                written[calls] = argument, core.now
            calls += 1
        elif name == "pause":
            core.now += argument
        elif name == "refuse":
            core.writer.refuse("wrong_type")
            calls += 1
        elif name == "make_room":
            core.writer.make_room(2000)
        else:
            take_out()
        assert core.writer.number == calls
    core.writers.close()
    take_out()
    assert read == written


def test_an_unknown_cause_is_a_bug() -> None:
    core: Any = Core()
    with pytest.raises(KeyError):
        core.writer.refuse("a whim")
    assert not core.writer.guard.busy


def test_the_listener_hears_of_leases_and_of_what_a_turn_did() -> None:
    core = Core(pages=1, overrun=True)
    core.writers.lease()
    assert core.listener.leases == 1
    assert core.write(5) == 5
    assert core.listener.events == [("page_alloc", 0, 0, 0), ("overrun", 0, 0, 4)]
