"""cancellation: requests to cancel a task that the task does not obey in time.

    cancellation:overdue   task, by, requested_ns, site, at     the task has not ended, and the request is still pending

    task.cancel(), a trio scope    noted, with a weak reference       ... the task ends, or the request is withdrawn
    the watcher, a thread          sleeps until a request is as old as the timeout, then checks it

`by` is the task that requested it (0: none), `site` its line, `at` the line where the task is now: the innermost that
is not a runtime's. Each request is reported once; one that is repeated while it is pending, as anyio does, counts once.

On asyncio a request is pending until the task is done or has called `uncancel` as often as `cancel` was called, on trio
until the scope is left. If several are pending the first is watched. The steps of tasks cost nothing more: a request
costs one call of Python, and is checked once. The hooks are those of the `task` tracer, whose events need not be on.
"""

from __future__ import annotations

import atexit
import queue
import sys
import threading
import time
import weakref
from collections.abc import Iterable
from types import FrameType, ModuleType
from typing import Any, Final

from .._base.backend import c_module
from .._base.errors import ConfigurationError
from .._events.event import define
from .._events.python_stack import is_ours
from .._events.selection import CANCEL_NS, Selection
from .._threads.own_threads import block_signals
from . import task as tasks

OVERDUE: Final = define(
    "cancellation:overdue",
    {"task": "s32", "by": "s32", "requested_ns": "u64", "site": "symbol", "at": "symbol"},
    by_default=False,
)
_JOIN: Final = 1.0
"""Seconds that `stop` waits for the watcher, which may be busy."""


class _Request:
    """A request to cancel a task."""

    __slots__ = ("at_ns", "by", "id", "is_told", "scope", "site", "task")

    def __init__(self, task: Any, id: int, by: int, site: str, scope: Any) -> None:
        self.at_ns = time.monotonic_ns()
        self.id = id
        self.by = by
        self.site = site
        self.is_told = False
        self.task = weakref.ref(task, self._forget)
        self.scope = None if scope is None else weakref.ref(scope)

    def _forget(self, _: object) -> None:
        if _requests.get(self.id) is self:
            del _requests[self.id]

    def standing(self) -> Any:
        """The task, if the request is still pending; else None."""
        task = self.task()
        if task is None:
            return None
        if self.scope is None:
            return task if task.cancelling() and not task.done() else None
        scope = self.scope()
        is_left = scope is None or scope._cancel_status is None or task._cancel_status is None
        return None if is_left else task


class _Watch:
    """The watcher's thread, and its queue of requests: the oldest first, as all have the same timeout."""

    def __init__(self) -> None:
        self.asked: queue.SimpleQueue[_Request | None] = queue.SimpleQueue()  # a signal handler may put into it
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, name="aiotrace cancellations", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._ended.set()
        self.asked.put(None)
        self._thread.join(_JOIN)

    def _run(self) -> None:
        block_signals()
        while (request := self.asked.get()) is not None:
            while (left := request.at_ns + _timeout_ns - time.monotonic_ns()) > 0 and not self._ended.is_set():
                self._ended.wait(left / 1e9)
            if self._ended.is_set():
                return
            _look(request)


_requests: Final[dict[int, _Request]] = {}
"""By the id of the task: requests that were not checked yet, and those that are overdue and pending."""
_timeout_ns = CANCEL_NS
_watch: _Watch | None = None


def _asked(task: Any, id: int, by: int, site: str, scope: Any) -> None:
    """A cancellation was requested, in the calling thread, which may be in a signal handler."""
    before = _requests.get(id)
    watch = _watch
    is_again = before is not None and before.standing() is not None and (scope is not None or task.cancelling() > 1)
    if watch is None or is_again:
        return
    request = _requests[id] = _Request(task, id, by, site, scope)
    watch.asked.put(request)


def _look(request: _Request) -> None:
    task = request.standing()
    if task is None:
        request._forget(None)
        return
    request.is_told = True
    OVERDUE(request.id, request.by, request.at_ns, request.site, _place(task, request.scope is not None))


def _place(task: Any, is_trio: bool) -> str:
    """Where a task is: the innermost line that is not a runtime's, or the innermost of all."""
    coroutine = _need_c().task_unwrap(task.coro) if is_trio else task.get_coro()
    if not getattr(coroutine, "cr_running", False):
        return tasks.find_line(coroutine)
    for frame in sys._current_frames().values():
        frames = list(_callers(frame))
        if coroutine.cr_frame in frames:
            mine = [each for each in frames[: frames.index(coroutine.cr_frame) + 1] if not is_ours(each.f_code)]
            outside = next((each for each in mine if not tasks.is_runtime(each.f_code)), mine[0])
            return tasks.describe(outside.f_code, outside.f_lineno)[0]
    return "?"


def _callers(frame: FrameType | None) -> Iterable[FrameType]:
    while frame is not None:
        yield frame
        frame = frame.f_back


# --- start and stop ---------------------------------------------------------------------------------


def start() -> None:
    """
    Raises:
        ConfigurationError: There is no C module, or tasks cannot be traced on this Python.
    """
    global _watch
    native = _need_c()
    tasks.hold("cancellation")
    _watch = _Watch()
    try:
        _watch.start()
    except BaseException:
        _watch = None
        tasks.release("cancellation")
        raise
    native.task_watch(_asked)
    atexit.register(stop)


def stop() -> None:
    """Also called in a forked child, which has no such thread, and at exit. A second call does nothing."""
    global _watch
    watch, _watch = _watch, None
    if watch is None:
        return
    atexit.unregister(stop)
    _need_c().task_watch(None)
    watch.stop()
    _requests.clear()
    tasks.release("cancellation")


def follow(selections: Iterable[Selection]) -> None:
    """Take over the timeout of the open recordings."""
    global _timeout_ns
    takers = [each for each in selections if each.wants_system("cancellation", explicit=False)]
    _timeout_ns = min((each.cancel_ns for each in takers), default=CANCEL_NS)


def _need_c() -> ModuleType:
    if c_module is None:
        text = "watching cancellations (cancellation:*) needs the C module: `pip install .` with a C compiler builds it"
        raise ConfigurationError(text)
    return c_module
