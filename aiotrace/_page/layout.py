"""Layout: the numbers of the page, the record, the descriptor and the arena.

Constants only; every other module and the C code take their numbers from here. Pages and records are those of the Linux
ring buffer: `/sys/kernel/tracing/events/header_page` and `header_event` describe them on any Linux, and
include/linux/ring_buffer.h names the kinds of records.

    arena       header (4 KiB) | descriptors (128 bytes a page) | definitions | page 0 | page 1 | ...
    page        u64 timestamp | u64 commit and flags | records ... | (8 bytes kept free for a lost count)
    record      u32: type_len (5 bits), time_delta (27 bits) | what type_len says
"""

from __future__ import annotations

import sys

TYPE_CHECKING = False  # importing it from `typing` would double the time of `import aiotrace`
if TYPE_CHECKING:
    from typing import Final

BYTE_ORDER: Final = "<" if sys.byteorder == "little" else ">"
"""Native order, as in the kernel: for `struct`, with its sizes and alignments standardised."""

# --- page ---------------------------------------------------------------------------------------

PAGE_HEADER_SIZE: Final = 16
"""Bytes before the records: u64 timestamp (ns), u64 commit."""
COMMIT_MASK: Final = (1 << 20) - 1
"""The bits of `commit` that hold the length of the records in bytes (RB_PAGE data up to 1 MiB - 1)."""
COMMIT_MISSED_EVENTS: Final = 1 << 31
"""In `commit`: events are missing before this page (kernel: RB_MISSED_EVENTS)."""
COMMIT_MISSED_STORED: Final = 1 << 30
"""In `commit`: their number follows the records, as a u64 (kernel: RB_MISSED_STORED)."""
LOST_COUNT_SIZE: Final = 8
"""Bytes that a writer leaves free at the end of each page, so that a count always fits."""

PAGE_SIZE_MIN: Final = 4096
PAGE_SIZE_MAX: Final = 1 << 20
PAGE_SIZE_DEFAULT: Final = 65536
"""Bytes. A power of two from 4 KiB to 1 MiB; trace-cmd and KernelShark read 64 KiB pages."""

BLOCK: Final = 4096
"""Bytes of a block of a file. The last block of a page is written whole, filled up with zeros: it is allocated anyway,
and writing a part of one takes twice the time."""

# --- record -------------------------------------------------------------------------------------

TYPE_LEN_BITS: Final = 5
TYPE_LEN_MASK: Final = 31
TYPE_DATA_MAX: Final = 28
"""type_len 1..28: a payload of type_len * 4 bytes follows. 0: a u32 length (payload + 4) comes first."""
TYPE_PADDING: Final = 29
TYPE_TIME_EXTEND: Final = 30
TYPE_TIME_STAMP: Final = 31
TIME_DELTA_BITS: Final = 27
TIME_DELTA_MAX: Final = (1 << TIME_DELTA_BITS) - 1
"""Nanoseconds that a record's own delta can hold (134 ms); longer ones need a time extend before it."""
TIME_STAMP_BITS: Final = 59
SHORT_PAYLOAD_MAX: Final = TYPE_DATA_MAX * 4
RECORD_COMMON_SIZE: Final = 8
"""Bytes of the fields that each payload begins with: u16 common_type, u8 common_flags,
u8 common_preempt_count, s32 common_pid."""
RECORD_DYNAMIC_MAX: Final = 65000
"""Bytes of all strings and bytes of one record together: `__data_loc` has 16 bits for offset and length."""
FLAG_CUT: Final = 0x80
"""In common_flags: a string or bytes field of this record was too long and was cut."""

# --- descriptor ---------------------------------------------------------------------------------
# Sixteen u64 for each page, after the arena's header. Only `_ring/state.py` changes the state word; the other words
# belong to the owner that the state names.

DESCRIPTOR_WORDS: Final = 16
DESCRIPTOR_SIZE: Final = DESCRIPTOR_WORDS * 8

STATE: Final = 0
"""FREE, FILLING, FULL or IN_FLIGHT."""
WRITER: Final = 1
"""The writer slot that filled it: the CPU number in trace-cmd and KernelShark."""
SEQUENCE: Final = 2
"""Number of the page in its writer's stream."""
FIRST_EVENT: Final = 3
"""Number of its first event among all that its writer was called with, including refused ones: a gap between two pages
is a loss, whatever its cause."""
EVENTS: Final = 4
"""Events on the page; set when it is sealed."""
COMMITTED: Final = 5
"""Bytes of records; set when it is sealed (before that, the page's commit word has them)."""
LAST_TIME: Final = 6
"""Nanoseconds: time of its last event; set when it is sealed."""
DEFINITIONS: Final = 7
"""Number of definitions that are needed to decode it; set when it is sealed."""
HOLDERS: Final = 8
"""Sinks that hold it or parts of it, once for each part that is not acknowledged yet."""
DELIVERED: Final = 9
"""Events at its beginning that at least one sink has acknowledged."""
TAKES: Final = 10
"""How often it was taken from the pool: 0 means that its memory was never touched."""
CHECK: Final = 11
"""crc32 of WRITER, SEQUENCE and FIRST_EVENT; set when it is taken, so that a restore can trust them."""

FREE: Final = 0
FILLING: Final = 1
FULL: Final = 2
IN_FLIGHT: Final = 3
STATE_NAMES: Final = ("free", "filling", "full", "in flight")

# --- arena --------------------------------------------------------------------------------------
# The first 4 KiB of an arena's file: docs/reference/arena.md has the table. Anonymous arenas leave them empty.

ARENA_MAGIC: Final = b"aioarena"
ARENA_VERSION: Final = 1
ARENA_HEADER_SIZE: Final = 4096
"""Bytes before the descriptors."""
ARENA_ALIGNMENT: Final = 4096
"""Bytes: the descriptors and the definitions begin at a multiple of this, the pages at one of their size."""
ARENA_USED: Final = 512
"""Offset of a u64: bytes of complete definitions. The words that change begin here; no crc covers them."""
ARENA_REFUSED: Final = 520
"""Offset of a u64: definitions for which there was no room."""
ARENA_READER: Final = 528
"""Offset of a u64: 0 no reader yet, 1 another process reads the arena, 2 it cannot, 3 it was asked for
what cannot work, 4 all
events were delivered, 5 (by the program) there is nothing to deliver (`_launcher/external_recording.py`)."""
ARENA_DELIVERED: Final = 4
"""In ARENA_READER: all events were delivered."""
ARENA_CLOSED: Final = 536
"""Offset of a u64: the number of writers' accounts that follow; 0 until a recording that another process reads has
closed properly. Each account is three u64: events written, dropped, overrun."""
ARENA_REFUSED_EVENTS: Final = 1536
"""Offset of the counts of refused events: for each writer slot a u64 for each cause, in the order of
`_ring/writer.CAUSES`. Each is counted when it happens, for who reads the arena of a process that was killed."""
ARENA_COUNTED_WRITERS: Final = 38
"""Writer slots that have such counts; a recording has fewer."""
ARENA_ASKED: Final = 3072
"""Offset of two u64: the snapshots that the program has requested of its recorder, and how many of these the recorder
has answered (`_launcher/snapshot_requests.py`)."""
ARENA_REQUEST: Final = 3088
"""Offset of the request: u64 time (CLOCK_MONOTONIC, nanoseconds), u64 nanoseconds to record after it, the cause."""
ARENA_CAUSE_SIZE: Final = 128
"""Bytes of the cause: UTF-8, padded with NULs."""
