"""The recorder: reads the arenas of a program and its children, from another process, and streams them to sinks.

    FOLDER, locked:  trace.arena       --map--> TakenRing -> reader -> sinks --> trace.dat
                     trace.4615.arena  --map--> TakenRing -> reader -> sinks --> trace.4615.dat

It looks each few milliseconds for full pages, new arenas and deaths: no call of the program tells it of any. The laws:

* **A death loses nothing that was committed**: when a program is gone, however, what its writers were filling is taken
  too, and the trace is finished as if it had ended well. At most the record that was being written is missing.
* **The program is not disturbed**: it waits for the recorder once, before its first line.
* **An arena is removed when its trace is finished**, or when there is nothing on it.

With no sinks it is a flight recorder: pages stay in the arena, and a snapshot is made of them when the program asks for
one (`_asked`), and when it was killed.

This module knows no signal and starts no program: `_commands/_external` does.
"""

from __future__ import annotations

import errno
import fcntl
import mmap
import os
import struct
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Final, cast

import anyio

from .._arena.file_reader import ArenaReader
from .._arena.handover import TakenRing, taken_over
from .._arena.restore import save
from .._base.errors import AiotraceError, TraceFormatError
from .._base.reentrancy import Guard
from .._base.warn import warn
from .._page import layout as L
from .._recording.service import Attachment, Service
from .._recording.sinks import open_path, share_pages, sink
from .._recording.snapshot import name_for
from .._ring.arena import Arena, Shape
from .._ring.delivery import Mark
from .._ring.writer import Writers
from .._store.trace_files import remove
from .external_recording import READING, REFUSED
from .process import FILE, Plan, child_path, child_url, file_of
from .snapshot_requests import SnapshotResponder

PAUSE: Final = 0.005
"""Seconds between two looks. The default buffer, 4 MiB, takes ten times as long to fill at two million events a second;
a look costs 9 µs, and to wake up for it some 70."""
DRAIN: Final = 60.0
"""Seconds that each sink has when the program has ended: nothing but a shell waits for it then."""
KILLED: Final = "killed"
"""What the last snapshot of a flight recorder is called."""
_FLUSH: Final = 0.2
_U64: Final = struct.Struct("=Q")
_ACCOUNT: Final = struct.Struct("=QQQ")


@dataclass(slots=True)
class _RemoteWriter:
    """A writer of the program, as far as it is known here; has what `Service` asks of a `Writer`."""

    slot: int
    ring: TakenRing
    written: int = 0
    dropped_total: int = 0
    guard: Guard = field(default_factory=Guard)

    @property
    def number(self) -> int:
        return self.written + self.dropped_total

    def mark(self) -> Mark | None:
        """How far the page that it fills has come, as of now."""
        return self.ring.mark(self.slot)

    def wake_one(self) -> None:
        """Who waits in the program looks by itself."""


class _RemoteWriters:
    """As of when they are asked for: a sink asks for its account when it has had the last page."""

    def __init__(self, account: Callable[[], list[_RemoteWriter]]) -> None:
        self._account = account

    @property
    def all(self) -> list[_RemoteWriter]:
        return self._account()


class _Mapped:
    """The arena's file, mapped; `_arena.Backing`. It was allocated by its owner, page by page."""

    def __init__(self, path: str, shape: Shape) -> None:
        fd = os.open(path, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC)
        try:
            self.memory = mmap.mmap(fd, shape.size, flags=mmap.MAP_SHARED)
        finally:
            os.close(fd)
        self.shape = shape

    def allocate(self, offset: int, size: int) -> bool:
        raise AssertionError("pages are taken in the program alone")


class RecordedProcess:
    """One process's arena, and what becomes of it."""

    def __init__(self, reader: ArenaReader, plan: Plan) -> None:
        self.reader = reader
        self.plan = plan
        self.is_main = reader.header.pid == plan.pid
        self.pid = reader.header.pid
        self.urls = plan.sinks if self.is_main else tuple(child_url(url, self.pid) for url in plan.sinks)
        self._backing = _Mapped(reader.path, reader.shape)
        self._arena = Arena(reader.page_size, reader.pages, self._backing)
        self.pages, self.ring = taken_over(self._arena, reader.header.writers, self._know)
        self._writers = _RemoteWriters(self._account)
        base = plan.snapshots if self.is_main else child_path(plan.snapshots, self.pid)
        self.snapshots = SnapshotResponder(
            self._backing.memory, self._arena, reader.info, reader.definitions, base, open_path, self._know
        )
        self.is_saved = False
        """Whether what was left on its pages is in a snapshot, or nobody wants it."""
        self._is_mapped = False
        self._looked = 0.0
        self.attachments: list[Attachment] = []

    def _know(self) -> int:
        self.reader.read_definitions()
        return len(self.reader.definitions)

    async def start(self) -> None:
        """Open the sinks, and let the program go on.

        Raises:
            Exception: What a sink raised before it asked for its first page.
        """
        answer = REFUSED
        try:
            self._know()
            writers = cast(Writers, self._writers)
            self._service = Service(self.pages, writers, self.reader.info, self.reader.definitions, _FLUSH)
            await self._service.start()
            await self.snapshots.start()
            options = [sink(url) for url in self.urls]
            for each, quota in zip(options, share_pages(self._arena.pages, options), strict=True):
                self.attachments.append(await self._service.attach(each, quota, dict))
            answer = READING
        finally:
            _U64.pack_into(self._backing.memory, L.ARENA_READER, answer)

    def poll(self) -> None:
        """Wake the reader, if pages are full, and begin a snapshot that was asked for."""
        self.pages.on_full()
        self.snapshots.poll()

    @property
    def is_alive(self) -> bool:
        """Whether its program can still write. The lock says so, until a program closes what it did not open: then
        it has the map all the same, unless it has become another program."""
        if self.reader.is_alive:
            return True
        if self.was_closed:
            return False
        now = time.monotonic()
        if now >= self._looked + _FLUSH:  # reading a map is dear
            self._looked = now
            self._is_mapped = is_mapped(self.pid, self.reader.path)
        return self._is_mapped

    async def finish(self) -> None:
        """The program is gone: take what is left, and let the sinks finish, each within `DRAIN` seconds."""
        self.snapshots.poll()
        await self.snapshots.finish(DRAIN)
        if self.urls:
            self.ring.finish()
            await self._service.drain(DRAIN)
        else:
            await self._save()
        self.snapshots.abort()
        self._service.abort()
        self.pages.clear_ring()
        self.reader.close()

    async def _save(self) -> None:
        """A flight recorder's last snapshot: of a program that was killed."""
        if self.was_closed:
            self.is_saved = True
            return
        path = name_for(self.snapshots.base, KILLED, time.time())
        try:
            report = await anyio.to_thread.run_sync(save, self.reader, path)
        except (OSError, AiotraceError) as error:
            warn(f"aiotrace: the snapshot of process {self.pid}, which was killed, failed: {error}")
            return
        if report.events or self.is_main:
            self.snapshots.paths.append(path)
        else:
            remove(path)
        self.is_saved = not report.damaged and not report.definitions_damage

    @property
    def was_closed(self) -> bool:
        """Whether the recording in the program ended as it should."""
        accounts: int = _U64.unpack_from(self._backing.memory, L.ARENA_CLOSED)[0]
        return 0 < accounts <= self.reader.header.writers

    @property
    def is_done(self) -> bool:
        """Whether nothing is left on its pages that somebody wants: what no sink had room for in time stays."""
        is_empty = self._arena.states()[0] == self._arena.pages
        return not self.ring.bad and (self.is_saved or is_empty)

    def _account(self) -> list[_RemoteWriter]:
        """The program's own, if it came to that; else what its pages say."""
        memory = self._backing.memory
        (accounts,) = _U64.unpack_from(memory, L.ARENA_CLOSED)
        slots = range(accounts) if self.was_closed else sorted({*self.ring.numbers, *self.ring.filling_writers()})
        writers = []
        for slot in slots:
            lost = self.ring.lost.get(slot, 0)
            overrun = lost if self.plan.overrun == "drop_oldest" else 0
            account = self.ring.numbers.get(slot, 0) - lost + overrun, lost - overrun, overrun
            if self.was_closed:
                account = _ACCOUNT.unpack_from(memory, L.ARENA_CLOSED + 8 + slot * _ACCOUNT.size)
            written, dropped, overrun = account
            if self.was_closed:
                overrun -= self.ring.saved.get(slot, 0)  # the program does not know of these
            self.pages.overrun[slot] = overrun
            writers.append(_RemoteWriter(slot, self.ring, written, dropped))
        return writers

    @property
    def events(self) -> int:
        """That came."""
        return self.pages.delivered

    def report(self) -> Iterator[str]:
        """What became of it, for people."""
        told = not self.plan.quiet and self.is_main
        for url, attachment in zip(self.urls, self.attachments, strict=False):
            name = file_of(url) if url.startswith(FILE) else url
            if attachment.state == "finished":
                if told:
                    yield f"{name}: {attachment.delivery.delivered} events"
                continue
            why = f" ({attachment.last_error})" if attachment.last_error is not None else ""
            complete = f"; `aiotrace restore {name}` completes it" if url.startswith(FILE) else ""
            yield f"{name}: unfinished after {attachment.delivery.delivered} events{why}{complete}"
        dropped = sum(writer.dropped_total for writer in self._writers.all)
        overrun = sum(self.pages.overrun.values())
        for path in self.snapshots.paths if told else ():
            yield f"{path}: a snapshot"
        if told and not self.urls and not self.snapshots.paths:
            yield "no snapshot was taken, and what the buffer held is gone with the program"
        if dropped or (self.urls and (overrun or self.pages.abandoned)):
            yield (
                f"events lost: {dropped + overrun + self.pages.abandoned}: {dropped} refused, {overrun} overwritten by "
                f"newer ones, {self.pages.abandoned} given up with a sink"
            )
        for bad in self.ring.bad:
            yield f"process {self.pid}: page {bad.sequence} of writer {bad.writer} is damaged: {bad.reason}"

    def remove_files(self) -> None:
        for url in self.urls:
            if url.startswith(FILE):
                try:
                    remove(file_of(url))
                except OSError:
                    pass


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
                for path, followed in list(self._open.items()):
                    followed.poll()
                    if (followed.is_main and over) or not followed.is_alive:
                        del self._open[path]
                        group.start_soon(self._finish, path, followed)
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
        followed = RecordedProcess(reader, self._plan)
        try:
            await followed.start()
        except Exception as error:
            text = str(error) if isinstance(error, (AiotraceError, OSError)) else repr(error)
            self._tell(text if followed.is_main else f"process {followed.pid} is not recorded: {text}")
            os.unlink(path)
            return
        self._open[path] = followed

    async def _finish(self, path: str, followed: RecordedProcess) -> None:
        await followed.finish()
        for line in followed.report():
            self._tell(line)
        if not followed.events and not followed.is_main:
            followed.remove_files()  # programs fork for many reasons
        if followed.is_done:
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


def is_mapped(pid: int, path: str) -> bool:
    """Whether a process has a file in its memory; one that has ended, or whose memory is not ours to see, has not."""
    end = f" {os.path.realpath(path)}\n".encode()
    try:
        with open(f"/proc/{pid}/maps", "rb") as lines:
            return any(line.endswith(end) for line in lines)
    except OSError:
        return False


def _is_living(path: str) -> bool:
    try:
        with ArenaReader(path) as reader:
            return reader.is_alive
    except (OSError, TraceFormatError):
        return False
