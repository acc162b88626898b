"""aiotrace listen: the command, in a process of its own."""

from __future__ import annotations

import argparse
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import anyio
import pytest

from aiotrace._cli import listen, main
from aiotrace._collector.collector import CollectorStatistics
from aiotrace.decode import open_trace
from support import fakes, stores
from support.programs import environment
from support.senders import Sender


@contextmanager
def listening(*arguments: str) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """The process and the address at which it listens."""
    command = [sys.executable, "-m", "aiotrace", "listen", *arguments]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment()
    ) as process:
        try:
            assert process.stderr is not None
            line = process.stderr.readline()
            assert line.startswith("aiotrace listen: "), line + process.stderr.read()
            yield process, line.removeprefix("aiotrace listen: ").strip()
        finally:
            process.kill()


def send(address: str, pages: list[fakes.FakePage]) -> Sender:
    """The stream, without its end."""

    async def run() -> Sender:
        sender = Sender(fakes.make_info())
        sender.add(pages)
        await sender.connect(address)
        await sender.until_acknowledged(len(pages))
        sender.disconnect()
        return sender

    return anyio.run(run)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_listener_stores_what_arrives_and_ends_on_request(tmp_path: Path, number: signal.Signals) -> None:
    pages = fakes.make_pages(40, 2)
    with listening(f"unix:{tmp_path / 'socket'}", "-o", str(tmp_path / "traces"), "--text") as (process, address):
        send(address, pages)
        process.send_signal(number)
        output, errors = process.communicate(timeout=30)
    assert process.returncode == 0
    assert "40 acknowledged, 0 came twice, 0 events lost" in errors
    lines = output.splitlines()
    assert len(lines) == 800
    assert all(line.startswith("a host:4321: ") and " count: " in line for line in lines), lines[0]
    (path,) = (tmp_path / "traces").glob("*.dat")
    with open_trace(path) as trace:
        assert sum(not event.is_loss for event in trace) == 800
    assert not (tmp_path / "socket").exists()


def test_killed_listener_resumes_where_it_was(tmp_path: Path) -> None:
    pages = fakes.make_pages(40, 2)
    arguments = (f"unix:{tmp_path / 'socket'}", "-o", str(tmp_path / "traces"))
    with listening(*arguments) as (process, address):
        sender = send(address, pages)
        process.kill()
    with listening(*arguments) as (process, address):

        async def go_on() -> None:
            await sender.connect(address)
            await sender.end(stores.LEDGER)
            sender.disconnect()

        anyio.run(go_on)
        process.terminate()
        _, errors = process.communicate(timeout=30)
    assert sender.ended
    assert process.returncode == 0
    assert "1 streams ended, 0 events on 0 pages" in errors, "nothing had to be sent again"
    (path,) = (tmp_path / "traces").glob("*.dat")
    with open_trace(path) as trace:
        assert sum(not event.is_loss for event in trace) == 800


def test_an_address_that_is_not_safe_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["listen", "tcp://0.0.0.0:0", "-o", str(tmp_path / "traces")]) == 2
    assert "can be reached from elsewhere, and without TLS" in capsys.readouterr().err


def test_unavailable_address_or_folder_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").touch()
    assert main(["listen", f"unix:{tmp_path / 'socket'}", "-o", str(tmp_path / "file")]) == 1
    assert f"{tmp_path / 'file'}: File exists" in capsys.readouterr().err
    assert main(["listen", f"unix:{tmp_path / 'file'}", "-o", str(tmp_path / "traces")]) == 1
    assert "no socket" in capsys.readouterr().err


@pytest.mark.parametrize(("text", "size"), [("1", 1), ("10G", 10 << 30), ("5k", 5 << 10), ("2T", 2 << 40)])
def test_sizes_have_units(text: str, size: int) -> None:
    assert listen._size(text) == size


@pytest.mark.parametrize(("text", "age"), [("1", 1), ("90s", 90), ("15m", 900), ("1h", 3600), ("2D", 172800)])
def test_ages_have_units(text: str, age: int) -> None:
    assert listen._age(text) == age


@pytest.mark.parametrize("text", ["", "0", "-1", "G", "1.5G", "x", "1w"])
def test_invalid_size_or_age_is_refused(text: str) -> None:
    with pytest.raises(argparse.ArgumentTypeError, match="should be bytes"):
        listen._size(text)
    with pytest.raises(argparse.ArgumentTypeError, match="should be seconds"):
        listen._age(text)


def test_status_line_shows_the_progress() -> None:
    before = CollectorStatistics(
        clients=1, connections=3, connections_refused=0, connections_broken=0, pages=10, bytes=0, events=7,
        pages_acknowledged=8, pages_duplicate=0, events_lost=5, streams_ended=0, failures=0, stalled="",
        disk_used=3 << 20, disk_budget=None, traces_deleted=0,
    )  # fmt: skip
    now = replace(before, pages=15, bytes=1_500_000, disk_budget=10 << 30, traces_deleted=2, stalled="no room")
    assert listen._line(before, before) == ("1 clients, 0 pages/s, 0.0 MB/s, 8 acknowledged, 5 events lost, disk 3 MiB")
    assert listen._line(before, now) == (
        "1 clients, 5 pages/s, 1.5 MB/s, 8 acknowledged, 5 events lost, disk 3 MiB of 10 GiB, 2 traces deleted, "
        "STALLED: no room"
    )
