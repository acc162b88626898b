"""The benchmarks of events and of the pipeline: at a tiny size they run, and what they say is what they measured."""

from __future__ import annotations

import statistics
import struct

import pytest

from aiotrace._page.encode import encode_record
from benchmarks import events, pipeline
from benchmarks.events import EMPTY_LOOP, Row
from benchmarks.floor import NotCompiledError, compile_extension
from support.page_oracle import unpack_header, walk


def test_the_floor_writes_the_record_that_an_event_writes() -> None:
    try:
        floor = compile_extension("floor.c")
    except NotCompiledError as error:
        pytest.skip(f"NOT RUN: {error}")
    before = floor.written()
    for _ in range(2000):  # more than a page
        floor.floor_object(200, -1_250_000, 0.5)
        floor.floor_bound(200, -1_250_000, 0.5)
    assert floor.empty_object(1, 2, 3) is floor.empty_bound(1, 2, 3) is None
    assert floor.written() - before == 4000
    page = floor.page()
    header = unpack_header(page)
    assert len(page) == 16 + header.committed <= 65536
    encoded, last = b"", header.timestamp
    for record in walk(memoryview(page)[16:], header.timestamp):
        payload = page[16 + record.start : 16 + record.start + record.length]
        assert struct.unpack("=HBBi", payload[:8])[0] == 2048
        assert struct.unpack("=Qqd", payload[8:]) == (200, -1_250_000, 0.5)
        encoded += encode_record(record.timestamp - last, payload)
        last = record.timestamp
    assert encoded == page[16:]


def test_failed_compilation_is_reported() -> None:
    with pytest.raises(NotCompiledError, match=r"error|not installed"):
        compile_extension("there_is_none.c")


def test_a_row_counts_executions_and_the_loop_is_subtracted_round_by_round() -> None:
    made: list[int] = []
    row = Row("append", "made.append(1)", {"made": made}, "other", ("<=", 2.0))
    row.run(80)
    assert len(made) == 80 + 80 // 8
    costs = {EMPTY_LOOP: [1.0, 2.0, 3.0], "other": [11.0, 12.0, 13.0], "append": [16.0, 42.0, 23.0]}
    assert events.ratio(costs, "append", "other") == 2.0 == statistics.median([1.5, 4.0, 2.0])
    assert events.judge(row, costs) == ("append", 15.0, 21.0, 2.0, 1.5, "other", "<= 2.0", "yes")
    costs["append"] = [cost + 0.1 for cost in costs["append"]]
    assert events.judge(row, costs)[-1] == "no"


def test_table_of_events_has_every_row_or_the_reason_for_its_absence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(events, "OTHERS", {"logging to a file": events.logging_row})
    table = events.run(rounds=2, window=0.0002)
    rows = {str(row[0]): row for row in table.rows}
    assert {"empty loop", "event", "event.emit", "event, disabled", "logging to a file"} <= rows.keys()
    assert isinstance(rows["event"][2], float)
    assert isinstance(rows["logging to a file"][3], float)
    assert "event, pure Python" in rows


def test_missing_competitors_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    import contextlib
    from collections.abc import Iterator

    @contextlib.contextmanager
    def absent() -> Iterator[Row]:
        import there_is_no_such_module  # type: ignore[import-not-found]  # noqa: F401

        yield Row("absent", "pass")

    monkeypatch.setattr(events, "OTHERS", {"absent": absent})
    with contextlib.ExitStack() as stack:
        assert events.enter_others(stack) == ([], [("absent", "not installed (there_is_no_such_module)")])


def test_pipeline_table_shows_the_ledger_beside_the_speed() -> None:
    table = pipeline.run(seconds=0.1, turns=1, second=0.05)
    rows = {str(row[0]): dict(zip(table.columns, row, strict=True)) for row in table.rows}
    for name in ("file", "null sink"):
        delivered, lost = rows[name]["delivered"], rows[name]["lost"]
        assert isinstance(delivered, int)
        assert isinstance(lost, int)
        assert delivered + lost > 0
        assert (delivered + lost) % 10_000 == 0, "every call is accounted for"
    assert rows["events alone"]["slower"] == 1.0
    assert isinstance(rows["sustained: events lost"]["calls/s"], int)
