"""trace.dat files: those of the kernel kept in tests/data, aiotrace's, and both damaged in every way."""

from __future__ import annotations

import struct
import sys
import tracemalloc
import zlib
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from aiotrace._base.errors import ConfigurationError, TraceFormatError
from aiotrace._formats.tracedat import MAGIC, SECTION_KALLSYMS
from aiotrace._traces import checked_bytes, tracedat_pages
from aiotrace._traces.event_tables import KernelFunctions, unescaped
from aiotrace._traces.tracedat_file import TraceDatSource
from aiotrace.decode import open_trace
from support import DATA

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

V6 = (DATA / "sched-v6.dat").read_bytes()
ZSTD = (DATA / "sched-v7-zstd.dat").read_bytes()
ZLIB = (DATA / "sched-v7-zlib.dat").read_bytes()
INTACT = {"v6": V6, "zstd": ZSTD, "zlib": ZLIB}

LENGTHS = (0, 1, 7, 2**31 - 1, 2**31, 2**32 - 1, 2**63, 2**64 - 1)


def count(path: Path) -> tuple[int, int]:
    """(events, damages) of a file."""
    with open_trace(path) as trace:
        events = sum(not event.is_loss for event in trace if event.fields is not None)
        return events, trace.damage_count


def read_or_refuse(path: Path, data: bytes) -> tuple[int, int] | None:
    """Read everything; None if the file is refused with the one exception that is allowed."""
    path.write_bytes(data)
    try:
        return count(path)
    except TraceFormatError as error:
        refusal = error
    assert refusal.path == str(path)
    assert refusal.offset is not None
    return None


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("damaged") / "trace.dat"


QUICK = settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])


@pytest.mark.parametrize("kind", INTACT)
@given(data=st.data())
@QUICK
def test_a_file_cut_anywhere_is_read_as_far_as_it_goes_or_refused(kind: str, data: st.DataObject, path: Path) -> None:
    whole = INTACT[kind]
    cut = data.draw(st.integers(0, len(whole) - 1))
    read_or_refuse(path, whole[:cut])


@pytest.mark.parametrize("kind", INTACT)
@given(data=st.data())
@QUICK
def test_a_flipped_bit_anywhere_raises_nothing_but_trace_format_error(
    kind: str, data: st.DataObject, path: Path
) -> None:
    changed = bytearray(INTACT[kind])
    changed[data.draw(st.integers(0, len(changed) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    read_or_refuse(path, bytes(changed))


@pytest.mark.parametrize("kind", INTACT)
@given(data=st.data())
@settings(QUICK, max_examples=15)  # counting memory is slow
def test_any_length_anywhere_costs_neither_time_nor_memory(kind: str, data: st.DataObject, path: Path) -> None:
    changed = bytearray(INTACT[kind])
    size = data.draw(st.sampled_from((2, 4, 8)))
    place = data.draw(st.integers(0, len(changed) - size))
    value = data.draw(st.sampled_from(LENGTHS))
    changed[place : place + size] = (value % (1 << 8 * size)).to_bytes(size, "little")
    tracemalloc.start()
    try:
        read_or_refuse(path, bytes(changed))
        assert tracemalloc.get_traced_memory()[1] < 64 << 20
    finally:
        tracemalloc.stop()


@given(data=st.data())
@QUICK
def test_blocks_in_another_order_raise_nothing_but_trace_format_error(data: st.DataObject, path: Path) -> None:
    blocks = [V6[at : at + 4096] for at in range(0, len(V6), 4096)]
    read_or_refuse(path, b"".join(data.draw(st.permutations(blocks))))


@given(st.binary(max_size=2000))
@QUICK
def test_any_bytes_after_the_magic_are_read_or_refused(path: Path, data: bytes) -> None:
    read_or_refuse(path, MAGIC + b"7\0\0\x08" + data)


def test_damage_loses_only_its_page(path: Path) -> None:
    path.write_bytes(V6)
    before, damage = count(path)
    assert damage == 0
    file = TraceDatSource(path)
    cpu = next(cpu for cpu in file.buffers[0].cpus if cpu.size >= 3 * 4096)
    pages = list(file.pages(file.buffers[0], cpu))
    file.close()
    changed = bytearray(V6)
    # A commit that reaches over the page: the whole page is lost, and only it.
    struct.pack_into("<Q", changed, pages[1].offset + 8, 5000)
    path.write_bytes(changed)
    with open_trace(path) as trace:
        events = list(trace)
        lost = [event for event in events if event.is_loss]
        assert [event.cpu for event in lost] == [cpu.cpu]
        assert lost[0].fields["count"] is None
        assert f"damage at {pages[1].offset}" in lost[0].fields["reason"]
        assert trace.damage_count == 1
        assert trace.damage[0].offset == pages[1].offset + 8
    small = before - (len(events) - 1)
    assert 0 < small < before / 2
    times = [event.timestamp_ns for event in events if event.cpu == cpu.cpu]
    assert any(time > lost[0].timestamp_ns for time in times), "the pages after it are read"


def test_damage_is_counted_anew_in_each_reading(path: Path) -> None:
    changed = bytearray(V6)
    file = open_v6(path)
    page = next(file.pages(file.buffers[0], file.buffers[0].cpus[0]))
    file.close()
    struct.pack_into("<Q", changed, page.offset + 8, 5000)
    path.write_bytes(changed)
    with open_trace(path) as trace:
        assert [sum(event.is_loss for event in trace), trace.damage_count] == [1, 1]
        assert [sum(event.is_loss for event in trace), len(trace.damage)] == [1, 1]
        assert trace.statistics().damage == 1


def open_v6(path: Path) -> TraceDatSource:
    path.write_bytes(V6)
    return TraceDatSource(path)


def test_error_names_the_file_the_offset_and_the_expected_value(path: Path) -> None:
    path.write_bytes(b"\x17\x08\x44tracing9\0")
    with pytest.raises(
        TraceFormatError, match=r"trace\.dat, offset 10: trace\.dat version '9': only 6 and 7 can be read"
    ):
        TraceDatSource(path)


def test_an_empty_file_is_refused(path: Path) -> None:
    path.write_bytes(b"")
    with pytest.raises(TraceFormatError, match="it is empty"):
        TraceDatSource(path)


def test_pages_that_overlap_are_read_once(path: Path) -> None:
    """A table of CPUs that all name the same pages would cost a thousand times the file."""
    changed = bytearray(V6)
    file = open_v6(path)
    first, second = (cpu for cpu in file.buffers[0].cpus[:2])
    file.close()
    table = changed.index(struct.pack("<QQ", first.offset, first.size))
    struct.pack_into("<QQ", changed, table + 16, first.offset, first.size)
    path.write_bytes(changed)
    with TraceFileClosing(path) as overlapping:
        assert [cpu.cpu for cpu in overlapping.buffers[0].cpus] == [first.cpu]
        assert "overlap" in overlapping.damage[0].message
    assert second.size


class TraceFileClosing(TraceDatSource):
    def __enter__(self) -> TraceDatSource:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


def test_options_that_lead_in_a_circle_end(path: Path) -> None:
    head = MAGIC + b"7\0\0\x08" + struct.pack("<I", 4096) + b"none\0\0"
    place = len(head) + 8
    section = struct.pack("<HHIQ", 0, 0, 0, 14) + struct.pack("<HIQ", 0, 8, place)
    path.write_bytes(head + struct.pack("<Q", place) + section)
    with TraceFileClosing(path) as file:
        assert "circle" in file.damage[0].message


def bomb(kind: str) -> bytes:
    zeros = bytes(1 << 20)
    if kind == "zlib":
        packer = zlib.compressobj()
        return b"".join(packer.compress(zeros) for _ in range(64)) + packer.flush()
    compressor = zstd.ZstdCompressor()
    return b"".join(compressor.compress(zeros) for _ in range(64)) + compressor.flush()


@pytest.mark.parametrize("kind", ["zlib", "zstd"])
def test_decompression_bomb_is_limited_to_its_declared_size(kind: str) -> None:
    data = bomb(kind)
    expand = checked_bytes.decompressor(kind)
    tracemalloc.start()
    try:
        with pytest.raises(TraceFormatError, match="should be 4096 bytes, there are more"):
            expand(data, 4096)
        assert tracemalloc.get_traced_memory()[1] < 16 << 20
    finally:
        tracemalloc.stop()


def test_frame_of_another_than_its_declared_size_is_refused() -> None:
    assert checked_bytes.decompressor("zlib")(zlib.compress(b"abc"), 3) == b"abc"
    with pytest.raises(TraceFormatError, match="should be 4 bytes, there are 3"):
        checked_bytes.decompressor("zlib")(zlib.compress(b"abc"), 4)


def test_a_piece_of_pages_that_announces_too_much_is_not_expanded(path: Path) -> None:
    path.write_bytes(ZLIB)
    with TraceFileClosing(path) as file:
        place = next(cpu.offset for cpu in file.buffers[0].cpus if cpu.size)
    changed = bytearray(ZLIB)
    struct.pack_into("<I", changed, place + 8, tracedat_pages.CHUNK_MAX + 1)
    path.write_bytes(changed)
    with open_trace(path) as trace:
        list(trace)
        assert f"that become {tracedat_pages.CHUNK_MAX + 1} should follow" in trace.damage[0].message


def test_a_table_that_announces_too_much_is_not_expanded(path: Path) -> None:
    path.write_bytes(ZLIB)
    with TraceFileClosing(path) as file:
        place = struct.unpack("<Q", file.option(SECTION_KALLSYMS) or b"")[0]
    changed = bytearray(ZLIB)
    struct.pack_into("<I", changed, place + 16 + 4, checked_bytes.SECTION_MAX + 1)
    path.write_bytes(changed)
    with TraceFileClosing(path) as file:
        assert f"at most {checked_bytes.SECTION_MAX} are read" in file.damage[0].message


def test_a_zstd_frame_with_a_window_of_gigabytes_is_refused() -> None:
    options = {zstd.CompressionParameter.window_log: checked_bytes.ZSTD_WINDOW_LOG_MAX + 1}
    compressor = zstd.ZstdCompressor(options=options)
    data = compressor.compress(b"abc") + compressor.flush()  # without its size, the frame announces its window
    with pytest.raises(TraceFormatError, match="zstd: "):
        checked_bytes.decompressor("zstd")(data, 3)


def test_error_without_zstd_names_the_package_to_install(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, zstd.__name__, None)
    monkeypatch.delattr(sys.modules[zstd.__name__.partition(".")[0]], "zstd")
    path.write_bytes(ZSTD)
    with pytest.raises(ConfigurationError, match=f"compressed with zstd needs {zstd.__name__}: "):
        open_trace(path)


def test_zstd_is_imported_only_for_traces_that_need_it(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, zstd.__name__, None)
    monkeypatch.delattr(sys.modules[zstd.__name__.partition(".")[0]], "zstd")
    path.write_bytes(ZLIB)
    with open_trace(path) as trace:
        assert list(trace)
        assert not trace.damage


def test_an_unknown_compression_is_named() -> None:
    with pytest.raises(TraceFormatError, match="'lzo': zstd, zlib and none"):
        checked_bytes.decompressor("lzo")


def test_compressed_part_in_an_uncompressed_file_is_refused() -> None:
    with pytest.raises(TraceFormatError, match="in a file that says it has none"):
        checked_bytes.decompressor("none")(zlib.compress(b"abc"), 3)


def test_a_function_is_found_by_any_address_in_it() -> None:
    functions = KernelFunctions(
        b"0000000000000010 t first\n0000000000000040 T second\t[module]\n0000000000000050 t end\n"
    )
    assert functions.find(0x0F) is None
    assert functions.find(0x10) == ("first", 0)
    assert functions.find(0x3F) == ("first", 0x2F)
    assert functions.find(0x41) == ("second", 1)
    assert functions.find(0x50) is None


@given(st.binary(max_size=300))
def test_any_kallsyms_can_be_searched(text: bytes) -> None:
    KernelFunctions(text).find(5)


def test_escapes_of_printk_formats_are_resolved() -> None:
    assert unescaped(r"a\nb\\n\"c\x1b\q") == 'a\nb\\n"c\x1b\\q'


@given(st.text())
def test_escaped_symbols_round_trip(text: str) -> None:
    from aiotrace._formats.tracedat import escape

    assert unescaped(escape(text)) == text
