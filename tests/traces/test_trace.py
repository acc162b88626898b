"""Events out of files and out of pages: in order, with every value, and a loss where events are missing."""

from __future__ import annotations

import gzip
import html
import re
import struct
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

import aiotrace
from aiotrace._base.errors import TraceFormatError
from aiotrace._decode.event import Tables
from aiotrace._page import layout as L
from aiotrace._page.definitions import CommandDefinition, EventDefinition, FunctionDefinition, SymbolDefinition
from aiotrace._page.encode import encode_record
from aiotrace._page.entry import PageEntry
from aiotrace._page.event_schema import TYPES, Schema
from aiotrace._page.walk import walk as quick_walk
from aiotrace.abc import Ledger, WriterLedger
from aiotrace.decode import Decoder, format_line, open_trace
from aiotrace.formats import StoredPage, TraceStore
from aiotrace_sinks import FileSink
from support import DATA, kernel
from support.page_oracle import encode_absolute_timestamp, encode_padding, walk
from support.traces import ID, INFO, SYMBOL, definitions, numbers, page, payload, store

pytestmark = pytest.mark.pure_too

KEPT = sorted(path.name for path in DATA.glob("*.dat"))


@pytest.mark.parametrize("name", KEPT)
def test_stored_kernel_traces_agree_with_the_output_of_trace_cmd(name: str) -> None:
    expected = gzip.decompress((DATA / f"{name.partition('-')[0]}.txt.gz").read_bytes())
    with open_trace(DATA / name) as trace:
        assert kernel.compare(trace, expected.decode("utf-8", "surrogateescape")) > 1000
        assert not trace.damage
        assert not trace.losses


# --- our own traces -----------------------------------------------------------------------------


def test_every_kind_of_field_round_trips(tmp_path: Path) -> None:
    store(tmp_path / "t", [page([-5])])
    with open_trace(tmp_path / "t") as trace:
        (event,) = trace
    assert event.name == "test:all"
    assert (event.timestamp_ns, event.pid, event.cpu) == (1000, 77, 0)
    assert event.comm == "a thread whose name is long"
    assert event.fields == {"n": -5, "f": -5 / 3, "s": "x", "y": b"", "sym": 'a "symbol"\n', "b": True, "k": 251}


@given(text=st.text(), data=st.binary(max_size=100), number=st.integers(-(2**63), 2**63 - 1))
def test_strings_and_bytes_of_any_content_round_trip(text: str, data: bytes, number: int) -> None:
    raw = encode_record(0, payload(number, text, data))
    entry = PageEntry(0, 0, 0, True, 1, 0, 3, 1000, len(raw))
    (event,) = Decoder(definitions()).events(StoredPage(entry, memoryview(raw)))
    assert (event.fields["s"], event.fields["y"], event.fields["n"]) == (text, data, number)
    assert "\n" not in format_line(event)


def test_writers_are_merged_by_time_and_equal_times_by_writer(tmp_path: Path) -> None:
    store(
        tmp_path / "t",
        [page([10, 11, 12], writer=0), page([20, 21, 22], writer=1, start=1005), page([30, 31], writer=2, start=1000)],
    )
    with open_trace(tmp_path / "t") as trace:
        assert numbers(list(trace)) == [10, 30, 20, 11, 31, 21, 12, 22]
        assert numbers(list(trace)) == [10, 30, 20, 11, 31, 21, 12, 22], "and again"


def test_loss_precedes_the_page_that_follows_it(tmp_path: Path) -> None:
    store(tmp_path / "t", [page([1]), page([2], sequence=1, start=2000, lost=7)])
    with open_trace(tmp_path / "t") as trace:
        events = list(trace)
        assert numbers(events) == [1, 7, 2]
        assert [event.name for event in events] == ["test:all", "aiotrace:lost", "test:all"]
        assert (events[1].timestamp_ns, events[1].cpu) == (2000, 0)
        assert [(loss.cpu, loss.count, loss.uncounted) for loss in trace.losses] == [(0, 7, 0)]


def test_a_loss_after_the_last_page_is_the_last_event_of_its_writer(tmp_path: Path) -> None:
    ledger = Ledger((WriterLedger(0, 12, 2, 0, 0, 9),))
    store(tmp_path / "t", [page([1, 2]), page([3], writer=1, start=5000)], ledger)
    with open_trace(tmp_path / "t") as trace:
        events = list(trace)
        assert numbers(events) == [1, 2, 9, 3]
        assert events[2].timestamp_ns == 1010
        assert trace.losses[0].count == 9


def test_losses_are_reported_for_any_selection(tmp_path: Path) -> None:
    store(tmp_path / "t", [page([1]), page([2], sequence=1, lost=7)])
    with open_trace(tmp_path / "t") as trace:
        assert numbers(list(trace.events("nothing:*"))) == [7]
        assert numbers(list(trace.events(where="n == 5"))) == [7]


def test_events_are_chosen_by_name_time_writer_task_and_field(tmp_path: Path) -> None:
    store(tmp_path / "t", [page([1, 2, 3]), page([4], writer=3, start=1010)])
    with open_trace(tmp_path / "t") as trace:
        assert numbers(list(trace.events("test:*"))) == [1, 2, 4, 3]
        assert numbers(list(trace.events("all"))) == [1, 2, 4, 3]
        assert numbers(list(trace.events(["other:*", "test"]))) == [1, 2, 4, 3]
        assert numbers(list(trace.events("other:*"))) == []
        assert numbers(list(trace.events(start_ns=1010, end_ns=1010))) == [2, 4]
        assert numbers(list(trace.events(cpus=[3]))) == [4]
        assert numbers(list(trace.events(pids=[78]))) == []
        assert numbers(list(trace.events(pids=[77, 78]))) == [1, 2, 4, 3]
        assert numbers(list(trace.events(where="n >= 2 && n < 4"))) == [2, 3]
        assert numbers(list(trace.events(where='comm ~ "a thread*" && cpu == 3'))) == [4]


def test_changed_bit_in_our_page_loses_only_that_page_and_counts_events(tmp_path: Path) -> None:
    path = tmp_path / "t"
    store(path, [page([1, 2, 3]), page([4], sequence=1, start=2000)])
    raw = bytearray(path.read_bytes())
    raw[4096 + 16 + 30] ^= 4
    path.write_bytes(raw)
    with open_trace(path) as trace:
        events = list(trace)
        assert numbers(events) == [3, 4]
        assert events[0].is_loss
        assert "crc" in events[0].fields["reason"]
        assert trace.damage_count == 1


def test_unfinished_trace_is_readable(tmp_path: Path) -> None:
    store(tmp_path / "t", [page([1]), page([2], writer=5, start=1001)], finish=False)
    with open_trace(tmp_path / "t") as trace:
        assert not trace.complete
        assert numbers(list(trace)) == [1, 2]
        assert trace.statistics().count == 2
    store_again = TraceStore(str(tmp_path / "u"), INFO)
    store_again.close()
    with open_trace(tmp_path / "u") as trace:
        assert numbers(list(trace)) == []


def test_a_torn_page_of_an_unfinished_trace_is_not_accepted(tmp_path: Path) -> None:
    store(tmp_path / "t", [page([1, 2]), page([3], sequence=1, start=2000)], finish=False)
    raw = bytearray((tmp_path / "t").read_bytes())
    raw[4096 + 20] ^= 1
    (tmp_path / "t").write_bytes(raw)
    with open_trace(tmp_path / "t") as trace:
        events = list(trace)
        assert numbers(events) == [2, 3]
        assert events[0].is_loss
        assert trace.damage_count == 1


def test_following_yields_existing_and_new_events_and_the_end(tmp_path: Path) -> None:
    made = TraceStore(str(tmp_path / "t"), INFO)
    made.write([page([1])], definitions())
    with open_trace(tmp_path / "t") as trace:
        events = trace.follow(interval=0.001)
        assert next(events).fields["n"] == 1
        made.write([page([2], writer=1, start=50), page([3], sequence=1, start=2000)], definitions())
        assert next(events).fields["n"] == 2
        assert next(events).fields["n"] == 3
        made.end(definitions(), Ledger((WriterLedger(0, 3, 0, 0, 0, 4),)))
        loss = next(events)
        assert (loss.fields["count"], loss.timestamp_ns) == (4, 2000)
        assert next(events, None) is None
    made.close()


def test_following_sorts_simultaneous_events_and_reports_last_losses_once(tmp_path: Path) -> None:
    path = tmp_path / "t"
    growing = TraceStore(str(path), INFO)
    growing.write([page([10, 11], writer=1, start=5000), page([1, 2], start=4995)], definitions())
    with open_trace(path) as trace:
        events = trace.follow(interval=0)
        assert numbers([next(events) for _ in range(4)]) == [1, 10, 2, 11]
        growing.write([page([12], writer=1, sequence=1, start=9000), page([3], sequence=1, start=6000)], definitions())
        growing.end(definitions(), Ledger((WriterLedger(1, 9, 4, 0, 0, 4),)))
        assert numbers(list(events)) == [3, 12, 4]
        assert [(loss.cpu, loss.count) for loss in trace.losses] == [(1, 4)]
    growing.close()


def test_following_a_finished_trace_ends_with_it(tmp_path: Path) -> None:
    store(tmp_path / "t", [page([1])])
    with open_trace(tmp_path / "t") as trace:
        assert numbers(list(trace.follow())) == [1]


def test_statistics_count_by_writer_and_event(tmp_path: Path) -> None:
    store(tmp_path / "t", [page([1, 2]), page([3], sequence=1, start=9000, lost=4), page([5], writer=2, start=500)])
    with open_trace(tmp_path / "t") as trace:
        found = trace.statistics()
    assert (found.count, found.lost, found.damage, found.first_ns, found.last_ns) == (4, 4, 0, 500, 9000)
    assert [(w.cpu, w.pages, w.count, w.lost) for w in found.writers] == [(0, 2, 3, 4), (2, 1, 1, 0)]
    assert found.events["test:all"].count == 4
    assert found.events["test:all"].bytes == 4 * len(payload(1))


def test_a_notebook_shows_a_table_with_everything_escaped(tmp_path: Path) -> None:
    raw = encode_record(0, payload(1, "<b>\x1b"))
    entry = PageEntry(0, 0, 0, True, 1, 0, 3, 1000, len(raw))
    store(tmp_path / "t", [StoredPage(entry, memoryview(raw))])
    with open_trace(tmp_path / "t") as trace:
        table = trace._repr_html_()
    assert html.escape("<b>") in table
    assert "<b>" not in table
    assert "\x1b" not in table
    assert "test:all" in table


def test_a_line_has_trace_cmds_layout(tmp_path: Path) -> None:
    store(tmp_path / "t", [page([1], start=961_076_720_499)])
    with open_trace(tmp_path / "t") as trace:
        (event,) = trace
    assert format_line(event) == (
        "a thread whose name is long-77    [000]   961.076720: all:                  "
        'n=1 f=0.3333333333333333 s=x y= sym=a "symbol"\\n b=1 k=1'
    )
    assert format_line(event, raw=True).endswith('s=x y= sym=a "symbol"\\n b=True k=1')


def test_our_trace_reads_the_same_in_trace_cmd(trace_cmd: str, tmp_path: Path) -> None:
    pages = [page(range(n, n + 20), writer=n % 3, sequence=n, start=1000 + n * 77, lost=n % 2) for n in range(30)]
    path = tmp_path / "t"
    store(path, pages)
    with open_trace(path) as trace:
        ours = [
            f"{event.timestamp_ns} {event.cpu} {event.fields['n']}" if not event.is_loss else "lost" for event in trace
        ]
    theirs = []
    for line in kernel.records(kernel.raw_report(trace_cmd, str(path))):
        match = kernel.BEGINNING.match(line)
        if match is None:
            theirs.append("lost")
            continue
        number = line[match.end() :].split()[0].removeprefix("n=")
        theirs.append(f"{int(match['time'].replace('.', ''))} {int(match['cpu'])} {number}")
    assert ours == theirs
    assert len(ours) > 600


EVERYTHING = Schema("test:everything", {name: name for name in TYPES})
TEXTS = st.text(max_size=20).map(lambda text: "".join(filter(str.isprintable, text)))  # the rest is escaped
VALUES = {
    **{f"u{bits}": st.integers(0, 2**bits - 1) for bits in (8, 16, 32, 64)},
    **{f"s{bits}": st.integers(-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) for bits in (8, 16, 32, 64)},
    "f32": st.floats(width=32),
    "f64": st.floats(),
    "bool": st.booleans(),
    "str": TEXTS,
    "bytes": st.binary(max_size=9),
    "symbol": TEXTS.filter(lambda text: "\\" not in text),
}
FLOATS = re.compile(r"(f\d\d)=(\S+)")


def same_line(ours: str, theirs: str) -> bool:
    """Floats are compared as numbers: trace-cmd has none, it shows their bits."""
    for name, bits in FLOATS.findall(theirs):
        size = int(name[1:]) // 8
        value = struct.unpack({4: "=f", 8: "=d"}[size], int(bits, 16).to_bytes(size, sys.byteorder))[0]
        theirs = theirs.replace(f"{name}={bits}", f"{name}={value}")
    return ours == theirs or (theirs.endswith(" EVENTS DROPPED]") and ours.startswith(theirs + " "))


@given(st.lists(st.tuples(st.integers(0, 2), st.integers(0, 3), *VALUES.values()), min_size=1, max_size=40))
@settings(
    max_examples=15,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
    phases=[Phase.explicit, Phase.generate],  # each starts a trace-cmd: shrinking would take minutes
)
def test_report_prints_what_trace_cmd_prints(
    trace_cmd: str, tmp_path_factory: pytest.TempPathFactory, events: list[tuple[Any, ...]]
) -> None:
    """Every type of field, several writers with equal times, the second of which was the first to write."""
    path = tmp_path_factory.mktemp("same") / "t"
    symbols = {text: SYMBOL + 16 * number for number, text in enumerate({values[-1] for _, _, *values in events})}
    known = [
        EventDefinition(ID, "test", "everything", EVERYTHING.format_text(ID)),
        CommandDefinition(77, "worker"),
        *(SymbolDefinition(key, text) for text, key in symbols.items()),
    ]
    records: dict[int, bytes] = {1: b"", 0: b"", 2: b""}
    for writer, delta, *values in events:
        delta *= 1000 * bool(records[writer])  # a page begins with its first event
        records[writer] += encode_record(delta, EVERYTHING.encode(ID, 77, values, symbols.__getitem__))
    made = TraceStore(str(path), replace(INFO, page_size=16384))
    for writer, data in records.items():
        if not data:  # trace-cmd is silent about losses before a page without events
            continue
        entry = PageEntry(writer, 0, 0, True, sum(event[0] == writer for event in events), writer, 0, 5000, len(data))
        made.write([StoredPage(entry._replace(definitions_needed=len(known)), memoryview(data))], known)
    made.end(known, Ledger(()))
    list(made.finish())
    report = subprocess.run([trace_cmd, "report", path], capture_output=True, check=True).stdout.decode()
    theirs = [line for line in report.split("\n") if line and not line.startswith(("cpus=", "CPU 0 is", "CPU 1 is"))]
    with open_trace(path) as trace:
        ours = "".join(trace.text()).split("\n")[:-1]
    assert [pair for pair in zip(ours, theirs, strict=True) if not same_line(*pair)] == []


# --- pages --------------------------------------------------------------------------------------


def test_a_decoder_reads_definitions_as_pages_need_them() -> None:
    known = definitions()[:1]
    decoder = Decoder(known)
    early = page([1])
    early = replace(early, entry=early.entry._replace(definitions_needed=1))
    (event,) = decoder.events(early)
    assert event.fields["sym"] == SYMBOL, "not defined yet"
    known.extend(definitions()[1:])
    (event,) = decoder.events(page([1]))
    assert event.fields["sym"] == 'a "symbol"\n'
    assert event.comm == "a thread whose name is long"


def test_an_address_has_the_name_file_and_line_of_its_function() -> None:
    tables = Tables({}, {0x5050: "a symbol"}, {}, None)
    tables.define(FunctionDefinition(0x5000, 3, "Handler.get", "/srv/app.py", 17))
    tables.define(FunctionDefinition(0x4000, 1, "main", "/srv/main.py", 5))
    found = [(tables.functions.find(a), tables.functions.locate(a)) for a in (0x5000, 0x5002, 0x4000)]
    assert found == [
        (("Handler.get", 0), "app.py:17"),
        (("Handler.get", 2), "app.py:19"),
        (("main", 0), "main.py:5"),
    ]
    assert [tables.functions.locate(a) for a in (0x3FFF, 0x4001, 0x4FFF, 0x5003, 0x5050)] == [None] * 5
    assert tables.functions.find(0x5003) is None
    assert tables.functions.find(0x5050) == ("a symbol", 0)


def test_decoder_reports_a_loss_first() -> None:
    events = list(Decoder(definitions()).events(page([1, 2], lost=5)))
    assert numbers(events) == [5, 1, 2]
    assert numbers(list(Decoder(definitions()).events(page([1], lost=-1)))) == [None, 1]


def test_events_stay_good_when_their_page_is_used_again() -> None:
    raw = bytearray(encode_record(0, payload(5)))
    entry = PageEntry(0, 0, 0, True, 1, 0, 3, 1000, len(raw))
    (event,) = Decoder(definitions()).events(StoredPage(entry, memoryview(raw)))
    raw[:] = bytes(len(raw))
    assert event.fields["n"] == 5


def test_a_damaged_page_raises_after_what_is_intact() -> None:
    raw = encode_record(0, payload(5)) + struct.pack("=I", 28)
    entry = PageEntry(0, 0, 0, True, 2, 0, 3, 1000, len(raw))
    events = Decoder(definitions()).events(StoredPage(entry, memoryview(raw)))
    assert next(events).fields["n"] == 5
    with pytest.raises(TraceFormatError, match="a record of 112 bytes where 0 are left"):
        next(events)


def test_an_event_that_nothing_explains_keeps_its_bytes() -> None:
    raw = encode_record(0, payload(5))
    entry = PageEntry(0, 0, 0, True, 1, 0, 0, 1000, len(raw))
    (event,) = Decoder([]).events(StoredPage(entry, memoryview(raw)))
    assert event.name == f"unknown:{ID}"
    assert event.fields["payload"] == raw[12:]
    assert event.format is None


record_bytes = st.one_of(
    st.builds(encode_record, st.integers(0, 1 << 40), st.binary(min_size=8, max_size=200)),
    st.builds(encode_padding, st.integers(2, 20).map(lambda words: words * 4)),
    st.builds(encode_absolute_timestamp, st.integers(0, (1 << 59) - 1)),
    st.binary(max_size=12),
)


@given(records=st.lists(record_bytes, max_size=8), timestamp=st.integers(0, 1 << 61))
def test_the_quick_walk_finds_what_the_plain_one_does(records: list[bytes], timestamp: int) -> None:
    data = b"".join(records)
    data = data[: len(data) // 4 * 4]
    plain, quick = [], []
    failed = [False, False]
    try:
        plain.extend(walk(data, timestamp))
    except TraceFormatError:
        failed[0] = True
    for_plain = [(r.timestamp, r.start, r.length) for r in plain]
    try:
        for time, _, _, start, length in quick_walk(data, timestamp):
            quick.append((time, start, length))
    except TraceFormatError:
        failed[1] = True
    # An event needs the 8 bytes of its common fields: the plain walk does not know events.
    short = next((index for index, (_, _, length) in enumerate(for_plain) if length < 8), None)
    if short is not None:
        assert failed[1]
        assert quick == for_plain[:short]
    else:
        assert (quick, failed[1]) == (for_plain, failed[0])


def swapped(words: bytes) -> bytes:
    return b"".join(words[at : at + 4][::-1] for at in range(0, len(words), 4))


@pytest.mark.skipif(L.BYTE_ORDER != "<", reason="NOT RUN: written for a little-endian machine")
def test_records_of_a_big_endian_machine_are_read() -> None:
    # There the bit fields begin at the high end: type_len is in the upper 5 bits.
    first = struct.pack(">I", 2 << 27 | 5) + struct.pack(">HBBi", 300, 0, 0, -7)
    long = struct.pack(">II", 0 << 27 | 6, 12) + struct.pack(">HBBi", 301, 0, 0, 9)
    found = list(quick_walk(first + long, 1000, byte_order=">"))
    assert [(time, id, pid) for time, id, pid, _, _ in found] == [(1005, 300, -7), (1011, 301, 9)]


def test_writer_without_a_page_still_reports_its_losses(tmp_path: Path) -> None:
    """All its events were refused: it has no pages, and so no CPU in the file's table."""
    path = tmp_path / "trace.dat"
    with aiotrace.recording(FileSink(path), page_size=4096, pages=16) as recording:
        aiotrace.event("decodetest:refused", n="u32")(1)
        writer, _ = recording._core.writers.lease()
        for _ in range(7):
            writer.refuse("no_page")
    assert recording.statistics().events_dropped == 7
    with open_trace(path) as trace:
        assert sum(each.name == "decodetest:refused" for each in trace) == 1
        assert sum(each.fields["count"] for each in trace if each.is_loss) == 7
        assert trace.statistics().lost == 7
