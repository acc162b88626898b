"""aiotrace_sinks.FileSink: begins, rotates, fails, resumes and closes."""

# ruff: noqa: ASYNC221, ASYNC222, ASYNC240 -- nothing else runs in these loops that could be blocked
# ruff: noqa: PT031 -- the warning comes from a task

from __future__ import annotations

import asyncio
import errno
import itertools
import os
import subprocess
import threading
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import anyio
import pytest

import aiotrace
from aiotrace import ConfigurationError
from aiotrace.abc import PageStream
from aiotrace.formats import TraceStore, UnfinishedTrace, is_unfinished, restore
from aiotrace.testing import check_sink
from aiotrace_sinks import FileSink
from aiotrace_sinks._file import CLOSE_ATTEMPTS
from support import fakes, stores

pytestmark = pytest.mark.anyio

EIO = OSError(errno.EIO, "injected")
NO_SPACE = OSError(errno.ENOSPC, "injected")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "trace.dat"


def read(trace_cmd: str, *paths: Path) -> Counter[tuple[int, int]]:
    """(CPU, n) of each event in the files."""
    found: Counter[tuple[int, int]] = Counter()
    files = [word for path in paths for word in ("-i", path)]
    done = subprocess.run([trace_cmd, "report", *files], capture_output=True, check=True, text=True)
    for line in done.stdout.splitlines():
        if "count:" in line:
            cpu, _, rest = line.partition("[")[2].partition("]")
            found[int(cpu), int(rest.partition("n=")[2].split()[0])] += 1
    return found


def expected(pages: Iterable[fakes.FakePage]) -> Counter[tuple[int, int]]:
    return Counter((page.writer, page.sequence * 1000 + n) for page in pages for n in range(page.events_count))


def names(path: Path) -> list[str]:
    return sorted(os.listdir(path.parent))


async def run_until_done(sink: FileSink, stream: fakes.FakeStream, failures: int = 50) -> fakes.FakeStream:
    """What the supervisor does: call the sink again with what is not acknowledged, until it ends."""
    for _ in range(failures):
        try:
            await sink(stream)
            return stream
        except OSError:
            stream = stream.again()
    raise AssertionError(f"the sink failed {failures} times")


# --- the straight way ---------------------------------------------------------------------------


async def test_a_stream_becomes_a_trace_and_every_page_is_acknowledged(trace_cmd: str, path: Path) -> None:
    pages = fakes.make_pages(100, 3)
    stream = fakes.FakeStream(pages)
    await FileSink(path)(stream)
    assert read(trace_cmd, path) == expected(pages)
    assert (stream.held, len(stream.acknowledged), names(path)) == ([], 100, ["trace.dat"])


async def test_files_exist_before_the_first_page_is_requested(path: Path) -> None:
    seen: list[list[str]] = []

    class Stream(fakes.FakeStream):
        async def next_batch(self, pages: int) -> list[Any]:
            seen.append(names(path))
            return []

    await FileSink(path)(Stream([]))
    assert seen == [["trace.dat", "trace.dat.journal"]]


async def test_a_batch_is_two_mebibytes_and_ends_with_one_of_the_file(path: Path) -> None:
    asked = []

    class Stream(fakes.FakeStream):
        async def next_batch(self, pages: int) -> list[Any]:
            asked.append(pages)
            return []

    for size in (4096, 65536, 1 << 20):
        await FileSink(path, overwrite=True)(Stream([], fakes.make_info(size)))
    assert asked == [511, 31, 1]  # the first page of the file is its header's


class Gate:
    """Holds up the writing of batches until it is opened, and notes which pages each of them has."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, fault: OSError | None = None) -> None:
        self.opened = threading.Event()
        self.batches: list[list[int]] = []
        write = TraceStore.write

        def gated(store: TraceStore, pages: Any, definitions: Any) -> None:
            self.opened.wait(30)
            self.batches.append([page.sequence for page in pages])
            if fault is not None and len(self.batches) == 1:
                raise fault
            write(store, pages, definitions)

        monkeypatch.setattr(TraceStore, "write", gated)


async def test_only_one_batch_waits_while_another_is_written(
    trace_cmd: str, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("aiotrace_sinks._file.BATCH_BYTES", 2 * 4096)
    gate, pages = Gate(monkeypatch), fakes.make_pages(10)
    stream = fakes.FakeStream(pages)
    async with anyio.create_task_group() as group:
        group.start_soon(FileSink(path), stream)
        with anyio.fail_after(30):
            while len(stream.held) < 3:
                await anyio.lowlevel.checkpoint()
        await anyio.wait_all_tasks_blocked()
        assert (len(stream.held), stream.acknowledged) == (3, [])
        gate.opened.set()
    assert gate.batches[:2] == [[0], [1, 2]]
    assert [number for batch in gate.batches for number in batch] == list(range(10))
    assert [page.sequence for page in stream.acknowledged] == list(range(10))
    assert read(trace_cmd, path) == expected(pages)


async def test_pages_accumulate_while_a_partial_batch_is_written(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each batch costs the same steps: where pages are few they are not taken one by one."""
    monkeypatch.setattr("aiotrace_sinks._file.BATCH_BYTES", 8 * 4096)
    gate, pages = Gate(monkeypatch), fakes.make_pages(9)
    stream = fakes.FakeStream(pages[:3])
    async with anyio.create_task_group() as group:
        group.start_soon(FileSink(path), stream)
        with anyio.fail_after(30):
            while len(stream.held) < 3:
                await anyio.lowlevel.checkpoint()
        for more in (pages[3:5], pages[5:]):
            stream.offered += more
            await anyio.wait_all_tasks_blocked()
        assert len(stream.held) == 3
        gate.opened.set()
    assert gate.batches == [[0, 1, 2], [3, 4, 5, 6, 7, 8]]
    assert len(stream.acknowledged) == 9


async def test_a_batch_behind_one_that_failed_is_not_written_before_it(
    trace_cmd: str, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("aiotrace_sinks._file.BATCH_BYTES", 2 * 4096)
    gate, pages = Gate(monkeypatch, EIO), fakes.make_pages(6)
    stream, sink = fakes.FakeStream(pages), FileSink(path)

    async def fail() -> None:
        with pytest.raises(OSError, match="injected"):
            await sink(stream)

    async with anyio.create_task_group() as group:
        group.start_soon(fail)
        with anyio.fail_after(30):
            while len(stream.held) < 3:
                await anyio.lowlevel.checkpoint()
        gate.opened.set()
    assert (gate.batches, stream.acknowledged) == ([[0]], [])
    await sink(stream.again())
    assert read(trace_cmd, path) == expected(pages)


async def test_a_batch_that_is_written_is_acknowledged_while_nothing_more_comes(path: Path) -> None:
    stream = fakes.FakeStream(fakes.make_pages(3), wait_at_end=True)
    with pytest.warns(RuntimeWarning, match="unfinished"):
        async with anyio.create_task_group() as group:
            group.start_soon(FileSink(path), stream)
            with anyio.fail_after(30):
                while len(stream.acknowledged) < 3:
                    await anyio.lowlevel.checkpoint()
            group.cancel_scope.cancel()


async def test_a_page_is_acknowledged_only_when_it_is_in_the_trace(path: Path) -> None:
    class Stream(fakes.FakeStream):
        def acknowledge(self, page: Any) -> None:
            with UnfinishedTrace(str(path)) as trace:
                found = {(placed.entry.writer, placed.entry.sequence) for placed in trace.pages if trace.read(placed)}
            assert (page.writer, page.sequence) in found
            super().acknowledge(page)

    stream = Stream(fakes.make_pages(20, 2))
    await FileSink(path)(stream)
    assert len(stream.acknowledged) == 20


async def test_full_file_is_rotated_between_pages_but_not_for_a_continued_page(trace_cmd: str, path: Path) -> None:
    first, second, third = (fakes.make_page(0, number, 20) for number in range(3))
    await FileSink(path, max_size=2 * 4096)(fakes.FakeStream([first, *fakes.cut(second, 5, 5, 5), third]))
    assert names(path) == ["trace.1.dat", "trace.dat"]
    assert read(trace_cmd, path.parent / "trace.1.dat") == expected([first, second])
    assert read(trace_cmd, path) == expected([third])


async def test_page_continued_after_a_rotation_is_a_page_of_the_new_file(
    trace_cmd: str, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    parts = fakes.cut(fakes.make_page(1, 7, 20), 5, 5, 5, complete=False)
    now = 100.0
    monkeypatch.setattr(anyio, "current_time", lambda: now)

    class Stream(fakes.FakeStream):
        async def next_batch(self, pages: int) -> list[Any]:
            nonlocal now
            now += 4
            return await super().next_batch(1)

    await FileSink(path, max_age=8)(Stream([fakes.make_page(), *parts]))
    found = []
    for name in ("trace.1.dat", "trace.2.dat", "trace.dat"):
        with aiotrace.open_trace(path.parent / name) as trace:
            found.append([(event.fields["n"], event.timestamp_ns) for event in trace if event.name != "aiotrace:lost"])
    assert [len(events) for events in found] == [25, 10, 5]
    assert [event for events in found for event in events][20:] == [
        (7000 + n, parts[0].timestamp + 1000 * (n + 1)) for n in range(20)
    ]


async def test_the_parts_of_a_page_are_stored_once_whatever_fails(
    trace_cmd: str, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = [fakes.make_page(n % 2, n // 2, 20) for n in range(12)]
    parts = [part for page in whole for part in fakes.cut(page, 3, 1, 9)]
    monkeypatch.setattr("aiotrace_sinks._file.BATCH_BYTES", 5 * 4096)
    for seed in range(4):
        stores.replace_os(monkeypatch, fakes.FaultyOs(seed=seed, rate=0.1, short=0.2))
        stream = await run_until_done(FileSink(path, overwrite=True), fakes.FakeStream(parts), 500)
        assert (stream.held, stream.offered) == ([], [])
        assert read(trace_cmd, path) == expected(whole), seed


# --- what is there already ----------------------------------------------------------------------


async def test_existing_file_is_an_error_before_any_page_is_requested(path: Path) -> None:
    path.write_text("mine")
    stream = fakes.FakeStream(fakes.make_pages(1))
    with pytest.raises(FileExistsError, match="overwrite=True"):
        await FileSink(path)(stream)
    assert (stream.requests, path.read_text(), names(path)) == (0, "mine", ["trace.dat"])


async def test_overwrite_replaces_a_trace_and_an_unfinished_one(trace_cmd: str, path: Path) -> None:
    pages = fakes.make_pages(3)
    await FileSink(path)(fakes.FakeStream(fakes.make_pages(9)))
    await FileSink(path, overwrite=True)(fakes.FakeStream(pages))
    assert read(trace_cmd, path) == expected(pages)
    path.unlink()
    left = TraceStore(str(path), fakes.make_info())
    left.write(fakes.make_pages(8, 4), fakes.DEFINITIONS)
    left.close()
    with pytest.raises(FileExistsError, match="aiotrace restore"):
        await FileSink(path)(fakes.FakeStream(pages))
    await FileSink(path, overwrite=True)(fakes.FakeStream(pages))
    assert (read(trace_cmd, path), names(path)) == (expected(pages), ["trace.dat"])


async def test_one_sink_writes_one_stream_at_a_time(trace_cmd: str, path: Path) -> None:
    sink = FileSink(os.fsencode(path), overwrite=True)
    first, pages = fakes.FakeStream(fakes.make_pages(1), wait_at_end=True), fakes.make_pages(2)
    with pytest.warns(RuntimeWarning, match="unfinished"):
        async with anyio.create_task_group() as group:
            group.start_soon(sink, first)
            while not first.acknowledged:
                await anyio.lowlevel.checkpoint()
            with pytest.raises(ConfigurationError, match="in use"):
                await sink(fakes.FakeStream(pages))
            group.cancel_scope.cancel()
    await FileSink(path, overwrite=True)(fakes.FakeStream(pages))
    assert read(trace_cmd, path) == expected(pages)


async def test_a_program_may_change_its_folder(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(path.parent)
    sink = FileSink("trace.dat", max_size=4096, keep=1)
    (other := tmp_path / "other").mkdir()
    (other / "trace.dat.journal").write_text("not ours")
    monkeypatch.chdir(other)
    await sink(fakes.FakeStream(fakes.make_pages(4)))
    assert repr(sink) == "FileSink('trace.dat')"
    assert names(other / "trace.dat") == ["trace.dat.journal"]
    assert [name for name in names(path) if name.startswith("trace")] == ["trace.3.dat", "trace.dat"]


async def test_missing_folder_is_an_immediate_error(path: Path) -> None:
    stream = fakes.FakeStream(fakes.make_pages(1))
    with pytest.raises(FileNotFoundError, match="nowhere"):
        await FileSink(path.parent / "nowhere" / "trace.dat")(stream)
    assert stream.requests == 0


# --- rotation -----------------------------------------------------------------------------------


async def test_a_file_that_is_full_is_rotated_and_each_decodes_alone(trace_cmd: str, path: Path) -> None:
    pages = fakes.make_pages(25, 2)
    await FileSink(path, max_size=10 * 4096 + 100)(fakes.FakeStream(pages))
    assert names(path) == ["trace.1.dat", "trace.2.dat", "trace.dat"]
    for name, group in (("trace.1.dat", pages[:10]), ("trace.2.dat", pages[10:20]), ("trace.dat", pages[20:])):
        assert read(trace_cmd, path.parent / name) == expected(group)


async def test_only_the_newest_rotated_files_are_kept(trace_cmd: str, path: Path) -> None:
    (path.parent / "trace.7.dat").write_text("not a trace")
    (path.parent / "trace.x.dat").write_text("not a number")
    pages = fakes.make_pages(30)
    await FileSink(path, max_size=5 * 4096, keep=2)(fakes.FakeStream(pages))
    assert names(path) == ["trace.4.dat", "trace.5.dat", "trace.7.dat", "trace.dat", "trace.x.dat"]
    assert read(trace_cmd, path.parent / "trace.5.dat") == expected(pages[20:25])


async def test_numbers_continue_from_an_earlier_run(path: Path) -> None:
    for _ in range(2):
        await FileSink(path, max_size=4096, overwrite=True)(fakes.FakeStream(fakes.make_pages(2)))
    assert names(path) == ["trace.1.dat", "trace.2.dat", "trace.dat"]


async def test_a_name_in_the_way_of_a_rotated_file_is_not_overwritten(path: Path) -> None:
    other = path.parent / "trace.1.dat"
    other.write_text("mine")
    with pytest.raises(FileExistsError, match=r"trace\.1\.dat"):
        await FileSink(path, max_size=4096)(fakes.FakeStream(fakes.make_pages(2)))
    assert other.read_text() == "mine"


async def test_an_old_file_is_rotated_when_the_next_page_comes(
    trace_cmd: str, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pages = fakes.make_pages(6)
    now = 100.0
    monkeypatch.setattr(anyio, "current_time", lambda: now)

    class Stream(fakes.FakeStream):
        async def next_batch(self, pages: int) -> list[Any]:
            nonlocal now
            now += 4
            return await super().next_batch(2)

    await FileSink(path, max_age=8)(Stream(pages))
    assert names(path) == ["trace.1.dat", "trace.dat"]
    assert read(trace_cmd, path) == expected(pages[4:])


@pytest.mark.filterwarnings("ignore:.*is unfinished:RuntimeWarning")
async def test_an_old_file_is_rotated_while_nothing_comes(trace_cmd: str, path: Path) -> None:
    pages = fakes.make_pages(3)
    stream = fakes.FakeStream(pages, wait_at_end=True)
    async with anyio.create_task_group() as group:
        group.start_soon(FileSink(path, max_age=0.01), stream)
        while names(path) != ["trace.1.dat", "trace.dat", "trace.dat.journal"]:
            await anyio.lowlevel.checkpoint()
        group.cancel_scope.cancel()
    assert read(trace_cmd, path.parent / "trace.1.dat") == expected(pages)
    assert restore(str(path)).pages == 0


# --- faults -------------------------------------------------------------------------------------


class OpenedError(Exception):
    pass


class Opened(fakes.FakeStream):
    async def next_batch(self, pages: int) -> list[Any]:
        raise OpenedError


@pytest.mark.parametrize("failing", ["open", "pwritev", "fdatasync", "fsync"])
@pytest.mark.parametrize("error", [NO_SPACE, EIO], ids=["ENOSPC", "EIO"])
async def test_an_opening_that_fails_leaves_nothing(
    path: Path, monkeypatch: pytest.MonkeyPatch, failing: str, error: OSError
) -> None:
    for call in itertools.count():
        stores.replace_os(monkeypatch, fakes.FaultyOs({failing: [None] * call + [error]}))
        with pytest.raises((OSError, OpenedError)) as raised:
            await FileSink(path, fsync=True)(Opened([]))
        if raised.type is OpenedError:
            break
        assert names(path) == []
    assert call > 0


async def test_a_recording_that_is_cancelled_as_it_opens_leaves_nothing(path: Path) -> None:
    async def never_asks(stream: PageStream) -> None:
        await anyio.sleep_forever()

    async with anyio.create_task_group() as group:

        async def enter() -> None:
            async with aiotrace.record(FileSink(path), never_asks):
                raise AssertionError("it was entered")

        group.start_soon(enter)
        while names(path) != ["trace.dat", "trace.dat.journal"]:
            await anyio.lowlevel.checkpoint()
        group.cancel_scope.cancel()
    await until_there_is_nothing(path)


@pytest.mark.parametrize("thread", [False, True])
async def test_nor_does_one_that_another_sink_refuses(path: Path, thread: bool) -> None:
    async def refuses(stream: PageStream) -> None:
        raise ConnectionRefusedError("nobody is there")

    with pytest.raises(ConnectionRefusedError):
        async with aiotrace.record(FileSink(path), refuses, thread=thread):
            raise AssertionError("it was entered")
    await until_there_is_nothing(path)


async def until_there_is_nothing(path: Path) -> None:
    """The sink's task is cancelled when the loop runs again."""
    with anyio.fail_after(60):
        while names(path):
            await anyio.lowlevel.checkpoint()


async def test_failed_sink_continues_with_the_same_file(
    trace_cmd: str, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pages = fakes.make_pages(40, 3)
    for call in range(3, 25, 4):
        stores.replace_os(monkeypatch, fakes.FaultyOs({"pwritev": [None] * call + [NO_SPACE] * 3}))
        monkeypatch.setattr("aiotrace_sinks._file.BATCH_BYTES", 7 * 4096)
        stream = await run_until_done(FileSink(path, overwrite=True), fakes.FakeStream(pages))
        assert (stream.held, stream.offered) == ([], [])
        assert (read(trace_cmd, path), names(path)) == (expected(pages), ["trace.dat"])


@pytest.mark.parametrize("seed", range(4))
async def test_errors_at_random_lose_and_double_nothing(
    trace_cmd: str, path: Path, monkeypatch: pytest.MonkeyPatch, seed: int
) -> None:
    pages = fakes.make_pages(60, 3)
    monkeypatch.setattr("aiotrace_sinks._file.BATCH_BYTES", 5 * 4096)
    stores.replace_os(monkeypatch, fakes.FaultyOs(seed=seed, rate=0.03, short=0.2))
    # The very first call may refuse to begin at all: as record() does, such a sink is not called again.
    sink = FileSink(path, max_size=25 * 4096, overwrite=True)
    stream = await run_until_done(sink, fakes.FakeStream(pages), 500)
    monkeypatch.undo()
    assert stream.held == []
    assert names(path) == ["trace.1.dat", "trace.2.dat", "trace.dat"]
    assert read(trace_cmd, *path.parent.iterdir()) == expected(pages)


@pytest.mark.parametrize("failing", ["rename", "unlink", "open", "copy_file_range"])
async def test_failed_rotation_continues_where_it_was(
    trace_cmd: str, path: Path, monkeypatch: pytest.MonkeyPatch, failing: str
) -> None:
    pages = fakes.make_pages(20, 2)
    for call in itertools.count():
        faulty = fakes.FaultyOs()
        sink = FileSink(path, max_size=6 * 4096)
        plan: list[int | OSError | None] = [None] * call + [EIO]

        def begin_and_break(
            stream: Any,
            faulty: fakes.FaultyOs = faulty,
            begin: Callable[..., None] = sink._begin,
            plan: list[int | OSError | None] = plan,
        ) -> None:
            begin(stream)
            faulty.faults.setdefault(failing, plan)

        monkeypatch.setattr(sink, "_begin", begin_and_break)
        stores.replace_os(monkeypatch, faulty)
        monkeypatch.setattr("aiotrace_sinks._file.os", faulty)
        stream = await run_until_done(sink, fakes.FakeStream(pages))
        monkeypatch.undo()
        assert (stream.held, stream.offered) == ([], [])
        files = [file for file in path.parent.iterdir() if file.suffix == ".dat"]
        assert read(trace_cmd, *files) == expected(pages), call
        assert names(path) == sorted(file.name for file in files)
        for file in files:
            file.unlink()
        if plan:
            break  # there are fewer such calls
    assert call >= 3


async def test_after_a_failed_fsync_the_pages_go_into_a_new_file(
    trace_cmd: str, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pages = fakes.make_pages(12)
    monkeypatch.setattr("aiotrace_sinks._file.BATCH_BYTES", 4 * 4096)
    # Two at the beginning, two for the first batch; then the second batch's fails.
    stores.replace_os(monkeypatch, fakes.FaultyOs({"fdatasync": [None] * 4 + [EIO]}))
    stream = fakes.FakeStream(pages)
    await FileSink(path, fsync=True)(stream)
    monkeypatch.undo()
    assert (len(stream.acknowledged), names(path)) == (12, ["trace.1.dat", "trace.dat"])
    assert read(trace_cmd, path.parent / "trace.1.dat") == expected(pages[:3])
    assert read(trace_cmd, path) == expected(pages[3:])


async def test_pages_written_before_a_failure_are_acknowledged(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stores.replace_os(monkeypatch, fakes.FaultyOs({"pwritev": [None] * 2 + [3 * 4096, NO_SPACE]}))
    sink, stream = FileSink(path), fakes.FakeStream(fakes.make_pages(9))
    with pytest.raises(OSError, match="injected"):
        await sink(stream)
    assert [page.sequence for page in stream.acknowledged] == [0, 1, 2]  # two writes were the files' beginnings


async def test_a_file_that_is_being_closed_gets_no_more_pages(
    trace_cmd: str, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The fsync fails, then closing the file; called again, the sink closes it first."""
    pages = fakes.make_pages(12)
    monkeypatch.setattr("aiotrace_sinks._file.BATCH_BYTES", 4 * 4096)
    plan = {"fdatasync": [None] * 4 + [EIO], "ftruncate": [None, EIO]}
    stores.replace_os(monkeypatch, fakes.FaultyOs(plan))
    sink, stream = FileSink(path, fsync=True), fakes.FakeStream(pages)
    with pytest.raises(OSError, match="injected"):
        await sink(stream)
    await sink(stream.again())
    monkeypatch.undo()
    assert read(trace_cmd, path.parent / "trace.1.dat") == expected(pages[:3])
    assert read(trace_cmd, path) == expected(pages[3:])


async def test_file_that_cannot_be_closed_is_set_aside_with_one_warning(
    trace_cmd: str, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The fsync fails; then what is not on the disk can be taken out, but not more."""
    pages = fakes.make_pages(12, 2)
    monkeypatch.setattr("aiotrace_sinks._file.BATCH_BYTES", 4 * 4096)
    closing = [EIO] * CLOSE_ATTEMPTS
    plan = {"fdatasync": [None] * 5 + [EIO], "ftruncate": [None, *closing]}
    stores.replace_os(monkeypatch, fakes.FaultyOs(plan))
    with pytest.warns(RuntimeWarning) as warned:
        stream = await run_until_done(FileSink(path, fsync=True), fakes.FakeStream(pages))
    monkeypatch.undo()
    assert [str(warning.message) for warning in warned] == [
        f"{path.parent}/trace.1.dat could not be closed ([Errno 5] injected): "
        f"`aiotrace restore {path.parent}/trace.1.dat` makes it a trace.dat"
    ]
    assert (stream.held, stream.offered) == ([], [])
    assert read(trace_cmd, path) == expected(pages[3:])
    assert names(path) == ["trace.1.dat", "trace.1.dat.cpu1", "trace.1.dat.journal", "trace.dat"]
    assert restore(str(path.parent / "trace.1.dat")).pages == 3
    assert read(trace_cmd, path.parent / "trace.1.dat") == expected(pages[:3])


async def test_a_full_disk_is_waited_for_and_nothing_is_set_aside(
    trace_cmd: str, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pages = fakes.make_pages(12, 2)
    stores.replace_os(monkeypatch, fakes.FaultyOs({"ftruncate": [NO_SPACE] * 3 * CLOSE_ATTEMPTS}))
    await run_until_done(FileSink(path, max_size=10 * 4096), fakes.FakeStream(pages))
    monkeypatch.undo()
    assert names(path) == ["trace.1.dat", "trace.dat"]
    assert read(trace_cmd, *path.parent.iterdir()) == expected(pages)


async def test_set_aside_file_beyond_the_limit_is_deleted_completely(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stores.replace_os(monkeypatch, fakes.FaultyOs({"ftruncate": [EIO] * CLOSE_ATTEMPTS}))
    with pytest.warns(RuntimeWarning, match=r"trace\.1\.dat could not be closed"):
        await run_until_done(FileSink(path, max_size=2 * 4096, keep=1), fakes.FakeStream(fakes.make_pages(6)))
    assert names(path) == ["trace.2.dat", "trace.dat"]


# --- cancellation -------------------------------------------------------------------------------


async def test_a_cancelled_sink_warns_and_leaves_what_restore_needs(trace_cmd: str, path: Path) -> None:
    pages = fakes.make_pages(10, 2)
    stream = fakes.FakeStream(pages, wait_at_end=True)
    with pytest.warns(RuntimeWarning, match="aiotrace restore"):
        async with anyio.create_task_group() as group:
            group.start_soon(FileSink(path), stream)
            while len(stream.acknowledged) < 10:
                await anyio.lowlevel.checkpoint()
            group.cancel_scope.cancel()
    assert is_unfinished(str(path))
    assert restore(str(path)).pages == 10
    assert read(trace_cmd, path) == expected(pages)


@pytest.mark.filterwarnings("ignore:.*is unfinished:RuntimeWarning")
async def test_sink_keeps_the_contract(path: Path) -> None:
    number = itertools.count()
    await check_sink(lambda: FileSink(path.parent / f"{next(number)}.dat"))


@pytest.mark.parametrize("anyio_backend", ["asyncio"])
@pytest.mark.filterwarnings("ignore:.*is unfinished:RuntimeWarning")
async def test_a_native_cancellation_anywhere_loses_and_doubles_nothing(trace_cmd: str, path: Path) -> None:
    """Task.cancel() goes through anyio's shields, and is said twice."""
    pages = fakes.make_pages(14, 2)
    for ticks in range(0, 60, 2):
        sink, stream = FileSink(path, max_size=6 * 4096), fakes.FakeStream(pages)
        task = asyncio.ensure_future(sink(stream))
        for _ in range(ticks):
            await anyio.lowlevel.checkpoint()
        task.cancel()
        await anyio.lowlevel.checkpoint()
        task.cancel()
        try:
            await task
        except asyncio.CancelledError:
            await sink(stream.again())
        files = list(path.parent.iterdir())
        assert read(trace_cmd, *files) == expected(pages), ticks
        for file in files:
            file.unlink()


async def test_cancelled_sink_continues_when_called_again(trace_cmd: str, path: Path) -> None:
    pages = fakes.make_pages(10, 2)
    sink = FileSink(path)
    stream = fakes.FakeStream(pages[:6], wait_at_end=True)
    with pytest.warns(RuntimeWarning, match="unfinished"):
        async with anyio.create_task_group() as group:
            group.start_soon(sink, stream)
            while len(stream.acknowledged) < 6:
                await anyio.lowlevel.checkpoint()
            group.cancel_scope.cancel()
    await sink(fakes.FakeStream(pages[4:]))
    assert read(trace_cmd, path) == expected(pages)


@pytest.mark.filterwarnings("ignore:.*is unfinished:RuntimeWarning")
async def test_cancelled_anywhere_and_called_again_no_page_is_lost_or_doubled(
    trace_cmd: str, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("aiotrace_sinks._file.BATCH_BYTES", 3 * 4096)
    pages = fakes.make_pages(14, 2)
    for ticks in range(60):
        sink = FileSink(path, max_size=6 * 4096)
        stream = fakes.FakeStream(pages)
        done = False

        async def run(sink: FileSink = sink, stream: fakes.FakeStream = stream) -> None:
            nonlocal done
            await sink(stream)
            done = True

        async with anyio.create_task_group() as group:
            group.start_soon(run)
            for _ in range(ticks):
                await anyio.lowlevel.checkpoint()
            group.cancel_scope.cancel()
        again = stream.again()
        if not done:
            await sink(again)
        files = list(path.parent.iterdir())
        assert read(trace_cmd, *files) == expected(pages), ticks
        assert len(files) == 3
        for file in files:
            file.unlink()
        if done:
            break


async def test_unacknowledged_written_pages_are_not_duplicated_by_a_rotation(trace_cmd: str, path: Path) -> None:
    class Stream(fakes.FakeStream):
        def acknowledge(self, page: Any) -> None:
            raise RuntimeError("the outcome is lost, as a native cancellation loses it")

    pages = fakes.make_pages(8)
    sink, stream = FileSink(path, max_size=6 * 4096), Stream(pages)
    with pytest.raises(RuntimeError, match="lost"):
        await sink(stream)
    await sink(stream.again())
    assert read(trace_cmd, *path.parent.iterdir()) == expected(pages)


async def test_a_sink_that_has_not_finished_refuses_another_recording(path: Path) -> None:
    sink = FileSink(path)
    stream = fakes.FakeStream(fakes.make_pages(1), wait_at_end=True)
    with pytest.warns(RuntimeWarning, match="unfinished"):
        async with anyio.create_task_group() as group:
            group.start_soon(sink, stream)
            while not stream.acknowledged:
                await anyio.lowlevel.checkpoint()
            group.cancel_scope.cancel()
    with pytest.raises(ConfigurationError, match="new FileSink"):
        await sink(fakes.FakeStream([], fakes.make_info(stream_id=b"another stream!!")))


async def test_a_forked_child_does_not_finish_the_parents_file(trace_cmd: str, path: Path) -> None:
    pages = fakes.make_pages(4)
    exit_codes = []

    class Stream(fakes.FakeStream):
        forked = False

        async def next_batch(self, pages: int) -> list[Any]:
            if not self.forked and not self.offered:
                self.forked = True
                child = os.fork()
                if child == 0:
                    os._exit(finish_in_child(sink))
                exit_codes.append(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
            return await super().next_batch(pages)

    def finish_in_child(sink: FileSink) -> int:
        before = sorted(os.listdir(path.parent))
        store = sink._store
        assert store is not None
        if sink._is_ours():
            return 1
        list(store.finish())
        return 0 if sorted(os.listdir(path.parent)) == before and before != ["trace.dat"] else 2

    sink = FileSink(path)
    await sink(Stream(pages))
    assert exit_codes == [0]
    assert read(trace_cmd, path) == expected(pages)


# --- arguments ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "arguments",
    [{"max_size": 0}, {"max_age": 0}, {"max_age": float("nan")}, {"keep": -1, "max_size": 1}, {"keep": 3}],
    ids=str,
)
def test_an_argument_out_of_range_is_named(arguments: dict[str, Any]) -> None:
    with pytest.raises(ConfigurationError, match=next(iter(arguments))):
        FileSink("trace.dat", **arguments)


async def test_a_size_without_room_for_a_page_is_named(path: Path) -> None:
    with pytest.raises(ConfigurationError, match="max_size=4095 has no room for a page of 4096"):
        await FileSink(path, max_size=4095)(fakes.FakeStream([]))
    assert names(path) == []


def test_a_url_names_the_file_and_the_options() -> None:
    sink = FileSink.from_url("file:/var/log/trace.dat?max_size=4096&max_age=1.5&keep=3&overwrite=yes&fsync")
    assert sink.path == "/var/log/trace.dat"
    assert (sink._max_size, sink._max_age, sink._keep, sink._overwrite, sink._fsync) == (4096, 1.5, 3, True, True)
    assert FileSink.from_url("file:trace.dat").path == os.path.abspath("trace.dat")


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("file:", "names no file"),
        ("file:?keep=1", "names no file"),
        ("file:a?size=3", "'size' .* is unknown; known: fsync, keep"),
        ("file:a?max_size=many", "max_size='many' .*: number was expected"),
        ("file:a?fsync=maybe", "fsync='maybe' .*: yes or no was expected"),
    ],
)
def test_invalid_url_is_named(url: str, message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        FileSink.from_url(url)


# --- the whole way ------------------------------------------------------------------------------


async def test_events_of_a_quiet_program_are_in_the_files_while_it_runs(path: Path) -> None:
    happened = aiotrace.event("file_sink_test:seldom", n="u32")
    async with aiotrace.record(FileSink(path), flush_interval=0.01) as recording:
        for n in range(30):
            happened(n)
            while recording.statistics().events_delivered <= n:
                await anyio.lowlevel.checkpoint()
            with aiotrace.open_trace(path) as trace:
                assert [event.fields["n"] for event in trace] == list(range(n + 1))
    with aiotrace.open_trace(path) as trace:
        assert [event.fields["n"] for event in trace] == list(range(30))
        assert [writer.pages for writer in trace.statistics().writers] == [1]


async def test_a_recording_and_trace_cmd_agree_on_the_number_of_events(trace_cmd: str, path: Path) -> None:
    happened = aiotrace.event("file_sink_test:happened", n="u32", text="str", kind="symbol")
    async with aiotrace.record(FileSink(path), page_size=4096) as recording:
        for n in range(2000):
            await happened.send(n, f"number {n}", "even" if n % 2 == 0 else "odd")
    assert recording.statistics().events_delivered == 2000
    done = subprocess.run([trace_cmd, "report", path], capture_output=True, check=True, text=True)
    lines = [line.partition("happened:")[2].split() for line in done.stdout.splitlines() if "happened:" in line]
    assert [line[0] for line in lines] == [f"n={n}" for n in range(2000)]
    assert {line[-1] for line in lines} == {"kind=even", "kind=odd"}
