"""A recording for synchronous code: the reader and the sinks run in a thread, and calls block.

with recording(...) as recording: ...      a recording that is still open when the interpreter exits is drained
"""

from __future__ import annotations

import atexit
import os
from collections.abc import Callable, Coroutine
from types import TracebackType
from typing import Any, Self, TypeVar

from .._page import layout as L
from ..abc import StreamInfo
from .core import RecordingCore
from .event_control import EventControl
from .options import SNAPSHOTS, Overrun, RecordingOptions
from .sinks import AnySink
from .snapshot import SnapshotStatistics
from .statistics import Statistics

T = TypeVar("T")


class SyncRecording(EventControl):
    """A recording for synchronous code; made by `recording`. Its reader and sinks run in a thread."""

    def __init__(self, core: RecordingCore) -> None:
        self._core = core
        self.selection = core.selection
        """Which events it records; changed by `enable`, `disable`, `filter` and `trigger`."""

    def __enter__(self) -> Self:
        core = self._core
        core.start_service()
        try:
            self._call(core.open)
        except BaseException:
            core.finalize()
            raise
        core.start_writing()
        atexit.register(self.close)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Drain for at most `drain_timeout` seconds, and close. A second call does nothing."""
        core = self._core
        atexit.unregister(self.close)
        if not core.is_open:
            return
        core.stop_writing()
        try:
            self._call(core.drain, core.drain_limit)
        except TimeoutError:
            pass  # a sink blocks the thread: what it holds is abandoned
        finally:
            core.finalize()

    def _call(self, function: Callable[[], Coroutine[Any, Any, T]], timeout: float | None = None) -> T:
        """Run something in the loop of the reader and the sinks, and wait for it.

        Raises:
            TimeoutError: It takes longer than `timeout` seconds.
        """
        assert self._core.thread is not None
        return self._core.thread.submit(function).result(timeout)

    def attach(self, sink: AnySink) -> None:
        """As `Recording.attach`; blocks."""
        self._call(lambda: self._core.attach(sink))

    def detach(self, sink: AnySink) -> None:
        """As `Recording.detach`; blocks."""
        self._call(lambda: self._core.detach(sink))

    def snapshot(self, to: AnySink | os.PathLike[str], *, after: float = 0.0) -> SnapshotStatistics:
        """As `Recording.snapshot`; blocks, for at least `after` seconds."""
        return self._call(lambda: self._core.snapshot(to, after))

    def request_snapshot(self, cause: str, *, after: float = 0.0) -> bool:
        """As `Recording.request_snapshot`."""
        return self._core.request_snapshot(cause, after)

    @property
    def snapshot_paths(self) -> tuple[str, ...]:
        """As `Recording.snapshot_paths`."""
        return tuple(self._core.snapshots.paths)

    def statistics(self) -> Statistics:
        """As `Recording.statistics`."""
        return self._core.statistics()

    @property
    def info(self) -> StreamInfo:
        """What is true of the whole stream."""
        return self._core.info


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

    If it is still open when the interpreter exits, it is drained then.
    """
    options = RecordingOptions(
        page_size=page_size, pages=pages, overrun=overrun, flush_interval=flush_interval, drain_timeout=drain_timeout,
        clock=clock, arena=arena, snapshots=snapshots, budget=budget,
    )  # fmt: skip
    return SyncRecording(RecordingCore(sinks, options, thread=True))
