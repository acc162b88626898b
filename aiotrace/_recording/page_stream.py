"""The page stream: how one sink waits for pages, reads them and acknowledges them.

Each call of the sink gets a new stream over the same delivery, which offers unacknowledged pages again. The stream of
an earlier call has ended, and the memory views of its pages are released.

Everything here runs in the service's own loop, so an `anyio.Event` is enough to wait on.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from time import monotonic
from typing import Final, Self

import anyio
from anyio.lowlevel import checkpoint, checkpoint_if_cancelled

from .._base.errors import AcknowledgeError
from .._page import layout as L
from .._page.definitions import Definition
from .._page.encode import pack_header, pack_lost_count
from .._page.entry import PageEntry
from .._ring.arena import Arena
from .._ring.delivery import Delivery, Part
from .._ring.page_cycle import PageCycle
from ..abc import Ledger, Page, StreamInfo

ALONE_MAX: Final = 0.001
"""Yield to the loop at least this often (in seconds), even if the next batch is ready."""


class DeliveredPage:
    """A part of a page as a sink sees it. `abc.Page` documents the attributes."""

    __slots__ = ("data", "part")

    def __init__(self, part: Part, arena: Arena) -> None:
        self.part = part
        start = L.PAGE_HEADER_SIZE + part.offset
        self.data = arena.page(part.page)[start : start + part.committed].toreadonly()

    @property
    def entry(self) -> PageEntry:
        """What frames say of it, for `_store/unfinished.page_entry`."""
        return self.part.entry

    @property
    def writer(self) -> int:
        return self.part.writer

    @property
    def sequence(self) -> int:
        return self.part.sequence

    @property
    def offset(self) -> int:
        return self.part.offset

    @property
    def complete(self) -> bool:
        return self.part.complete

    @property
    def timestamp(self) -> int:
        return self.part.timestamp

    @property
    def events_count(self) -> int:
        return self.part.events

    @property
    def lost_before(self) -> int:
        return self.part.lost_before

    @property
    def definitions_needed(self) -> int:
        return self.part.definitions

    def header(self) -> bytes:
        return pack_header(self.part.timestamp, self.part.committed, self.part.lost_before)

    def lost_count(self) -> bytes:
        return pack_lost_count(self.part.lost_before)

    def __repr__(self) -> str:
        part = self.part
        return f"<page {part.sequence} of writer {part.writer}, bytes {part.offset}-{part.end}, {part.events} events>"


class Stream:
    """One call's view of a sink's delivery.

    Args:
        on_first_request: Called on each request for a page; only the first one matters.
        on_prefixes: Called when the sink accepts prefixes: the reader may be waiting for full pages only.
        on_room: Called after an acknowledgement: the reader may offer more.
        account: Returns the sink's ledger.
    """

    def __init__(
        self,
        pages: PageCycle,
        delivery: Delivery,
        info: StreamInfo,
        definitions: Sequence[Definition],
        *,
        on_first_request: Callable[[], object],
        on_prefixes: Callable[[], object],
        on_room: Callable[[], object],
        account: Callable[[Delivery], Ledger],
    ) -> None:
        self._pages = pages
        self._delivery = delivery
        self._info = info
        self._definitions = definitions
        self._on_first_request = on_first_request
        self._on_prefixes = on_prefixes
        self._on_room = on_room
        self._account = account
        self._looked: dict[DeliveredPage, None] = {}
        self._offered = anyio.Event()
        self._alone_since = monotonic()
        """When this stream last yielded to the loop, as far as it knows."""
        self._over = False
        self._pid = os.getpid()
        self.reached_end = False
        """Whether the sink has seen the end of the stream."""

    @property
    def info(self) -> StreamInfo:
        return self._info

    @property
    def definitions(self) -> Sequence[Definition]:
        return self._definitions

    @property
    def ledger(self) -> Ledger:
        return self._account(self._delivery)

    def accept_prefixes(self) -> None:
        self._delivery.prefixes = True
        self._on_prefixes()

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Page:
        self._on_first_request()
        await checkpoint()
        batch = await self._next_parts(1)
        if not batch:
            raise StopAsyncIteration
        return batch[0]

    async def next_batch(self, pages: int) -> list[Page]:
        if pages < 1:
            raise ValueError(f"a batch of {pages} pages: at least 1")
        self._on_first_request()

        # Each step of the loop gives up the GIL, and a busy thread may keep it for 5 ms. But a sink whose
        # acknowledgements always bring new pages must let other tasks run too.
        if monotonic() >= self._alone_since + ALONE_MAX:
            await checkpoint()
            self._alone_since = monotonic()
        else:
            await checkpoint_if_cancelled()
        return await self._next_parts(pages)

    async def _next_parts(self, pages: int) -> list[Page]:
        while not self._delivery.waiting:
            if os.getpid() != self._pid:
                await anyio.sleep_forever()  # a forked child's copy of the sink: the files are the parent's
            if self._delivery.closed or self._over:
                self.reached_end = True
                return []
            if self._offered.is_set():
                self._offered = anyio.Event()
            await self._offered.wait()
            self._alone_since = monotonic()
        looked = [DeliveredPage(part, self._pages.arena) for part in self._delivery.look(pages)]
        self._looked.update(dict.fromkeys(looked))
        return list(looked)

    def acknowledge(self, page: Page) -> None:
        self.acknowledge_all((page,))

    def acknowledge_all(self, pages: Sequence[Page]) -> None:
        parts: list[Part] = []
        try:
            for page in pages:
                parts.append(self._release(page))
        finally:
            if parts:
                self._pages.acknowledge(self._delivery, parts)
                self._on_room()

    def _release(self, page: Page) -> Part:
        if not isinstance(page, DeliveredPage) or page not in self._looked:
            raise AcknowledgeError(f"{page!r} is not held by this stream (acknowledged twice, or of an earlier call?)")
        try:
            page.data.release()
        except BufferError:
            raise AcknowledgeError(f"{page!r} is acknowledged, but a view of its data is still in use") from None
        del self._looked[page]
        return page.part

    # --- the service's side ---------------------------------------------------------------------

    def notify(self) -> None:
        """Pages were offered, or the stream has ended: wake the sink."""
        self._offered.set()

    def finish(self) -> None:
        """The call of the sink has ended: release the pages that it did not acknowledge."""
        self._over = True
        for page in self._looked:
            try:
                page.data.release()
            except BufferError:  # the sink left a view behind; the bytes stay valid, the page may change
                pass
        self._looked.clear()
