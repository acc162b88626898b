"""SocketSink: everything arrives once, whatever becomes of the connection; no page goes before the collector has it."""

from __future__ import annotations

import datetime
import os
import socket
import ssl
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import anyio
import pytest
import trustme

import aiotrace
from aiotrace import ConfigurationError
from aiotrace._formats.frames import Kind, encode_frame
from aiotrace._protocol.messages import pack_grant
from aiotrace.protocol import Grant, Level
from aiotrace.testing import check_sink
from aiotrace_sinks import SocketSink, _socket
from aiotrace_sinks._socket import READS_MAX, _Session
from aiotrace_sinks._socket_channel import Address, Channel, connect
from support import TESTS, fakes
from support.collectors import TestCollector, collecting, numbers_in
from support.laws import PAGE, check_closed, number
from support.peers import make_producer


class Unhurried:
    """In place of random numbers: it never waits."""

    def uniform(self, low: float, high: float) -> float:
        return 0.0


def make_sink(url: str, **options: Any) -> SocketSink:
    sink = SocketSink(url, **options)
    sink._random = Unhurried()  # type: ignore[assignment]
    return sink


@pytest.fixture
async def collector() -> AsyncIterator[TestCollector]:
    async with collecting("unix") as collector:
        yield collector


@pytest.fixture(params=["unix", "tcp"])
async def each_collector(request: pytest.FixtureRequest) -> AsyncIterator[TestCollector]:
    async with collecting(request.param) as collector:
        yield collector


async def until(condition: Callable[[], bool]) -> None:
    with anyio.fail_after(60):
        while not condition():  # noqa: ASYNC110  # there is no event to wait for
            await anyio.sleep(0.001)


async def send(count: int, first: int = 0) -> None:
    for n in range(first, first + count):
        await number.send(n, "x" * (n % 20))


def check_has(collector: TestCollector, statistics: aiotrace.Statistics, count: int) -> None:
    """The collector has each event once, and what the ledger says."""
    check_closed(statistics, count)
    stored = collector.stored
    assert sorted(numbers_in(stored)) == list(range(count))
    assert len(set(stored.pages)) == len(stored.pages)
    assert stored.ledger is not None
    assert stored.ledger.written == count
    assert statistics.events_delivered == count
    assert not collector.broken


# --- to the end -----------------------------------------------------------------------------------


@pytest.mark.anyio
async def test_all_events_and_the_ledger_arrive_and_are_acknowledged(each_collector: TestCollector) -> None:
    collector = each_collector
    sink = SocketSink(collector.url)
    async with aiotrace.record(sink, page_size=PAGE, pages=16) as recording:
        await send(3000)
    check_has(collector, recording.statistics(), 3000)
    assert sink.connections == 1
    assert sink.last_error is None


@pytest.mark.anyio
async def test_the_sink_keeps_the_contract(collector: TestCollector) -> None:
    await check_sink(lambda: SocketSink(collector.url))


@pytest.mark.anyio
@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_the_sink_keeps_the_contract_over_tcp() -> None:
    async with collecting("tcp") as collector:
        await check_sink(lambda: SocketSink(collector.url))


@pytest.mark.anyio
async def test_events_of_a_quiet_program_arrive_soon(collector: TestCollector) -> None:
    async with aiotrace.record(SocketSink(collector.url), page_size=PAGE, pages=16, flush_interval=0.01):
        number(0, "")
        await until(lambda: bool(collector.streams and collector.stored.pages))
        number(1, "")
    assert numbers_in(collector.stored) == [0, 1]
    assert collector.stored.pages[0][2] == 0


@pytest.mark.anyio
async def test_only_committed_bytes_are_sent(collector: TestCollector) -> None:
    pages = fakes.cut(fakes.make_page(events=20), 5, 5)
    stream = fakes.FakeStream(pages)
    await SocketSink(collector.url)(stream)
    assert collector.stored.data == [bytes(page.data) for page in pages]
    assert stream.acknowledged == pages
    assert stream.prefixes
    assert collector.stored.ledger == stream.ledger
    assert collector.stored.definitions == fakes.DEFINITIONS


@pytest.mark.anyio
@pytest.mark.parametrize("anyio_backend", ["asyncio"])
@pytest.mark.parametrize("level", ["received", "written", "fsynced"])
async def test_level_and_heartbeat_are_requested(collector: TestCollector, level: Any) -> None:
    await SocketSink(collector.url, level=level, heartbeat=7.5)(fakes.FakeStream([]))
    (request,) = collector.requests
    assert request.level is Level[level.upper()]
    assert request.heartbeat == 7.5
    assert not request.check_bodies, "it is this machine's memory"


@pytest.mark.anyio
async def test_a_sink_that_is_attached_again_is_another_stream(collector: TestCollector) -> None:
    sink = make_sink(collector.url)
    async with aiotrace.record(page_size=PAGE, pages=16) as recording:
        for first in (0, 100):
            await recording.attach(sink)
            await send(100, first)
            await until(lambda: recording.statistics().events_delivered == first + 100)  # noqa: B023
            await recording.detach(sink)
    first_stream, second_stream = collector.streams.values()
    assert numbers_in(first_stream) == list(range(100))
    assert numbers_in(second_stream)[-100:] == list(range(100, 200))
    assert not collector.broken


@pytest.mark.anyio
async def test_a_sink_streams_one_recording_at_a_time(collector: TestCollector) -> None:
    sink = SocketSink(collector.url)
    async with aiotrace.record(sink, page_size=PAGE, pages=16):
        with pytest.raises(ConfigurationError, match="in use"):
            await sink(fakes.FakeStream([]))


# --- a connection that is lost --------------------------------------------------------------------


@pytest.mark.anyio
async def test_each_page_arrives_once_however_often_the_connection_is_cut(each_collector: TestCollector) -> None:
    collector = each_collector
    sink = make_sink(collector.url)
    cuts = [0, 1, 47, 48, 500, 700, 4000, 4200, 5000, 9000, *range(10_000, 40_000, 3001)]
    async with aiotrace.record(sink, page_size=PAGE, pages=16) as recording:
        await send(100)
        collector.cut_after = [*cuts]
        await collector.cut()
        await send(3900, 100)
    check_has(collector, recording.statistics(), 4000)
    assert collector.connections > len(cuts) - len(collector.cut_after)
    assert len(collector.cut_after) < len(cuts) - 10


# Not on uvloop: anyio's listener fails there now and then, when it is cancelled while somebody connects (4.16).
@pytest.mark.anyio
@pytest.mark.parametrize("anyio_backend", ["asyncio", "trio"])
async def test_a_collector_that_is_started_again_gets_the_rest() -> None:
    async with collecting("unix") as first:
        sink = make_sink(first.url)
        recording = aiotrace.record(sink, page_size=PAGE, pages=64)
        await recording.__aenter__()
        await send(1000)
    await until(lambda: sink.last_error is not None)
    number(1000, "nobody listens")
    async with collecting("unix", again=first) as second:
        await recording.__aexit__(None, None, None)
    check_has(second, recording.statistics(), 1001)
    assert sink.connections == 2


class LateStream(fakes.FakeStream):
    """Offers nothing before the sink has a connection."""

    sink: SocketSink

    async def next_batch(self, pages: int) -> list[Any]:
        await until(lambda: self.sink.connections == 2)
        return await super().next_batch(pages)


@pytest.mark.anyio
@pytest.mark.parametrize("dies_at", [3, 0])
async def test_pages_that_arrived_before_a_second_call_are_not_resent(collector: TestCollector, dies_at: int) -> None:
    sink = make_sink(collector.url)
    collector.dies_at = dies_at
    first = fakes.FakeStream(fakes.make_pages(3), wait_at_end=dies_at > 0)
    async with anyio.create_task_group() as group:
        group.start_soon(sink, first)
        await until(lambda: collector.refusal is not None)
        group.cancel_scope.cancel()
    collector.refusal = collector.dies_at = None
    again = LateStream(first.held)
    again.sink = sink
    await sink(again)
    assert first.acknowledged + again.acknowledged == [*first.acknowledged, *first.held]
    assert len(first.acknowledged) + len(again.acknowledged) == 3
    assert collector.stored.pages == [(0, 0, 0), (0, 1, 0), (0, 2, 0)]
    assert collector.stored.ledger == first.ledger
    assert not collector.broken


@pytest.mark.anyio
async def test_a_collector_that_is_silent_is_left(collector: TestCollector) -> None:
    sink = make_sink(collector.url, heartbeat=0.05)
    async with aiotrace.record(sink, page_size=PAGE, pages=16) as recording:
        collector.stalls = anyio.Event()
        number(0, "")
        await until(lambda: sink.last_error is not None)
        assert "silent for 0.1 s" in str(sink.last_error)
        assert recording.statistics().events_delivered == 0
        collector.stalls.set()
        collector.stalls = None
    assert recording.statistics().events_delivered == 1
    assert numbers_in(collector.stored) == [0]


@pytest.mark.anyio
async def test_nothing_is_acknowledged_that_the_collector_has_not_acknowledged(collector: TestCollector) -> None:
    collector.holds = anyio.Event()
    async with aiotrace.record(SocketSink(collector.url), page_size=PAGE, pages=16) as recording:
        number(0, "")
        await until(lambda: collector.held > 0)
        assert recording.statistics().events_delivered == 0
        collector.holds.set()
    check_has(collector, recording.statistics(), 1)


# --- giving up ------------------------------------------------------------------------------------


@pytest.mark.anyio
async def test_pages_not_acknowledged_in_time_are_abandoned_and_counted(collector: TestCollector) -> None:
    collector.holds = anyio.Event()
    recording = aiotrace.record(SocketSink(collector.url), page_size=PAGE, pages=16, drain_timeout=0.05)
    await recording.__aenter__()
    for n in range(10):
        number(n, "")
    with pytest.warns(RuntimeWarning, match="did not finish within 0.05 s; 10 events"):
        await recording.__aexit__(None, None, None)
    check_closed(recording.statistics(), 10)
    assert recording.statistics().events_abandoned == 10


@pytest.mark.anyio
async def test_sink_without_a_collector_for_too_long_fails_as_on_error_says() -> None:
    async def lose_the_collector() -> aiotrace.Recording:
        async with collecting("unix") as collector:
            sink = make_sink(collector.url, patience=0)
            recording = aiotrace.record(aiotrace.sink(sink, on_error="detach"), page_size=PAGE, pages=16)
            await recording.__aenter__()
        number(0, "")
        await until(lambda: recording.statistics().sinks[0].state == "detached")
        return recording

    with pytest.warns(RuntimeWarning, match="no collector at unix:.* for 0 s"):
        recording = await lose_the_collector()
    number(1, "")
    await recording.__aexit__(None, None, None)
    check_closed(recording.statistics(), 2)
    assert recording.statistics().events_delivered == 0


@pytest.mark.anyio
async def test_patience_begins_when_a_connection_is_lost(
    collector: TestCollector, monkeypatch: pytest.MonkeyPatch
) -> None:
    slept = 0.0
    monkeypatch.setattr(_socket, "monotonic", lambda: time.monotonic() + slept)
    async with aiotrace.record(make_sink(collector.url, patience=30), page_size=PAGE, pages=16) as recording:
        await send(10)
        slept = 100.0
        await collector.cut()
        await send(10, 10)
    check_has(collector, recording.statistics(), 20)
    assert recording.statistics().sinks[0].failures == 0


@pytest.mark.anyio
@pytest.mark.parametrize("url", ["unix:/nonexistent/socket", "tcp://127.0.0.1:1"])
async def test_the_first_connection_must_succeed(url: str) -> None:
    with pytest.raises(ConnectionError, match=f"no collector at {url}: "):
        async with aiotrace.record(SocketSink(url), page_size=PAGE, pages=16):
            pytest.fail("it was opened")


@pytest.mark.anyio
async def test_sink_that_could_not_connect_may_try_again(collector: TestCollector) -> None:
    sink = make_sink(collector.url)
    good, sink.address = sink.address, SocketSink("unix:/nonexistent/socket").address
    async with aiotrace.record(page_size=PAGE, pages=16) as recording:
        for _ in range(2):
            with pytest.raises(ConnectionError, match="no collector at unix:/nonexistent/socket"):
                await recording.attach(sink)
        sink.address = good
        await recording.attach(sink)
        await send(10)
    check_has(collector, recording.statistics(), 10)


@pytest.mark.anyio
async def test_refusal_is_reported_with_its_reason(collector: TestCollector) -> None:
    collector.refusal = "the token is wrong"
    with pytest.raises(ConnectionError, match="refused by the collector: the token is wrong"):
        async with aiotrace.record(SocketSink(collector.url), page_size=PAGE, pages=16):
            pytest.fail("it was opened")


@pytest.mark.anyio
async def test_a_collector_that_refuses_later_is_asked_again(collector: TestCollector) -> None:
    sink = make_sink(collector.url)
    async with aiotrace.record(sink, page_size=PAGE, pages=16) as recording:
        collector.refusal = "the disk is full"
        await collector.cut()
        await send(5)
        await until(lambda: "the disk is full" in str(sink.last_error))
        collector.refusal = None
    check_has(collector, recording.statistics(), 5)


# --- peers that are no collectors -----------------------------------------------------------------


async def answer_with(data: bytes, sink: SocketSink, path: str) -> str:
    """Stream to a peer that says only this. Returns the sink's error."""

    async def serve(stream: Any) -> None:
        async with stream:
            try:
                await stream.send(data)
                while True:
                    await stream.receive()
            except (anyio.EndOfStream, anyio.BrokenResourceError):
                pass

    listener = await anyio.create_unix_listener(path)
    async with listener, anyio.create_task_group() as group:
        group.start_soon(listener.serve, serve)
        try:
            await sink(fakes.FakeStream(fakes.make_pages(2)))
        except ConnectionError as error:
            said = str(error)
        group.cancel_scope.cancel()
    return said


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n", "is the peer no aiotrace"),
        (bytes(5000), "is the peer no aiotrace"),
        (encode_frame(Kind.ACKNOWLEDGE, fakes.make_info().stream_id, 0, bytes(8)), "HELLO, ERROR was expected"),
        (
            encode_frame(Kind.HELLO, fakes.make_info().stream_id, 0, pack_grant(Grant(5, definitions=10**6))),
            "0 were sent",
        ),
    ],
)
async def test_peer_that_is_not_a_collector_is_named(tmp_path: Path, data: bytes, expected: str) -> None:
    path = str(tmp_path / "s")
    assert expected in await answer_with(data, SocketSink(f"unix:{path}"), path)


# --- TLS ------------------------------------------------------------------------------------------


class Authority:
    """Certificates for a collector and its clients."""

    def __init__(self, folder: Path) -> None:
        self.ca = trustme.CA()
        self.ca_file = str(folder / "ca.pem")
        self.ca.cert_pem.write_to_path(self.ca_file)
        self.client_file = str(folder / "client.pem")
        self.ca.issue_cert("client@example.org").private_key_and_cert_chain_pem.write_to_path(self.client_file)

    def serve(self, name: str = "localhost", *, asks: bool = False, expired: bool = False) -> ssl.SSLContext:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        past = datetime.datetime(2001, 1, 1, tzinfo=datetime.UTC)
        self.ca.issue_cert(name, not_after=past if expired else None).configure_cert(context)
        if asks:
            self.ca.configure_trust(context)
            context.verify_mode = ssl.CERT_REQUIRED
        return context


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("certificates"))


@pytest.mark.anyio
@pytest.mark.parametrize("asks", [False, True])
async def test_all_events_arrive_through_tls(authority: Authority, asks: bool) -> None:
    async with collecting("tls", authority.serve(asks=asks)) as collector:
        sink = make_sink(collector.url, ca=authority.ca_file, cert=authority.client_file if asks else None)
        async with aiotrace.record(sink, page_size=PAGE, pages=16) as recording:
            await send(1000)
            await collector.cut()
            await send(1000, 1000)
    check_has(collector, recording.statistics(), 2000)
    assert all(request.check_bodies for request in collector.requests)


@pytest.mark.anyio
async def test_pages_larger_than_one_tls_record_arrive(authority: Authority) -> None:
    async with collecting("tls", authority.serve()) as collector:
        collector.credit = 100
        info = fakes.make_info(page_size=1 << 20)
        pages = [fakes.make_page(sequence=n, events=30_000, first=0) for n in range(5)]
        stream = fakes.FakeStream(pages, info)
        await SocketSink(collector.url, ca=authority.ca_file)(stream)
    assert collector.stored.data == [bytes(page.data) for page in pages]
    assert stream.acknowledged == pages


@pytest.mark.anyio
@pytest.mark.parametrize("anyio_backend", ["trio"])
async def test_the_sink_keeps_the_contract_through_tls(authority: Authority) -> None:
    async with collecting("tls", authority.serve()) as collector:
        await check_sink(lambda: SocketSink(collector.url, ca=authority.ca_file))


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"expired": True}, "certificate has expired"),
        ({"name": "elsewhere.example"}, "certificate is not valid for 'localhost'"),
    ],
)
async def test_collector_without_a_valid_certificate_gets_nothing(
    authority: Authority, options: dict[str, Any], expected: str
) -> None:
    async with collecting("tls", authority.serve(**options)) as collector:
        with pytest.raises(ConnectionError, match=expected):
            await SocketSink(collector.url, ca=authority.ca_file)(fakes.FakeStream(fakes.make_pages(2)))
    assert not collector.requests


@pytest.mark.anyio
async def test_a_collector_of_an_unknown_authority_gets_nothing(authority: Authority) -> None:
    async with collecting("tls", authority.serve()) as collector:
        with pytest.raises(ConnectionError, match="unable to get local issuer certificate"):
            await SocketSink(collector.url)(fakes.FakeStream([]))
    assert not collector.requests


@pytest.mark.anyio
async def test_plain_tcp_to_a_port_of_tls_and_the_reverse_are_errors(authority: Authority) -> None:
    async with collecting("tls", authority.serve()) as collector:
        with pytest.raises(ConnectionError, match="no collector at tcp://localhost"):
            await SocketSink(collector.url.replace("tls:", "tcp:"))(fakes.FakeStream([]))
    async with collecting("tcp") as collector:
        with pytest.raises(ConnectionError, match="no collector at tls://localhost"):
            await SocketSink(collector.url.replace("tcp:", "tls:"), ca=authority.ca_file)(fakes.FakeStream([]))


def test_certificates_that_cannot_be_read_are_an_error(authority: Authority, tmp_path: Path) -> None:
    for options in ({"ca": "/nonexistent.pem"}, {"ca": authority.ca_file, "cert": authority.ca_file}):
        sink = SocketSink("tls://localhost:7007", **options)
        with pytest.raises(ConfigurationError, match=f"TLS with {options['ca']}"):
            anyio.run(sink, fakes.FakeStream([]))


# --- forks and signals ----------------------------------------------------------------------------


def run(program: str) -> str:
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", program],
        capture_output=True,
        text=True,
        timeout=60,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(TESTS), *map(os.path.abspath, sys.path)])},
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert not done.stderr
    return done.stdout


def test_forked_child_neither_uses_nor_keeps_the_socket_of_its_parent() -> None:
    assert "well" in run("""
import os, threading, warnings
warnings.simplefilter("ignore", DeprecationWarning)  # 3.12: fork with threads is what is tested
import anyio, aiotrace
from aiotrace_sinks import SocketSink, _socket
from aiotrace_sinks import _socket_channel
from support.collectors import collecting
from support.laws import PAGE, number
from support.collectors import numbers_in

ready, done, found = threading.Event(), threading.Event(), []

async def collect():
    async with collecting("unix") as collector:
        found.append(collector)
        ready.set()
        await anyio.to_thread.run_sync(done.wait)

thread = threading.Thread(target=anyio.run, args=(collect,))
thread.start()
ready.wait()
with aiotrace.recording(SocketSink(found[0].url), page_size=PAGE, pages=16) as recording:
    number(0, "parent")
    (channel,) = _socket_channel._channels
    fd = channel._sock.fileno()
    pid = os.fork()
    if not pid:
        for n in range(100, 1000):
            number(n, "child")
        try:
            os.fstat(fd)
        except OSError:
            os._exit(0 if channel.send([b"from the child"]) == 0 and channel.receive(bytearray(9)) is None else 2)
        os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    number(1, "parent")
done.set()
thread.join()
collector = found[0]
assert numbers_in(collector.stored) == [0, 1], collector
assert collector.connections == 1 and not collector.broken
print("well")
""")


def test_program_that_dies_of_sigpipe_survives_our_broken_connection() -> None:
    assert "well" in run("""
import signal, socket
from aiotrace_sinks._socket_channel import Channel
signal.signal(signal.SIGPIPE, signal.SIG_DFL)
one, other = socket.socketpair()
other.close()
channel = Channel(one)
try:
    channel.send([b"x"])
except BrokenPipeError:
    print("well")
channel.close()
""")


# --- its arguments --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("tcp:localhost:7007", "unix:PATH, tcp://HOST:PORT or tls://HOST:PORT"),
        ("udp://localhost:7007", "unix:PATH, tcp://HOST:PORT or tls://HOST:PORT"),
        ("tcp://localhost", "a host and a port from 1 to 65535"),
        ("tcp://localhost:0", "a host and a port from 1 to 65535"),
        ("tcp://localhost:65536", "a host and a port from 1 to 65535"),
        ("tcp://:7007", "a host and a port from 1 to 65535"),
        ("tcp://localhost:7007/path", "a host and a port from 1 to 65535"),
        ("unix:", "a path of 1 to 107 bytes"),
        ("unix:" + "x" * 108, "a path of 1 to 107 bytes"),
        ("tls://user:secret@host:7007", "token_file= or token_env="),
        ("tls://host:7007?token=secret", "token_file= or token_env="),
        ("tcp://localhost:7007?colour=red", "'colour' in .* is unknown"),
        ("tcp://localhost:7007?level=burned", "level='burned': one of 'received', 'written', 'fsynced'"),
        ("tcp://localhost:7007?patience=long", "a number of seconds"),
        ("tcp://localhost:7007?patience=-1", "at least 0"),
        ("tcp://localhost:7007?patience=nan", "at least 0"),
        ("tcp://localhost:7007?heartbeat=0", "from 0.05 to 300"),
        ("tcp://localhost:7007?ca=ca.pem", "are for tls://"),
        ("tcp://collector.example:7007?token_env=TOKEN", "could be read on its way"),
        ("tcp://192.0.2.1:7007?token_file=token", "could be read on its way"),
        ("tls://host:7007?token_env=A&token_file=B", "one of them"),
        ("tls://host:7007?key=key.pem", "without a cert"),
    ],
)
def test_invalid_arguments_are_refused_without_showing_the_token(url: str, expected: str) -> None:
    with pytest.raises(ConfigurationError, match=expected) as raised:
        SocketSink.from_url(url)
    assert "secret" not in str(raised.value)


@pytest.mark.parametrize(
    ("url", "shown", "is_local"),
    [
        ("tcp://localhost:7007", "tcp://localhost:7007", True),
        ("tcp://127.5.5.5:7007?level=received", "tcp://127.5.5.5:7007", True),
        ("tcp://[::1]:7007", "tcp://[::1]:7007", True),
        ("tls://collector.example:1", "tls://collector.example:1", False),
        ("tcp://192.0.2.1:7007", "tcp://192.0.2.1:7007", False),
        ("unix:/run/a.sock?patience=5", "unix:/run/a.sock", True),
    ],
)
def test_a_url_names_an_address(url: str, shown: str, is_local: bool) -> None:
    sink = SocketSink.from_url(url)
    assert str(sink.address) == shown
    assert repr(sink) == f"SocketSink({shown!r})"
    assert sink.address.is_local is is_local


@pytest.mark.anyio
@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_a_token_comes_from_a_file_or_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "token"
    file.write_text("from a file\n")
    monkeypatch.setenv("A_TOKEN", "from the environment")
    async with collecting("unix") as collector:
        await SocketSink(collector.url, token_file=str(file))(fakes.FakeStream([]))
        await SocketSink(collector.url, token_env="A_TOKEN")(
            fakes.FakeStream([], info=fakes.make_info(stream_id=b"another stream's"))
        )
        assert [request.token for request in collector.requests] == ["from a file", "from the environment"]


@pytest.mark.anyio
@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_a_token_that_is_not_there_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "empty").write_text("\n")
    for options, expected in (
        ({"token_file": str(tmp_path / "none")}, "the token cannot be read"),
        ({"token_file": str(tmp_path / "empty")}, "there is no token in"),
        ({"token_env": "NO_SUCH_TOKEN"}, "no token in the environment variable NO_SUCH_TOKEN"),
    ):
        with pytest.raises(ConfigurationError, match=expected):
            await SocketSink("unix:/nonexistent", **options)(fakes.FakeStream([]))  # type: ignore[arg-type]


def read_all(peer: socket.socket) -> None:
    while peer.recv(100):
        pass


def test_lost_peer_is_noticed_and_an_abandoned_one_is_reset() -> None:
    async def main() -> None:
        with socket.socket() as listener:
            listener.bind(("127.0.0.1", 0))
            listener.listen()
            channel = await connect(Address("tcp", "127.0.0.1", listener.getsockname()[1]), None)
            peer, _ = listener.accept()
            options = {
                name: channel._sock.getsockopt(level, getattr(socket, name))
                for level, name in (
                    (socket.IPPROTO_TCP, "TCP_USER_TIMEOUT"),
                    (socket.SOL_SOCKET, "SO_KEEPALIVE"),
                    (socket.IPPROTO_TCP, "TCP_NODELAY"),
                )
            }
            assert options == {"TCP_USER_TIMEOUT": 10_000, "SO_KEEPALIVE": 1, "TCP_NODELAY": 1}
            channel.send([b"half a page"])
            channel.reset()
            with peer, pytest.raises(ConnectionResetError):
                read_all(peer)

    anyio.run(main)


# --- what the loop calls --------------------------------------------------------------------------


class FakeChannel(Channel):
    """A channel that sends given bytes, and has no other method."""

    def __init__(self, *, says: list[bytes] | None = None, takes: Exception | int = 0) -> None:
        one, self.other = socket.socketpair()
        super().__init__(one)
        self.says = says or []
        self.takes = takes
        self.reads = 0

    def send(self, buffers: Any) -> int:
        if isinstance(self.takes, Exception):
            raise self.takes
        return self.takes

    def receive(self, buffer: Any) -> int | None:
        self.reads += 1
        if not self.says:
            return None
        data = self.says[0]
        buffer[: len(data)] = data
        return len(buffer)

    def close(self) -> None:
        super().close()
        self.other.close()


async def run_session(channel: FakeChannel) -> str:
    producer = make_producer()
    session = _Session(channel, producer, lambda event: None)
    try:
        return await session.run()
    finally:
        channel.close()


@pytest.mark.anyio
async def test_error_in_a_loop_callback_is_raised_where_the_session_is_awaited() -> None:
    for error in (ValueError("the page is released"), AssertionError("a bug")):
        with pytest.raises(type(error), match=str(error)):
            await run_session(FakeChannel(takes=error))
    assert await run_session(FakeChannel(takes=BrokenPipeError(32, "Broken pipe"))) == "Broken pipe"


@pytest.mark.anyio
async def test_talkative_collector_does_not_block_the_loop() -> None:
    producer = make_producer()
    producer.connect(0.0)
    channel = FakeChannel(says=[b""])
    session = _Session(channel, producer, lambda event: None)
    producer.received = lambda count, now: []  # type: ignore[method-assign]
    session._on_readable()
    assert channel.reads == READS_MAX
    assert session._more.is_set()
    channel.close()
