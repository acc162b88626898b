"""Acknowledges every page at once: what a pipeline costs without a sink."""

from __future__ import annotations

from aiotrace.abc import PageStream


class NullSink:
    """A sink that keeps nothing."""

    @classmethod
    def from_url(cls, url: str) -> NullSink:
        """`null:`"""
        return cls()

    async def __call__(self, stream: PageStream) -> None:
        async for page in stream:
            stream.acknowledge(page)
