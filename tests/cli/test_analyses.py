"""`aiotrace report --tasks` and the like, as a user asks: what is refused, and how."""

from __future__ import annotations

from pathlib import Path

import pytest

from aiotrace._cli import main
from aiotrace._page.definitions import EventDefinition
from aiotrace._page.encode import encode_record
from aiotrace._page.entry import PageEntry
from aiotrace._page.event_schema import Schema
from aiotrace.abc import Ledger, WriterLedger
from aiotrace.formats import StoredPage, TraceStore
from support.traces import INFO, page, store

Capture = pytest.CaptureFixture[str]


@pytest.fixture
def trace(tmp_path: Path) -> str:
    """With events, but none of tasks."""
    path = tmp_path / "t.dat"
    store(path, [page([1, 2, 3])], Ledger((WriterLedger(0, 9, 7, 0, 0, 2),)))
    return str(path)


@pytest.mark.parametrize(
    ("question", "missing"),
    [
        ("--tasks", "task:step"),
        ("--latency", "task:step"),
        ("--cancellations", "task:cancel or task:done or task:spawn"),
        ("--lost-tasks", "task:done or task:spawn"),
        ("--stalls", "loop:iteration or stall:end or stall:noticed or task:step"),
    ],
)
def test_trace_without_tasks_explains_how_to_record_them(
    trace: str, capsys: Capture, question: str, missing: str
) -> None:
    assert main(["report", trace, question]) == 2
    out = capsys.readouterr()
    assert out.out == ""
    assert out.err == (
        f"aiotrace report: {trace}: {question} needs {missing} events, and there are none; record the task tracer: "
        "aiotrace record -e 'task:*' PROGRAM\n"
    )


@pytest.mark.parametrize("question", ["--tasks", "--latency", "--cancellations", "--lost-tasks", "--stalls"])
def test_task_events_that_lack_fields_are_refused_in_a_sentence(tmp_path: Path, capsys: Capture, question: str) -> None:
    schema = Schema("task:spawn", {"task": "s32"})
    step = Schema("task:step", {"ready_ns": "u64"})
    path = tmp_path / "t.dat"
    made = TraceStore(str(path), INFO)
    found = [EventDefinition(id, s.system, s.name, s.format_text(id)) for id, s in ((2000, schema), (2001, step))]
    data = encode_record(0, schema.encode(2000, 77, (5,), lambda text: 0))
    data += encode_record(1, step.encode(2001, 77, (5,), lambda text: 0))
    made.write([StoredPage(PageEntry(0, 0, 0, True, 2, 0, 2, 1000, len(data)), memoryview(data))], found)
    made.end(found, Ledger(()))
    for _ in made.finish():
        pass
    made.close()

    assert main(["report", str(path), question]) == 2
    assert "it lacks fields, or has others than aiotrace's: " in capsys.readouterr().err


@pytest.mark.parametrize(
    "option", [["-e", "x"], ["-F", "n > 1"], ["--cpu", "0"], ["--pid", "1"], ["--follow"], ["--raw"]]
)
def test_options_that_choose_events_do_not_go_with_a_question(trace: str, capsys: Capture, option: list[str]) -> None:
    assert main(["report", trace, "--tasks", *option]) == 2
    assert f"{option[0]} cannot be combined with --tasks" in capsys.readouterr().err


def test_a_threshold_is_of_stalls(trace: str, capsys: Capture) -> None:
    assert main(["report", trace, "--threshold", "5"]) == 2
    assert "--threshold needs --stalls" in capsys.readouterr().err


@pytest.mark.parametrize("text", ["soon", "-1", "nan", "1e99"])
def test_a_threshold_is_milliseconds(trace: str, capsys: Capture, text: str) -> None:
    with pytest.raises(SystemExit) as exit:
        main(["report", trace, "--stalls", f"--threshold={text}"])
    assert exit.value.code == 2
    assert f"{text!r} should be milliseconds, like 100 or 2.5" in capsys.readouterr().err


def test_one_question_at_a_time(trace: str, capsys: Capture) -> None:
    with pytest.raises(SystemExit):
        main(["report", trace, "--stalls", "--tasks"])
    assert "not allowed with argument" in capsys.readouterr().err
