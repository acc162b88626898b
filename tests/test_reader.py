"""The reader's wake-ups: one for many pages of a busy writer, none too late for anybody else."""

from __future__ import annotations

import threading

import anyio
import pytest
from laws import PAGE, Collect, check_closed

import aiotrace
from aiotrace import _recording

number = aiotrace.event("laws:number", n="u64", text="str")
FILL = "x" * 3000
"""One such event fills a page: a second does not fit."""


@pytest.mark.anyio
async def test_a_reader_that_rests_is_woken_by_a_quarter_of_the_pool(monkeypatch: pytest.MonkeyPatch) -> None:
    async with aiotrace.record(Collect(), page_size=PAGE, pages=64, flush_interval=60) as recording:
        await number.send(0, FILL)
        number(1, FILL)  # the first page is full
        for _ in range(100):
            if recording._service._resting:
                break
            await anyio.lowlevel.checkpoint()
        assert recording._service._resting
        wakes: list[int] = []
        wake = recording._service._waker.wake
        monkeypatch.setattr(
            recording._service._waker, "wake", lambda: (wakes.append(len(recording._pages.ring)), wake())
        )
        for n in range(2, 2 + 16):
            number(n, FILL)
        assert wakes == [16]
        with anyio.fail_after(10):
            while recording.statistics().pages_full:
                await anyio.lowlevel.checkpoint()
    check_closed(recording.statistics(), 18)
    assert recording.statistics().events_delivered == 18


@pytest.mark.anyio
async def test_a_page_that_gets_full_while_the_reader_rests_is_delivered_without_another() -> None:
    sink = Collect()
    async with aiotrace.record(sink, page_size=PAGE, pages=64, flush_interval=60) as recording:
        for n in range(3):
            number(n, FILL)
        for _ in range(100):
            if recording._service._resting:
                break
            await anyio.lowlevel.checkpoint()
        number(3, FILL)  # one more full page, at rest
        with anyio.fail_after(10):
            while set(sink.numbers) != {0, 1, 2}:
                await anyio.lowlevel.checkpoint()
        assert recording.statistics().pages_full == 0


@pytest.mark.anyio
async def test_what_a_quiet_writer_wrote_goes_out_while_another_fills_page_after_page() -> None:
    sink = Collect(prefixes=True)
    done = threading.Event()
    written = threading.Event()

    def quiet() -> None:
        number(1_000_000, "")
        written.set()
        done.wait()

    async with aiotrace.record(sink, page_size=PAGE, pages=16, flush_interval=0.01) as recording:
        thread = threading.Thread(target=quiet)
        thread.start()
        written.wait()
        with anyio.fail_after(20):
            n = 0
            while not sink.numbers[1_000_000]:
                await number.send(n, FILL)
                n += 1
        done.set()
        thread.join()
    check_closed(recording.statistics(), n + 1)


def test_a_writer_cedes_once_for_each_page_that_it_takes_of_the_last_quarter(monkeypatch: pytest.MonkeyPatch) -> None:
    free: list[int] = []
    monkeypatch.setattr(_recording, "_cede", lambda: free.append(recording.statistics().pages_free))
    with aiotrace.recording(page_size=PAGE, pages=16) as recording:
        for n in range(40):
            number(n, FILL)
    assert free == [3, 2, 1, 0]
    assert recording.statistics().dropped["no_page"] == 40 - 16
