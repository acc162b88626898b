"""Pages and records: what is encoded is what is walked, and damage is an error and never a hang."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aiotrace import TraceFormatError
from aiotrace._page.encode import encode_record, encode_time_extend, pack_header, pack_lost_count
from support.page_oracle import encode_absolute_timestamp, encode_padding, unpack_header, walk

pytestmark = pytest.mark.pure_too

deltas = st.one_of(st.integers(0, 2**27 + 1), st.integers(0, 2**59 - 1))


@given(st.lists(st.tuples(deltas, st.binary(min_size=1, max_size=300)), max_size=20), st.integers(0, 2**60))
def test_walking_gives_back_what_was_encoded(records: list[tuple[int, bytes]], start: int) -> None:
    data = b"".join(encode_record(delta, payload) for delta, payload in records)
    walked = list(walk(data, start))
    time = start
    for record, (delta, payload) in zip(walked, records, strict=True):
        time += delta
        assert record.timestamp == time
        assert data[record.start : record.start + len(payload)] == payload
        assert record.length == -(-len(payload) // 4) * 4


def test_padding_time_extends_and_absolute_times_are_not_events() -> None:
    data = (
        encode_padding(12) + encode_time_extend(2**40) + encode_absolute_timestamp(10**12) + encode_record(5, b"abcd")
    )
    (record,) = walk(data, 0)
    assert record.timestamp == 10**12 + 5


@given(st.binary(max_size=200))
def test_any_bytes_are_walked_or_refused(data: bytes) -> None:
    try:
        records = list(walk(data, 0))
    except TraceFormatError:
        return
    assert all(record.start + record.length <= len(data) for record in records)


@given(st.integers(0, 2**63), st.integers(0, 2**16), st.sampled_from([-1, 0, 1, 2**40]))
def test_header_returns_what_was_packed(timestamp: int, size: int, lost: int) -> None:
    page = pack_header(timestamp, size, lost) + bytes(size) + pack_lost_count(lost)
    assert tuple(unpack_header(page)) == (timestamp, size, lost)


@pytest.mark.parametrize("size", [0, 15, 115])
def test_page_shorter_than_its_header_length_is_refused(size: int) -> None:
    with pytest.raises(TraceFormatError):
        unpack_header((pack_header(0, 100) + bytes(100))[:size])
