"""`aiotrace listen --text`: prints events as they arrive, a line each.

    a stream's thread: pages --> lines --> a short queue --> one thread that prints

Invariant (held by tests/collector/test_collector.py): printing never delays storing. If the terminal is too slow, lines
are left out and their number is printed.
"""

from __future__ import annotations

import queue
import threading
from typing import Final, TextIO
from weakref import WeakKeyDictionary

from .._base.terminal_text import escape
from .._decode.event import format_line
from .._threads.own_threads import block_signals
from .._traces.decoder import Decoder
from ..abc import Page
from .state import Stream

__all__ = ["LiveText"]

QUEUE_MAX: Final = 64
"""Maximum batches of lines waiting to be printed."""


class LiveText:
    """Prints the events of pages with their host and pid. Called in the streams' threads."""

    def __init__(self, file: TextIO) -> None:
        self._file = file
        self._decoders: WeakKeyDictionary[Stream, Decoder] = WeakKeyDictionary()
        self._lock = threading.Lock()
        self._left_out = 0
        self._queue: queue.Queue[str | None] = queue.Queue(QUEUE_MAX)
        self._thread = threading.Thread(target=self._print, name="aiotrace collector, printing", daemon=True)
        self._thread.start()

    def __call__(self, stream: Stream, pages: list[Page]) -> None:
        with self._lock:
            if self._queue.full():
                self._left_out += sum(page.events_count for page in pages)
                return
            decoder = self._decoders.get(stream)
            if decoder is None:
                decoder = self._decoders[stream] = Decoder(stream.stored.definitions)
        info = stream.stored.info
        label = f"{escape(info.host)}:{info.pid}: "
        lines = [f"{label}{format_line(event)}\n" for page in pages for event in decoder.events(page)]
        with self._lock:
            if self._left_out:
                lines.insert(0, f"[{self._left_out} events are not shown: this output is too slow]\n")
                self._left_out = 0
            try:
                self._queue.put_nowait("".join(lines))
            except queue.Full:
                self._left_out += sum(page.events_count for page in pages)

    def _print(self) -> None:
        block_signals()
        while (text := self._queue.get()) is not None:
            try:
                self._file.write(text)
                self._file.flush()
            except (OSError, ValueError):  # the reader is gone; the traces are still written
                return

    def stop(self, timeout: float) -> None:
        """Print what is queued, for at most `timeout` seconds."""
        try:
            self._queue.put(None, timeout=timeout)
        except queue.Full:
            return
        self._thread.join(timeout)
