"""The formats that aiotrace writes, for sinks and collectors: the trace store, the journal, stream frames.

`TraceStore` stores pages in files. `restore` completes and `UnfinishedTrace` reads such files if they were not closed.
`FrameReader` and the `pack_` and `unpack_` functions are the framing for sockets and brokers, without any socket.
`LateHeaders` makes the headers of a trace.dat that another program, like trace-cmd listen, assembles.
"""

from __future__ import annotations

from ._base.errors import TraceFormatError
from ._formats.frames import (
    LENGTH_MAX,
    Damage,
    Frame,
    FrameReader,
    Kind,
    Level,
    encode_frame,
    pack_definitions,
    pack_end,
    pack_error,
    pack_frame_header,
    pack_hello,
    pack_page_entry,
    unpack_definitions,
    unpack_end,
    unpack_error,
    unpack_hello,
    unpack_page,
)
from ._formats.journal import JournalReader
from ._formats.journal import PagePlacement as Placed
from ._formats.tracedat import CpuStatistics
from ._formats.tracedat_stream import LateHeaders
from ._page.entry import PageCopy as StoredPage
from ._page.entry import PageEntry, page_entry
from ._store.restore import RestoreReport, restore
from ._store.store import TraceStore
from ._store.trace_files import remove
from ._store.unfinished import UnfinishedTrace, is_unfinished

__all__ = [
    "LENGTH_MAX",
    "CpuStatistics",
    "Damage",
    "Frame",
    "FrameReader",
    "JournalReader",
    "Kind",
    "LateHeaders",
    "Level",
    "PageEntry",
    "Placed",
    "RestoreReport",
    "StoredPage",
    "TraceFormatError",
    "TraceStore",
    "UnfinishedTrace",
    "encode_frame",
    "is_unfinished",
    "pack_definitions",
    "pack_end",
    "pack_error",
    "pack_frame_header",
    "pack_hello",
    "pack_page_entry",
    "page_entry",
    "remove",
    "restore",
    "unpack_definitions",
    "unpack_end",
    "unpack_error",
    "unpack_hello",
    "unpack_page",
]
