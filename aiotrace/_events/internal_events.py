"""Internal events: what happens to pages. Off by default and not part of "all"; each is enabled by its name.

    aiotrace:page_alloc    page, writer, sequence      a page's memory was allocated: the first time that it was taken
    aiotrace:page_recycle  page                        a page was returned to the pool
    aiotrace:sink_ack      sink, page, events          a sink acknowledged a page, or a part of one
    aiotrace:overrun       page, writer, events        a full page was taken for new events; its events are lost

    a writer turns its page, a sink acknowledges --> done, no guard held --> recorded, by a call like any other event's

Recording one of these can itself turn a page. That cannot recurse: the event is the first record on the new page. With
the environment variable AIOTRACE_DEBUG_NO_FREE_LIST=1 a page that is returned gives its memory back to the system, so
that every take is an allocation: that shows what the pool saves.
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
    """Record an internal event in the recordings that take it."""
    _events[kind](*values)


def has_free_list() -> bool:
    """Whether a new recording keeps the memory of pages that are returned to its pool."""
    return os.environ.get(FREE_LIST_OFF) != "1"
