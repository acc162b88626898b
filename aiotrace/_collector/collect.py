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

    At the end of the block nothing more is taken, what has come is kept and acknowledged, and traces are closed; what
    is not done after some 10 s is left for `aiotrace restore`, or for the next collector with this folder.

    Args:
        addresses: `unix:PATH`, `tcp://HOST:PORT` (loopback), `tls://HOST:PORT`; port 0: one that is free.
        folder: Where the traces go; made if it is not there.
        max_size: Bytes of pages after which a trace is full and the stream goes on in the next.
        max_age: Seconds after its first page that a trace is full.
        budget: Bytes of disk that the traces may take. When it is reached nothing more is acknowledged.
        delete_oldest: Then delete the oldest finished traces instead.
        commit_interval: Seconds after which a page that was written is brought to the disk, at the latest.
        token_file: A file that nobody else may read, whose first line every client has to say; those on Unix sockets
            need not.
        token_env: An environment variable with that.
        tls_cert: A file with the certificate of this server, and those between it and the authority.
        tls_key: Its private key; None: it is in the same file.
        tls_client_ca: A file with the authority that clients' certificates must be of.
        text: Where to print each event as it comes.

    Raises:
        ConfigurationError: An argument is out of range, an address is not safe, or the folder has a collector.
        OSError: An address or the folder cannot be had.
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
