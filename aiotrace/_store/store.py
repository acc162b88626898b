"""The one trace store: what a sink or a collector keeps pages with while a trace grows. Blocking file I/O.

    pages --> NAME, or the spool of their writer (`_files`) --> their frames into NAME.journal --> in the trace
                                                                ^ one write for the batch
    at the end `_closing` makes it a trace.dat; while it grows `_growing` reads it

The laws. **A page is in the trace when its frame is in the journal, whole**: pages are written first, then the frames
of a batch in one write, so a kill at any moment leaves no torn page that could be taken for one. **Positions follow
from what was journalled**: what failed in between is written over.

A page takes a whole page of the file, its empty tail a hole. It may come in parts, while it still fills: each goes
behind the one before it and has a frame of its own. Their header stays that of the first until the trace is closed:
nobody reads it before. A part whose page began in an earlier file becomes a page of its own.

A forked child closes the files and does nothing. This module knows no event loop: its callers run it in a thread.
"""

from __future__ import annotations

import errno
import os
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from operator import itemgetter
from typing import Final

from .._base.crc32 import crc32
from .._base.errors import TraceFormatError
from .._formats import tracedat as T
from .._formats.frames import MAGIC, VERSION, Kind
from .._formats.journal import PLACED_SIZE, JournalReader, JournalWriter, PagePlacement, Position, Positions
from .._formats.journal_runs import BODY_SIZE
from .._page import layout as L
from .._page.definitions import Definition
from .._page.encode import pack_header, pack_lost_count
from .._page.entry import PageEntry, page_entry
from ..abc import Ledger, Page, StreamInfo
from .batch_write import Lane, Outcome, write_whole
from .finish import RestoreReport, is_intact, make_trace
from .trace_files import Buffer, TraceFiles, reserve_for, sync_folder, write_all, write_most

_JOURNAL_CHUNK: Final = 1 << 20
CHECKPOINT_PAGES: Final = 4096
"""Pages and parts from one checkpoint of the journal to the next: whoever goes on with it reads no more than these."""
_HELLO_MAX: Final = 1 << 16
_CHECKPOINT_MARK: Final = MAGIC + bytes([VERSION, Kind.CHECKPOINT])
_ZEROS: Final = memoryview(bytes(L.BLOCK))
_WRITER: Final = itemgetter(PageEntry._fields.index("writer"))
_NEEDED: Final = itemgetter(PageEntry._fields.index("definitions_needed"))


class _ContiguousWrite:
    """What lies side by side in one file and is written in one call; for each page alone it costs twice as much."""

    __slots__ = ("buffers", "end", "ends", "fd", "offset")

    def __init__(self, fd: int, offset: int) -> None:
        self.fd = fd
        self.offset = self.end = offset
        self.buffers: list[Buffer] = []
        self.ends: list[int] = []
        """Of its pages, and parts of pages."""


@dataclass(slots=True)
class _Plan:
    """What is to be written of a batch, and what is so when all of it is."""

    stored: Positions
    last: dict[int, PagePlacement]
    in_place: int | None
    placed: list[PagePlacement] = field(default_factory=list)
    """In the order of the batch."""
    definitions: int = 0
    """How many of them the pages need."""
    fds: list[int] = field(default_factory=list)
    """Of each of these."""
    stretches: dict[int, list[_ContiguousWrite]] = field(default_factory=dict)
    """By file."""
    no_spool: OSError | None = None
    """Why the batch ends before its end."""


class TraceStore:
    """A trace that grows. Not for two threads at once; every method blocks."""

    def __init__(self, path: str, info: StreamInfo, *, fsync: bool = False, stored: Positions | None = None) -> None:
        """Create the files.

        Args:
            path: NAME; its folder must exist.
            fsync: `write` returns when the pages are on the disk.
            stored: How far earlier files have each writer's stream.

        Raises:
            FileExistsError: A trace, or an unfinished one, is there; the message says what would do.
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
        """Those that the journal had when it was resumed; empty if it lost any."""
        self.stored = dict(stored)
        """How far the trace, with those before it, has each writer's stream."""
        self.sync_failed = False
        """After a failed fsync nobody knows what is on the disk: `discard_unsynced`, finish, and go on elsewhere."""
        self.closing = False
        """`finish` was begun: no more pages can be written."""
        self._committed = False
        self._fsync = fsync
        self._journal = journal
        self._hello = JournalWriter(info).hello()
        self._journal_end = 0
        self._torn = False
        self._last: dict[int, PagePlacement] = {}
        """The last page of each writer, or part of one, in this file."""
        self._in_place: int | None = None
        self._pages = 0
        self._in_forked_child = False
        self._ended = False
        self._dirty = False
        """The journal has what is not synced."""
        self._reserved: dict[int, int] = {}
        """By descriptor, up to where."""
        self._since_checkpoint = 0
        """Pages and parts that the journal has got since."""
        self._unsynced: set[int | None] = set()
        """What was written since the last fsync: the spools of these writers; None is the trace itself."""

    @classmethod
    def resume(cls, path: str, *, fsync: bool = False, check: int = 0) -> TraceStore:
        """Go on with a trace that a program left when it was killed. Its journal ends with the last frame that is
        whole.

        Args:
            path: NAME.
            fsync: As in `TraceStore`.
            check: After a power loss: so many bytes of pages, at the end, may have been on their way to the disk.
                They are read, and from the first on that is not what was written the journal is cut.

        Raises:
            FileNotFoundError: There is no journal, or no trace.
            BlockingIOError: A writer lives.
            TraceFormatError: The journal has no intact beginning, or the trace is a complete one.
            OSError: A file cannot be read or written.
        """
        files = TraceFiles(path)
        files.open_existing()
        try:
            if T.unpack_options_offset(os.pread(files.data, T.INITIAL_HEADER_SIZE, 0)):
                raise TraceFormatError("the trace is complete: nothing can be added", path=path, offset=0)
            store = cls.__new__(cls)
            store._go_on(files, fsync, check)
            return store
        except BaseException:
            files.close()
            raise

    def _go_on(self, files: TraceFiles, fsync: bool, check: int) -> None:
        journal, pages, ends = (None if check else _read_tail(files)) or _read_journal(files)
        if check and (end := _trusted_size(files, journal, pages, ends, check)) < journal.end:
            os.ftruncate(files.journal, end)
            journal, pages, _ = _read_journal(files)
        info = journal.info
        if info is None:
            raise TraceFormatError("the journal says of no stream", path=files.path, offset=0)
        checkpoint = journal.checkpoint if journal.start else None
        stored = checkpoint.stored if checkpoint is not None else journal.stored
        self._set_up(files.path, info, JournalWriter(info, after=journal), fsync=fsync, stored=stored)
        if checkpoint is not None:
            self._pages, self._in_place = checkpoint.pages, checkpoint.in_place
            self._last = {placed.entry.writer: placed for placed in checkpoint.last}
        self._files = files
        self.definitions = journal.definitions if not journal.definitions_missing else []
        self._journal_end = journal.end
        os.ftruncate(files.journal, journal.end)
        for placed in pages:
            self._take(placed)
        self._since_checkpoint = len(pages)
        self._ended = journal.ledger is not None
        write_all(files.data, [T.initial_header(info.page_size)], 0)  # its writer may have been killed before that
        if fsync:
            self._unsynced = {placed.entry.writer if placed.spooled else None for placed in self._last.values()}
            self._dirty = True
            self.sync()
        self._synced = self._state()
        _stores.add(self)

    @property
    def size(self) -> int:
        """Bytes that the pages take in the trace.dat."""
        return self._pages * self.info.page_size

    @property
    def pages_count(self) -> int:
        return self._pages

    @property
    def synced(self) -> Positions:
        """What of `stored` is on the disk, with `fsync`."""
        return self._synced[2]

    @property
    def ended(self) -> bool:
        """The end of the stream is in it."""
        return self._ended

    def has(self, page: Page) -> bool:
        """Whether a page, or a part of one, is in the trace or in those before it."""
        return _has(self.stored, page_entry(page))

    def fitting(self, pages: Sequence[Page], size: int) -> int:
        """How many of the first of these pages go in before `size` exceeds so many bytes; a part that goes on with a
        page that is there takes no room."""
        left = (size - self.size) // self.info.page_size
        ends = {writer: placed.end for writer, placed in self._last.items()}
        for count, page in enumerate(pages):
            entry = page_entry(page)
            left -= not _continues(ends.get(entry.writer), entry)
            if left < 0:
                return count
            ends[entry.writer] = entry.sequence, entry.offset + entry.committed
        return len(pages)

    def write(self, pages: Sequence[Page], definitions: Sequence[Definition], *, sync: bool = True) -> None:
        """Put pages, and the definitions that they need, into the trace. Those that are in it already (offered again
        after a failure) are passed over.

        Args:
            pages: For each writer in the order of its stream.
            definitions: All of the stream's.
            sync: False leaves it to `sync`, where `fsync` is asked for: one for many batches.

        Raises:
            OSError: Some of the first may be in the trace, the others are not; writing the same pages again goes on
                with the first that is not. If `sync_failed` is set, they must go into another trace.
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
        """Bring to the disk what was written.

        Raises:
            OSError: What of it is there is unknown: `sync_failed` is set.
        """
        if self._in_forked_child or not self._dirty:
            return
        self.open()
        self._sync(*(self._files.data if writer is None else self._files.spool(writer) for writer in self._unsynced))
        self._unsynced.clear()
        self._dirty = False
        self._synced = self._state()

    def _write_batch(self, pages: Sequence[Page], definitions: Sequence[Definition]) -> OSError | None:
        """What a busy program gives, whole pages, in one call; else page by page. Returns what kept it from writing all
        of them."""
        entries = tuple(map(page_entry, pages))
        if not entries or (lanes := self._lanes(entries)) is None:
            return self._write_each(pages, definitions)
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
        if outcome is None:
            self._torn = False
            return self._write_each(pages, definitions)
        self._reserved.update((lane.fd, end.reserved) for lane, end in zip(lanes, outcome.lanes, strict=True))
        if outcome.journal_error is not None:
            self._try_to_cut()
            raise outcome.journal_error
        self._torn = False
        if outcome.error is not None:
            return self._keep_first(entries, lanes, outcome, definitions, needed)
        self._journal.pass_over(len(entries))
        self._journal_end += len(prefix) + len(entries) * PLACED_SIZE
        self._count_pages(len(entries))
        self.stored = dict(self.stored)  # others may have kept the old one
        for end in outcome.lanes:
            self._pages += end.pages - 1
            self._take(PagePlacement.of_body(entries[end.last], outcome.bodies, end.last))
        return None

    def _lanes(self, entries: Sequence[PageEntry]) -> tuple[Lane, ...] | None:
        """Where the next pages of these writers go; None if a spool cannot be opened."""
        page_size = self.info.page_size
        in_place = self._in_place if self._in_place is not None else entries[0].writer
        lanes: list[Lane] = []
        for writer in dict.fromkeys(map(_WRITER, entries)):
            spooled = writer != in_place
            try:
                fd = self._files.spool(writer) if spooled else self._files.data
            except OSError:
                return None
            stored, last = self.stored.get(writer), self._last.get(writer)
            first = stored[0] + 1 if stored is not None else 0
            place = last.place + page_size if last is not None else 0 if spooled else page_size
            lanes.append(Lane(writer, first, fd, place, spooled, self._reserved.get(fd, 0)))
        return tuple(lanes)

    def _keep_first(
        self, entries: Sequence[PageEntry], lanes: Sequence[Lane], outcome: Outcome, definitions: Sequence[Definition],
        needed: int,
    ) -> OSError | None:  # fmt: skip
        """Those before the first that could not be written are in the trace. Returns why it could not."""
        whole = {lane.writer: end.whole for lane, end in zip(lanes, outcome.lanes, strict=True)}
        count = _count_first([entry.writer for entry in entries], whole)
        if count:
            bodies = outcome.bodies[: count * BODY_SIZE]
            self._append_pages(count, definitions, needed, lambda: self._journal.whole(bodies))
            self.stored = dict(self.stored)
            for number in range(count):
                self._take(PagePlacement.of_body(entries[number], bodies, number))
        return outcome.error

    def _write_each(self, pages: Sequence[Page], definitions: Sequence[Definition]) -> OSError | None:
        """Returns what kept it from writing all of them."""
        plan = self._plan(pages)
        count, error = self._write_plan(plan)
        self._commit(plan, count, definitions)
        return error or plan.no_spool

    def _plan(self, pages: Sequence[Page]) -> _Plan:
        """What is to be written, up to the first page whose spool cannot be opened."""
        plan = _Plan(dict(self.stored), dict(self._last), self._in_place)
        files, page_size = self._files, self.info.page_size
        stored, lasts = plan.stored, plan.last
        stretches: dict[int, _ContiguousWrite] = {}
        for page in pages:  # one loop and few calls: this runs for each page
            entry = page_entry(page)
            writer, sequence, begin, _, _, lost, definitions, timestamp, committed = entry
            position = sequence, begin + committed
            if writer in stored and position <= stored[writer]:
                continue
            if plan.in_place is None:
                plan.in_place = writer
            spooled = writer != plan.in_place
            try:
                fd = files.spool(writer) if spooled else files.data
            except OSError as error:
                plan.no_spool = error
                break
            records = page.data
            last = lasts.get(writer)
            if last is not None and last[0][1] == sequence and _continues(last.end, entry):
                start = last.start + last.entry.committed
                placed = PagePlacement(entry, spooled, last.place, start, last.crc, crc32(records, last.crc))
                offset, size = placed.records_place, committed
                buffers: tuple[Buffer, ...] = (records,)
            else:
                offset = last.place + page_size if last is not None else 0 if spooled else page_size
                placed = PagePlacement(entry, spooled, offset, 0, 0, crc32(records))
                lost_count = pack_lost_count(lost) if lost else b""
                size = L.PAGE_HEADER_SIZE + committed + len(lost_count)
                rest = -size % L.BLOCK
                buffers = (pack_header(timestamp, committed, lost), records, lost_count, _ZEROS[:rest])
                size += rest
            stretch = stretches.get(fd)
            if stretch is None or stretch.end != offset:
                stretch = stretches[fd] = _ContiguousWrite(fd, offset)
                plan.stretches.setdefault(fd, []).append(stretch)
            stretch.buffers += buffers
            stretch.end = offset + size
            stretch.ends.append(stretch.end)
            plan.placed.append(placed)
            plan.fds.append(fd)
            plan.definitions = max(plan.definitions, definitions)
            lasts[writer] = placed
            stored[writer] = position
        return plan

    def _write_plan(self, plan: _Plan) -> tuple[int, OSError | None]:
        """Returns how many of the first pages are whole, and what kept it from writing the others."""
        whole = dict.fromkeys(plan.stretches, 0)
        for fd, stretches in plan.stretches.items():
            for stretch in stretches:
                self._reserved[fd] = reserve_for(fd, stretch.offset, stretch.end, self._reserved.get(fd, 0))
                written, error = write_most(fd, stretch.buffers, stretch.offset)
                if error is not None:
                    reached = stretch.offset + written
                    whole[fd] += sum(end <= reached for end in stretch.ends)
                    return _count_first(plan.fds, whole), error
                whole[fd] += len(stretch.ends)
        return len(plan.placed), None

    def _commit(self, plan: _Plan, count: int, definitions: Sequence[Definition]) -> None:
        """The first pages, which were written, are in the trace when their frames are in the journal."""
        if not count:
            return
        placed = plan.placed[:count]  # with a disk that often fails, those before the failure are how it gets on
        self._append_pages(count, definitions, plan.definitions, lambda: self._journal.placed(placed))
        if count == len(plan.placed):
            self.stored, self._last, self._in_place = plan.stored, plan.last, plan.in_place
            self._pages += sum(not each.start for each in placed)
            for each in placed:
                self._note_unsynced(each)
            return
        self.stored = dict(self.stored)  # others may have kept the old one
        for each in placed:
            self._take(each)

    def _append_pages(
        self, count: int, definitions: Sequence[Definition], needed: int, pack: Callable[[], bytes]
    ) -> None:
        """The frames of so many pages, after the definitions that they need, in one write."""
        mark = self._journal.mark()
        frames = self._prefix(definitions, needed) + pack()
        try:
            self._append(frames)
        except OSError:
            self._journal.rewind(mark)
            raise
        self._count_pages(count)

    def _prefix(self, definitions: Sequence[Definition], needed: int) -> bytes:
        """The frames that stand before those of pages."""
        checkpoint = self._checkpoint() if self._since_checkpoint >= CHECKPOINT_PAGES else b""
        return checkpoint + self._journal.definitions(definitions, needed)

    def _count_pages(self, count: int) -> None:
        """So many frames of pages are in the journal, after a checkpoint if one was due."""
        self._since_checkpoint = count + (self._since_checkpoint if self._since_checkpoint < CHECKPOINT_PAGES else 0)

    def _checkpoint(self) -> bytes:
        return self._journal.checkpoint(self._pages, self._in_place, self._last.values(), self.stored)

    def _take(self, placed: PagePlacement) -> None:
        """What its frame in the journal says is so."""
        writer = placed.entry.writer
        self._last[writer] = placed
        self.stored[writer] = placed.end
        self._pages += not placed.start
        if not placed.spooled:
            self._in_place = writer
        self._note_unsynced(placed)

    def _note_unsynced(self, placed: PagePlacement) -> None:
        if self._fsync:
            self._unsynced.add(placed.entry.writer if placed.spooled else None)

    def _append(self, frames: bytes) -> None:
        """One write to the journal. If it fails, its beginning may be there: that is cut off again before anything
        else is written, so that no old frame can come to stand behind a new one."""
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
            pass  # before the next write, then

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
        """Take out what was written since the last fsync that succeeded: it will be written again to another trace.

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
        """Leave the trace unfinished, under another name, for `restore`. What was not synced, where that is asked for,
        does not count as stored: it will be written again.

        Raises:
            OSError: It is still where it was.
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
        """Before `finish`: put in the definitions that no page needed, and the closing account.

        Args:
            ledger: None if the stream goes on in another trace.
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
        """Make the trace.dat, in steps of some 10 ms; each yields the bytes it copied. The last one unlinks journal
        and spools. Left half-way, or failed, it can be begun again, here or by `restore`.

        Raises:
            OSError: The trace is unfinished, but nothing is lost.
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
            OSError: They are not there any more, or are others: someone has restored or moved the trace.
        """
        if not self._in_forked_child and not self._committed and self._files.closed:
            self._files.open_existing()
            hello = os.pread(self._files.journal, len(self._hello), 0)
            if hello != self._hello or os.fstat(self._files.journal).st_size < self._journal_end:
                self._files.close()
                raise FileNotFoundError(errno.ENOENT, "the trace was replaced while its writer was away", self.path)

    def close(self) -> None:
        """Close the descriptors and let the lock go. The trace stays as it is; `open` goes on with it."""
        self._files.close()

    def _abandon(self) -> None:
        self._in_forked_child = True
        self._files.close()


def _count_first(files: Sequence[int], whole: dict[int, int]) -> int:
    """How many of the first pages of a batch are whole, if so many are in each file."""
    for count, file in enumerate(files):
        if not whole[file]:
            return count
        whole[file] -= 1
    return len(files)


def _has(stored: Positions, entry: PageEntry) -> bool:
    end = stored.get(entry.writer)
    return end is not None and (entry.sequence, entry.offset + entry.committed) <= end


def _read_journal(files: TraceFiles) -> tuple[JournalReader, list[PagePlacement], list[int]]:
    """What it says, its pages, and for each of these where its frame ends in the journal."""
    journal = JournalReader()
    pages: list[PagePlacement] = []
    ends: list[int] = []
    while chunk := os.pread(files.journal, _JOURNAL_CHUNK, journal.fed):
        for placed in journal.feed(chunk):
            pages.append(placed)
            ends.append(journal.end)
    return journal, pages, ends


def _read_tail(files: TraceFiles) -> tuple[JournalReader, list[PagePlacement], list[int]] | None:
    """The same from the last checkpoint on; None if there is none near the end."""
    size = os.fstat(files.journal).st_size
    start = max(1, size - 2 * _JOURNAL_CHUNK)
    head = JournalReader()
    for _ in head.feed(os.pread(files.journal, _HELLO_MAX, 0)):
        break
    data = os.pread(files.journal, size - start, start)
    at = len(data)
    while head.info is not None and (at := data.rfind(_CHECKPOINT_MARK, 0, at)) >= 0:
        journal = JournalReader(head.info, offset=start + at)
        pages = list(journal.feed(data[at:]))
        if journal.checkpoint is not None and not journal.damage:
            return journal, pages, []
    return None


def _trusted_size(
    files: TraceFiles, journal: JournalReader, pages: Sequence[PagePlacement], ends: Sequence[int], check: int
) -> int:
    """Bytes of the journal that are to be believed, if the last `check` bytes of pages may not be on the disk."""
    first = len(pages)
    while first and check > 0:
        first -= 1
        check -= pages[first].entry.committed
    before = [0, *ends]
    lost = next((before[n] for n in range(first, len(pages)) if not is_intact(files, pages[n])), journal.end)
    return min([lost, *(damage.offset for damage in journal.damage if damage.offset >= before[first])])


def _continues(end: Position | None, entry: PageEntry) -> bool:
    """Whether a part belongs where the page that ends there is. A loss before it would need a header of its own."""
    return (entry.sequence, entry.offset) == end and not entry.lost_before


_stores: weakref.WeakSet[TraceStore] = weakref.WeakSet()


def _abandon_in_child() -> None:
    """A forked child has copies of the descriptors: it lets them go, so that the parent's lock ends with the parent."""
    for store in list(_stores):
        store._abandon()
    _stores.clear()


os.register_at_fork(after_in_child=_abandon_in_child)
