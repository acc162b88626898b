"""An echo server with its clients in one process: a busy program to record. It traces nothing by itself.

    aiotrace record -e all -e aiotrace:page_alloc -R stacktrace examples/echo.py
    aiotrace report trace.dat | grep -c page_alloc:

On loopback only; asyncio by default.
"""

from __future__ import annotations

import argparse
import functools

import anyio
from anyio.abc import SocketAttribute, SocketStream


async def echo(stream: SocketStream) -> None:
    async with stream:
        async for message in stream:
            await stream.send(message)


async def ask(port: int, messages: int) -> None:
    async with await anyio.connect_tcp("127.0.0.1", port) as stream:
        for _ in range(messages):
            await stream.send(b"hello")
            assert await stream.receive() == b"hello"


async def main(clients: int, messages: int) -> None:
    listener = await anyio.create_tcp_listener(local_host="127.0.0.1")
    port = listener.extra(SocketAttribute.local_port)  # noqa: S610  # no Django here
    async with anyio.create_task_group() as server:
        server.start_soon(listener.serve, echo)
        async with anyio.create_task_group() as group:
            for _ in range(clients):
                group.start_soon(ask, port, messages // clients)
        server.cancel_scope.cancel()
    print(f"{messages // clients * clients} messages came back")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clients", type=int, default=16, help="default: %(default)s")
    parser.add_argument("--messages", type=int, default=20_000, help="by all clients together; default: %(default)s")
    parser.add_argument("--backend", choices=["asyncio", "trio"], default="asyncio", help="default: %(default)s")
    arguments = parser.parse_args()
    anyio.run(functools.partial(main, arguments.clients, arguments.messages), backend=arguments.backend)
