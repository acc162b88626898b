"""Prints events, one a line, soon after they happen: what trace_pipe is to the kernel."""

from __future__ import annotations

import sys
from typing import TextIO

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
        printer = _Printer(self._file or sys.stdout, Decoder(stream.definitions))
        async with worker_thread("aiotrace text sink") as worker:
            while batch := await stream.next_batch(16):
                await worker.run(printer.print, batch)
                for page in batch:
                    stream.acknowledge(page)


class _Printer:
    """What runs in the thread, because a terminal or a pipe may block."""

    def __init__(self, file: TextIO, decoder: Decoder) -> None:
        self._file = file
        self._decoder = decoder

    def print(self, batch: list[Page]) -> None:
        for page in batch:
            lines = "".join(format_line(event) + "\n" for event in self._decoder.events(page))
            encoding = self._file.encoding or "utf-8"
            self._file.write(lines.encode(encoding, "backslashreplace").decode(encoding))
        self._file.flush()
