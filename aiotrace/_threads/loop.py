"""The program's event loop: waking it from any thread, and tasks that belong to no task group.

    any thread, a signal handler ---- Waker.wake() ----> the loop's own thread: an anyio.Event is set

Two rules. **Only the loop's own thread sets its events**: setting an `anyio.Event` from another thread wakes no task,
so every wake goes through the loop's token. **aiotrace has no task group or cancel scope open across the program's
code**: its tasks are detached, so their exceptions cannot cancel the program, and the program's are not wrapped.

This module knows no page and no sink.
"""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
from collections.abc import Awaitable, Callable
from typing import Any, Final

import anyio
from anyio.lowlevel import current_token

Wrap = Callable[[Callable[[], Awaitable[None]]], Callable[[], Awaitable[None]]]

SWEEPS_AT_ONCE: Final = 3
SWEEP_PAUSE: Final = 0.5
"""Seconds before a task that was cancelled more often than that is started again."""


class Loop:
    """The loop that is running when this is made.

    Args:
        wrap: Is given each task's function and returns what to run in its place, to measure it.

    Raises:
        anyio.NoEventLoopError: No asyncio or trio loop runs in this thread.
    """

    def __init__(self, wrap: Wrap | None = None) -> None:
        self._native: Any = current_token().native_token
        self.is_asyncio = isinstance(self._native, asyncio.AbstractEventLoop)
        self._wrap = wrap

    def run_soon(self, function: Callable[[], object]) -> bool:
        """Call `function` in the loop, soon. From any thread or signal handler.

        Returns:
            False if the loop has ended: then it is never called.
        """
        try:
            if self.is_asyncio:
                self._native.call_soon_threadsafe(function)
            else:
                self._native.run_sync_soon(function)
        except RuntimeError:  # asyncio: the loop is closed; trio.RunFinishedError is a RuntimeError too
            return False
        return True

    def spawn(self, function: Callable[[], Awaitable[None]], name: str) -> Task:
        """Start a detached task, from within the loop. `function` must not raise anything but a cancellation."""
        return Task(self, function if self._wrap is None else self._wrap(function), name)


class Task:
    """A task in no task group. Its context is empty: it has no context variable of the program.

    If the program cancels every task of the loop (a common way to shut down) and then continues, the task starts again.
    If the whole loop is being cancelled it ends, and `ensure` starts it again if it is needed.
    """

    def __init__(self, loop: Loop, function: Callable[[], Awaitable[None]], name: str) -> None:
        self._function = function
        self._name = name
        self._loop = loop
        self._done = anyio.Event()
        self._cancelled = False
        self._timer: asyncio.TimerHandle | None = None
        self.sweeps = 0
        """How often code other than `cancel` cancelled it."""
        self._start()

    def _start(self) -> None:
        if self._loop.is_asyncio:
            self._task: asyncio.Task[None] = asyncio.get_running_loop().create_task(
                self._run_asyncio(), name=self._name, context=contextvars.Context()
            )
        else:
            import trio

            self._scope = trio.CancelScope()
            trio.lowlevel.spawn_system_task(self._run_trio, name=self._name, context=contextvars.Context())

    @property
    def done(self) -> bool:
        return self._done.is_set()

    def ensure(self) -> None:
        """Start it again if it was cancelled with the whole loop."""
        if self.done and self.sweeps and not self._cancelled and self._loop.is_asyncio and self._task.cancelled():
            self._done = anyio.Event()
            self._start()

    def cancel(self) -> None:
        self._cancelled = True
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
            self._done.set()
        elif self._loop.is_asyncio:
            with contextlib.suppress(RuntimeError):  # the loop is closed, because its descriptors were: it is over
                self._task.cancel()
        else:
            self._scope.cancel()

    async def wait(self) -> None:
        await self._done.wait()

    async def _run_asyncio(self) -> None:
        restarted = False
        try:
            await self._function()
        except asyncio.CancelledError:
            if not self._cancelled:
                self.sweeps += 1
                if _some_task_continues():
                    restarted = True
                    self._start_again()
            raise
        finally:
            if not restarted:
                self._done.set()

    def _start_again(self) -> None:
        """At once, or after a pause if it was cancelled often: a sink that raises CancelledError by itself must not
        keep the loop busy."""
        if self.sweeps < SWEEPS_AT_ONCE:
            self._start()
            return

        def start() -> None:
            self._timer = None
            self._start()

        self._timer = asyncio.get_running_loop().call_later(SWEEP_PAUSE, start)

    async def _run_trio(self) -> None:
        try:
            with self._scope:
                await self._function()
        finally:
            self._done.set()


def _some_task_continues() -> bool:
    """Whether some task of the running asyncio loop is not being cancelled."""
    return any(not task.cancelling() for task in asyncio.all_tasks())


class Waker:
    """Wakes one task that waits in `wait`, from any thread. Wakes before `wait` are kept, as one."""

    def __init__(self, loop: Loop) -> None:
        self._loop = loop
        self._event = anyio.Event()
        self._pending = False

    def wake(self) -> bool:
        """Wake the waiter, now or when it next waits. Returns False if the loop has ended."""
        if self._pending:
            return True
        self._pending = True
        try:
            return self._loop.run_soon(self._set)
        except BaseException:  # Ctrl-C in the thread that was about to wake it: the next wake must try again
            self._pending = False
            raise

    def _set(self) -> None:
        self._pending = False
        self._event.set()

    async def wait(self) -> None:
        """Wait for a wake since the last `wait` returned. If this is cancelled, a wake is kept."""
        await self._event.wait()
        self._event = anyio.Event()
