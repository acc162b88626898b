"""R18: threads that come, write a little and go, more threads than slots, and a thread that ends in mid-page."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path

import anyio
import pytest

import aiotrace
from aiotrace_sinks import FileSink
from support.laws import PAGE, Collect, check_closed, check_laws, check_sink_has, number

pytestmark = pytest.mark.pure_too


def run_all(count: int, function: Callable[[int], None], at_once: int) -> None:
    """Run `function(n)` for each n in a thread of its own, at most `at_once` at a time."""
    running: list[threading.Thread] = []
    for n in range(count):
        thread = threading.Thread(target=function, args=(n,))
        thread.start()
        running.append(thread)
        if len(running) == at_once:
            running.pop(0).join()
    for thread in running:
        thread.join()


def short_threads(threads: int) -> None:
    sink = Collect()

    def ten(first: int) -> None:
        for n in range(10 * first, 10 * first + 10):
            number(n, "x" * (n % 30))

    with aiotrace.recording(sink, page_size=PAGE, pages=64) as recording:
        run_all(threads, ten, at_once=20)
        check_laws(recording.statistics(), 10 * threads)
    statistics = recording.statistics()
    check_closed(statistics, 10 * threads)
    check_sink_has(sink, statistics)
    assert len(statistics.writers) <= recording.info.writers
    assert statistics.pages_allocated <= 64


def test_short_threads_reuse_a_few_writers_and_nothing_is_lost_unnoticed() -> None:
    short_threads(500)


def test_losses_of_threads_that_never_got_a_page_are_in_the_trace(tmp_path: Path) -> None:
    path = tmp_path / "trace.dat"

    def many(first: int) -> None:
        for n in range(3000):
            number(n, "")

    async def main() -> aiotrace.Statistics:
        async with aiotrace.record(FileSink(path), page_size=PAGE, pages=16) as recording:
            many(0)  # the loop stands still: these take all pages
            run_all(1, many, at_once=1)
        return recording.statistics()

    statistics = anyio.run(main)
    check_closed(statistics, 6000)
    with aiotrace.open_trace(path) as trace:
        events = list(trace)
        told = {loss.cpu: loss.count for loss in trace.losses}
    assert sum(event.name != "aiotrace:lost" for event in events) == statistics.events_delivered
    assert told == {writer.writer: writer.dropped for writer in statistics.writers if writer.dropped}
    assert [not writer.written for writer in statistics.writers] == [False, True]


def test_a_thread_that_ends_in_mid_page_leaves_it_to_the_next() -> None:
    sink = Collect()
    with aiotrace.recording(sink, page_size=PAGE, pages=16) as recording:
        for n in range(5):
            thread = threading.Thread(target=number, args=(n, ""))
            thread.start()
            thread.join()
        statistics = recording.statistics()
        assert statistics.pages_filling == 1, "five threads, one page"
        assert len(statistics.writers) == 1
    check_closed(recording.statistics(), 5)
    check_sink_has(sink, recording.statistics(), range(5))
    assert len(sink.pages) == 1


def test_more_threads_than_writers_share_them() -> None:
    sink = Collect()
    barrier = threading.Barrier(12)
    with aiotrace.recording(sink, page_size=PAGE, pages=16) as recording:

        def write(first: int) -> None:
            for n in range(first * 20, first * 20 + 20):
                number(n, "")
            barrier.wait()  # all are alive at once

        assert recording.info.writers < 12
        run_all(12, write, at_once=12)
    statistics = recording.statistics()
    check_closed(statistics, 240)
    check_sink_has(sink, statistics, range(240))
    assert len(statistics.writers) == recording.info.writers


def test_a_thread_that_writes_while_the_recording_closes_harms_nothing() -> None:
    stop = threading.Event()
    failed: list[BaseException] = []

    def write() -> None:
        try:
            n = 0
            while not stop.is_set():
                number(n, "")
                n += 1
        except BaseException as error:
            failed.append(error)

    threads = [threading.Thread(target=write) for _ in range(2)]
    for thread in threads:
        thread.start()
    try:
        for _ in range(4):
            sink = Collect()
            with aiotrace.recording(sink, page_size=PAGE, pages=16) as recording:
                threading.Thread(target=number, args=(0, "")).start()
            check_closed(recording.statistics())
            assert len(sink.pages) == len(set(sink.pages))
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    assert not failed, failed[0]


def test_thread_started_after_the_close_gets_a_refusing_writer() -> None:
    with aiotrace.recording(page_size=PAGE, pages=16) as recording:
        pass
    writers = recording._core.writers
    writer, own = writers.lease()
    assert not own
    assert not writer.write(b"12345678")
    assert len(writers.all) == 1
    check_closed(recording.statistics(), 0)


@pytest.mark.long
def test_ten_thousand_short_threads() -> None:
    short_threads(10_000)
