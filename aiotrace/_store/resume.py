"""Reading the journal of a trace that is to be continued: all of it, or what follows its last checkpoint."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Final

from .._base.errors import TraceFormatError
from .._formats.frames import MAGIC, VERSION, Kind
from .._formats.journal import JournalReader, PagePlacement
from .page_slots import is_intact
from .trace_files import JOURNAL_CHUNK, TraceFiles, journal_chunks

__all__ = ["read_to_resume"]

_HELLO_MAX: Final = 1 << 16
_CHECKPOINT_MARK: Final = MAGIC + bytes([VERSION, Kind.CHECKPOINT])


def read_to_resume(files: TraceFiles, check: int) -> tuple[JournalReader, list[PagePlacement]]:
    """Read the journal, and cut it where it can no longer be trusted.

    Args:
        check: Bytes of pages, at the end, that may not have reached the disk; 0 if all did.

    Returns:
        The reader, and the pages that it read: those after the last checkpoint, where reading began there.

    Raises:
        TraceFormatError: The journal has no intact beginning.
        OSError: It cannot be read or cut.
    """
    journal, pages, ends = (None if check else _read_tail(files)) or _read_journal(files)
    if check and (end := _trusted_size(files, journal, pages, ends, check)) < journal.end:
        os.ftruncate(files.journal, end)
        journal, pages, _ = _read_journal(files)
    if journal.info is None:
        raise TraceFormatError("the journal has no stream header", path=files.path, offset=0)
    os.ftruncate(files.journal, journal.end)
    return journal, pages


def _read_journal(files: TraceFiles) -> tuple[JournalReader, list[PagePlacement], list[int]]:
    """The whole journal: the reader, the pages, and for each page the offset where its frame ends."""
    journal = JournalReader()
    pages: list[PagePlacement] = []
    ends: list[int] = []
    for chunk in journal_chunks(files.journal, journal):
        for placed in journal.feed(chunk):
            pages.append(placed)
            ends.append(journal.end)
    return journal, pages, ends


def _read_tail(files: TraceFiles) -> tuple[JournalReader, list[PagePlacement], list[int]] | None:
    """The same from the last checkpoint on; None if there is no checkpoint near the end."""
    # The stream's header, which is always at the beginning.
    head = JournalReader()
    for _ in head.feed(os.pread(files.journal, _HELLO_MAX, 0)):
        break

    # Search backwards: what looks like a checkpoint may be part of something else, or damaged.
    size = os.fstat(files.journal).st_size
    start = max(1, size - 2 * JOURNAL_CHUNK)
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
    """Bytes of the journal that can be trusted when the last `check` bytes of pages may not be on the disk."""
    first = len(pages)
    while first and check > 0:
        first -= 1
        check -= pages[first].entry.committed
    before = [0, *ends]
    lost = next((before[n] for n in range(first, len(pages)) if not is_intact(files, pages[n])), journal.end)
    return min([lost, *(damage.offset for damage in journal.damage if damage.offset >= before[first])])
