"""The headers of a trace.dat that is written from front to back, before it is known what they will say. Sans-IO.

    begin()    initial header | options: a filler of 4 KiB ...
    wait()     ... a byte of it, and another; when it is full: where the next options are, a next filler ...
    finish()   ... the rest, where the options are | sections | options

A listener of trace-cmd takes the headers before anything else and waits five seconds for more of them, but new events,
symbols and tasks are defined as long as a program runs. So the true headers come last, and until then there is
something to say. The law: **every byte is final when it is handed out**, and `finish` can be called at any moment.

Which options a reader passes over, and that options lead to further options, says trace-cmd.dat.v7.5(5).
"""

from __future__ import annotations

import struct
from collections.abc import Iterable
from typing import Final

from .._page import layout as L
from .._page.definitions import Definition
from . import tracedat as T

__all__ = ["LateHeaders"]

FILLER_SIZE: Final = 4096
"""Bytes: trace-cmd goes one call deeper for each filler, so a byte a second must not make many."""

_DONE: Final = struct.Struct(L.BYTE_ORDER + "HIQ")


class LateHeaders:
    """The bytes of one file, in order."""

    def __init__(self, page_size: int) -> None:
        self._page_size = page_size
        self._size = 0
        """Bytes that were handed out."""
        self._left = 0
        """Bytes of the filler that were not."""

    def begin(self) -> bytes:
        """What comes first."""
        return self._hand_out(T.initial_header(self._page_size, T.INITIAL_HEADER_SIZE)) + self._open_filler()

    def wait(self) -> bytes:
        """Something that says nothing, at least a byte."""
        self._left -= 1
        piece = self._hand_out(b"\0")
        if not self._left:
            piece += self._close_filler(self._size + _DONE.size)
            piece += self._open_filler()
        return piece

    def finish(
        self, *, clock: str, cpus: int, definitions: Iterable[Definition], statistics: Iterable[T.CpuStatistics] = ()
    ) -> bytes:
        """The rest. Pages and an option that says where they are may be appended to it.

        Args:
            cpus: The pages are of CPUs below this.
            statistics: What is said of each.
        """
        rest = self._hand_out(bytes(self._left))
        headers, place = T.encode_headers(
            self._size + _DONE.size,
            page_size=self._page_size,
            clock=clock,
            cpus=cpus,
            definitions=definitions,
            options=[(T.OPTION_CPUSTAT, T.cpu_statistics(each)) for each in statistics],
        )
        return rest + self._close_filler(place) + self._hand_out(headers)

    def _open_filler(self) -> bytes:
        """A section of options up to the first byte of its filler."""
        section = T.pack_options([(T.OPTION_FILLER, bytes(FILLER_SIZE)), (T.OPTION_DONE, bytes(8))])
        self._left = FILLER_SIZE
        return self._hand_out(section[: len(section) - _DONE.size - FILLER_SIZE])

    def _close_filler(self, next_options: int) -> bytes:
        return self._hand_out(_DONE.pack(T.OPTION_DONE, 8, next_options))

    def _hand_out(self, piece: bytes) -> bytes:
        self._size += len(piece)
        return piece
