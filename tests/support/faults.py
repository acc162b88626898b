"""A collector, producers and an oracle, each in a process of its own, and what may go wrong between them.

    Producers --SocketSink--> (Cutter) --> Listener --> folder --> Oracle.check
        |                                                              ^
        +------ what was acknowledged, written down before it is ------+
                believed: one line for each page, with its numbers

A producer numbers its events, so a page is known by them. The oracle knows of each what the producer was told is safe,
and what it counted as lost; `check` compares that with what is in the folder. `tests/collector/test_faults.py` has
the small counts, `tests/long/collector_faults.py` those of docs/measurements/reliability.md.
"""

from __future__ import annotations

import json
import os
import random
import select
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from aiotrace.decode import open_trace
from aiotrace.formats import restore
from support.programs import environment

PATIENCE = 60.0
"""Seconds after which a wait is a hang."""

PRODUCER = """
import json, os, resource, struct, sys, time
import anyio
import aiotrace
from support.page_oracle import walk
from aiotrace_sinks import FileSink, SocketSink

plan = json.loads(sys.argv[1])
number = aiotrace.event("faults:number", n="u64", text="str")
log = os.open(plan["log"], os.O_WRONLY | os.O_CREAT | os.O_APPEND)

class Noted:
    '''The stream; writes down which pages are safe.'''
    def __init__(self, stream):
        self.stream = stream
    def __getattr__(self, name):
        return getattr(self.stream, name)
    def note(self, page):
        numbers = [struct.unpack_from("=Q", page.data, r.start + 8)[0] for r in walk(page.data, page.timestamp)]
        if numbers:
            assert numbers == sorted(numbers)
            os.write(log, f"{time.monotonic():.4f} {numbers[0]} {numbers[-1]} {len(numbers)}\\n".encode())
    def acknowledge(self, page):
        self.note(page)
        self.stream.acknowledge(page)
    def acknowledge_all(self, pages):
        for page in pages:
            self.note(page)
        self.stream.acknowledge_all(pages)

async def main():
    sink = SocketSink(plan["address"], patience=600, heartbeat=plan["heartbeat"], level=plan["level"], **plan["tls"])
    async def noted(stream):
        await sink(Noted(stream))
    sinks = [aiotrace.sink(noted, on_full=plan["on_full"])]
    if plan["file"]:
        sinks.append(FileSink(plan["file"]))
    n = 0
    started = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    async with aiotrace.record(
        *sinks, page_size=plan["page_size"], pages=plan["pages"], flush_interval=0.05, drain_timeout=600
    ) as recording:
        print("ready", flush=True)
        text = "x" * plan["filling"]
        while not os.path.exists(plan["stop"]):
            for _ in range(plan["burst"]):
                if plan["waits"]:
                    await number.send(n, text)
                else:
                    number(n, text)
                n += 1
            await anyio.sleep(plan["pause"])
    s = recording.statistics()
    print(json.dumps({
        "calls": n, "written": s.events_written, "dropped": s.events_dropped, "abandoned": s.events_abandoned,
        "missed": s.sinks[0].events_missed, "delivered": s.sinks[0].events_delivered,
        "connections": sink.connections, "pages_free": s.pages_free, "pages_total": s.pages_total,
        "memory_kib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - started,
        "pool_kib": plan["page_size"] * plan["pages"] >> 10,
    }), flush=True)

anyio.run(main, backend=plan["backend"])
"""


class Listener:
    """`aiotrace listen`, which can be killed, stopped and started again."""

    def __init__(self, address: str, folder: Path, *arguments: str, wrap: tuple[str, ...] = ()) -> None:
        self.address = address
        self.kills = 0
        self.command = [*wrap, sys.executable, "-m", "aiotrace", "listen", address, "-o", str(folder), *arguments]
        self._errors = folder.with_suffix(".log")
        self.process: subprocess.Popen[str] | None = None

    def start(self) -> None:
        """Returns when it listens; `address` has the port that it got."""
        with open(self._errors, "a+") as errors:
            errors.seek(0, os.SEEK_END)
            start = errors.tell()
            self.process = subprocess.Popen(
                self.command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=errors, text=True,
                env=environment(),
            )  # fmt: skip
            wait_for(lambda: f"aiotrace listen: {self.address}\n" in self.errors(start), self.errors)

    def errors(self, start: int = 0) -> str:
        return self._errors.read_text()[start:]

    def signal(self, number: signal.Signals) -> None:
        assert self.process is not None
        self.process.send_signal(number)

    def kill(self) -> None:
        assert self.process is not None
        self.process.kill()
        self.process.wait()
        self.kills += 1

    def end(self) -> int:
        """As an operator ends it; returns the exit status."""
        self.signal(signal.SIGTERM)
        assert self.process is not None
        return self.process.wait(PATIENCE)


FAULTY = """
import ctypes, os, sys
from aiotrace._store import batch_write, store, trace_files
from aiotrace.__main__ import main

fiu = ctypes.CDLL("libfiu.so.0")

class Os:
    # CPython calls pwritev2 and C pwritev, which libfiu does not know.
    def __getattr__(self, name):
        return getattr(os, name)
    def pwritev(self, fd, buffers, offset):
        return os.pwrite(fd, b"".join(buffers), offset)

from aiotrace._collector import collect
trace_files.os = Os()
store.write_whole = batch_write.python_write_whole
listen = collect.listen

def listen_and_fail(*arguments):
    # Not before: a folder that cannot be written is refused at the start, as it should be.
    for name, probability in (
        ("posix/io/rw/pwrite", 0.1), ("posix/io/rw/pwrite/reduce", 0.2), ("posix/io/sync/fdatasync", 0.05)
    ):
        assert not fiu.fiu_enable_random(name.encode(), 1, ctypes.c_void_p(5), 0, ctypes.c_float(probability))
    return listen(*arguments)

collect.listen = listen_and_fail
sys.exit(main())
"""


def make_faulty(listener: Listener, fiu_run: str) -> None:
    """R9: 10 % of its writes fail, 20 % fall short, 5 % of its fsyncs fail."""
    python, _, _, *arguments = listener.command
    listener.command = [fiu_run, "-x", python, "-c", FAULTY, *arguments]


@dataclass
class Acknowledged:
    """Of one producer: what it was told is safe."""

    times: list[float] = field(default_factory=list)
    """Seconds of CLOCK_MONOTONIC, of each page or part."""
    ranges: list[tuple[int, int, int]] = field(default_factory=list)
    """First and last number and count of each."""


class Producer:
    """A traced program."""

    def __init__(self, folder: Path, name: str, address: str, seed: int = 0, **options: Any) -> None:
        self.name = name
        self._log = folder / f"{name}.acknowledged"
        self._stop = folder / f"{name}.stop"
        self._seen = 0
        self.acknowledged = Acknowledged()
        plan: dict[str, Any] = {
            "address": address, "log": str(self._log), "stop": str(self._stop), "file": None, "heartbeat": 5.0,
            "level": "fsynced", "tls": {}, "on_full": "wait", "page_size": 4096, "pages": 32, "filling": 900,
            "burst": 20, "pause": 0.002, "waits": True, "backend": "asyncio",
        }  # fmt: skip
        wrap = options.pop("wrap", ())
        self.plan = {**plan, **options}
        self.process = subprocess.Popen(
            [*wrap, sys.executable, "-W", "ignore", "-c", PRODUCER, json.dumps(self.plan)],
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment(),
        )  # fmt: skip
        self.ledger: dict[str, int] = {}

    def wait_ready(self) -> None:
        assert self.process.stdout is not None
        assert self.process.stderr is not None
        line = self.process.stdout.readline()
        assert line == "ready\n", line + self.process.stderr.read()

    @property
    def pid(self) -> int:
        """Of the program itself."""
        return self.process.pid

    def look(self) -> int:
        """Read what was written down since; returns how many pages and parts were acknowledged in all."""
        try:
            with open(self._log) as file:
                file.seek(self._seen)
                text = file.read()
        except FileNotFoundError:
            return 0
        whole = text[: text.rfind("\n") + 1]
        self._seen += len(whole)
        for line in whole.splitlines():
            when, first, last, count = line.split()
            self.acknowledged.times.append(float(when))
            self.acknowledged.ranges.append((int(first), int(last), int(count)))
        return len(self.acknowledged.times)

    def first_after(self, moment: float) -> float | None:
        """When something was first acknowledged after that moment."""
        self.look()
        times = self.acknowledged.times
        if not times or times[-1] <= moment:
            return None
        return next(time for time in times if time > moment)

    def stop(self) -> None:
        self._stop.touch()

    def wait(self) -> None:
        """For its end, with its account."""
        output, errors = self.process.communicate(timeout=PATIENCE)
        assert self.process.returncode == 0, errors
        self.ledger = json.loads(output.splitlines()[-1])
        self.look()

    def kill(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
            self.process.communicate()


class Cutter:
    """A way to the collector that is cut: each connection is reset after a number of bytes, either way."""

    def __init__(self, path: str, target: str, generator: random.Random, least: int = 1, most: int = 1 << 17) -> None:
        self.address = f"unix:{path}"
        self.cuts = 0
        self.wanted = 1 << 60
        """Cuts after which it lets everything pass."""
        self.bytes_a_second: float | None = None
        self._target = target
        self._generator = generator
        self._range = least, most
        self._server = socket.socket(socket.AF_UNIX)
        self._server.bind(path)
        self._server.listen()
        threading.Thread(target=self._serve, daemon=True).start()

    def close(self) -> None:
        self._server.close()

    def _serve(self) -> None:
        while True:
            try:
                client, _ = self._server.accept()
            except OSError:
                return
            threading.Thread(target=self._pass, args=(client,), daemon=True).start()

    def _pass(self, client: socket.socket) -> None:
        try:
            server = connect(self._target)
        except OSError:
            client.close()
            return
        left = self._generator.randint(*self._range)
        with client, server:
            poller = {client.fileno(): (client, server), server.fileno(): (server, client)}
            poll = select.poll()
            for number in poller:
                poll.register(number, select.POLLIN)
            try:
                while True:
                    for number, _ in poll.poll():
                        source, target = poller[number]
                        data = source.recv(min(65536, left if self.cuts < self.wanted else 65536))
                        if not data:
                            return
                        if self.bytes_a_second is not None and source is client:
                            time.sleep(len(data) / self.bytes_a_second)
                        target.sendall(data)
                        if self.cuts < self.wanted:
                            left -= len(data)
                            if left <= 0:
                                self.cuts += 1
                                reset(client)
                                reset(server)
                                return
            except OSError:
                return


def connect(address: str) -> socket.socket:
    if address.startswith("unix:"):
        sock = socket.socket(socket.AF_UNIX)
        try:
            sock.connect(address.removeprefix("unix:"))
        except OSError:
            sock.close()
            raise
        return sock
    host, _, port = address.partition("//")[2].rpartition(":")
    return socket.create_connection((host, int(port)))


def reset(sock: socket.socket) -> None:
    """RST, with TCP: what is on its way is thrown away, on both sides."""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    sock.close()


def wait_for(condition: Callable[[], object], why: Callable[[], str] = lambda: "") -> float:
    """Returns the seconds that it took."""
    begun = time.monotonic()
    while not condition():
        if time.monotonic() > begun + PATIENCE:
            raise TimeoutError(f"nothing happened for {PATIENCE:g} s: {why()}")
        time.sleep(0.002)
    return time.monotonic() - begun


@dataclass
class Verdict:
    """What the oracle found."""

    pages: int = 0
    """Pages and parts that were acknowledged."""
    events: int = 0
    """Events on them."""
    missing: int = 0
    """Events that were acknowledged and are in no trace."""
    doubled: int = 0
    """Events that are in the traces more than once."""
    torn: int = 0
    """Parts of files that could not be read, and events that no producer wrote."""
    unaccounted: int = 0
    """Events that are neither in a trace nor in a count of losses, or in both."""
    lost: int = 0
    """Events that the programs counted as lost."""
    resumed: list[float] = field(default_factory=list)
    """Seconds until a producer was acknowledged something after a restart."""
    memory_kib: int = 0
    """The most that a producer's memory grew, without its pool."""

    @property
    def is_good(self) -> bool:
        return not (self.missing or self.doubled or self.torn or self.unaccounted)

    def add(self, other: Verdict) -> None:
        for name in ("pages", "events", "missing", "doubled", "torn", "unaccounted", "lost"):
            setattr(self, name, getattr(self, name) + getattr(other, name))
        self.resumed += other.resumed
        self.memory_kib = max(self.memory_kib, other.memory_kib)


def check(folder: Path, producers: list[Producer]) -> Verdict:
    """Compare the folder with what was reported to the producers. They have ended."""
    verdict = Verdict()
    for journal in folder.glob("*.journal"):  # never closed: that is no loss
        restore(str(journal.with_suffix("")))
    stored: dict[int, Counter[int]] = {}
    losses: Counter[int] = Counter()
    for path in sorted(folder.glob("*.dat")):
        pid = int(path.name.split("-")[-2])
        with open_trace(path) as trace:
            numbers = stored.setdefault(pid, Counter())
            numbers.update(event.fields["n"] for event in trace.events(["faults:number"]) if not event.is_loss)
            verdict.torn += trace.damage_count
            losses[pid] += sum(loss.count for loss in trace.losses)
            verdict.torn += sum(loss.uncounted for loss in trace.losses)
    for producer in producers:
        _check_one(verdict, producer, stored.get(producer.pid, Counter()), losses[producer.pid])
    return verdict


def _check_one(verdict: Verdict, producer: Producer, stored: Counter[int], losses: int) -> None:
    ledger = producer.ledger
    doubled = sum(count - 1 for count in stored.values())
    verdict.doubled += doubled
    verdict.torn += sum(n >= ledger["calls"] for n in stored)
    for first, last, count in producer.acknowledged.ranges:
        verdict.pages += 1
        verdict.events += count
        there = sum(n in stored for n in range(first, last + 1))
        verdict.missing += max(0, count - there)
    lost = ledger["dropped"] + ledger["missed"] + ledger["abandoned"]
    verdict.lost += lost
    verdict.unaccounted += abs(ledger["calls"] - len(stored) - lost) + abs(losses - lost)
    verdict.unaccounted += abs(ledger["delivered"] - len(stored))
    verdict.torn += ledger["pages_total"] - ledger["pages_free"]
    verdict.memory_kib = max(verdict.memory_kib, ledger["memory_kib"] - ledger["pool_kib"])


def numbers_in(path: Path) -> list[int]:
    """In the order of the file."""
    with open_trace(path) as trace:
        return [event.fields["n"] for event in trace.events(["faults:number"]) if not event.is_loss]


@dataclass
class Scene:
    """A folder, a collector and producers. `close` ends what is left of them."""

    folder: Path
    listener: Listener
    producers: list[Producer] = field(default_factory=list)
    options: dict[str, Any] = field(default_factory=dict)
    """Of all producers."""

    @property
    def traces(self) -> Path:
        return self.folder / "traces"

    def produce(self, count: int, address: str | None = None, **options: Any) -> None:
        for _ in range(count):
            name = f"producer{len(self.producers)}"
            self.producers.append(
                Producer(self.folder, name, address or self.listener.address, **self.options, **options)
            )
        for producer in self.producers[-count:]:
            producer.wait_ready()

    def pages(self) -> int:
        """Acknowledged so far."""
        return sum(producer.look() for producer in self.producers)

    def wait_for_pages(self, more: int) -> None:
        wanted = self.pages() + more
        wait_for(lambda: self.pages() >= wanted, self.listener.errors)

    def wait_resumed(self, moment: float) -> list[float]:
        """Seconds after that moment until each producer was acknowledged something."""
        wait_for(lambda: all(p.first_after(moment) is not None for p in self.producers), self.listener.errors)
        return [(p.first_after(moment) or 0) - moment for p in self.producers]

    def finish(self) -> Verdict:
        for producer in self.producers:
            producer.stop()
        for producer in self.producers:
            producer.wait()
        self.listener.end()
        return check(self.traces, self.producers)

    def close(self) -> None:
        for producer in self.producers:
            producer.kill()
        process = self.listener.process
        if process is not None and process.poll() is None:
            process.send_signal(signal.SIGCONT)
            process.kill()
            process.wait()


# --- the faults ---------------------------------------------------------------------------------


def kill_collector(scene: Scene, generator: random.Random, kills: int, pages: int) -> list[float]:
    """R5: SIGKILL at any moment, and a new start. Returns the seconds until each producer went on, each time."""
    resumed = []
    for _ in range(kills):
        scene.wait_for_pages(generator.randrange(1, 2 * pages // kills))
        time.sleep(generator.random() / 100)
        scene.listener.kill()
        scene.listener.start()
        resumed += scene.wait_resumed(time.monotonic())
    return resumed


def fill_disk(scene: Scene, generator: random.Random, times: int, pages: int) -> list[float]:
    """R8: somebody else takes all the room of the disk, and gives it back. Returns the seconds until each producer went
    on after that."""
    resumed = []
    balloon = scene.traces / "balloon"
    for _ in range(times):
        scene.wait_for_pages(generator.randrange(1, 2 * pages // times))
        start = len(scene.listener.errors())
        inflate(balloon)
        wait_for(lambda at=start: "nothing is acknowledged" in scene.listener.errors(at), scene.listener.errors)  # type: ignore[misc]
        time.sleep(generator.random() / 10)
        balloon.unlink()
        resumed += scene.wait_resumed(time.monotonic())
    return resumed


def inflate(balloon: Path) -> None:
    """Take all the room that is left."""
    with balloon.open("wb", buffering=0) as file:
        try:
            while True:
                file.write(bytes(4096))
        except OSError:
            return


def cut_connections(scene: Scene, cutter: Cutter, cuts: int) -> None:
    """R10: each connection is reset after a random number of bytes."""
    cutter.wanted = cuts
    wait_for_long(lambda: cutter.cuts >= cuts and (scene.pages() or True))


def wait_for_long(condition: Callable[[], object]) -> None:
    """Without a limit: for the long runs."""
    while not condition():
        time.sleep(0.01)


def stop_collector(scene: Scene, generator: random.Random, times: int, heartbeat: float) -> list[float]:
    """R11: SIGSTOP for longer than two heartbeats, then SIGCONT. Returns the seconds until each producer went on."""
    resumed = []
    for _ in range(times):
        scene.wait_for_pages(generator.randrange(1, 100))
        scene.listener.signal(signal.SIGSTOP)
        time.sleep(heartbeat * (2 + generator.random()))
        moment = time.monotonic()
        before = scene.pages()
        time.sleep(heartbeat)
        assert scene.pages() - before == 0, "nothing is acknowledged while the collector is stopped"
        moment = time.monotonic()
        scene.listener.signal(signal.SIGCONT)
        resumed += scene.wait_resumed(moment)
    return resumed


class Namespaces:
    """Two network namespaces and a cable between them, which can be pulled out. Needs to be root."""

    ADDRESS = "10.199.77.1"

    def __init__(self) -> None:
        self._names = [f"aiotrace-{os.getpid()}-{side}" for side in "ab"]
        first, second = self._names
        link = f"at{os.getpid() % 100_000}"
        for name in self._names:
            run("ip", "netns", "add", name)
            run("ip", "-n", name, "link", "set", "lo", "up")
        run("ip", "link", "add", f"{link}a", "netns", first, "type", "veth", "peer", f"{link}b", "netns", second)
        for name, end, number in ((first, f"{link}a", 1), (second, f"{link}b", 2)):
            run("ip", "-n", name, "addr", "add", f"10.199.77.{number}/24", "dev", end)
            run("ip", "-n", name, "link", "set", end, "up")
        self._link = f"{link}b"
        self.collector = ("ip", "netns", "exec", first)
        self.producer = ("ip", "netns", "exec", second)

    def set_link(self, state: str) -> None:
        """ "up" or "down"; the other side is not told."""
        run("ip", "-n", self._names[1], "link", "set", self._link, state)

    def close(self) -> None:
        for name in self._names:
            run("ip", "netns", "del", name)


@contextmanager
def between_machines(folder: Path) -> Iterator[tuple[Scene, Namespaces]]:
    """A collector and producers that reach it over a cable alone."""
    import trustme

    authority = trustme.CA()
    authority.cert_pem.write_to_path(folder / "ca.pem")
    authority.issue_cert(Namespaces.ADDRESS).private_key_and_cert_chain_pem.write_to_path(folder / "server.pem")
    (folder / "token").touch(0o600)
    (folder / "token").write_text("a token that is long enough\n")
    namespaces = Namespaces()
    try:
        listener = Listener(
            f"tls://{Namespaces.ADDRESS}:7007", folder / "traces", "--tls-cert", str(folder / "server.pem"),
            "--token-file", str(folder / "token"), wrap=namespaces.collector,
        )  # fmt: skip
        scene = Scene(folder, listener)
        scene.options = {
            "wrap": namespaces.producer,
            "tls": {"ca": str(folder / "ca.pem"), "token_file": str(folder / "token")},
        }
        try:
            yield scene, namespaces
        finally:
            scene.close()
    finally:
        namespaces.close()


def run(*command: str) -> None:
    subprocess.run(command, check=True, capture_output=True)


def pull_cable(
    scene: Scene, namespaces: Namespaces, generator: random.Random, times: int, heartbeat: float
) -> list[float]:
    """R11: nothing passes for longer than two heartbeats. Returns the seconds until each producer went on."""
    resumed = []
    for _ in range(times):
        scene.wait_for_pages(generator.randrange(1, 100))
        namespaces.set_link("down")
        time.sleep(heartbeat * 0.5)
        before = scene.pages()
        time.sleep(heartbeat * (2 + generator.random()))
        assert scene.pages() == before, "nothing is acknowledged while nothing passes"
        namespaces.set_link("up")
        resumed += scene.wait_resumed(time.monotonic())
    return resumed


def at_random(scene: Scene, cutter: Cutter, generator: random.Random, steps: int, *, disk: bool) -> Counter[str]:
    """R21: all of them, in an order that the seed decides. Returns how often each was."""
    done: Counter[str] = Counter()
    kinds = ["kill", "end", "stop", "cuts", *(["disk"] if disk else [])]
    for _ in range(steps):
        kind = generator.choice(kinds)
        done[kind] += 1
        match kind:
            case "kill":
                kill_collector(scene, generator, 1, 60)
            case "end":
                scene.listener.end()
                scene.listener.start()
            case "stop":
                scene.listener.signal(signal.SIGSTOP)
                time.sleep(generator.random() * 3)
                scene.listener.signal(signal.SIGCONT)
            case "cuts":
                cut_connections(scene, cutter, cutter.cuts + generator.randrange(1, 10))
            case "disk":
                inflate(scene.traces / "balloon")
                time.sleep(generator.random() / 2)
                (scene.traces / "balloon").unlink()
        scene.wait_for_pages(generator.randrange(1, 60))
    return done
