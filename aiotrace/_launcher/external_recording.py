"""A recording whose reader and sinks are in another process: this one pays for events, and for nothing else.

    events -> writers -> arena, a file ======= another process =======> reader -> sinks      (`_handover`, `_recorder`)

No thread and no task of ours runs here. Without them nobody wakes a `send` that waits for a page: it looks by itself,
each 2 ms while it waits, by a timer of its own loop. A wake across processes (a futex, an eventfd) would cost the
reader a system call for each page, and this process something to listen with; a `send` that waits has time.

The law: **a recorder that is gone harms nobody.** It holds a lock on the arena's folder; when that is free the program
goes on, its pages stay where they are, and new events are refused, or overwrite the oldest ("drop_oldest"). The arena
stays: `aiotrace restore` reads it.
"""

from __future__ import annotations

import atexit
import contextlib
import fcntl
import os
import struct
import time
from types import TracebackType
from typing import Final, Self

import anyio

from .._arena.handover import hand_over
from .._base.high_fds import out_of_the_way
from .._page import layout as L
from .._page.definitions import DEFINITIONS
from .._recording.recording import Overrun, Recording
from .._recording.sinks import open_path
from .._threads.loop import Waker
from .snapshot_requests import SnapshotRequester

LOOK: Final = 0.002
"""Seconds after which a `send` that waits looks again whether a page is free."""
_U64: Final = struct.Struct("=Q")
_ACCOUNT: Final = struct.Struct("=QQQ")


class RefusedByRecorderError(OSError):
    """The recorder cannot read this arena; it has said why."""


class ExternalRecording(Recording):
    """A context manager, for synchronous code. Made where `aiotrace record --external` starts a program.

    Args:
        path: Of the arena; the recorder has a lock on its folder.
        awaits: Whether to wait until the recorder has opened its sinks.
    """

    def __init__(
        self,
        path: str,
        *,
        page_size: int,
        pages: int,
        overrun: Overrun,
        clock: str,
        awaits: bool,
        budget: float | None = None,
    ) -> None:
        """
        Raises:
            ConfigurationError: It cannot work, for example without the C module.
            OSError: The arena cannot be made: the recorder may be gone.
        """
        super().__init__(page_size=page_size, pages=pages, overrun=overrun, clock=clock, arena=path, budget=budget)
        assert self._arena_file is not None
        self._file = self._arena_file
        self._snapshots = SnapshotRequester(
            self._file.memory, lambda: self.is_recorded, self._arena, self.info, DEFINITIONS, "", open_path
        )
        self._awaits = awaits
        self._folder = -1
        self._has_recorder = True
        try:
            hand_over(self._pages)
            self._folder = out_of_the_way(os.open(os.path.dirname(self._file.path), os.O_RDONLY | os.O_CLOEXEC))
        except BaseException:
            self._file.remove()
            raise

    def __enter__(self) -> Self:
        """
        Raises:
            RefusedByRecorderError: The recorder cannot read it.
        """
        if self._awaits:
            self._wait_for_recorder()
        self._start_writing()
        atexit.register(self.close)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Write no more, and leave what is written to the recorder. A second call does nothing."""
        atexit.unregister(self.close)
        if self._state != "open" or os.getpid() != self.info.pid:
            return
        self._stop_writing()
        self._last = self._count()
        for place, writer in enumerate(self._last.writers):
            account = writer.written, writer.dropped, writer.overrun
            _ACCOUNT.pack_into(self._file.memory, L.ARENA_CLOSED + 8 + place * _ACCOUNT.size, *account)
        _U64.pack_into(self._file.memory, L.ARENA_CLOSED, len(self._last.writers))
        self._file.leave()
        with contextlib.suppress(OSError):  # the program closed what it did not open
            os.close(self._folder)

    # --- the recorder ---------------------------------------------------------------------------

    def _wait_for_recorder(self) -> None:
        while self.is_recorded:
            (answer,) = _U64.unpack_from(self._file.memory, L.ARENA_READER)
            if answer == READING:
                return
            if answer == REFUSED:
                self._file.leave()
                raise RefusedByRecorderError("the recorder cannot record it")
            time.sleep(0.001)

    @property
    def is_recorded(self) -> bool:
        """Whether the recorder is still there, and can be seen. One system call, while it is."""
        if self._has_recorder:
            try:
                fcntl.flock(self._folder, fcntl.LOCK_SH | fcntl.LOCK_NB)
                fcntl.flock(self._folder, fcntl.LOCK_UN)
            except BlockingIOError:
                return True
            except OSError:
                pass  # the program closed what it did not open: a `send` that waited might wait for ever
            self._has_recorder = False
        return False

    @property
    def makes_wait(self) -> bool:
        return self._state == "open" and not self._pages.can_overrun and self._has_recorder

    async def wait_for_page(self, waker: Waker) -> None:
        with anyio.move_on_after(LOOK):
            await waker.wait()
        _ = self.is_recorded


READING: Final = 1
"""In ARENA_READER: the recorder has its sinks open."""
REFUSED: Final = 2
"""In ARENA_READER: it has said why it cannot read this arena."""
