"""A recording for synchronous code: the same recording, whose reader has a thread, behind calls that block.

with recording(...) as recording: ...      what is still open when the interpreter ends is drained then
"""

from __future__ import annotations

import atexit
import os
from types import TracebackType
from typing import Self

from .._page import layout as L
from ..abc import StreamInfo
from .event_control import EventControl
from .recording import SNAPSHOTS, Overrun, Recording
from .sinks import AnySink
from .snapshot import SnapshotStatistics
from .statistics import Statistics


class SyncRecording(EventControl):
    """A recording for synchronous code; made by `recording`. Its reader and sinks run in a thread."""

    def __init__(self, recording: Recording) -> None:
        self._recording = recording
        self.selection = recording.selection
        thread = recording._thread
        assert thread is not None
        self._service = thread

    def __enter__(self) -> Self:
        inner = self._recording
        if inner._state != "new":
            raise RuntimeError(f"{inner!r}: a recording is entered once")
        self._service.start()
        try:
            self._service.submit(inner._open).result()
        except BaseException:
            inner._finalize()
            raise
        inner._start_writing()
        atexit.register(self.close)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Drain for at most `drain_timeout` seconds, and close. A second call does nothing."""
        inner = self._recording
        atexit.unregister(self.close)
        if inner._state != "open" or os.getpid() != inner.info.pid:
            return
        inner._stop_writing()
        try:
            self._service.submit(inner._drain).result(inner._drain_limit)
        except TimeoutError:
            pass  # a sink blocks the thread: what it holds is abandoned
        finally:
            inner._finalize()

    def attach(self, sink: AnySink) -> None:
        """As `Recording.attach`; blocks."""
        self._service.submit(lambda: self._recording._attach(sink)).result()

    def detach(self, sink: AnySink) -> None:
        """As `Recording.detach`; blocks."""
        self._service.submit(lambda: self._recording._detach(sink)).result()

    def snapshot(self, to: AnySink | os.PathLike[str], *, after: float = 0.0) -> SnapshotStatistics:
        """As `Recording.snapshot`; blocks, for `after` seconds at least."""
        return self._service.submit(lambda: self._recording._snapshot(to, after)).result()

    def request_snapshot(self, cause: str, *, after: float = 0.0) -> bool:
        """As `Recording.request_snapshot`."""
        return self._recording.request_snapshot(cause, after=after)

    @property
    def snapshot_paths(self) -> tuple[str, ...]:
        """As `Recording.snapshot_paths`."""
        return self._recording.snapshot_paths

    def statistics(self) -> Statistics:
        """As `Recording.statistics`."""
        return self._recording.statistics()

    @property
    def info(self) -> StreamInfo:
        return self._recording.info


def recording(
    *sinks: AnySink,
    page_size: int = L.PAGE_SIZE_DEFAULT,
    pages: int = 64,
    overrun: Overrun = "drop_newest",
    flush_interval: float = 0.2,
    drain_timeout: float = 5.0,
    clock: str = "mono",
    arena: str | os.PathLike[str] | None = None,
    snapshots: str | os.PathLike[str] = SNAPSHOTS,
    budget: float | None = None,
) -> SyncRecording:
    """`record` for synchronous code: a context manager whose reader and sinks run in a thread of their own.

    What is still open when the interpreter ends is drained then.
    """
    return SyncRecording(
        Recording(
            *sinks,
            page_size=page_size,
            pages=pages,
            overrun=overrun,
            flush_interval=flush_interval,
            drain_timeout=drain_timeout,
            clock=clock,
            arena=arena,
            snapshots=snapshots,
            thread=True,
            budget=budget,
        )
    )
