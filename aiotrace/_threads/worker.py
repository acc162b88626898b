"""A thread of one's own for blocking calls: what file sinks use instead of an executor.

    async with worker_thread("file sink") as worker:
        await worker.run(os.writev, fd, buffers)

The law: **a job that was started has ended when `run` returns or raises**, or `Job.wait` or `Job.end`, whatever
cancels the caller (an anyio scope, a native `Task.cancel()`, twice). So no thread can read a page's memory after its
sink gave the page up.
Executors do not promise that, and fail when the interpreter is going down. A worker that is made only then, where
CPython 3.12 starts no thread any more, makes its calls in the thread of its loop.
"""

from __future__ import annotations

import asyncio
import queue
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any, Generic, TypeVar, TypeVarTuple, cast

import anyio

from .loop import Loop, block_signals

__all__ = ["Job", "Worker", "block_signals", "worker_thread"]

T = TypeVar("T")
Arguments = TypeVarTuple("Arguments")


class Job(Generic[T]):
    """A call that waits in line, runs, or has ended. For the loop that asked for it."""

    def __init__(self, call: Callable[[], T], loop: Loop) -> None:
        self._call = call
        self._loop = loop
        self.has_ended = False
        self._ended: anyio.Event | None = None
        self._outcome: list[Any] = []
        self.on_end: Callable[[], object] | None = None
        """Called in the loop when the job has ended, if that is still to come."""

    def _run(self) -> None:
        """In the thread."""
        try:
            self._outcome.extend((True, self._call()))
        except BaseException as error:  # whatever it is belongs to the caller, not to this thread
            self._outcome.extend((False, error))
        self._loop.run_soon(self._end)

    def _end(self) -> None:
        self.has_ended = True
        if self._ended is not None:
            self._ended.set()
        if self.on_end is not None:
            self.on_end()

    async def end(self) -> None:
        """Wait until it has ended. Cancelled: it ends first, then the cancellation is raised."""
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
        """Wait until it has ended, and return what it returned, or raise what it raised; once. Cancelled: it ends
        first, then the cancellation is raised, and the outcome is lost."""
        await self.end()
        succeeded, value = self._outcome
        if succeeded:
            return cast(T, value)
        try:
            raise value
        finally:
            self._outcome.clear()  # no cycle through the traceback


class Worker:
    """A daemon thread that runs one call at a time, in the order in which they were asked for, for one loop."""

    def __init__(self, name: str) -> None:
        self._loop = Loop()
        self._jobs: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._work, name=name, daemon=True)
        self._has_thread = True
        try:
            self._thread.start()
        except RuntimeError as error:
            if "shutdown" not in str(error):  # the system has no thread left: that is the caller's to know
                raise
            self._has_thread = False

    def _work(self) -> None:
        block_signals()
        while (job := self._jobs.get()) is not None:
            job()

    def start(self, function: Callable[[*Arguments], T], *arguments: *Arguments) -> Job[T]:
        """Put `function(*arguments)` in line. Whoever asks for it waits for its end, whatever happens."""
        job = Job(lambda: function(*arguments), self._loop)
        if self._has_thread:
            self._jobs.put(job._run)
        else:
            job._run()
        return job

    async def run(self, function: Callable[[*Arguments], T], *arguments: *Arguments) -> T:
        """Call `function(*arguments)` in the thread and return what it returns, or raise what it raises.

        Cancelled before the job began to wait in line: without effect. Cancelled later: the job runs to its end
        first, then the cancellation is raised, and the job's outcome is lost.
        """
        await anyio.lowlevel.checkpoint_if_cancelled()  # the loop goes on while it waits, below
        return await self.start(function, *arguments).wait()

    def stop(self) -> None:
        """Let the thread end after the jobs in line. Does not wait for it."""
        self._jobs.put(None)


@asynccontextmanager
async def worker_thread(name: str) -> AsyncIterator[Worker]:
    """A worker for the length of a block."""
    worker = Worker(name)
    try:
        yield worker
    finally:
        worker.stop()
