"""What the tests of the trace store share: a store with pages in it, and what trace-cmd says of the trace."""

from __future__ import annotations

import errno
import os
import subprocess
from collections import Counter
from collections.abc import Iterable, Sequence

import pytest

from aiotrace._store.batch_write import python_write_whole
from aiotrace._store.store import TraceStore
from aiotrace.abc import Ledger, WriterLedger
from support import fakes

INFO = fakes.make_info()
LEDGER = Ledger((WriterLedger(0, 1200, 1, 2, 3, 4),))
EIO = OSError(errno.EIO, "injected")
NO_SPACE = OSError(errno.ENOSPC, "injected")


def replace_os(monkeypatch: pytest.MonkeyPatch, faulty: fakes.FaultyOs) -> None:
    """Replace `os` wherever a trace is written. C does not call `os`: pure Python is used."""
    monkeypatch.setattr("aiotrace._store.store.write_whole", python_write_whole)
    for module in ("trace_files", "store", "resume", "page_slots", "finish", "restore"):
        monkeypatch.setattr(f"aiotrace._store.{module}.os", faulty)


def make_store(path: str, pages: Sequence[fakes.FakePage] = (), **options: bool) -> TraceStore:
    store = TraceStore(path, INFO, **options)  # type: ignore[arg-type]
    for start in range(0, len(pages), 7):
        store.write(pages[start : start + 7], fakes.DEFINITIONS)
    return store


def finish(store: TraceStore, ledger: Ledger | None = LEDGER) -> None:
    store.end(fakes.DEFINITIONS, ledger)
    for _ in store.finish():
        pass


def report(trace_cmd: str, path: str) -> list[str]:
    done = subprocess.run([trace_cmd, "report", path], capture_output=True, check=True, text=True)
    return [line for line in done.stdout.splitlines() if not line.startswith("cpus=") and "is empty" not in line]


def numbers(lines: Iterable[str]) -> Counter[tuple[int, int]]:
    """(CPU, n) of each event that trace-cmd printed."""
    found = (line.partition("[")[2].partition("]")[0::2] for line in lines if "count:" in line)
    return Counter((int(cpu), int(rest.partition("n=")[2].split()[0])) for cpu, rest in found)


def expected(pages: Iterable[fakes.FakePage]) -> Counter[tuple[int, int]]:
    return Counter((page.writer, page.sequence * 1000 + n) for page in pages for n in range(page.events_count))


def rest(path: str) -> list[str]:
    return sorted(name for name in os.listdir(os.path.dirname(path)) if name != os.path.basename(path))


def flip(path: str, offset: int) -> None:
    with open(path, "r+b") as file:
        file.seek(offset)
        byte = file.read(1)[0]
        file.seek(offset)
        file.write(bytes([byte ^ 1]))
