"""The examples, the demo and the README's program, each run as a user would: in a process of its own."""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import aiotrace.testing
import custom_sink
import http_app
import load
from support import ROOT

EXAMPLES = ROOT / "examples"
PROGRAMS = [path.name for path in sorted(EXAMPLES.glob("*.py")) if "__main__" in path.read_text(encoding="utf-8")]


def run(name: str, *arguments: object, cwd: Path | None = None, status: int = 0) -> str:
    """Run an example to its end, with warnings as errors; its output."""
    command = [sys.executable, "-W", "error", str(EXAMPLES / name), *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, cwd=cwd)
    assert done.returncode == status, done.stdout + done.stderr
    return done.stdout


def numbers_of(text: str) -> list[float]:
    return [float(number.replace(",", "")) for number in re.findall(r"\d[\d,]*(?:\.\d+)?", text)]


def row_of(output: str, name: str) -> list[float]:
    """The numbers of the line that begins with `name`."""
    line = next(line for line in output.splitlines() if line.startswith(name))
    return numbers_of(line.removeprefix(name))


def count_events(trace: Path) -> dict[str, int]:
    counts: dict[str, int] = {}
    with aiotrace.open_trace(trace) as events:
        for event in events:
            counts[event.name] = counts.get(event.name, 0) + 1
    return counts


def test_examples_exist() -> None:
    assert {"http_service.py", "http_service_trio.py", "load.py", "sensors.py", "slow_sink.py"} <= set(PROGRAMS)


@pytest.mark.parametrize("name", PROGRAMS)
def test_each_example_describes_itself(name: str) -> None:
    help_text = run(name, "--help")
    docstring = (EXAMPLES / name).read_text(encoding="utf-8").split('"""')[1]
    assert docstring.strip() in help_text


def test_the_demo_counts_as_many_events_as_the_ledger(trace_cmd: str, tmp_path: Path) -> None:
    output = run("demo.py", "--requests", 300, "--connections", 7, "--directory", tmp_path)
    assert output.count("as the ledger says") == 2
    assert output.count("nothing lost") == 2
    for backend in ("asyncio", "trio"):
        assert count_events(tmp_path / f"{backend}.dat") == {
            "http:connection_opened": 7,
            "http:connection_closed": 7,
            "http:request": 300,
            "http:request_done": 300,
            "span:begin": 150,
            "span:end": 150,
        }


def test_the_demo_fails_when_trace_cmd_prints_another_number(tmp_path: Path) -> None:
    forger = tmp_path / "trace-cmd"
    forger.write_text("#!/bin/sh\necho 'python-1 [000] 1.000001: request: method=GET'\n")
    forger.chmod(0o755)
    environment = {**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}"}
    command = [sys.executable, str(EXAMPLES / "demo.py"), "--requests", "3", "--directory", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, env=environment)
    assert done.returncode == 1
    assert done.stdout.count("NOT as the ledger says") == 2
    assert "DISAGREE" in done.stderr


def test_the_demo_without_trace_cmd_has_not_passed(tmp_path: Path) -> None:
    environment = {**os.environ, "PATH": str(tmp_path)}
    command = [sys.executable, str(EXAMPLES / "demo.py"), "--requests", "3", "--directory", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, env=environment)
    assert done.returncode == 2
    assert "NOT RUN" in done.stdout
    assert "NOT RUN" in done.stderr


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("head", "status", "keep_alive"),
    [
        (b"GET / HTTP/1.1\r\nHost: x\r\n\r\n", 200, True),
        (b"GET /users/ada HTTP/1.1\r\nConnection: Close\r\n\r\n", 200, False),
        (b"GET / HTTP/1.0\r\n\r\n", 200, False),
        (b"GET /nowhere HTTP/1.1\r\n\r\n", 404, True),
        (b"POST / HTTP/1.1\r\n\r\n", 405, True),
        (b"\x00\xff\r\n\r\n", 400, False),
    ],
)
async def test_the_service_answers_what_it_is_asked(head: bytes, status: int, keep_alive: bool) -> None:
    data, kept = await http_app.answer(head)
    text, _, body = data.partition(b"\r\n\r\n")
    assert text.startswith(b"HTTP/1.1 %d " % status)
    assert b"Content-Length: %d\r\n" % len(body) in text
    assert (b"Connection: keep-alive" in text) == kept == keep_alive


@pytest.mark.parametrize(("status", "good"), [(200, True), (404, False)])
def test_the_client_checks_each_answer(status: int, good: bool) -> None:
    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(asyncio.IncompleteReadError):
            while await reader.readuntil(b"\r\n\r\n"):
                writer.write(b"HTTP/1.1 %d X\r\nContent-Length: 2\r\n\r\nok" % status)
        writer.close()

    async def serve_and_load() -> bool:
        async with await asyncio.start_server(handle, "127.0.0.1", 0) as server:
            return await load.run(server.sockets[0].getsockname()[1], requests=3, connections=2)

    assert asyncio.run(serve_and_load()) is good


def test_client_reports_a_missing_service() -> None:
    output = subprocess.run(
        [sys.executable, str(EXAMPLES / "load.py"), "--port", "1", "--requests", "1"],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert output.returncode == 1
    assert "port 1" in output.stderr


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_sensors_that_wait_lose_nothing(backend: str) -> None:
    output = run("sensors.py", "--sensors", 3, "--readings", 2000, "--backend", backend)
    _, written, delivered, dropped = row_of(output, "reading(...)")
    assert written == delivered
    assert written + dropped == 6000
    assert dropped > 0, "the storage is meant to be too slow for them"
    _, written, delivered, dropped = row_of(output, "reading.send(...)")
    assert (written, delivered, dropped) == (6000, 6000, 0)


def test_a_sink_of_ones_own_counts_every_event() -> None:
    output = run("custom_sink.py", "--ticks", 5000)
    assert re.match(r"writer 0: 5,000 events in [\d,]+ bytes\n$", output)


@pytest.mark.anyio
async def test_a_sink_of_ones_own_keeps_the_contract() -> None:
    await aiotrace.testing.check_sink(custom_sink.CountingSink)


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_a_slow_viewer_misses_pages_and_the_file_none(backend: str, tmp_path: Path) -> None:
    trace = tmp_path / "trace.dat"
    output = run("slow_sink.py", trace, "--steps", 30_000, "--backend", backend)
    ledger, *sinks = [line.split(":")[-1] for line in output.splitlines() if "viewer:" not in line]
    written, dropped = numbers_of(ledger)
    assert dropped == 0
    (file_had, file_offered, file_missed), (viewer_had, viewer_offered, viewer_missed) = map(numbers_of, sinks)
    assert (file_had, file_offered, file_missed) == (written, written, 0)
    assert viewer_missed > 0
    assert viewer_had + viewer_missed == viewer_offered == written
    assert count_events(trace) == {"work:step": written}


def _readme_blocks() -> list[str]:
    return re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(encoding="utf-8"), re.DOTALL)


def test_readme_program_runs_and_its_trace_reads_as_described(tmp_path: Path) -> None:
    program, reading, *_ = _readme_blocks()
    script = tmp_path / "program.py"
    script.write_text(program + "\n" + reading, encoding="utf-8")
    done = subprocess.run(
        [sys.executable, "-W", "error", "-X", "dev", str(script)],
        capture_output=True,
        text=True,
        timeout=60,
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("http:request_done") == 2
    assert "'path': '/index'" in done.stdout
    assert count_events(tmp_path / "trace.dat") == {"http:request_done": 2, "span:begin": 1, "span:end": 1}


def test_readme_never_says_to_install_the_other_aiotrace() -> None:
    assert "pip install aiotrace" not in (ROOT / "README.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_every_message_is_echoed(backend: str) -> None:
    assert run("echo.py", "--clients", 3, "--messages", 100, "--backend", backend) == "99 messages came back\n"


def test_the_collected_traces_hold_what_the_ledgers_say() -> None:
    output = run("collected.py", "--orders", 500)
    assert "the traces hold exactly what the ledgers say was delivered" in output
    assert row_of(output, "corner shop")[0] == row_of(output, "market hall")[0] == 500
