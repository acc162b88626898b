"""aiotrace_sinks.TextSink."""

# ruff: noqa: PT031 -- the warning comes from a task

from __future__ import annotations

import io
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from typing import TextIO

import anyio
import pytest

import aiotrace
from aiotrace.abc import SymbolDefinition
from aiotrace.testing import check_sink
from aiotrace_sinks import TextSink
from support import fakes
from support.programs import environment

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


async def test_text_sink_uses_the_standard_output_of_its_start(capsys: pytest.CaptureFixture[str]) -> None:
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


@pytest.fixture
def stuck() -> Iterator[TextIO]:
    """A pipe that is full and not read."""
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    try:
        while True:
            os.write(writing, bytes(4096))
    except BlockingIOError:
        os.set_blocking(writing, True)
    file = os.fdopen(writing, "w")
    yield file
    os.close(reading)  # the thread that was left gets a broken pipe
    file.close()


async def test_unread_pipe_delays_no_other_sink(stuck: TextIO) -> None:
    happened = aiotrace.event("text_sink_test:happened", n="u32")
    with pytest.warns(RuntimeWarning, match="did not finish within 0"):
        async with aiotrace.record(TextSink(stuck), flush_interval=0.01, drain_timeout=0.01) as recording:
            happened(1)
            while not recording.statistics().sinks[0].events_in_flight:
                await anyio.lowlevel.checkpoint()
    statistics = recording.statistics()
    assert (statistics.events_abandoned, statistics.events_delivered) == (1, 0)
    assert statistics.pages_free == statistics.pages_total


async def test_text_is_complete_after_a_full_pipe_was_drained() -> None:
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    pages = fakes.make_pages(60)
    with os.fdopen(reading) as source, os.fdopen(writing, "w") as file:
        async with anyio.create_task_group() as group:

            async def run() -> None:
                await TextSink(file)(fakes.FakeStream(pages))

            group.start_soon(run)
            lines = [await anyio.to_thread.run_sync(source.readline) for _ in range(1200)]
    assert [int(line.partition("n=")[2].split()[0]) for line in lines] == [
        page.sequence * 1000 + n for page in pages for n in range(20)
    ]


PRINTS = """
import asyncio, aiotrace, warnings
from aiotrace_sinks import TextSink
warnings.simplefilter("ignore")
happened = aiotrace.event("text_sink_test:printed", n="u32")
async def main():
    print("first", flush=False)
    async with aiotrace.record(TextSink(), drain_timeout=0.1):
        for n in range(20_000):
            happened(n)
asyncio.run(main())
"""


def test_program_with_unread_output_ends() -> None:
    program = subprocess.Popen([sys.executable, "-c", PRINTS], stdout=subprocess.PIPE, env=environment())
    with program:
        assert program.wait() == 0
        assert program.stdout is not None
        assert program.stdout.readline() == b"first\n"


async def test_sink_keeps_the_contract() -> None:
    await check_sink(lambda: TextSink(io.StringIO()))
