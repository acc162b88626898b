"""aiotrace._store.trace_files: existing files are left alone, links not followed, a living trace not deleted."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from aiotrace._store.restore import restore
from aiotrace._store.trace_files import remove
from support import fakes, stores
from support.stores import NO_SPACE, make_store, rest

pytestmark = pytest.mark.pure_too


@pytest.fixture
def path(tmp_path: Path) -> str:
    return str(tmp_path / "trace.dat")


def test_an_existing_file_is_left_alone(path: str) -> None:
    Path(path).write_text("mine")
    with pytest.raises(FileExistsError, match="overwrite=True"):
        make_store(path)
    assert (Path(path).read_text(), rest(path)) == ("mine", [])


def test_unfinished_trace_is_left_alone_and_the_error_explains_restoring(path: str) -> None:
    make_store(path, fakes.make_pages(3)).close()
    with pytest.raises(FileExistsError, match=f"aiotrace restore {path}"):
        make_store(path)
    assert restore(path).pages == 3


def test_a_spool_without_a_journal_is_in_the_way(path: str) -> None:
    Path(path + ".cpu3").write_text("whose?")
    with pytest.raises(FileExistsError, match=r"cpu3"):
        make_store(path)


def test_links_are_not_followed(path: str, tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    for name in (path, path + ".journal", path + ".cpu1"):
        os.symlink(victim, name)
        with pytest.raises(OSError, match=r"exists|links|unfinished|remove"):
            make_store(path, fakes.make_pages(4, 2))
        for left in rest(path):
            os.unlink(tmp_path / left)
        Path(path).unlink(missing_ok=True)
    store = make_store(path)
    os.symlink(victim, path + ".cpu1")
    with pytest.raises(OSError, match="symbolic links"):
        store.write(fakes.make_pages(4, 2), fakes.DEFINITIONS)
    assert not victim.exists()


@pytest.mark.parametrize("folder", ["missing/trace.dat", "file/trace.dat"])
def test_a_path_that_cannot_be_written_leaves_nothing_behind(tmp_path: Path, folder: str) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match=f"/{os.path.dirname(folder)}'"):
        make_store(str(tmp_path / folder))
    assert os.listdir(tmp_path) == ["file"]


def test_a_disk_that_is_full_from_the_start_leaves_nothing_behind(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in range(2):
        stores.replace_os(monkeypatch, fakes.FaultyOs({"pwritev": [None] * number + [NO_SPACE]}))
        with pytest.raises(OSError, match="injected"):
            make_store(path)
        assert os.listdir(os.path.dirname(path)) == []


def test_remove_deletes_a_trace_with_its_files_unless_it_is_being_written(path: str) -> None:
    store = make_store(path, fakes.make_pages(8, 4))
    with pytest.raises(BlockingIOError, match="running program"):
        remove(path)
    store.close()
    Path(path + ".cpuX").write_text("not a spool")
    remove(path)
    assert os.listdir(os.path.dirname(path)) == ["trace.dat.cpuX"]
    remove(path)


def test_remove_deletes_no_folder_no_device_and_no_pipe(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "null").symlink_to(os.devnull)
    for path in (tmp_path / "pipe", tmp_path / "null", tmp_path):
        with pytest.raises(FileExistsError, match="no file"):
            remove(str(path))
    assert sorted(os.listdir(tmp_path)) == ["null", "pipe"]
