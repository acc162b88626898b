"""aiotrace._formats.journal: the journal of a trace that is not finished."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from aiotrace._formats.frames import Damage, Kind, encode_frame
from aiotrace._formats.journal import PLACED_SIZE, JournalReader, JournalWriter, PagePlacement
from aiotrace._page.entry import page_entry
from aiotrace.abc import Ledger, WriterLedger
from support import fakes

INFO = fakes.make_info()
LEDGER = Ledger((WriterLedger(0, 10, 1, 2, 3, 4),))


def make_placed(count: int) -> list[PagePlacement]:
    pages = enumerate(fakes.make_pages(count, 2))
    return [PagePlacement.of(page_entry(page), page.writer == 1, 4096 * (n // 2 + 1), page.data) for n, page in pages]


def make_journal(count: int) -> list[bytes]:
    writer = JournalWriter(INFO)
    frames = [writer.hello(), writer.definitions(fakes.DEFINITIONS, 2)]
    frames += [writer.placed([placed]) for placed in make_placed(count)]
    return [*frames, writer.definitions(fakes.DEFINITIONS, 99), writer.end(LEDGER)]


def read(data: bytes, *, final: bool = True) -> tuple[JournalReader, list[PagePlacement]]:
    reader = JournalReader()
    return reader, list(reader.feed(data, final=final))


def test_journal_returns_what_was_written() -> None:
    reader, placed = read(b"".join(make_journal(5)))
    assert placed == make_placed(5)
    assert (reader.info, reader.definitions, reader.ledger) == (INFO, fakes.DEFINITIONS, LEDGER)
    assert (reader.damage, reader.definitions_missing) == ([], 0)


def test_page_frame_has_the_size_of_its_constant() -> None:
    assert len(JournalWriter(INFO).placed(make_placed(1))) == PLACED_SIZE


def test_records_are_checked_by_length_and_checksum() -> None:
    (placed,) = make_placed(1)
    data = bytes(fakes.make_page().data)
    assert placed.check(data)
    assert not placed.check(data[:-1])
    assert not placed.check(b"\xff" + data[1:])


@given(st.data())
def test_a_journal_cut_anywhere_holds_the_pages_whose_frames_are_whole(data: st.DataObject) -> None:
    frames = make_journal(5)
    whole = b"".join(frames)
    cut = data.draw(st.integers(0, len(whole)))
    ends = [sum(map(len, frames[: n + 1])) for n in range(len(frames))]
    expected = sum(end <= cut for end in ends[2:7])
    reader, placed = read(whole[:cut], final=False)
    assert len(placed) == expected
    assert reader.damage == []


def test_incomplete_frame_can_be_fed_again() -> None:
    whole = b"".join(make_journal(3))
    reader = JournalReader()
    first = list(reader.feed(whole[:-300] + b"torn"))
    reader.forget_incomplete()
    assert first + list(reader.feed(whole[reader.fed :], final=True)) == make_placed(3)
    assert reader.damage == []


def test_a_rewound_writer_writes_the_same_again() -> None:
    writer = JournalWriter(INFO)
    mark = writer.mark()
    first = writer.hello() + writer.definitions(fakes.DEFINITIONS, 3)
    writer.rewind(mark)
    assert writer.hello() + writer.definitions(fakes.DEFINITIONS, 3) == first


def test_definitions_are_written_once() -> None:
    writer = JournalWriter(INFO)
    assert writer.definitions(fakes.DEFINITIONS, 2)
    assert writer.definitions(fakes.DEFINITIONS, 2) == b""
    reader, _ = read(writer.hello() + writer.definitions(fakes.DEFINITIONS, 4))
    assert reader.definitions == fakes.DEFINITIONS[2:]
    assert reader.definitions_missing == 2


def test_repeated_definitions_are_not_duplicated() -> None:
    first, again = JournalWriter(INFO), JournalWriter(INFO)
    data = first.hello() + first.definitions(fakes.DEFINITIONS, 3) + again.definitions(fakes.DEFINITIONS, 4)
    reader, _ = read(data)
    assert (reader.definitions, reader.definitions_missing) == (fakes.DEFINITIONS, 0)


def test_damage_loses_only_its_page() -> None:
    frames = make_journal(5)
    frames[4] = b"\xff" + frames[4][1:]
    reader, placed = read(b"".join(frames))
    assert placed == make_placed(5)[:2] + make_placed(5)[3:]
    assert [damage.length for damage in reader.damage] == [PLACED_SIZE]


def test_impossible_journal_values_are_damage() -> None:
    writer = JournalWriter(INFO)
    good = make_placed(1)[0]
    impossible = [
        good._replace(place=4097),
        good._replace(entry=good.entry._replace(writer=INFO.writers)),
        good._replace(entry=good.entry._replace(committed=INFO.page_size - 15)),
        good._replace(start=INFO.page_size - 15 - good.entry.committed),
    ]
    before_hello = writer.placed([good])
    other = encode_frame(Kind.PAGE, INFO.stream_id, 0, b"")
    cut = encode_frame(Kind.PLACED, INFO.stream_id, 0, writer.placed([good])[48:-1])
    data = before_hello + writer.hello() + b"".join(writer.placed([placed]) for placed in impossible) + other + cut
    reader, placed = read(data + writer.placed([good]))
    assert placed == [good]
    assert len(reader.damage) == 7
    assert all(isinstance(damage, Damage) for damage in reader.damage)
