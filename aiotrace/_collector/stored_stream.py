"""One stream in a collector's folder: its traces, one after the other, and how far they have it. Blocking.

    write --> in the current trace  --sync--> on the disk --> may be acknowledged as fsynced
                |  full, old, or its fsync failed
                v
              the next trace begins with how far the stream had come; the one before is closed meanwhile

The laws. **The next trace exists before the one before it is closed**, so a kill at any moment leaves a stream whose
last file tells how far it has come: each page is in one of them, once. **After a failed fsync nothing that was not on
the disk before counts**: it is taken out, nothing of it was acknowledged as fsynced, and the producer sends it again.

Not for two threads at once. This module knows no socket and no event loop.
"""

from __future__ import annotations

import errno
import os
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Final

from .._base.errors import TraceFormatError
from .._formats import tracedat as T
from .._formats.journal import JournalReader, Positions
from .._page.definitions import Definition
from .._store.restore import restore
from .._store.store import TraceStore
from .._store.trace_files import journal_path, remove
from .._store.unfinished import is_unfinished
from .._traces.tracedat_file import TraceDatSource
from ..abc import Ledger, Page, StreamInfo
from .folder import Folder, TraceName

__all__ = ["UNSYNCED_MAX", "Closing", "StoredStream", "check_after_power_loss", "restoring"]

UNSYNCED_MAX: Final = 32 << 20
"""Bytes of pages of a stream that are written and not synced: after a power loss twice this much is checked."""

Closing = Callable[[], Iterator[int]]
"""What makes a trace.dat of a trace that is full, in steps of some 10 ms; can be called again after an OSError."""


class StoredStream:
    """A stream, and its files."""

    def __init__(
        self, folder: Folder, info: StreamInfo, *, max_size: int | None = None, max_age: float | None = None
    ) -> None:
        """Find what the folder has of it.

        Args:
            max_size: Bytes of pages after which a trace is full.
            max_age: Seconds after its first page that a trace is full.

        Raises:
            OSError: A file cannot be read, or somebody else has it locked.
        """
        self.folder = folder
        self.info = info
        self.definitions: list[Definition] = []
        """Those that are known; what the producer says comes behind them."""
        self.ended = False
        """Its end has come, with the ledger."""
        self.closings: list[Closing] = []
        """Traces that are full, for whoever has the time."""
        self.durable = True
        """The producer wants to know when pages are on the disk; else it is enough that they are written."""
        self.duplicates = 0
        """Pages and parts that came and were there already."""
        self._max_size = max_size
        self._max_age = max_age
        self._store: TraceStore | None = None
        self._before: Positions = {}
        """How far the files before the current one have it."""
        self._begun = 0.0
        self._spent = False
        """Nothing more may go into the current trace: something was taken out of it."""
        self._find()

    @property
    def written(self) -> Positions:
        """How far the stream is in files, by writer."""
        return self._store.stored if self._store is not None else self._before

    @property
    def synced(self) -> Positions:
        """How far it is on the disk."""
        return self._store.synced if self._store is not None else self._before

    @property
    def reached(self) -> Positions:
        """How far it is as the producer wants it."""
        return self.synced if self.durable else self.written

    def _find(self) -> None:
        names = self.folder.traces_of(self.info.stream_id)
        while names and self._store is None:
            if self._take(names[-1]):
                break
            names.pop()
        for name in names[:-1]:
            if is_unfinished(name.path):  # its collector was killed while it closed it
                self.closings.append(restoring(name.path))

    def _take(self, name: TraceName) -> bool:
        """Go on with the last trace, or behind it; false if it has nothing."""
        if _is_empty(name.path):
            remove(name.path)
            return False
        try:
            if not is_unfinished(name.path):
                self._before, self.ended = stored_positions(name.path)
                return True
            store = TraceStore.resume(name.path, fsync=True)
        except TraceFormatError:  # it lost its beginning: it stays for whoever can make something of it
            return True
        if store.ended:
            self._before, self.ended = store.stored, True
            self.closings.append(store.finish)
            return True
        self._store, self._begun = store, time.monotonic()
        self.definitions = list(store.definitions)
        return True

    def resume(self) -> None:
        """The producer is back: take the files again that `release` let go.

        Raises:
            OSError: They are not what they were, or somebody else has them.
        """
        if self._store is not None:
            self._store.open()

    def write(self, pages: Sequence[Page]) -> None:
        """Put pages into the files; those that are there already are passed over.

        Raises:
            BudgetError: There is no room for them within the budget.
            OSError: Some of the first may be in; writing the same pages again goes on with the others, unless
                `sync_failed`.
        """
        assert not self.ended
        self._check_synced()
        self.folder.make_room(sum(len(page.data) for page in pages))
        left = list(pages)
        while left:
            store = self._store or self._begin()
            fitting = self._fitting(store, left)
            if not fitting:
                self.rotate()
                continue
            batch, left = left[:fitting], left[fitting:]
            self.duplicates += sum(map(store.has, batch))
            if not store.pages_count:
                self._begun = time.monotonic()
            store.write(batch, self.definitions, sync=False)
            self.folder.wrote(sum(len(page.data) for page in batch))

    def _fitting(self, store: TraceStore, pages: Sequence[Page]) -> int:
        if self._spent or self.is_old():
            return 0
        if self._max_size is None:
            return len(pages)
        fitting = store.fitting(pages, self._max_size)
        return fitting or (0 if store.pages_count else 1)

    def missing(self, pages: Sequence[Page]) -> list[Page]:
        """Those of these pages that are not in the files."""
        has = self._store.has if self._store is not None else None
        return [page for page in pages if has is None or not has(page)]

    def is_old(self) -> bool:
        """Whether the current trace has reached its age."""
        store = self._store
        has_pages = store is not None and store.pages_count > 0
        return has_pages and self._max_age is not None and time.monotonic() >= self._begun + self._max_age

    def _begin(self) -> TraceStore:
        """The next trace."""
        before = self._store
        stored = before.stored if before is not None else self._before
        names = self.folder.traces_of(self.info.stream_id)
        name = self.folder.next_path(self.info, names)
        self._store, self._spent = TraceStore(name.path, self.info, fsync=True, stored=stored), False
        if before is not None:
            self.closings.append(_Closing(before, self.definitions))
        return self._store

    def rotate(self) -> None:
        """The current trace is full: go on in the next.

        Raises:
            OSError: As for `sync`, or the next cannot be made: call again.
        """
        self.sync()
        self._begin()

    @property
    def sync_failed(self) -> bool:
        """After this nothing more goes into the current trace: `recover`, and have the producer send again."""
        return self._store is not None and self._store.sync_failed

    def sync(self) -> None:
        """Bring to the disk what was written; without effect unless `durable`: a failure would take out what was
        acknowledged.

        Raises:
            OSError: What of it is there is unknown: `sync_failed`.
        """
        self._check_synced()
        if self._store is not None and self.durable:
            self._store.sync()

    def _check_synced(self) -> None:
        """A second fsync would say that all is well."""
        if self.sync_failed:
            raise OSError(errno.EIO, "an fsync failed before: recover first", self._store and self._store.path)

    def recover(self) -> None:
        """After a failed fsync: take out what may not be on the disk, and go on in the next trace.

        Raises:
            OSError: The disk does not even let it be taken out: call again.
        """
        if self._store is not None and self._store.sync_failed:
            self._spent = True
            self._store.discard_unsynced()
            self._begin()

    def end(self, ledger: Ledger) -> None:
        """Its end has come: when this returns that is stored, and the last trace can be closed.

        Raises:
            OSError: As for `write` and `sync`: `recover`, and call again.
        """
        if self._spent:
            self.rotate()
        store = self._store or self._begin()
        store.end(self.definitions, ledger)
        if self.durable:
            store.sync()
        self._store, self._before, self.ended = None, store.stored, True
        self.closings.append(store.finish)

    def release(self) -> None:
        """The producer is away: let the files go, so that others may restore them."""
        if self._store is not None:
            self._store.close()

    def leave(self) -> None:
        """The collector ends: close the current trace, too. The stream can go on in the next."""
        store = self._store
        if store is not None:
            self._store, self._before = None, store.stored
            self.closings.append(_Closing(store, self.definitions))


class _Closing:
    """Closes a trace whose stream goes on elsewhere."""

    def __init__(self, store: TraceStore, definitions: Sequence[Definition]) -> None:
        self._store = store
        self._definitions = definitions

    def __call__(self) -> Iterator[int]:
        if not self._store.closing:
            self._store.end(self._definitions, None)
        return self._store.finish()


def restoring(path: str) -> Closing:
    """Closes a trace that a killed collector left behind."""

    def run() -> Iterator[int]:
        try:
            restore(path)
        except FileNotFoundError:  # somebody else has done it, or it was not begun
            pass
        yield 0

    return run


def _is_empty(path: str) -> bool:
    """Whether its writer was killed before it had begun: it has no page, and cannot have one."""
    try:
        if os.path.getsize(path) == 0:
            return True
        return os.path.lexists(journal_path(path)) and os.path.getsize(journal_path(path)) == 0
    except FileNotFoundError:
        return True


def check_after_power_loss(folder: Folder) -> None:
    """Cut off what may not have got to the disk when the machine went down.

    Raises:
        OSError: A file cannot be read or cut.
    """
    for names in folder.unfinished().values():
        path = names[-1].path
        if _is_empty(path):
            continue
        try:
            TraceStore.resume(path, fsync=True, check=2 * UNSYNCED_MAX).close()
        except TraceFormatError:
            continue
    folder.trust_boot()


def stored_positions(path: str) -> tuple[Positions, bool]:
    """What a complete trace says of its stream: how far it has each writer's, with the files before it, and whether the
    stream has ended.

    Raises:
        TraceFormatError: It is no complete trace of ours.
        OSError: It cannot be read.
    """
    file = TraceDatSource(path)
    try:
        content = file.option(T.OPTION_STREAM)
    finally:
        file.close()
    if content is None:
        raise TraceFormatError("the trace is not of aiotrace", path=path, offset=0)
    journal = JournalReader()
    for _ in journal.feed(content, final=True):
        pass
    return journal.stored, journal.ledger is not None
