"""A thread of one's own for blocking calls: what file sinks use instead of an executor.

    async with worker_thread("file sink") as worker:
        await worker.run(os.writev, fd, buffers)

The law: **a job that was started has ended when `run` returns or raises**, whatever cancels the caller (an anyio
scope, a native `Task.cancel()`, twice). So no thread can read a page's memory after its sink gave the page up.
Executors do not promise that, and fail when the interpreter is going down.
"""

from __future__ import annotations

import asyncio
import queue
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any, TypeVar, TypeVarTuple, cast

import anyio

from ._loop import Loop, block_signals

__all__ = ["Worker", "worker_thread"]

T = TypeVar("T")
Arguments = TypeVarTuple("Arguments")


class Worker:
    """A daemon thread that runs one call at a time, in the order in which they were asked for."""

    def __init__(self, name: str) -> None:
        self._jobs: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._work, name=name, daemon=True)
        self._thread.start()

    def _work(self) -> None:
        block_signals()
        while (job := self._jobs.get()) is not None:
            job()

    async def run(self, function: Callable[[*Arguments], T], *arguments: *Arguments) -> T:
        """Call `function(*arguments)` in the thread and return what it returns, or raise what it raises.

        Cancelled before the job began to wait in line: without effect. Cancelled later: the job runs to its end
        first, then the cancellation is raised, and the job's outcome is lost.
        """
        await anyio.lowlevel.checkpoint_if_cancelled()  # the loop goes on while it waits, below
        loop = Loop()
        done = anyio.Event()
        outcome: list[Any] = []

        def job() -> None:
            try:
                outcome.extend((True, function(*arguments)))
            except BaseException as error:  # whatever it is belongs to the caller, not to this thread
                outcome.extend((False, error))
            loop.run_soon(done.set)

        self._jobs.put(job)
        cancelled: asyncio.CancelledError | None = None
        while not done.is_set():
            try:
                with anyio.CancelScope(shield=True):
                    await done.wait()
            except asyncio.CancelledError as error:  # a native Task.cancel() goes through shields
                cancelled = error
        if cancelled is not None:
            raise cancelled
        succeeded, value = outcome
        if succeeded:
            return cast(T, value)
        try:
            raise value
        finally:
            outcome.clear()  # no cycle through the traceback

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
