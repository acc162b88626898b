"""aiotrace._collector.folder: names, the lock, the budget."""

from __future__ import annotations

import os
import stat
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aiotrace import ConfigurationError
from aiotrace._collector.folder import LOCK, BudgetError, Folder
from aiotrace._store.store import TraceStore
from support import fakes

INFO = fakes.make_info()


def put(folder: Folder, size: int, *, stream: int = 0, finished: bool = True, age: int = 0) -> str:
    """A trace with that many bytes of pages."""
    info = fakes.make_info(stream_id=stream.to_bytes(16, "big"))
    path = folder.first_path(info)
    store = TraceStore(path, info)
    store.write(fakes.make_pages(size // 4096), fakes.DEFINITIONS)
    if finished:
        for _ in store.finish():
            pass
        os.utime(path, (1_700_000_000 - age, 1_700_000_000 - age))
    else:
        store.close()
    return path


@given(
    st.one_of(st.text(), st.sampled_from(["..", "../../etc", "/etc", ".", "-rf", "a\0b", "x" * 300, "é", ".aiotrace"]))
)
def test_no_name_from_the_wire_leaves_the_folder(host: str) -> None:
    folder = Folder.__new__(Folder)
    folder.path = "/traces"
    path = folder.first_path(replace(INFO, host=host))
    name = path.removeprefix("/traces/")
    assert os.path.normpath(path) == path
    assert os.path.dirname(path) == "/traces"
    assert len(name) < 120
    assert not name.startswith((".", "-"))
    assert all(character.isascii() and (character.isalnum() or character in "._-") for character in name)


@pytest.mark.parametrize("host", ["web1", "..", "a/b", "x" * 300, "a-b-c.d", ""])
def test_a_streams_files_are_found_by_its_id_in_their_order(tmp_path: Path, host: str) -> None:
    folder = Folder(str(tmp_path))
    info = replace(INFO, host=host)
    names = []
    for _ in range(11):
        names.append(folder.next_path(info, names))
        TraceStore(names[-1].path, info).close()
        put(folder, 4096, stream=77) if len(names) == 1 else None
    assert folder.traces_of(INFO.stream_id) == names
    assert [name.number for name in names] == [*range(1, 12)]
    assert folder.unfinished() == {INFO.stream_id: names}


def test_a_journal_alone_is_a_trace_that_did_not_begin(tmp_path: Path) -> None:
    folder = Folder(str(tmp_path))
    path = folder.first_path(INFO)
    Path(path + ".journal").touch()
    assert [name.path for name in folder.traces_of(INFO.stream_id)] == [path]


def test_a_folder_has_one_collector_and_is_private(tmp_path: Path) -> None:
    path = str(tmp_path / "new" / "traces")
    folder = Folder(path)
    assert stat.S_IMODE(os.stat(path).st_mode) == 0o700
    assert stat.S_IMODE(os.stat(os.path.join(path, LOCK)).st_mode) == 0o600
    with pytest.raises(ConfigurationError, match="another collector writes there"):
        Folder(path)
    folder.close()
    Folder(path).close()


def test_a_lock_that_is_a_link_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / LOCK).symlink_to(tmp_path / "victim")
    with pytest.raises(OSError, match="symbolic"):
        Folder(str(tmp_path))
    assert not (tmp_path / "victim").exists()


def test_a_reboot_is_noticed_until_what_was_there_is_checked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def reboot_seen() -> bool:
        folder = Folder(str(tmp_path))
        folder.close()
        return folder.was_rebooted

    folder = Folder(str(tmp_path))
    folder.trust_boot()
    folder.close()
    assert not reboot_seen()
    monkeypatch.setattr("aiotrace._collector.folder.boot_id", lambda: "another")
    assert reboot_seen()
    assert reboot_seen()


def test_budget_counts_bytes_allocated_on_disk(tmp_path: Path) -> None:
    folder = Folder(str(tmp_path), budget=1 << 20)
    put(folder, 512 << 10)
    folder.make_room(256 << 10)
    assert 512 << 10 <= folder.used < 700 << 10
    folder.wrote(400 << 10)
    folder.make_room(256 << 10)  # counted again: this process did not write it
    put(folder, 512 << 10, stream=1)
    folder.wrote(512 << 10)
    with pytest.raises(BudgetError, match="of a budget of 1048576: make room, or allow more"):
        folder.make_room(256 << 10)


def test_oldest_finished_traces_are_removed_first_on_request(tmp_path: Path) -> None:
    folder = Folder(str(tmp_path), budget=1 << 20, delete_oldest=True)
    growing = put(folder, 252 << 10, stream=1, finished=False)  # from 256 KiB on blocks are reserved ahead
    old, older, oldest = (put(folder, 200 << 10, stream=age + 2, age=age) for age in range(3))
    foreign = tmp_path / "notes.txt"
    foreign.write_bytes(bytes(100))
    folder.make_room(300 << 10)
    assert [os.path.exists(path) for path in (growing, old, older, oldest, foreign)] == [True, True, True, False, True]
    assert (folder.deleted, folder.deleted_bytes > 200 << 10) == (1, True)
    with pytest.raises(BudgetError):
        folder.make_room(900 << 10)
    assert [os.path.exists(path) for path in (growing, old, older, foreign)] == [True, False, False, True]


@pytest.mark.parametrize("budget", [0, -1])
def test_a_budget_of_nothing_is_refused(tmp_path: Path, budget: int) -> None:
    with pytest.raises(ConfigurationError, match=f"budget={budget}"):
        Folder(str(tmp_path), budget=budget)


def test_deleting_needs_a_budget(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="delete_oldest needs a budget"):
        Folder(str(tmp_path), delete_oldest=True)
