"""Every event format of this machine's kernel, with random records: our line against trace-cmd's.

    python tests/long/kernel_formats.py        as root, with tracefs mounted; --show N: as many differences in full

Prints how many events agree, and for how many we print name=value, trace-cmd does, or both print something else. What
is left is looked at by hand: docs/guide/reading.md lists where and why they differ.
"""

from __future__ import annotations

import argparse
import random
import re
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from aiotrace._base.terminal_text import format_pairs
from aiotrace._decode.event_format import EventFormat, FieldKind, Place, parse_format
from aiotrace._page.definitions import CommandDefinition, EventDefinition
from aiotrace._page.encode import encode_record
from aiotrace._page.entry import PageEntry
from aiotrace.abc import Ledger
from aiotrace.decode import open_trace
from aiotrace.formats import StoredPage, TraceStore
from support.traces import INFO

EVENTS = Path("/sys/kernel/tracing/events")
PID = 77
PER_PAGE = 3


def formats() -> Iterator[tuple[EventFormat, str]]:
    for path in sorted(EVENTS.glob("*/*/format")):
        if path.parts[-3] not in ("ftrace", "aiotrace"):
            text = path.read_text(encoding="utf-8")
            yield parse_format(text, path.parts[-3]), text


def random_payload(format: EventFormat, choice: random.Random) -> bytes:
    """A record whose places lie inside it, and whose strings are printable."""
    fixed = bytearray(format.size)
    tail = b""
    for field in format.own_fields:
        raw = choice.randbytes(field.size)
        if field.place in (Place.DATA_LOC, Place.REL_LOC):
            is_text = field.kind is FieldKind.CHAR
            value = b"text\0" if is_text else choice.randbytes(field.element_size * choice.randrange(1, 4))
            start = format.size + len(tail) - (field.offset + 4 if field.place is Place.REL_LOC else 0)
            raw = (start | len(value) << 16).to_bytes(4, "little")
            tail += value
        elif field.kind is FieldKind.CHAR:
            raw = b"name"[: field.size].ljust(field.size, b"\0")
        elif field.kind is FieldKind.BOOL:
            raw = bytes(byte & 1 for byte in raw)
        elif field.place is Place.SCALAR and choice.random() < 0.7:
            raw = choice.randrange(0, 12).to_bytes(field.size, "little")
        fixed[field.offset : field.offset + field.size] = raw
    fixed[0:8] = format.id.to_bytes(2, "little") + b"\0\0" + PID.to_bytes(4, "little")
    return bytes(fixed) + tail


def write_trace(path: Path, found: list[tuple[EventFormat, str]], seed: int) -> None:
    choice = random.Random(seed)
    definitions = [
        *(EventDefinition(format.id, format.system, format.name, text) for format, text in found),
        CommandDefinition(PID, "kernel"),
    ]
    pages = []
    payloads = [random_payload(format, choice) for format, _ in found for _ in range(3)]
    for number in range(0, len(payloads), PER_PAGE):
        part = payloads[number : number + PER_PAGE]
        data = b"".join(encode_record(10 if index else 0, payload) for index, payload in enumerate(part))
        entry = PageEntry(
            0, number // PER_PAGE, 0, True, len(part), 0, len(definitions), 1000 * number + 1000, len(data)
        )
        pages.append(StoredPage(entry, memoryview(data)))
    store = TraceStore(str(path), INFO)
    store.write(pages, definitions)
    store.end(definitions, Ledger(()))
    for _ in store.finish():
        pass
    store.close()


def lines_of(trace_cmd: str, path: Path) -> list[str]:
    """What trace-cmd prints for each event, without the columns before it."""
    done = subprocess.run([*trace_cmd.split(), "report", "-i", str(path)], capture_output=True, check=False)
    report = done.stdout.decode("utf-8", "replace")
    return re.findall(r"(?m)^ *kernel-77 [^:]*: +\w+: *(.*(?:\n(?! *kernel-77 |$).*)*)", report)


def kind_of(text: str, pairs: str, other: str) -> str:
    if " ".join(text.split()) == " ".join(other.split()):
        return "same"
    if text == pairs:
        return "name=value here"
    return "name=value of trace-cmd" if other.startswith("[FAILED TO PARSE]") else "different"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--show", type=int, default=0, metavar="N", help="print N differences (default: 0)")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--trace-cmd", default="trace-cmd", metavar="COMMAND")
    arguments = parser.parse_args()
    if not EVENTS.is_dir() or shutil.which(arguments.trace_cmd.split()[0]) is None:
        print("NOT RUN: needs root, tracefs at /sys/kernel/tracing, and trace-cmd", file=sys.stderr)
        return 1

    systems: dict[str, list[tuple[EventFormat, str]]] = {}
    for format, text in formats():
        systems.setdefault(format.system, []).append((format, text))

    # A trace for each system: on some formats trace-cmd crashes, and what follows is not compared
    kinds: Counter[str] = Counter()
    shown: set[str] = set()
    with tempfile.TemporaryDirectory() as folder:
        for system, found in systems.items():
            path = Path(folder) / f"{system}.dat"
            write_trace(path, found, arguments.seed)
            theirs = lines_of(arguments.trace_cmd, path)
            with open_trace(path) as trace:
                ours = [(event.name, event.text(), format_pairs(event.fields)) for event in trace]
            kinds["not printed by trace-cmd"] += len(ours) - len(theirs)
            for (name, text, pairs), other in zip(ours, theirs, strict=False):
                kind = kind_of(text, pairs, other)
                kinds[kind] += 1
                if kind == "different" and len(shown) < arguments.show and name not in shown:
                    shown.add(name)
                    print(f"{name}\n  here      {text}\n  trace-cmd {other}")
    print(f"{sum(map(len, systems.values()))} formats, {kinds.total()} events")
    for kind, count in kinds.most_common():
        print(f"{kind:24} {count}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
