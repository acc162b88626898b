"""The busy server that support.ends records and ends: a program of its own, whose events are counted outside of it.

    each thread:  event call --returned--> 8-byte store of the count into PID.WRITER.count

A count is in a file that is mapped, so it outlives whatever ends the process: a trace must have that many events of the
thread, or one more. Each process says over a FIFO that it is busy. One of them ends itself, if that is wanted.

What is to happen is in the variable ENDING_SERVER: `support.ends.Case` as JSON, and the folder.
"""

from __future__ import annotations

import asyncio
import atexit
import ctypes
import json
import mmap
import multiprocessing
import os
import resource
import signal
import socket
import sys
import threading
import time
from typing import Any

import aiotrace

CASE: dict[str, Any] = json.loads(os.environ["ENDING_SERVER"])
FOLDER = CASE["folder"]
_MAIN = "ENDING_SERVER_MAIN"
CONNECTIONS = 3
BURST = 32
"""Events of a thread between two pauses: a busy server, but not one that overruns its buffer."""


class Writer:
    """The events of one thread, and their count."""

    def __init__(self, number: int) -> None:
        self.number = number
        self.written = 0
        self._event = aiotrace.event("ends:number", writer="u32", n="u64", text="str")
        with open(os.path.join(FOLDER, f"{os.getpid()}.{number}.count"), "w+b") as file:
            file.truncate(8)
            self._count = memoryview(mmap.mmap(file.fileno(), 8)).cast("Q")

    def write(self) -> None:
        self._event(self.number, self.written, "x" * (self.written % 60))
        self.written += 1
        self._count[0] = self.written


class Load:
    """What keeps a process busy: a loop that answers connections, and threads beside it."""

    def __init__(self, role: str) -> None:
        self._role = role
        self._stopping = False
        self._all_busy = False
        self._left = CASE["at"]
        self._requests = Writer(0)
        self._threads = [
            threading.Thread(target=self._write, args=(Writer(number),), daemon=True)
            for number in range(1, 1 + CASE["threads"])
        ]

    def start_threads(self) -> None:
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        """No event is called after this: the recording ends with the interpreter's exit handlers."""
        # A second signal, as gunicorn's main process sends it, must not interrupt the wait for the threads.
        mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM, signal.SIGQUIT})
        try:
            self._stopping = True
            for thread in self._threads:
                thread.join()
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)

    async def serve(self) -> None:
        """Until it is cancelled, or fails."""
        async with asyncio.TaskGroup() as group:
            for _ in range(CONNECTIONS):
                ours, theirs = socket.socketpair()
                group.create_task(self._answer(ours))
                group.create_task(self._ask(theirs))

    def serve_in_thread(self) -> None:
        """Where the main thread is not a loop's."""
        self._threads.append(threading.Thread(target=asyncio.run, args=(self._serve_until_stopped(),), daemon=True))

    async def _serve_until_stopped(self) -> None:
        serving = asyncio.create_task(self.serve())
        while not self._stopping:  # noqa: ASYNC110  # a thread sets it
            await asyncio.sleep(0.01)
        serving.cancel()
        await asyncio.wait([serving])

    async def _answer(self, connection: socket.socket) -> None:
        reader, writer = await asyncio.open_connection(sock=connection)
        while line := await reader.readline():
            self._requests.write()
            if self._requests.written == 1:
                say(self._role)
            if self._is_to_end():
                end()
            writer.write(line)
            await writer.drain()

    async def _ask(self, connection: socket.socket) -> None:
        reader, writer = await asyncio.open_connection(sock=connection)
        while True:
            writer.write(b"a request\n")
            await writer.drain()
            await reader.readline()

    def _write(self, writer: Writer) -> None:
        while not self._stopping:
            for _ in range(BURST):
                writer.write()
            time.sleep(0.001)

    def _is_to_end(self) -> bool:
        """Whether this process ends itself now: some requests after all are busy."""
        if CASE["end"] not in ENDS or self._role != CASE["victim"]:
            return False
        if not self._all_busy:
            self._all_busy = os.path.exists(os.path.join(FOLDER, "go"))
            return False
        self._left -= 1
        if self._left > 0:
            return False
        try:
            os.close(os.open(os.path.join(FOLDER, "ended"), os.O_CREAT | os.O_EXCL))
        except FileExistsError:
            return False  # another worker did
        return True


def say(role: str) -> None:
    with open(os.path.join(FOLDER, "busy"), "wb", buffering=0) as fifo:
        fifo.write(f"{role} {os.getpid()}\n".encode())


def leave_with_main() -> None:
    """Orphans end, unless they are to be ended from outside."""
    main = int(os.environ[_MAIN])

    def watch() -> None:
        while True:
            try:
                os.kill(main, 0)
            except ProcessLookupError:
                os._exit(0)
            time.sleep(0.002)

    if not CASE["lingers"]:
        threading.Thread(target=watch, daemon=True).start()


# --- ends -----------------------------------------------------------------------------------------


def leave() -> None:
    os._exit(7)


def fail() -> None:
    if CASE["how"] == "gunicorn":  # the main thread is to fail
        signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGUSR2)
    elif CASE["how"] == "uvicorn":  # asyncio would keep another one with the task
        raise SystemExit(1)
    else:
        raise RuntimeError("the end")


def crash() -> None:
    ctypes.string_at(0)


ENDS = {"os._exit": leave, "exception": fail, "SIGSEGV": crash}
"""By which a process ends itself; the others come from outside."""


def end() -> None:
    ENDS[CASE["end"]]()


def fail_in_main_thread(number: int, frame: object) -> None:
    raise RuntimeError("the end")


# --- servers --------------------------------------------------------------------------------------


def serve(role: str) -> None:
    if role == "worker":
        leave_with_main()
    load = Load(role)
    load.start_threads()
    try:
        asyncio.run(load.serve())
    finally:
        load.stop()


def serve_with_multiprocessing() -> None:
    context = multiprocessing.get_context(CASE["how"])
    for _ in range(CASE["workers"]):
        context.Process(target=serve, args=("worker",), daemon=True).start()
    serve("main")


async def app(scope: Any, receive: Any, send: Any) -> None:
    """Under uvicorn: busy from start-up to shut-down."""
    assert scope["type"] == "lifespan"
    await receive()
    leave_with_main()
    load = Load("worker")
    load.start_threads()
    serving = asyncio.create_task(load.serve())
    await send({"type": "lifespan.startup.complete"})
    try:
        await receive()
    finally:
        serving.cancel()
        load.stop()
    await send({"type": "lifespan.shutdown.complete"})


def serve_with_uvicorn() -> None:
    import uvicorn

    say("main")
    uvicorn.run("ending_server:app", workers=CASE["workers"], host="127.0.0.1", port=0, log_level="warning")


def serve_with_gunicorn() -> None:
    from gunicorn.app.base import BaseApplication

    def begin(worker: object) -> None:
        signal.signal(signal.SIGUSR2, fail_in_main_thread)
        leave_with_main()
        load = Load("worker")
        load.serve_in_thread()
        load.start_threads()
        atexit.register(load.stop)

    class Application(BaseApplication):  # type: ignore[misc]
        def load_config(self) -> None:
            self.cfg.set("bind", "127.0.0.1:0")
            self.cfg.set("workers", CASE["workers"])
            self.cfg.set("post_worker_init", begin)

        def load(self) -> object:
            return lambda environ, start_response: []

    os.environ["HOME"] = FOLDER  # it has a socket there
    sys.argv = sys.argv[:1]
    say("main")
    Application().run()


def main() -> None:
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    os.environ[_MAIN] = str(os.getpid())
    match CASE["how"]:
        case "alone":
            serve("main")
        case "uvicorn":
            serve_with_uvicorn()
        case "gunicorn":
            serve_with_gunicorn()
        case _:
            serve_with_multiprocessing()


if __name__ == "__main__":
    main()
