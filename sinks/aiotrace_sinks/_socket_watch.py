"""Hearing of a socket that can be read or written, in the loop that runs.

    async with watching(sock, on_readable, on_writable) as watch: ...

Both are called by asyncio's loop itself, as its own transports are: a task that waits for each readiness anew costs
four times as much, and as much as it costs to send a page of 64 KiB. On trio nothing but tasks can wait: tasks do.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Protocol

import anyio
from anyio.lowlevel import checkpoint_if_cancelled


class Watch(Protocol):
    """While it is open, `on_readable` is called whenever there is something to read."""

    def want_writable(self, wanted: bool) -> None:
        """Whether `on_writable` is to be called, each time that the socket takes bytes."""


@asynccontextmanager
async def watching(
    sock: socket.socket, on_readable: Callable[[], object], on_writable: Callable[[], object]
) -> AsyncIterator[Watch]:
    """For the length of a block. What is called must not block, nor raise."""
    try:
        loop = asyncio.get_running_loop()
    except RuntimeError:
        async with anyio.create_task_group() as group:
            tasks = _Tasks(sock, on_readable, on_writable)
            group.start_soon(tasks.read)
            group.start_soon(tasks.write)
            yield tasks
            group.cancel_scope.cancel()
        return
    callbacks = _Callbacks(loop, sock.fileno(), on_writable)
    loop.add_reader(callbacks.fd, on_readable)
    try:
        yield callbacks
    finally:
        loop.remove_reader(callbacks.fd)
        callbacks.want_writable(False)


class _Callbacks:
    """asyncio, and uvloop."""

    def __init__(self, loop: asyncio.AbstractEventLoop, fd: int, on_writable: Callable[[], object]) -> None:
        self._loop = loop
        self.fd = fd
        self._on_writable = on_writable
        self._wanted = False

    def want_writable(self, wanted: bool) -> None:
        if wanted is self._wanted:
            return
        self._wanted = wanted
        if wanted:
            self._loop.add_writer(self.fd, self._on_writable)
        else:
            self._loop.remove_writer(self.fd)


class _Tasks:
    """trio."""

    def __init__(
        self, sock: socket.socket, on_readable: Callable[[], object], on_writable: Callable[[], object]
    ) -> None:
        self._sock = sock
        self._on_readable = on_readable
        self._on_writable = on_writable
        self._wanted = anyio.Event()

    def want_writable(self, wanted: bool) -> None:
        if wanted:
            self._wanted.set()
        elif self._wanted.is_set():
            self._wanted = anyio.Event()

    async def read(self) -> None:
        while True:
            self._on_readable()
            await checkpoint_if_cancelled()
            await anyio.wait_readable(self._sock)

    async def write(self) -> None:
        while True:
            await self._wanted.wait()
            await anyio.wait_writable(self._sock)
            self._on_writable()
