"""aiotrace.collect: producers over sockets, and the files that are in the folder afterwards."""

from __future__ import annotations

import os
import socket
import threading
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import anyio
import pytest

from aiotrace._collector.collect import collect
from aiotrace._collector.collector import Collector
from aiotrace._collector.folder import Folder
from aiotrace._formats.frames import Level
from aiotrace._page.definitions import SymbolDefinition
from aiotrace.abc import Page
from aiotrace.decode import open_trace
from support import fakes, senders, stores
from support.senders import Sender, happens

pytestmark = pytest.mark.anyio
LEDGER = stores.LEDGER


def info_of(number: int = 0, **options: int) -> Any:
    return fakes.make_info(stream_id=number.to_bytes(16, "big"), **options)


@asynccontextmanager
async def collector(tmp_path: Path, *addresses: str, **options: Any) -> AsyncIterator[Collector]:
    addresses = addresses or (f"unix:{tmp_path / 'socket'}",)
    async with collect(*addresses, folder=tmp_path / "traces", **options) as collecting:
        yield collecting
    assert collecting.failure is None


def events(tmp_path: Path) -> Counter[tuple[int, int]]:
    """(CPU, n) of all events in the folder."""
    found: Counter[tuple[int, int]] = Counter()
    for path in (tmp_path / "traces").glob("*.dat"):
        with open_trace(path) as trace:
            found.update((event.cpu, event.fields["n"]) for event in trace if not event.is_loss)
            assert not trace.damage_count
    return found


def place(page: Page) -> tuple[int, int, int]:
    return page.writer, page.sequence, page.offset


def modes(folder: Path) -> set[int]:
    return {path.stat().st_mode & 0o777 for path in folder.iterdir()}


def unfinished(tmp_path: Path) -> list[str]:
    return [name for name in os.listdir(tmp_path / "traces") if ".dat." in name]


@pytest.mark.parametrize("address", ["unix", "tcp"])
@pytest.mark.parametrize("level", list(Level))
async def test_a_stream_is_kept_acknowledged_and_closed(tmp_path: Path, address: str, level: Level) -> None:
    pages = fakes.make_pages(300, 3)
    addresses = {"unix": (), "tcp": ("tcp://127.0.0.1:0",)}[address]
    async with collector(tmp_path, *addresses) as collecting:
        sender = Sender(info_of(), level=level)
        sender.add(pages)
        await sender.connect(collecting.addresses[0])
        await sender.end(LEDGER)
        assert (sender.over, sender.ended) == (None, True)
        assert sorted(map(place, sender.acknowledged)) == sorted(map(place, pages))
        statistics = collecting.statistics()
        assert (statistics.pages, statistics.pages_acknowledged, statistics.streams_ended) == (300, 300, 1)
        assert (statistics.events, statistics.events_lost) == (6000, 4)
        sender.disconnect()
    assert events(tmp_path) == stores.expected(pages)
    assert unfinished(tmp_path) == []


async def test_a_trace_is_read_and_followed_while_it_grows(tmp_path: Path) -> None:
    async with collector(tmp_path) as collecting:
        sender = Sender(info_of())
        sender.add(fakes.make_pages(20, 2))
        await sender.connect(collecting.addresses[0])
        await sender.until_acknowledged(20)
        assert events(tmp_path) == stores.expected(fakes.make_pages(20, 2))
        (name,) = (name for name in os.listdir(tmp_path / "traces") if name.endswith(".dat"))
        with open_trace(tmp_path / "traces" / name) as trace:
            followed = trace.follow()
            assert [next(followed).name for _ in range(400)] == ["demo:count"] * 400
            sender.add(fakes.make_pages(40, 2)[20:])
            await sender.end(LEDGER)
            rest = await anyio.to_thread.run_sync(lambda: [event for event in followed if not event.is_loss])
            assert len(rest) == 400
        sender.disconnect()


async def test_reconnecting_producer_learns_what_is_stored(tmp_path: Path) -> None:
    pages = fakes.make_pages(120, 2)
    async with collector(tmp_path) as collecting:
        sender = Sender(info_of())
        for start in range(0, 120, 30):
            sender.add(pages[start : start + 30])
            await sender.connect(collecting.addresses[0])
            await sender.until_acknowledged(start + 10)
        await sender.end(LEDGER)
        assert sender.granted[-1].grant.definitions == len(fakes.DEFINITIONS)
        sender.disconnect()
        assert collecting.statistics().pages_duplicate == 0
    assert events(tmp_path) == stores.expected(pages)


async def test_a_newer_connection_takes_the_stream_over(tmp_path: Path) -> None:
    pages = fakes.make_pages(60)
    async with collector(tmp_path) as collecting:
        sender = Sender(info_of())
        sender.add(pages[:30])
        await sender.connect(collecting.addresses[0])
        await sender.until_acknowledged(30)
        half_open, sender.sock = sender.sock, None  # the producer's end never says that it is gone
        sender.add(pages[30:])
        await sender.connect(collecting.addresses[0])
        await sender.end(LEDGER)
        assert (sender.over, sender.ended, len(sender.acknowledged)) == (None, True, 60)
        assert half_open is not None
        half_open.close()
        sender.disconnect()
    assert events(tmp_path) == stores.expected(pages)


async def test_abandoned_connection_does_not_take_the_stream_from_the_next(tmp_path: Path) -> None:
    """They wait in the kernel's queue while the collector is stopped, and are all found there at once."""
    async with collector(tmp_path) as collecting:
        sender = Sender(info_of())
        sender.add(fakes.make_pages(30))
        for _ in range(20):
            await sender.connect(collecting.addresses[0])
            sender.send()
        await sender.end(LEDGER)
        assert (sender.over, sender.ended) == (None, True)
        sender.disconnect()
        assert collecting.statistics().connections == 20
    assert events(tmp_path) == stores.expected(fakes.make_pages(30))


async def test_pages_received_before_the_connection_was_lost_are_stored(tmp_path: Path) -> None:
    pages = fakes.make_pages(50, 2)
    async with collector(tmp_path) as collecting:
        sender = Sender(info_of())
        sender.add(pages)
        await sender.connect(collecting.addresses[0])
        await sender.until(lambda: bool(sender.granted) and not sender.producer.pending())
        sender.disconnect()  # no acknowledgement was waited for
        await sender.connect(collecting.addresses[0])
        await sender.end(LEDGER)
        assert sender.ended
        sender.disconnect()
    assert events(tmp_path) == stores.expected(pages)


async def test_unended_stream_closes_with_its_collector_and_resumes_in_the_next(tmp_path: Path) -> None:
    pages = fakes.make_pages(100, 2)
    sender = Sender(info_of())
    for start in range(0, 100, 50):
        async with collector(tmp_path) as collecting:
            sender.add(pages[start : start + 50])
            await sender.connect(collecting.addresses[0])
            await sender.until_acknowledged(start + 20)
        await sender.until(lambda: False)  # what came was acknowledged before the end
        assert unfinished(tmp_path) == []
    async with collector(tmp_path) as collecting:
        await sender.connect(collecting.addresses[0])
        await sender.end(LEDGER)
        sender.disconnect()
    assert sorted(map(place, sender.acknowledged)) == sorted(map(place, pages))
    assert events(tmp_path) == stores.expected(pages)


async def test_producer_that_missed_the_end_acknowledgement_gets_it_again(tmp_path: Path) -> None:
    sender = Sender(info_of())
    sender.add(fakes.make_pages(5))
    async with collector(tmp_path) as collecting:
        await sender.connect(collecting.addresses[0])
        await sender.until_acknowledged(5)
        sender.producer.end(LEDGER)
        sender.send()
        await happens(lambda: collecting.statistics().streams_ended == 1)
        sender.disconnect()
        assert not sender.ended
    async with collector(tmp_path) as collecting:
        await sender.connect(collecting.addresses[0])
        await sender.until(lambda: sender.ended)
        assert (sender.over, sender.granted[-1].grant.ended) == (None, True)
        sender.disconnect()
    assert len(list((tmp_path / "traces").glob("*.dat"))) == 1


async def test_many_simultaneous_streams_are_all_stored(tmp_path: Path) -> None:
    async with collector(tmp_path) as collecting:

        async def send(number: int) -> None:
            sender = Sender(info_of(number))
            sender.add(fakes.make_page(number % 3, n, first=(number * 40 + n) * 1000) for n in range(40))
            await sender.connect(collecting.addresses[0])
            await sender.end(LEDGER)
            assert (sender.ended, len(sender.acknowledged)) == (True, 40)
            sender.disconnect()

        async with anyio.create_task_group() as tasks:
            for number in range(30):
                tasks.start_soon(send, number)
        assert collecting.statistics().streams_ended == 30
    assert len(list((tmp_path / "traces").glob("*.dat"))) == 30
    assert len(events(tmp_path)) == 30 * 40 * 20


# --- disks that are full, or fail ---------------------------------------------------------------


async def stalled(collecting: Collector) -> str:
    await happens(lambda: collecting.statistics().stalled != "")
    return collecting.statistics().stalled


async def test_exhausted_disk_budget_stops_acknowledgements_and_is_reported(tmp_path: Path) -> None:
    pages = fakes.make_pages(60)
    async with collector(tmp_path, budget=512 << 10) as collecting:
        sender = Sender(info_of())
        ballast = tmp_path / "traces" / "ballast"
        ballast.write_bytes(bytes(512 << 10))
        sender.add(pages)
        await sender.connect(collecting.addresses[0])
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(sender.until_acknowledged, 60)
            assert "of a budget of 524288: make room, or allow more" in await stalled(collecting)
            await happens(lambda: collecting.statistics().pages == 60)  # it is heard all the time
            assert (sender.acknowledged, sender.over) == ([], None)
            ballast.unlink()
        assert len(sender.acknowledged) == 60
        assert collecting.statistics().stalled == ""
        await sender.end(LEDGER)
        sender.disconnect()
    assert events(tmp_path) == stores.expected(pages)


@pytest.mark.parametrize("fault", ["pwritev", "fdatasync", "open"])
async def test_a_disk_that_fails_now_and_then_loses_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fault: str
) -> None:
    pages = fakes.make_pages(200, 3)
    async with collector(tmp_path, commit_interval=0) as collecting:
        faulty = fakes.FaultyOs({fault: [None, None, stores.EIO, None, None, None, stores.NO_SPACE]})
        stores.replace_os(monkeypatch, faulty)
        sender = Sender(info_of())
        sender.add(pages)
        while not sender.ended:
            await sender.connect(collecting.addresses[0])
            await sender.end(LEDGER)
        assert len(sender.acknowledged) == 200
        assert not faulty.faults[fault]
        sender.disconnect()
        assert collecting.statistics().failures
    assert events(tmp_path) == stores.expected(pages)


class SlowDisk(fakes.FaultyOs):
    """An fdatasync lasts until it is let through."""

    def __init__(self) -> None:
        super().__init__()
        self.passes = threading.Event()
        self.passes.set()
        self.waits = False

    def fdatasync(self, fd: int) -> None:
        self.waits = not self.passes.is_set()
        assert self.passes.wait(senders.DEADLINE)
        os.fdatasync(fd)


async def test_nothing_is_acknowledged_as_fsynced_before_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    disk = SlowDisk()
    stores.replace_os(monkeypatch, disk)
    pages = fakes.make_pages(30)
    async with collector(tmp_path) as collecting:
        sender = Sender(info_of())
        sender.add(pages[:10])
        await sender.connect(collecting.addresses[0])
        await sender.until_acknowledged(10)
        disk.passes.clear()
        try:
            sender.add(pages[10:])
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(sender.until_acknowledged, 30)
                await happens(lambda: len(events(tmp_path)) == 600)  # all is written
                await happens(lambda: disk.waits or collecting.statistics().pages_acknowledged > 10)
                assert collecting.statistics().pages_acknowledged == len(sender.acknowledged) == 10
                disk.passes.set()
        finally:
            disk.passes.set()
        assert len(sender.acknowledged) == 30
        sender.disconnect()


async def test_full_trace_is_closed_while_its_stream_continues(tmp_path: Path) -> None:
    pages = fakes.make_pages(100, 2)
    async with collector(tmp_path, max_size=20 * 4096) as collecting:
        sender = Sender(info_of())
        sender.add(pages)
        await sender.connect(collecting.addresses[0])
        await sender.until_acknowledged(100)
        await happens(lambda: len(unfinished(tmp_path)) <= 3)
        await sender.end(LEDGER)
        sender.disconnect()
    assert len(list((tmp_path / "traces").glob("*.dat"))) >= 5
    assert events(tmp_path) == stores.expected(pages)


async def test_an_old_trace_is_closed_though_nothing_comes(tmp_path: Path) -> None:
    async with collector(tmp_path, max_age=0.05) as collecting:
        sender = Sender(info_of())
        sender.add(fakes.make_pages(3))
        await sender.connect(collecting.addresses[0])
        await sender.until_acknowledged(3)
        folder = Folder.__new__(Folder)
        folder.path = str(tmp_path / "traces")
        await happens(lambda: len(folder.traces_of(info_of().stream_id)) == 2)
        sender.add(fakes.make_pages(6)[3:])
        await sender.end(LEDGER)
        sender.disconnect()
    assert events(tmp_path) == stores.expected(fakes.make_pages(6))


async def test_a_fast_client_is_served_beside_a_slow_disk_of_another(tmp_path: Path) -> None:
    """Whatever waits for one stream waits for that one alone, unless the disk is full for all."""
    async with collector(tmp_path) as collecting:
        other = Sender(info_of(1))
        await other.connect(collecting.addresses[0])
        await other.until(lambda: bool(other.granted))
        sender = Sender(info_of(2))
        sender.add(fakes.make_pages(50))
        await sender.connect(collecting.addresses[0])
        await sender.end(LEDGER)
        assert sender.ended
        other.disconnect()
        sender.disconnect()


# --- who is let in ------------------------------------------------------------------------------


TOKEN = "a token that is long enough"


@pytest.mark.parametrize("token", [None, "another token, as long"])
async def test_clients_without_the_token_are_refused(
    tmp_path: Path, token: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLLECTOR_TOKEN", TOKEN)
    async with collector(tmp_path, "tcp://127.0.0.1:0", token_env="COLLECTOR_TOKEN") as collecting:
        sender = Sender(info_of(), token=token)
        sender.add(fakes.make_pages(3))
        await sender.connect(collecting.addresses[0])
        await sender.until(lambda: False)
        assert sender.over in ("a token is needed", "the token is wrong")
        assert collecting.statistics().connections_refused == 1
        good = Sender(info_of(1), token=TOKEN)
        good.add(fakes.make_pages(3))
        await good.connect(collecting.addresses[0])
        await good.end(LEDGER)
        assert good.ended
        good.disconnect()
        sender.disconnect()
    assert sum(events(tmp_path).values()) == 60


@pytest.mark.parametrize(
    "garbage",
    [b"GET / HTTP/1.1\r\n\r\n" * 10, bytes(100), b"\xf7aio" * 100, b"\x16\x03\x01" + bytes(200), bytes(1 << 20)],
    ids=["http", "zeros", "magic", "tls", "much"],
)
async def test_client_of_another_protocol_is_cut_off_and_others_are_served(tmp_path: Path, garbage: bytes) -> None:
    async with collector(tmp_path) as collecting:
        sender = Sender(info_of())
        sender.add(fakes.make_pages(20))
        await sender.connect(collecting.addresses[0])
        bad = await senders.connect(collecting.addresses[0])
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(sender.end, LEDGER)
            with pytest.raises(OSError, match=r"Broken pipe|reset"):
                await _shout(bad, garbage)
        bad.close()
        assert sender.ended
        assert collecting.statistics().connections_broken == 1
        sender.disconnect()


async def _shout(sock: socket.socket, data: bytes) -> None:
    with anyio.fail_after(senders.DEADLINE):
        while True:
            try:
                sock.send(data)
            except BlockingIOError:
                await anyio.wait_writable(sock)
            await anyio.lowlevel.checkpoint()


async def test_silent_client_is_cut_off(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("aiotrace._protocol.collector.HANDSHAKE_PATIENCE", 0.1)
    async with collector(tmp_path) as collecting:
        idle = await senders.connect(collecting.addresses[0])
        with anyio.fail_after(senders.DEADLINE):
            await anyio.wait_readable(idle)
        assert b"sent no hello" in idle.recv(1000)
        idle.close()


async def test_a_producer_that_falls_silent_is_cut_off(tmp_path: Path) -> None:
    async with collector(tmp_path) as collecting:
        sender = Sender(info_of(), heartbeat=0.05)
        await sender.connect(collecting.addresses[0])
        await sender.until(lambda: bool(sender.granted))
        await happens(lambda: collecting.statistics().clients == 0)
        assert collecting.statistics().connections_broken == 1
        sender.disconnect()


async def test_each_peer_has_limits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("aiotrace._collector.collector.STRANGERS_PER_PEER_MAX", 3)
    monkeypatch.setattr("aiotrace._collector.collector.CLIENTS_PER_PEER_MAX", 5)
    async with collector(tmp_path) as collecting:
        strangers = [await senders.connect(collecting.addresses[0]) for _ in range(10)]
        await happens(lambda: collecting.statistics().connections_refused == 7)
        for stranger in strangers:
            stranger.close()
        await happens(lambda: not collecting._connections)
        known = [Sender(info_of(number)) for number in range(6)]
        for sender in known:
            await sender.connect(collecting.addresses[0])
            await sender.until(lambda sender=sender: bool(sender.granted))  # type: ignore[misc]
        assert [sender.over is None for sender in known] == [True] * 5 + [False]
        for sender in known:
            sender.disconnect()


async def test_memory_is_granted_while_there_is_some(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("aiotrace._collector.state.MEMORY", 16 * 4096)
    monkeypatch.setattr("aiotrace._collector.state.SHARE", 4)
    async with collector(tmp_path) as collecting:
        known = [Sender(info_of(number)) for number in range(30)]
        for sender in known:
            await sender.connect(collecting.addresses[0])
            await sender.until(lambda sender=sender: bool(sender.granted))  # type: ignore[misc]
        credits = [sender.granted[0].grant.credit for sender in known if sender.granted]
        assert credits == sorted(credits, reverse=True)
        assert (credits[0], credits[-1], sum(credits)) == (4, 1, 16)
        assert {sender.over for sender in known if not sender.granted} == {
            "the collector has no memory left for a connection with pages of 4096 bytes"
        }
        for sender in known:
            sender.disconnect()
        await happens(lambda: not collecting._connections)
        late = Sender(info_of(99))
        late.add(fakes.make_pages(40))
        await late.connect(collecting.addresses[0])
        await late.end(LEDGER)
        assert (late.granted[0].grant.credit, late.ended) == (4, True)
        late.disconnect()


async def test_another_stream_with_the_id_of_one_that_is_there_is_refused(tmp_path: Path) -> None:
    async with collector(tmp_path) as collecting:
        sender = Sender(info_of(7))
        sender.add(fakes.make_pages(3))
        await sender.connect(collecting.addresses[0])
        await sender.until_acknowledged(3)
        other = Sender(info_of(7, page_size=8192))
        await other.connect(collecting.addresses[0])
        await other.until(lambda: False)
        assert other.over == "a stream of this id is there, and it is another"
        sender.disconnect()
        other.disconnect()
    assert events(tmp_path) == stores.expected(fakes.make_pages(3))


@pytest.mark.parametrize("host", ["../../../escaped", "/tmp/escaped", "a\0b", "x" * 300, "\x1b[31mred\n"])
async def test_no_name_from_the_wire_leaves_the_folder_or_reaches_the_terminal(
    tmp_path: Path, host: str, caplog: pytest.LogCaptureFixture
) -> None:
    """S4, S11."""
    caplog.set_level("DEBUG")
    async with collector(tmp_path) as collecting:
        sender = Sender(replace(info_of(), host=host, command=host))
        sender.add(fakes.make_pages(3))
        await sender.connect(collecting.addresses[0])
        await sender.end(LEDGER)
        assert sender.ended
        sender.disconnect()
    assert os.listdir(tmp_path) == ["traces"]
    (path,) = (tmp_path / "traces").glob("*.dat")
    assert path.stat().st_mode & 0o777 == 0o600
    assert all(
        character.isprintable() or character == "\n" for record in caplog.records for character in record.message
    )


async def test_a_producer_whose_definitions_never_end_is_cut_off(tmp_path: Path) -> None:
    """S9: 16 MiB of them are what one connection may bring."""
    definitions = [SymbolDefinition(number, "x" * 10_000) for number in range(2000)]
    async with collector(tmp_path) as collecting:
        sender = Sender(info_of(), definitions)
        page = fakes.make_page()
        page.definitions_needed = len(definitions)
        sender.add([page])
        await sender.connect(collecting.addresses[0])
        await sender.until(lambda: False)
        assert sender.acknowledged == []
        assert collecting.statistics().connections_broken == 1
        sender.disconnect()


@pytest.mark.long
async def test_two_hundred_clients_are_served_fairly(tmp_path: Path) -> None:
    """Each has had at least half of its share by the time when all together have had theirs."""
    async with collector(tmp_path, "tcp://127.0.0.1:0") as collecting:
        known = [Sender(info_of(number), level=Level.WRITTEN, heartbeat=60.0) for number in range(200)]

        async def send(sender: Sender) -> None:
            await sender.connect(collecting.addresses[0])
            for start in range(0, 80, 8):
                sender.add(fakes.make_page(0, start + n) for n in range(8))
                await sender.until_acknowledged(start + 8)

        async with anyio.create_task_group() as tasks:
            for sender in known:
                tasks.start_soon(send, sender)
            await happens(lambda: collecting.statistics().pages_acknowledged >= 200 * 40)
            shares = sorted(len(sender.acknowledged) for sender in known)
        print(f"least {shares[0]}, median {shares[100]}, most {shares[-1]}")
        assert shares[0] >= 20
        for sender in known:
            sender.disconnect()
