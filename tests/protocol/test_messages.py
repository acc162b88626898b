"""aiotrace._protocol.messages, and both sides of it against each other over a wire that is cut anywhere."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aiotrace import TraceFormatError
from aiotrace._protocol import messages as protocol
from aiotrace.abc import SymbolDefinition
from aiotrace.protocol import Grant, Level, Request
from support import fakes
from support.peers import Link, make_producer, open_link

START = 2**32 - 3
"""Sequences go over 2**32 within a few pages."""


# --- both sides ---------------------------------------------------------------------------------

actions = st.lists(
    st.one_of(
        st.tuples(st.just("add"), st.integers(1, 3)),
        st.tuples(st.sampled_from(["send", "arrive", "answer", "hear"]), st.integers(1, 3000)),
        st.tuples(st.just("store"), st.integers(1, 5)),
        st.tuples(st.sampled_from(["connect", "end", "define"]), st.just(1)),
    ),
    max_size=60,
)


def make_parts(count: int) -> list[fakes.FakePage]:
    """Pages of three writers, every other one in two parts."""
    parts: list[fakes.FakePage] = []
    for number in range(count):
        page = fakes.make_page(number % 3, START + number // 3, events=6, first=number * 10)
        parts += fakes.cut(page, 2) if number % 2 else [page]
    return parts


class Producing:
    """A link whose producer is given pages one by one, as by a stream, and again after it forgot them."""

    def __init__(self, credit: int, waives: bool) -> None:
        self.definitions = list(fakes.DEFINITIONS)
        request = Request(level=Level.WRITTEN, check_bodies=not waives)
        producer = make_producer(request, definitions=self.definitions)
        self.link = Link(producer, credit=credit, waives=waives)
        self.left = make_parts(12)
        self.given: list[fakes.FakePage] = []

    def do(self, action: str, count: int) -> None:
        link = self.link
        if action == "connect":
            link.connect()
        elif action == "define":
            self.definitions.append(SymbolDefinition(len(self.definitions), "new"))
        elif action == "add":
            for _ in range(count):
                self.add()
        elif action == "end" and not self.left:
            link.producer.end(fakes.FakeStream([]).ledger)
        elif link.connected and action in ("send", "arrive", "answer", "hear", "store"):
            getattr(link, action)(count)

    def add(self) -> None:
        if self.left:
            page = self.left.pop(0)
            page.definitions_needed = len(self.definitions)
            self.given.append(page)
            if self.link.producer.add(page):
                self.link.acknowledged.append(page)

    def check(self) -> None:
        """At any time: what was acknowledged is stored, and nothing that is stored is there twice."""
        stored = self.link.stored.pages
        assert len(set(stored)) == len(stored)
        parts = [(page.writer, page.sequence, page.offset) for page in self.link.acknowledged]
        assert len(set(parts)) == len(parts)
        assert set(parts) <= set(stored)
        assert not self.link.broken


@given(actions, st.integers(1, 6), st.booleans())
def test_each_page_arrives_once_and_in_order_however_the_wire_is_cut(
    plan: list[tuple[str, int]], credit: int, waives: bool
) -> None:
    producing = Producing(credit, waives)
    for action, count in plan:
        producing.do(action, count)
        producing.check()
    while producing.left:
        producing.add()
    producing.link.producer.end(fakes.FakeStream([]).ledger)
    if not producing.link.ended:
        producing.link.connect()
        producing.link.settle()
    producing.check()
    link, given_ = producing.link, producing.given
    assert link.ended
    assert link.producer.kept_count == 0
    assert len(link.acknowledged) == len(given_)
    for writer in range(3):
        expected = [(page.writer, page.sequence, page.offset) for page in given_ if page.writer == writer]
        assert [part for part in link.stored.pages if part[0] == writer] == expected
    data = {(page.writer, page.sequence, page.offset): bytes(page.data) for page in given_}
    assert dict(zip(link.stored.pages, link.stored.data, strict=True)) == data
    assert link.stored.definitions == producing.definitions
    assert link.stored.ledger == fakes.FakeStream([]).ledger


@given(actions)
def test_producer_given_its_pages_again_neither_loses_nor_repeats_any(
    plan: list[tuple[str, int]],
) -> None:
    producing = Producing(3, False)
    for action, count in plan:
        producing.do(action, count)
    link = producing.link
    acknowledged = {(page.writer, page.sequence, page.offset) for page in link.acknowledged}
    link.producer.forget()
    link.connect()
    link.settle()
    for page in producing.given:
        part = (page.writer, page.sequence, page.offset)
        if part not in acknowledged and link.producer.add(page):
            link.acknowledged.append(page)
    while producing.left:
        producing.add()
    producing.link.producer.end(fakes.FakeStream([]).ledger)
    link.settle()
    producing.check()
    assert len(link.acknowledged) == len(producing.given)
    assert sorted(link.stored.pages) == sorted((page.writer, page.sequence, page.offset) for page in producing.given)


def test_sequences_up_to_the_last_one_possible_are_sent_and_acknowledged() -> None:
    link = open_link()
    for sequence in (0, 2**32 - 1, 2**32, 2**63, 2**64 - 1):
        page = fakes.make_page(sequence=sequence, first=0)
        page.timestamp = sequence
        link.producer.add(page)
    link.settle()
    assert [page.sequence for page in link.acknowledged] == [0, 2**32 - 1, 2**32, 2**63, 2**64 - 1]


# --- the handshake ------------------------------------------------------------------------------


def test_request_round_trips() -> None:
    info = fakes.make_info()
    for request in (Request(), Request(Level.RECEIVED, False, 0.5, "a token")):
        assert protocol.unpack_request(protocol.pack_request(info, request)) == (info, request)


def test_a_request_does_not_show_its_token() -> None:
    assert "secret" not in repr(Request(token="secret"))


def test_a_request_fits_into_a_handshake_however_long_the_command_is() -> None:
    info = replace(fakes.make_info(), command="\U0001f600" * 5000, host="ü" * 5000)
    body = protocol.pack_request(info, Request(token="t" * 500))
    assert len(body) <= protocol.HANDSHAKE_MAX
    assert protocol.unpack_request(body)[1].token == "t" * 500


def test_a_token_that_does_not_fit_is_an_error() -> None:
    with pytest.raises(ValueError, match="is the token so long"):
        protocol.pack_request(fakes.make_info(), Request(token="t" * 4000))


def test_grant_round_trips() -> None:
    for grant in (Grant(1), Grant(1000, False, 17, True)):
        assert protocol.unpack_grant(protocol.pack_grant(grant)) == grant


@pytest.mark.parametrize(
    ("field", "value", "expected"),
    [
        ("version", 2, "this side has 1"),
        ("level", 0, "a number from 1 to 3"),
        ("level", 4, "a number from 1 to 3"),
        ("level", True, "a number from 1 to 3"),
        ("check_bodies", 1, "true or false"),
        ("heartbeat_ms", 1, "a number from 50 to 300000"),
        ("heartbeat_ms", 10**9, "a number from 50 to 300000"),
        ("heartbeat_ms", 1.5, "a number from 50"),
        ("token", 5, "at most 1024 characters"),
        ("token", "t" * 1025, "at most 1024 characters"),
    ],
)
def test_request_with_an_invalid_field_names_the_expected_values(field: str, value: object, expected: str) -> None:
    fields = json.loads(protocol.pack_request(fakes.make_info(), Request()))
    fields["protocol"][field] = value
    with pytest.raises(TraceFormatError, match=expected):
        protocol.unpack_request(json.dumps(fields).encode())


@pytest.mark.parametrize(
    ("field", "value", "expected"),
    [
        ("version", None, "this side has 1"),
        ("credit", 0, "a number from 1"),
        ("credit", 2**32, "a number from 1"),
        ("check_bodies", None, "true or false"),
        ("definitions", -1, "a number from 0"),
        ("ended", "yes", "true or false"),
    ],
)
def test_grant_with_an_invalid_field_names_the_expected_values(field: str, value: object, expected: str) -> None:
    fields = json.loads(protocol.pack_grant(Grant(5)))
    fields["protocol"][field] = value
    with pytest.raises(TraceFormatError, match=expected):
        protocol.unpack_grant(json.dumps(fields).encode())


@pytest.mark.parametrize("body", [b"", b"\xff", b"[]", b"{}", b'{"protocol":1}', b"[" * 4000, b'{"protocol":{}}'])
def test_invalid_hello_is_a_format_error(body: bytes) -> None:
    for unpack in (protocol.unpack_grant, protocol.unpack_request):
        with pytest.raises(TraceFormatError):
            unpack(body)


# --- acknowledgements ---------------------------------------------------------------------------

positions = st.dictionaries(
    st.integers(0, 2**32 - 1), st.tuples(st.integers(0, 2**64 - 1), st.integers(0, 2**32 - 1)), max_size=20
)


@given(st.sampled_from(Level), positions)
def test_acknowledgement_round_trips(level: Level, found: dict[int, tuple[int, int]]) -> None:
    body = protocol.pack_acknowledgement(level, found)
    assert protocol.unpack_acknowledgement(body) == (level, found)
    assert len(body) == protocol.acknowledgement_size(len(found))


@pytest.mark.parametrize("length", [0, 7, 9, 23, 25])
def test_an_acknowledgement_of_another_length_is_a_format_error(length: int) -> None:
    with pytest.raises(TraceFormatError, match=f"{length} bytes"):
        protocol.unpack_acknowledgement(bytes(length))


def test_an_acknowledgement_that_names_a_writer_twice_is_a_format_error() -> None:
    body = protocol.pack_acknowledgement(Level.WRITTEN, {1: (2, 3)})
    with pytest.raises(TraceFormatError, match="twice"):
        protocol.unpack_acknowledgement(body + body[8:])
