"""Makes the small kernel traces of this folder. Needs root, tracefs and trace-cmd: `python tests/data/make.py`.

A trace that trace-cmd extracts holds all formats and symbols of the kernel, megabytes of them. So it is written anew
with the first pages of each CPU and only what these need, and then converted by trace-cmd itself: to version 6, and
to compressed version 7. What trace-cmd says of each is kept beside it.
"""

from __future__ import annotations

import gzip
import itertools
import struct
import subprocess
import sys
import tempfile
import zlib
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parent), str(HERE.parent.parent)]

from aiotrace._traces.page_sources import CpuData  # noqa: E402
from aiotrace._traces.tracedat_file import TraceDatSource  # noqa: E402
from aiotrace.decode import open_trace  # noqa: E402
from support import kernel  # noqa: E402
from support.kernel_recordings import RECORDINGS, TRACING, record  # noqa: E402

PAGES = {"sched": 12, "syscalls": 12, "kmem with stacks": 12}
"""Of each CPU."""


def section(kind: int, content: bytes, packed: bool = False) -> bytes:
    if packed:
        squeezed = zlib.compress(content)
        content = struct.pack("<II", len(squeezed), len(content)) + squeezed
    return struct.pack("<HHIQ", kind, int(packed), 0, len(content)) + content


def chunks(pages: bytes, size: int) -> bytes:
    """Compressed pages, ten in a piece as trace-cmd packs them."""
    pieces = [pages[at : at + 10 * size] for at in range(0, len(pages), 10 * size)]
    squeezed = [zlib.compress(piece) for piece in pieces]
    return struct.pack("<I", len(pieces)) + b"".join(
        struct.pack("<II", len(small), len(piece)) + small for small, piece in zip(squeezed, pieces, strict=True)
    )


def sized(code: str, content: bytes) -> bytes:
    return struct.pack(code, len(content)) + content


def shrink(source: str, target: str, pages: int, packed: str) -> None:
    """Write the first pages of each CPU, with the formats and symbols that they need."""
    with open_trace(source) as trace:
        file = trace._file
        assert isinstance(file, TraceDatSource)
        ids, addresses = set(), set()
        for buffer in file.buffers:
            cut = [CpuData(cpu.cpu, cpu.offset, min(cpu.size, pages * buffer.page_size)) for cpu in buffer.cpus]
            buffer_cpus = tuple(cut)
            object.__setattr__(buffer, "cpus", buffer_cpus)
        for event in trace:
            if event.format is None:
                continue
            ids.add(event.format.id)
            for value in event.fields.values():
                addresses |= {
                    item for item in (value if isinstance(value, tuple) else (value,)) if isinstance(item, int)
                }
        functions = file.functions
        functions.find(0)
        lines = []
        for address in sorted(functions._addresses[i] for a in addresses for i in neighbours(functions, a)):
            line = f"{address:016x} T {functions.find(address)[0] if functions.find(address) else '_end'}\n"
            if line not in lines[-2:]:
                lines.append(line)
        write(file, target, ids, "".join(lines).encode(), pages)
        write(file, packed, ids, "".join(lines).encode(), pages, packed=True)  # no trace-cmd of Debian's can write zlib


def neighbours(functions: object, address: int) -> list[int]:
    import bisect

    addresses = functions._addresses  # type: ignore[attr-defined]
    index = bisect.bisect_right(addresses, address) - 1
    return [index, index + 1] if 0 <= index < len(addresses) - 1 else []


def texts(ids: set[int]) -> dict[str, list[bytes]]:
    found: dict[str, list[bytes]] = {}
    for path in sorted(TRACING.glob("events/*/*/format")):
        text = path.read_bytes()
        if int(text.split(b"ID:")[1].split()[0]) in ids:
            found.setdefault(path.parts[-3], []).append(text)
    return found


def write(file: TraceDatSource, target: str, ids: set[int], kallsyms: bytes, count: int, packed: bool = False) -> None:
    formats = texts(ids)
    ftrace = formats.pop("ftrace", [])
    header_page = (TRACING / "events/header_page").read_bytes()
    header_event = (TRACING / "events/header_event").read_bytes()
    events = struct.pack("<I", len(formats))
    for system, found in formats.items():
        events += system.encode() + b"\0" + struct.pack("<I", len(found))
        events += b"".join(sized("<Q", text) for text in found)
    comms = "".join(f"{pid} {name}\n" for pid, name in file.commands.items()).encode()
    contents = {
        16: b"header_page\0" + sized("<Q", header_page) + b"header_event\0" + sized("<Q", header_event),
        17: struct.pack("<I", len(ftrace)) + b"".join(sized("<Q", text) for text in ftrace),
        18: events,
        19: sized("<I", kallsyms),
        20: sized("<I", b""),
        21: sized("<Q", comms),
    }
    (buffer,) = [buffer for buffer in file.buffers if any(cpu.size for cpu in buffer.cpus)]
    head = b"\x17\x08\x44tracing7\0\x00\x08" + struct.pack("<I", buffer.page_size)
    head += b"zlib\0001.3\0" if packed else b"none\0\0"
    size = buffer.page_size
    data, regions = bytearray(), []
    for cpu in buffer.cpus:
        start = len(data)
        pages = b"".join(page.data for page in itertools.islice(file.pages(buffer, cpu), count))
        data += chunks(pages, size) if packed else pages
        regions.append((cpu.cpu, size + start, len(data) - start - 4 * packed))
    out = bytearray(head + struct.pack("<Q", 0))
    buffer_place = len(out)
    out += struct.pack("<HHIQ", 3, int(packed), 0, size - buffer_place - 16 + len(data))
    out += bytes(size - len(out)) + data
    places = {}
    for kind, content in contents.items():
        places[kind] = len(out)
        out += section(kind, content, packed)
    options = (
        struct.pack("<Q", buffer_place) + b"\0" + buffer.clock.encode() + b"\0" + struct.pack("<II", size, len(regions))
    )
    options += b"".join(struct.pack("<IQQ", *region) for region in regions)
    table = b"".join(struct.pack("<HIQ", kind, 8, place) for kind, place in places.items())
    clock = f"[{buffer.clock}]\0".encode()
    table += struct.pack("<HI", 4, len(clock)) + clock + struct.pack("<HII", 8, 4, len(regions))
    table += struct.pack("<HI", 3, len(options)) + options + struct.pack("<HIQ", 0, 8, 0)
    out[len(head) : len(head) + 8] = struct.pack("<Q", len(out))
    out += section(0, table)
    Path(target).write_bytes(out)


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        for kind, (systems, stacks) in RECORDINGS.items():
            name = kind.split()[0]
            full, plain, packed = Path(folder) / "full.dat", Path(folder) / "plain.dat", HERE / f"{name}-v7-zlib.dat"
            record("trace-cmd", systems, stacks, full)
            shrink(str(full), str(plain), PAGES[kind], str(packed))
            for label, options in (
                ("v6", ["--file-version", "6"]),
                ("v7-zstd", ["--file-version", "7", "--compression", "zstd"]),
            ):
                target = HERE / f"{name}-{label}.dat"
                target.unlink(missing_ok=True)
                subprocess.run(["trace-cmd", "convert", "-i", str(plain), "-o", str(target), *options], check=True)
            report = kernel.raw_report("trace-cmd", str(plain))
            (HERE / f"{name}.txt.gz").write_bytes(gzip.compress(report.encode("utf-8", "surrogateescape"), mtime=0))


if __name__ == "__main__":
    main()
