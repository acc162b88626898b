"""aiotrace._collector.access: what is not safe is refused, with the reason."""

from __future__ import annotations

import os
import re
import socket
import stat
from dataclasses import replace
from pathlib import Path

import pytest
import trustme

from aiotrace import ConfigurationError
from aiotrace._collector.access import Access, make_access
from aiotrace._collector.listeners import listen, peer_of

TOKEN = "a token that is long enough"


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("tls") / "server.pem"
    trustme.CA().issue_cert("localhost").private_key_and_cert_chain_pem.write_to_path(path)
    return str(path)


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("tls") / "ca.pem"
    trustme.CA().cert_pem.write_to_path(path)
    return str(path)


@pytest.mark.parametrize("address", ["tcp://0.0.0.0:0", "tcp://[::]:0", "tcp://192.0.2.1:0"])
def test_publicly_reachable_address_is_refused_without_tls(address: str) -> None:
    with pytest.raises(ConfigurationError, match="can be reached from elsewhere, and without TLS"):
        listen([address], Access(TOKEN))


def test_publicly_reachable_address_is_refused_without_authentication(certificate: str) -> None:
    with pytest.raises(ConfigurationError, match=r"anybody could send: ask for a token .* or for certificates"):
        listen(["tls://0.0.0.0:0"], make_access(tls_cert=certificate))


def test_address_is_opened_with_tls_and_a_token_or_certificates(certificate: str, authority: str) -> None:
    for access in (
        replace(make_access(tls_cert=certificate), token=TOKEN),
        make_access(tls_cert=certificate, tls_client_ca=authority),
    ):
        (listener,) = listen(["tls://0.0.0.0:0"], access)
        assert (listener.is_tls, listener.is_local, listener.needs_token) == (True, False, True)
        listener.close()


@pytest.mark.parametrize("host", ["127.0.0.1", "127.3.2.1", "localhost"])
def test_loopback_needs_nothing(host: str) -> None:
    listeners = listen([f"tcp://{host}:0"], Access())
    for listener in listeners:
        assert re.fullmatch(r"tcp://(127\.\d\.\d\.1|\[::1\]):\d+", listener.address)
        assert listener.is_local
        listener.close()


def test_tls_needs_a_certificate() -> None:
    with pytest.raises(ConfigurationError, match=r"--tls-cert, --tls-key"):
        listen(["tls://127.0.0.1:0"], Access())


@pytest.mark.parametrize(
    "address",
    ["", "tcp:", "tcp://127.0.0.1", "tcp://127.0.0.1:x", "http://127.0.0.1:1", "127.0.0.1:80", "unix:", "tcp://:1",
     "tcp://127.0.0.1:99999", "unix:a\0b"],
)  # fmt: skip
def test_invalid_address_is_refused(address: str) -> None:
    with pytest.raises(ConfigurationError, match="was expected"):
        listen([address], Access())


@pytest.mark.parametrize(
    "address", ["tcp://secret@127.0.0.1:1", "tcp://a:secret@127.0.0.1:1", "tcp://127.0.0.1:1?token=secret"]
)
def test_a_token_in_a_url_is_refused_and_not_repeated(address: str) -> None:
    with pytest.raises(ConfigurationError, match="a token in a URL is seen by everybody") as caught:
        listen([address], Access())
    assert "secret" not in str(caught.value)


def test_no_address_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="no address"):
        listen([], Access())


def test_all_are_opened_or_none(tmp_path: Path) -> None:
    path = tmp_path / "socket"
    with pytest.raises(ConfigurationError):
        listen([f"unix:{path}", "nowhere"], Access())
    assert not path.exists()


# --- Unix sockets -------------------------------------------------------------------------------


def test_a_unix_socket_is_private_and_goes_with_its_listener(tmp_path: Path) -> None:
    path = tmp_path / "socket"
    before = os.umask(0)
    try:
        (listener,) = listen([f"unix:{path}"], Access(TOKEN))
        assert os.umask(0) == 0
    finally:
        os.umask(before)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert (listener.address, listener.needs_token) == (f"unix:{path}", False)
    with pytest.raises(FileExistsError, match="a program listens"):
        listen([f"unix:{path}"], Access())
    listener.close()
    assert not path.exists()


def test_a_socket_that_a_killed_collector_left_is_replaced(tmp_path: Path) -> None:
    path = tmp_path / "socket"
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))
    (listener,) = listen([f"unix:{path}"], Access())
    path.unlink()
    path.write_text("somebody else's")
    listener.close()
    assert path.read_text() == "somebody else's"


def test_file_that_is_not_a_socket_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "notes"
    path.write_text("kept")
    with pytest.raises(FileExistsError, match="no socket"):
        listen([f"unix:{path}"], Access())
    assert path.read_text() == "kept"


def test_peer_of_a_unix_socket_must_be_an_allowed_user(tmp_path: Path) -> None:
    (listener,) = listen([f"unix:{tmp_path / 'socket'}"], Access())
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(str(tmp_path / "socket"))
        accepted, _ = listener.socket.accept()
        assert peer_of(accepted) == f"uid {os.geteuid()}"
        with pytest.raises(PermissionError, match=f"user {os.geteuid()} may not send"):
            peer_of(accepted, allowed=[os.geteuid() + 1])
        accepted.close()
    listener.close()


# --- tokens and certificates --------------------------------------------------------------------


def test_only_the_token_is_admitted() -> None:
    access = Access(TOKEN)
    assert access.admits(TOKEN)
    assert not any(map(access.admits, [None, "", TOKEN[:-1], TOKEN + "x", TOKEN.upper(), "ü", "\udc80"]))
    assert Access().admits(None)
    assert TOKEN not in repr(access)


def test_a_token_comes_from_a_file_that_is_private(tmp_path: Path) -> None:
    path = tmp_path / "token"
    path.write_text(f"{TOKEN}\n")
    path.chmod(0o640)
    with pytest.raises(ConfigurationError, match="chmod 600"):
        make_access(token_file=str(path))
    path.chmod(0o600)
    assert make_access(token_file=str(path)).token == TOKEN
    path.write_bytes(b"\xff" * 20)
    with pytest.raises(ConfigurationError, match="line of text"):
        make_access(token_file=str(path))
    path.write_text("")
    with pytest.raises(ConfigurationError, match="0 characters"):
        make_access(token_file=str(path))


def test_conflicting_options_are_refused(tmp_path: Path, certificate: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SHORT", "short")
    monkeypatch.setenv("LONG", TOKEN)
    assert make_access(token_env="LONG").token == TOKEN
    wrong = str(tmp_path / "wrong")
    Path(wrong).write_text("no certificate")
    for options, message in (
        ({"token_env": "PATH", "token_file": wrong}, "one of them"),
        ({"token_file": str(tmp_path / "missing")}, "No such file"),
        ({"token_env": "AIOTRACE_NO_SUCH_VARIABLE"}, "no token in the environment variable AIOTRACE_NO"),
        ({"token_env": "SHORT"}, "5 characters"),
        ({"tls_key": wrong}, "needs its certificate"),
        ({"tls_client_ca": wrong}, "in TLS alone"),
        ({"tls_cert": wrong}, "no certificate and key"),
        ({"tls_cert": certificate, "tls_client_ca": wrong}, "no certificate authority"),
        ({"tls_cert": str(tmp_path / "missing")}, "No such file"),
    ):
        with pytest.raises(ConfigurationError, match=message):
            make_access(**options)  # type: ignore[arg-type]  # mypy sees a dict of str
