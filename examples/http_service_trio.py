"""The service of http_service.py on trio: an HTTP/1.1 service that traces what it does into a trace.dat.

    python examples/http_service_trio.py trace.dat --port 8080 --requests 1000 &
    python examples/load.py --port 8080 --requests 1000
    trace-cmd report trace.dat

It listens on the loopback interface only, and ends after --requests requests.
"""

from __future__ import annotations

import argparse

import trio

import aiotrace
from aiotrace_sinks import FileSink
from http_app import MAX_HEAD, answer, connection_closed, connection_opened


class Service:
    """Answers connections until `expected` requests are answered."""

    def __init__(self, expected: int) -> None:
        self._expected = expected
        self._answered = 0
        self.done = trio.Event()

    async def handle(self, stream: trio.SocketStream) -> None:
        peer_port: int = stream.socket.getpeername()[1]
        requests = 0
        connection_opened(peer_port)
        buffer = bytearray()
        try:
            keep_alive = True
            while keep_alive and (head := await _read_head(stream, buffer)):
                data, keep_alive = await answer(head)
                await stream.send_all(data)
                requests += 1
                self._count()
        except trio.BrokenResourceError:
            pass  # the client has gone
        finally:
            connection_closed(peer_port, requests)
            with trio.CancelScope(shield=True):
                await stream.aclose()

    def _count(self) -> None:
        self._answered += 1
        if self._answered == self._expected:
            self.done.set()


async def _read_head(stream: trio.SocketStream, buffer: bytearray) -> bytes:
    """The next request's head, with its empty line; b"" if the client has closed or sends no HTTP."""
    while (end := buffer.find(b"\r\n\r\n")) < 0:
        data = await stream.receive_some()
        if not data or len(buffer) > MAX_HEAD:
            return b""
        buffer += data
    head = bytes(buffer[: end + 4])
    del buffer[: end + 4]
    return head


async def serve(
    trace: str, port: int, requests: int, *, task_status: trio.TaskStatus[int] = trio.TASK_STATUS_IGNORED
) -> aiotrace.Statistics:
    """Answer `requests` requests, traced into the file `trace`; reports the port through `task_status`."""
    async with aiotrace.record(FileSink(trace)) as recording, trio.open_nursery() as nursery:
        service = Service(requests)
        listeners = await trio.open_tcp_listeners(port, host="127.0.0.1")
        nursery.start_soon(trio.serve_listeners, service.handle, listeners)
        task_status.started(listeners[0].socket.getsockname()[1])
        await service.done.wait()
        nursery.cancel_scope.cancel()  # ends the connections that clients keep open
    return recording.statistics()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("trace", help="the file to write; it must not exist")
    parser.add_argument("--port", type=int, default=8080, help="default: %(default)s")
    parser.add_argument("--requests", type=int, default=1000, help="end after N requests; default: %(default)s")
    arguments = parser.parse_args()
    print(trio.run(serve, arguments.trace, arguments.port, arguments.requests))


if __name__ == "__main__":
    main()
