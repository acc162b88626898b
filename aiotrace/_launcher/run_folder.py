"""The folder of one run: the arenas of its processes, and what is needed to finish their traces without the recorder.

    /dev/shm/aiotrace-k2x8/       locked (flock) while a recorder reads it; beside FILE if /dev/shm has no room
        plan.json                 what was asked for, and the program's pid
        trace.arena               the program's
        trace.arena.urls          where its events go
        trace.4615.arena -> ...   a child's: beside FILE, because /dev/shm was full when it began
        4616.unrecorded           a child for which there was no room anywhere

Invariant (tests/launcher/test_run_folder.py): a process's arena is placed only where all of its pages have room, also
when the arenas beside it fill up. Blocking file I/O; this module knows no process and no sink.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from typing import Final

from .._base.errors import ConfigurationError
from .plan import FILE, Plan, child_path, file_of

SHM: Final = "/dev/shm"  # noqa: S108  # a private folder is made in it
PREFIX: Final = "aiotrace-"
PLAN: Final = "plan.json"
ARENA: Final = "trace.arena"
_UNRECORDED: Final = ".unrecorded"
_URLS: Final = ".urls"
_TURN: Final = "turn"
_BESIDES_PAGES: Final = 2 << 20
"""Bytes of an arena that are not pages: descriptors, and definitions of an ordinary program."""


def create(plan: Plan) -> str:
    """Make the folder of a new run.

    Raises:
        ConfigurationError: There is no room for the program's arena, neither in /dev/shm nor beside the trace.
    """
    needed = _arena_bytes(plan)
    for place in (SHM, beside(plan)):
        if os.access(place, os.W_OK | os.X_OK) and _free(place) >= needed:
            return tempfile.mkdtemp(prefix=_prefix_in(place), dir=place)
    raise ConfigurationError(
        f"neither {SHM} nor {beside(plan)} has {needed >> 20} MiB of free space for the buffer: "
        "free some, reduce -b, or use --exec"
    )


def _prefix_in(place: str) -> str:
    return PREFIX if place == SHM else f".{PREFIX}"


def beside(plan: Plan) -> str:
    """The folder in which the run writes its files."""
    files = [plan.pattern or os.fspath(plan.options.snapshots)]
    if not plan.pattern:
        files = [file_of(url) for url in plan.sinks if url.startswith(FILE)] or files
    return os.path.dirname(files[0])


def lock(folder: str) -> int:
    """Mark the folder as being read, for as long as the descriptor, or a copy of it in a forked process, is open.

    Raises:
        BlockingIOError: A recorder reads it.
    """
    fd = os.open(folder, os.O_RDONLY | os.O_CLOEXEC)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BaseException:
        os.close(fd)
        raise
    return fd


def write_plan(plan: Plan) -> None:
    """Note what was asked for, so that another process can finish what the recorder cannot."""
    path = os.path.join(plan.folder, PLAN)
    with open(f"{path}.new", "w", encoding="utf-8") as file:
        json.dump(plan.to_dict(), file)
    os.rename(f"{path}.new", path)


def read_plan(folder: str) -> Plan | None:
    """The plan of a run; None if it cannot be read."""
    try:
        with open(os.path.join(folder, PLAN), encoding="utf-8") as file:
            return Plan.from_dict(json.load(file))
    except (OSError, ValueError, TypeError, KeyError):
        return None


# --- arenas ---------------------------------------------------------------------------------------


def arena_links(folder: str) -> list[str]:
    """The names under which the run's arenas are found, oldest process first."""
    return sorted(os.path.join(folder, name) for name in os.listdir(folder) if name.endswith(".arena"))


def arena_of(link: str) -> str:
    """The arena's own path."""
    return os.path.realpath(link)


@contextlib.contextmanager
def place_for_arena(plan: Plan, pid: int) -> Iterator[str]:
    """Where a process is to make its arena, inside the block: one process at a time, so that two cannot count on the
    same room. In the folder there is a name for it afterwards, if it lies elsewhere.

    Raises:
        OSError: There is no room for it.
    """
    turn = os.open(os.path.join(plan.folder, _TURN), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(turn, fcntl.LOCK_EX)
        name = os.path.join(plan.folder, ARENA if pid == plan.pid else child_path(ARENA, pid))
        path = _place(plan, pid, name)
        yield path
        if path != name:
            os.symlink(path, name)
    finally:
        os.close(turn)


def _place(plan: Plan, pid: int, name: str) -> str:
    """
    Raises:
        OSError: There is no room.
    """
    named = plan.options_of(pid).arena
    if named is not None:
        return os.fspath(named)
    needed = _arena_bytes(plan)
    if pid == plan.pid or _free(plan.folder) - _promised(plan.folder, needed) >= needed:
        return name
    place = beside(plan)
    if os.access(place, os.W_OK | os.X_OK) and _free(place) - _promised(place, needed) >= needed:
        return os.path.join(place, f".{os.path.basename(plan.folder).lstrip('.')}-{pid}.arena")
    text = f"neither {plan.folder} nor {place} has {needed >> 20} MiB of free space for its buffer"
    raise OSError(errno.ENOSPC, text)


def _arena_bytes(plan: Plan) -> int:
    return plan.options.pages * plan.options.page_size + _BESIDES_PAGES


def _free(place: str) -> int:
    return shutil.disk_usage(place).free


def _promised(folder: str, needed: int) -> int:
    """Bytes that the arenas in a folder may still take: pages are allocated when they are first used."""
    promised = 0
    for entry in os.scandir(folder):
        if entry.name.endswith(".arena") and entry.is_file(follow_symlinks=False):
            promised += max(0, needed - entry.stat().st_blocks * 512)
    return promised


def note_urls(link: str, urls: Sequence[str]) -> None:
    """Note where the events of an arena go: names of files depend on what was there when they were opened."""
    with open(link + _URLS, "w", encoding="utf-8") as file:
        json.dump(urls, file)


def read_urls(link: str) -> list[str] | None:
    """Where the events of an arena go; None: no recorder has opened it."""
    try:
        with open(link + _URLS, encoding="utf-8") as file:
            return [str(url) for url in json.load(file)]
    except (OSError, ValueError, TypeError):
        return None


def remove_arena(link: str) -> None:
    """Remove an arena, and what the folder has of it."""
    for path in {arena_of(link), link, link + _URLS}:
        try:
            os.unlink(path)
        except FileNotFoundError:
            pass


# --- processes without a recording ----------------------------------------------------------------


def note_unrecorded(folder: str, pid: int) -> None:
    """A process runs unrecorded: the recorder counts these."""
    try:
        os.close(os.open(os.path.join(folder, f"{pid}{_UNRECORDED}"), os.O_CREAT | os.O_WRONLY | os.O_CLOEXEC, 0o600))
    except OSError:
        pass  # it has said so itself


def take_unrecorded(folder: str) -> int:
    """How many processes ran unrecorded. Counts each once."""
    names = [name for name in os.listdir(folder) if name.endswith(_UNRECORDED)]
    for name in names:
        os.unlink(os.path.join(folder, name))
    return len(names)


# --- runs without a recorder ----------------------------------------------------------------------


def abandoned(place: str) -> Iterator[tuple[str, Plan, int]]:
    """The runs of this user that write into a folder, and whose recorder is gone: the run's folder, its plan, and the
    lock on it, which the caller closes."""
    for parent in dict.fromkeys((SHM, place)):
        prefix = _prefix_in(parent)
        for name in _names(parent):
            folder = os.path.join(parent, name)
            if not name.startswith(prefix) or not _is_mine(folder):
                continue
            plan = read_plan(folder)
            if plan is None or os.path.realpath(beside(plan)) != os.path.realpath(place):
                continue
            try:
                yield folder, plan, lock(folder)
            except OSError:
                continue  # a recorder reads it


def has_abandoned(place: str) -> bool:
    """Whether there is such a run. Usually not, and then what finishes one is not imported."""
    for _, _, fd in abandoned(place):
        os.close(fd)
        return True
    return False


def _names(folder: str) -> list[str]:
    try:
        return sorted(os.listdir(folder))
    except OSError:
        return []


def _is_mine(folder: str) -> bool:
    try:
        status = os.lstat(folder)
    except OSError:
        return False
    return os.path.isdir(folder) and not os.path.islink(folder) and status.st_uid == os.geteuid()


def remove_after(arena: str) -> None:
    """Remove the folder in which an arena was that is gone, if that was the last thing in it that was wanted."""
    folder = os.path.dirname(os.path.abspath(arena))
    if os.path.basename(folder).lstrip(".").startswith(PREFIX) and read_plan(folder) is not None:
        try:
            os.close(lock(folder))
            remove_arena(arena)
            remove(folder)
        except OSError:
            pass  # a recorder reads it


def remove(folder: str) -> bool:
    """Remove a folder in which no arena is left; returns whether it is gone."""
    if arena_links(folder):
        return False
    for name in os.listdir(folder):
        os.unlink(os.path.join(folder, name))
    os.rmdir(folder)
    return True
