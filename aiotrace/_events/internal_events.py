"""aiotrace's own events: what happens to pages. Off by default, and not part of "all": each is switched on by its name.

    aiotrace:page_alloc    page, writer, sequence      a page's memory was allocated: the first time that it was taken
    aiotrace:page_recycle  page                        a page came home to the free-list
    aiotrace:sink_ack      sink, page, events          a sink acknowledged a page, or a part of one
    aiotrace:overrun       page, writer, events        a full page was taken for new events; its own are lost

    a writer turns its page, a sink acknowledges --> done, and no guard held --> told, by an event call like any other

So the event itself may turn a page; it then stands first on the new one, which is why this ends. With the environment
variable AIOTRACE_DEBUG_NO_FREE_LIST=1 a page that comes home gives its memory back, so that each that is taken
is allocated: what the free-list saves can be counted then.
"""

from __future__ import annotations

import os
from typing import Final

from .event import define

FREE_LIST_OFF: Final = "AIOTRACE_DEBUG_NO_FREE_LIST"

_events: Final = {
    "page_alloc": define("aiotrace:page_alloc", {"page": "u32", "writer": "u32", "sequence": "u64"}, by_default=False),
    "page_recycle": define("aiotrace:page_recycle", {"page": "u32"}, by_default=False),
    "sink_ack": define("aiotrace:sink_ack", {"sink": "symbol", "page": "u32", "events": "u32"}, by_default=False),
    "overrun": define("aiotrace:overrun", {"page": "u32", "writer": "u32", "events": "u32"}, by_default=False),
}


def emit_internal(kind: str, *values: int | str) -> None:
    """Record one of them, where a recording takes it."""
    _events[kind](*values)


def has_free_list() -> bool:
    """Whether recordings that are made from now on keep the memory of pages."""
    return os.environ.get(FREE_LIST_OFF) != "1"
