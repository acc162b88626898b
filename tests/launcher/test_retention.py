"""How many finished traces are kept: only what aiotrace has finished is removed, the oldest first."""

from __future__ import annotations

import os
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aiotrace._formats import tracedat as T
from aiotrace._launcher import retention
from aiotrace._launcher.retention import RemovedTrace, Retention, retain
from support.traces import page, store

PATTERN = "trace-%p.dat"
FINISHED = T.initial_header(4096, 64)
UNFINISHED = T.initial_header(4096)
FORMAT_6 = FINISHED.replace(b"tracing7", b"tracing6")


def make(path: Path | str, age: int, *, data: bytes = FINISHED, size: int = 100) -> str:
    Path(path).write_bytes(data.ljust(size, b"x"))
    os.utime(path, (10_000 - age, 10_000 - age))
    return str(path)


def keep(folder: Path | str, pattern: str = PATTERN, **options: Any) -> Retention:
    given = {"host": "host", "program": "app", "keep": None, "max_size": None, "running": (), **options}
    return retain(os.path.join(folder, pattern), **given)


def removed(found: Retention) -> list[str]:
    return [os.path.basename(each.path) for each in found.removed]


def test_the_oldest_are_removed_until_few_enough_are_left(tmp_path: Path) -> None:
    for pid in range(1, 6):
        make(tmp_path / f"trace-{pid}.dat", age=pid)
    found = keep(tmp_path, keep=2)
    assert removed(found) == ["trace-5.dat", "trace-4.dat", "trace-3.dat"]
    assert found.kept == 2
    assert sorted(os.listdir(tmp_path)) == ["trace-1.dat", "trace-2.dat"]


def test_the_oldest_are_removed_until_the_rest_is_small_enough(tmp_path: Path) -> None:
    for pid in range(1, 5):
        make(tmp_path / f"trace-{pid}.dat", age=pid, size=1000 * pid)
    found = keep(tmp_path, max_size=3000)
    assert found.removed == (
        RemovedTrace(str(tmp_path / "trace-4.dat"), 4000),
        RemovedTrace(str(tmp_path / "trace-3.dat"), 3000),
    )
    assert not keep(tmp_path, max_size=3000, keep=2).removed


def test_a_trace_that_is_too_large_alone_is_removed(tmp_path: Path) -> None:
    make(tmp_path / "trace-1.dat", age=1, size=1000)
    assert removed(keep(tmp_path, max_size=999)) == ["trace-1.dat"]


def test_without_limits_nothing_is_removed(tmp_path: Path) -> None:
    make(tmp_path / "trace-1.dat", age=1)
    assert keep(tmp_path) == Retention((), 1, ())


def test_among_traces_of_one_age_names_decide(tmp_path: Path) -> None:
    for pid in (3, 1, 2):
        make(tmp_path / f"trace-{pid}.dat", age=7)
    assert removed(keep(tmp_path, keep=1)) == ["trace-1.dat", "trace-2.dat"]


def test_traces_of_children_and_with_numbers_are_the_patterns(tmp_path: Path) -> None:
    names = ["app.dat", "app.2.dat", "app.4615.dat", "app.4615.2.dat"]
    for age, name in enumerate(names):
        make(tmp_path / name, age=age)
    for name in ("other.dat", "app-1.dat", "app.dat.old", "app.x.dat"):
        make(tmp_path / name, age=99)
    assert sorted(removed(keep(tmp_path, "%n.dat", keep=0))) == sorted(names)


def test_a_relative_pattern_is_of_the_current_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    make(tmp_path / "trace-1.dat", age=1)
    assert removed(keep("", keep=0)) == ["trace-1.dat"]


def test_what_a_store_has_finished_is_removed_and_nothing_else(tmp_path: Path) -> None:
    store(tmp_path / "trace-1.dat", [page([1, 2])])
    store(tmp_path / "trace-2.dat", [page([1, 2])], finish=False)
    found = keep(tmp_path, keep=0)
    assert removed(found) == ["trace-1.dat"]
    assert sorted(os.listdir(tmp_path)) == ["trace-2.dat", "trace-2.dat.journal"]


@pytest.mark.parametrize("data", [UNFINISHED, FORMAT_6, b"", b"text", FINISHED[:20]])
def test_a_file_of_another_kind_is_neither_removed_nor_counted(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "trace-1.dat"
    path.write_bytes(data)
    assert keep(tmp_path, keep=0) == Retention((), 0, ())
    assert path.exists()


def test_a_trace_with_a_journal_is_left(tmp_path: Path) -> None:
    path = make(tmp_path / "trace-1.dat", age=1)
    os.symlink("nowhere", f"{path}.journal")
    assert keep(tmp_path, keep=0) == Retention((), 0, ())


def test_links_folders_and_pipes_are_left(tmp_path: Path) -> None:
    aim = make(tmp_path / "aim", age=1)
    os.symlink(aim, tmp_path / "trace-1.dat")
    (tmp_path / "trace-2.dat").mkdir()
    os.mkfifo(tmp_path / "trace-3.dat")
    assert keep(tmp_path, keep=0) == Retention((), 0, ())
    assert len(os.listdir(tmp_path)) == 4


@pytest.mark.parametrize("other", ["link", "pipe", "folder"])
def test_what_replaces_a_trace_meanwhile_is_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, other: str) -> None:
    path = make(tmp_path / "trace-1.dat", age=1)
    aim = make(tmp_path / "aim", age=1)
    examine = retention._examine

    def replace_first(path: str) -> object:
        os.unlink(path)
        if other == "link":
            os.symlink(aim, path)
        elif other == "pipe":
            os.mkfifo(path)
        else:
            os.mkdir(path)
        return examine(path)

    monkeypatch.setattr(retention, "_examine", replace_first)
    assert not keep(tmp_path, keep=0).removed
    assert os.path.lexists(path)
    assert os.path.exists(aim)


def test_what_this_run_writes_is_left_by_whichever_path(tmp_path: Path) -> None:
    os.symlink(tmp_path, tmp_path / "folder")
    running = make(tmp_path / "trace-1.dat", age=9)
    make(tmp_path / "trace-2.dat", age=1)
    for folder in (tmp_path, tmp_path / "folder"):
        found = keep(folder, keep=1, running=[running, str(tmp_path / "none.dat")])
        assert found == Retention((), 1, ())


def test_a_trace_that_vanishes_is_no_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = make(tmp_path / "trace-1.dat", age=1)
    second = make(tmp_path / "trace-2.dat", age=2)
    examine, seen = retention._examine, set()

    def vanish(path: str) -> object:
        if path == first or path in seen:  # one while it is looked for, the other before it is removed
            os.unlink(path)
        seen.add(path)
        return examine(path)

    monkeypatch.setattr(retention, "_examine", vanish)
    assert keep(tmp_path, keep=0) == Retention((), 0, ())
    assert seen == {first, second}


def test_a_trace_that_is_begun_anew_meanwhile_is_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = make(tmp_path / "trace-1.dat", age=1)
    examine = retention._examine

    def overwrite(path: str) -> object:
        found = examine(path)
        store(Path(path + ".new"), [page([1])], finish=True)
        os.replace(path + ".new", path)
        return found

    monkeypatch.setattr(retention, "_finished", lambda *arguments: iter([overwrite(path)]))
    assert keep(tmp_path, keep=0) == Retention((), 0, ())
    assert os.listdir(tmp_path) == ["trace-1.dat"]


def test_what_cannot_be_removed_is_reported_and_costs_no_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stuck = make(tmp_path / "trace-1.dat", age=9)
    make(tmp_path / "trace-2.dat", age=1)
    unlink = os.unlink

    def refuse(path: str) -> None:
        if path == stuck:
            raise PermissionError(1, "not permitted", path)
        unlink(path)

    monkeypatch.setattr(os, "unlink", refuse)
    found = keep(tmp_path, keep=1)
    assert (found.removed, found.kept) == ((), 1)
    assert list(found.lines()) == [f"not removed: {stuck}: not permitted"]


def test_a_trace_that_cannot_be_read_is_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = make(tmp_path / "trace-1.dat", age=9)

    def fail(fd: int, size: int, offset: int) -> bytes:
        raise OSError(5, "input/output error")

    monkeypatch.setattr(os, "pread", fail)
    assert list(keep(tmp_path, keep=0).lines()) == [f"not removed: {path}: input/output error"]


def test_a_missing_folder_is_reported(tmp_path: Path) -> None:
    folder = str(tmp_path / "missing")
    assert list(keep(folder, keep=0).lines()) == [f"not removed: {folder}: No such file or directory"]


def test_lines_name_what_was_removed_its_size_and_the_rest() -> None:
    large, small = RemovedTrace("/d/trace-1.dat", 12_900_000), RemovedTrace("/d/trace-2.dat", 1)
    error = OSError(5, "no", "/d/x")
    assert list(Retention((large,), 5, ()).lines()) == ["removed trace-1.dat (12.3 MiB), kept 5"]
    assert list(Retention((small, large, small), 0, (error, error)).lines()) == [
        "removed trace-2.dat and 2 more (12.3 MiB), kept 0",
        "not removed: /d/x and 1 more: no",
    ]
    assert list(Retention((small,), 1, ()).lines()) == ["removed trace-2.dat (1 KiB), kept 1"]
    assert not list(Retention((), 5, ()).lines())


kinds = st.sampled_from(["finished", "running", "unfinished", "journal", "link", "foreign", "other name"])
files = st.lists(st.tuples(kinds, st.integers(0, 5), st.integers(len(FINISHED), 300)), max_size=12)
limits = st.none() | st.integers(0, 8)


@given(files=files, limit=limits, size=st.none() | st.integers(0, 1500))
def test_the_newest_finished_traces_within_the_limits_are_kept(
    files: list[tuple[str, int, int]], limit: int | None, size: int | None
) -> None:
    with TemporaryDirectory() as folder:
        ours: list[tuple[int, str, int]] = []
        running = []
        for number, (kind, age, length) in enumerate(files):
            path = os.path.join(folder, f"{'other' if kind == 'other name' else 'trace'}-{100 + number}.dat")
            if kind == "link":
                os.symlink(make(os.path.join(folder, f"aim{number}"), age), path)
                continue
            data = {"unfinished": UNFINISHED, "foreign": b"x"}.get(kind, FINISHED)
            make(path, age, data=data, size=length)
            if kind == "journal":
                Path(path + ".journal").touch()
            elif kind == "running":
                running.append(path)
            elif kind == "finished":
                ours.append((-age, path, length))
        before = set(os.listdir(folder))

        found = keep(folder, keep=limit, max_size=size, running=running)

        # The most of the newest ones that fit: one more would be too many, or too much.
        ours.sort(reverse=True)
        fitting = max(
            n
            for n in range(len(ours) + 1)
            if (limit is None or n <= limit) and (size is None or sum(each[2] for each in ours[:n]) <= size)
        )
        gone = [os.path.basename(path) for _, path, _ in reversed(ours[fitting:])]
        assert removed(found) == gone
        assert before - set(os.listdir(folder)) == set(gone)
        assert (found.kept, found.failed) == (fitting, ())
