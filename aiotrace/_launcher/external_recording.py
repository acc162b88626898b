"""A recording whose reader and sinks are in another process: this process pays for events and for nothing else.

    events -> writers -> arena, a file ======= another process =======> reader -> sinks      (`handover`, `recorder`)

No thread or task of aiotrace runs here. So nothing wakes a `send` that waits for a page: it checks every 2 ms while it
waits, by a timer of its own loop. A wake-up across processes (a futex, an eventfd) would cost the reader a system call
for each page, and this process something to listen with; a `send` that waits has time.

The law: **a recorder that is gone harms nothing.** The recorder holds a lock on the arena's folder. When that is free,
the program continues, its pages stay where they are, and new events are refused, or overwrite the oldest
("drop_oldest"). The arena stays: `aiotrace restore` reads it.
"""

from __future__ import annotations

import atexit
import contextlib
import fcntl
import os
import struct
import time
from types import TracebackType
from typing import TYPE_CHECKING, Final, Self

from .._arena.handover import hand_over
from .._base.high_fds import out_of_the_way
from .._page import layout as L
from .._recording.event_control import EventControl
from .._recording.options import RecordingOptions
from .._recording.statistics import Statistics
from .._recording.writing import WritingCore
from .snapshot_requests import SnapshotRequester

if TYPE_CHECKING:
    from .._threads.loop import Waker

POLL: Final = 0.002
"""Seconds between two checks of a `send` that waits for a free page."""
READING: Final = 1
"""In ARENA_READER: the recorder has its sinks open."""
REFUSED: Final = 2
"""In ARENA_READER: the recorder cannot read this arena, and has said why."""
REFUSED_AS_WRONG: Final = 3
"""In ARENA_READER: the same, because of a wrong argument."""
WITHDRAWN: Final = 5
"""In ARENA_READER, written by the program: it does not begin, and there is nothing to keep."""
_U64: Final = struct.Struct("=Q")
_ACCOUNT: Final = struct.Struct("=QQQ")


class RefusedByRecorderError(OSError):
    """The recorder cannot read this arena; it has said why.

    Args:
        is_wrong: An argument of `aiotrace record` is wrong.
    """

    def __init__(self, *, is_wrong: bool) -> None:
        super().__init__("the recorder cannot record it")
        self.is_wrong = is_wrong


class ExternalRecording(EventControl):
    """A context manager, for synchronous code. Made where `aiotrace record --external` starts a program.

    Args:
        options: Among them, the arena's path.
        folder: The recorder has a lock on it.
        awaits: Whether to wait until the recorder has opened its sinks.

    Raises:
        ConfigurationError: It cannot work, for example without the C module.
        OSError: The arena cannot be made: the recorder may be gone.
    """

    def __init__(self, options: RecordingOptions, folder: str, *, awaits: bool) -> None:
        self._core = _ExternalCore(options, folder)
        self.selection = self._core.selection
        self._awaits = awaits

    def __enter__(self) -> Self:
        """
        Raises:
            RefusedByRecorderError: The recorder cannot read it.
        """
        self._core.check_new()
        if self._awaits:
            self._core.wait_for_recorder()
        self._core.start_writing()
        atexit.register(self.close)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Stop writing, and leave what is written to the recorder. A second call does nothing."""
        atexit.unregister(self.close)
        if self._core.is_open:
            self._core.stop_writing()
            self._core.leave()

    def withdraw(self) -> None:
        """The program does not begin: the recorder removes what it has of it."""
        self._core.withdraw()
        self.close()

    def request_snapshot(self, cause: str, *, after: float = 0.0) -> bool:
        """Request a snapshot from the recorder; as `Recording.request_snapshot`."""
        return self._core.request_snapshot(cause, after)

    def statistics(self) -> Statistics:
        """As `Recording.statistics`."""
        return self._core.statistics()


class _ExternalCore(WritingCore):
    """No sinks, and what the recorder needs: pages in a file, words in its header, a lock to tell whether it lives."""

    def __init__(self, options: RecordingOptions, folder: str) -> None:
        super().__init__(options)
        assert self.arena_file is not None
        self._file = self.arena_file
        self._folder = -1
        self._has_recorder = True
        self.snapshots = SnapshotRequester(self._file.memory, lambda: self.is_recorded)
        try:
            hand_over(self.pages)
            self._folder = out_of_the_way(os.open(folder, os.O_RDONLY | os.O_CLOEXEC))
        except BaseException:
            self._file.remove()
            raise

    def leave(self) -> None:
        """Put the final account where the recorder finds it."""
        account = self.keep_account()
        writers = account.writers
        for place, writer in enumerate(writers):
            counts = writer.written, writer.dropped, writer.overrun
            _ACCOUNT.pack_into(self._file.memory, L.ARENA_CLOSED + 8 + place * _ACCOUNT.size, *counts)
        _U64.pack_into(self._file.memory, L.ARENA_CLOSED, len(writers))

        self._file.leave()
        with contextlib.suppress(OSError):  # the program may have closed it: it is not the program's, but it can
            os.close(self._folder)

    def withdraw(self) -> None:
        _U64.pack_into(self._file.memory, L.ARENA_READER, WITHDRAWN)

    # --- the recorder ---------------------------------------------------------------------------

    def wait_for_recorder(self) -> None:
        """
        Raises:
            RefusedByRecorderError: The recorder cannot read the arena.
        """
        while self.is_recorded:
            (answer,) = _U64.unpack_from(self._file.memory, L.ARENA_READER)
            if answer == READING:
                return
            if answer in (REFUSED, REFUSED_AS_WRONG):
                self._file.leave()
                raise RefusedByRecorderError(is_wrong=answer == REFUSED_AS_WRONG)
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
                pass  # the program closed the descriptor: without this answer a `send` could wait forever
            self._has_recorder = False
        return False

    # --- sends that wait ------------------------------------------------------------------------

    @property
    def makes_wait(self) -> bool:
        return self._state == "open" and not self.pages.can_overrun and self._has_recorder

    async def wait_for_page(self, waker: Waker) -> None:
        import anyio  # a program that does not wait does not pay for it

        with anyio.move_on_after(POLL):
            await waker.wait()
        _ = self.is_recorded
