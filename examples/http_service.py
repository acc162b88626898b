"""An HTTP/1.1 service on asyncio streams that traces what it does into a trace.dat.

    python examples/http_service.py trace.dat --port 8080 --requests 1000 &
    python examples/load.py --port 8080 --requests 1000
    trace-cmd report trace.dat

It listens on the loopback interface only, and ends after --requests requests.
"""

from __future__ import annotations

import argparse
import asyncio

from anyio import TASK_STATUS_IGNORED
from anyio.abc import TaskStatus

import aiotrace
from aiotrace_sinks import FileSink
from http_app import MAX_HEAD, answer, connection_closed, connection_opened


class Service:
    """Answers connections until `expected` requests are answered."""

    def __init__(self, expected: int) -> None:
        self._expected = expected
        self._answered = 0
        self._connections: dict[asyncio.Task[None], asyncio.StreamWriter] = {}
        self.done = asyncio.Event()

    async def handle(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._connections[task] = writer
        peer_port: int = writer.get_extra_info("peername")[1]
        requests = 0
        connection_opened(peer_port)
        try:
            keep_alive = True
            while keep_alive:
                data, keep_alive = await answer(await reader.readuntil(b"\r\n\r\n"))
                writer.write(data)
                requests += 1
                self._count()
                await writer.drain()
        except (asyncio.IncompleteReadError, asyncio.LimitOverrunError, ConnectionError):
            pass  # the client has closed, or sent no HTTP
        finally:
            connection_closed(peer_port, requests)
            writer.close()
            del self._connections[task]

    def _count(self) -> None:
        self._answered += 1
        if self._answered == self._expected:
            self.done.set()

    async def close(self) -> None:
        """End the connections that clients keep open, once what was written has left."""
        for writer in self._connections.values():
            writer.close()
        await asyncio.gather(*self._connections)


async def serve(
    trace: str, port: int, requests: int, *, task_status: TaskStatus[int] = TASK_STATUS_IGNORED
) -> aiotrace.Statistics:
    """Answer `requests` requests, traced into the file `trace`; reports the port through `task_status`."""
    async with aiotrace.record(FileSink(trace)) as recording:
        service = Service(requests)
        server = await asyncio.start_server(service.handle, "127.0.0.1", port, limit=MAX_HEAD)
        task_status.started(server.sockets[0].getsockname()[1])
        try:
            await service.done.wait()
        finally:
            server.close()
            await service.close()
    return recording.statistics()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("trace", help="the file to write; it must not exist")
    parser.add_argument("--port", type=int, default=8080, help="default: %(default)s")
    parser.add_argument("--requests", type=int, default=1000, help="end after N requests; default: %(default)s")
    arguments = parser.parse_args()
    print(asyncio.run(serve(arguments.trace, arguments.port, arguments.requests)))


if __name__ == "__main__":
    main()
