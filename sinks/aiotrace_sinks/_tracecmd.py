"""Sends pages to an unmodified `trace-cmd listen`, which makes a trace.dat of them on its machine.

    first   the greeting: one CPU for each writer; a port for each
    then    pages  ------ a TCP connection for each CPU that has any --------> one raw file for each
            nothing, a byte a second, as the beginning of the headers -------> the trace.dat
    last    the headers: formats, symbols, names of all that was ever defined
            each connection is ended and read to its end by the listener; "make a file of it"

The listener appends the raw files to the headers, so the headers can be sent last, when everything is defined. But it
waits at most five seconds for the next byte of them, and a loop may stall for longer: a thread sends filler bytes.

The promise is weak, because the protocol has no acknowledgements: a page is acknowledged when the socket has taken it.
That is lost if the listener dies, and the whole trace is lost if its end does not reach the listener.
"""

from __future__ import annotations

import errno
import os
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from time import monotonic
from typing import Final

import anyio

from aiotrace import AcknowledgeError, ConfigurationError
from aiotrace.abc import Page, PageStream, StreamInfo
from aiotrace.formats import CpuStatistics, LateHeaders
from aiotrace.worker import block_signals

from . import _tracecmd_messages as M
from ._socket_channel import CONNECT_TIMEOUT, Address, Buffer, Channel, connect, parse_address

ANSWER_TIMEOUT: Final = 5.0
"""Seconds for each answer of the greeting; a listener forks for each CPU before it names the ports."""
FILLER_INTERVAL: Final = 1.0
SILENCE_MAX: Final = 4.5
"""Seconds. A listener ends the headers after five of silence, MSG_WAIT_MSEC in trace-msg.c, without a message."""
PAUSE: Final = 0.01
"""Seconds between polls of state that has no notification."""
LAST_WORDS: Final = 1.0
"""Seconds that a cancelled sink has to end its trace."""
FILE_PATIENCE: Final = 4.0
"""Seconds to wait for the file: a listener sleeps for two before it makes it."""
BATCH: Final = 16


class TraceCmdSink:
    """A sink that sends pages to a `trace-cmd listen`, which writes a trace.dat when the recording has ended.

    The protocol has no acknowledgements. A page is acknowledged to the recording when the kernel's socket has taken it;
    what was sent may be lost when the listener dies, though the ledger counts it as delivered. Each connection is a
    file of its own at the listener: after a lost one, the next begins a second file, with the pages from then on. The
    file is made when the recording ends or the sink is detached, so a program that is killed leaves none.

    Nothing is encrypted and there are no tokens: use it in trusted networks only.
    """

    def __init__(self, address: str) -> None:
        """
        Args:
            address: `tcp://HOST:PORT`.

        Raises:
            ConfigurationError: Not such an address.
        """
        self.address = parse_address(address)
        if self.address.scheme != "tcp":
            raise ConfigurationError(f"{address!r}: trace-cmd listens on TCP: tcp://HOST:PORT was expected")
        self.connections = 0
        """How often a listener accepted a trace; each becomes a file, if its end reaches the listener."""

    @classmethod
    def from_url(cls, url: str) -> TraceCmdSink:
        """`trace-cmd://HOST:PORT`.

        Raises:
            ConfigurationError: Not such a URL.
        """
        return cls(f"tcp:{url.partition(':')[2]}")

    def __repr__(self) -> str:
        return f"TraceCmdSink({str(self.address)!r})"

    async def __call__(self, stream: PageStream) -> None:
        """Send all pages, and end the trace; then wait, for up to four seconds, until the listener has its file.

        If it is cancelled or the stream fails, the trace is ended if that takes less than a second; otherwise it is
        lost at the listener.

        Raises:
            ConnectionError: No listener of protocol 3 accepts the connection, or it was lost.
        """
        pid = os.getpid()
        try:
            trace = await _begin(self.address, stream.info)
            self.connections += 1
            await _send_all(trace, stream)
        except OSError as error:
            reason = error.strerror or str(error)
        else:
            return
        if os.getpid() != pid:
            await anyio.sleep_forever()  # a forked child's copy of the sink: the trace is the parent's
        raise ConnectionError(f"trace-cmd's listener at {self.address}: {reason}")


async def _send_all(trace: _Trace, stream: PageStream) -> None:
    """Everything, from the first page to the end of the trace, however that comes.

    Raises:
        OSError: A connection is lost.
    """
    failure: Exception | None = None
    try:
        async with anyio.create_task_group() as group:
            group.start_soon(trace.watch, group.cancel_scope)
            try:
                while batch := await stream.next_batch(BATCH):
                    while batch:
                        await trace.send(batch.pop(0), stream)
                await trace.end(stream)
            except Exception as error:
                failure = error
            group.cancel_scope.cancel()
        failure = trace.failure or failure
        if failure is not None:
            raise failure
    finally:
        failure = None  # no cycle through the traceback
        try:
            with anyio.move_on_after(LAST_WORDS, shield=True):
                await trace.end_at_once(stream)
        finally:
            trace.close()


class _Trace:
    """What becomes one file at a listener."""

    def __init__(self, address: Address, info: StreamInfo, control: Channel, ports: list[int]) -> None:
        self._address = address
        self._info = info
        self._control = control
        self._ports = ports
        self._data: dict[int, Channel] = {}
        """By CPU: those that have pages."""
        self._events: Counter[int] = Counter()
        self._bytes: Counter[int] = Counter()
        self._headers = LateHeaders(info.page_size)
        self._filler = _FillerSender(control, self._headers)
        self._zeros = bytes(info.page_size)
        self._torn: tuple[Page, list[Buffer]] | None = None
        """The page that is being sent, and what is left of it."""
        self._headers_left: list[Buffer] | None = None
        self._data_ended = False
        self._last_words: list[Buffer] | None = None
        """What is left of them to send, once that has begun."""
        self._hung_up = anyio.Event()
        self.failure: OSError | None = None
        """What `watch` found."""
        self.has_failed = False
        """The listener cannot make a whole file of what it has."""

    async def watch(self, scope: anyio.CancelScope) -> None:
        """While pages are sent: a listener has nothing to say, so whatever comes before it was told to make its file
        is the end."""
        buffer = bytearray(64)
        try:
            count = await _receive(self._control, buffer)
            said = f"it said {bytes(buffer[:count])!r} and takes no more" if count else "it hung up"
            self.failure = ConnectionAbortedError(errno.ECONNABORTED, said)
        except OSError as error:
            self.failure = error
        if self._last_words == []:
            self.failure = None
            self._hung_up.set()
            return
        self.has_failed = True
        scope.cancel()

    async def send(self, page: Page, stream: PageStream) -> None:
        """A whole page, up to its zeros: the listener's raw files have nothing else between pages. It is acknowledged
        when the socket has it.

        Raises:
            OSError: The connection is lost.
        """
        with self._failing():
            self._filler.check()
            if page.writer not in self._data:
                self._data[page.writer] = await _connect_port(self._address, self._ports[page.writer])
        head, tail = page.header(), page.lost_count()
        empty = len(self._zeros) - len(head) - len(page.data) - len(tail)
        self._torn = page, [head, page.data, tail + self._zeros[:empty]]
        with self._failing():
            await self._send_torn(stream)

    @contextmanager
    def _failing(self) -> Iterator[None]:
        try:
            yield
        except OSError:
            self.has_failed = True
            raise

    async def _send_torn(self, stream: PageStream) -> None:
        assert self._torn is not None
        page, buffers = self._torn
        await _send(self._data[page.writer], buffers)
        self._torn = None
        self._events[page.writer] += page.events_count
        self._bytes[page.writer] += len(page.data)
        stream.acknowledge(page)

    async def end(self, stream: PageStream) -> None:
        """Everything was sent: say so, and wait until the listener has made its file.

        Raises:
            OSError: A connection is lost.
        """
        with self._failing():
            await self._end_headers(stream)
            for channel in self._data.values():
                while await _receive(channel, bytearray(64)):
                    pass  # until the listener has read its end
            await self._end_all()
        with anyio.move_on_after(FILE_PATIENCE):
            await self._hung_up.wait()

    async def end_at_once(self, stream: PageStream) -> None:
        """What is left to do for a whole file, if there can be one. A page that is half sent is sent to its end, even
        if the recording has given it up by now."""
        if self.has_failed or self._last_words == []:
            return
        try:
            if self._torn is not None:
                with suppress(AcknowledgeError):
                    await self._send_torn(stream)
            await self._end_headers(stream)
            await self._end_all()
        except OSError:
            pass  # there is none, then

    async def _end_headers(self, stream: PageStream) -> None:
        """The end of a connection interrupts a listener that waits for more headers, and it takes that for their end:
        it has them all before a connection ends."""
        if self._headers_left is None:
            self._filler.check()
            left = self._filler.end()
            headers = self._headers.finish(
                clock=self._info.clock,
                cpus=max(self._data, default=0) + 1,
                definitions=stream.definitions,
                statistics=self._statistics(stream),
            )
            self._headers_left = [left, *M.make_data(headers), M.FIN]
        await _send(self._control, self._headers_left)
        while self._control.count_unreceived():  # noqa: ASYNC110  # the kernel has no notification for it
            await anyio.sleep(PAUSE)
        if not self._data_ended:
            self._data_ended = True
            for channel in self._data.values():
                channel.end_sending()

    async def _end_all(self) -> None:
        if self._last_words is None:
            self._last_words = [M.CLOSE]
        await _send(self._control, self._last_words)

    def _statistics(self, stream: PageStream) -> Iterator[CpuStatistics]:
        """The account, CPU by CPU: no page can tell what was lost after the last."""
        for writer in stream.ledger.writers:
            cpu = writer.writer
            yield CpuStatistics(cpu, self._events[cpu], writer.overrun, writer.lost_after, self._bytes[cpu])

    def close(self) -> None:
        """Before it is ended: nothing is left of it at the listener."""
        self._filler.end()
        for channel in (*self._data.values(), self._control):
            channel.close() if self._last_words == [] else channel.reset()


class _FillerSender:
    """Sends a filler byte a second from a thread of its own; at the end, from the loop.

    The socket is non-blocking, so the thread never waits in a call.
    """

    def __init__(self, control: Channel, headers: LateHeaders) -> None:
        self._control = control
        self._headers = headers
        self._left = b"".join(M.make_data(headers.begin()))
        """What the socket has not taken."""
        self._last_sent = monotonic()
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run, name="aiotrace trace-cmd", daemon=True)
        self._send_filler()
        try:
            self._thread.start()
        except RuntimeError as error:  # the interpreter is going down
            raise OSError(errno.EAGAIN, str(error)) from None

    def _run(self) -> None:
        block_signals()
        while not self._over.wait(FILLER_INTERVAL):
            try:
                self.check()
                self._left = self._left or b"".join(M.make_data(self._headers.wait()))
                self._send_filler()
            except OSError:
                return  # `_Trace.watch` reports the lost connection

    def _send_filler(self) -> None:
        sent = self._control.send([self._left])
        self._left = self._left[sent:]
        if sent:
            self._last_sent = monotonic()

    def check(self) -> None:
        """
        Raises:
            OSError: The listener has heard nothing for too long.
        """
        if not self._over.is_set() and monotonic() > self._last_sent + SILENCE_MAX:
            raise TimeoutError(errno.ETIMEDOUT, f"it has heard nothing for {SILENCE_MAX} s, and takes no headers more")

    def end(self) -> bytes:
        """No word more. Returns what is to be sent before anything else."""
        self._over.set()
        self._thread.join()
        return self._left


# --- the greeting ---------------------------------------------------------------------------------


async def _begin(address: Address, info: StreamInfo) -> _Trace:
    """
    Raises:
        OSError: There is no listener there, or something else.
    """
    control = await connect(address, None)
    try:
        await _expect(control, M.GREETING)
        await _send(control, [M.VERSION_WANTED])
        await _expect(control, M.VERSION_TAKEN)
        await _send(control, [M.MAGIC])
        await _expect(control, M.AGREED)
        await _send(control, [M.make_tinit(info.writers, info.page_size)])
        command, size = M.unpack_header(await _answer(control, M.HEADER_SIZE))
        ports = M.unpack_ports(command, await _answer(control, size), info.writers)
        return _Trace(address, info, control, ports)
    except M.NonsenseError as error:
        control.close()
        raise ConnectionAbortedError(errno.EPROTO, f"no trace-cmd of protocol 3 is there: it said {error}") from None
    except BaseException:
        control.close()
        raise


async def _expect(control: Channel, words: bytes) -> None:
    found = await _answer(control, len(words))
    if found != words:
        raise M.NonsenseError(f"{found!r}, where {words!r} was expected")


async def _answer(control: Channel, size: int) -> bytes:
    """So many bytes.

    Raises:
        OSError: They do not come.
    """
    answer = bytearray(size)
    count = 0
    try:
        with anyio.fail_after(ANSWER_TIMEOUT):
            while count < size:
                taken = await _receive(control, memoryview(answer)[count:])
                if not taken:
                    said = bytes(answer[:count])
                    raise ConnectionAbortedError(errno.ECONNABORTED, f"it hung up after {said!r}: is it trace-cmd?")
                count += taken
    except TimeoutError:
        said = bytes(answer[:count])
        message = f"it said no more than {said!r} in {ANSWER_TIMEOUT:g} s: is it trace-cmd?"
        raise TimeoutError(errno.ETIMEDOUT, message) from None
    return bytes(answer)


async def _connect_port(address: Address, port: int) -> Channel:
    """
    Raises:
        OSError: Nobody listens there.
    """
    end = monotonic() + CONNECT_TIMEOUT
    while True:
        try:
            return await connect(replace(address, port=port), None)
        except ConnectionRefusedError:  # a port is named before its process listens on it
            if monotonic() > end:
                raise
        await anyio.sleep(PAUSE)


# --- a socket that never blocks, and a task that waits for it ---------------------------------------


async def _send(channel: Channel, buffers: list[Buffer]) -> None:
    """All of it.

    Raises:
        OSError: The connection is lost.
    """
    while True:
        sent = channel.send(buffers)
        while buffers and sent >= len(buffers[0]):
            sent -= len(buffers.pop(0))
        if not buffers:
            return
        buffers[0] = memoryview(buffers[0])[sent:]
        await channel.wait_writable()


async def _receive(channel: Channel, buffer: Buffer) -> int:
    """0: the peer has closed the connection.

    Raises:
        OSError: The connection is lost.
    """
    while (count := channel.receive(buffer)) is None:
        await channel.wait_readable()
    return count
