"""What an earlier aiotrace wrote is read the same: tests/data/before, by public names alone.

Each case is a few files, unpacked into an empty folder, and commands that are run there one after the other; what they
print and their exit statuses are in expected/NAME.txt. Messages on stderr are not compared: their wording may change.
A conversation of the stream protocol with fixed inputs is compared byte for byte, and so are the frames.
"""

from __future__ import annotations

import contextlib
import gzip
import hashlib
import io
import itertools
import json
import os
import struct
from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from aiotrace import abc, formats, protocol
from aiotrace.__main__ import main
from aiotrace.decode import Decoder, format_line, open_trace

pytestmark = pytest.mark.pure_too

DATA = Path(__file__).resolve().parent.parent / "data" / "before"


# --- files ----------------------------------------------------------------------------------------


class Case(NamedTuple):
    name: str
    """What is expected is in expected/NAME.txt, or .txt.gz."""
    commands: tuple[str, ...]
    """`ls` prints the names in the folder."""
    file: str = ""
    """The trace is FILE.gz and FILE.*.gz; "": NAME."""

    @property
    def trace(self) -> str:
        return self.file or self.name


FEW = "-F n>2&&n<6||n>=38&&n<99||n>102"
"""Events that are not too long to be printed."""

CASES = (
    Case(
        "tasks.dat",
        (
            "report tasks.dat",
            "report --raw -e app:* -e db:* tasks.dat",
            "report --json -e stall:* -e app:* -e span:* -e task:done -e task:cancel -e log:* -e ftrace:* tasks.dat",
            "stat tasks.dat",
            "list tasks.dat",
            "report --json --tasks tasks.dat",
            "report --json --latency tasks.dat",
            "report --json --stalls --threshold 10 tasks.dat",
            "report --json --cancellations tasks.dat",
            "report --json --lost-tasks tasks.dat",
            "restore tasks.dat",
        ),
    ),
    Case(
        "answers",
        (
            "report --tasks tasks.dat",
            "report --latency tasks.dat",
            "report --stalls --threshold 10 tasks.dat",
            "report --cancellations tasks.dat",
            "report --lost-tasks tasks.dat",
        ),
        "tasks.dat",
    ),
    Case("lossy.dat", (f"report {FEW} lossy.dat", f"report --json {FEW} lossy.dat", "stat lossy.dat")),
    Case("threads.dat", ("report threads.dat", "report --cpu 1 threads.dat", "stat threads.dat")),
    Case(
        "killed.dat",
        (
            f"report {FEW} killed.dat",
            "stat killed.dat",
            "ls",
            "restore killed.dat",
            "ls",
            f"report {FEW} killed.dat",
            "stat killed.dat",
        ),
    ),
    Case(
        "app.arena",
        (
            f"report {FEW} app.arena",
            "stat app.arena",
            f"report --json {FEW} app.arena",
            "snapshot app.arena -o copy.dat",
            "restore app.arena",
            "restore app.arena -o restored.dat",
            "ls",
            f"report {FEW} restored.dat",
            "stat copy.dat",
            "stat restored.dat",
        ),
    ),
    Case("snapshot.dat", (f"report {FEW} snapshot.dat", "stat snapshot.dat")),
    Case("collected-ended.dat", (f"report {FEW} collected-ended.dat", "stat collected-ended.dat", "ls")),
    Case(
        "collected-cut.dat",
        (
            f"report {FEW} collected-cut.dat",
            "stat collected-cut.dat",
            "ls",
            "restore collected-cut.dat",
            "ls",
            f"report {FEW} collected-cut.dat",
        ),
    ),
)


def unpack(case: Case, folder: Path) -> None:
    for path in DATA.glob(f"{case.trace}.*"):
        name, data = path.name, path.read_bytes()
        while name.endswith(".gz"):
            name, data = name.removesuffix(".gz"), gzip.decompress(data)
        (folder / name).write_bytes(data)


def ask(case: Case, folder: Path) -> str:
    """What the commands print, each after its own line."""
    pieces = []
    with contextlib.chdir(folder):
        for command in case.commands:
            out = io.StringIO()
            with contextlib.redirect_stdout(out), contextlib.redirect_stderr(io.StringIO()):
                if command == "ls":
                    print("\n".join(sorted(os.listdir())))
                    status = 0
                else:
                    status = main(command.split())
            pieces.append(f"$ {command}\n{out.getvalue()}exit status {status}\n")
    return "\n".join(pieces)


def expected(name: str) -> str:
    path = DATA / "expected" / f"{name}.txt"
    return path.read_text(encoding="utf-8") if path.exists() else stored_bytes(f"expected/{name}.txt").decode()


@pytest.fixture(params=CASES, ids=lambda case: case.name)
def case(request: pytest.FixtureRequest, tmp_path: Path) -> Case:
    found: Case = request.param
    unpack(found, tmp_path)
    return found


def test_commands_say_the_same_of_old_files(case: Case, tmp_path: Path) -> None:
    assert ask(case, tmp_path) == expected(case.name)


def test_open_trace_gives_the_events_that_report_prints(case: Case, tmp_path: Path) -> None:
    with open_trace(tmp_path / case.trace) as trace:
        text = "".join(f"{format_line(event)}\n" for event in trace)
    out = io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(io.StringIO()):
        main(["report", str(tmp_path / case.trace)])
    assert text == out.getvalue() != ""


def test_an_unfinished_trace_gives_its_pages_through_formats(tmp_path: Path) -> None:
    unpack(next(case for case in CASES if case.name == "killed.dat"), tmp_path)
    path = str(tmp_path / "killed.dat")
    with formats.UnfinishedTrace(path) as trace, open_trace(path) as whole:
        assert (trace.info.host, trace.info.page_size) == ("before", 4096)
        decoder = Decoder(trace.definitions)
        numbers = sorted(event.fields["n"] for placed in trace.pages for event in decoder.events(trace.read(placed)))
        assert (
            numbers == sorted(event.fields["n"] for event in whole) == [0, 1, 2, 3, 4, 5, 100, 101, 102, 103, 104, 105]
        )


# --- bytes on the wire ----------------------------------------------------------------------------

INFO = abc.StreamInfo(
    b"0123456789abcdef", 4096, 4, "mono", abc.Anchor(10**9, 17 * 10**17, "a boot"), 4321, "a host", "python a.py"
)
FORMAT = """\
name: count
ID: 1001
format:
\tfield:unsigned short common_type;\toffset:0;\tsize:2;\tsigned:0;
\tfield:unsigned char common_flags;\toffset:2;\tsize:1;\tsigned:0;
\tfield:unsigned char common_preempt_count;\toffset:3;\tsize:1;\tsigned:0;
\tfield:int common_pid;\toffset:4;\tsize:4;\tsigned:1;

\tfield:u64 n;\toffset:8;\tsize:8;\tsigned:0;

print fmt: "n=%llu", REC->n
"""
DEFINITIONS: list[abc.Definition] = [
    abc.EventDefinition(1001, "demo", "count", FORMAT),
    abc.CommandDefinition(77, 'a "name" …'),
    abc.SymbolDefinition(0xFFFF_8000_0000_1010, "a symbol"),
    abc.FunctionDefinition(0xFFFF_8000_0000_2000, 12, "module.function", "a.py", 34),
]
LONG_JOURNAL = "b9434d19265c782fa136513908f93a303fe4aae291ecd3c03fc95f24abe3c09a"
LEDGER = abc.Ledger((abc.WriterLedger(0, 5, 4, 3, 2, 1), abc.WriterLedger(3, 2, 0, 0, 0, 0)))


@dataclass(eq=False)
class APage:
    """What `aiotrace.abc.Page` asks for."""

    writer: int
    sequence: int
    timestamp: int
    data: memoryview
    events_count: int
    lost_before: int = 0
    definitions_needed: int = 2
    offset: int = 0
    complete: bool = True


def records(*numbers: int) -> memoryview:
    """Each: the header (4-byte words of payload, nanoseconds since the one before), then the payload."""
    return memoryview(b"".join(struct.pack("=IHBBiQ", 16 >> 2 | 100 << 5, 1001, 0, 0, 77, n) for n in numbers))


def pages() -> list[APage]:
    return [
        APage(0, 0, 5000, records(1, 2), 2),
        APage(0, 1, 6000, records(3), 1, lost_before=7, complete=False),
        APage(3, 0, 6100, records(4, 5), 2, lost_before=-1, definitions_needed=4),
        APage(0, 1, 6100, records(6), 1, offset=20),
    ]


class Wire:
    """What one side sent, and hands it to the other in pieces of some bytes."""

    def __init__(self, step: int) -> None:
        self.sent = bytearray()
        self._step = step

    def carry(self, source: Any, target: Any, now: float) -> list[Any]:
        events: list[Any] = []
        while buffers := source.pending():
            piece = b"".join(bytes(part) for part in buffers)[: self._step]
            self.sent += piece
            source.sent(len(piece))
            while piece:
                buffer = target.buffer()
                count = min(len(buffer), len(piece))
                buffer[:count] = piece[:count]
                piece = piece[count:]
                events += target.received(count, now)
        return events


def converse(step: int = 1 << 20) -> tuple[bytes, bytes, str]:
    """A whole stream over two connections: all that the producer sends, all that the collector answers, and what either
    side reports, one line each."""
    request = protocol.Request(protocol.Level.WRITTEN, heartbeat=2.0, token="a token")
    definitions = DEFINITIONS[:4]
    producer = protocol.Producer(INFO, definitions, request)
    there, back = Wire(step), Wire(step)
    reported: list[str] = []
    stored: dict[int, protocol.Position] = {}
    defined_count = 0
    for now in (100.0, 200.0):
        collector = protocol.Collector(now)
        producer.connect(now)
        if now == 100.0:
            for page in pages():
                producer.add(page)
        for turn in itertools.count():
            events = there.carry(producer, collector, now + turn)
            reported += (f"collector: {_text(event)}" for event in events)
            for event in events:
                match event:
                    case protocol.Greeted():
                        grant = protocol.Grant(credit=2, definitions=defined_count)
                        collector.accept(grant, stored)
                        reported += (f"collector: {_text(event)}" for event in collector.received(0, now + turn))
                    case protocol.Defined(first, defined):
                        defined_count = first + len(defined)
                    case protocol.PageReceived(entry, _):
                        if (now, entry.writer) != (100.0, 3):  # the first connection ends before this one is stored
                            collector.acknowledge({entry.writer: event.end})
                            stored[entry.writer] = event.end
                        event.release()
                    case protocol.Finished():
                        collector.acknowledge_end()
            answers = back.carry(collector, producer, now + turn)
            reported += (f"producer: {_text(event)}" for event in answers)
            if turn == 4:
                reported += (f"producer: {_text(event)}" for event in producer.tick(now + turn))
                reported += (f"collector: {_text(event)}" for event in collector.tick(now + turn))
            if turn == 5:
                break
            if now == 200.0 and turn == 2:
                definitions.append(abc.SymbolDefinition(0xFFFF_8000_0000_1020, "that no page needs"))
                reported.append(f"producer: ends, the collector had the end: {producer.end(LEDGER)}")
        producer.disconnect()
    collector = protocol.Collector(300.0)
    collector.refuse("no more")
    producer.connect(300.0)
    reported += (f"producer: {_text(event)}" for event in back.carry(collector, producer, 300.0))
    return bytes(there.sent), bytes(back.sent), "".join(f"{line}\n" for line in reported)


def _text(event: Any) -> str:
    match event:
        case protocol.PageReceived(entry, data):
            return f"page {tuple(entry)} {bytes(data).hex()} ends {event.end}"
        case protocol.Acknowledged(pages):
            return f"acknowledged {[(page.writer, page.sequence, page.offset) for page in pages]}"
        case protocol.Greeted(info, request):
            return f"greeted {replace(info)} {request.level} {request.check_bodies} {request.heartbeat} {request.token}"
    return str(event)


def stored_bytes(name: str) -> bytes:
    return gzip.decompress((DATA / f"{name}.gz").read_bytes())


def frames() -> dict[str, str]:
    """What each packing function makes of fixed values, in hex."""
    stream_id, kind = INFO.stream_id, formats.Kind
    entry = formats.PageEntry(3, 5, 20, False, 2, -1, 4, 6100, 40)
    ends = {f"end {n}": formats.pack_end(ledger) for n, ledger in enumerate((LEDGER, abc.Ledger(())))}
    made = {
        "hello": formats.pack_hello(INFO),
        "definitions": b"".join(formats.pack_definitions(3, DEFINITIONS)),
        "error": formats.pack_error("no … \udc80"),
        "page entry": formats.pack_page_entry(entry),
        "page entry of a page": formats.pack_page_entry(formats.page_entry(pages()[2])),
        "header": formats.pack_frame_header(kind.PAGE, stream_id, 9, b"in", b"parts"),
        "header without crc32": formats.pack_frame_header(kind.PAGE, stream_id, 9, b"in", b"parts", check_body=False),
        **{f"frame {each.name}": formats.encode_frame(each, stream_id, 2 + each, b"body") for each in kind},
        **ends,
    }
    return {name: data.hex() for name, data in made.items()}


def store(folder: Path) -> dict[str, bytes]:
    """The files of a trace before it is finished and then; and the headers of one that is written front to back."""
    late = formats.LateHeaders(4096)
    headers = late.begin() + late.wait() + late.finish(clock="mono", cpus=4, definitions=DEFINITIONS)
    path = str(folder / "store.dat")
    trace = formats.TraceStore(path, INFO)
    trace.write(pages()[:3], DEFINITIONS)
    trace.write(pages()[3:], DEFINITIONS)
    files = {f"growing {name}": (folder / name).read_bytes() for name in sorted(os.listdir(folder))}
    trace.end(DEFINITIONS, LEDGER)
    for _ in trace.finish():
        pass
    files |= {f"finished {name}": (folder / name).read_bytes() for name in sorted(os.listdir(folder))}
    return files | {"late headers": headers}


@pytest.mark.parametrize("step", [1 << 20, 7])
def test_both_sides_of_the_protocol_send_the_same_bytes(step: int) -> None:
    sent, answered, reported = converse(step)
    assert sent == stored_bytes("producer.bin")
    assert answered == stored_bytes("collector.bin")
    assert reported == expected("conversation")


def test_a_collector_reads_the_stored_stream() -> None:
    """It knows nothing of the stream yet, takes all of the first connection, and refuses that another one follows."""
    collector = protocol.Collector(0.0)
    reported, data = [], stored_bytes("producer.bin")
    for start in range(0, len(data), 100):
        piece = data[start : start + 100]
        while piece:
            buffer = collector.buffer()
            count = min(len(buffer), len(piece))
            buffer[:count] = piece[:count]
            piece = piece[count:]
            events = collector.received(count, 0.0)
            if any(isinstance(event, protocol.Greeted) for event in events):
                collector.accept(protocol.Grant(credit=8), {})
                events += collector.received(0, 0.0)
            reported += [f"collector: {_text(event)}" for event in events]
        if collector.is_over:
            break
    lines = [line for line in expected("conversation").splitlines() if line.startswith("collector: ")]
    assert reported[:7] == lines[:7] != []
    assert "HELLO" in reported[-1]  # where the second connection begins


def test_frames_are_packed_the_same() -> None:
    assert frames() == json.loads((DATA / "frames.json").read_text())


def test_stored_frames_are_read_back() -> None:
    stored = {name: bytes.fromhex(text) for name, text in json.loads((DATA / "frames.json").read_text()).items()}
    assert formats.unpack_hello(stored["hello"]) == INFO
    assert formats.unpack_definitions(stored["definitions"]) == (3, DEFINITIONS)
    assert formats.unpack_end(stored["end 0"]) == LEDGER
    reader = formats.FrameReader()
    for kind in formats.Kind:
        reader.feed(stored[f"frame {kind.name}"])
    assert [tuple(frame)[:4] for frame in reader.frames(final=True)] == [
        (kind, INFO.stream_id, 2 + kind, b"body") for kind in formats.Kind
    ]


def test_a_store_writes_the_same_files(tmp_path: Path) -> None:
    written = store(tmp_path)
    assert written == {name: stored_bytes(f"store/{name.replace(' ', '-')}") for name in written}
    assert len(written) == len(list((DATA / "store").iterdir()))


def test_a_long_journal_is_the_same(tmp_path: Path) -> None:
    """One that has a checkpoint: its bytes are too many to be kept, so their sum is."""
    path = str(tmp_path / "long.dat")
    trace = formats.TraceStore(path, INFO)
    data = records(1)
    parts = [
        APage(n % 2, n // 400, 5000 + n, data, 1, offset=len(data) * (n // 2 % 200), complete=n // 2 % 200 == 199)
        for n in range(6000)
    ]
    for start in range(0, len(parts), 1000):
        trace.write(parts[start : start + 1000], DEFINITIONS)
    journal = (tmp_path / "long.dat.journal").read_bytes()
    reader = formats.FrameReader()
    reader.feed(journal)
    kinds = Counter(frame.kind for frame in reader.frames(final=True) if isinstance(frame, formats.Frame))
    assert kinds[formats.Kind.CHECKPOINT] == 1
    assert kinds[formats.Kind.PLACED] == len(parts)
    assert hashlib.sha256(journal).hexdigest() == LONG_JOURNAL
    trace.close()
    resumed = formats.TraceStore.resume(path)
    assert (resumed.info, list(resumed.definitions)) == (INFO, [])  # read from the checkpoint on: none are known
    assert resumed.stored == {0: (14, 4000), 1: (14, 4000)}
    resumed.close()
