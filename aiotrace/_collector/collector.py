"""The collector: listens, serves every connection, and ends when `stop` is called.

    listeners --accept--> Connection (one task group each) --> CollectorState: streams, threads, memory
                            one that fails ends alone; the others are not affected

It runs in a detached task, outside of the program's task groups, so that `collect` works wherever an async context
manager does, and does not raise into the program.
"""

from __future__ import annotations

import errno
import socket
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import anyio
import anyio.abc

from .._threads.loop import Loop, Task
from .access import Access
from .connection import Connection, Show
from .listeners import Listener, peer_of
from .state import LOG, CollectorState
from .transport import TlsTransport, Transport

__all__ = ["CLIENTS_MAX", "Collector", "CollectorStatistics"]

CLIENTS_MAX: Final = 1024
"""Connections at once; each costs about 30 KiB and its credit."""
CLIENTS_PER_PEER_MAX: Final = 512
"""Connections at once from one address, or of one user."""
STRANGERS_PER_PEER_MAX: Final = 256
"""How many of these may not have sent their hello yet."""
ACCEPT_PAUSE: Final = 0.1
"""Seconds to wait when the process has no file descriptor left."""
END_TIMEOUT: Final = 10.0
"""Seconds for storing what has arrived and closing traces. Traces that are not closed by then can be restored."""
_NO_DESCRIPTORS: Final = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM})


@dataclass(frozen=True, slots=True)
class CollectorStatistics:
    """What a collector has done so far."""

    clients: int
    """Connections at present that have a stream."""
    connections: int
    """Connections that were accepted."""
    connections_refused: int
    """Not let in: too many, no token, a wrong one, no TLS, another user."""
    connections_broken: int
    """Ended because the peer violated the protocol, or was silent."""
    pages: int
    """Pages and parts of pages that were received."""
    bytes: int
    """Bytes of their records."""
    events: int
    """Events on them."""
    pages_acknowledged: int
    pages_duplicate: int
    """Received again, and already stored."""
    events_lost: int
    """Reported by producers: lost before a page that was received, or after the last one."""
    streams_ended: int
    failures: int
    """Failed writes and fsyncs; all were retried."""
    stalled: str
    """Why nothing is acknowledged at present; "" if it is."""
    disk_used: int
    """Bytes that the folder takes."""
    disk_budget: int | None
    traces_deleted: int
    """Deleted to stay within the budget."""


class Collector:
    """A running collector; made by `aiotrace.collect`."""

    def __init__(
        self,
        state: CollectorState,
        access: Access,
        listeners: Sequence[Listener],
        *,
        commit_interval: float,
        show: Show | None = None,
    ) -> None:
        self.addresses = tuple(listener.address for listener in listeners)
        """Where it listens, with the ports that the system chose."""
        self._state = state
        self._access = access
        self._listeners = listeners
        self._commit_interval = commit_interval
        self._show = show
        self._connections: set[Connection] = set()
        self._ending = False
        self._tasks: anyio.abc.TaskGroup
        self._end = anyio.Event()
        self._all_gone = anyio.Event()
        self._task: Task | None = None
        self.failure: BaseException | None = None
        """The error that ended it, if any."""
        self.unfinished = 0
        """Streams whose traces could not be closed at the end: the next collector resumes them, or `restore` finishes
        them."""

    def statistics(self) -> CollectorStatistics:
        """The statistics so far; disk usage is up to a second old."""
        counts, folder = self._state.counts, self._state.folder
        return CollectorStatistics(
            clients=sum(connection.is_greeted for connection in self._connections),
            connections=counts.connections,
            connections_refused=counts.refused,
            connections_broken=counts.broken,
            pages=counts.pages,
            bytes=counts.bytes,
            events=counts.events,
            pages_acknowledged=counts.acknowledged,
            pages_duplicate=counts.duplicates,
            events_lost=counts.lost,
            streams_ended=counts.ended,
            failures=counts.failures,
            stalled=self._state.stalled,
            disk_used=folder.used,
            disk_budget=folder.budget,
            traces_deleted=folder.deleted,
        )

    # --- its life -------------------------------------------------------------------------------

    def start(self) -> None:
        """Start the task, in the running loop."""
        self._task = Loop().spawn(self._run, "aiotrace collector")

    async def stop(self) -> None:
        """Stop reading; store and acknowledge what has arrived; close the traces. Returns when that is done, or after
        END_TIMEOUT seconds. If cancelled, the traces are left unfinished."""
        self._ending = True
        self._end.set()
        if self._task is not None:
            try:
                await self._task.wait()
            finally:
                self._task.cancel()
        for listener in self._listeners:
            listener.close()
        self.unfinished = len(self._state.folder.unfinished())

    async def wait(self) -> None:
        """Wait until it has ended, by `stop` or by a failure."""
        if self._task is not None:
            await self._task.wait()

    async def _run(self) -> None:
        """Serve until `stop`. Raises only a cancellation."""
        try:
            async with anyio.create_task_group() as self._tasks:
                self._tasks.start_soon(self._state.close_traces)
                self._tasks.start_soon(self._run_periodically)
                for listener in self._listeners:
                    self._tasks.start_soon(self._accept, listener)
                await self._end.wait()
                await self._finish()
                self._tasks.cancel_scope.cancel()
        except Exception as error:
            self.failure = error
            LOG.exception("the collector failed")

    async def _finish(self) -> None:
        for connection in list(self._connections):
            connection.stop()
        with anyio.move_on_after(END_TIMEOUT):
            if self._connections:
                self._all_gone = anyio.Event()
                await self._all_gone.wait()
            await self._state.leave_all()

    async def _run_periodically(self) -> None:
        """Measure the disk and rotate old traces, once a second."""
        while True:
            try:
                await self._state.run(self._state.folder.scan)
            except OSError as error:
                self._state.write_failed(error)
            await self._state.rotate_old()
            await anyio.sleep(1)

    # --- connections ----------------------------------------------------------------------------

    async def _accept(self, listener: Listener) -> None:
        while not self._ending:
            try:
                sock, _ = listener.socket.accept()
            except BlockingIOError:
                await anyio.wait_readable(listener.socket)
                continue
            except OSError as error:
                if error.errno in _NO_DESCRIPTORS:  # new ones wait in the kernel's queue
                    LOG.warning("no connection can be taken at present: %s", error)
                    await anyio.sleep(ACCEPT_PAUSE)
                continue
            self._take(sock, listener)

    def _take(self, sock: socket.socket, listener: Listener) -> None:
        """Serve a connection, or close it."""
        counts = self._state.counts
        counts.connections += 1
        try:
            peer = peer_of(sock)
            if (reason := self._refusal(peer)) is not None:
                raise PermissionError(errno.EACCES, reason)
            tls = self._access.tls if listener.is_tls else None
            transport = TlsTransport(sock, tls) if tls is not None else Transport(sock)
        except OSError as error:
            counts.refused += 1
            LOG.warning("a connection was refused: %s", error.strerror or error)
            sock.close()
            return
        connection = Connection(
            self._state,
            self._access,
            listener,
            transport,
            peer,
            commit_interval=self._commit_interval,
            show=self._show,
        )
        self._connections.add(connection)
        self._tasks.start_soon(self._serve, connection)

    def _refusal(self, peer: str) -> str | None:
        """Why this peer may not have one more connection, or None."""
        if len(self._connections) >= CLIENTS_MAX:
            return f"{CLIENTS_MAX} connections are open"
        from_peer = [connection for connection in self._connections if connection.peer == peer]
        if len(from_peer) >= CLIENTS_PER_PEER_MAX:
            return f"{CLIENTS_PER_PEER_MAX} connections from {peer} are open"
        if sum(not connection.is_greeted for connection in from_peer) >= STRANGERS_PER_PEER_MAX:
            return f"{STRANGERS_PER_PEER_MAX} connections from {peer} have not said who they are"
        return None

    async def _serve(self, connection: Connection) -> None:
        try:
            await connection.run()
        except Exception:  # a bug in aiotrace, with this client's input: the others continue
            LOG.exception("%s: the connection failed", connection.name)
        finally:
            self._connections.discard(connection)
            if not self._connections:
                self._all_gone.set()
