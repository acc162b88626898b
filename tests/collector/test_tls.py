"""aiotrace.collect over TLS (S6): a peer with the wrong certificate is refused, both ways, with the reason."""

from __future__ import annotations

import datetime
import ssl
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import anyio
import pytest
import trustme

import aiotrace
from aiotrace import collect
from aiotrace_sinks import SocketSink
from support import fakes, senders, stores
from support.senders import Sender, happens

pytestmark = pytest.mark.anyio
PAST = datetime.datetime(2020, 1, 1, tzinfo=datetime.UTC)
number = aiotrace.event("tls:number", n="u64")


@dataclass
class Files:
    """Certificates in files."""

    folder: Path
    authority: trustme.CA
    other: trustme.CA

    def authority_file(self, authority: trustme.CA | None = None) -> str:
        path = self.folder / f"ca-{id(authority)}.pem"
        (authority or self.authority).cert_pem.write_to_path(path)
        return str(path)

    def issue(self, name: str = "localhost", authority: trustme.CA | None = None, **options: Any) -> str:
        """A certificate with its key."""
        path = self.folder / f"{name}-{len(list(self.folder.iterdir()))}.pem"
        (authority or self.authority).issue_cert(name, **options).private_key_and_cert_chain_pem.write_to_path(path)
        return str(path)

    def client(self, certificate: str | None = None) -> ssl.SSLContext:
        context = ssl.create_default_context(cafile=self.authority_file())
        if certificate is not None:
            context.load_cert_chain(certificate)
        return context


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Files:
    return Files(tmp_path_factory.mktemp("tls"), trustme.CA(), trustme.CA())


def make_pages(count: int) -> list[fakes.FakePage]:
    return fakes.make_pages(count, 2)


async def test_stream_arrives_through_tls(tmp_path: Path, files: Files) -> None:
    async with collect("tls://127.0.0.1:0", folder=tmp_path, tls_cert=files.issue()) as collector:
        sender = Sender(fakes.make_info())
        sender.add(make_pages(400))
        await sender.connect(collector.addresses[0], files.client())
        await sender.end(stores.LEDGER)
        assert (sender.over, sender.ended, len(sender.acknowledged)) == (None, True, 400)
        sender.disconnect()


async def test_only_clients_with_a_certificate_of_the_authority_are_admitted(
    tmp_path: Path, files: Files, caplog: pytest.LogCaptureFixture
) -> None:
    options = {"tls_cert": files.issue(), "tls_client_ca": files.authority_file()}
    async with collect("tls://127.0.0.1:0", folder=tmp_path, **options) as collector:
        for certificate, reason in (
            (None, "certificate"),
            (files.issue("client", files.other), "verify failed"),
            (files.issue("client", not_after=PAST), "expired"),
        ):
            caplog.clear()
            refused = Sender(fakes.make_info())
            refused.add(make_pages(3))
            await refused.connect(collector.addresses[0], files.client(certificate))
            await refused.until(lambda: False)
            assert refused.over is not None
            assert not refused.granted
            await happens(lambda: "was refused: TLS: " in caplog.text)
            assert reason in caplog.text
            refused.disconnect()
        assert collector.statistics().connections_refused == 3
        good = Sender(fakes.make_info())
        good.add(make_pages(3))
        await good.connect(collector.addresses[0], files.client(files.issue("client")))
        await good.end(stores.LEDGER)
        assert good.ended
        good.disconnect()


async def test_client_without_tls_is_refused_on_the_tls_port(
    tmp_path: Path, files: Files, caplog: pytest.LogCaptureFixture
) -> None:
    async with collect("tls://127.0.0.1:0", folder=tmp_path, tls_cert=files.issue()) as collector:
        sender = Sender(fakes.make_info())
        sender.add(make_pages(3))
        await sender.connect(collector.addresses[0])
        await sender.until(lambda: False)
        assert not sender.granted
        await happens(lambda: "the peer does not speak TLS" in caplog.text)
        plain = await senders.connect(collector.addresses[0])
        plain.send(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n")
        await happens(lambda: "the peer speaks HTTP" in caplog.text)
        plain.close()
        sender.disconnect()
        assert collector.statistics().connections_refused == 2


async def test_client_that_does_not_begin_tls_is_cut_off(
    tmp_path: Path, files: Files, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("aiotrace._collector.connection.HANDSHAKE_PATIENCE", 0.1)
    async with collect("tls://127.0.0.1:0", folder=tmp_path, tls_cert=files.issue()) as collector:
        idle = await senders.connect(collector.addresses[0])
        with anyio.fail_after(senders.DEADLINE):
            await anyio.wait_readable(idle)
        assert idle.recv(1) == b""
        assert "no TLS handshake within 0.1 s" in caplog.text
        idle.close()


async def test_collector_with_an_invalid_certificate_gets_nothing(tmp_path: Path, files: Files) -> None:
    for certificate, reason in (
        (files.issue(authority=files.other), "certificate verify failed"),
        (files.issue(not_after=PAST), "certificate has expired"),
        (files.issue("elsewhere.example"), "[Hh]ostname mismatch"),
    ):
        async with collect("tls://127.0.0.1:0", folder=tmp_path / "traces", tls_cert=certificate) as collector:
            address = collector.addresses[0].replace("127.0.0.1", "localhost")
            with pytest.raises(ConnectionError, match=reason):
                async with aiotrace.record(SocketSink(address, ca=files.authority_file())):
                    pytest.fail("it has begun")
            assert collector.statistics().pages == 0


async def test_a_sink_of_tls_is_not_satisfied_without(tmp_path: Path, files: Files) -> None:
    async with collect("tcp://127.0.0.1:0", folder=tmp_path) as collector:
        address = collector.addresses[0].replace("tcp", "tls")
        with pytest.raises(ConnectionError, match=r"no collector at tls://127.0.0.1"):
            async with aiotrace.record(SocketSink(address, ca=files.authority_file())):
                pytest.fail("it has begun")


async def test_recording_arrives_through_tls_with_a_token_and_a_certificate(tmp_path: Path, files: Files) -> None:
    token = tmp_path / "token"
    token.write_text("a token that is long enough\n")
    token.chmod(0o600)
    options = {"tls_cert": files.issue(), "tls_client_ca": files.authority_file(), "token_file": token}
    async with collect("tls://0.0.0.0:0", folder=tmp_path / "traces", **options) as collector:
        address = collector.addresses[0].replace("0.0.0.0", "localhost")
        sink = SocketSink(address, ca=files.authority_file(), cert=files.issue("client"), token_file=str(token))
        async with aiotrace.record(sink) as recording:
            for n in range(1000):
                number(n)
        assert recording.statistics().events_delivered == 1000
    (path,) = (tmp_path / "traces").glob("*.dat")
    with aiotrace.open_trace(path) as trace:
        assert [event.fields["n"] for event in trace.events(["tls:number"])] == list(range(1000))
