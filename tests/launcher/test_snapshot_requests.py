"""Snapshots that a program asks its recorder for: a request never blocks, and there is one at a time."""

from __future__ import annotations

import mmap
from pathlib import Path
from typing import Any

import anyio
import pytest

from aiotrace._base.backend import c_module
from aiotrace._launcher.snapshot_requests import SnapshotRequester
from aiotrace._launcher.snapshot_responder import SnapshotResponder
from aiotrace._page import layout as L
from aiotrace._page.entry import PageCopy
from aiotrace.abc import PageStream, Sink
from support.arenas import Filled, numbers

pytestmark = [
    pytest.mark.anyio,
    pytest.mark.skipif(c_module is None, reason="the twin refuses: there is no compare-and-swap"),
]


class Both:
    """A program and its recorder, in one process."""

    def __init__(self) -> None:
        self.memory = mmap.mmap(-1, 8192)
        self.filled = Filled()
        self.is_recorded = True
        self.names: list[str] = []
        self.got: list[int] = []
        self.known = 0
        arguments: tuple[Any, ...] = (self.filled.arena, self.filled.info, self.filled.definitions, "t.dat", self._open)
        self.asking = SnapshotRequester(self.memory, lambda: self.is_recorded)
        self.asked = SnapshotResponder(self.memory, *arguments, self._refresh_definitions)

    def _refresh_definitions(self) -> None:
        self.known += 1

    def _open(self, path: str) -> Sink:
        self.names.append(path)
        return self._read

    async def _read(self, stream: PageStream) -> None:
        async for page in stream:
            assert isinstance(page, PageCopy)
            self.got += numbers(page)
            stream.acknowledge(page)

    async def serve(self) -> None:
        """What the recorder does when the program has ended."""
        self.asked.poll()
        await self.asked.finish(60)

    def words(self) -> list[int]:
        return memoryview(self.memory)[L.ARENA_ASKED : L.ARENA_REQUEST].cast("Q").tolist()


async def test_requested_snapshot_is_taken_once_and_named_after_its_cause() -> None:
    both = Both()
    await both.asked.start()
    both.filled.write()
    assert both.asking.request("app:step")
    await both.serve()
    await both.serve()
    assert both.got == [0]
    assert both.known > 0, "what its pages need is read after them"
    (name,) = both.names
    assert name.endswith("-app-step.dat")
    assert both.words() == [1, 1]
    assert (both.asking.taken, both.asking.skipped) == (1, 0)


async def test_no_request_is_made_until_the_last_one_is_answered() -> None:
    both = Both()
    await both.asked.start()
    assert both.asking.request("one")
    both.asking._next = 0.0  # long ago
    assert not both.asking.request("two")
    await both.serve()
    assert both.asking.request("three")
    assert (both.asking.taken, both.asking.skipped, both.words()) == (2, 1, [2, 1])


async def test_request_covered_by_a_running_snapshot_is_not_counted() -> None:
    both = Both()
    await both.asked.start()
    assert both.asking.request("one", 3600)
    assert not both.asking.request("two")
    both.asking._next = 0.0  # long ago
    assert not both.asking.request("three")
    assert (both.asking.taken, both.asking.skipped, both.words()) == (1, 0, [1, 0])
    both.asking._covered = 0.0  # over
    assert not both.asking.request("four")
    assert both.asking.skipped == 1


async def test_next_snapshot_is_not_requested_too_soon() -> None:
    both = Both()
    await both.asked.start()
    assert both.asking.request("one")
    await both.serve()
    assert not both.asking.request("two")
    assert both.words() == [1, 1]


async def test_failed_request_is_also_answered(tmp_path: Path) -> None:
    both = Both()
    await both.asked.start()

    async def fail(stream: PageStream) -> None:
        raise OSError("the disk is full")

    both.asked._open_file = lambda path: fail
    assert both.asking.request("one")
    with pytest.warns(RuntimeWarning, match="the snapshot for one failed: the disk is full"):
        await both.serve()
    assert both.words() == [1, 1]


async def test_no_snapshot_is_requested_without_a_recorder() -> None:
    both = Both()
    both.is_recorded = False
    assert not both.asking.request("one")
    assert (both.asking.taken, both.asking.skipped, both.words()) == (0, 1, [0, 0])


async def test_a_request_in_the_middle_of_another_is_counted_and_has_no_effect() -> None:
    both = Both()

    def interrupted() -> bool:
        assert not both.asking.request("handler")
        return True

    both.asking._is_recorded = interrupted
    assert both.asking.request("one")
    assert (both.asking.taken, both.asking.skipped, both.words()) == (1, 1, [1, 0])


async def test_a_long_cause_is_cut() -> None:
    both = Both()
    await both.asked.start()
    assert both.asking.request("é" * 200)
    await both.serve()
    assert len(both.names) == 1
    assert both.words() == [1, 1]


async def test_snapshot_looks_forward_from_its_request() -> None:
    both = Both()
    await both.asked.start()
    assert both.asking.request("one", 3600)
    both.asked.poll()
    for _ in range(3):
        await anyio.lowlevel.checkpoint()
    both.filled.write()
    await both.asked.finish(60)
    assert both.got == [0]
