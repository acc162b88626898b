"""`aiotrace.collect`: a collector for the length of a block.

    async with aiotrace.collect("tcp://127.0.0.1:7007", folder="traces") as collector:
        print(collector.addresses, collector.statistics())
        await anyio.sleep_forever()

What it promises is in docs/guide/collector.md.
"""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Final, TextIO

import anyio

from .._base.errors import ConfigurationError
from .._threads.worker import worker_thread
from .access import make_access
from .collector import Collector
from .folder import Folder
from .listeners import listen
from .live_text import LiveText
from .state import CollectorState, Rotation
from .stored_stream import check_after_power_loss

__all__ = ["collect"]

COMMIT_INTERVAL: Final = 0.05
TEXT_TIMEOUT: Final = 1.0
"""Seconds that the last lines have to be printed."""


@asynccontextmanager
async def collect(
    *addresses: str,
    folder: str | os.PathLike[str],
    max_size: int | None = None,
    max_age: float | None = None,
    budget: int | None = None,
    delete_oldest: bool = False,
    commit_interval: float = COMMIT_INTERVAL,
    token_file: str | os.PathLike[str] | None = None,
    token_env: str | None = None,
    tls_cert: str | os.PathLike[str] | None = None,
    tls_key: str | os.PathLike[str] | None = None,
    tls_client_ca: str | os.PathLike[str] | None = None,
    text: TextIO | None = None,
) -> AsyncIterator[Collector]:
    """Receive traces, and keep each stream in files of its own.

    At the end of the block it stops reading, stores and acknowledges what has arrived, and closes the traces. Traces
    that are not closed after about 10 s are left for `aiotrace restore`, or the next collector with this folder.

    Args:
        addresses: `unix:PATH`, `tcp://HOST:PORT` (loopback), `tls://HOST:PORT`; port 0 chooses a free one.
        folder: Where the traces go; created if missing.
        max_size: Bytes of pages after which a trace is full and the stream continues in the next.
        max_age: Seconds after its first page that a trace is full.
        budget: Bytes of disk that the traces may take. When they are used up, nothing more is acknowledged.
        delete_oldest: Delete the oldest finished traces to stay within the budget.
        commit_interval: Seconds after which a written page is synced to the disk, at the latest.
        token_file: A file that only its owner may read; its first line is the token that clients must send, except on
            Unix sockets.
        token_env: An environment variable with the token.
        tls_cert: A file with the server's certificate chain.
        tls_key: The private key; None: it is in the same file.
        tls_client_ca: A file with the authority that must have signed clients' certificates.
        text: Where to print each event as it arrives.

    Raises:
        ConfigurationError: An argument is out of range, an address is not safe, or the folder has a collector.
        OSError: An address cannot be bound, or the folder cannot be used.
    """
    if max_size is not None and max_size <= 0:
        raise ConfigurationError(f"max_size={max_size}: bytes, more than 0, or None for no limit")
    if max_age is not None and not max_age > 0:
        raise ConfigurationError(f"max_age={max_age}: seconds, more than 0, or None for no limit")
    if not 0 <= commit_interval <= 10:
        raise ConfigurationError(f"commit_interval={commit_interval}: 0 to 10 seconds")
    access = make_access(
        token_file=_path(token_file),
        token_env=token_env,
        tls_cert=_path(tls_cert),
        tls_key=_path(tls_key),
        tls_client_ca=_path(tls_client_ca),
    )
    place = Folder(os.fspath(folder), budget=budget, delete_oldest=delete_oldest)
    try:
        if place.was_rebooted:
            async with worker_thread("aiotrace collector, checking") as worker:
                await worker.run(check_after_power_loss, place)
        listeners = listen(addresses, access)
        state = CollectorState(place, Rotation(max_size, max_age))
        show = LiveText(text) if text is not None else None
        collector = Collector(state, access, listeners, commit_interval=commit_interval, show=show)
        collector.start()
        try:
            yield collector
        finally:
            with anyio.CancelScope(shield=True):
                await collector.stop()
            state.stop()
            if show is not None:
                show.stop(TEXT_TIMEOUT)
    finally:
        place.close()


def _path(path: str | os.PathLike[str] | None) -> str | None:
    return None if path is None else os.fspath(path)
