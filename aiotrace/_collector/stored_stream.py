"""One stream in a collector's folder: its traces, one after the other, and its position in them. Blocking.

    write --> in the current trace  --sync--> on the disk --> may be acknowledged as fsynced
                |  full, old, or its fsync failed
                v
              the next trace, which begins with the stream's position, while the full one is closed

Invariants (held by tests/collector/test_stored_stream.py):

* The next trace exists before the previous one is closed. So after a kill at any moment the last file has the stream's
  position, and each page is in exactly one file.
* After a failed fsync everything since the last successful one is removed. None of it was acknowledged as fsynced, and
  the producer sends it again.

Not thread-safe.
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
"""Maximum bytes of a stream that are written but not synced. After a power loss, twice as much is checked."""

Closing = Callable[[], Iterator[int]]
"""Makes a trace.dat of a full trace, in steps of about 10 ms. Can be called again after an OSError."""


class StoredStream:
    """A stream, and its files."""

    def __init__(
        self, folder: Folder, info: StreamInfo, *, max_size: int | None = None, max_age: float | None = None
    ) -> None:
        """Find the stream's files in the folder.

        Args:
            max_size: Bytes of pages after which a trace is full.
            max_age: Seconds after its first page that a trace is full.

        Raises:
            OSError: A file cannot be read, or is locked by another process.
        """
        self.folder = folder
        self.info = info
        self.definitions: list[Definition] = []
        """The known definitions; the producer's new ones are appended."""
        self.ended = False
        """The producer has ended the stream, with the ledger."""
        self.closings: list[Closing] = []
        """Full traces, to be closed by the caller."""
        self.durable = True
        """The producer requested pages to be synced; otherwise written is enough."""
        self.duplicates = 0
        """Pages and parts that were already stored when they were received."""
        self._max_size = max_size
        self._max_age = max_age
        self._store: TraceStore | None = None
        self._before: Positions = {}
        """The stream's position at the end of the previous files."""
        self._begun = 0.0
        self._spent = False
        """Nothing more may be written to the current trace, because unsynced pages were removed from it."""
        self._find()

    @property
    def written(self) -> Positions:
        """Per writer, the position up to which the stream is written."""
        return self._store.stored if self._store is not None else self._before

    @property
    def synced(self) -> Positions:
        """Per writer, the position up to which it is synced."""
        return self._store.synced if self._store is not None else self._before

    @property
    def reached(self) -> Positions:
        """Per writer, the position at the level that the producer requested."""
        return self.synced if self.durable else self.written

    def _find(self) -> None:
        names = self.folder.traces_of(self.info.stream_id)
        while names and self._store is None:
            if self._take(names[-1]):
                break
            names.pop()
        for name in names[:-1]:
            if is_unfinished(name.path):  # its collector was killed while closing it
                self.closings.append(restoring(name.path))

    def _take(self, name: TraceName) -> bool:
        """Resume the last trace, or start after it; false if it is empty."""
        if _is_empty(name.path):
            remove(name.path)
            return False
        try:
            if not is_unfinished(name.path):
                self._before, self.ended = stored_positions(name.path)
                return True
            store = TraceStore.resume(name.path, fsync=True)
        except TraceFormatError:  # its beginning is missing: keep the file
            return True
        if store.ended:
            self._before, self.ended = store.stored, True
            self.closings.append(store.finish)
            return True
        self._store, self._begun = store, time.monotonic()
        self.definitions = list(store.definitions)
        return True

    def resume(self) -> None:
        """The producer is back: reopen the files that `release` closed.

        Raises:
            OSError: They have changed, or are locked by another process.
        """
        if self._store is not None:
            self._store.open()

    def write(self, pages: Sequence[Page]) -> None:
        """Write pages to the files, except those that are already stored.

        Raises:
            BudgetError: They do not fit the budget.
            OSError: The first ones may be written; unless `sync_failed`, call it again with the same pages to write
                the rest.
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
        """The pages that are not stored yet."""
        has = self._store.has if self._store is not None else None
        return [page for page in pages if has is None or not has(page)]

    def is_old(self) -> bool:
        """Whether the current trace has reached the maximum age."""
        store = self._store
        has_pages = store is not None and store.pages_count > 0
        return has_pages and self._max_age is not None and time.monotonic() >= self._begun + self._max_age

    def _begin(self) -> TraceStore:
        """Create the next trace."""
        before = self._store
        stored = before.stored if before is not None else self._before
        names = self.folder.traces_of(self.info.stream_id)
        name = self.folder.next_path(self.info, names)
        self._store, self._spent = TraceStore(name.path, self.info, fsync=True, stored=stored), False
        if before is not None:
            self.closings.append(_Closing(before, self.definitions))
        return self._store

    def rotate(self) -> None:
        """Continue in a new trace, and have the current one closed.

        Raises:
            OSError: As for `sync`, or the new trace cannot be created: call again.
        """
        self.sync()
        self._begin()

    @property
    def sync_failed(self) -> bool:
        """An fsync failed: call `recover`, and let the producer send the unsynced pages again."""
        return self._store is not None and self._store.sync_failed

    def sync(self) -> None:
        """Sync what was written. Without effect unless `durable`: a failure would remove pages that were acknowledged.

        Raises:
            OSError: It is unknown what reached the disk; `sync_failed` is set.
        """
        self._check_synced()
        if self._store is not None and self.durable:
            self._store.sync()

    def _check_synced(self) -> None:
        """After a failed fsync, a second one would wrongly succeed."""
        if self.sync_failed:
            raise OSError(errno.EIO, "an fsync failed before: recover first", self._store and self._store.path)

    def recover(self) -> None:
        """After a failed fsync: remove what may not be on the disk, and continue in the next trace.

        Raises:
            OSError: Removing failed too: call again.
        """
        if self._store is not None and self._store.sync_failed:
            self._spent = True
            self._store.discard_unsynced()
            self._begin()

    def end(self, ledger: Ledger) -> None:
        """End the stream: when this returns, its end is stored and the last trace can be closed.

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
        """The producer has disconnected: close the files, so that other processes can restore them."""
        if self._store is not None:
            self._store.close()

    def leave(self) -> None:
        """The collector ends: have the current trace closed. The stream can continue in a new one."""
        store = self._store
        if store is not None:
            self._store, self._before = None, store.stored
            self.closings.append(_Closing(store, self.definitions))


class _Closing:
    """Closes a trace whose stream continues in another."""

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
        except FileNotFoundError:  # already restored, or never begun
            pass
        yield 0

    return run


def _is_empty(path: str) -> bool:
    """Whether its writer was killed before it wrote anything."""
    try:
        if os.path.getsize(path) == 0:
            return True
        return os.path.lexists(journal_path(path)) and os.path.getsize(journal_path(path)) == 0
    except FileNotFoundError:
        return True


def check_after_power_loss(folder: Folder) -> None:
    """Cut off what may not have reached the disk when the machine went down.

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
    """The stream's position at the end of a complete trace, and whether the stream has ended.

    Raises:
        TraceFormatError: Not a complete trace of aiotrace.
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
