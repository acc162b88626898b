"""Traces of one event with every kind of field: pages, files and definitions, made without a recording."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from aiotrace._base.clock import Anchor
from aiotrace._page.definitions import CommandDefinition, Definition, EventDefinition, SymbolDefinition
from aiotrace._page.encode import encode_record
from aiotrace._page.entry import PageEntry
from aiotrace._page.event_schema import Schema
from aiotrace.abc import Ledger, StreamInfo
from aiotrace.decode import Event
from aiotrace.formats import StoredPage, TraceStore

SCHEMA = Schema("test:all", {"n": "s64", "f": "f64", "s": "str", "y": "bytes", "sym": "symbol", "b": "bool", "k": "u8"})
ID = 2000
SYMBOL = 0xFFFF800000001000
INFO = StreamInfo(bytes(range(16)), 4096, 8, "mono", Anchor(5, 6, "boot"), 77, "host", "prog")


def definitions() -> list[Definition]:
    return [
        EventDefinition(ID, "test", "all", SCHEMA.format_text(ID)),
        SymbolDefinition(SYMBOL, 'a "symbol"\n'),
        CommandDefinition(77, "a thread whose name is long"),
    ]


def payload(number: int, text: str = "x", data: bytes = b"", pid: int = 77) -> bytes:
    values = (number, number / 3, text, data, 'a "symbol"\n', True, number & 0xFF)
    return SCHEMA.encode(ID, pid, values, lambda text: SYMBOL)


def page(
    numbers: Sequence[int], *, writer: int = 0, sequence: int = 0, step: int = 10, start: int = 1000, lost: int = 0
) -> StoredPage:
    """A page with an event each `step` ns, the first at `start`."""
    data = b"".join(encode_record(step if index else 0, payload(n)) for index, n in enumerate(numbers))
    entry = PageEntry(writer, sequence, 0, True, len(numbers), lost, len(definitions()), start, len(data))
    return StoredPage(entry, memoryview(data))


def store(path: Path, pages: Sequence[StoredPage], ledger: Ledger | None = None, *, finish: bool = True) -> TraceStore:
    made = TraceStore(str(path), INFO)
    made.write(pages, definitions())
    made.end(definitions(), ledger or Ledger(()))
    if finish:
        for _ in made.finish():
            pass
    made.close()
    return made


def numbers(events: Sequence[Event]) -> list[object]:
    return [event.fields["count"] if event.is_loss else event.fields["n"] for event in events]
