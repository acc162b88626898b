"""aiotrace._store.store: traces that grow; what fails, what is written again, what a kill leaves."""

from __future__ import annotations

import os
import random
import signal
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aiotrace._base.errors import TraceFormatError
from aiotrace._collector.stored_stream import stored_positions
from aiotrace._formats.journal import PLACED_SIZE
from aiotrace._store.restore import restore
from aiotrace._store.store import TraceStore
from aiotrace._store.trace_files import RESERVE_FROM, RESERVED, remove, reserve
from aiotrace._store.unfinished import UnfinishedTrace, is_unfinished
from aiotrace.decode import open_trace
from support import fakes, stores
from support.stores import EIO, INFO, LEDGER, NO_SPACE, expected, finish, make_store, numbers, report, rest


@pytest.fixture
def path(tmp_path: Path) -> str:
    return str(tmp_path / "trace.dat")


@pytest.mark.parametrize("writers", [1, 4])
def test_a_closed_trace_is_one_file_that_trace_cmd_reads(trace_cmd: str, path: str, writers: int) -> None:
    pages = fakes.make_pages(50, writers)
    finish(make_store(path, pages))
    assert numbers(report(trace_cmd, path)) == expected(pages)
    assert rest(path) == []
    assert not is_unfinished(path)


def test_losses_are_reported_where_they_were(trace_cmd: str, path: str) -> None:
    finish(make_store(path, [fakes.make_page(0, 0, 2), fakes.make_page(0, 1, 2, lost=41)]))
    assert [n for n, line in enumerate(report(trace_cmd, path)) if "[41 EVENTS DROPPED]" in line] == [2]


def test_the_files_are_private_and_the_empty_part_of_a_page_is_a_hole(path: str) -> None:
    info = fakes.make_info(page_size=1 << 20)
    store = TraceStore(path, info)
    store.write(fakes.make_pages(20, 2), fakes.DEFINITIONS)
    modes = {stat.S_IMODE(os.stat(os.path.join(os.path.dirname(path), name)).st_mode) for name in [path, *rest(path)]}
    assert (modes, len(rest(path))) == ({0o600}, 2)
    finish(store)
    status = os.stat(path)
    assert status.st_size > 20 << 20
    assert status.st_blocks * 512 < 1 << 20


@pytest.mark.parametrize("closed_by", [finish, lambda store: (store.close(), restore(store.path))])
def test_blocks_that_were_reserved_and_are_not_needed_are_given_back(
    path: str, closed_by: Callable[[TraceStore], object]
) -> None:
    store = TraceStore(path, INFO)
    store.write(fakes.make_pages(RESERVE_FROM // 4096 * 2, 2, 100), fakes.DEFINITIONS)
    if reserve(store._files.spool(3), 0, 4096):  # the file system can, and the C module is there
        assert min(os.stat(name).st_blocks for name in (path, path + ".cpu1")) >= RESERVED // 512
        assert os.stat(path + ".cpu1").st_size == RESERVE_FROM
    closed_by(store)
    assert os.stat(path).st_blocks * 512 < os.stat(path).st_size + (1 << 16)


def test_an_end_that_could_not_be_written_is_written_again(
    trace_cmd: str, path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    page = fakes.make_page()
    page.definitions_needed = 3
    store = make_store(path, [page])
    stores.replace_os(monkeypatch, fakes.FaultyOs({"pwritev": [NO_SPACE]}))
    with pytest.raises(OSError, match="injected"):
        store.end(fakes.DEFINITIONS, LEDGER)
    store.end(fakes.DEFINITIONS, LEDGER)
    with UnfinishedTrace(path) as trace:
        assert (trace.definitions, trace.ledger) == (fakes.DEFINITIONS, LEDGER)


def test_a_failed_write_keeps_no_view_of_a_page(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    memory = bytearray(fakes.make_page().data)
    page = fakes.make_page()
    page.data = memoryview(memory)
    store = make_store(path)
    stores.replace_os(monkeypatch, fakes.FaultyOs({"pwritev": [100, NO_SPACE]}))
    with pytest.raises(OSError, match="injected") as caught:
        store.write([page], fakes.DEFINITIONS)
    page.data.release()
    memory.clear()  # a BufferError if the traceback held one
    assert caught.value.__traceback__ is not None


@pytest.mark.parametrize(("writers", "again"), [(2, 2), (1, 2), (1, 5)])
def test_a_page_that_is_offered_again_is_stored_once(trace_cmd: str, path: str, writers: int, again: int) -> None:
    pages = fakes.make_pages(10, writers)
    store = make_store(path, pages[:6])
    store.write(pages[again:], fakes.DEFINITIONS)
    assert store.pages_count == 10
    finish(store)
    assert numbers(report(trace_cmd, path)) == expected(pages)


@given(data=st.data())
@settings(max_examples=settings.default.max_examples // 4)  # each starts trace-cmd twice
def test_a_trace_is_the_same_in_whatever_parts_and_batches_its_pages_come(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    """Byte by byte: also where what was written is offered again, from anywhere."""
    lost = st.sampled_from([0, 0, 3, 70_000])
    pages = [fakes.make_page(n % 2, n // 2, data.draw(st.integers(1, 12)), lost=data.draw(lost)) for n in range(8)]
    parts: list[fakes.FakePage] = []
    for page in pages:
        counts, left = [], page.events_count
        while (count := data.draw(st.integers(1, left))) < left:
            counts.append(count)
            left -= count
        parts += fakes.cut(page, *counts)
    folder = tmp_path_factory.mktemp("parts")
    whole, other = str(folder / "whole.dat"), str(folder / "other.dat")
    finish(make_store(whole, pages))
    store = TraceStore(other, INFO)
    position = 0
    while position < len(parts):
        again = data.draw(st.integers(0, min(position, 4)))
        size = data.draw(st.integers(1, 6))
        store.write(parts[position - again : position + size], fakes.DEFINITIONS)
        position += size
    assert store.pages_count == len(pages)
    if data.draw(st.booleans()):
        finish(store)
    else:
        store.end(fakes.DEFINITIONS, LEDGER)
        store.close()
        assert restore(other).events == sum(page.events_count for page in pages)
    assert Path(other).read_bytes() == Path(whole).read_bytes()


@pytest.mark.parametrize("call", range(9))
@pytest.mark.parametrize("fault", [NO_SPACE, 17, 100], ids=str)
def test_parts_of_which_one_failed_can_be_written_again_or_elsewhere(
    trace_cmd: str, path: str, monkeypatch: pytest.MonkeyPatch, call: int, fault: OSError | int
) -> None:
    """Events that did not fit into this file follow in the next; a loss is reported in the first."""
    page = fakes.make_page(1, 5, 20, lost=41)
    parts = fakes.cut(page, 4, 4, 4)
    store = make_store(path, [fakes.make_page(), *parts[:1]])
    plan = [fault] if fault is NO_SPACE else [fault, NO_SPACE]
    stores.replace_os(monkeypatch, fakes.FaultyOs({"pwritev": [None] * call + plan}))
    try:
        store.write(parts[1:], fakes.DEFINITIONS)
    except OSError:
        pass
    monkeypatch.undo()
    finish(store, None)
    following = TraceStore(path + "2", INFO, stored=store.stored)
    following.write(parts, fakes.DEFINITIONS)
    finish(following)
    first, second = report(trace_cmd, path), report(trace_cmd, path + "2")
    assert numbers(first) + numbers(second) == expected([fakes.make_page(), page])
    assert [line for line in first + second if "DROPPED" in line] == ["CPU:1 [41 EVENTS DROPPED]"]


def test_part_after_a_loss_becomes_a_separate_page(trace_cmd: str, path: str) -> None:
    first, second = fakes.cut(fakes.make_page(0, 0, 6), 3)
    second.lost_before = 9
    finish(make_store(path, [first, second]))
    lines = report(trace_cmd, path)
    assert [n for n, line in enumerate(lines) if "[9 EVENTS DROPPED]" in line] == [3]
    assert sum(numbers(lines).values()) == 6


def test_fitting_data_is_counted_in_pages_not_in_parts(path: str) -> None:
    pages = [fakes.make_page(n % 2, n // 2, 6) for n in range(6)]
    parts = [part for page in pages for part in fakes.cut(page, 2, 2)]
    store = make_store(path, parts[:4])
    room = [store.fitting(parts[4:], size * 4096 + 4095) for size in range(6)]
    assert room == [0, 0, 2, 5, 8, 11]
    assert store.fitting(pages[2:], 5 * 4096) == 3


def test_sequence_numbers_may_begin_anywhere_and_leave_gaps(trace_cmd: str, path: str) -> None:
    pages = [fakes.make_page(0, n, 3, start_ns=0) for n in (2**32 - 1, 2**32, 2**32 + 7)]
    finish(make_store(path, pages))
    assert numbers(report(trace_cmd, path)) == expected(pages)


def test_a_closed_store_can_be_opened_again(trace_cmd: str, path: str) -> None:
    pages = fakes.make_pages(20, 3)
    store = make_store(path, pages[:10])
    store.close()
    store.write(pages[10:], fakes.DEFINITIONS)
    store.close()
    finish(store)
    assert numbers(report(trace_cmd, path)) == expected(pages)


def test_store_does_not_write_into_files_that_replaced_its_own(path: str) -> None:
    store = make_store(path, fakes.make_pages(3))
    store.close()
    remove(path)
    other = TraceStore(path, fakes.make_info(stream_id=b"another stream!!"))
    other.write(fakes.make_pages(3), fakes.DEFINITIONS)
    other.close()
    with pytest.raises(FileNotFoundError, match="replaced"):
        store.write(fakes.make_pages(5), fakes.DEFINITIONS)
    with UnfinishedTrace(path) as trace:
        assert len(trace.pages) == 3


@pytest.mark.parametrize("call", range(12))
@pytest.mark.parametrize("fault", [NO_SPACE, 1, 17, 100, 5000], ids=str)
def test_a_batch_that_failed_can_be_written_again(
    trace_cmd: str, path: str, monkeypatch: pytest.MonkeyPatch, call: int, fault: OSError | int
) -> None:
    """The write fails, or falls short and then fails, at each of the calls that a batch makes."""
    pages = fakes.make_pages(10, 3)
    store = make_store(path, pages[:5])
    plan = [fault] if fault is NO_SPACE else [fault, NO_SPACE]
    faulty = fakes.FaultyOs({"pwritev": [None] * call + plan})
    stores.replace_os(monkeypatch, faulty)
    try:
        store.write(pages[5:], fakes.DEFINITIONS)
    except OSError:
        with UnfinishedTrace(path) as trace:
            known = [(placed.entry.writer, placed.entry.sequence) for placed in trace.pages if trace.read(placed)]
            assert known == [(page.writer, page.sequence) for page in pages[: len(known)]]
            assert len(known) == store.pages_count >= 5
            assert trace.damage == []
    store.write(pages[5:], fakes.DEFINITIONS)
    monkeypatch.undo()
    finish(store)
    assert numbers(report(trace_cmd, path)) == expected(pages)


def test_the_pages_before_one_that_cannot_be_written_are_in_the_trace(
    path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = make_store(path)
    stores.replace_os(monkeypatch, fakes.FaultyOs({"pwritev": [4 * INFO.page_size - 1, NO_SPACE]}))
    with pytest.raises(OSError, match="injected"):
        store.write(fakes.make_pages(9), fakes.DEFINITIONS)
    assert [store.has(fakes.make_page(0, number)) for number in (2, 3)] == [True, False]
    assert restore_copy(store, path) == 3


def test_complete_pages_of_a_batch_count_in_batch_order(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of three writers' pages 0 to 8 those of the first are written, and of the second's, 1, 4 and 7, the first two."""
    store = make_store(path)
    stores.replace_os(monkeypatch, fakes.FaultyOs({"pwritev": [None, 2 * INFO.page_size, NO_SPACE]}))
    pages = fakes.make_pages(9, 3)
    with pytest.raises(OSError, match="injected"):
        store.write(pages, fakes.DEFINITIONS)
    assert [store.has(page) for page in pages] == [True, True] + [False] * 7
    assert restore_copy(store, path) == 2


def test_a_batch_is_one_write_to_each_file_and_one_to_the_journal(
    trace_cmd: str, path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where it has more buffers than one call takes, which asks for one call more."""
    faulty = fakes.FaultyOs()
    store = make_store(path)
    stores.replace_os(monkeypatch, faulty)
    pages = fakes.make_pages(800)
    store.write(pages[:200], fakes.DEFINITIONS)
    assert faulty.calls == ["pwritev"] * 2
    store.write(pages[200:], fakes.DEFINITIONS)
    assert faulty.calls == ["pwritev"] * 5
    finish(store)
    assert numbers(report(trace_cmd, path)) == expected(pages)


def restore_copy(store: TraceStore, path: str) -> int:
    store.close()
    return restore(path).pages


def test_a_shorter_batch_after_a_torn_one_leaves_no_old_frame_behind_it(
    path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The beginning of the torn batch is whole frames: they must not come back behind the new ones."""
    store = make_store(path, [fakes.make_page(0, 0)])
    pages = fakes.make_pages(6)[1:]
    short = PLACED_SIZE * 4 + 20
    plan = [None, short, NO_SPACE]
    stores.replace_os(monkeypatch, fakes.FaultyOs({"pwritev": plan, "ftruncate": [EIO]}))
    with pytest.raises(OSError, match="injected"):
        store.write(pages, fakes.DEFINITIONS)
    store.write(pages[:1], fakes.DEFINITIONS)
    with UnfinishedTrace(path) as trace:
        assert [placed.entry.sequence for placed in trace.pages] == [0, 1]


def test_short_writes_and_errors_at_random_lose_and_double_nothing(
    trace_cmd: str, path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    pages = fakes.make_pages(120, 3)
    store = make_store(path)
    stores.replace_os(monkeypatch, fakes.FaultyOs(seed=5, rate=0.05, short=0.2))
    position = 0
    failures = 0
    while position < len(pages):
        try:
            store.write(pages[position : position + 5], fakes.DEFINITIONS)
            position += 5
        except OSError:
            failures += 1
    while True:
        try:
            finish(store)
            break
        except OSError:
            failures += 1
    assert failures > 3
    assert numbers(report(trace_cmd, path)) == expected(pages)


def test_after_a_failed_fsync_the_pages_since_the_last_one_are_taken_out(
    trace_cmd: str, path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    pages = fakes.make_pages(10, 2)
    store = make_store(path, pages[:4], fsync=True)
    stores.replace_os(monkeypatch, fakes.FaultyOs({"fdatasync": [EIO]}))
    with pytest.raises(OSError, match="injected"):
        store.write(pages[4:], fakes.DEFINITIONS)
    assert store.sync_failed
    store.discard_unsynced()
    assert [store.has(page) for page in pages[2:6]] == [True, True, False, False]
    finish(store)
    assert numbers(report(trace_cmd, path)) == expected(pages[:4])


def test_fsync_precedes_counting_a_page_as_written(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    faulty = fakes.FaultyOs()
    stores.replace_os(monkeypatch, faulty)
    store = make_store(path, fsync=True)
    faulty.calls.clear()
    store.write(fakes.make_pages(2, 2), fakes.DEFINITIONS)
    assert faulty.calls == ["open", "pwritev", "pwritev", "pwritev", "fdatasync", "fdatasync", "fdatasync"]
    faulty.calls.clear()
    finish(store)
    assert faulty.calls[-7:] == ["fdatasync", "pwritev", "fdatasync", "unlink", "unlink", "open", "fsync"]


def test_a_forked_child_leaves_the_files_alone_and_the_lock_to_the_parent(path: str) -> None:
    pages = fakes.make_pages(9, 3)
    store = make_store(path, pages[:6])
    before = {name: Path(os.path.dirname(path), name).read_bytes() for name in os.listdir(os.path.dirname(path))}
    child = os.fork()
    if child == 0:
        try:
            store.write(pages[6:], fakes.DEFINITIONS)
            store.end(fakes.DEFINITIONS, LEDGER)
            list(store.finish())
            store.discard_unsynced()
            os._exit(0 if store._files.closed else 1)
        except BaseException:
            os._exit(2)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    after = {name: Path(os.path.dirname(path), name).read_bytes() for name in os.listdir(os.path.dirname(path))}
    assert before == after
    store.write(pages[6:], fakes.DEFINITIONS)
    finish(store)


KILLED = """
import sys, itertools
from support import fakes
from aiotrace._base.errors import TraceFormatError
from aiotrace._collector.stored_stream import stored_positions
from aiotrace._store.store import TraceStore
from aiotrace.decode import open_trace
store = TraceStore(sys.argv[1], fakes.make_info())
for start in itertools.count(0, 6):
    pages = [fakes.make_page(n % 3, n // 3) for n in range(start, start + 6)]
    store.write([part for page in pages for part in fakes.cut(page, *range(1, page.sequence % 5))], fakes.DEFINITIONS)
    print(start + 6, flush=True)
"""


def run_and_kill(path: str, lines: int, delay: float) -> int:
    """Run a program that writes pages until it is killed; returns how many it knew to be in the trace."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([*sys.path])}
    with subprocess.Popen(
        [sys.executable, "-c", KILLED, path], stdout=subprocess.PIPE, text=True, env=environment
    ) as program:
        assert program.stdout is not None
        known = 0
        for _ in range(lines):
            known = int(program.stdout.readline())
        try:
            program.wait(delay)
        except subprocess.TimeoutExpired:
            pass
        program.send_signal(signal.SIGKILL)
        for line in program.stdout:
            known = int(line) if line.endswith("\n") else known
    return known


def check_killed(trace_cmd: str, path: str, seed: int) -> None:
    generator = random.Random(seed)
    known = run_and_kill(path, generator.randrange(1, 20), generator.random() / 100)
    found = restore(path)
    assert found.damaged == [], seed
    assert known <= found.pages <= known + 6, seed
    pages, events = divmod(found.events, 20)
    whole = [fakes.make_page(n % 3, n // 3) for n in range(pages)]
    torn = [fakes.make_page(pages % 3, pages // 3, events)] if events else []  # the batch was cut between two parts
    assert numbers(report(trace_cmd, path)) == expected(whole + torn), seed


@pytest.mark.parametrize("seed", range(3))
def test_pages_a_killed_program_knew_to_be_written_are_restored(trace_cmd: str, path: str, seed: int) -> None:
    check_killed(trace_cmd, path, seed)


@pytest.mark.long
@pytest.mark.parametrize("seed", range(3, 200))
def test_two_hundred_killed_programs_lose_nothing(trace_cmd: str, path: str, seed: int) -> None:
    check_killed(trace_cmd, path, seed)


# --- going on with a trace that a killed program left -------------------------------------------


def kill(store: TraceStore) -> None:
    """What SIGKILL does to a store: its descriptors and its lock go."""
    store.close()


def test_trace_of_a_killed_writer_resumes_where_it_was(trace_cmd: str, path: str) -> None:
    pages = fakes.make_pages(60, 4)
    first, *parts = fakes.cut(fakes.make_page(2, 15), 4, 3)
    store = make_store(path, [*pages, first], fsync=True)
    kill(store)
    resumed = TraceStore.resume(path, fsync=True)
    assert (resumed.info, resumed.stored, resumed.pages_count) == (INFO, store.stored, 61)
    assert list(resumed.definitions) == fakes.DEFINITIONS
    later = [*pages[-9:], first, *parts, fakes.make_page(0, 15), fakes.make_page(2, 16)]
    resumed.write(later, fakes.DEFINITIONS)
    finish(resumed)
    assert numbers(report(trace_cmd, path)) == expected([*pages, fakes.make_page(2, 15), *later[-2:]])
    assert rest(path) == []


@pytest.mark.parametrize("cut", [0, 1, PLACED_SIZE - 1, PLACED_SIZE])
def test_a_torn_frame_is_cut_off_and_its_page_is_written_again(trace_cmd: str, path: str, cut: int) -> None:
    pages = fakes.make_pages(20, 2)
    kill(make_store(path, pages))
    os.truncate(path + ".journal", os.path.getsize(path + ".journal") - cut)
    resumed = TraceStore.resume(path)
    assert resumed.has(pages[-1]) == (cut == 0)
    resumed.write([*pages, fakes.make_page(0, 10)], fakes.DEFINITIONS)
    finish(resumed)
    assert numbers(report(trace_cmd, path)) == expected([*pages, fakes.make_page(0, 10)])


def test_journal_is_trusted_up_to_the_first_page_missing_after_power_loss(path: str) -> None:
    pages = fakes.make_pages(20, 2)
    kill(make_store(path, pages))
    stores.flip(path, 4096 * 9 + 40)  # the ninth page of writer 0, the 17th of all
    kill(believing := TraceStore.resume(path))
    assert believing.has(pages[-1])
    kill(near := TraceStore.resume(path, check=1))
    assert near.has(pages[-1]), "the page lies before the bytes that were to be checked"
    resumed = TraceStore.resume(path, check=1 << 20)
    assert resumed.stored == {0: (7, len(pages[14].data)), 1: (7, len(pages[15].data))}
    resumed.write(pages, fakes.DEFINITIONS)
    finish(resumed, None)
    with open_trace(path) as trace:
        assert sum(1 for _ in trace) == 400
        assert not trace.damage_count


def test_after_a_power_loss_a_journal_with_a_hole_ends_there(path: str) -> None:
    pages = fakes.make_pages(20, 2)
    kill(make_store(path, pages))
    stores.flip(path + ".journal", os.path.getsize(path + ".journal") - 2 * PLACED_SIZE + 50)
    kill(resumed := TraceStore.resume(path, check=1 << 20))
    assert [resumed.has(page) for page in pages] == [True] * 18 + [False] * 2


def test_complete_or_open_trace_cannot_be_resumed(path: str) -> None:
    store = make_store(path, fakes.make_pages(3))
    with pytest.raises(BlockingIOError):
        TraceStore.resume(path)
    finish(store)
    with pytest.raises(FileNotFoundError):
        TraceStore.resume(path)


def test_journal_without_a_beginning_cannot_be_resumed(path: str) -> None:
    kill(make_store(path, fakes.make_pages(3)))
    os.truncate(path + ".journal", 10)
    with pytest.raises(TraceFormatError, match="no stream"):
        TraceStore.resume(path)


def test_next_file_and_finished_trace_hold_the_positions_of_earlier_files(path: str) -> None:
    store = TraceStore(path, INFO, stored={3: (1 << 32, 77), 1: (5, 4)})
    store.write(fakes.make_pages(4, 2), fakes.DEFINITIONS)
    size = len(fakes.make_page().data)
    kill(store)
    resumed = TraceStore.resume(path)
    assert resumed.stored == {3: (1 << 32, 77), 1: (5, 4), 0: (1, size)}, "of writer 1, earlier pages were passed over"
    finish(resumed, None)
    assert stored_positions(path) == ({3: (1 << 32, 77), 1: (5, 4), 0: (1, size)}, False)


def test_last_page_found_damaged_by_restoring_does_not_count_as_stored(path: str) -> None:
    pages = fakes.make_pages(6)
    kill(make_store(path, pages))
    for damaged in (2, 5):
        stores.flip(path, 4096 * (1 + damaged) + 40)
    restore(path)
    assert stored_positions(path) == ({0: (4, len(pages[4].data))}, False)


def test_deferred_sync_syncs_nothing_until_then(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    store = make_store(path, fsync=True)
    faulty = fakes.FaultyOs()
    stores.replace_os(monkeypatch, faulty)
    for page in fakes.make_pages(8, 2):
        store.write([page], fakes.DEFINITIONS, sync=False)
    assert faulty.calls.count("fdatasync") == 0
    store.sync()
    assert faulty.calls.count("fdatasync") == 3  # the trace, a spool, the journal
    store.sync()
    assert faulty.calls.count("fdatasync") == 3
    faulty.faults["fdatasync"] = [EIO]
    store.write([fakes.make_page(0, 4)], fakes.DEFINITIONS, sync=False)
    with pytest.raises(OSError, match="injected"):
        store.sync()
    assert store.sync_failed
    store.discard_unsynced()
    assert not store.has(fakes.make_page(0, 4)), "it may not be on the disk"
    assert store.has(fakes.make_page(0, 3))


@pytest.fixture
def frequent_checkpoints(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("aiotrace._store.store.CHECKPOINT_PAGES", 10)


@pytest.mark.usefixtures("frequent_checkpoints")
@pytest.mark.parametrize("seed", range(3))
def test_resuming_from_a_checkpoint_equals_using_the_whole_journal(
    path: str, monkeypatch: pytest.MonkeyPatch, seed: int
) -> None:
    generator = random.Random(seed)
    pages = [part for page in fakes.make_pages(90, 3) for part in fakes.cut(page, 5, 5)]
    store = TraceStore(path, INFO, fsync=True, stored={3: (7, 8)})
    written = 0
    while written < len(pages):
        count = generator.randrange(1, 9)
        store.write(pages[written : written + count], fakes.DEFINITIONS[: 2 + written // 100])
        written += count
        if generator.random() < 0.3:
            kill(store)
            kill(whole := TraceStore.resume(path, check=1))  # which reads all of it
            store = TraceStore.resume(path, fsync=True)
            for name in ("stored", "_pages", "_last", "_in_place", "_journal_end"):
                assert getattr(store, name) == getattr(whole, name), name
            assert store._journal.mark() == whole._journal.mark()
    journal = Path(path + ".journal").read_bytes()
    assert journal.count(b"\xf7aio\x01\x21") >= 20, "checkpoints"
    finish(store, None)
    with open_trace(path) as trace:
        assert sum(1 for _ in trace) == 90 * 20
        assert not trace.damage_count


@pytest.mark.usefixtures("frequent_checkpoints")
def test_only_frames_after_the_last_checkpoint_are_read(path: str) -> None:
    kill(make_store(path, fakes.make_pages(100)))
    store = TraceStore.resume(path)
    assert store.definitions == [], "they stand before it: the producer says them again"
    store.write(fakes.make_pages(101), fakes.DEFINITIONS)
    kill(store)
    report = restore(path)
    assert (report.pages, report.damaged, report.journal_damage) == (101, [], [])


@pytest.mark.usefixtures("frequent_checkpoints")
def test_a_checkpoint_that_is_damaged_is_passed_over(path: str) -> None:
    store = make_store(path, fakes.make_pages(100))
    kill(store)
    place = Path(path + ".journal").read_bytes().rfind(b"\xf7aio\x01\x21")
    stores.flip(path + ".journal", place + 60)
    kill(resumed := TraceStore.resume(path))
    assert resumed.stored == store.stored
