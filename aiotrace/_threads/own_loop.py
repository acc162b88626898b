"""The asyncio loop of aiotrace's own thread, which shares the interpreter with a program that may be busy.

    a writer's thread, a sink's thread --alarm--> epoll --> callbacks, callbacks, callbacks --> epoll

**The GIL is released once per wake, not in each step.** A thread that releases it while another one is busy gets it
back up to 5 ms later, and both find their caches cold: on a busy machine that costs more than the work in between.
asyncio's own loop releases it in each poll, even while callbacks are ready, and to read what woke it. This one polls
when no callback is ready, or after `STEPS_MAX` steps or `STEPS_TIME`; its alarm is edge-triggered, so nothing is read.

It is an asyncio loop whatever policy the program has, and never in debug mode: slow callbacks of aiotrace do not belong
in the program's log. Its file descriptors have high numbers (`_base/high_fds.py`).
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import select
import selectors
from collections.abc import Callable
from time import monotonic
from typing import Any, Final

from .._base.backend import c_module
from .._base.high_fds import out_of_the_way

STEPS_MAX: Final = 16
"""Steps of the loop between two polls."""
STEPS_TIME: Final = 0.02
"""Seconds between two polls, if steps are long: an event on a descriptor waits for one busy sink, not for 16."""

_ring: Final = getattr(c_module, "ring_alarm", None) or (lambda fd: os.eventfd_write(fd, 1))


class _Alarm:
    """An eventfd. Closed with its last reference, so no thread writes to a number that is another file by then."""

    __slots__ = ("fd",)

    def __init__(self) -> None:
        self.fd = out_of_the_way(os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK))

    def __del__(self, close: Callable[[int], None] = os.close) -> None:
        try:
            close(self.fd)
        except OSError:  # the program closed it
            pass


class _Selector(selectors.EpollSelector):
    """epoll, and the alarm that ends its wait."""

    def __init__(self) -> None:
        super().__init__()
        own: Any = self
        epoll = own._selector
        own._selector = select.epoll.fromfd(out_of_the_way(os.dup(epoll.fileno())))
        epoll.close()
        self.alarm: _Alarm | None = _Alarm()
        own._selector.register(
            self.alarm.fd, select.EPOLLIN | select.EPOLLET
        )  # without a key: it is not a file of the loop
        self._steps = 0
        self._polled = 0.0

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        if timeout is not None and timeout <= 0 and self._steps < STEPS_MAX and monotonic() < self._polled + STEPS_TIME:
            self._steps += 1
            return []
        self._steps = 0
        try:
            return super().select(timeout)
        finally:
            self._polled = monotonic()

    def close(self) -> None:
        super().close()
        self.alarm = None


def _name(loop: asyncio.AbstractEventLoop, coroutine: Any, **options: Any) -> asyncio.Task[Any]:
    """A task factory. Names like "Task-1" are numbered process-wide: aiotrace's tasks must not use up numbers."""
    return asyncio.Task(coroutine, loop=loop, **{**options, "name": options.get("name") or "aiotrace"})


class ThreadLoop(asyncio.SelectorEventLoop):
    def __init__(self) -> None:
        self._epoll = _Selector()
        super().__init__(self._epoll)
        self.set_debug(False)
        self.set_task_factory(_name)

    def fileno(self) -> int:
        """The descriptor that wakes it; -1 when it is closed."""
        alarm = self._epoll.alarm
        return alarm.fd if alarm is not None else -1

    # asyncio's hooks for waking a loop: its own loops use a pair of sockets.

    def _make_self_pipe(self) -> None:
        pass

    def _close_self_pipe(self) -> None:
        pass

    def _write_to_self(self) -> None:
        alarm = self._epoll.alarm
        if alarm is not None:
            with contextlib.suppress(OSError):  # the program closed it
                _ring(alarm.fd)
