"""The one trace store: how a trace lies in files while it grows, and how it becomes a trace.dat. Blocking file I/O.

    NAME            initial header (options offset 0) | pages of the first writer, at their final place
    NAME.cpu7       pages of writer 7: a spool for each writer but the first
    NAME.journal    hello, definitions, and for each page where it is and its crc32 (`_journal`)

    closing         append the spools to NAME, write the sections, write the options offset, unlink the rest
                                                                   ^ commit point
    restoring       the same, from the journal alone, after checking each page's crc32

The laws. **A page is in the trace when its frame is in the journal, whole**: pages are written first, then the
frames of a batch in one write, so a kill at any moment leaves no torn page that could be taken for one. **Positions
follow from what was journalled**: what failed in between is written over. **The commit point is the last write**:
until then the journal is the truth, and closing can begin again from nothing; from then on NAME is, and the rest
is litter.

A page takes a whole page of the file, its empty tail a hole. Files are created 0600 and never through a link. The
journal is locked while a writer lives, so that nobody restores a trace that still grows; a forked child closes the
files and does nothing. This module knows no event loop: its callers run it in a thread.
"""

from __future__ import annotations

import errno
import fcntl
import os
import weakref
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import Final

from . import _layout as L
from . import _tracedat as T
from ._definitions import Definition
from ._errors import TraceFormatError
from ._frames import Damage, PageEntry
from ._journal import PLACED_SIZE, JournalReader, JournalWriter, Placed
from ._page import pack_header, pack_lost_count
from .abc import Ledger, Page, StreamInfo

_NEW: Final = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
_OLD: Final = os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC
_READ: Final = os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC
_MODE: Final = 0o600
_JOURNAL_CHUNK: Final = 1 << 20
_STEP: Final = 16 << 20
"""Bytes that one step of closing copies or checks: some 10 ms, so that whoever waits can stop soon."""
_NO_COPY: Final = frozenset({errno.EXDEV, errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP, errno.EPERM})


def journal_path(path: str) -> str:
    return path + ".journal"


def spool_path(path: str, writer: int) -> str:
    return f"{path}.cpu{writer}"


def spool_paths(path: str) -> list[str]:
    """Those that exist."""
    folder, name = os.path.split(path)
    prefix = name + ".cpu"
    entries = [entry for entry in os.listdir(folder or ".") if entry.startswith(prefix)]
    return sorted(os.path.join(folder, entry) for entry in entries if entry[len(prefix) :].isdecimal())


@dataclass(frozen=True, slots=True)
class StoredPage:
    """A copy of a page, with all that an `aiotrace.abc.Page` has."""

    entry: PageEntry
    data: memoryview

    @classmethod
    def copy(cls, page: Page) -> StoredPage:
        return cls(page_entry(page), memoryview(bytes(page.data)))

    @property
    def writer(self) -> int:
        return self.entry.writer

    @property
    def sequence(self) -> int:
        return self.entry.sequence

    @property
    def offset(self) -> int:
        return self.entry.offset

    @property
    def complete(self) -> bool:
        return self.entry.complete

    @property
    def timestamp(self) -> int:
        return self.entry.timestamp

    @property
    def events_count(self) -> int:
        return self.entry.events_count

    @property
    def lost_before(self) -> int:
        return self.entry.lost_before

    @property
    def definitions_needed(self) -> int:
        return self.entry.definitions_needed

    def header(self) -> bytes:
        return pack_header(self.timestamp, self.entry.committed, self.lost_before)

    def lost_count(self) -> bytes:
        return pack_lost_count(self.lost_before)


def page_entry(page: Page) -> PageEntry:
    """What a frame says of a page."""
    return PageEntry(
        page.writer, page.sequence, page.offset, page.complete, page.events_count,
        page.lost_before, page.definitions_needed, page.timestamp, len(page.data),
    )  # fmt: skip


# --- writing ------------------------------------------------------------------------------------


@dataclass(slots=True)
class _Batch:
    """What will be true when the frames are in the journal."""

    mark: tuple[int, int]
    ends: dict[int, int]
    in_place: int | None
    frames: list[bytes] = field(default_factory=list)
    stored: dict[int, int] = field(default_factory=dict)
    pages: int = 0


class TraceStore:
    """A trace that grows. Not for two threads at once; every method blocks."""

    def __init__(
        self, path: str, info: StreamInfo, *, fsync: bool = False, stored: dict[int, int] | None = None
    ) -> None:
        """Create the files.

        Args:
            path: NAME; its folder must exist.
            fsync: `write` returns when the pages are on the disk.
            stored: For each writer the sequence number of the last page that an earlier file already has.

        Raises:
            FileExistsError: A trace, or an unfinished one, is there; the message says what would do.
            OSError: A file cannot be created.
        """
        self.path = path
        self.info = info
        self.stored = dict(stored or {})
        """For each writer the sequence number of the last page that is in the trace."""
        self.sync_failed = False
        """After a failed fsync nobody knows what is on the disk: `discard_unsynced`, finish, and go on elsewhere."""
        self.closing = False
        """`finish` was begun: no more pages can be written."""
        self._committed = False
        self._fsync = fsync
        self._journal = JournalWriter(info)
        self._hello = self._journal.hello()
        self._journal_end = 0
        self._torn = False
        self._ends: dict[int, int] = {}
        self._in_place: int | None = None
        self._pages = 0
        self._foreign = False
        self._ended = False
        self._files = _Files.create(path)
        try:
            _write_all(self._files.data, [T.initial_header(info.page_size)], 0)
            self._append(self._hello)
            if fsync:
                self._sync(self._files.data)
                _sync_folder(path)
        except BaseException:
            self._files.unlink()
            raise
        self._synced = self._state()
        _stores.add(self)

    @property
    def size(self) -> int:
        """Bytes that the pages take in the trace.dat."""
        return self._pages * self.info.page_size

    @property
    def pages_count(self) -> int:
        return self._pages

    def write(self, pages: Sequence[Page], definitions: Sequence[Definition]) -> None:
        """Put pages, and the definitions that they need, into the trace. Those that are in it already (offered again
        after a failure) are passed over.

        Args:
            pages: For each writer in the order of their sequence numbers.
            definitions: All of the stream's.

        Raises:
            OSError: Some of the first may be in the trace, the others are not; writing the same pages again goes on
                with the first that is not. If `sync_failed` is set, they must go into another trace.
        """
        if self._foreign:
            return
        assert not self.closing and not self.sync_failed
        self.open()
        batch = _Batch(self._journal.mark(), dict(self._ends), self._in_place)
        touched = set()
        failure: OSError | None = None
        try:
            for page in pages:
                if page.sequence > max(self.stored.get(page.writer, -1), batch.stored.get(page.writer, -1)):
                    touched.add(self._write_page(batch, page, definitions))
        except OSError as error:
            failure = error  # the pages before it are whole: with a disk that often fails, this is how it gets on
        self._commit(batch)
        if self._fsync and touched:
            self._sync(*touched)
            self._synced = self._state()
        if failure is not None:
            raise failure

    def _write_page(self, batch: _Batch, page: Page, definitions: Sequence[Definition]) -> int:
        """Write a page; it counts when the batch is committed. Returns the file's descriptor."""
        writer, records = page.writer, page.data
        in_place = writer if batch.in_place is None else batch.in_place
        spooled = writer != in_place
        fd = self._files.spool(writer) if spooled else self._files.data
        place = batch.ends.get(writer, 0 if spooled else self.info.page_size)
        _write_all(fd, [page.header(), records, page.lost_count()], place)
        batch.frames.append(self._journal.definitions(definitions, page.definitions_needed))
        batch.frames.append(self._journal.placed(Placed.of(page_entry(page), spooled, place, records)))
        batch.ends[writer] = place + self.info.page_size
        batch.in_place = in_place
        batch.stored[writer] = page.sequence
        batch.pages += 1
        return fd

    def _commit(self, batch: _Batch) -> None:
        """The pages of a batch are in the trace when its frames are in the journal."""
        if not batch.pages:
            return
        try:
            self._append(b"".join(batch.frames))
        except OSError:
            self._journal.rewind(batch.mark)
            raise
        self._ends, self._in_place = batch.ends, batch.in_place
        self._pages += batch.pages
        self.stored.update(batch.stored)

    def _append(self, frames: bytes) -> None:
        """One write to the journal. If it fails, its beginning may be there: that is cut off again before anything
        else is written, so that no old frame can come to stand behind a new one."""
        self._cut_torn_tail()
        self._torn = True
        try:
            _write_all(self._files.journal, [frames], self._journal_end)
        except OSError:
            try:
                self._cut_torn_tail()
            except OSError:
                pass  # before the next write, then
            raise
        self._torn = False
        self._journal_end += len(frames)

    def _cut_torn_tail(self) -> None:
        if self._torn:
            os.ftruncate(self._files.journal, self._journal_end)
            self._torn = False

    def _sync(self, *fds: int) -> None:
        try:
            for fd in (*fds, self._files.journal):
                os.fdatasync(fd)
        except OSError:
            self.sync_failed = True
            raise

    def _state(self) -> tuple[int, int, dict[int, int]]:
        return self._journal_end, self._pages, dict(self.stored)

    def discard_unsynced(self) -> None:
        """Take out what was written since the last fsync that succeeded: it will be written again to another trace.

        Raises:
            OSError: The journal cannot be cut.
        """
        if self._foreign:
            return
        self.open()
        end, pages, stored = self._synced
        os.ftruncate(self._files.journal, end)
        self._journal_end, self._pages, self.stored = end, pages, stored
        self.sync_failed = False

    def end(self, definitions: Sequence[Definition], ledger: Ledger | None) -> None:
        """Before `finish`: put in the definitions that no page needed, and the closing account.

        Args:
            ledger: None if the stream goes on in another trace.
        """
        if self._foreign or self._committed or self._ended:
            return
        self.open()
        mark = self._journal.mark()
        frames = self._journal.definitions(definitions, len(definitions))
        if ledger is not None:
            frames += self._journal.end(ledger)
        try:
            self._append(frames)
        except OSError:
            self._journal.rewind(mark)
            raise
        self._ended = ledger is not None

    def finish(self) -> Iterator[int]:
        """Make the trace.dat, in steps of some 10 ms; each yields the bytes it copied. The last one unlinks journal
        and spools. Left half-way, or failed, it can be begun again, here or by `restore`.

        Raises:
            OSError: The trace is unfinished, but nothing is lost.
        """
        if self._foreign:
            return
        self.closing = True
        if not self._committed:
            self.open()
            yield from _make(self._files, fsync=self._fsync, verify=False, report=RestoreReport())
            self._committed = True
        self._files.unlink_litter()
        if self._fsync:
            _sync_folder(self.path)
        _stores.discard(self)

    def open(self) -> None:
        """Open the files again after `close`.

        Raises:
            OSError: They are not there any more, or are others: someone has restored or moved the trace.
        """
        if not self._foreign and not self._committed and self._files.closed:
            self._files.open_existing()
            hello = os.pread(self._files.journal, len(self._hello), 0)
            if hello != self._hello or os.fstat(self._files.journal).st_size < self._journal_end:
                self._files.close()
                raise FileNotFoundError(errno.ENOENT, "the trace was replaced while its writer was away", self.path)

    def close(self) -> None:
        """Close the descriptors and let the lock go. The trace stays as it is; `open` goes on with it."""
        self._files.close()

    def _abandon(self) -> None:
        self._foreign = True
        self._files.close()


_stores: weakref.WeakSet[TraceStore] = weakref.WeakSet()


def _abandon_in_child() -> None:
    """A forked child has copies of the descriptors: it lets them go, so that the parent's lock ends with the parent."""
    for store in list(_stores):
        store._abandon()
    _stores.clear()


os.register_at_fork(after_in_child=_abandon_in_child)


class _Files:
    """The open files of one trace."""

    def __init__(self, path: str) -> None:
        self.path = path
        self.data = -1
        self.journal = -1
        self._spools: dict[int, int] = {}

    @classmethod
    def create(cls, path: str) -> _Files:
        files = cls(path)
        _refuse_existing(path)
        try:
            # The journal first: whoever finds NAME without one may take it for finished.
            files.journal = os.open(journal_path(path), _NEW, _MODE)
            fcntl.flock(files.journal, fcntl.LOCK_EX | fcntl.LOCK_NB)
            files.data = os.open(path, _NEW, _MODE)
        except BaseException:
            if files.journal >= 0:
                os.unlink(journal_path(path))
            files.close()
            raise
        return files

    def open_existing(self) -> None:
        """
        Raises:
            FileNotFoundError: There is no journal.
            BlockingIOError: A writer lives.
        """
        try:
            self._open()
        except BaseException:
            self.close()
            raise

    def _open(self) -> None:
        self.journal = os.open(journal_path(self.path), _OLD)
        try:
            fcntl.flock(self.journal, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            text = "a running program is still writing this trace: end it first, or read the trace as it is"
            raise BlockingIOError(errno.EWOULDBLOCK, text, self.path) from None
        self.data = os.open(self.path, _OLD)

    @property
    def closed(self) -> bool:
        return self.journal < 0

    def spool(self, writer: int) -> int:
        """The spool of a writer, created when it is first asked for."""
        if writer not in self._spools:
            path = spool_path(self.path, writer)
            # After a failed batch, or in a later process, it may be there without a page that counts.
            self._spools[writer] = os.open(path, _OLD | os.O_CREAT, _MODE)
        return self._spools[writer]

    def close(self) -> None:
        for fd in (self.data, self.journal, *self._spools.values()):
            if fd >= 0:
                os.close(fd)
        self.data = self.journal = -1
        self._spools.clear()

    def unlink_litter(self) -> None:
        """What NAME does not need any more; the journal last, because it is what says that there is litter."""
        for path in (*spool_paths(self.path), journal_path(self.path)):
            try:
                os.unlink(path)
            except FileNotFoundError:
                pass
        self.close()

    def unlink(self) -> None:
        os.unlink(self.path)
        self.unlink_litter()


def _refuse_existing(path: str) -> None:
    if os.path.lexists(journal_path(path)):
        text = f"an unfinished trace is there: complete it with `aiotrace restore {path}`, or choose another name"
        raise FileExistsError(errno.EEXIST, text, path)
    if os.path.lexists(path):
        text = "the file exists: choose another name, remove it, or say overwrite=True"
        raise FileExistsError(errno.EEXIST, text, path)
    if spools := spool_paths(path):
        text = f"a trace that has this name in use left {spools[0]}: remove it, or choose another name"
        raise FileExistsError(errno.EEXIST, text, path)


def remove(path: str) -> None:
    """Delete a trace, finished or not, and whatever belongs to it. Without effect if there is none.

    Raises:
        BlockingIOError: A running program is writing it.
        OSError: It cannot be deleted.
    """
    try:
        journal = os.open(journal_path(path), _READ)
    except FileNotFoundError:
        journal = -1
    try:
        if journal >= 0:
            try:
                fcntl.flock(journal, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                text = "a running program is writing this trace: choose another name"
                raise BlockingIOError(errno.EWOULDBLOCK, text, path) from None
        for each in (path, *spool_paths(path), journal_path(path)):
            try:
                os.unlink(each)
            except FileNotFoundError:
                pass
    finally:
        if journal >= 0:
            os.close(journal)


# --- reading what is not finished ---------------------------------------------------------------


def is_unfinished(path: str) -> bool:
    """Whether NAME has a journal that is still the truth: it grows, or was never closed."""
    if not os.path.exists(journal_path(path)):
        return False
    try:
        fd = os.open(path, _READ)
    except FileNotFoundError:
        return True
    try:
        return T.unpack_options_offset(os.pread(fd, T.INITIAL_HEADER_SIZE, 0)) == 0
    finally:
        os.close(fd)


class UnfinishedTrace:
    """Reads a trace that grows, or that was never closed; also while it is written. A context manager."""

    def __init__(self, path: str) -> None:
        """
        Raises:
            FileNotFoundError: There is no journal.
            OSError: A file cannot be read.
        """
        self.path = path
        self.pages: list[Placed] = []
        """All that is in the trace, in the order in which it was written."""
        self._journal = JournalReader()
        self._fds: dict[str, int] = {}
        self._open(journal_path(path))
        self.refresh()

    @property
    def info(self) -> StreamInfo:
        """
        Raises:
            TraceFormatError: The journal has no intact hello (yet).
        """
        if self._journal.info is None:
            raise TraceFormatError("the journal says of no stream", path=journal_path(self.path), offset=0)
        return self._journal.info

    @property
    def definitions(self) -> list[Definition]:
        return self._journal.definitions

    @property
    def definitions_missing(self) -> int:
        """Definitions that damage to the journal has cost."""
        return self._journal.definitions_missing

    @property
    def ledger(self) -> Ledger | None:
        """The closing account; None while the trace grows, or if the program was killed."""
        return self._journal.ledger

    @property
    def damage(self) -> list[Damage]:
        """Of the journal. A torn tail is none: it is what was being written."""
        return self._journal.damage

    def refresh(self) -> int:
        """Read what the journal has got since; returns how many pages that are."""
        before = len(self.pages)
        self._journal.forget_incomplete()  # a writer whose write failed cuts its beginning off again
        fd = self._open(journal_path(self.path))
        for placed in _read_journal(fd, self._journal):
            self.pages += placed
        return len(self.pages) - before

    def read(self, placed: Placed) -> StoredPage:
        """A page, whose records are those that were written.

        Raises:
            TraceFormatError: They are not: the crc32 is wrong, or the file ends before.
        """
        path = spool_path(self.path, placed.entry.writer) if placed.spooled else self.path
        data = os.pread(self._open(path), placed.entry.committed, placed.place + L.PAGE_HEADER_SIZE)
        if not placed.check(data):
            found = f"page {placed.entry.sequence} of writer {placed.entry.writer} is not what was written"
            raise TraceFormatError(found, path=path, offset=placed.place)
        return StoredPage(placed.entry, memoryview(data))

    def _open(self, path: str) -> int:
        if path not in self._fds:
            self._fds[path] = os.open(path, _READ)
        return self._fds[path]

    def close(self) -> None:
        for fd in self._fds.values():
            os.close(fd)
        self._fds.clear()

    def __enter__(self) -> UnfinishedTrace:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()


def _read_journal(fd: int, journal: JournalReader, *, final: bool = False) -> Iterator[list[Placed]]:
    """Feed what the file has beyond what the reader has got, a chunk at a time."""
    while chunk := os.pread(fd, _JOURNAL_CHUNK, journal.fed):
        yield list(journal.feed(chunk))
    if final:
        yield list(journal.feed(b"", final=True))


# --- closing and restoring ----------------------------------------------------------------------


@dataclass(slots=True)
class RestoreReport:
    """What was found and done."""

    pages: int = 0
    """Intact, and in the trace.dat."""
    events: int = 0
    """On these pages."""
    damaged: list[Placed] = field(default_factory=list)
    """Pages that are not what was written; their events are counted as lost with the page that follows."""
    journal_damage: list[Damage] = field(default_factory=list)
    """Of the journal; a torn tail is among it."""
    was_complete: bool = False
    """The trace.dat was complete already, only the journal had not been removed."""


def restore(path: str, *, progress: Callable[[int], None] | None = None) -> RestoreReport:
    """Make a trace.dat of what a killed program left. Blocks; killed itself, it can be begun again.

    Args:
        progress: Called now and then with the bytes that were checked or copied since.

    Raises:
        FileNotFoundError: There is no journal, so nothing to restore.
        BlockingIOError: A running program is still writing this trace.
        TraceFormatError: The journal is no journal, or lost its beginning.
        OSError: A file cannot be read or written.
    """
    report = RestoreReport()
    files = _Files(path)
    files.open_existing()
    try:
        if T.unpack_options_offset(os.pread(files.data, T.INITIAL_HEADER_SIZE, 0)):
            report.was_complete = True
            files.unlink_litter()
            return report
        for done in _make(files, fsync=True, verify=True, report=report):
            if progress is not None:
                progress(done)
        files.unlink_litter()
        _sync_folder(path)
    finally:
        files.close()
    return report


@dataclass(slots=True)
class _Slot:
    """A page's place in the trace.dat."""

    placed: Placed | None
    """None: the journal lost the frame of the page that is here."""
    damaged: bool
    lost: int
    """As in `PageEntry.lost_before`, with what damage before it has cost."""


@dataclass(slots=True)
class _Column:
    """The pages of one writer, in order."""

    writer: int
    spooled: bool
    slots: list[_Slot] = field(default_factory=list)
    offset: int = 0
    """Of the first page, in the trace.dat."""
    lost_at_end: int = 0

    def add(self, placed: Placed, damaged: bool) -> None:
        entry = placed.entry
        lost = _add_lost(self.lost_at_end, entry.lost_before)
        self.slots.append(_Slot(placed, damaged, 0 if damaged else lost))
        self.lost_at_end = _add_lost(lost, entry.events_count) if damaged else 0


def _add_lost(first: int, second: int) -> int:
    return -1 if first < 0 or second < 0 else first + second


def _make(files: _Files, *, fsync: bool, verify: bool, report: RestoreReport) -> Iterator[int]:
    """Make NAME a trace.dat from what the journal says; yields bytes of work done."""
    journal = JournalReader()
    columns: dict[int, _Column] = {}
    done = 0
    for batch in _read_journal(files.journal, journal, final=True):
        for placed in batch:
            done += _add_page(files, columns, placed, verify, report, journal)
            if done >= _STEP:
                yield done
                done = 0
    if journal.info is None:
        raise TraceFormatError("no intact hello: nothing can be restored", path=journal_path(files.path), offset=0)
    report.journal_damage = journal.damage
    info = journal.info
    order = _arrange(columns, info.page_size)
    in_place = sum(len(column.slots) for column in order if not column.spooled)
    os.ftruncate(files.data, (1 + in_place) * info.page_size)  # nothing stale in holes, or at the end
    yield from _copy(files, order, info.page_size, verify)
    _write_tail(files, journal, info, order, fsync)


def _add_page(
    files: _Files,
    columns: dict[int, _Column],
    placed: Placed,
    verify: bool,
    report: RestoreReport,
    journal: JournalReader,
) -> int:
    """Take a page into its writer's column; returns the bytes that were checked."""
    assert journal.info is not None, "a page before hello is damage"
    writer = placed.entry.writer
    column = columns.get(writer) or _Column(writer, placed.spooled)
    gap = 0 if placed.spooled else placed.place // journal.info.page_size - 1 - len(column.slots)
    damaged = verify and not _is_intact(files, placed)
    if placed.spooled != column.spooled or not 0 <= gap <= _frames_lost(journal):
        report.damaged.append(placed)  # it cannot be where it says
        return 0
    if not placed.spooled and any(not other.spooled for other in columns.values() if other is not column):
        report.damaged.append(placed)
        return 0
    columns[writer] = column
    column.slots += [_Slot(None, True, 0) for _ in range(gap)]
    column.add(placed, damaged)
    if damaged:
        report.damaged.append(placed)
    else:
        report.pages += 1
        report.events += placed.entry.events_count
    return placed.entry.committed if verify else 0


def _frames_lost(journal: JournalReader) -> int:
    """Frames of pages that damage to the journal can have cost, so far."""
    return sum(1 + damage.length // PLACED_SIZE for damage in journal.damage)


def _is_intact(files: _Files, placed: Placed) -> bool:
    fd = files.spool(placed.entry.writer) if placed.spooled else files.data
    try:
        return placed.check(os.pread(fd, placed.entry.committed, placed.place + L.PAGE_HEADER_SIZE))
    except OSError:
        return False


def _arrange(columns: dict[int, _Column], page_size: int) -> list[_Column]:
    """The columns in the order in which they lie in the file: the one that is there already comes first."""
    order = sorted(columns.values(), key=lambda column: (column.spooled, column.writer))
    offset = page_size
    for column in order:
        column.offset = offset
        offset += len(column.slots) * page_size
    return order


def _copy(files: _Files, order: list[_Column], page_size: int, verify: bool) -> Iterator[int]:
    """Bring the pages of the spools to their places. After a check also the headers of all are written anew: no
    crc32 covers them, and the losses may be more."""
    done = 0
    for column in order:
        time = 0
        for number, slot in enumerate(column.slots):
            target = column.offset + number * page_size
            placed = slot.placed
            if placed is not None:
                time = placed.entry.timestamp
            if placed is None or slot.damaged:
                _write_all(files.data, [pack_header(time, 0)], target)
                continue
            committed = placed.entry.committed
            if column.spooled:
                size = L.PAGE_HEADER_SIZE + committed + len(pack_lost_count(placed.entry.lost_before))
                _copy_range(files.spool(column.writer), placed.place, files.data, target, size)
                done += size
            if verify:
                _write_all(files.data, [pack_header(time, committed, slot.lost)], target)
                _write_all(files.data, [pack_lost_count(slot.lost)], target + L.PAGE_HEADER_SIZE + committed)
            if done >= _STEP:
                yield done
                done = 0
    yield done


def _write_tail(files: _Files, journal: JournalReader, info: StreamInfo, order: list[_Column], fsync: bool) -> None:
    """The sections, and then the commit point."""
    size = info.page_size
    regions = [T.Region(column.writer, column.offset, len(column.slots) * size) for column in order]
    data_end = regions[-1].offset + regions[-1].size if regions else size
    tail, options = T.encode_tail(
        data_end,
        page_size=size,
        clock=info.clock,
        regions=regions or [T.Region(0, size, 0)],
        definitions=journal.definitions,
        options=_options(journal, info, order),
    )
    _write_all(files.data, [T.initial_header(size), T.buffer_header(data_end)], 0)
    _write_all(files.data, [tail], data_end)
    if fsync:
        os.fdatasync(files.data)
    _write_all(files.data, [T.pack_options_offset(options)], T.OPTIONS_OFFSET_PLACE)
    if fsync:
        os.fdatasync(files.data)


def _options(journal: JournalReader, info: StreamInfo, order: list[_Column]) -> Iterator[tuple[int, bytes]]:
    writer = JournalWriter(info)
    frames = writer.hello() + writer.definitions(journal.definitions, len(journal.definitions))
    if journal.ledger is not None:
        frames += writer.end(journal.ledger)
    yield T.OPTION_STREAM, frames
    yield T.OPTION_PAGES, T.pack_page_rows(_row(column, slot) for column in order for slot in column.slots)
    yield T.OPTION_VERSION, b"aiotrace\0"
    yield T.OPTION_TRACEID, info.stream_id[:8]
    ledgers = {ledger.writer: ledger for ledger in journal.ledger.writers} if journal.ledger else {}
    for column in order:
        intact = [slot for slot in column.slots if slot.placed is not None and not slot.damaged]
        entries = [slot.placed.entry for slot in intact if slot.placed is not None]
        lost = sum(max(slot.lost, 0) for slot in intact) + max(column.lost_at_end, 0)
        ledger = ledgers.get(column.writer)
        overrun = min(ledger.overrun, lost) if ledger else 0
        statistics = T.CpuStatistics(
            column.writer,
            sum(entry.events_count for entry in entries),
            overrun,
            lost - overrun + (ledger.lost_after if ledger else 0),
            sum(entry.committed for entry in entries),
        )
        yield T.OPTION_CPUSTAT, T.cpu_statistics(statistics)


def _row(column: _Column, slot: _Slot) -> T.PageRow:
    if slot.placed is None:
        return T.PageRow(0, column.writer, 0, 0, T.PAGE_DAMAGED)
    entry = slot.placed.entry
    if slot.damaged:
        return T.PageRow(entry.sequence, column.writer, entry.events_count, 0, T.PAGE_DAMAGED)
    return T.PageRow(entry.sequence, column.writer, entry.events_count, slot.placed.crc, 0)


# --- system calls -------------------------------------------------------------------------------


def _write_all(fd: int, buffers: Sequence[bytes | memoryview], offset: int) -> None:
    """pwritev until everything is written: a short write is no error to the kernel."""
    left = [memoryview(buffer) for buffer in buffers if len(buffer)]
    try:
        while left:
            count = os.pwritev(fd, left, offset)
            if count == 0:
                raise OSError(errno.EIO, "a write wrote nothing")
            offset += count
            while left and count >= len(left[0]):
                count -= len(left.pop(0))
            if count:
                left[0] = left[0][count:]
    finally:
        for view in left:  # an exception's traceback must not keep a page's memory
            view.release()


def _copy_range(source: int, place: int, target: int, offset: int, size: int) -> None:
    end = place + size
    while place < end:
        try:
            count = os.copy_file_range(source, target, end - place, place, offset)
        except OSError as error:
            if error.errno not in _NO_COPY:
                raise
            data = os.pread(source, min(end - place, 1 << 20), place)
            _write_all(target, [data], offset)
            count = len(data)
        if count == 0:
            raise OSError(errno.EIO, f"a spool ends at {place}, {end - place} bytes before its last page does")
        place += count
        offset += count


def _sync_folder(path: str) -> None:
    """New names are on the disk when their folder is."""
    fd = os.open(os.path.dirname(path) or ".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
