"""aiotrace._formats.tracedat: the sections and options, read back by the real trace-cmd."""

from __future__ import annotations

import re
import struct
import subprocess
from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aiotrace._formats import tracedat as trace_dat
from aiotrace.abc import CommandDefinition, Definition, EventDefinition, SymbolDefinition
from support import fakes

KEY = fakes.SYMBOL_KEY


def build(
    path: Path,
    pages: dict[int, Sequence[fakes.FakePage]],
    definitions: Sequence[Definition] = fakes.DEFINITIONS,
    options: Sequence[tuple[int, bytes]] = (),
    page_size: int = 4096,
) -> Path:
    content = bytearray(trace_dat.initial_header(page_size))
    content += bytes(page_size - len(content))
    regions = []
    for cpu, group in pages.items():
        start = len(content)
        for page in group:
            whole = page.header() + page.data + page.lost_count()
            content += whole + bytes(page_size - len(whole))
        regions.append(trace_dat.Region(cpu, start, len(content) - start))
    header = trace_dat.buffer_header(len(content))
    content[trace_dat.BUFFER_HEADER_PLACE : trace_dat.BUFFER_HEADER_PLACE + len(header)] = header
    tail, offset = trace_dat.encode_tail(
        len(content), page_size=page_size, clock="mono", regions=regions, definitions=definitions, options=options
    )
    content += tail
    place = trace_dat.OPTIONS_OFFSET_PLACE
    content[place : place + 8] = trace_dat.pack_options_offset(offset)
    path.write_bytes(content)
    return path


def run(trace_cmd: str, *arguments: str | Path) -> str:
    done = subprocess.run([trace_cmd, *arguments], capture_output=True, check=True)
    return done.stdout.decode("utf-8", "replace")


@pytest.mark.parametrize("page_size", [4096, 65536, 1 << 20])
def test_trace_cmd_prints_every_event_with_its_values(trace_cmd: str, tmp_path: Path, page_size: int) -> None:
    pages = {cpu: [fakes.make_page(cpu, n, 30) for n in range(3)] for cpu in (0, 1, 5)}
    text = run(trace_cmd, "report", "-t", build(tmp_path / "t.dat", pages, page_size=page_size))
    found = re.findall(r"worker_one-4200000 +\[(\d+)\] +(\d+)\.(\d+): count: +n=(\d+) what=a symbol", text)
    expected = [
        (cpu, 1_000_000_000 + n * 10_000_000 + cpu + (event + 1) * 1000, n * 1000 + event)
        for cpu in (0, 1, 5)
        for n in range(3)
        for event in range(30)
    ]
    assert sorted((int(cpu), int(s + ns), int(number)) for cpu, s, ns, number in found) == sorted(expected)
    assert "cpus=6" in text


def test_trace_cmd_prints_losses_where_they_were(trace_cmd: str, tmp_path: Path) -> None:
    pages = [fakes.make_page(0, 0, 2, lost=777), fakes.make_page(0, 1, 2), fakes.make_page(0, 2, 2, lost=-1)]
    lines = run(trace_cmd, "report", build(tmp_path / "t.dat", {0: pages})).splitlines()[1:]
    assert [line for line in lines if "count" not in line] == ["CPU:0 [777 EVENTS DROPPED]", "CPU:0 [EVENTS DROPPED]"]
    assert [n for n, line in enumerate(lines) if "DROPPED" in line] == [0, 5]


def test_trace_cmd_passes_over_an_empty_page(trace_cmd: str, tmp_path: Path) -> None:
    pages = [fakes.make_page(0, 0, 2), fakes.make_page(0, 1, 0), fakes.make_page(0, 2, 2, lost=9)]
    lines = run(trace_cmd, "report", build(tmp_path / "t.dat", {0: pages})).splitlines()[1:]
    assert len(lines) == 5
    assert "[9 EVENTS DROPPED]" in lines[2]


def test_trace_cmd_prints_stacks_and_the_function_graph(trace_cmd: str, tmp_path: Path) -> None:
    def stack(n: int) -> bytes:
        return struct.pack("=HBBiixxxx3Q", 4, 0, 0, fakes.PID, 3, KEY, KEY + 16, KEY + 40)

    def graph(n: int) -> bytes:
        if n % 2 == 0:
            return struct.pack("=HBBiQixxxx", 11, 0, 0, fakes.PID, KEY + 16, 0)
        return struct.pack("=HBBiQiIQQ", 10, 0, 0, fakes.PID, KEY + 16, 0, 0, 1_010_001_000, 1_010_003_000)

    pages = [fakes.make_page(0, 0, 1, payload=stack), fakes.make_page(0, 1, 2, payload=graph)]
    definitions = [*fakes.DEFINITIONS, SymbolDefinition(KEY + 16, "module.function")]
    text = run(trace_cmd, "report", build(tmp_path / "t.dat", {0: pages}, definitions))
    assert re.findall(r"=> (\S+)", text) == ["a_symbol", "module.function", f"{KEY + 40:x}"]
    assert "funcgraph" in text
    assert "module.function();" in text


def test_hostile_names_break_nothing(trace_cmd: str, tmp_path: Path) -> None:
    hostile: list[Definition] = [
        SymbolDefinition(KEY + 16, 'new\nline "quoted" \0 nul : colon \\ end'),
        SymbolDefinition(KEY + 32, ""),
        SymbolDefinition(KEY + 48, "\udc80"),
        SymbolDefinition(KEY + 64, '0xffff800000001010 : "forged"\n0xffff800000001010 : "forged"'),
        CommandDefinition(7, "evil\n4200000 forged"),
        CommandDefinition(8, ""),
        CommandDefinition(-9, "negative"),
        CommandDefinition(10, "é" * 40),
        EventDefinition(1002, "de\0mo", "bad", "name: bad\nID: 1002\nformat:\n\tgarbage {{{ \0"),
    ]
    after = fakes.event_format(1003, "after", [("u64 n", 8, 8, 0)], '"n=%llu", REC->n')
    definitions = [*fakes.DEFINITIONS, *hostile, EventDefinition(1003, "zzz", "after", after)]
    pages = [
        fakes.make_page(0, 0, 1),
        fakes.make_page(0, 1, 1, payload=lambda n: fakes.count_payload(n, KEY + 16, 7)),
        fakes.make_page(0, 2, 1, payload=lambda n: fakes.count_payload(n, KEY + 64, 10)),
        fakes.make_page(0, 3, 1, payload=lambda n: struct.pack("=HBBiQ", 1003, 0, 0, 8, n)),
    ]
    lines = run(trace_cmd, "report", build(tmp_path / "t.dat", {0: pages}, definitions)).splitlines()[1:]
    assert len(lines) == 4
    assert "worker_one-4200000" in lines[0] and lines[0].endswith("n=0 what=a symbol")
    assert "evil_4200000_fo-7" in lines[1]
    assert lines[1].endswith(r'what=new\nline "quoted" \x00 nul : colon \\ end')
    assert "é" * 7 + "-10" in lines[2] and "forged" in lines[2]
    assert lines[3].endswith("after:                n=3000")


def test_a_later_name_replaces_an_earlier_one(trace_cmd: str, tmp_path: Path) -> None:
    definitions = [*fakes.DEFINITIONS, CommandDefinition(fakes.PID, "renamed")]
    text = run(trace_cmd, "report", build(tmp_path / "t.dat", {0: [fakes.make_page()]}, definitions))
    assert text.count("renamed-4200000") == 20


def test_trace_cmd_skips_our_options_and_shows_statistics(trace_cmd: str, tmp_path: Path) -> None:
    statistics = trace_dat.cpu_statistics(trace_dat.CpuStatistics(3, 11, 7, 5, 300))
    options = [
        (trace_dat.OPTION_STREAM, b"x" * 99),
        (trace_dat.OPTION_PAGES, b""),
        (trace_dat.OPTION_CPUSTAT, statistics),
    ]
    path = build(tmp_path / "t.dat", {0: [fakes.make_page()]}, options=options)
    text = run(trace_cmd, "report", "--stat", path)
    assert re.search(r"CPU: 3\nentries: 0\noverrun: 7\n.*\nbytes: 300\ndropped events: 5\nread events: 11", text)
    assert run(trace_cmd, "report", path).count("count:") == 20


def test_the_options_offset_is_what_makes_it_a_trace(tmp_path: Path) -> None:
    path = build(tmp_path / "t.dat", {0: [fakes.make_page()]})
    assert trace_dat.unpack_options_offset(path.read_bytes()[: trace_dat.INITIAL_HEADER_SIZE]) > 4096
    assert trace_dat.unpack_options_offset(trace_dat.initial_header(4096)) == 0
    assert trace_dat.unpack_options_offset(b"\x00" * 64) == 0
    assert trace_dat.unpack_options_offset(trace_dat.MAGIC) == 0


rows = st.builds(trace_dat.PageRow, st.integers(0, 2**64 - 1), *(st.integers(0, 2**32 - 1) for _ in range(4)))


@given(st.lists(rows))
def test_page_rows_round_trip(items: list[trace_dat.PageRow]) -> None:
    assert trace_dat.unpack_page_rows(trace_dat.pack_page_rows(items) + b"rest") == items


@given(st.text())
def test_escaped_text_is_one_line(text: str) -> None:
    """The round trip is tested where it is read: tests/traces/test_tracedat_file.py."""
    assert not re.search(r"[\x00-\x1f\x7f]", trace_dat.escape(text))
