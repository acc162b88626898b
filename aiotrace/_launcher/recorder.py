"""The recorder: follows a program and its children from another process, and streams their arenas to sinks.

    the run's folder, locked:  trace.arena       --map--> RecordedProcess --> trace.dat
                               trace.4615.arena  --map--> RecordedProcess --> trace.4615.dat

It polls, every few milliseconds, for full pages, new arenas and deaths: no call of the program reports any of them.
Invariants (tests/launcher/test_recorder.py):

* **A death loses nothing that was committed** (`recorded_process`).
* **The program is not disturbed**: it waits for the recorder once, before its first line.
* **An arena is removed when its trace is finished**, or when there is nothing on it.

This module knows no signal and starts no program: `front` does.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Final

import anyio

from .._arena.file_reader import ArenaReader
from .._base.errors import AiotraceError, TraceFormatError
from . import run_folder
from .plan import Plan, file_of
from .recorded_process import RecordedProcess
from .retention import retain_for

PAUSE: Final = 0.005
"""Seconds between two polls. The default buffer, 4 MiB, takes ten times as long to fill at two million events a second;
a poll costs 9 µs, and waking up for it some 70."""
_LOOK_FOR_FILES: Final = 1.0
"""Seconds between two checks that the files are still there."""


class Recorder:
    """Follows a program and its children.

    Args:
        plan: What was requested: `pid` is the program's, `folder` is where the processes make their arenas.
        tell: Is given lines for people.
    """

    def __init__(self, plan: Plan, tell: Callable[[str], object]) -> None:
        self._plan = plan
        self._tell = tell
        self._open: dict[str, RecordedProcess] = {}
        self._finishing = 0
        self._seen: set[str] = set()
        self._changed = -1
        self._files_checked = 0.0
        self.status: int | None = None
        """How the program ended, as `os.waitpid` returns it, once that is known."""

    @property
    def open_pids(self) -> list[int]:
        """The processes that are recorded now."""
        return [process.pid for process in self._open.values()]

    async def run(self, is_over: Callable[[], bool], goes_on: Callable[[], bool]) -> None:
        """Follow until the program and all its children have ended.

        Args:
            is_over: Whether the program has ended. `status` is set by then, if it is known.
            goes_on: Called at each poll after the program's trace is finished: whether to follow children that
                outlive it. What they recorded so far stays in their arenas otherwise.
        """
        async with anyio.create_task_group() as group:
            while True:
                over = is_over()  # first: what it made before it ended is found below
                await self._find()
                for link, process in list(self._open.items()):
                    process.poll()
                    if (process.is_main and over) or not process.is_alive:
                        del self._open[link]
                        self._finishing += 1
                        group.start_soon(self._finish, link, process, is_over)
                self._look_for_files()
                if over and not self._finishing and (not goes_on() or not self._open):
                    return
                await anyio.sleep(PAUSE)

    async def _find(self) -> None:
        """Follow the arenas that have come since."""
        changed = os.stat(self._plan.folder).st_mtime_ns
        if changed == self._changed:
            return
        again = False
        for link in run_folder.arena_links(self._plan.folder):
            if link not in self._seen:
                try:
                    reader = ArenaReader(run_folder.arena_of(link))
                except (OSError, TraceFormatError):
                    again = True  # it is being made
                    continue
                self._seen.add(link)
                await self._follow(link, reader)
        self._changed = -1 if again else changed

    async def _follow(self, link: str, reader: ArenaReader) -> None:
        process = RecordedProcess(reader, self._plan)
        try:
            run_folder.note_urls(link, process.urls)
            await process.start()
        except Exception as error:
            text = str(error) if isinstance(error, (AiotraceError, OSError)) else repr(error)
            self._tell(text if process.is_main else f"process {process.pid} is not recorded: {text}")
            run_folder.remove_arena(link)
            return
        self._open[link] = process

    async def _finish(self, link: str, process: RecordedProcess, is_over: Callable[[], bool]) -> None:
        await process.finish()
        if process.is_withdrawn:
            process.remove_files()
            run_folder.remove_arena(link)
            self._finishing -= 1
            return
        while process.is_main and not is_over():  # noqa: ASYNC110  # another process ends
            await anyio.sleep(PAUSE)
        if process.is_main:
            process.status = self.status
        for line in process.report():
            self._tell(line)
        if not process.events and not process.is_main and process.is_done:
            process.remove_files()  # programs fork for many reasons
        if process.is_done:
            run_folder.remove_arena(link)
        self._retain()
        self._finishing -= 1

    def _retain(self) -> None:
        """Remove finished traces that are more than are to be kept."""
        open_files = [file_of(url) for process in self._open.values() for url in process.urls]
        for line in retain_for(self._plan, running=open_files):
            self._tell(line)

    def _look_for_files(self) -> None:
        """Say at once that a file was removed while it is written."""
        now = anyio.current_time()
        if now < self._files_checked + _LOOK_FOR_FILES:
            return
        self._files_checked = now
        for link, process in self._open.items():
            if not process.lost_file and (path := process.find_lost_file()):
                arena = run_folder.arena_of(link)
                self._tell(f"{path} was removed while it was written: from now on events are kept in {arena}")

    def close(self) -> str | None:
        """Remove the run's folder, if nothing is left in it. Returns it if something is."""
        folder = self._plan.folder
        for link in run_folder.arena_links(folder):
            if link not in self._seen and not _is_living(link):
                run_folder.remove_arena(link)  # it was never finished
        if unrecorded := run_folder.take_unrecorded(folder):
            self._tell(f"{unrecorded} processes of the program were not recorded; each said why when it began")
        return None if run_folder.remove(folder) else folder


def _is_living(path: str) -> bool:
    try:
        with ArenaReader(run_folder.arena_of(path)) as reader:
            return reader.is_alive
    except (OSError, TraceFormatError):
        return False
