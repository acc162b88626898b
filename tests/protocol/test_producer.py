"""aiotrace._protocol.producer: what it keeps, and what no collector can make it let go."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aiotrace._formats.frames import Frame, FrameReader, Kind, encode_frame
from aiotrace._protocol.framing import Outbox
from aiotrace._protocol.messages import pack_acknowledgement, pack_grant
from aiotrace.abc import SymbolDefinition
from aiotrace.protocol import (
    Acknowledged,
    Broken,
    Collector,
    CollectorEvent,
    Ended,
    Grant,
    Granted,
    Level,
    Producer,
    ProducerEvent,
    Refused,
    Request,
)
from support import fakes
from support.peers import give, make_producer, open_link, take, take_all

ID = fakes.make_info().stream_id
LEDGER = fakes.FakeStream([]).ledger
SIZE = len(fakes.make_page().data)


class Peer:
    """A collector that says whatever it likes."""

    def __init__(self, producer: Producer) -> None:
        self.producer = producer
        producer.connect(0.0)
        self._outbox = Outbox(ID)

    def say(self, kind: Kind, body: bytes = b"") -> list[ProducerEvent | CollectorEvent]:
        self._outbox.put(kind, body)
        return give(self.producer, take_all(self._outbox))  # type: ignore[arg-type]

    def grant(self, grant: Grant | None = None) -> None:
        assert self.say(Kind.HELLO, pack_grant(grant or Grant(10))) == []

    def acknowledge(
        self, positions: dict[int, tuple[int, int]], level: int = Level.WRITTEN
    ) -> list[ProducerEvent | CollectorEvent]:
        return self.say(Kind.ACKNOWLEDGE, pack_acknowledgement(level, positions))  # type: ignore[arg-type]

    def open(self, positions: dict[int, tuple[int, int]] | None = None) -> None:
        self.grant()
        assert isinstance(self.acknowledge(positions or {})[0], Granted)


def expect_broken(events: list[ProducerEvent | CollectorEvent], match: str) -> None:
    (broken,) = events
    assert isinstance(broken, Broken)
    assert match in broken.reason, broken.reason


def make_open(pages: int = 4, *, sent: bool = True) -> Peer:
    """A producer with pages 0, 1, 2, 3 of writer 0, which a collector has been sent whole, or not at all."""
    peer = Peer(make_producer())
    peer.open()
    for page in fakes.make_pages(pages):
        peer.producer.add(page)
    if sent:
        take_all(peer.producer)
    return peer


# --- what a hostile collector says ----------------------------------------------------------------


@pytest.mark.parametrize(
    "positions",
    [
        {0: (4, SIZE)},  # a page that was never sent
        {0: (2**64 - 1, SIZE)},
        {0: (1, SIZE - 1)},  # in the middle of one
        {0: (1, SIZE + 1)},
        {0: (1, 0)},
        {1: (0, SIZE)},  # another writer
        {99: (0, SIZE)},
        {0: (1, SIZE), 1: (0, SIZE)},  # one that is good beside one that is not
    ],
)
def test_acknowledgement_of_an_unsent_page_ends_the_connection(
    positions: dict[int, tuple[int, int]],
) -> None:
    peer = make_open()
    expect_broken(peer.acknowledge(positions), "where no page ends that was sent and not acknowledged")
    assert peer.producer.kept_count == 4


def test_an_acknowledgement_given_twice_ends_the_connection() -> None:
    peer = make_open()
    assert [type(event) for event in peer.acknowledge({0: (1, SIZE)})] == [Acknowledged]
    expect_broken(peer.acknowledge({0: (1, SIZE)}), "writer 0 up to page 1")
    assert peer.producer.kept_count == 2


def test_an_acknowledgement_that_goes_back_ends_the_connection() -> None:
    peer = make_open()
    peer.acknowledge({0: (1, SIZE)})
    expect_broken(peer.acknowledge({0: (0, SIZE)}), "writer 0 up to page 0")


@pytest.mark.parametrize("level", [Level.RECEIVED, Level.FSYNCED, 0, 4])
def test_acknowledgement_of_an_unrequested_level_ends_the_connection(level: int) -> None:
    peer = make_open()
    expect_broken(peer.acknowledge({0: (1, SIZE)}, level), "2 was asked for")
    assert peer.producer.kept_count == 4


def test_a_page_that_went_out_all_but_its_last_byte_cannot_be_acknowledged() -> None:
    peer = make_open(1, sent=False)
    data = b"".join(peer.producer.pending())
    take(peer.producer, len(data) - 1)
    expect_broken(peer.acknowledge({0: (0, SIZE)}), "writer 0 up to page 0")
    assert peer.producer.kept_count == 1


def test_a_page_that_waits_for_credit_cannot_be_acknowledged() -> None:
    peer = Peer(make_producer())
    peer.grant(Grant(1))
    peer.acknowledge({})
    for page in fakes.make_pages(2):
        peer.producer.add(page)
    take_all(peer.producer)
    expect_broken(peer.acknowledge({0: (1, SIZE)}), "writer 0 up to page 1")
    assert peer.producer.kept_count == 2


@pytest.mark.parametrize("position", [(0, SIZE), (0, 1), (5, 0), (2**64 - 1, 2**32 - 1)])
def test_a_collector_cannot_have_what_was_never_sent(position: tuple[int, int]) -> None:
    peer = Peer(make_producer())
    peer.producer.add(fakes.make_page())
    peer.grant()
    expect_broken(peer.acknowledge({0: position}), "which was not sent")
    assert peer.producer.kept_count == 1


def test_a_collector_cannot_have_a_page_of_which_a_byte_was_not_sent() -> None:
    peer = make_open(2, sent=False)
    data = b"".join(peer.producer.pending())
    take(peer.producer, len(data) - 1)
    peer = Peer(peer.producer)
    peer.grant()
    expect_broken(peer.acknowledge({0: (1, SIZE)}), "which was not sent")
    peer = Peer(peer.producer)
    peer.grant()
    assert [type(event) for event in peer.acknowledge({0: (0, SIZE)})] == [Granted, Acknowledged]
    assert peer.producer.kept_count == 1


def test_a_collector_cannot_have_half_of_a_page_that_came_whole() -> None:
    peer = Peer(make_open().producer)
    peer.grant()
    expect_broken(peer.acknowledge({0: (2, SIZE // 2)}), "where no part ends")
    assert peer.producer.kept_count == 4


@pytest.mark.parametrize(
    ("grant", "expected"),
    [
        (Grant(5, definitions=1), "it has 1 definitions; 0 were sent"),
        (Grant(5, ended=True), "the end of the stream, which was not sent"),
        (Grant(5, check_bodies=False), "which was not asked for"),
    ],
)
def test_impossible_grant_is_refused(grant: Grant, expected: str) -> None:
    peer = Peer(make_producer())
    expect_broken(peer.say(Kind.HELLO, pack_grant(grant)), expected)


def test_the_end_of_a_stream_that_was_not_sent_cannot_be_acknowledged() -> None:
    peer = make_open()
    expect_broken(peer.say(Kind.END), "the end of the stream, which was not sent")
    peer = make_open(sent=False)
    peer.producer.end(LEDGER)
    take(peer.producer, 1000)
    expect_broken(peer.say(Kind.END), "the end of the stream, which was not sent")


def test_the_end_cannot_be_acknowledged_before_the_pages() -> None:
    peer = make_open(sent=False)
    peer.producer.end(LEDGER)
    take_all(peer.producer)
    expect_broken(peer.say(Kind.END), "4 pages are not acknowledged")
    assert peer.producer.kept_count == 4


@pytest.mark.parametrize(
    ("kind", "length", "expected"),
    [
        (Kind.HELLO, 4097, "over the limit of 4096"),
        (Kind.ACKNOWLEDGE, 8, "where one of HELLO, ERROR was expected"),
        (Kind.PAGE, 8, "where one of HELLO, ERROR was expected"),
        (Kind.ERROR, 4097, "over the limit of 4096"),
    ],
)
def test_a_collector_begins_with_a_hello_of_a_handshakes_size(kind: Kind, length: int, expected: str) -> None:
    expect_broken(Peer(make_producer()).say(kind, bytes(length)), expected)


def test_an_acknowledgement_is_not_longer_than_the_streams_writers() -> None:
    peer = make_open()
    expect_broken(peer.acknowledge(dict.fromkeys(range(5), (0, SIZE))), "88 bytes")


messages = st.one_of(
    st.tuples(st.just(Kind.HELLO), st.builds(pack_grant, st.builds(Grant, st.integers(1, 5)))),
    st.tuples(
        st.just(Kind.ACKNOWLEDGE),
        st.builds(
            pack_acknowledgement,
            st.sampled_from(Level),
            st.dictionaries(
                st.integers(0, 2), st.tuples(st.integers(0, 4), st.sampled_from([0, SIZE // 2, SIZE])), max_size=3
            ),
        ),
    ),
    st.tuples(st.sampled_from(Kind), st.binary(max_size=50)),
)


@given(st.lists(messages, max_size=10), st.integers(0, 6 * SIZE))
def test_any_collector_acknowledges_only_sent_pages_and_each_once(said: list[tuple[Kind, bytes]], sent: int) -> None:
    peer = Peer(make_producer())
    peer.open()
    for page in fakes.make_pages(6, 2):
        peer.producer.add(page)
    took = take(peer.producer, sent)
    collector = Collector(0.0)
    give(collector, take_all(make_connected()))
    collector.accept(Grant(10), {})
    # What a collector can have got of these bytes, by its own judgement.
    arrived = {(event.entry.writer, event.entry.sequence) for event in give(collector, took) if hasattr(event, "entry")}
    acknowledged: list[tuple[int, int]] = []
    for kind, body in said:
        for event in peer.say(kind, body):
            if isinstance(event, Acknowledged):
                acknowledged += [(page.writer, page.sequence) for page in event.pages]
    assert len(set(acknowledged)) == len(acknowledged)
    assert set(acknowledged) <= arrived
    assert peer.producer.kept_count + len(acknowledged) == 6


def make_connected() -> Producer:
    producer = make_producer()
    producer.connect(0.0)
    return producer


@given(st.binary(max_size=500))
def test_arbitrary_bytes_acknowledge_no_page(data: bytes) -> None:
    peer = make_open()
    give(peer.producer, data)
    assert peer.producer.kept_count == 4


# --- what it does ---------------------------------------------------------------------------------


def test_after_the_last_word_nothing_is_heard() -> None:
    peer = make_open()
    assert peer.say(Kind.ERROR, b"the disk \x1b[2J\nis full") == [Refused("the disk \\x1b[2J\\nis full")]
    assert peer.acknowledge({0: (1, SIZE)}) == []
    assert peer.producer.tick(1e9) == []
    assert peer.producer.kept_count == 4


def test_protocol_violation_is_answered_unless_a_frame_is_half_sent() -> None:
    peer = make_open()
    peer.acknowledge({0: (9, SIZE)})
    assert b"writer 0 up to page 9" in take_all(peer.producer)
    peer = make_open(sent=False)
    take(peer.producer, 100)
    peer.acknowledge({0: (9, SIZE)})
    assert take_all(peer.producer) == b""


def test_no_more_pages_are_on_the_way_than_the_credit() -> None:
    link = open_link(credit=3)
    for page in fakes.make_pages(8):
        link.producer.add(page)
    link.send(1 << 30)
    link.arrive(1 << 30)
    assert len(link.held) == 3
    link.store(2)
    link.answer(1 << 30)
    link.hear(1 << 30)
    link.send(1 << 30)
    link.arrive(1 << 30)
    assert len(link.held) == 3
    link.settle()
    assert len(link.acknowledged) == 8


def test_definitions_precede_their_page_and_resume_after_a_reconnect() -> None:
    link = open_link()
    definitions = list(fakes.DEFINITIONS)
    link.producer._definitions = definitions
    link.producer.add(fakes.make_page())
    link.settle()
    assert link.stored.definitions == fakes.DEFINITIONS
    definitions += [SymbolDefinition(n, "new") for n in range(3)]
    page = fakes.make_page(sequence=1)
    page.definitions_needed = 6
    link.connect()
    link.producer.add(page)
    link.settle()
    assert link.stored.definitions == definitions[:6]
    link.producer.end(LEDGER)
    link.settle()
    assert link.stored.definitions == definitions


def test_all_definitions_go_again_to_a_collector_that_has_lost_them() -> None:
    link = open_link()
    link.producer.add(fakes.make_page())
    link.settle()
    link.stored = type(link.stored)()
    link.connect()
    link.producer.add(fakes.make_page(sequence=1))
    link.settle()
    assert link.stored.definitions == fakes.DEFINITIONS
    assert link.stored.pages == [(0, 1, 0)]


def test_ended_stream_is_not_resent_to_a_collector_that_has_its_end() -> None:
    link = open_link()
    link.producer.add(fakes.make_page())
    assert not link.producer.end(LEDGER)
    link.send(1 << 30)
    link.arrive(1 << 30)
    link.store(1)  # and its answer is lost
    link.connect()
    link.settle()
    assert link.ended
    assert len(link.acknowledged) == 1


def test_ending_a_stream_already_ended_by_the_collector_sends_nothing() -> None:
    link = open_link()
    link.producer.end(LEDGER)
    link.settle()
    link.producer.forget()
    link.connect()
    link.settle()
    assert link.producer.end(LEDGER)
    assert not link.producer.is_sending, "the collector would take a second end for a broken protocol"


def test_pages_remain_without_views_after_the_connection_is_lost() -> None:
    memory = bytearray(fakes.make_page().data)
    page = fakes.make_page()
    page.data = memoryview(memory)
    link = open_link()
    link.producer.add(page)
    link.send(100)
    link.producer.disconnect()
    assert link.producer.pending() == []
    assert link.producer.kept_count == 1
    link.producer.forget()
    page.data.release()
    memory.append(0)  # a bytearray does not change its size under a view
    assert link.producer.kept_count == 0


# --- time -----------------------------------------------------------------------------------------


def beats(data: bytes) -> int:
    reader = FrameReader()
    reader.feed(data)
    return sum(isinstance(item, Frame) and item.kind is Kind.HEARTBEAT for item in reader.frames())


def test_a_collector_that_is_silent_for_two_heartbeats_is_gone() -> None:
    peer = make_open()
    assert peer.producer.tick(9.99) == []
    expect_broken(list(peer.producer.tick(10.0)), "silent for 10 s")
    assert peer.producer.kept_count == 4


def test_any_frame_counts_as_a_sign_of_life() -> None:
    link = open_link()
    for n in range(1, 10):
        link.now = n * 4.0
        assert link.collector.tick(link.now) == []
        link.answer(1 << 30)
        link.hear(1 << 30)
        assert link.producer.tick(link.now) == []
        link.send(1 << 30)
        link.arrive(1 << 30)
    assert not link.broken


def test_heartbeat_is_sent_only_by_an_idle_peer() -> None:
    producer = make_producer()
    peer = Peer(producer)
    peer.grant(Grant(100))
    peer.acknowledge({})
    take_all(producer)
    said = b""
    now = 0.0
    for n in range(40):
        now = n * 0.25
        producer.tick(now)
        if n < 20:
            producer.add(fakes.make_page(sequence=n))
        said += take_all(producer)
        if n == 19:
            assert beats(said) == 0
    assert beats(said) >= 1


@pytest.mark.parametrize("make", [make_connected, lambda: make_open().producer])
def test_the_deadline_is_when_something_is_due(make: Callable[[], Producer]) -> None:
    producer = make()
    assert 0 < producer.deadline <= 10
    take_all(producer)
    producer.tick(producer.deadline)
    assert producer.deadline > 2.5


def test_the_end_is_reported_once_everything_is_there() -> None:
    link = open_link()
    link.producer.add(fakes.make_page())
    link.producer.end(LEDGER)
    link.send(1 << 30)
    link.arrive(1 << 30)
    link.store(1)
    link.answer(1 << 30)
    data, link.to_producer = link.to_producer, b""
    assert [type(event) for event in give(link.producer, data)] == [Acknowledged, Ended]


def test_a_request_for_less_waives_what_the_collector_agrees_to() -> None:
    for waives in (False, True):
        link = open_link(waives=waives)
        link.producer = make_producer(Request(level=Level.WRITTEN, check_bodies=False))
        link.connect()
        link.producer.add(fakes.make_page())
        link.settle()
        assert len(link.acknowledged) == 1
        assert link.producer._grant.check_bodies is not waives


def test_an_unknown_stream_is_an_error() -> None:
    producer = make_connected()
    (broken,) = give(producer, encode_frame(Kind.HELLO, b"another stream's", 0, pack_grant(Grant(1))))
    assert isinstance(broken, Broken)
