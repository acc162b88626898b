"""aiotrace._protocol.framing: frames in and out, in place."""

from __future__ import annotations

import struct
import zlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aiotrace import TraceFormatError
from aiotrace._formats.frames import HEADER_SIZE, Kind, encode_frame, pack_frame_header
from aiotrace._protocol import framing as wire

ID = b"0123456789abcdef"
OTHER = b"fedcba9876543210"
LIMITS = {Kind.PAGE: 3000, Kind.HEARTBEAT: 0, Kind.ERROR: 100}


def encode(bodies: list[bytes]) -> bytes:
    return b"".join(encode_frame(Kind.PAGE, ID, number, body) for number, body in enumerate(bodies))


def read(inbox: wire.Inbox, data: bytes, step: int) -> list[wire.Arrived]:
    """Feed that many bytes at once; the caller reads bodies, so it must hold them."""
    found = []
    while data:
        buffer = inbox.buffer()
        count = min(len(buffer), len(data), step)
        assert count
        buffer[:count] = data[:count]
        data = data[count:]
        inbox.fed(count)
        while (arrived := inbox.frame()) is not None:
            arrived[2].held += 1
            found.append(arrived)
    return found


def make_header(
    *, magic: bytes = b"\xf7aio", version: int = 1, kind: int = 3, flags: int = 0, length: int = 0, sequence: int = 0
) -> bytes:
    header = struct.pack("<4sBBHII16sQI", magic, version, kind, flags, length, 0, ID, sequence, 0)
    return header + struct.pack("<I", zlib.crc32(header))


# --- in -----------------------------------------------------------------------------------------


@given(st.lists(st.integers(0, 3000), max_size=20), st.integers(1, 20_000), st.integers(0, 20_000))
def test_frames_are_whole_for_any_chunking_and_kept_bodies_do_not_change(
    sizes: list[int], step: int, block_size: int
) -> None:
    bodies = [bytes([number % 251]) * size for number, size in enumerate(sizes)]
    inbox = wire.Inbox(LIMITS, ID)
    inbox.block_size = max(block_size, wire.BLOCK_SMALL)
    found = read(inbox, encode(bodies), step)
    assert [bytes(arrived[1]) for arrived in found] == bodies
    assert inbox.unread == 0


@given(st.lists(st.tuples(st.integers(0, 3000), st.integers(0, 5)), max_size=60), st.integers(1, 20_000))
def test_a_body_is_not_overwritten_before_it_is_released(plan: list[tuple[int, int]], step: int) -> None:
    inbox = wire.Inbox(LIMITS, ID)
    held: list[tuple[bytes, wire.Arrived]] = []
    for number, (size, released) in enumerate(plan):
        body = bytes([number % 251]) * size
        held += [(body, arrived) for arrived in read(inbox, encode_frame(Kind.PAGE, ID, number, body), step)]
        for expected, arrived in held:
            assert bytes(arrived[1]) == expected
        for _, arrived in held[:released]:
            arrived[2].held -= 1
            inbox.release(arrived[2])
        del held[:released]


def test_memory_that_is_given_back_is_used_again() -> None:
    inbox = wire.Inbox(LIMITS, ID)
    blocks = set()
    for number in range(200):
        (arrived,) = read(inbox, encode_frame(Kind.PAGE, ID, number, bytes(3000)), 10_000)
        blocks.add(arrived[2])
        arrived[2].held -= 1
        inbox.release(arrived[2])
    assert len(blocks) <= 1 + wire.BLOCKS_FREE


def test_blocks_that_are_let_go_late_are_kept_up_to_a_number() -> None:
    inbox = wire.Inbox(LIMITS, ID)
    held = read(inbox, encode([bytes(3000)] * 30), 10_000)
    for arrived in held:
        arrived[2].held -= 1
        inbox.release(arrived[2])
        inbox.release(arrived[2])
    assert len(inbox._free) == wire.BLOCKS_FREE
    assert len(set(inbox._free)) == wire.BLOCKS_FREE


def test_a_frame_that_is_larger_than_a_block_gets_one_of_its_size() -> None:
    inbox = wire.Inbox({Kind.PAGE: 100_000}, ID)
    sizes = [10, 100_000, 20, 50_000]
    found = read(inbox, encode([bytes(size) for size in sizes]), 7000)
    assert [len(arrived[1]) for arrived in found] == sizes


def test_nothing_is_allocated_for_a_length_over_the_limit() -> None:
    inbox = wire.Inbox(LIMITS, ID)
    with pytest.raises(TraceFormatError, match="4294967295 bytes in a frame of kind PAGE, over the limit of 3000"):
        read(inbox, make_header(length=2**32 - 1), 100)
    assert len(inbox._block.view) == wire.BLOCK_SMALL


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (b"GET", "no frame begins with b'G"),
        (make_header(magic=b"GET "), "no frame begins with b'G"),
        (make_header(version=2), "version 2; this side has 1"),
        (make_header(kind=4), "kind ACKNOWLEDGE where one of PAGE, HEARTBEAT, ERROR was expected"),
        (make_header(kind=99), "kind 99 where one of"),
        (make_header(flags=1), "PAGE without the crc32 of its body"),
        (make_header(kind=6, length=101), "101 bytes in a frame of kind ERROR"),
        (make_header(sequence=1), "frame number 1 where 0 was expected"),
        (make_header()[:-1] + b"\0", "the crc32 of a frame's header"),
        (make_header(length=1) + b"x", "the crc32 of the body of a frame of kind PAGE"),
        (encode_frame(Kind.PAGE, OTHER, 0), "stream 66656463"),
        (encode([b""]) * 2, "frame number 0 where 1 was expected"),
    ],
)
def test_unexpected_frame_is_an_error_that_names_the_expected_ones(data: bytes, expected: str) -> None:
    for step in (1, len(data)):
        with pytest.raises(TraceFormatError, match=expected):
            read(wire.Inbox(LIMITS, ID), data, step)


def test_a_body_without_its_crc32_is_taken_of_pages_where_that_was_agreed() -> None:
    inbox = wire.Inbox(LIMITS, ID)
    inbox.may_waive = True
    (arrived,) = read(inbox, pack_frame_header(Kind.PAGE, ID, 0, b"body", check_body=False) + b"BODY", 100)
    assert bytes(arrived[1]) == b"BODY"
    with pytest.raises(TraceFormatError, match="ERROR without the crc32"):
        read(inbox, make_header(kind=6, flags=1, sequence=1), 100)


def test_refusal_may_have_an_empty_stream_id() -> None:
    (arrived,) = read(wire.Inbox(LIMITS, ID), encode_frame(Kind.ERROR, bytes(16), 0, b"no"), 100)
    assert bytes(arrived[1]) == b"no"


def test_first_frame_determines_the_stream_of_all_frames() -> None:
    inbox = wire.Inbox(LIMITS)
    read(inbox, encode([b"first"]), 100)
    with pytest.raises(TraceFormatError, match="a frame of stream"):
        read(inbox, encode_frame(Kind.PAGE, OTHER, 1), 100)


@given(st.binary(max_size=300), st.integers(1, 300))
def test_any_bytes_are_frames_or_an_error(data: bytes, step: int) -> None:
    try:
        read(wire.Inbox(LIMITS, ID), data, step)
    except TraceFormatError:
        pass


# --- out ----------------------------------------------------------------------------------------


@given(st.lists(st.integers(0, 300), max_size=100), st.integers(1, 2000))
def test_queued_bytes_are_sent_for_any_partial_write(sizes: list[int], step: int) -> None:
    outbox = wire.Outbox(ID)
    bodies = [bytes([number % 251]) * size for number, size in enumerate(sizes)]
    for body in bodies:
        outbox.put_page(body[:10], body[10:], check_body=True) if len(body) > 10 else outbox.put(Kind.PAGE, body)
    sent = b""
    while outbox:
        taken = b"".join(outbox.pending())[:step]
        outbox.sent(len(taken))
        sent += taken
    assert sent == encode(bodies)
    assert outbox.sent_total == outbox.put_total == len(sent)


def test_a_body_is_sent_from_where_it_is() -> None:
    memory = bytearray(b"x" * 100)
    outbox = wire.Outbox(ID)
    outbox.put_page(b"entry", memoryview(memory), check_body=False)
    memory[:] = b"y" * 100
    assert b"".join(outbox.pending())[HEADER_SIZE:] == b"entry" + b"y" * 100


def test_no_view_is_left_when_all_is_sent_or_the_connection_is_over() -> None:
    memory = bytearray(100)
    outbox = wire.Outbox(ID)
    for finish in (lambda: outbox.sent(HEADER_SIZE + 105), outbox.clear):
        outbox.put_page(b"entry", memoryview(memory), check_body=True)
        finish()
        memory.append(0)  # a bytearray does not change its size under a view
        memory.pop()


def test_one_write_is_limited_in_its_number_of_buffers() -> None:
    outbox = wire.Outbox(ID)
    for _ in range(100):
        outbox.put_page(b"entry", b"records", check_body=True)
    assert len(outbox.pending()) == wire.BUFFERS_MAX
