"""Streams into a trace.dat, which trace-cmd, KernelShark and `aiotrace report` open.

    pages --> a batch of up to 2 MiB --> one hop to the sink's thread --> written and journalled --> acknowledged

It takes pages in parts: what a quiet program did is in the files after `flush_interval`, and a kill does not take it.

A page or a part is acknowledged when it is in the trace: written, and its frame in the journal; with `fsync=True` also
on the disk. Until then it will be offered again, so whatever fails (a full disk, an I/O error, a cancellation) the sink
can be called again and goes on where it was; what is in the trace already is not written twice.

How the files lie is the business of `aiotrace.formats.TraceStore`; this module knows when to begin, to rotate and to
close one.
"""

from __future__ import annotations

import errno
import os
import re
import sys
import warnings
from collections import deque
from collections.abc import Callable
from types import SimpleNamespace
from typing import Final, NamedTuple
from urllib.parse import parse_qsl

import anyio

from aiotrace import ConfigurationError
from aiotrace.abc import Page, PageStream
from aiotrace.formats import TraceStore, remove
from aiotrace.worker import Job, Worker, worker_thread

BATCH_BYTES: Final = 2 << 20
"""A hop to the thread costs some 100 µs, and several times that while a program keeps the interpreter busy: with
batches of this size it is a small part of the writing."""
CLOSE_ATTEMPTS: Final = 10
"""How often a file that cannot be closed is tried before it is set aside: with the pauses between them some 4 s."""
_NO_ROOM: Final = frozenset({errno.ENOSPC, errno.EDQUOT})
_MAGIC: Final = b"\x17\x08\x44tracing"


FLIGHTS: Final = 2
"""Batches that the thread has, at most: one that it writes and one that waits."""


class _Flight(NamedTuple):
    """A batch that is on its way into the trace."""

    pages: list[Page]
    job: Job[None]


class FileSink:
    """A sink that writes a trace.dat.

    While it is called, it holds PATH, PATH.journal and, with several writers, PATH.cpuN. At the end of the stream it
    makes them one file. If the program is killed, or is not given the time for that, `aiotrace restore PATH` does it.

    A rotated file is named after PATH and a number that counts up: trace.dat, trace.1.dat (the oldest), trace.2.dat.
    """

    def __init__(
        self,
        path: str | bytes | os.PathLike[str] | os.PathLike[bytes],
        *,
        max_size: int | None = None,
        max_age: float | None = None,
        keep: int | None = None,
        overwrite: bool = False,
        fsync: bool = False,
    ) -> None:
        """
        Args:
            path: The file. Its folder must exist.
            max_size: Bytes of pages after which the file is rotated; the definitions come on top.
            max_age: Seconds after its first page that a file is rotated.
            keep: How many rotated files are kept: the oldest are deleted, those of earlier runs too. None: all.
            overwrite: Delete a trace that has this name, finished or not. Without it, that is an error.
            fsync: Acknowledge pages when they are on the disk, not only written.

        Raises:
            ConfigurationError: An argument is out of range.
        """
        if max_size is not None and max_size <= 0:
            raise ConfigurationError(f"max_size={max_size}: bytes, more than 0, or None for no limit")
        if max_age is not None and not max_age > 0:
            raise ConfigurationError(f"max_age={max_age}: seconds, more than 0, or None for no limit")
        if keep is not None and keep < 0:
            raise ConfigurationError(f"keep={keep}: a number of rotated files, 0 or more, or None for all")
        if keep is not None and max_size is None and max_age is None:
            raise ConfigurationError(f"keep={keep} needs max_size or max_age: without them no file is rotated")
        self._given = os.fsdecode(path)
        self.path = os.path.abspath(self._given) if self._given else ""
        """Absolute: the program may change its folder."""
        self._max_size = max_size
        self._max_age = max_age
        self._keep = keep
        self._overwrite = overwrite
        self._fsync = fsync
        self._store: TraceStore | None = None
        self._stored: dict[int, tuple[int, int]] = {}
        self._begun = 0.0
        self._failures = 0
        """How often the current file could not be closed."""
        self._pid = os.getpid()
        self._in_use = False
        self._flights: deque[_Flight] = deque()
        self._failed = False
        """A batch could not be written, and nobody has heard of it yet."""

    @classmethod
    def from_url(cls, url: str) -> FileSink:
        """`file:trace.dat`, `file:/var/log/trace.dat?max_size=1000000&keep=3`: the arguments are those of the class.

        Raises:
            ConfigurationError: It is no such URL, or an argument is unknown or out of range.
        """
        path, _, query = url.partition(":")[2].partition("?")
        if not path:
            raise ConfigurationError(f"{url!r} names no file: file:trace.dat or file:/folder/trace.dat")
        options: dict[str, int | float | bool] = {}
        for key, text in parse_qsl(query, keep_blank_values=True):
            if key not in _URL_OPTIONS:
                raise ConfigurationError(f"{key!r} in {url!r} is unknown; known: {', '.join(sorted(_URL_OPTIONS))}")
            read, what = _URL_OPTIONS[key]
            try:
                options[key] = read(text)
            except (ValueError, KeyError):
                raise ConfigurationError(f"{key}={text!r} in {url!r}: {what} was expected") from None
        return cls(path, **options)  # type: ignore[arg-type]  # each has the type that its name says

    def __repr__(self) -> str:
        return f"FileSink({self._given!r})"

    async def __call__(self, stream: PageStream) -> None:
        """Write the stream, to its end; then make the trace.dat.

        Raises:
            FileExistsError: A trace, or an unfinished one, has this name; the message says what would do.
            OSError: What could not be written is not acknowledged; call again with a new stream to go on.
            ConfigurationError: `max_size` has no room for a page, an unfinished trace is of another stream, or this
                sink is writing another.
        """
        if self._in_use:
            raise ConfigurationError(f"{self!r} is in use: a FileSink writes one stream at a time")
        self._in_use = True
        try:
            await self._write_all(stream)
        finally:
            self._in_use = False

    async def _write_all(self, stream: PageStream) -> None:
        self._pid = os.getpid()
        stream.accept_prefixes()
        async with worker_thread("aiotrace file sink") as worker:
            try:
                await worker.run(self._begin, stream)
                await self._write_stream(worker, stream)
                if self._is_ours():
                    await self._close(worker, stream)
            except BaseException as error:
                if not isinstance(error, Exception):
                    self._leave()
                raise
            finally:
                if self._store is not None and self._is_ours():
                    self._store.close()

    def _is_ours(self) -> bool:
        """False in a forked child: the files are the parent's, and the thread is not there."""
        return os.getpid() == self._pid

    def _begin(self, stream: PageStream) -> None:
        """Create the files, or go on with those that a failed call left. In the thread."""
        info = stream.info
        if self._max_size is not None and self._max_size < info.page_size:
            raise ConfigurationError(f"max_size={self._max_size} has no room for a page of {info.page_size} bytes")
        if self._store is not None:
            if self._store.info.stream_id != info.stream_id:
                raise ConfigurationError(f"{self.path} of another recording is unfinished: use a new FileSink")
            self._store.open()
            return
        if self._overwrite:
            remove(self.path)
        self._create(stream)

    def _create(self, stream: PageStream) -> None:
        self._store = TraceStore(self.path, stream.info, fsync=self._fsync, stored=self._stored)

    async def _write_stream(self, worker: Worker, stream: PageStream) -> None:
        """To its end. What is in line in the thread has ended when this returns or raises."""
        self._failed = False
        flights = self._flights = deque[_Flight]()
        try:
            while (batch := await self._next_batch(stream)) is None or batch:
                if batch is not None:
                    await self._write(worker, stream, batch)
                elif flights and flights[0].job.has_ended:
                    await self._land(worker, stream)
                else:
                    await self._land_all(worker, stream)
                    await self._rotate(worker, stream)
            await self._land_all(worker, stream)
        finally:
            while flights:
                await flights[0].job.end()
                flights.popleft()

    async def _next_batch(self, stream: PageStream) -> list[Page] | None:
        """What is to be written; empty at the end of the stream, None if a batch has been written before, or the
        current file gets too old."""
        pages = self._batch_pages(stream)
        if not self._flights:
            with anyio.move_on_after(self._time_left()):
                return await stream.next_batch(pages)
            return None
        first = self._flights[0].job
        if first.has_ended:
            return None
        with anyio.CancelScope() as scope:
            first.on_end = scope.cancel
            try:
                return await stream.next_batch(pages)
            finally:
                first.on_end = None
        return None

    def _batch_pages(self, stream: PageStream) -> int:
        """How many pages are a whole batch: BATCH_BYTES, and one less where a file begins, so that batches end with a
        multiple of that in it: the kernel takes larger pieces of its memory for them then."""
        pages = max(1, BATCH_BYTES // stream.info.page_size)
        begins = not self._flights and (self._store is None or not self._store.pages_count)
        return max(1, pages - begins)

    def _time_left(self) -> float | None:
        """Seconds until the current file is too old; None if it has no page yet, or may get as old as it likes."""
        if self._max_age is None or self._store is None or not self._store.pages_count:
            return None
        return max(0.0, self._begun + self._max_age - anyio.current_time())

    async def _write(self, worker: Worker, stream: PageStream, batch: list[Page]) -> None:
        """Have a batch written into the trace, or into several. When this returns a whole one may still be on its way,
        so that the thread has always something to do; not where the next depends on how large or how old the file is
        then, nor where there are few pages: each batch costs the same steps, so more of them gather meanwhile."""
        rotates = self._max_size is not None or self._max_age is not None
        while batch:
            fitting = self._fitting(batch)
            if not fitting:
                if self._flights:  # what failed may be one of these, and is told by it
                    await self._land_all(worker, stream)
                else:
                    await self._rotate(worker, stream)
                continue
            pages, batch = batch[:fitting], batch[fitting:]
            is_whole = len(pages) >= self._batch_pages(stream)
            self._flights.append(_Flight(pages, worker.start(self._write_pages, pages, stream)))
            while len(self._flights) >= (FLIGHTS if is_whole and not rotates else 1):
                await self._land(worker, stream)

    def _write_pages(self, pages: list[Page], stream: PageStream) -> None:
        """In the thread. After a failure the batches behind it are left alone: they come later."""
        if self._store is None or self._failed:
            return
        try:
            self._store.write(pages, stream.definitions)
        except BaseException:
            self._failed = True
            raise

    async def _land_all(self, worker: Worker, stream: PageStream) -> None:
        while self._flights:
            await self._land(worker, stream)

    async def _land(self, worker: Worker, stream: PageStream) -> None:
        """Wait until the first batch is written, and acknowledge it."""
        first = self._flights[0]
        try:
            await first.job.wait()
        except OSError:
            others = list(self._flights)[1:]
            for other in others:
                await other.job.end()
            self._flights.clear()
            self._failed = False
            if self._store is None or not self._store.sync_failed:
                self._acknowledge_stored(stream, first.pages)
                raise
            # What is on the disk is unknown, and a second fsync would say that all is well.
            await self._rotate(worker, stream)
            for each in (first, *others):
                await worker.run(self._write_pages, each.pages, stream)
                self._acknowledge_stored(stream, each.pages)
            return
        self._flights.popleft()
        stream.acknowledge_all(first.pages)

    def _acknowledge_stored(self, stream: PageStream, pages: list[Page]) -> None:
        """Those that are in the trace: after a failure the first ones."""
        if (store := self._store) is not None:
            stream.acknowledge_all([page for page in pages if store.has(page)])

    def _fitting(self, pages: list[Page]) -> int:
        """How many of the next pages go into the current file."""
        store = self._store
        if store is None:  # a rotation was interrupted between two files
            return 0
        if store.closing or store.sync_failed:
            return 0
        if not store.pages_count:
            self._begun = anyio.current_time()
        elif self._time_left() == 0:
            return 0
        return len(pages) if self._max_size is None else store.fitting(pages, self._max_size)

    # --- rotation and end -----------------------------------------------------------------------

    async def _rotate(self, worker: Worker, stream: PageStream) -> None:
        """Finish the current file, give it its number, begin the next. What fails or is cancelled in between goes on
        there at the next call."""
        if (store := self._store) is not None:
            try:
                if store.sync_failed:
                    await worker.run(store.discard_unsynced)
                await self._finish(worker, store, stream, last=False)
            except OSError as error:
                self._failures += error.errno not in _NO_ROOM
                if self._failures < CLOSE_ATTEMPTS:
                    raise
                await worker.run(self._set_aside, store, error)
            else:
                await worker.run(self._retire, store)
        await worker.run(self._create, stream)

    async def _close(self, worker: Worker, stream: PageStream) -> None:
        if self._store is not None:
            await self._finish(worker, self._store, stream, last=True)
        self._store, self._stored = None, {}

    async def _finish(self, worker: Worker, store: TraceStore, stream: PageStream, *, last: bool) -> None:
        """Make the trace.dat, a step at a time, so that a cancellation is heard between two."""
        await worker.run(store.end, stream.definitions, stream.ledger if last else None)
        steps = store.finish()
        while await worker.run(next, steps, None) is not None:
            pass

    def _retire(self, store: TraceStore) -> None:
        """Give the finished file its number, and delete those that are too many. In the thread."""
        os.rename(self.path, self._next_name())
        self._forget(store)

    def _set_aside(self, store: TraceStore, error: OSError) -> None:
        """Leave a file that cannot be closed under its number, for `aiotrace restore`. In the thread."""
        name = self._next_name()
        store.set_aside(name)
        self._forget(store)
        _warn(f"{name} could not be closed ({error}): `aiotrace restore {name}` makes it a trace.dat")

    def _next_name(self) -> str:
        number = max(self._rotated(), default=0) + 1
        stem, suffix = os.path.splitext(self.path)
        name = f"{stem}.{number}{suffix}"
        if os.path.lexists(name):
            raise FileExistsError(f"{name} is in the way: a rotated trace was to get this name")
        return name

    def _forget(self, store: TraceStore) -> None:
        """The file has its number: the next begins, and the oldest may be too many."""
        self._store, self._stored, self._failures = None, store.stored, 0
        if self._keep is not None:
            rotated = self._rotated()
            for old in sorted(rotated)[: max(0, len(rotated) - self._keep)]:
                remove(rotated[old])

    def _rotated(self) -> dict[int, str]:
        """The rotated files that are there. A file of another kind that has such a name is not ours to count."""
        folder, name = os.path.split(self.path)
        stem, suffix = os.path.splitext(name)
        pattern = re.compile(re.escape(stem) + r"\.([1-9][0-9]{0,17})" + re.escape(suffix))
        found = {}
        for entry in os.listdir(folder or "."):
            match = pattern.fullmatch(entry)
            if match and _is_trace(path := os.path.join(folder, entry)):
                found[int(match[1])] = path
        return found

    def _leave(self) -> None:
        """The sink was cancelled. Files without a page are nothing to restore: a recording that was not entered after
        all leaves none."""
        store = self._store
        if store is None or not self._is_ours():
            return
        if not store.pages_count and not store.stored:
            self._store = None
            store.close()
            try:
                remove(self.path)
            except OSError as error:
                _warn(f"{self.path}, which is empty, could not be removed: {error}")
            return
        _warn(f"{self.path} is unfinished: `aiotrace restore {self.path}` makes it a trace.dat")


def _warn(message: str) -> None:
    """Also where warnings are errors it must not take the place of what is going on."""
    try:
        warnings.warn(message, RuntimeWarning, stacklevel=4)
    except RuntimeWarning as warning:
        details = {"exc_type": RuntimeWarning, "exc_value": warning, "exc_traceback": None}
        sys.unraisablehook(SimpleNamespace(**details, err_msg=None, object=None))


def _is_trace(path: str) -> bool:
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        return os.read(fd, len(_MAGIC)) == _MAGIC
    except OSError:
        return False
    finally:
        os.close(fd)


def _flag(text: str) -> bool:
    return {"1": True, "true": True, "yes": True, "": True, "0": False, "false": False, "no": False}[text.lower()]


_URL_OPTIONS: Final[dict[str, tuple[Callable[[str], int | float | bool], str]]] = {
    "max_size": (int, "number"),
    "max_age": (float, "number"),
    "keep": (int, "number"),
    "overwrite": (_flag, "yes or no"),
    "fsync": (_flag, "yes or no"),
}
"""How each is read, and what it has to be."""
