"""The trace store: keeps the pages of a growing trace in files, for sinks and collectors. Blocking file I/O.

    pages --> NAME, or the spool of their writer (`trace_files`) --> their frames into NAME.journal --> in the trace
                                                                     ^ one write for the batch
    `finish` makes it a trace.dat at the end; `unfinished` reads it while it grows

**A page is in the trace when its whole frame is in the journal.** Pages are written first, then the frames of a batch
in one write, so a kill at any moment leaves no torn page that could be mistaken for a whole one. **Positions follow
from the journal**: what a failed write left behind is overwritten.

A page takes a whole page of the file; its empty tail is a hole. It may come in parts while it still fills: each part is
appended to the one before it and has a frame of its own. The page's header stays that of the first part until the trace
is finished: nothing reads it earlier. A part whose page began in an earlier file becomes a page of its own.

A forked child closes the files and then does nothing. This module knows no event loop: its callers run it in a thread.
"""

from __future__ import annotations

import errno
import os
import weakref
from collections.abc import Iterator, Mapping, Sequence
from operator import itemgetter
from typing import Final

from .._base.errors import TraceFormatError
from .._formats import tracedat as T
from .._formats.journal import PLACED_SIZE, JournalWriter, PagePlacement, Position, Positions
from .._page.definitions import Definition
from .._page.entry import PageEntry, page_entry
from ..abc import Ledger, Page, StreamInfo
from .batch import BatchPlan, continues, count_first, plan_batch, write_plan
from .batch_write import Lane, Outcome, open_lanes, write_whole
from .finish import make_trace
from .page_slots import RestoreReport
from .resume import read_to_resume
from .trace_files import TraceFiles, sync_folder, write_all

CHECKPOINT_PAGES: Final = 4096
"""Pages and parts from one checkpoint of the journal to the next: `resume` reads no more than these."""
_NEEDED: Final = itemgetter(PageEntry._fields.index("definitions_needed"))


class TraceStore:
    """A growing trace. Every method blocks; not for use by two threads at once."""

    def __init__(self, path: str, info: StreamInfo, *, fsync: bool = False, stored: Positions | None = None) -> None:
        """Create the files.

        Args:
            path: NAME; its folder must exist.
            fsync: `write` returns after the pages are on the disk.
            stored: By writer, how far its stream is stored in earlier files.

        Raises:
            FileExistsError: A trace, finished or not, has this name; the message says how to proceed.
            OSError: A file cannot be created.
        """
        self._set_up(path, info, JournalWriter(info), fsync=fsync, stored=stored or {})
        self._files = TraceFiles.create(path)
        try:
            write_all(self._files.data, [T.initial_header(info.page_size)], 0)
            self._append(self._hello + self._journal.stored(self.stored))
            if fsync:
                self._sync(self._files.data)
                sync_folder(path)
        except BaseException:
            self._files.unlink()
            raise
        self._synced = self._state()
        _stores.add(self)

    def _set_up(
        self, path: str, info: StreamInfo, journal: JournalWriter, *, fsync: bool, stored: Mapping[int, Position]
    ) -> None:
        self.path = path
        self.info = info
        self.definitions: Sequence[Definition] = []
        """The definitions in the journal when it was resumed; empty if any is missing."""
        self.stored = dict(stored)
        """By writer, how far its stream is stored, in this trace and those before it."""
        self.sync_failed = False
        """An fsync failed, so what is on the disk is unknown: `discard_unsynced`, finish, continue in another trace."""
        self.closing = False
        """`finish` has begun: no more pages can be written."""
        self._committed = False
        self._fsync = fsync
        self._journal = journal
        self._hello = JournalWriter(info).hello()
        self._journal_end = 0
        self._torn = False
        self._last: dict[int, PagePlacement] = {}
        """By writer, its last page, or part of one, in this trace."""
        self._in_place: int | None = None
        self._pages = 0
        self._in_forked_child = False
        self._ended = False
        self._dirty = False
        """The journal has frames that are not synced."""
        self._reserved: dict[int, int] = {}
        """By descriptor, the offset up to which blocks are allocated."""
        self._since_checkpoint = 0
        """Pages and parts in the journal after its last checkpoint."""
        self._unsynced: set[int | None] = set()
        """Files written since the last fsync: the spools of these writers; None is the trace itself."""

    @classmethod
    def resume(cls, path: str, *, fsync: bool = False, check: int = 0) -> TraceStore:
        """Continue a trace that a killed program left. Its journal is cut after the last whole frame.

        Args:
            path: NAME.
            fsync: As in `TraceStore`.
            check: After a power loss: the last `check` bytes of pages may not have reached the disk. They are
                read, and the journal is cut before the first page that is damaged.

        Raises:
            FileNotFoundError: There is no journal, or no trace.
            BlockingIOError: A running program is writing it.
            TraceFormatError: The journal has no intact beginning, or the trace is a complete one.
            OSError: A file cannot be read or written.
        """
        files = TraceFiles(path)
        files.open_existing()
        try:
            if T.unpack_options_offset(os.pread(files.data, T.INITIAL_HEADER_SIZE, 0)):
                raise TraceFormatError("the trace is complete: nothing can be added", path=path, offset=0)
            store = cls.__new__(cls)
            store._continue(files, fsync, check)
            return store
        except BaseException:
            files.close()
            raise

    def _continue(self, files: TraceFiles, fsync: bool, check: int) -> None:
        """Take over the files of a trace, and the state that their journal describes."""
        journal, pages = read_to_resume(files, check)
        assert journal.info is not None

        # The state at the last checkpoint, or at the beginning of the journal.
        info = journal.info
        checkpoint = journal.checkpoint if journal.start else None
        stored = checkpoint.stored if checkpoint is not None else journal.stored
        self._set_up(files.path, info, JournalWriter(info, after=journal), fsync=fsync, stored=stored)
        if checkpoint is not None:
            self._pages, self._in_place = checkpoint.pages, checkpoint.in_place
            self._last = {placed.entry.writer: placed for placed in checkpoint.last}

        # What the frames after it add.
        self._files = files
        self.definitions = journal.definitions if not journal.definitions_missing else []
        self._journal_end = journal.end
        for placed in pages:
            self._take(placed)
        self._since_checkpoint = len(pages)
        self._ended = journal.ledger is not None

        # The program may have been killed before it wrote the initial header.
        write_all(files.data, [T.initial_header(info.page_size)], 0)
        if fsync:
            self._unsynced = {placed.entry.writer if placed.spooled else None for placed in self._last.values()}
            self._dirty = True
            self.sync()
        self._synced = self._state()
        _stores.add(self)

    @property
    def size(self) -> int:
        """Bytes that the pages will take in the trace.dat."""
        return self._pages * self.info.page_size

    @property
    def pages_count(self) -> int:
        return self._pages

    @property
    def synced(self) -> Positions:
        """The part of `stored` that is on the disk, with `fsync`."""
        return self._synced[2]

    @property
    def ended(self) -> bool:
        """The end of the stream is stored."""
        return self._ended

    def has(self, page: Page) -> bool:
        """Whether a page, or a part of one, is in the trace or in those before it."""
        entry = page_entry(page)
        end = self.stored.get(entry.writer)
        return end is not None and (entry.sequence, entry.offset + entry.committed) <= end

    def fitting(self, pages: Sequence[Page], size: int) -> int:
        """How many of these pages, from the first, fit before `TraceStore.size` exceeds `size` bytes. A part that
        continues a stored page takes no room."""
        left = (size - self.size) // self.info.page_size
        ends = {writer: placed.end for writer, placed in self._last.items()}
        for count, page in enumerate(pages):
            entry = page_entry(page)
            left -= not continues(ends.get(entry.writer), entry)
            if left < 0:
                return count
            ends[entry.writer] = entry.sequence, entry.offset + entry.committed
        return len(pages)

    def write(self, pages: Sequence[Page], definitions: Sequence[Definition], *, sync: bool = True) -> None:
        """Write pages, and the definitions that they need. Pages that are stored already (offered again after a
        failure) are skipped.

        Args:
            pages: The pages of each writer in the order of its stream.
            definitions: All definitions of the stream.
            sync: False: with `fsync`, leave syncing to a later `sync`, one for many batches.

        Raises:
            OSError: Some pages, from the first on, may be stored, the rest are not; writing the same pages again
                resumes with the first that is not. If `sync_failed` is set, they must go into another trace.
        """
        if self._in_forked_child:
            return
        assert not self.closing and not self.sync_failed
        self.open()
        error = self._write_batch(pages, definitions)
        if sync and self._fsync:
            self.sync()
        if error is not None:
            raise error

    def sync(self) -> None:
        """Sync what was written to the disk.

        Raises:
            OSError: It failed, so what is on the disk is unknown: `sync_failed` is set.
        """
        if self._in_forked_child or not self._dirty:
            return
        self.open()
        self._sync(*(self._files.data if writer is None else self._files.spool(writer) for writer in self._unsynced))
        self._unsynced.clear()
        self._dirty = False
        self._synced = self._state()

    def _write_batch(self, pages: Sequence[Page], definitions: Sequence[Definition]) -> OSError | None:
        """Write whole pages, the common case, in one call; others page by page. Returns the error that kept it from
        writing all of them."""
        entries = tuple(map(page_entry, pages))
        if not entries:
            return None
        in_place = self._in_place if self._in_place is not None else entries[0].writer
        lanes = open_lanes(entries, self._files, self.info.page_size, in_place, self.stored, self._last, self._reserved)
        if lanes is None:
            return self._write_each(pages, definitions)

        # One call: the pages of all lanes, then their frames.
        self._cut_torn_tail()
        needed = max(map(_NEEDED, entries))
        mark = self._journal.mark()
        prefix = self._prefix(definitions, needed)
        outcome: Outcome | None = None
        self._torn = self._dirty = True
        try:
            outcome = write_whole(
                entries, tuple([page.data for page in pages]), lanes, self.info.page_size, self.info.stream_id,
                self._journal.sequence, prefix, self._files.journal, self._journal_end,
            )  # fmt: skip
        finally:
            if outcome is None or outcome.error is not None or outcome.journal_error is not None:
                self._journal.rewind(mark)

        # Nothing was written: there are parts, or pages that are stored already.
        if outcome is None:
            self._torn = False
            return self._write_each(pages, definitions)

        # The journal, or some pages, could not be written.
        self._reserved.update((lane.fd, end.reserved) for lane, end in zip(lanes, outcome.lanes, strict=True))
        if outcome.journal_error is not None:
            self._try_to_cut()
            raise outcome.journal_error
        self._torn = False
        if outcome.error is not None:
            return self._keep_first(entries, lanes, outcome, definitions, needed)

        # All pages are in the trace.
        self._journal.pass_over(len(entries))
        self._journal_end += len(prefix) + len(entries) * PLACED_SIZE
        self._count_pages(len(entries))
        self.stored = dict(self.stored)  # callers may hold the old one
        for end in outcome.lanes:
            self._pages += end.pages - 1
            self._take(PagePlacement.of_body(entries[end.last], outcome.bodies, end.last))
        return None

    def _keep_first(
        self, entries: Sequence[PageEntry], lanes: Sequence[Lane], outcome: Outcome, definitions: Sequence[Definition],
        needed: int,
    ) -> OSError | None:  # fmt: skip
        """Take the pages before the first that could not be written into the trace. Returns the error."""
        whole = {lane.writer: end.whole for lane, end in zip(lanes, outcome.lanes, strict=True)}
        count = count_first([entry.writer for entry in entries], whole)
        placed = [PagePlacement.of_body(entries[number], outcome.bodies, number) for number in range(count)]
        self._append_pages(placed, definitions, needed)
        return outcome.error

    def _write_each(self, pages: Sequence[Page], definitions: Sequence[Definition]) -> OSError | None:
        """Returns the error that kept it from writing all of them."""
        plan = BatchPlan(dict(self.stored), dict(self._last), self._in_place)
        plan_batch(pages, self._files, self.info.page_size, plan)
        count, error = write_plan(plan, self._reserved)
        # After a failure, too: keeping the pages before it lets retries make progress.
        self._append_pages(plan.placed[:count], definitions, plan.definitions)
        return error or plan.no_spool

    def _append_pages(self, placed: list[PagePlacement], definitions: Sequence[Definition], needed: int) -> None:
        """Append the frames of pages that were written, after the definitions that they need, in one write: now they
        are in the trace."""
        if not placed:
            return
        mark = self._journal.mark()
        frames = self._prefix(definitions, needed) + self._journal.placed(placed)
        try:
            self._append(frames)
        except OSError:
            self._journal.rewind(mark)
            raise
        self._count_pages(len(placed))
        self.stored = dict(self.stored)  # callers may hold the old one
        for each in placed:
            self._take(each)

    def _prefix(self, definitions: Sequence[Definition], needed: int) -> bytes:
        """The frames that precede those of the pages."""
        checkpoint = self._checkpoint() if self._since_checkpoint >= CHECKPOINT_PAGES else b""
        return checkpoint + self._journal.definitions(definitions, needed)

    def _count_pages(self, count: int) -> None:
        """`count` frames of pages were appended, after a checkpoint if one was due."""
        self._since_checkpoint = count + (self._since_checkpoint if self._since_checkpoint < CHECKPOINT_PAGES else 0)

    def _checkpoint(self) -> bytes:
        return self._journal.checkpoint(self._pages, self._in_place, self._last.values(), self.stored)

    def _take(self, placed: PagePlacement) -> None:
        """A page's frame is in the journal: update the state."""
        writer = placed.entry.writer
        self._last[writer] = placed
        self.stored[writer] = placed.end
        self._pages += not placed.start
        if not placed.spooled:
            self._in_place = writer
        if self._fsync:
            self._unsynced.add(placed.entry.writer if placed.spooled else None)

    def _append(self, frames: bytes) -> None:
        """One write to the journal. If it fails, a part of it may be in the file: that is cut off before the next
        write, so that no old frame can follow a new one."""
        self._cut_torn_tail()
        self._torn = self._dirty = True
        try:
            write_all(self._files.journal, [frames], self._journal_end)
        except OSError:
            self._try_to_cut()
            raise
        self._torn = False
        self._journal_end += len(frames)

    def _try_to_cut(self) -> None:
        try:
            self._cut_torn_tail()
        except OSError:
            pass  # the next write tries again

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

    def _state(self) -> tuple[int, int, Positions]:
        return self._journal_end, self._pages, dict(self.stored)

    def discard_unsynced(self) -> None:
        """Remove what was written since the last successful fsync: it will be written to another trace.

        Raises:
            OSError: The journal cannot be cut.
        """
        if self._in_forked_child:
            return
        self.open()
        end, pages, stored = self._synced
        os.ftruncate(self._files.journal, end)
        self._journal_end, self._pages, self.stored = end, pages, stored
        self._unsynced.clear()
        self._dirty = self.sync_failed = False

    def set_aside(self, path: str) -> None:
        """Leave the trace unfinished, under another name, for `restore`. After a failed fsync, what was not synced
        does not count as stored: it will be written again.

        Raises:
            OSError: It still has its old name.
        """
        if self._in_forked_child:
            return
        self._files.move(path)
        self.path = path
        if self.sync_failed:
            self.stored = self._synced[2]
        self.close()
        _stores.discard(self)

    def end(self, definitions: Sequence[Definition], ledger: Ledger | None) -> None:
        """Before `finish`: append the definitions that no page needed, and the ledger.

        Args:
            ledger: None if the stream continues in another trace.
        """
        if self._in_forked_child or self._committed or self._ended:
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
        """Make the trace.dat in steps of about 10 ms, each yielding the bytes that it copied. The last step removes
        journal and spools. After an interruption or an error, call it again, or use `restore`.

        Raises:
            OSError: The trace is still unfinished; nothing is lost.
        """
        if self._in_forked_child:
            return
        self.closing = True
        if not self._committed:
            self.open()
            yield from make_trace(self._files, fsync=self._fsync, verify=False, report=RestoreReport())
            self._committed = True
        self._files.unlink_litter()
        if self._fsync:
            sync_folder(self.path)
        _stores.discard(self)

    def open(self) -> None:
        """Open the files again after `close`.

        Raises:
            OSError: They are gone or were replaced: the trace was restored or moved.
        """
        if not self._in_forked_child and not self._committed and self._files.closed:
            self._files.open_existing()
            hello = os.pread(self._files.journal, len(self._hello), 0)
            if hello != self._hello or os.fstat(self._files.journal).st_size < self._journal_end:
                self._files.close()
                raise FileNotFoundError(
                    errno.ENOENT, "the trace was replaced while its writer had it closed", self.path
                )

    def close(self) -> None:
        """Close the descriptors and release the lock. The trace stays as it is; `open` continues it."""
        self._files.close()

    def _abandon(self) -> None:
        self._in_forked_child = True
        self._files.close()


_stores: weakref.WeakSet[TraceStore] = weakref.WeakSet()


def _abandon_in_child() -> None:
    """A forked child has copies of the descriptors: it closes them, so that the parent's lock ends with the parent."""
    for store in list(_stores):
        store._abandon()
    _stores.clear()


os.register_at_fork(after_in_child=_abandon_in_child)
