"""A thread with an asyncio loop of its own, for the reader and the sinks of a recording with `thread=True`.

    the program's loop, or none --submit, run--> this thread's loop --future--> back

Two rules. **Signals are for the program's threads**: here all are blocked. **A thread that a sink blocks is waited for
no longer than its time-out**, and then left running: it is a daemon.
"""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import errno
import os
import threading
import time
from collections.abc import Callable, Coroutine
from concurrent.futures import Future, InvalidStateError
from typing import Any, Final, TypeVar

import anyio

from .._base.backend import c_module
from .loop import Loop
from .own_loop import ThreadLoop
from .own_threads import block_signals

T = TypeVar("T")

YIELD: Final = 1e-5
"""Seconds; in practice it takes some 60 µs."""


def yield_gil() -> None:
    """Let the reader's thread have the interpreter. CPython would do that by itself, but up to 5 ms later, when the
    last pages are full too. An event call waits like this at most once a page, and only while pages are scarce."""
    time.sleep(YIELD)


class ServiceThread:
    """A daemon thread with an asyncio loop."""

    def __init__(self) -> None:
        self._thread = threading.Thread(target=self._run, name="aiotrace", daemon=True)
        self._open: set[Future[Any]] = set()
        """Futures of what was submitted and has not ended."""

    def start(self) -> None:
        self._loop = ThreadLoop()  # not earlier: a recording that is never entered must not leave a loop open
        self._thread.start()

    def _run(self) -> None:
        block_signals()
        if c_module is not None:
            c_module.stall_ignore()
        try:
            self._loop.run_forever()
            left = asyncio.all_tasks(self._loop)  # none, unless a sink blocked the thread until now
            for task in left:
                task.cancel()
            if left:
                self._loop.run_until_complete(asyncio.wait(left))
        except OSError as error:
            if error.errno != errno.EBADF:
                raise  # else the program closed the descriptors: the trace ends here
        finally:
            with contextlib.suppress(OSError):
                self._loop.close()
            self._give_up()

    async def run(self, function: Callable[[], Coroutine[Any, Any, T]]) -> T:
        """Await something in the thread, from any loop. If this is cancelled, it is cancelled in the thread too."""
        loop = Loop()
        done = anyio.Event()
        future = self.submit(function)
        future.add_done_callback(lambda _: loop.run_soon(done.set))
        try:
            await done.wait()
        except BaseException:
            future.cancel()
            raise
        return future.result()

    def submit(self, function: Callable[[], Coroutine[Any, Any, T]]) -> Future[T]:
        """If the thread has ended, the future raises TimeoutError."""
        # In an empty context: if the caller's loop is trio, its context says so.
        run = asyncio.run_coroutine_threadsafe
        future: Future[T] = contextvars.Context().run(run, function(), self._loop) if self._is_reachable() else Future()
        self._open.add(future)
        future.add_done_callback(self._open.discard)
        if not self._is_reachable():
            self._give_up()
        return future

    def _is_reachable(self) -> bool:
        """Whether the thread runs and can be woken."""
        try:
            os.fstat(self._loop.fileno())
        except OSError:
            return False
        return self._thread.is_alive()

    def _give_up(self) -> None:
        """The loop has ended: let all open futures fail."""
        for future in tuple(self._open):
            with contextlib.suppress(InvalidStateError):
                future.set_exception(TimeoutError("the program closed the descriptors of the recording's thread"))

    def call(self, function: Callable[[], T], timeout: float) -> T:
        """Call a short synchronous function in the thread and wait for it.

        If a sink blocks the thread for `timeout` seconds, the function is called in the caller's thread instead, while
        the service's thread is blocked.
        """
        if not self._is_reachable():
            return function()
        future: Future[T] = Future()

        def call() -> None:
            if future.set_running_or_notify_cancel():
                try:
                    future.set_result(function())
                except BaseException as error:  # it is the caller's
                    future.set_exception(error)

        self._loop.call_soon_threadsafe(call)
        try:
            return future.result(timeout)
        except TimeoutError:
            if not future.cancel():  # it has just begun
                return future.result()
            return function()

    def stop(self, timeout: float) -> None:
        """End the thread. If a sink blocks it, it is left running, and ends with the program."""
        if self._is_reachable():
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join(timeout)
