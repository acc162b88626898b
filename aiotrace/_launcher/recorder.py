"""The recorder: follows a program and its children from another process, and streams their arenas to sinks.

    FOLDER, locked:  trace.arena       --map--> RecordedProcess --> trace.dat
                     trace.4615.arena  --map--> RecordedProcess --> trace.4615.dat

It polls, every few milliseconds, for full pages, new arenas and deaths: no call of the program reports any of them. The
laws:

* **A death loses nothing that was committed** (`recorded_process`).
* **The program is not disturbed**: it waits for the recorder once, before its first line.
* **An arena is removed when its trace is finished**, or when there is nothing on it.

This module knows no signal and starts no program: `_cli/_external` does.
"""

from __future__ import annotations

import errno
import fcntl
import os
from collections.abc import Callable
from typing import Final

import anyio

from .._arena.file_reader import ArenaReader
from .._base.errors import AiotraceError, TraceFormatError
from .plan import Plan
from .recorded_process import RecordedProcess

PAUSE: Final = 0.005
"""Seconds between two polls. The default buffer, 4 MiB, takes ten times as long to fill at two million events a second;
a poll costs 9 µs, and waking up for it some 70."""


class Recorder:
    """Follows a program and its children.

    Args:
        folder: Where they make their arenas; it must be there, and nobody else's.
        plan: What was asked for: `pid` is the program's.
        tell: Is given lines for people.
    """

    def __init__(self, folder: str, plan: Plan, tell: Callable[[str], object]) -> None:
        self._folder = folder
        self._plan = plan
        self._tell = tell
        self._open: dict[str, RecordedProcess] = {}
        self._seen: set[str] = set()
        self._changed = -1
        self._lock = os.open(folder, os.O_RDONLY | os.O_CLOEXEC)
        fcntl.flock(self._lock, fcntl.LOCK_EX)

    async def run(self, is_over: Callable[[], bool], is_enough: Callable[[], bool]) -> None:
        """Follow until the program and all its children have ended.

        Args:
            is_over: Whether the program has ended.
            is_enough: Whether to wait for no children any more: what they recorded so far stays in their arenas.
        """
        async with anyio.create_task_group() as group:
            while True:
                over = is_over()  # first: what it made before it ended is found below
                await self._find()
                for path, process in list(self._open.items()):
                    process.poll()
                    if (process.is_main and over) or not process.is_alive:
                        del self._open[path]
                        group.start_soon(self._finish, path, process)
                if over and (not self._open or is_enough()):
                    return
                await anyio.sleep(PAUSE)

    async def _find(self) -> None:
        """Follow the arenas that have come since."""
        changed = os.stat(self._folder).st_mtime_ns
        if changed == self._changed:
            return
        again = False
        for name in sorted(os.listdir(self._folder)):
            path = os.path.join(self._folder, name)
            if path not in self._seen:
                try:
                    reader = ArenaReader(path)
                except (OSError, TraceFormatError):
                    again = True  # it is being made
                    continue
                self._seen.add(path)
                await self._follow(path, reader)
        self._changed = -1 if again else changed

    async def _follow(self, path: str, reader: ArenaReader) -> None:
        process = RecordedProcess(reader, self._plan)
        try:
            await process.start()
        except Exception as error:
            text = str(error) if isinstance(error, (AiotraceError, OSError)) else repr(error)
            self._tell(text if process.is_main else f"process {process.pid} is not recorded: {text}")
            os.unlink(path)
            return
        self._open[path] = process

    async def _finish(self, path: str, process: RecordedProcess) -> None:
        await process.finish()
        for line in process.report():
            self._tell(line)
        if not process.events and not process.is_main:
            process.remove_files()  # programs fork for many reasons
        if process.is_done:
            os.unlink(path)

    def close(self) -> str | None:
        """Let the folder go, and remove it, if nothing is left in it. Returns it if something is."""
        os.close(self._lock)
        for name in os.listdir(self._folder):
            path = os.path.join(self._folder, name)
            if path not in self._seen and not _is_living(path):
                os.unlink(path)  # it was never finished
        try:
            os.rmdir(self._folder)
        except OSError as error:
            if error.errno != errno.ENOTEMPTY:
                raise
            return self._folder
        return None


def _is_living(path: str) -> bool:
    try:
        with ArenaReader(path) as reader:
            return reader.is_alive
    except (OSError, TraceFormatError):
        return False
