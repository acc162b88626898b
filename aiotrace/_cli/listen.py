"""Receive streams of events over sockets and store each in a trace of its own.

examples:
  aiotrace listen unix:/run/user/1000/aiotrace -o traces
  aiotrace listen tcp://127.0.0.1:7007 -o traces --text
  aiotrace listen tcp://127.0.0.1:7007 -o traces --max-size 1G --max-age 1h --budget 50G --delete-oldest
  aiotrace listen tls://0.0.0.0:7007 -o traces --tls-cert cert.pem --tls-key key.pem --token-file token

  aiotrace record --sink tcp://127.0.0.1:7007 app.py
  aiotrace report --follow traces/*.dat

A page is acknowledged once it is on disk (unless its producer requests less). A collector that was killed resumes where
it stopped when it is started again with the same DIR. SIGTERM and SIGINT stop it: what was received is stored and
acknowledged, and all traces are closed.

An address that other hosts can reach needs TLS, and a token or client certificates.

exit status: 0 stopped by a signal, 1 could not start or failed, 2 wrong arguments or an unsafe address,
3 stopped, but traces were left unfinished: complete them with aiotrace restore
"""

from __future__ import annotations

import argparse
import logging
import re
import signal
import sys
from typing import TYPE_CHECKING, Final

import anyio

if TYPE_CHECKING:
    from .._collector.collector import Collector, CollectorStatistics


UNFINISHED: Final = 3
_SIZE: Final = re.compile(r"(\d+)([kmgt]?)", re.IGNORECASE)
_UNITS: Final = {"": 1, "k": 1 << 10, "m": 1 << 20, "g": 1 << 30, "t": 1 << 40}
_AGE: Final = re.compile(r"(\d+)([smhd]?)", re.IGNORECASE)
_SECONDS: Final = {"": 1, "s": 1, "m": 60, "h": 3600, "d": 86400}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("addresses", nargs="+", metavar="ADDRESS", help="listen on unix:PATH, tcp://HOST:PORT or tls://HOST:PORT")
    add("-o", dest="folder", required=True, metavar="DIR", help="store traces in DIR; created if missing")
    add("--max-size", type=_size, metavar="SIZE", help="start the next trace of a stream after SIZE, e.g. 1G")
    add("--max-age", type=_age, metavar="AGE", help="start the next trace of a stream after AGE, e.g. 90s, 15m, 1h, 1d")
    add(
        "--budget",
        type=_size,
        metavar="SIZE",
        help="limit for all traces together; when it is reached, pages are no longer acknowledged",
    )
    add("--delete-oldest", action="store_true", help="with --budget, delete the oldest finished traces instead")
    add("--text", action="store_true", help="print each event when it arrives")
    group = parser.add_argument_group("access control")
    add = group.add_argument
    add("--token-file", metavar="FILE", help="clients must present the token in the first line of FILE (mode 0600)")
    add("--token-env", metavar="NAME", help="clients must present the token in this environment variable")
    add("--tls-cert", metavar="FILE", help="this server's certificate, for tls:// (PEM)")
    add("--tls-key", metavar="FILE", help="its private key, if not in the same file")
    add("--tls-client-ca", metavar="FILE", help="accept only clients with a certificate signed by this authority (PEM)")


def _size(text: str) -> int:
    match = _SIZE.fullmatch(text)
    if match is None or not int(match[1]):
        raise argparse.ArgumentTypeError(f"{text!r} should be bytes, or with a unit: 500M, 10G")
    return int(match[1]) * _UNITS[match[2].lower()]


def _age(text: str) -> int:
    match = _AGE.fullmatch(text)
    if match is None or not int(match[1]):
        raise argparse.ArgumentTypeError(f"{text!r} should be seconds, or with a unit: 90s, 15m, 1h, 1d")
    return int(match[1]) * _SECONDS[match[2].lower()]


def run(arguments: argparse.Namespace) -> int:
    logging.basicConfig(stream=sys.stderr, level=logging.WARNING, format="aiotrace listen: %(message)s")
    logging.getLogger("aiotrace.collect").setLevel(logging.INFO)
    status: int = anyio.run(_listen, arguments)
    return status


async def _listen(arguments: argparse.Namespace) -> int:
    from .._collector.collect import collect

    with anyio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
        async with collect(
            *arguments.addresses,
            folder=arguments.folder,
            max_size=arguments.max_size,
            max_age=arguments.max_age,
            budget=arguments.budget,
            delete_oldest=arguments.delete_oldest,
            token_file=arguments.token_file,
            token_env=arguments.token_env,
            tls_cert=arguments.tls_cert,
            tls_key=arguments.tls_key,
            tls_client_ca=arguments.tls_client_ca,
            text=sys.stdout if arguments.text else None,
        ) as collector:
            for address in collector.addresses:
                print(f"aiotrace listen: {address}", file=sys.stderr, flush=True)
            async with anyio.create_task_group() as tasks:
                if sys.stderr.isatty():
                    tasks.start_soon(_show, collector)
                tasks.start_soon(_watch, collector, tasks.cancel_scope)
                async for _ in signals:
                    break
                tasks.cancel_scope.cancel()
    if collector.failure is not None:
        return 1
    print(f"aiotrace listen: {_summary(collector.statistics())}", file=sys.stderr)
    return UNFINISHED if collector.unfinished else 0


async def _watch(collector: Collector, scope: anyio.CancelScope) -> None:
    """Stop waiting for signals when the collector fails."""
    await collector.wait()
    scope.cancel()


async def _show(collector: Collector) -> None:
    """Rewrite a status line every second."""
    before = collector.statistics()
    try:
        while True:
            await anyio.sleep(1)
            now = collector.statistics()
            print(f"\r\x1b[K{_line(before, now)}", end="", file=sys.stderr, flush=True)
            before = now
    finally:
        print("\r\x1b[K", end="", file=sys.stderr, flush=True)


def _line(before: CollectorStatistics, now: CollectorStatistics) -> str:
    budget = f" of {_amount(now.disk_budget)}" if now.disk_budget is not None else ""
    parts = [
        f"{now.clients} clients",
        f"{now.pages - before.pages} pages/s",
        f"{(now.bytes - before.bytes) / 1e6:.1f} MB/s",
        f"{now.pages_acknowledged} acknowledged",
        f"{now.events_lost} events lost",
        f"disk {_amount(now.disk_used)}{budget}",
    ]
    if now.traces_deleted:
        parts.append(f"{now.traces_deleted} traces deleted")
    if now.stalled:
        parts.append(f"STALLED: {now.stalled}")
    return ", ".join(parts)


def _summary(now: CollectorStatistics) -> str:
    text = (
        f"{now.connections} connections, {now.streams_ended} streams ended, {now.events} events on {now.pages} pages, "
        f"{now.pages_acknowledged} acknowledged, {now.pages_duplicate} came twice, {now.events_lost} events lost"
    )
    if now.connections_refused or now.connections_broken:
        text += f"; {now.connections_refused} connections refused, {now.connections_broken} broken"
    if now.traces_deleted:
        text += f"; {now.traces_deleted} traces deleted"
    return text


def _amount(size: int) -> str:
    value = float(size)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if value < 1024:
            return f"{value:.3g} {unit}"
        value /= 1024
    return f"{value:.3g} TiB"
