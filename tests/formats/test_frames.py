"""aiotrace._formats.frames: the framing, and what is in the bodies."""

from __future__ import annotations

import json
import zlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aiotrace import TraceFormatError
from aiotrace._formats import frames
from aiotrace._formats.frames import Damage, Frame, FrameReader, Kind, encode_frame
from aiotrace._page.entry import PageEntry
from aiotrace.abc import CommandDefinition, EventDefinition, FunctionDefinition, Ledger, SymbolDefinition, WriterLedger
from support import fakes

ID = b"0123456789abcdef"
OTHER = b"fedcba9876543210"

bodies = st.lists(st.binary(max_size=200), max_size=8)


def encode(contents: list[bytes], stream_id: bytes = ID) -> bytes:
    return b"".join(encode_frame(Kind.PAGE, stream_id, n, body) for n, body in enumerate(contents))


def read(data: bytes, *, step: int = 0, length_max: int = frames.LENGTH_MAX) -> list[Frame | Damage]:
    reader = FrameReader(length_max=length_max)
    found: list[Frame | Damage] = []
    step = step or len(data) or 1
    for start in range(0, len(data), step):
        reader.feed(data[start : start + step])
        found += reader.frames()
    found += reader.frames(final=True)
    return found


def only_frames(found: list[Frame | Damage]) -> list[Frame]:
    return [item for item in found if isinstance(item, Frame)]


@given(bodies, st.integers(1, 100))
def test_frames_round_trip_for_any_chunking(contents: list[bytes], step: int) -> None:
    found = read(encode(contents), step=step)
    assert [(item.sequence, item.body) for item in only_frames(found)] == list(enumerate(contents))
    assert len(found) == len(contents)


@given(bodies, st.binary(max_size=60).filter(lambda noise: frames.MAGIC[:1] not in noise), st.integers(1, 100))
def test_noise_between_frames_is_reported_and_passed_over(contents: list[bytes], noise: bytes, step: int) -> None:
    pieces = [encode_frame(Kind.PAGE, ID, n, body) + noise for n, body in enumerate(contents)]
    found = read(b"".join(pieces), step=step)
    assert [item.body for item in only_frames(found)] == contents
    assert sum(item.length for item in found if isinstance(item, Damage)) == len(noise) * len(contents)


@given(st.lists(st.binary(max_size=100), min_size=1, max_size=5), st.data())
def test_flipped_bit_loses_only_its_frame(contents: list[bytes], data: st.DataObject) -> None:
    encoded = bytearray(encode(contents))
    place = data.draw(st.integers(0, len(encoded) - 1))
    encoded[place] ^= 1 << data.draw(st.integers(0, 7))
    ends = [0]
    for body in contents:
        ends.append(ends[-1] + frames.HEADER_SIZE + len(body))
    hit = next(n for n in range(len(contents)) if place < ends[n + 1])
    found = read(bytes(encoded))
    assert [item.sequence for item in only_frames(found)] == [n for n in range(len(contents)) if n != hit]
    assert [(item.offset, item.length) for item in found if isinstance(item, Damage)] == [
        (ends[hit], ends[hit + 1] - ends[hit])
    ]


@given(bodies, st.data())
def test_frames_and_damage_cover_the_whole_input(contents: list[bytes], data: st.DataObject) -> None:
    encoded = encode(contents)
    cut = encoded[: data.draw(st.integers(0, len(encoded)))]
    position = 0
    for item in read(cut, step=data.draw(st.integers(1, 50))):
        assert item.offset == position
        position += item.length if isinstance(item, Damage) else frames.HEADER_SIZE + len(item.body)
    assert position == len(cut)


@given(st.binary(max_size=2000))
def test_any_bytes_are_read_without_an_exception(data: bytes) -> None:
    read(data.replace(b"\0", frames.MAGIC), step=37)


def test_reader_has_the_position_of_its_progress() -> None:
    reader = FrameReader()
    whole = encode([b"one", b"two"])
    reader.feed(whole + whole[:20])
    assert len(list(reader.frames())) == 2
    assert reader.offset == len(whole)
    reader.forget_incomplete()
    reader.feed(whole)
    assert [item.offset for item in only_frames(list(reader.frames()))] == [len(whole), len(whole) + 51]


def test_a_length_over_the_limit_is_damage_even_with_a_good_checksum() -> None:
    (damage,) = read(encode([b"x" * 100]), length_max=99)
    assert isinstance(damage, Damage)
    assert "100 bytes is over the limit of 99" in damage.reason


def test_no_memory_is_reserved_for_a_header_that_claims_too_much() -> None:
    header = frames._HEADER.pack(frames.MAGIC, 1, Kind.PAGE, 0, 0xFFFF_FFFF, 0, ID, 0, 0)
    reader = FrameReader()
    reader.feed(header + zlib.crc32(header).to_bytes(4, "little") + bytes(100))
    assert [type(item) for item in reader.frames(final=True)] == [Damage]
    assert not reader._buffer


@pytest.mark.parametrize(("version", "kind"), [(2, 1), (1, 0), (1, 99)])
def test_an_unknown_version_or_kind_is_damage(version: int, kind: int) -> None:
    header = frames._HEADER.pack(frames.MAGIC, version, kind, 0, 0, 0, ID, 0, 0)
    (damage,) = read(header + zlib.crc32(header).to_bytes(4, "little"))
    assert isinstance(damage, Damage)


def test_a_frame_inside_a_damaged_page_is_not_taken_for_one() -> None:
    forged = encode_frame(Kind.ACKNOWLEDGE, OTHER, 0, b"forged")
    page = bytearray(encode_frame(Kind.PAGE, ID, 1, b"records" + forged))
    page[50] ^= 1
    found = read(encode([b"first"]) + page + encode_frame(Kind.PAGE, ID, 2, b"next"))
    assert [item.body for item in only_frames(found)] == [b"first", b"next"]


def test_a_new_stream_may_follow_another_without_damage() -> None:
    found = read(encode([b"a"]) + encode([b"b"], OTHER))
    assert [item.stream_id for item in only_frames(found)] == [ID, OTHER]


def test_a_waived_checksum_is_not_checked() -> None:
    header = frames.pack_frame_header(Kind.PAGE, ID, 0, b"bo", b"dy", check_body=False)
    (found,) = only_frames(read(header + b"BODY"))
    assert found.body == b"BODY"


def test_a_body_in_parts_is_the_body_in_one() -> None:
    parts = frames.pack_frame_header(Kind.PAGE, ID, 7, b"bo", memoryview(b"dy"))
    assert parts + b"body" == encode_frame(Kind.PAGE, ID, 7, b"body")


# --- bodies -------------------------------------------------------------------------------------

texts = st.text(st.characters(), max_size=30)
definitions = st.lists(
    st.one_of(
        st.builds(EventDefinition, st.integers(1, 65535), texts, texts, texts),
        st.builds(SymbolDefinition, st.integers(0, 2**64 - 1), texts),
        st.builds(CommandDefinition, st.integers(-(2**31), 2**31 - 1), texts),
        st.builds(
            FunctionDefinition, st.integers(0, 2**64 - 1), st.integers(1, 10**6), texts, texts, st.integers(0, 10**6)
        ),
    ),
    max_size=10,
)


def test_hello_round_trips() -> None:
    info = fakes.make_info()
    assert frames.unpack_hello(frames.pack_hello(info)) == info


@given(st.integers(0, 10**6), definitions)
def test_definitions_with_any_texts_round_trip(first: int, items: list[object]) -> None:
    found = []
    for body in frames.pack_definitions(first, items):  # type: ignore[arg-type]
        start, part = frames.unpack_definitions(body)
        assert start == first + len(found)
        found += part
    assert found == items


def test_many_definitions_are_split_over_bodies_below_the_limit() -> None:
    items = [SymbolDefinition(n, "\0" * 10_000) for n in range(100)]
    parts = list(frames.pack_definitions(5, items))
    assert len(parts) > 3
    assert max(map(len, parts)) <= frames.DEFINITIONS_LENGTH + 100
    assert [definition for part in parts for definition in frames.unpack_definitions(part)[1]] == items


def test_a_definition_that_fits_into_no_frame_is_cut() -> None:
    (body,) = frames.pack_definitions(0, [EventDefinition(1, "s", "n", "\U0001f600" * 500_000)])
    assert len(body) < frames.LENGTH_MAX
    assert frames.unpack_definitions(body)[1] == [EventDefinition(1, "s", "n", "\U0001f600" * frames.TEXT_CUT)]


entries = st.builds(
    PageEntry,
    st.integers(0, 2**32 - 1),
    st.integers(0, 2**64 - 1),
    st.integers(0, 2**19),
    st.booleans(),
    st.integers(0, 2**32 - 1),
    st.integers(-1, 2**63 - 1),
    st.integers(0, 2**32 - 1),
    st.integers(0, 2**64 - 1),
    st.just(5),
)


@given(entries)
def test_page_round_trips(entry: PageEntry) -> None:
    found, data = frames.unpack_page(frames.pack_page_entry(entry) + b"12345")
    assert (found, bytes(data)) == (entry, b"12345")


def test_page_with_a_wrong_record_length_is_refused() -> None:
    entry = PageEntry(0, 0, 0, True, 1, 0, 0, 0, 5)
    for data in (b"1234", b"123456"):
        with pytest.raises(TraceFormatError, match="5 are announced"):
            frames.unpack_page(frames.pack_page_entry(entry) + data)


def test_a_page_longer_than_the_largest_is_refused() -> None:
    entry = PageEntry(0, 0, 1 << 19, True, 1, 0, 0, 0, 1 << 19)
    with pytest.raises(TraceFormatError, match="committed"):
        frames.unpack_page_entry(frames.pack_page_entry(entry))


def test_ledger_round_trips() -> None:
    ledger = Ledger((WriterLedger(0, 1, 2, 3, 4, 5), WriterLedger(7, 2**63, 0, 0, 0, 0)))
    assert frames.unpack_end(frames.pack_end(ledger)) == ledger


@pytest.mark.parametrize("unpack", [frames.unpack_hello, frames.unpack_definitions, frames.unpack_end])
@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"\xff",
        b"[]",
        b"{}",
        b"[" * 100_000,
        b'{"writers":5}',
        b'{"writers":[[1]]}',
        b'{"writers":[[1,2,3,4,5,-1]]}',
        b'{"first":0,"definitions":[["symbol",true,"x"]]}',
        b'{"first":0,"definitions":[["event",0,"a","b","c"]]}',
        b'{"first":' + b"9" * 5000 + b',"definitions":[]}',
    ],
)
def test_a_body_that_is_not_what_it_should_be_is_a_format_error(unpack: object, body: bytes) -> None:
    with pytest.raises(TraceFormatError):
        unpack(body)  # type: ignore[operator]


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("page_size", "5000"),
        ("page_size", "2147483648"),
        ("stream_id", '"00"'),
        ("writers", "0"),
        ("byte_order", '"big"'),
    ],
)
def test_a_hello_with_an_impossible_field_is_a_format_error(field: str, value: str) -> None:
    fields = json.loads(frames.pack_hello(fakes.make_info()))
    fields[field] = json.loads(value)
    with pytest.raises(TraceFormatError):
        frames.unpack_hello(json.dumps(fields).encode())
