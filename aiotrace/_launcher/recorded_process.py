"""One process of a program that `aiotrace record` started: its arena, read from here, and its sinks.

    arena, in the process  --map-->  TakenRing -> reader -> sinks --> trace.dat

The law: **a death loses nothing that was committed.** When the process is gone, however it ended, what its writers were
filling is taken too, and the trace is finished as if it had ended well. At most the record that was being written is
missing.

Without sinks it is a flight recorder: pages stay in the arena, and a snapshot is made of them when the process requests
one (`snapshot_requests`), and when it was killed.
"""

from __future__ import annotations

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
from .._base.errors import AiotraceError, ConfigurationError
from .._base.reentrancy import Guard
from .._base.warn import warn
from .._page import layout as L
from .._recording.service import Attachment, Service
from .._recording.sinks import file_sink, share_pages, sink
from .._recording.snapshot import name_for
from .._ring.arena import Arena, Shape
from .._ring.delivery import CommittedPrefix
from .._ring.writer import CAUSES, Writers
from .._store.trace_files import remove
from .external_recording import READING, REFUSED, REFUSED_AS_WRONG, WITHDRAWN
from .notes import EndNotes, SinkEnd, describe_end
from .plan import FILE, Plan, file_of
from .snapshot_responder import SnapshotResponder

DRAIN: Final = 5.0
"""Seconds that a sink which fails or does not get on is waited for when the process has ended: a shell waits, and what
the sink did not take stays in the arena."""
_FINISH: Final = 3600.0
"""Seconds for a sink that has all pages, and makes its file of them: a large one takes its time."""
KILLED: Final = "killed"
"""The cause in the name of a flight recorder's last snapshot."""
_FLUSH: Final = 0.2
_U64: Final = struct.Struct("=Q")
_ACCOUNT: Final = struct.Struct("=QQQ")


@dataclass(slots=True)
class _RemoteWriter:
    """A writer of the program, as far as it is known here: what `Service` uses of a `Writer`."""

    slot: int
    ring: TakenRing
    written: int = 0
    dropped_total: int = 0
    guard: Guard = field(default_factory=Guard)

    @property
    def number(self) -> int:
        return self.written + self.dropped_total

    def committed_prefix(self) -> CommittedPrefix | None:
        """The committed part of the page that it is filling, as of now."""
        return self.ring.committed_prefix(self.slot)

    def wake_one(self) -> None:
        """Nothing: a `send` that waits in the program checks by itself."""


class _RemoteWriters:
    """Computed on access: a sink reads its ledger after the last page."""

    def __init__(self, account: Callable[[], list[_RemoteWriter]]) -> None:
        self._account = account

    @property
    def all(self) -> list[_RemoteWriter]:
        return self._account()


class _Mapped:
    """The arena's file, mapped: the `Backing` of an arena whose owner allocates it, page by page."""

    def __init__(self, path: str, shape: Shape) -> None:
        fd = os.open(path, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC)
        try:
            self.memory = mmap.mmap(fd, shape.size, flags=mmap.MAP_SHARED)
        finally:
            os.close(fd)
        self.shape = shape

    def allocate(self, offset: int, size: int) -> bool:
        raise AssertionError("only the program takes pages")


class RecordedProcess:
    """A process of the program: its arena, the sinks for it, and what becomes of both."""

    def __init__(self, reader: ArenaReader, plan: Plan) -> None:
        self.reader = reader
        self.plan = plan
        self.is_main = reader.header.pid == plan.pid
        self.pid = reader.header.pid
        self.urls = plan.urls_of(self.pid, reader.header.realtime_ns)

        # The arena as it is there, and as the reader and the sinks here have it.
        options = plan.options_of(self.pid)
        self._overruns = options.overrun == "drop_oldest"
        self._backing = _Mapped(reader.path, reader.shape)
        self._arena = Arena(reader.page_size, reader.pages, self._backing)
        self._service = Service(reader.info, reader.definitions, _FLUSH)
        self.pages, self.ring = taken_over(self._arena, reader.header.writers, self._refresh_definitions, self._service)
        self._writers = _RemoteWriters(self._account)
        self._service.serve(self.pages, cast(Writers, self._writers))
        self.snapshots = SnapshotResponder(
            self._backing.memory, self._arena, reader.info, reader.definitions, os.fspath(options.snapshots), file_sink,
            self._refresh_definitions,
        )  # fmt: skip
        self.is_saved = False
        """Whether what was left on its pages is in a snapshot, or is not wanted."""
        self._is_mapped = False
        self._mapped_at = 0.0
        self.attachments: list[Attachment] = []
        self.status: int | None = None
        """As `os.waitpid` returns it, where that is known."""
        self.lost_file = ""
        """A file that was removed, with its folder or alone, while it was written."""

    def _refresh_definitions(self) -> int:
        self.reader.read_definitions()
        return len(self.reader.definitions)

    async def start(self) -> None:
        """Open the sinks, and let the program start.

        Raises:
            Exception: What a sink raised before it asked for its first page.
        """
        answer = REFUSED
        try:
            self._refresh_definitions()
            await self._service.start()
            await self.snapshots.start()
            options = [sink(url) for url in self.urls]
            for each, quota in zip(options, share_pages(self._arena.pages, options), strict=True):
                self.attachments.append(await self._service.attach(each, quota, dict))
            answer = READING
        except ConfigurationError:
            answer = REFUSED_AS_WRONG
            raise
        finally:
            _U64.pack_into(self._backing.memory, L.ARENA_READER, answer)

    def poll(self) -> None:
        """Wake the reader, if pages are full, and begin a snapshot that was requested."""
        self._service.page_full()
        self.snapshots.poll()

    @property
    def is_alive(self) -> bool:
        """Whether the process can still write. It holds a lock, unless it closed descriptors that it did not open: then
        the arena is still mapped, unless the process has executed another program."""
        if self.reader.is_alive:
            return True
        if self.was_closed:
            return False
        now = time.monotonic()
        if now >= self._mapped_at + _FLUSH:  # reading a process's map is expensive
            self._mapped_at = now
            self._is_mapped = is_mapped(self.pid, self.reader.path)
        return self._is_mapped

    async def finish(self) -> None:
        """The process has ended: take what is left, and let the sinks finish, each within `DRAIN` seconds."""
        self.snapshots.poll()
        await self.snapshots.finish(DRAIN)
        if self.urls:
            self.ring.keep_pages()
            if not self.lost_file:
                self.ring.finish()
                await self._drain()
            if self.is_done and not self.is_withdrawn:  # from here on nobody needs the pages
                _U64.pack_into(self._backing.memory, L.ARENA_READER, L.ARENA_DELIVERED)
        else:
            await self._save()
        self.snapshots.abort()
        self._service.abort()
        self.pages.clear_ring()
        self.reader.close()

    async def _drain(self) -> None:
        """Let the sinks take what is left and finish, for as long as they get on."""
        async with anyio.create_task_group() as group:
            group.start_soon(self._give_up_stuck, group.cancel_scope)
            await self._service.drain(_FINISH)
            group.cancel_scope.cancel()

    async def _give_up_stuck(self, draining: anyio.CancelScope) -> None:
        """End the draining when sinks fail, or hold pages without acknowledging any, for too long."""
        failures = sum(attachment.failures for attachment in self.attachments)
        delivered, since = -1, 0.0
        while True:
            is_stuck = any(attachment.delivery.held for attachment in self.attachments)
            is_stuck |= sum(attachment.failures for attachment in self.attachments) > failures

            now = sum(attachment.delivery.delivered for attachment in self.attachments)
            if now != delivered:
                delivered, since = now, anyio.current_time()
            elif is_stuck and anyio.current_time() > since + DRAIN:
                draining.cancel()
            await anyio.sleep(_FLUSH)

    @property
    def is_delivered(self) -> bool:
        """Whether all events are where they were to go: in a file, or with all other sinks."""
        if self.lost_file:
            return False
        ends = zip(self.urls, self.attachments, strict=False)
        finished = [url for url, attachment in ends if attachment.state == "finished"]
        return any(url.startswith(FILE) for url in finished) or len(finished) == len(self.attachments)

    def find_lost_file(self) -> str:
        """The file that is no longer where it was opened, if there is one: from now on events stay in the arena."""
        if not self.lost_file:
            files = [file_of(url) for url in self.urls if url.startswith(FILE)]
            self.lost_file = next((path for path in files if not os.path.lexists(path)), "")
            self.ring.is_paused = bool(self.lost_file)
        return self.lost_file

    async def _save(self) -> None:
        """Write a flight recorder's last snapshot: of a process that was killed."""
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
    def is_withdrawn(self) -> bool:
        """Whether the program could not begin, so that there is nothing to keep."""
        return bool(_U64.unpack_from(self._backing.memory, L.ARENA_READER)[0] == WITHDRAWN)

    @property
    def was_closed(self) -> bool:
        """Whether the recording in the program ended as it should."""
        accounts: int = _U64.unpack_from(self._backing.memory, L.ARENA_CLOSED)[0]
        return 0 < accounts <= self.reader.header.writers

    @property
    def is_done(self) -> bool:
        """Whether nothing that is wanted is left on its pages: what a sink did not take in time stays there."""
        return not self.ring.bad and (self.is_delivered if self.urls else self.is_saved)

    def _account(self) -> list[_RemoteWriter]:
        """The process's own account, if it lived to write it; else what its pages say."""
        memory = self._backing.memory
        (accounts,) = _U64.unpack_from(memory, L.ARENA_CLOSED)
        slots = range(accounts) if self.was_closed else self._used_slots()
        writers = []
        for slot in slots:
            lost, refused = self.ring.lost.get(slot, 0), sum(self._arena.get_refused(slot))
            overrun = max(0, lost - refused) if self._overruns else 0
            account = self.ring.numbers.get(slot, 0) - lost + overrun, max(refused, lost - overrun), overrun
            if self.was_closed:
                account = _ACCOUNT.unpack_from(memory, L.ARENA_CLOSED + 8 + slot * _ACCOUNT.size)
            written, dropped, overrun = account
            if self.was_closed:
                overrun -= self.ring.saved.get(slot, 0)  # which the process counts as overwritten
            self.pages.overrun[slot] = overrun
            writers.append(_RemoteWriter(slot, self.ring, written, dropped))
        return writers

    def _used_slots(self) -> list[int]:
        """The writers that a process which lives or was killed has used."""
        refusing = [slot for slot in range(self.reader.header.writers) if any(self._arena.get_refused(slot))]
        return sorted({*self.ring.numbers, *self.ring.filling_writers(), *refusing})

    def _count_causes(self) -> dict[str, int]:
        """Refused events by cause."""
        counts = map(self._arena.get_refused, range(self.reader.header.writers))
        return dict(zip(CAUSES, map(sum, zip(*counts, strict=True)), strict=True))

    @property
    def events(self) -> int:
        """Events that a sink acknowledged."""
        return self.pages.delivered

    def report(self) -> Iterator[str]:
        """What became of it, in lines for people."""
        sinks = [
            SinkEnd(url, attachment.state, attachment.delivery.delivered, attachment.last_error)
            for url, attachment in zip(self.urls, self.attachments, strict=False)
        ]
        dropped = sum(writer.dropped_total for writer in self._writers.all)
        overrun = sum(self.pages.overrun.values())
        causes = self._count_causes()
        arena = "" if self.is_done else self.reader.path
        abandoned = 0 if arena else self.pages.abandoned  # what the arena has is not lost
        notes = EndNotes(sinks, dropped, overrun, abandoned, self.snapshots.paths, causes, self.how_it_ended, arena)
        all = not self.plan.quiet and (self.is_main or self.events > 0)
        yield from notes.lines(all=all)
        for bad in self.ring.bad:
            yield f"process {self.pid}: page {bad.sequence} of writer {bad.writer} is damaged: {bad.reason}"

    @property
    def how_it_ended(self) -> str:
        """In words."""
        if self.status is not None:
            return describe_end(self.pid, self.status)
        return f"process {self.pid} {'ended' if self.was_closed else 'was killed, or left by os._exit'}"

    def remove_files(self) -> None:
        for url in self.urls:
            if url.startswith(FILE):
                try:
                    remove(file_of(url))
                except OSError:
                    pass


def is_mapped(pid: int, path: str) -> bool:
    """Whether a process has mapped a file. False if it has ended, or its map may not be read."""
    end = f" {os.path.realpath(path)}\n".encode()
    try:
        with open(f"/proc/{pid}/maps", "rb") as lines:
            return any(line.endswith(end) for line in lines)
    except OSError:
        return False
