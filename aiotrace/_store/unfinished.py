"""Reading a trace that is not finished: it grows, or nobody closed it. Blocking file I/O; changes nothing.

    NAME.journal --> `PagePlacement`: writer, sequence, place, crc32 --> the page, from NAME or the spool of its writer

The law: **a page that is read is what was written**, by its crc32; whatever the journal does not tell of is not there.
It may be read while it is written: what is in the journal does not change any more.
"""

from __future__ import annotations

import os
from types import TracebackType

from .._base.errors import TraceFormatError
from .._formats import tracedat as T
from .._formats.frames import Damage
from .._formats.journal import JournalReader, PagePlacement
from .._page.definitions import Definition
from .._page.entry import PageCopy
from ..abc import Ledger, StreamInfo
from .trace_files import READ, journal_chunks, journal_path, spool_path


def is_unfinished(path: str) -> bool:
    """Whether NAME has a journal that is still the truth: it grows, or was never closed."""
    if not os.path.exists(journal_path(path)):
        return False
    try:
        fd = os.open(path, READ)
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
        self.pages: list[PagePlacement] = []
        """All that is in the trace, in the order in which it was written; a page in parts is there in parts."""
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
            raise TraceFormatError("the journal has no stream header", path=journal_path(self.path), offset=0)
        return self._journal.info

    @property
    def definitions(self) -> list[Definition]:
        return self._journal.definitions

    @property
    def definitions_missing(self) -> int:
        """Definitions that damage to the journal has cost."""
        return self._journal.definitions_missing

    @property
    def earlier_writers(self) -> set[int]:
        """The writers whose streams began in earlier files."""
        return set(self._journal.stored)

    @property
    def ledger(self) -> Ledger | None:
        """The closing account; None while the trace grows, or if the program was killed."""
        return self._journal.ledger

    @property
    def damage(self) -> list[Damage]:
        """Of the journal. A torn tail is none: it is what was being written."""
        return self._journal.damage

    def refresh(self) -> int:
        """Read what the journal has got since; returns how many pages and parts that are."""
        before = len(self.pages)
        self._journal.forget_incomplete()  # a writer whose write failed cuts its beginning off again
        fd = self._open(journal_path(self.path))
        for chunk in journal_chunks(fd, self._journal):
            self.pages += self._journal.feed(chunk)
        return len(self.pages) - before

    def read(self, placed: PagePlacement) -> PageCopy:
        """A page, or a part of one, whose records are those that were written.

        Raises:
            TraceFormatError: They are not: the crc32 is wrong, or the file ends before.
        """
        path = spool_path(self.path, placed.entry.writer) if placed.spooled else self.path
        data = os.pread(self._open(path), placed.entry.committed, placed.records_place)
        if not placed.check(data):
            found = f"page {placed.entry.sequence} of writer {placed.entry.writer} is not what was written"
            raise TraceFormatError(found, path=path, offset=placed.place)
        return PageCopy(placed.entry, memoryview(data))

    def _open(self, path: str) -> int:
        if path not in self._fds:
            self._fds[path] = os.open(path, READ)
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
