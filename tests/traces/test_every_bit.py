"""Every bit of a closed trace of aiotrace: a change is found, or has no effect.

    initial header, buffer header | 0 ...        crc32 of the sections        the rest of the first page says nothing
    page header, records, count | 0 ...          crc32 in the page's row      what follows on the page says nothing
    sections, options                            crc32 of the sections

Found is: refused with TraceFormatError, or reported as damage. Says nothing is: the same events as before.
"""

from __future__ import annotations

import os
import random
import struct
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest

from aiotrace._formats.tracedat import CHECKED_HEAD, OPTION_CHECK
from aiotrace.abc import Ledger, WriterLedger
from aiotrace.decode import open_trace
from aiotrace.formats import TraceFormatError, TraceStore
from support import fakes
from support.page_oracle import unpack_header

pytestmark = pytest.mark.pure_too

PAGE = 4096
LEDGER = Ledger((WriterLedger(0, 40, 1, 2, 3, 4), WriterLedger(1, 30, 0, 0, 0, 0)))


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A trace of two writers and three pages, one of them with losses before it that are counted, one with some."""
    path = tmp_path_factory.mktemp("bits") / "trace.dat"
    store = TraceStore(str(path), fakes.make_info(page_size=PAGE, writers=2))
    pages = [fakes.make_page(0, 0, 5), fakes.make_page(0, 1, 5, lost=7), fakes.make_page(1, 0, 5, lost=-1)]
    store.write(pages, fakes.DEFINITIONS)
    store.end(fakes.DEFINITIONS, LEDGER)
    for _ in store.finish():
        pass
    return path


def read(path: Path) -> tuple[list[str], bool]:
    """(events, whether damage is reported)."""
    try:
        with open_trace(path) as trace:
            events = [repr(event) for event in trace]
            return events, trace.damage_count > 0
    except TraceFormatError:
        return [], True


def places(content: bytes) -> tuple[list[int], list[int]]:
    """Offsets of the bytes that say something, and of those that do not."""
    end_of_pages = 4 * PAGE
    said = [*range(CHECKED_HEAD), *range(end_of_pages, len(content))]
    for start in range(PAGE, end_of_pages, PAGE):
        header = unpack_header(content[start : start + PAGE])
        said += range(start, start + 16 + header.committed + (8 if header.lost > 0 else 0))
    return said, sorted(set(range(len(content))) - set(said))


def changed(path: Path, bits: Iterable[tuple[int, int]]) -> Iterator[tuple[tuple[int, int], list[str], bool]]:
    """For each (offset, bit): what is read while it is flipped."""
    content = path.read_bytes()
    fd = os.open(path, os.O_WRONLY)
    try:
        for offset, bit in bits:
            os.pwrite(fd, bytes([content[offset] ^ 1 << bit]), offset)
            yield (offset, bit), *read(path)
            os.pwrite(fd, content[offset : offset + 1], offset)
    finally:
        os.close(fd)


def check(path: Path, bits_of: dict[bool, list[tuple[int, int]]]) -> None:
    intact, damaged = read(path)
    assert (len(intact), damaged) == (18, False)
    missed = [place for place, _, found in changed(path, bits_of[True]) if not found]
    assert missed == []
    for place, events, found in changed(path, bits_of[False]):
        assert (events, found) == (intact, False), place


def test_changed_bit_is_found_or_has_no_effect(path: Path) -> None:
    """One bit, at random, of every third byte of heads and pages, of every twelfth of the sections, which share one
    crc32, and of every hundredth of those without effect: the long test takes all."""
    generator = random.Random(1)
    said, silent = places(path.read_bytes())
    sections = [at for at in said if at >= 4 * PAGE]
    others = [at for at in said if at < 4 * PAGE]
    assert len(others) > 3 * 16 + 3 * 5 * 28
    assert len(sections) > 3000
    bits = [(at, generator.randrange(8)) for at in [*others[::3], *sections[::12]]]
    check(path, {True: bits, False: [(at, at % 8) for at in silent[::100]]})


@pytest.mark.long
@pytest.mark.parametrize("bit", range(8))
def test_every_changed_bit_is_found_or_has_no_effect(path: Path, bit: int) -> None:
    said, silent = places(path.read_bytes())
    check(path, {True: [(at, bit) for at in said], False: [(at, bit) for at in silent[bit::7]]})


def test_a_trace_without_the_crc32_of_its_sections_is_reported(path: Path, tmp_path: Path) -> None:
    content = path.read_bytes()
    other = tmp_path / "t"
    place = content.rindex(struct.pack("=HI", OPTION_CHECK, 12))
    other.write_bytes(content[:place] + struct.pack("=H", OPTION_CHECK + 1) + content[place + 2 :])
    with open_trace(other) as trace:
        assert len(list(trace)) == 18
        assert ["should be among the options" in damage.message for damage in trace.damage] == [True]
