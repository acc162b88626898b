"""Who may send to a collector: its token and its TLS certificates. `listeners` says where it listens.

A token is compared in constant time, and comes from a file or an environment variable only: every user of the machine
can read a URL or an argument. Invariant (held by tests/collector/test_access.py): a token file that others may read is
refused.

This module knows no page and no stream.
"""

from __future__ import annotations

import hmac
import os
import ssl
import stat
from dataclasses import dataclass, field
from typing import Final

from .._base.errors import ConfigurationError
from .._protocol.messages import TOKEN_MAX

__all__ = ["Access", "make_access", "read_token"]

TOKEN_MIN: Final = 16
"""Characters; a shorter token could be guessed."""


@dataclass(frozen=True, slots=True)
class Access:
    """What a client needs to be admitted."""

    token: str | None = field(default=None, repr=False)
    """None: no token is required."""
    tls: ssl.SSLContext | None = None
    knows_clients: bool = False
    """TLS requires client certificates."""

    def admits(self, token: str | None) -> bool:
        """Whether this is the right token. Takes the same time for a wrong one."""
        if self.token is None:
            return True
        return hmac.compare_digest((token or "").encode("utf-8", "replace"), self.token.encode("utf-8", "replace"))


def make_access(
    *,
    token_file: str | None = None,
    token_env: str | None = None,
    tls_cert: str | None = None,
    tls_key: str | None = None,
    tls_client_ca: str | None = None,
) -> Access:
    """
    Raises:
        ConfigurationError: An invalid combination, or a file cannot be read; the message says what would work.
    """
    if token_file is not None and token_env is not None:
        raise ConfigurationError("token_file and token_env: one of them says where the token is")

    # The token, from a file or the environment.
    token = None
    if token_file is not None:
        token = read_token(token_file)
    elif token_env is not None and (token := os.environ.get(token_env)) is None:
        raise ConfigurationError(f"there is no token in the environment variable {token_env}")
    if token is not None and not TOKEN_MIN <= len(token) <= TOKEN_MAX:
        raise ConfigurationError(f"a token of {len(token)} characters: {TOKEN_MIN} to {TOKEN_MAX} are needed")

    # TLS, if there is a certificate.
    if tls_key is not None and tls_cert is None:
        raise ConfigurationError("tls_key without tls_cert: a server needs its certificate too")
    if tls_client_ca is not None and tls_cert is None:
        raise ConfigurationError("tls_client_ca without tls_cert: clients are asked in TLS alone")
    if tls_cert is None:
        return Access(token)
    return Access(token, _make_context(tls_cert, tls_key, tls_client_ca), knows_clients=tls_client_ca is not None)


def read_token(path: str) -> str:
    """The first line of a file.

    Raises:
        ConfigurationError: It cannot be read, others may read it too, or it is not text.
    """
    try:
        file = open(path, "rb")  # noqa: SIM115  # below
    except OSError as error:
        raise ConfigurationError(f"the token cannot be read: {error}") from None
    with file:
        status = os.fstat(file.fileno())
        if stat.S_ISREG(status.st_mode) and status.st_mode & 0o077:
            raise ConfigurationError(f"{path}: others may read the token: chmod 600 {path}")
        data = file.readline(8 * TOKEN_MAX)
    try:
        return data.decode("utf-8").strip()
    except UnicodeDecodeError:
        raise ConfigurationError(f"{path}: a token is a line of text") from None


def _make_context(certificate: str, key: str | None, client_ca: str | None) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    try:
        context.load_cert_chain(certificate, key)
    except (OSError, ssl.SSLError) as error:
        raise ConfigurationError(f"{certificate}{f', {key}' if key else ''}: no certificate and key: {error}") from None
    if client_ca is not None:
        try:
            context.load_verify_locations(client_ca)
        except (OSError, ssl.SSLError) as error:
            raise ConfigurationError(f"{client_ca}: no certificate authority: {error}") from None
        context.verify_mode = ssl.CERT_REQUIRED
    return context
