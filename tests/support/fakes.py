"""Pages, streams and a file system that fails when told: what the tests of files and sinks are made with.

`FakeStream` keeps the contract of `aiotrace.abc.PageStream` over pages that are given; `FaultyOs` replaces the
module `os` where a module under test does its input and output. `Collect` is a sink that keeps the events.
"""

from __future__ import annotations

import errno
import os
import random
import struct
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import anyio
import pytest

from aiotrace._base.clock import Anchor
from aiotrace._base.errors import AcknowledgeError
from aiotrace._page.definitions import CommandDefinition, Definition, EventDefinition, SymbolDefinition
from aiotrace._page.encode import encode_record, pack_header, pack_lost_count
from aiotrace.abc import Ledger, Page, PageStream, StreamInfo, WriterLedger
from aiotrace.decode import Decoder, Event

ANCHOR = Anchor(1_000_000_000, 1_700_000_000_000_000_000, "00000000-0000-0000-0000-000000000000")
SYMBOL_KEY = 0xFFFF_8000_0000_1010
PID = 4_200_000


def make_info(page_size: int = 4096, writers: int = 4, stream_id: bytes = b"0123456789abcdef") -> StreamInfo:
    return StreamInfo(stream_id, page_size, writers, "mono", ANCHOR, 4321, "a host", "python program.py")


def event_format(id: int, name: str, fields: Sequence[tuple[str, int, int, int]], print_format: str) -> str:
    """A format text; fields are (declaration, offset, size, signed)."""
    common = (
        ("unsigned short common_type", 0, 2, 0),
        ("unsigned char common_flags", 2, 1, 0),
        ("unsigned char common_preempt_count", 3, 1, 0),
        ("int common_pid", 4, 4, 1),
    )
    lines = [f"name: {name}", f"ID: {id}", "format:"]
    for group in (common, fields):
        lines += [
            f"\tfield:{d};\toffset:{offset};\tsize:{size};\tsigned:{signed};" for d, offset, size, signed in group
        ]
        lines.append("")
    return "\n".join([*lines, f"print fmt: {print_format}", ""])


DEFINITIONS: list[Definition] = [
    SymbolDefinition(SYMBOL_KEY - 16, "?"),
    EventDefinition(
        1001,
        "demo",
        "count",
        event_format(
            1001,
            "count",
            [("u64 n", 8, 8, 0), ("const char * what", 16, 8, 0)],
            '"n=%llu what=%s", REC->n, REC->what',
        ),
    ),
    SymbolDefinition(SYMBOL_KEY, "a symbol"),
    CommandDefinition(PID, "worker one"),
]


def count_payload(n: int, key: int = SYMBOL_KEY, pid: int = PID) -> bytes:
    return struct.pack("=HBBiQQ", 1001, 0, 0, pid, n, key)


@dataclass
class FakePage:
    """A page with records; `first` is the number of its first event."""

    writer: int
    sequence: int
    timestamp: int
    data: memoryview
    events_count: int
    lost_before: int = 0
    definitions_needed: int = len(DEFINITIONS)
    offset: int = 0
    complete: bool = True

    def header(self) -> bytes:
        return pack_header(self.timestamp, len(self.data), self.lost_before)

    def lost_count(self) -> bytes:
        return pack_lost_count(self.lost_before)


def make_page(
    writer: int = 0,
    sequence: int = 0,
    events: int = 20,
    *,
    lost: int = 0,
    first: int | None = None,
    payload: Callable[[int], bytes] = count_payload,
    start_ns: int = 1_000_000_000,
) -> FakePage:
    """A page whose events count on from page to page: n = sequence * 1000 + 0, 1, 2 ..."""
    first = sequence * 1000 if first is None else first
    data = b"".join(encode_record(1000, payload(first + n)) for n in range(events))
    timestamp = start_ns + sequence * 10_000_000 + writer
    return FakePage(writer, sequence, timestamp, memoryview(data), events, lost)


def cut(page: FakePage, *counts: int, complete: bool = True) -> list[FakePage]:
    """The same page in parts of that many events, as a sink gets it that takes prefixes; the last part has the rest.

    Args:
        complete: False: the last part is as large as its page grew, but was delivered while it might still have grown.
    """
    size, first, parts = len(page.data) // page.events_count, 0, []
    for count in (*counts, page.events_count - sum(counts)):
        data = page.data[first * size : (first + count) * size]
        is_last = first + count == page.events_count
        parts.append(
            FakePage(
                page.writer,
                page.sequence,
                page.timestamp + first * 1000,
                data,
                count,
                0 if first else page.lost_before,
                page.definitions_needed,
                first * size,
                complete and is_last,
            )
        )
        first += count
    return parts


def make_pages(count: int, writers: int = 1, events: int = 20) -> list[FakePage]:
    return [make_page(n % writers, n // writers, events) for n in range(count)]


class Timeout:
    """A time-out that is over when the test says so: a machine that stalls must not decide who was too slow.

    It replaces those `anyio.move_on_after` that are given SECONDS, in whatever thread; others stay as they are.
    """

    SECONDS = 61.5

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self._began: list[anyio.CancelScope] = []
        real = anyio.move_on_after

        def move_on_after(delay: float | None, shield: bool = False) -> anyio.CancelScope:
            scope = real(None if delay == self.SECONDS else delay, shield)
            if delay == self.SECONDS:
                self._began.append(scope)
            return scope

        monkeypatch.setattr(anyio, "move_on_after", move_on_after)

    def has_begun(self) -> bool:
        return bool(self._began)

    def end(self) -> None:
        """It is over now. In the thread of its loop."""
        self._began.pop(0).cancel()


@dataclass
class FakeStream:
    """Offers the given pages, each until it is acknowledged; ends after the last, unless told to wait."""

    pages: Iterable[Page]
    info: StreamInfo = field(default_factory=make_info)
    definitions: list[Definition] = field(default_factory=lambda: list(DEFINITIONS))
    wait_at_end: bool = False
    ledger: Ledger = field(default_factory=lambda: Ledger((WriterLedger(0, 100, 1, 2, 3, 4),)))

    def __post_init__(self) -> None:
        self.offered: list[Page] = list(self.pages)
        self.held: list[Page] = []
        self.acknowledged: list[Page] = []
        self.prefixes = False
        self.requests = 0

    def again(self) -> FakeStream:
        """The stream that the supervisor makes after the sink failed: what is not acknowledged, in order."""
        return FakeStream([*self.held, *self.offered], self.info, self.definitions, self.wait_at_end, self.ledger)

    def accept_prefixes(self) -> None:
        self.prefixes = True

    def __aiter__(self) -> FakeStream:
        return self

    async def __anext__(self) -> Page:
        batch = await self.next_batch(1)
        if not batch:
            raise StopAsyncIteration
        return batch[0]

    async def next_batch(self, pages: int) -> list[Page]:
        self.requests += 1
        await anyio.lowlevel.checkpoint()
        if not self.offered and self.wait_at_end:
            await anyio.sleep_forever()
        batch, self.offered = self.offered[:pages], self.offered[pages:]
        self.held += batch
        return batch

    def acknowledge(self, page: Page) -> None:
        for index, held in enumerate(self.held):
            if held is page:
                del self.held[index]
                self.acknowledged.append(page)
                return
        raise AcknowledgeError(f"page {page.sequence} of writer {page.writer} is not held")

    def acknowledge_all(self, pages: Sequence[Page]) -> None:
        for page in pages:
            self.acknowledge(page)


class FaultyOs:
    """The module `os`, whose calls fail or fall short by a plan.

    Args:
        faults: Function name to a list of what its next calls do: an errno, a byte count to fall short to, or None
            for what it always does. An exhausted list means None for ever.
        seed: With `rate` and `short`, every write may fail with EIO or fall short, at random.
    """

    def __init__(
        self,
        faults: dict[str, list[int | OSError | None]] | None = None,
        *,
        seed: int = 0,
        rate: float = 0,
        short: float = 0,
    ) -> None:
        self.faults = faults or {}
        self.calls: list[str] = []
        self._random = random.Random(seed)
        self._rate = rate
        self._short = short

    def __getattr__(self, name: str) -> Any:
        function = getattr(os, name)
        if name not in (
            "pwritev",
            "pwrite",
            "fdatasync",
            "fsync",
            "copy_file_range",
            "open",
            "ftruncate",
            "rename",
            "unlink",
        ):
            return function

        def call(*arguments: Any, **keywords: Any) -> Any:
            self.calls.append(name)
            plan = self.faults.get(name, [])
            fault = plan.pop(0) if plan else None
            if fault is None and name in ("pwritev", "pwrite", "copy_file_range"):
                if self._random.random() < self._rate:
                    fault = OSError(errno.EIO, os.strerror(errno.EIO))
                elif self._random.random() < self._short:
                    fault = self._random.randrange(1, 300)
            if isinstance(fault, OSError):
                raise fault
            if fault is None:
                return function(*arguments, **keywords)
            return self._fall_short(name, fault, *arguments)

        return call

    @staticmethod
    def _fall_short(name: str, count: int, *arguments: Any) -> int:
        if name == "copy_file_range":
            source, target, size, *offsets = arguments
            return os.copy_file_range(source, target, min(size, count), *offsets)
        fd, data, offset = arguments
        whole = bytes(data) if name == "pwrite" else b"".join(bytes(part) for part in data)
        return os.pwrite(fd, whole[:count], offset)


class Collect:
    """A sink that keeps the events, in the order in which their pages came."""

    def __init__(self) -> None:
        self.events: list[Event] = []

    async def __call__(self, stream: PageStream) -> None:
        decoder = Decoder(stream.definitions)
        async for page in stream:
            self.events += decoder.events(page)
            stream.acknowledge(page)

    def named(self, name: str) -> list[Event]:
        return [event for event in self.events if event.name == name]
