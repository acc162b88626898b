"""Acknowledges every page at once: what a pipeline costs without a sink."""

from __future__ import annotations

from typing import Final

from aiotrace.abc import PageStream

BATCH: Final = 64
"""Pages: a request is a checkpoint, which costs more than the page."""


class NullSink:
    """A sink that keeps nothing."""

    @classmethod
    def from_url(cls, url: str) -> NullSink:
        """`null:`"""
        return cls()

    async def __call__(self, stream: PageStream) -> None:
        while batch := await stream.next_batch(BATCH):
            stream.acknowledge_all(batch)
