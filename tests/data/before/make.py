"""Made the files of this folder, by the commit that README.md names: `python tests/data/before/make.py`.

For the record: run by another commit it makes what that one writes, and the files say nothing about the old formats
any more. `make.py expect` is for a deliberate change of a report's text: it leaves the files, and writes anew what is
expected of them. Look at the difference before you commit it.
"""

from __future__ import annotations

import gzip
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent.parent / "cli"))

import test_old_files as old  # noqa: E402  # what is asked of each file, and the conversation of the protocol

HOST = """
import socket
socket.gethostname = lambda: "before"
"""

APP = """
import asyncio, logging, sys, time
import aiotrace
from aiotrace_sinks import FileSink

request = aiotrace.event("app:request", status="u16", latency_ns="u64", path="str", body="bytes", where="symbol",
                         ratio="f64", ok="bool", shift="s8")
query = aiotrace.span_type("db:query", table="str")

async def handle(n):
    with aiotrace.span("handle", number=n), query(table="users"):
        await asyncio.sleep(0.001)
    request(200 + n, 1_250_000 * n, f"/index/{n}", bytes([n, 255]), "handler", n / 4, n % 2 == 0, -n)

async def slow():
    request(500, 0, "/slow", b"", "slow", 0.5, True, 1)
    time.sleep(0.03)

async def stubborn():
    try:
        await asyncio.sleep(60)
    except asyncio.CancelledError:
        await asyncio.sleep(0.002)

async def fails():
    raise ValueError("on purpose")

async def main():
    asyncio.get_running_loop().set_exception_handler(lambda loop, context: None)
    async with aiotrace.record(FileSink("tasks.dat"), page_size=4096, pages=32) as recording:
        for glob in ("task:*", "log:*", "app:*", "db:*", "span:*"):
            recording.enable(glob)
        recording.watch_stalls(0.01)
        recording.watch_cancellations(1.0)
        recording.trigger("app:request", "stacktrace:1 if status == 201")
        async with asyncio.TaskGroup() as group:
            for n in range(3):
                group.create_task(handle(n), name=f"request {n}")
            group.create_task(slow(), name="slow")
        task = asyncio.create_task(stubborn(), name="stubborn")
        await asyncio.sleep(0)
        task.cancel("enough")
        await asyncio.wait([task])
        failing = asyncio.create_task(fails(), name="fails")
        await asyncio.wait([failing])
        del failing
        logging.getLogger("app").warning("a %s warning", "logged")
        left = asyncio.create_task(asyncio.sleep(60), name="left")
        await asyncio.sleep(0)
    left.cancel()

asyncio.run(main())
"""

LOSSY = """
import time
import aiotrace
from aiotrace_sinks import FileSink

number = aiotrace.event("app:number", n="u32", pad="str")
with aiotrace.recording(FileSink("lossy.dat"), page_size=4096, pages=4) as recording:
    for n in range(60):
        number(n, "x" * (3000 if 10 < n < 50 else n))
    while recording.statistics().events_in_flight:
        time.sleep(0.01)
    for n in range(60, 64):
        number(n, "the last")
"""

THREADS = """
import threading
import aiotrace
from aiotrace_sinks import FileSink

number = aiotrace.event("app:number", n="u32", text="str")
barrier = threading.Barrier(3)

def work(first):
    for n in range(first, first + 4):
        number(n, "t" * (n % 5))
    barrier.wait()

with aiotrace.recording(FileSink("threads.dat"), page_size=4096, pages=32):
    threads = [threading.Thread(target=work, args=(100 * n,), name=f"worker {n}") for n in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
"""

KILLED = """
import os, signal, threading
import aiotrace
from aiotrace_sinks import FileSink

number = aiotrace.event("app:number", n="u32", text="str")
barrier = threading.Barrier(3)

def work(first):
    for n in range(first, first + 6):
        number(n, "k" * (1400 if n % 100 < 3 else n % 100))
    barrier.wait()
    barrier.wait()

with aiotrace.recording(FileSink("killed.dat"), page_size=4096, pages=32, flush_interval=0.01) as recording:
    for n in range(2):
        threading.Thread(target=work, args=(100 * n,), daemon=True).start()
    barrier.wait()
    while recording.statistics().events_delivered < 12:
        pass
    os.kill(os.getpid(), signal.SIGKILL)
"""

ARENA = """
import os, signal
import aiotrace

number = aiotrace.event("app:number", n="u32", text="str")
with aiotrace.recording(page_size=4096, pages=4, overrun="drop_oldest", arena="app.arena") as recording:
    for n in range(40):
        number(n, "a" * (500 if n < 36 else n))
    recording.snapshot("snapshot.dat")
    number(40, "after the snapshot")
    os.kill(os.getpid(), signal.SIGKILL)
"""

SENDS = """
import os, signal, sys
import aiotrace
from aiotrace_sinks import SocketSink

number = aiotrace.event("app:number", n="u32", text="str")
with aiotrace.recording(SocketSink("unix:socket"), page_size=4096, pages=16, flush_interval=0.01) as recording:
    for n in range(8):
        number(n, "s" * (1300 if n < 4 else n))
    if sys.argv[1:] == ["die"]:
        while recording.statistics().events_delivered < 8 :
            pass
        os.kill(os.getpid(), signal.SIGKILL)
"""


def run(folder: Path, name: str, text: str, *arguments: str) -> None:
    """A program in this folder; the files contain its text and its path, so both are short."""
    (folder / name).write_text(HOST + text)
    environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    done = subprocess.run(["python", name, *arguments], cwd=folder, env=environment)
    assert done.returncode in (0, -9), (name, done.returncode)


def pack(folder: Path, name: str, target: str = "") -> None:
    target, data = target or name, (folder / name).read_bytes()
    while target.count(".gz") < (2 if name.endswith(".arena") else 1):  # 16 MB of zeros are 16 KB, and those 100 bytes
        target, data = f"{target}.gz", gzip.compress(data, 9, mtime=0)
    (HERE / target).write_bytes(data)


def make() -> None:
    folder = Path("/tmp/app")  # its name is in what is recorded
    folder.mkdir()
    try:
        run(folder, "app.py", APP)
        run(folder, "lossy.py", LOSSY)
        run(folder, "threads.py", THREADS)
        run(folder, "killed.py", KILLED)
        run(folder, "arena.py", ARENA)
        listen = [sys.executable, "-m", "aiotrace", "listen", "unix:socket", "-o", "collected"]
        with subprocess.Popen(listen, cwd=folder) as collector:
            while not (folder / "socket").exists():
                time.sleep(0.01)
            run(folder, "sends.py", SENDS)
            run(folder, "sends.py", SENDS, "die")
            time.sleep(1)
            collector.kill()
        for path in sorted(folder.glob("killed.dat*")):
            pack(folder, path.name)
        for name in ("tasks.dat", "lossy.dat", "threads.dat", "app.arena", "snapshot.dat"):
            pack(folder, name)
        streams = sorted((folder / "collected").glob("*.dat"), key=lambda path: path.stat().st_mtime)
        print(sorted(os.listdir(folder / "collected")))
        for path, plain in zip(streams, ("ended", "cut"), strict=True):
            for each in (folder / "collected").glob(f"{path.name}*"):
                pack(folder / "collected", each.name, f"collected-{plain}{each.name.removeprefix(path.stem)}")
    finally:
        shutil.rmtree(folder)
    sent, answered, _ = old.converse()
    (HERE / "producer.bin.gz").write_bytes(gzip.compress(sent, 9, mtime=0))
    (HERE / "collector.bin.gz").write_bytes(gzip.compress(answered, 9, mtime=0))
    (HERE / "frames.json").write_text(json.dumps(old.frames(), indent=1) + "\n")
    (HERE / "store").mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as scratch:
        for name, data in old.store(Path(scratch)).items():
            (HERE / "store" / f"{name.replace(' ', '-')}.gz").write_bytes(gzip.compress(data, 9, mtime=0))


def expect() -> None:
    for stale in (HERE / "expected").glob("*"):
        stale.unlink()
    (HERE / "expected").mkdir(exist_ok=True)
    for case in old.CASES:
        with tempfile.TemporaryDirectory() as scratch:
            old.unpack(case, Path(scratch))
            text = old.ask(case, Path(scratch)).encode()
        path = HERE / "expected" / f"{case.name}.txt"
        if len(text) > 16 << 10:
            path, text = path.with_name(f"{path.name}.gz"), gzip.compress(text, 9, mtime=0)
        path.write_bytes(text)
    (HERE / "expected" / "conversation.txt").write_text(old.converse()[2])


if __name__ == "__main__":
    if sys.argv[1:] != ["expect"]:
        make()
    expect()
