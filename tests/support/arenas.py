"""Arenas for tests: in memory or in a file, filled by real writers with events that say their numbers."""

from __future__ import annotations

import itertools
import struct
from pathlib import Path

from aiotrace._arena import file
from aiotrace._arena.file import ArenaFile
from aiotrace._page.definitions import Definitions, EventDefinition
from aiotrace._page.entry import PageCopy
from aiotrace._page.event_schema import Schema
from aiotrace._ring.arena import Arena, Shape
from aiotrace._ring.page_cycle import PageCycle
from aiotrace._ring.writer import Writers
from support.fakes import make_info
from support.page_oracle import walk

PAGE = 4096
SCHEMA = Schema("arenas:number", {"n": "u64", "text": "bytes"})
EVENT_ID = 3000


def make_table() -> Definitions:
    table = Definitions()
    table.append(EventDefinition(EVENT_ID, "arenas", "number", SCHEMA.format_text(EVENT_ID)))
    return table


class Filled:
    """An arena and its writers; each event says its number among its writer's."""

    def __init__(
        self, path: Path | None = None, pages: int = 8, writers: int = 1, overrun: bool = True, size: int = 1 << 18
    ) -> None:
        self.definitions = make_table()
        self.info = make_info(PAGE, writers)
        self.file = None
        if path is not None:
            self.file = ArenaFile(str(path), Shape(PAGE, pages, size), self.info, self.definitions)
        self.arena = Arena(PAGE, pages, self.file)
        self.pages = PageCycle(self.arena, overrun=overrun)
        self._clock = itertools.count(1_000_000)
        self.writers = Writers(self.pages, writers, lambda: next(self._clock), self.definitions)
        self.all = [self.writers.lease()[0] for _ in range(writers)]

    def write(self, writer: int = 0, size: int = 100) -> None:
        slot = self.all[writer]
        self.all[writer].write(SCHEMA.encode(EVENT_ID, 7, (slot.number, bytes(size)), lambda text: 0))

    def release(self) -> None:
        """Let file and lock go, as a kill does; the file stays."""
        assert self.file is not None
        self.arena.close()
        file._files.discard(self.file)
        self.file._close()


def numbers(copy: PageCopy) -> list[int]:
    """The numbers of the events of a copy."""
    found = [
        struct.unpack_from("=Q", copy.data, record.start + 8)[0] for record in walk(bytes(copy.data), copy.timestamp)
    ]
    assert len(found) == copy.events_count
    return found
