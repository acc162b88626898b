"""aiotrace._protocol.collector: what it takes, and what no producer can make it take."""

from __future__ import annotations

import pickle
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aiotrace._formats.frames import PAGE_ENTRY_SIZE, Kind, encode_frame, pack_definitions, pack_end, pack_page_entry
from aiotrace._page.entry import PageEntry
from aiotrace._protocol.framing import Outbox
from aiotrace._protocol.messages import pack_request
from aiotrace.abc import SymbolDefinition
from aiotrace.protocol import (
    Broken,
    Collector,
    CollectorEvent,
    Defined,
    Finished,
    Grant,
    Greeted,
    Level,
    Limits,
    PageReceived,
    ProducerEvent,
    Refused,
    Request,
)
from support import fakes
from support.peers import give, make_producer, open_link, take_all

INFO = fakes.make_info()
LEDGER = fakes.FakeStream([]).ledger
Events = list[ProducerEvent | CollectorEvent]


def make_entry(**fields: Any) -> PageEntry:
    return PageEntry(0, 0, 0, True, 1, 0, 0, 1, 10)._replace(**fields)


class Peer:
    """A producer that says whatever it likes."""

    def __init__(self, limits: Limits | None = None, **grant: Any) -> None:
        self.collector = Collector(0.0, limits=limits or Limits())
        self._outbox = Outbox(INFO.stream_id)
        self._grant = Grant(**{"credit": 3, **grant})

    def say(self, kind: Kind, *body: bytes) -> Events:
        self._outbox.put(kind, b"".join(body))
        return give(self.collector, take_all(self._outbox))  # type: ignore[arg-type]

    def open(self, positions: dict[int, tuple[int, int]] | None = None) -> Peer:
        (greeted,) = self.say(Kind.HELLO, pack_request(INFO, Request(Level.WRITTEN)))
        assert isinstance(greeted, Greeted)
        self.collector.accept(self._grant, positions or {})
        take_all(self.collector)
        return self

    def page(self, **fields: Any) -> Events:
        entry = make_entry(**fields)
        return self.say(Kind.PAGE, pack_page_entry(entry), bytes(entry.committed))


def expect_broken(events: Events, match: str) -> None:
    (broken,) = events
    assert isinstance(broken, Broken)
    assert match in broken.reason, broken.reason


# --- what a hostile producer says -----------------------------------------------------------------


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"writer": 4}, "a page of writer 4; the stream has 4"),
        ({"writer": 2**32 - 1}, "the stream has 4"),
        ({"committed": 0}, "0 + 0 bytes on a page of 4096"),
        ({"offset": 4071}, "4071 + 10 bytes on a page of 4096"),
        ({"definitions_needed": 1}, "a page needs 1 definitions; 0 came"),
        ({"sequence": 6}, "page (6, 0) of writer 0 again; it has all up to (7, 10)"),
        ({"sequence": 7}, "page (7, 0) of writer 0 again"),
        ({"sequence": 7, "offset": 9}, "page (7, 9) of writer 0 again"),
    ],
)
def test_invalid_page_ends_the_connection(fields: dict[str, int], expected: str) -> None:
    expect_broken(Peer().open({0: (7, 10)}).page(**{"sequence": 8, **fields}), expected)


@pytest.mark.parametrize("fields", [{"sequence": 7, "offset": 10}, {"sequence": 8}, {"sequence": 2**64 - 1}])
def test_a_page_begins_where_what_is_there_ends_or_after_it(fields: dict[str, int]) -> None:
    (page,) = Peer().open({0: (7, 10)}).page(**fields)
    assert isinstance(page, PageReceived)


def test_a_page_is_taken_once() -> None:
    peer = Peer().open()
    peer.page()
    expect_broken(peer.page(), "again")


def test_page_with_a_wrong_record_length_ends_the_connection() -> None:
    expect_broken(Peer().open().say(Kind.PAGE, pack_page_entry(make_entry()), bytes(11)), "11 bytes of records")


def test_more_pages_than_the_credit_end_the_connection() -> None:
    peer = Peer(credit=2).open()
    peer.page(sequence=1)
    peer.page(sequence=1, writer=1)
    expect_broken(peer.page(sequence=2), "its credit of 2")


def test_acknowledging_gives_credit_back() -> None:
    peer = Peer(credit=2).open()
    for sequence in range(10):
        (page,) = peer.page(sequence=sequence)
        assert isinstance(page, PageReceived)
        peer.collector.acknowledge({0: page.end})
    assert peer.collector.held_count == 0


def test_more_writers_than_are_taken_are_refused_in_the_handshake() -> None:
    peer = Peer(Limits(writers=3))
    expect_broken(peer.say(Kind.HELLO, pack_request(INFO, Request())), "4 writers; at most 3 are taken")


def test_endless_definitions_end_the_connection() -> None:
    (body,) = pack_definitions(0, [SymbolDefinition(n, "x" * 100) for n in range(10)])
    expect_broken(Peer(Limits(definitions=9)).open().say(Kind.DEFINITIONS, body), "at most 9 and")
    expect_broken(Peer(Limits(definitions_size=1000)).open().say(Kind.DEFINITIONS, body), "and 1000 are taken")


def test_definitions_with_a_gap_or_twice_end_the_connection() -> None:
    for first in (4, 6, 0):
        (body,) = pack_definitions(first, fakes.DEFINITIONS)
        events = Peer(definitions=5).open().say(Kind.DEFINITIONS, body)
        expect_broken(events, f"definitions from {first} on where 5 was expected")


@pytest.mark.parametrize(
    ("kind", "length", "expected"),
    [
        (Kind.HELLO, 4097, "over the limit of 4096"),
        (Kind.HELLO, 0, "JSON"),
        (Kind.PAGE, 100, "where one of HELLO, ERROR was expected"),
        (Kind.END, 0, "where one of HELLO, ERROR was expected"),
        (Kind.HEARTBEAT, 0, "where one of HELLO, ERROR was expected"),
    ],
)
def test_a_producer_begins_with_a_hello_of_a_handshakes_size(kind: Kind, length: int, expected: str) -> None:
    expect_broken(Peer().say(kind, bytes(length)), expected)


@pytest.mark.parametrize("kind", [Kind.HELLO, Kind.ACKNOWLEDGE, Kind.PLACED])
def test_message_that_a_producer_never_sends_ends_the_connection(kind: Kind) -> None:
    expect_broken(Peer().open().say(kind), "PAGE, DEFINITIONS, END, HEARTBEAT, ERROR was expected")


def test_a_page_is_not_longer_than_the_streams() -> None:
    expect_broken(Peer().open().say(Kind.PAGE, bytes(PAGE_ENTRY_SIZE + 4080 + 1)), "over the limit of")


def test_frame_after_the_end_is_refused() -> None:
    peer = Peer().open()
    assert peer.say(Kind.END, pack_end(LEDGER)) == [Finished(LEDGER)]
    expect_broken(peer.page(), "where one of HEARTBEAT, ERROR was expected")


def test_page_for_an_ended_stream_is_refused() -> None:
    expect_broken(Peer(ended=True).open().page(), "where one of HEARTBEAT, ERROR was expected")
    expect_broken(Peer(ended=True).open().say(Kind.END, pack_end(LEDGER)), "where one of HEARTBEAT, ERROR was expected")


def test_peer_that_sends_much_before_the_hello_answer_is_cut_off() -> None:
    peer = Peer()
    peer.say(Kind.HELLO, pack_request(INFO, Request()))
    for _ in range(20):
        assert peer.say(Kind.HEARTBEAT) == []
    events: Events = []
    while not events:
        events = peer.say(Kind.HEARTBEAT)
    expect_broken(events, "bytes before its hello was answered")


def test_frames_received_before_the_answer_are_read_after_it() -> None:
    peer = Peer()
    peer.say(Kind.HELLO, pack_request(INFO, Request()))
    peer.say(Kind.HEARTBEAT)
    peer.collector.accept(Grant(1), {})
    (page,) = peer.page()
    assert isinstance(page, PageReceived)


@given(st.binary(max_size=500), st.booleans())
def test_arbitrary_bytes_store_no_page(data: bytes, opened: bool) -> None:
    peer = Peer().open() if opened else Peer()
    assert all(isinstance(event, Broken) for event in give(peer.collector, data))


entries = st.builds(
    make_entry,
    writer=st.integers(0, 5),
    sequence=st.integers(0, 3),
    offset=st.sampled_from([0, 5, 10, 4070]),
    committed=st.integers(0, 20),
    definitions_needed=st.integers(0, 2),
)
messages = st.one_of(
    st.builds(lambda entry: (Kind.PAGE, pack_page_entry(entry) + bytes(entry.committed)), entries),
    st.builds(lambda first: (Kind.DEFINITIONS, next(pack_definitions(first, fakes.DEFINITIONS))), st.integers(0, 4)),
    st.tuples(st.sampled_from(Kind), st.binary(max_size=80)),
)


@given(st.lists(messages, max_size=20), st.booleans())
def test_pages_arrive_in_order_and_within_credit_for_any_producer(
    said: list[tuple[Kind, bytes]], acknowledges: bool
) -> None:
    peer = Peer().open()
    ends: dict[int, tuple[int, int]] = {}
    definitions = 0
    for kind, body in said:
        for event in peer.say(kind, body):
            if isinstance(event, Defined):
                assert event.first == definitions
                definitions += len(event.definitions)
            if isinstance(event, PageReceived):
                entry = event.entry
                assert entry.definitions_needed <= definitions
                assert (entry.sequence, entry.offset) >= ends.get(entry.writer, (0, 0))
                ends[entry.writer] = event.end
                if acknowledges:
                    peer.collector.acknowledge({entry.writer: event.end})
        assert peer.collector.held_count <= 3


# --- what it does ---------------------------------------------------------------------------------


def test_refused_producer_gets_the_reason_and_earlier_acknowledgements() -> None:
    link = open_link()
    link.producer.add(fakes.make_page())
    link.send(1 << 30)
    link.arrive(1 << 30)
    link.store(1)
    link.collector.received(0, 0.0)
    link.collector.refuse("the disk is full")
    assert link.collector.is_over
    link.answer(1 << 30)
    link.hear(1 << 30)
    assert len(link.acknowledged) == 1
    assert link.broken == ["the disk is full"]


def test_a_refusal_before_the_hello_reaches_the_producer() -> None:
    collector = Collector(0.0)
    collector.refuse("there are 200 clients already")
    producer = make_producer()
    producer.connect(0.0)
    assert give(producer, take_all(collector)) == [Refused("there are 200 clients already")]


def test_last_words_of_the_producer_are_read() -> None:
    peer = Peer().open()
    assert peer.say(Kind.ERROR, b"no\x1b[31m more") == [Refused("no\\x1b[31m more")]
    assert peer.collector.is_over
    assert peer.page() == []


def test_acknowledgements_since_the_last_write_are_one_frame() -> None:
    peer = Peer(credit=100).open()
    pages = [page for n in range(20) for page in peer.page(writer=n % 2, sequence=n)]
    for page in pages:
        assert isinstance(page, PageReceived)
        peer.collector.acknowledge({page.entry.writer: page.end})
    assert len(take_all(peer.collector)) == 48 + 8 + 2 * 16


def test_one_acknowledgement_covers_earlier_pages() -> None:
    peer = Peer(credit=100).open()
    pages = [page for n in range(5) for page in peer.page(sequence=n)]
    assert isinstance(pages[3], PageReceived)
    peer.collector.acknowledge({0: pages[3].end})
    assert peer.collector.held_count == 1


@pytest.mark.parametrize("position", [(0, 9), (1, 10), (0, 0)])
def test_only_the_end_of_a_kept_page_can_be_acknowledged(position: tuple[int, int]) -> None:
    peer = Peer().open()
    peer.page()
    with pytest.raises(ValueError, match="no page that is not acknowledged ends there"):
        peer.collector.acknowledge({0: position})
    peer.collector.acknowledge({0: (0, 10)})
    with pytest.raises(ValueError, match="no page"):
        peer.collector.acknowledge({0: (0, 10)})


def test_acknowledging_after_the_connection_is_over_does_nothing() -> None:
    peer = Peer().open()
    (page,) = peer.page()
    assert isinstance(page, PageReceived)
    peer.page()
    peer.collector.acknowledge({0: page.end})
    peer.collector.acknowledge_end()
    page.release()


def test_released_memory_is_reused_and_its_old_views_raise() -> None:
    peer = Peer().open()
    (page,) = peer.page()
    assert isinstance(page, PageReceived)
    view = pickle.PickleBuffer(page.data)
    with pytest.raises(BufferError):
        page.release()
    view.release()
    page.release()
    with pytest.raises(ValueError, match="released"):
        bytes(page.data)


def test_page_is_unchanged_until_its_release_and_its_memory_is_then_reused() -> None:
    peer = Peer(credit=100).open()
    held: list[tuple[bytes, PageReceived]] = []
    blocks = set()
    for n in range(60):
        data = bytes([n]) * 4000
        entry = make_entry(sequence=n, committed=len(data))
        (page,) = peer.say(Kind.PAGE, pack_page_entry(entry), data)
        assert isinstance(page, PageReceived)
        blocks.add(page._block)
        held.append((data, page))
        assert all(bytes(page.data) == data for data, page in held)
        if n >= 5:
            _, page = held.pop(0)
            page.release()
    assert len(blocks) <= 5


def test_pages_without_their_crc32_are_taken_only_where_that_was_granted() -> None:
    for waives in (False, True):
        peer = Peer()
        peer.say(Kind.HELLO, pack_request(INFO, Request(Level.WRITTEN, check_bodies=False)))
        peer.collector.accept(Grant(3, check_bodies=not waives), {})
        peer._outbox.put_page(pack_page_entry(make_entry()), bytes(10), check_body=False)
        (event,) = give(peer.collector, take_all(peer._outbox))  # type: ignore[arg-type]
        assert isinstance(event, PageReceived if waives else Broken)


def test_greeting_has_the_token_of_the_hello() -> None:
    (greeted,) = Peer().say(Kind.HELLO, pack_request(INFO, Request(token="a token")))
    assert isinstance(greeted, Greeted)
    assert greeted.request.token == "a token"
    assert greeted.info == INFO


def test_a_frame_of_another_stream_ends_the_connection() -> None:
    peer = Peer().open()
    (broken,) = give(peer.collector, encode_frame(Kind.HEARTBEAT, b"another stream's", 1))
    assert isinstance(broken, Broken)


# --- time -----------------------------------------------------------------------------------------


def test_peer_without_a_hello_in_five_seconds_is_cut_off_despite_traffic() -> None:
    hello = encode_frame(Kind.HELLO, INFO.stream_id, 0, pack_request(INFO, Request()))
    collector = Collector(0.0)
    for n in range(20):
        buffer = collector.buffer()
        buffer[:1] = hello[n : n + 1]
        assert collector.received(1, n / 4) == []
    assert collector.tick(4.99) == []
    (broken,) = collector.tick(5.0)
    assert isinstance(broken, Broken)
    assert "sent no hello for 5 s" in broken.reason


def test_a_producer_that_is_silent_for_two_heartbeats_is_gone() -> None:
    peer = Peer().open()
    assert peer.collector.tick(9.99) == []
    (broken,) = peer.collector.tick(10.0)
    assert isinstance(broken, Broken)
    assert "silent for 10 s" in broken.reason


def test_idle_peer_sends_a_heartbeat() -> None:
    peer = Peer().open()
    said = 0
    for n in range(1, 20):
        peer.collector.tick(n / 2)
        said += len(take_all(peer.collector))
    assert 1 <= said // 48 <= 4


def test_an_acknowledgement_is_as_good_as_a_heartbeat() -> None:
    peer = Peer().open()
    for n in range(1, 30):
        (page,) = peer.page(sequence=n)
        assert isinstance(page, PageReceived)
        peer.collector.acknowledge({0: page.end})
        peer.collector.tick(n * 0.3)
        assert len(take_all(peer.collector)) == 48 + 8 + 16
