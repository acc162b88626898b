"""A thread for blocking calls: what file sinks use instead of an executor.

    async with worker_thread("file sink") as worker:
        await worker.run(os.writev, fd, buffers)

**A job that was started has ended when `run`, `Job.wait` or `Job.end` returns or raises**, whatever cancels the caller
(an anyio scope, a native `Task.cancel()`, or both). So no thread can read a page's memory after its sink gave the page
up; tests/threads/test_worker.py holds that. Executors do not promise it, and fail while the interpreter shuts down. A
worker that is made that late, when CPython 3.12 starts no more threads, makes its calls in the thread of its loop.
"""

from __future__ import annotations

import asyncio
import queue
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any, Generic, TypeVar, TypeVarTuple, cast

import anyio

from .loop import Loop
from .own_threads import block_signals

__all__ = ["Job", "Worker", "block_signals", "worker_thread"]

T = TypeVar("T")
Arguments = TypeVarTuple("Arguments")


class Job(Generic[T]):
    """A call that is queued, runs, or has ended. For the loop that started it."""

    def __init__(self, call: Callable[[], T], loop: Loop) -> None:
        self._call = call
        self._loop = loop
        self.has_ended = False
        self._ended: anyio.Event | None = None
        self._outcome: list[Any] = []
        self.on_end: Callable[[], object] | None = None
        """Called in the loop when the job ends, if it has not ended yet."""

    def _run(self) -> None:
        """In the thread."""
        try:
            self._outcome.extend((True, self._call()))
        except BaseException as error:  # it is the caller's, not this thread's
            self._outcome.extend((False, error))
        self._loop.run_soon(self._end)

    def _end(self) -> None:
        self.has_ended = True
        if self._ended is not None:
            self._ended.set()
        if self.on_end is not None:
            self.on_end()

    async def end(self) -> None:
        """Wait until it has ended. If this is cancelled, the job ends first, then the cancellation is raised."""
        cancelled: asyncio.CancelledError | None = None
        while not self.has_ended:
            self._ended = self._ended or anyio.Event()
            try:
                with anyio.CancelScope(shield=True):
                    await self._ended.wait()
            except asyncio.CancelledError as error:  # a native Task.cancel() goes through shields
                cancelled = error
        if cancelled is not None:
            raise cancelled

    async def wait(self) -> T:
        """Wait until it has ended, and return what it returned or raise what it raised; only once. If this is
        cancelled, the job ends first, then the cancellation is raised, and the outcome is lost."""
        await self.end()
        succeeded, value = self._outcome
        if succeeded:
            return cast(T, value)
        try:
            raise value
        finally:
            self._outcome.clear()  # no reference cycle through the traceback


class Worker:
    """A daemon thread that runs one call at a time, in the order in which they were started, for one loop."""

    def __init__(self, name: str) -> None:
        self._loop = Loop()
        self._jobs: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._work, name=name, daemon=True)
        self._has_thread = True
        try:
            self._thread.start()
        except RuntimeError as error:
            if "shutdown" not in str(error):  # the system has no thread left: the caller must know
                raise
            self._has_thread = False

    def _work(self) -> None:
        block_signals()
        while (job := self._jobs.get()) is not None:
            job()

    def start(self, function: Callable[[*Arguments], T], *arguments: *Arguments) -> Job[T]:
        """Queue `function(*arguments)`. The caller must wait for its end, whatever happens."""
        job = Job(lambda: function(*arguments), self._loop)
        if self._has_thread:
            self._jobs.put(job._run)
        else:
            job._run()
        return job

    async def run(self, function: Callable[[*Arguments], T], *arguments: *Arguments) -> T:
        """Call `function(*arguments)` in the thread and return what it returns, or raise what it raises.

        If it is cancelled before the job is queued, there is no effect. If it is cancelled later, the job runs to its
        end first, then the cancellation is raised, and the job's outcome is lost.
        """
        await anyio.lowlevel.checkpoint_if_cancelled()  # no full checkpoint: waiting below is one
        return await self.start(function, *arguments).wait()

    def stop(self) -> None:
        """Let the thread end after the queued jobs. Does not wait for it."""
        self._jobs.put(None)


@asynccontextmanager
async def worker_thread(name: str) -> AsyncIterator[Worker]:
    """A worker that exists during a block."""
    worker = Worker(name)
    try:
        yield worker
    finally:
        worker.stop()
