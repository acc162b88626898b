"""Writes a trace's events once more as CTF 1.8, which is what babeltrace2 reads: the same names, times and fields.

    folder/metadata     TSDL text: the types of fields, one clock of nanoseconds, an event for each of ours
    folder/stream       packets of about 64 KiB: magic and sizes, then events: time, id, fields, packed, little-endian

The format's source: the Common Trace Format 1.8.3 specification, sections 5, 6 and 7 (diamon.org/ctf).
"""

from __future__ import annotations

import struct
from itertools import islice
from pathlib import Path
from typing import Final

from aiotrace.decode import Event, Trace

MAGIC: Final = 0xC1FC1FC1
PACKET: Final = 65536
"""Bytes, about: a packet ends with the event that reaches it."""
_HEADER: Final = struct.Struct("<IQQ")
_EVENT: Final = struct.Struct("<QH")
TYPES: Final = {"u16": ("uint16_t", "H"), "u32": ("uint32_t", "I"), "u64": ("uint64_t", "Q"), "str": ("string", "")}
_PREAMBLE: Final = """/* CTF 1.8 */
typealias integer { size = 16; align = 8; signed = false; } := uint16_t;
typealias integer { size = 32; align = 8; signed = false; } := uint32_t;
typealias integer { size = 64; align = 8; signed = false; } := uint64_t;
trace { major = 1; minor = 8; byte_order = le; packet.header := struct { uint32_t magic; }; };
clock { name = mono; freq = 1000000000; };
typealias integer { size = 64; align = 8; signed = false; map = clock.mono.value; } := time_t;
stream {
    packet.context := struct { uint64_t packet_size; uint64_t content_size; };
    event.header := struct { time_t timestamp; uint16_t id; };
};
"""


def write_ctf(trace: Trace, folder: Path, fields: dict[str, dict[str, str]], count: int) -> int:
    """Write the first events of those names into a new folder.

    Args:
        fields: By the event's name: each field's type, of TYPES.
        count: How many at most.

    Returns:
        How many there were.
    """
    folder.mkdir()
    numbers = {name: number for number, name in enumerate(fields)}
    events = "".join(_declare(name, numbers[name], types) for name, types in fields.items())
    (folder / "metadata").write_text(_PREAMBLE + events, encoding="utf-8")
    written = 0
    packet = bytearray()
    with open(folder / "stream", "wb") as file:
        for event in islice((event for event in trace if event.name in fields), count):
            packet += _EVENT.pack(event.timestamp_ns, numbers[event.name])
            packet += _values(event, fields[event.name])
            written += 1
            if len(packet) >= PACKET:
                file.write(_packet(packet))
                packet.clear()
        file.write(_packet(packet))
    return written


def _declare(name: str, number: int, types: dict[str, str]) -> str:
    members = " ".join(f"{TYPES[type][0]} {field};" for field, type in types.items())
    return f'event {{ name = "{name}"; id = {number}; fields := struct {{ {members} }}; }};\n'


def _values(event: Event, types: dict[str, str]) -> bytes:
    values = event.fields
    return b"".join(
        str(values[field]).encode() + b"\0" if type == "str" else struct.pack(f"<{TYPES[type][1]}", values[field])
        for field, type in types.items()
    )


def _packet(content: bytearray) -> bytes:
    bits = 8 * (_HEADER.size + len(content))
    return _HEADER.pack(MAGIC, bits, bits) + content
