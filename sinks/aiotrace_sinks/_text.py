"""Prints events, one a line, soon after they happen: what trace_pipe is to the kernel.

    pages --> decoded, in one thread --> text --> printed, in another --> acknowledged

A terminal or a pipe may block for ever. So the thread that prints holds no page, and is left behind when the sink is
cancelled; the one that decodes is waited for.
"""

from __future__ import annotations

import os
import queue
import select
import sys
import threading
from collections.abc import Callable
from typing import TextIO

import anyio
from anyio.lowlevel import current_token

from aiotrace.abc import Page, PageStream
from aiotrace.decode import Decoder, format_line
from aiotrace.worker import worker_thread


class TextSink:
    """A sink that prints to a text stream. Losses are lines of their own; control characters are escaped.

    Pages come writer by writer, so the lines of different writers are in the order of time only within a page.
    """

    def __init__(self, file: TextIO | None = None) -> None:
        """
        Args:
            file: Where to print; None is what `sys.stdout` is when the sink starts.
        """
        self._file = file

    @classmethod
    def from_url(cls, url: str) -> TextSink:
        """`text:` prints to standard output."""
        return cls()

    async def __call__(self, stream: PageStream) -> None:
        """
        Raises:
            OSError: The stream cannot be written; the lines of a page may then be printed again.
        """
        stream.accept_prefixes()
        decoder = Decoder(stream.definitions)
        printer = _Printer(self._file or sys.stdout)
        async with worker_thread("aiotrace text sink") as worker:
            try:
                while batch := await stream.next_batch(16):
                    await printer.print(await worker.run(_lines, decoder, batch))
                    for page in batch:
                        stream.acknowledge(page)
            finally:
                printer.stop()


def _lines(decoder: Decoder, batch: list[Page]) -> str:
    return "".join(format_line(event) + "\n" for page in batch for event in decoder.events(page))


class _Printer:
    """A daemon thread that prints, and can be left while it does."""

    def __init__(self, file: TextIO) -> None:
        self._file = file
        self._jobs: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._jobs.put(file.flush)  # what the program printed before comes first
        threading.Thread(target=self._work, name="aiotrace text sink, printing", daemon=True).start()

    def _work(self) -> None:
        while (job := self._jobs.get()) is not None:
            job()

    async def print(self, text: str) -> None:
        """Cancelled: goes on printing, or waits to, and nobody waits for it.

        Raises:
            OSError: It cannot be printed; the beginning may have been.
        """
        token = current_token()
        done = anyio.Event()
        errors: list[BaseException] = []

        def job() -> None:
            try:
                self._write(text)
            except BaseException as error:  # whatever it is belongs to the sink, not to this thread
                errors.append(error)
            try:
                anyio.from_thread.run_sync(done.set, token=token)
            except RuntimeError:  # the loop has ended
                pass

        self._jobs.put(job)
        await done.wait()
        if errors:
            raise errors.pop()

    def _write(self, text: str) -> None:
        encoding = self._file.encoding or "utf-8"
        data = text.encode(encoding, "backslashreplace")
        try:
            fd = self._file.fileno()
        except OSError:
            self._file.write(data.decode(encoding))
            self._file.flush()
        else:
            # Not by the file: the interpreter cannot exit while a thread that blocks has the lock of standard output.
            _write_all(fd, data)

    def stop(self) -> None:
        """Let the thread end after what it prints. Does not wait for it."""
        self._jobs.put(None)


def _write_all(fd: int, data: bytes) -> None:
    left = memoryview(data)
    while left:
        try:
            left = left[os.write(fd, left) :]
        except BlockingIOError:  # somebody has set the file to that
            select.select([], [fd], [])
