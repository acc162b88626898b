"""Streams to a collector, over a Unix socket, TCP or TLS, and lets a page go when the collector has it.

    stream --> fetch --> Producer (aiotrace.protocol) --> session --> channel --> collector
      ^                     | keeps pages                                           |
      +---- acknowledge ----+<------------------ acknowledged ----------------------+

A session lasts as long as a connection. When it is lost, the next one begins after a pause, and sends again what the
collector does not have; until then pages stay where they are, and the recording applies its own policy to full pages.
So all that a lost collector costs is counted by the recording: as dropped or overrun, and at last as abandoned.

The law: **a page is acknowledged by the collector's word alone.** What is on the wire and what may be said there is the
business of `aiotrace.protocol`; this module knows sockets, time, and when to try again.
"""

from __future__ import annotations

import os
import random
from collections.abc import Callable, Sequence
from dataclasses import replace
from time import monotonic
from typing import TYPE_CHECKING, Final, Literal
from urllib.parse import parse_qsl
from uuid import uuid4

import anyio

from aiotrace import ConfigurationError
from aiotrace.abc import PageStream
from aiotrace.protocol import Acknowledged, Broken, Ended, Granted, Level, Producer, ProducerEvent, Refused, Request

from ._socket_channel import SAFER, Channel, connect, parse_address
from ._socket_watch import Watch

if TYPE_CHECKING:
    import ssl

PAUSE_FIRST: Final = 0.05
PAUSE_MAX: Final = 1.0
"""Seconds before the next attempt: doubled from the first to the most, each shortened by up to a half at random, so
that the producers of a collector that was restarted do not all come at once, and are all there within two seconds."""
READS_MAX: Final = 16
"""Portions of up to 8 KiB that are read at once."""
BATCH: Final = 64
"""Maximum pages that are requested at once."""


class SocketSink:
    """A sink that streams to a collector, such as `python -m aiotrace listen`."""

    def __init__(
        self,
        address: str,
        *,
        level: Literal["received", "written", "fsynced"] = "fsynced",
        token_file: str | None = None,
        token_env: str | None = None,
        ca: str | None = None,
        cert: str | None = None,
        key: str | None = None,
        patience: float = 30.0,
        heartbeat: float = 5.0,
    ) -> None:
        """
        Args:
            address: `unix:PATH`, `tcp://HOST:PORT` or `tls://HOST:PORT`.
            level: What the collector is to have done with a page before its memory is used again.
            token_file: A file whose first line is the token that the collector asks for.
            token_env: An environment variable with the token.
            ca: For TLS: a file with the certificates that the collector's must be signed by. None: the system's.
            cert: For TLS: a file with the certificate of this client, if the collector asks for one.
            key: The file with its private key, if that is not in the same.
            patience: Seconds without a collector after which the sink fails: then `on_error` says whether it is tried
                again or detached. The first connection must succeed at once.
            heartbeat: Seconds: each side is silent for no longer, and twice as long a silence ends the connection.

        Raises:
            ConfigurationError: An argument is out of range, or does not go with another.
        """
        self.address = parse_address(address)
        if level not in _LEVELS:
            raise ConfigurationError(f"level={level!r}: one of {', '.join(map(repr, _LEVELS))}")
        if token_file is not None and token_env is not None:
            raise ConfigurationError("token_file and token_env: one of them says where the token is")
        has_token = token_file is not None or token_env is not None
        if has_token and self.address.scheme == "tcp" and not self.address.is_local:
            raise ConfigurationError(f"a token could be read on its way to {self.address}: use tls://")
        if self.address.scheme != "tls" and (ca or cert or key):
            raise ConfigurationError(f"ca, cert and key are for tls://, not for {self.address}")
        if key and not cert:
            raise ConfigurationError(f"key={key!r} without a cert that it belongs to")
        if not patience >= 0:
            raise ConfigurationError(f"patience={patience}: seconds, at least 0")
        if not 0.05 <= heartbeat <= 300:
            raise ConfigurationError(f"heartbeat={heartbeat}: seconds, from 0.05 to 300")
        self._level = _LEVELS[level]
        self._token_file = token_file
        self._token_env = token_env
        self._tls_files = (ca, cert, key)
        self._patience = patience
        self._heartbeat = heartbeat
        self._random = random.Random()  # noqa: S311  # it only spreads the attempts
        self._producer: Producer | None = None
        self._stream_id = b""
        """Of the stream that the producer is for, as the recording has it."""
        self._in_use = False
        self.connections = 0
        """How often a collector has granted the stream."""
        self.last_error: str | None = None
        """Why the last connection ended, or could not be made; None if none has failed."""

    @classmethod
    def from_url(cls, url: str) -> SocketSink:
        """`unix:/run/aiotrace.sock`, `tcp://localhost:7007?level=received`,
        `tls://host:7007?ca=ca.pem&token_file=token`: the arguments are those of the class.

        Raises:
            ConfigurationError: It is no such URL, or an argument is unknown or out of range.
        """
        address, _, query = url.partition("?")
        options: dict[str, str | float] = {}
        for name, text in parse_qsl(query, keep_blank_values=True):
            if name == "token":
                raise ConfigurationError(f"{address} with a token in the URL: {SAFER}")
            if name not in _URL_OPTIONS:
                raise ConfigurationError(f"{name!r} in {url!r} is unknown; known: {', '.join(sorted(_URL_OPTIONS))}")
            try:
                options[name] = _URL_OPTIONS[name](text)
            except ValueError:
                raise ConfigurationError(f"{name}={text!r} in {url!r}: a number of seconds was expected") from None
        return cls(address, **options)  # type: ignore[arg-type]  # each has the type that its name says

    def __repr__(self) -> str:
        return f"SocketSink({str(self.address)!r})"

    async def __call__(self, stream: PageStream) -> None:
        """Stream to the collector until it has everything, and the ledger.

        Cancelled: the connection is reset; what was not acknowledged stays the recording's.

        Raises:
            ConnectionError: The first connection failed, or there was none for `patience` seconds.
            ConfigurationError: A token or certificate cannot be read, or this sink is streaming already.
        """
        if self._in_use:
            raise ConfigurationError(f"{self!r} is in use: a SocketSink streams one recording at a time")
        self._in_use = True
        try:
            await self._stream_all(stream)
        finally:
            self._in_use = False

    async def _stream_all(self, stream: PageStream) -> None:
        context = self._make_context()
        is_new = self._producer is None or self._stream_id != stream.info.stream_id
        if is_new:
            self._producer = self._make_producer(stream)
        assert self._producer is not None
        call = _Call(self, stream, self._producer, context)
        stream.accept_prefixes()
        try:
            await call.run(is_new)
        finally:
            self._producer.forget()
            if not call.has_begun:
                self._producer, self._stream_id = None, b""
        self._producer = None  # attached again, it is another stream for the collector

    def _make_producer(self, stream: PageStream) -> Producer:
        request = Request(
            level=self._level,
            check_bodies=not self.address.is_local or self.address.scheme == "tls",
            heartbeat=self._heartbeat,
            token=self._read_token(),
        )
        info = stream.info
        if info.stream_id == self._stream_id:
            info = replace(info, stream_id=uuid4().bytes)
        self._stream_id = stream.info.stream_id
        try:
            return Producer(info, stream.definitions, request)
        except ValueError as error:
            raise ConfigurationError(str(error)) from None

    def _read_token(self) -> str | None:
        if self._token_env is not None:
            token = os.environ.get(self._token_env, "")
            where = f"the environment variable {self._token_env}"
        elif self._token_file is not None:
            where = self._token_file
            try:
                with open(self._token_file, encoding="utf-8") as file:
                    token = file.readline().strip()
            except (OSError, UnicodeDecodeError) as error:
                raise ConfigurationError(f"the token cannot be read: {error}") from None
        else:
            return None
        if not token:
            raise ConfigurationError(f"there is no token in {where}")
        return token

    def _make_context(self) -> ssl.SSLContext | None:
        if self.address.scheme != "tls":
            return None
        import ssl

        ca, cert, key = self._tls_files
        try:
            context = ssl.create_default_context(cafile=ca)
            if cert is not None:
                context.load_cert_chain(cert, key)
        except OSError as error:
            files = ", ".join(name for name in (ca, cert, key) if name)
            raise ConfigurationError(f"TLS with {files}: {error}") from None
        return context


class _Call:
    """One call of the sink: a stream, and one session after another."""

    def __init__(
        self, sink: SocketSink, stream: PageStream, producer: Producer, context: ssl.SSLContext | None
    ) -> None:
        self._sink = sink
        self._stream = stream
        self._producer = producer
        self._context = context
        self._ready = anyio.Event()
        """Pages may be asked for: a recording that waits for its sinks to start goes on."""
        self._ended = False
        self._session: _Session | None = None
        self._failure: Exception | None = None
        self._pid = os.getpid()

    @property
    def has_begun(self) -> bool:
        """Whether a collector has granted the stream, now or in an earlier call."""
        return self._ready.is_set()

    async def run(self, is_new: bool) -> None:
        if not is_new:
            self._ready.set()
        async with anyio.create_task_group() as group:
            group.start_soon(self._fetch, group.cancel_scope)
            try:
                await self._stay_connected()
            except Exception as error:
                self._failure = error
            group.cancel_scope.cancel()
        if self._failure is not None:
            try:
                raise self._failure
            finally:
                self._failure = None  # no cycle through the traceback

    async def _fetch(self, scope: anyio.CancelScope) -> None:
        """Give the producer what the stream offers, and in the end the ledger."""
        await self._ready.wait()
        try:
            while batch := await self._stream.next_batch(BATCH):
                for page in batch:
                    if self._producer.add(page):
                        self._stream.acknowledge(page)
                self._pump()
        except Exception as error:
            self._failure = error
            scope.cancel()
            return
        if self._producer.end(self._stream.ledger):
            self._ended = True
        self._pump()

    def _pump(self) -> None:
        if self._session is not None:
            if self._ended:
                self._session.end("")
            self._session.pump()

    async def _stay_connected(self) -> None:
        """One session after another, until everything has arrived.

        Raises:
            ConnectionError: The first one failed, or none has begun for too long.
        """
        sink = self._sink
        pause, lost = PAUSE_FIRST, monotonic()
        while True:
            if os.getpid() != self._pid:
                await anyio.sleep_forever()  # a forked child's copy of the sink: the stream is the parent's
            before = sink.connections
            sink.last_error = await self._connect() or sink.last_error
            if self._ended:
                return
            if sink.connections > before:
                pause, lost = PAUSE_FIRST, monotonic()
            if not self._ready.is_set():
                raise ConnectionError(f"no collector at {sink.address}: {sink.last_error}")
            if monotonic() >= lost + sink._patience:
                raise ConnectionError(f"no collector at {sink.address} for {sink._patience:g} s: {sink.last_error}")
            await anyio.sleep(pause * sink._random.uniform(0.5, 1.0))
            pause = min(2 * pause, PAUSE_MAX)

    async def _connect(self) -> str:
        """A connection, from its beginning to its end. Returns why it ended."""
        try:
            channel = await connect(self._sink.address, self._context)
        except OSError as error:
            return error.strerror or str(error)
        session = self._session = _Session(channel, self._producer, self._take)
        try:
            return await session.run()
        finally:
            self._session = None
            self._producer.disconnect()
            channel.close() if self._ended else channel.reset()

    def _take(self, event: ProducerEvent) -> str | None:
        """What the collector said. Returns why the session is over, if it is."""
        match event:
            case Acknowledged(pages):
                self._stream.acknowledge_all(pages)
            case Granted():
                self._sink.connections += 1
                self._ready.set()
            case Ended():
                self._ended = True
                return ""
            case Broken(reason):
                return reason
            case Refused(reason):
                return f"refused by the collector: {reason}"
        return None


class _Session:
    """One connection: it moves bytes between a channel and the producer, in calls from the loop."""

    def __init__(self, channel: Channel, producer: Producer, take: Callable[[ProducerEvent], str | None]) -> None:
        self._channel = channel
        self._producer = producer
        self._take = take
        self._watch: Watch | None = None
        self._blocked = False
        """The channel accepts no more bytes for now."""
        self._more = anyio.Event()
        """There is more to read that the socket does not tell of."""
        self._scope = anyio.CancelScope()
        self._over: str | None = None
        """Why it is over."""
        self._failure: Exception | None = None

    async def run(self) -> str:
        """Returns why it is over."""
        self._producer.connect(monotonic())
        with self._scope:
            async with self._channel.watching(self._on_readable, self._on_writable) as self._watch:
                self.pump()
                await self._keep_time()
        if self._failure is not None:
            raise self._failure
        return self._over or ""

    def end(self, reason: str) -> None:
        """The connection is over."""
        if self._over is None:
            self._over = reason
            self._scope.cancel()

    async def _keep_time(self) -> None:
        while self._over is None:
            with anyio.move_on_after(self._producer.deadline - monotonic()):
                await self._more.wait()
            self._more = anyio.Event()
            self._on_readable()
            if self._over is None:
                self._handle(self._producer.tick(monotonic()))

    # --- called by the loop: nothing is raised into it, and anyio does not know which loop it is ---

    def pump(self) -> None:
        """Something may be there to send."""
        if not self._blocked:
            self._on_writable()

    def _on_writable(self) -> None:
        """Send what the channel takes at once; the rest when the loop has done what else there is."""
        if self._over is not None or self._watch is None:
            return
        try:
            buffers = self._producer.pending()
            if buffers or self._channel.has_unsent:
                self._producer.sent(self._channel.send(buffers))
        except OSError as error:
            self.end(error.strerror or str(error))
            return
        except Exception as error:  # the pages were taken back, and this call is about to be cancelled
            self._fail(error)
            return
        self._blocked = self._producer.is_sending or self._channel.has_unsent
        self._watch.want_writable(self._blocked)

    def _on_readable(self) -> None:
        """What is there, but not all that a collector can say: the loop is the program's too."""
        try:
            for _ in range(READS_MAX):
                if self._over is not None or not self._receive():
                    return
            self._more.set()
        except OSError as error:
            self.end(error.strerror or str(error))
        except Exception as error:
            self._fail(error)

    def _fail(self, error: Exception) -> None:
        self._failure = error
        self.end(str(error))

    def _receive(self) -> bool:
        """Whether there may be more."""
        buffer = self._producer.buffer()
        count = self._channel.receive(buffer)
        if count is None:
            return False
        if not count:
            self.end("the collector closed the connection")
            return False
        self._handle(self._producer.received(count, monotonic()))
        return count == len(buffer) or self._channel.has_unread

    def _handle(self, events: Sequence[ProducerEvent]) -> None:
        for event in events:
            reason = self._take(event)
            if reason is not None:
                self.pump()  # the last word, if there is one
                self.end(reason)
                return
        self.pump()


_LEVELS: Final = {level.name.lower(): level for level in Level}
_URL_OPTIONS: Final[dict[str, Callable[[str], str | float]]] = {
    "level": str,
    "token_file": str,
    "token_env": str,
    "ca": str,
    "cert": str,
    "key": str,
    "patience": float,
    "heartbeat": float,
}
"""How each is read."""
