"""Faults, planted in a busy server, for the reports that find them in a trace.

    aiotrace record -o planted.dat -e task -e log -e gc examples/planted.py
    aiotrace report planted.dat --stalls
    aiotrace report planted.dat --cancellations
    aiotrace report planted.dat --lost-tasks

On trio no tasks are lost.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import logging
import time

REQUESTS = 50
STALL = 0.4
"""Seconds."""


def answer(request: bytes) -> bytes:
    if request == b"password\n":
        time.sleep(STALL)  # as a slow hash would do
    return request.upper()


# --- asyncio, uvloop ------------------------------------------------------------------------------


async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:  # planted: it stalls its loop
    while request := await reader.readline():
        writer.write(answer(request))
        await writer.drain()
    writer.close()


async def ask(port: int, number: int) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    for n in range(REQUESTS):
        writer.write(b"password\n" if (number, n) == (0, REQUESTS // 2) else b"hello\n")
        await reader.readline()
    writer.close()


async def refresh() -> None:  # planted: it swallows its cancellation
    try:
        await asyncio.sleep(60)
    except asyncio.CancelledError:
        logging.debug("never mind")


async def wait_for_nobody() -> None:  # planted: it is destroyed while it waits
    await asyncio.get_running_loop().create_future()


async def fail() -> None:  # planted: nobody looks at its exception
    await asyncio.sleep(0)
    raise ValueError("nobody looks")


async def main() -> None:
    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    refreshing = asyncio.create_task(refresh(), name="refresh")
    asyncio.create_task(wait_for_nobody(), name="forgotten")  # noqa: RUF006  # planted
    asyncio.create_task(fail(), name="failing")  # noqa: RUF006  # planted
    await asyncio.gather(*(ask(port, number) for number in range(4)))
    refreshing.cancel("the server closes")  # planted: here it is asked for
    await refreshing
    server.close()
    await server.wait_closed()
    gc.collect()


# --- trio -----------------------------------------------------------------------------------------


def run_trio() -> None:
    import trio

    async def serve_trio(stream: trio.SocketStream) -> None:  # planted: it stalls its loop
        async with stream:
            async for request in stream:
                await stream.send_all(answer(bytes(request)))

    async def accept(nursery: trio.Nursery, listener: trio.SocketListener) -> None:
        while True:
            nursery.start_soon(serve_trio, await listener.accept())

    async def ask_trio(port: int, number: int) -> None:
        async with await trio.open_tcp_stream("127.0.0.1", port) as stream:
            for n in range(REQUESTS):
                await stream.send_all(b"password\n" if (number, n) == (0, REQUESTS // 2) else b"hello\n")
                await stream.receive_some()

    async def refresh_trio() -> None:  # planted: it swallows its cancellation
        try:
            await trio.sleep(60)
        except trio.Cancelled:
            logging.debug("never mind")

    async def main_trio() -> None:
        async with trio.open_nursery() as server:
            listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
            port = listeners[0].socket.getsockname()[1]
            server.start_soon(accept, server, listeners[0])
            server.start_soon(refresh_trio)
            async with trio.open_nursery() as clients:
                for number in range(4):
                    clients.start_soon(ask_trio, port, number)
            server.cancel_scope.cancel()  # planted: here it is asked for

    trio.run(main_trio)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runtime", nargs="?", default="asyncio", choices=["asyncio", "uvloop", "trio"])
    runtime = parser.parse_args().runtime
    gc.disable()  # what is lost is found where main() looks for it, not where a collection happens to be
    if runtime == "trio":
        run_trio()
    elif runtime == "uvloop":
        import uvloop

        uvloop.run(main())
    else:
        asyncio.run(main())
