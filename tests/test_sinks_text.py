"""aiotrace_sinks.TextSink."""

from __future__ import annotations

import io
import threading

import fakes
import pytest
from aiotrace_sinks import TextSink

from aiotrace.abc import SymbolDefinition

pytestmark = pytest.mark.anyio


async def test_each_event_is_a_line_and_so_is_a_loss() -> None:
    file = io.StringIO()
    stream = fakes.FakeStream([fakes.make_page(2, 0, 2), fakes.make_page(2, 1, 1, lost=7)])
    await TextSink(file)(stream)
    lines = file.getvalue().splitlines()
    assert [line.partition("count:")[2].strip() for line in lines] == [
        "n=0 what=a symbol", "n=1 what=a symbol", "", "n=1000 what=a symbol",
    ]  # fmt: skip
    assert lines[0].startswith("      worker one-4200000 [002]     1.000001:")
    assert "CPU:2 [7 EVENTS DROPPED]" in lines[2]
    assert (stream.held, stream.prefixes) == ([], True)


async def test_it_prints_to_what_standard_output_is_when_it_starts(capsys: pytest.CaptureFixture[str]) -> None:
    await TextSink.from_url("text:")(fakes.FakeStream([fakes.make_page()]))
    assert capsys.readouterr().out.count("count:") == 20


async def test_no_text_of_the_program_can_make_a_line_or_an_error() -> None:
    definitions = [*fakes.DEFINITIONS, SymbolDefinition(fakes.SYMBOL_KEY + 16, "new\nline \x1b[31m \udc80 é")]
    page = fakes.make_page(payload=lambda n: fakes.count_payload(n, fakes.SYMBOL_KEY + 16))
    page.definitions_needed = len(definitions)
    raw = io.BytesIO()
    file = io.TextIOWrapper(raw, encoding="ascii")
    await TextSink(file)(fakes.FakeStream([page], definitions=definitions))
    text = raw.getvalue().decode("ascii")
    assert text.count("\n") == 20
    assert "\x1b" not in text


async def test_the_loop_is_not_blocked_by_a_stream_that_blocks() -> None:
    threads = []

    class File(io.StringIO):
        def write(self, text: str) -> int:
            threads.append(threading.current_thread())
            return super().write(text)

    await TextSink(File())(fakes.FakeStream([fakes.make_page()]))
    assert threading.current_thread() not in threads


async def test_a_stream_that_fails_leaves_its_pages_unacknowledged() -> None:
    class File(io.StringIO):
        def write(self, text: str) -> int:
            raise BrokenPipeError("nobody reads")

    stream = fakes.FakeStream([fakes.make_page()])
    with pytest.raises(BrokenPipeError):
        await TextSink(File())(stream)
    assert len(stream.held) == 1
