"""The folder of a run: where arenas find their place, and which folders are left-overs."""

from __future__ import annotations

import errno
import os
import threading
from pathlib import Path

import pytest

from aiotrace._launcher import run_folder
from aiotrace._launcher.plan import Plan
from aiotrace._recording.options import RecordingOptions

NEEDED = 64 * 65536 + run_folder._BESIDES_PAGES


@pytest.fixture
def plan(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Plan:
    """A run whose folder is made in `shm`, beside `out`, in which its file is."""
    for name in ("shm", "out"):
        (tmp_path / name).mkdir()
    monkeypatch.setattr(run_folder, "SHM", str(tmp_path / "shm"))
    url = f"file:{tmp_path}/out/t.dat"
    plan = Plan(1, (), (url,), (), RecordingOptions(page_size=65536), None, None, quiet=False)
    folder = run_folder.create(plan)
    made = Plan(1, (), (url,), (), plan.options, None, None, quiet=False, folder=folder)
    run_folder.write_plan(made)
    return made


def free(monkeypatch: pytest.MonkeyPatch, **places: int) -> None:
    """Bytes that are free in `shm` and `out`."""
    monkeypatch.setattr(run_folder, "_free", lambda place: places["shm" if "/shm" in place else "out"])


def place(plan: Plan, pid: int) -> str:
    """Place an arena, and make its file, of which nothing is allocated yet."""
    with run_folder.place_for_arena(plan, pid) as path, open(path, "x") as file:
        file.truncate(NEEDED)
    return path


def test_arenas_go_beside_the_file_before_those_in_shm_can_fill_it(
    plan: Plan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    free(monkeypatch, shm=3 * NEEDED, out=2 * NEEDED)
    places = [place(plan, pid) for pid in (1, 4615, 4616, 4617, 4618)]
    assert [os.path.dirname(path) for path in places] == [plan.folder] * 3 + [str(tmp_path / "out")] * 2
    links = run_folder.arena_links(plan.folder)
    assert sorted(map(run_folder.arena_of, links)) == sorted(places)
    with pytest.raises(OSError, match="MiB of free space") as error:
        place(plan, 4619)
    assert error.value.errno == errno.ENOSPC
    assert len(run_folder.arena_links(plan.folder)) == 5


def test_two_processes_do_not_count_on_the_same_room(plan: Plan, monkeypatch: pytest.MonkeyPatch) -> None:
    free(monkeypatch, shm=2 * NEEDED, out=9 * NEEDED)
    place(plan, 1)
    places: list[str] = []
    threads = [threading.Thread(target=lambda pid=pid: places.append(place(plan, pid))) for pid in range(2, 8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sum(os.path.dirname(path) == plan.folder for path in places) == 1


def test_named_arena_has_a_link_in_the_folder(plan: Plan, tmp_path: Path) -> None:
    options = RecordingOptions(page_size=65536, arena=str(tmp_path / "app.arena"))
    named = Plan(1, (), plan.sinks, (), options, None, None, quiet=False, folder=plan.folder)
    assert place(named, 1) == str(tmp_path / "app.arena")
    assert place(named, 4615) == str(tmp_path / "app.4615.arena")
    for link in run_folder.arena_links(plan.folder):
        run_folder.remove_arena(link)
    assert not list(tmp_path.glob("*.arena"))


def test_without_room_there_is_no_run(plan: Plan, monkeypatch: pytest.MonkeyPatch) -> None:
    free(monkeypatch, shm=NEEDED - 1, out=NEEDED)
    folder = run_folder.create(plan)
    assert os.path.basename(os.path.dirname(folder)) == "out"
    assert os.path.basename(folder).startswith(".aiotrace-")
    free(monkeypatch, shm=NEEDED - 1, out=NEEDED - 1)
    with pytest.raises(Exception, match="has 6 MiB of free space for the buffer: free some, reduce -b, or use --exec"):
        run_folder.create(plan)


def test_unrecorded_processes_are_counted_once(plan: Plan) -> None:
    for pid in (7, 8, 8):
        run_folder.note_unrecorded(plan.folder, pid)
    assert run_folder.take_unrecorded(plan.folder) == 2
    assert run_folder.take_unrecorded(plan.folder) == 0


def test_only_runs_without_a_recorder_are_abandoned(plan: Plan, tmp_path: Path) -> None:
    out, elsewhere = str(tmp_path / "out"), str(tmp_path)
    assert run_folder.has_abandoned(out)
    assert list(run_folder.abandoned(elsewhere)) == []
    lock = run_folder.lock(plan.folder)
    assert list(run_folder.abandoned(out)) == []
    assert not run_folder.has_abandoned(out)
    with pytest.raises(BlockingIOError):
        run_folder.lock(plan.folder)
    os.close(lock)
    ((folder, found, lock),) = run_folder.abandoned(out)
    assert (folder, found) == (plan.folder, plan)
    os.close(lock)
    (Path(plan.folder) / run_folder.PLAN).write_text("{}")
    assert list(run_folder.abandoned(out)) == []


def test_folder_is_removed_only_without_arenas(plan: Plan) -> None:
    place(plan, 1)
    assert not run_folder.remove(plan.folder)
    run_folder.remove_arena(run_folder.arena_links(plan.folder)[0])
    assert run_folder.remove(plan.folder)
    assert not os.path.exists(plan.folder)
