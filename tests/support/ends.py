"""However a program ends, its trace is finished: one recorded server, its end, and what is compared afterwards.

    Case --> aiotrace record --> ending_server (busy; counts its events outside of the trace)
                 at a random moment: a signal, os._exit, an exception, a fault; of the program or a worker
             `record` returns --> no journal; status; then orphans end, and the recorder that stayed for them
             each t.*.dat --> the counts of its process, and what trace-cmd prints

The oracle has each thread's count from a file that it maps: stored after the event call returned. A trace must have as
many events of that thread, or one more, numbered without a hole, except for what it counts as lost, and `record` must
say the same count.
"""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import random
import re
import select
import signal
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path

import aiotrace

from . import TESTS, kernel
from .programs import environment

SERVER = TESTS / "support" / "ending_server.py"
SIGNALS = {"SIGTERM": signal.SIGTERM, "SIGINT": signal.SIGINT, "SIGKILL": signal.SIGKILL}
KINDS = (*SIGNALS, "os._exit", "exception", "SIGSEGV")
OWN_SERVERS = ("fork", "spawn", "forkserver")
SERVERS = (*OWN_SERVERS, "uvicorn", "gunicorn")
"""How a main process has its workers."""
MOST = 2000
"""Requests after which a process ends itself, at most, from when all processes are busy."""
LONGEST = 0.4
"""Seconds from when all processes are busy until a signal is sent, at most."""
PATIENCE = 120.0
"""Seconds in which each step happens, also on a busy machine."""
_COMPLAINTS = "unfinished|is not recorded|damaged|failed|ended before"
"""`record` has none of these to say."""
_STATUS = {
    "SIGTERM": -signal.SIGTERM,
    "SIGINT": -signal.SIGINT,
    "SIGKILL": -signal.SIGKILL,
    "os._exit": 7,
    "exception": 1,
    "SIGSEGV": -signal.SIGSEGV,
}
"""What `subprocess` says of a program that ends so."""


def can_run(server: str) -> bool:
    return server in OWN_SERVERS or importlib.util.find_spec(server) is not None


@dataclass(frozen=True)
class Case:
    """One run."""

    end: str
    """Of KINDS."""
    how: str
    """Of SERVERS, or "alone"."""
    workers: int
    victim: str
    """"main" or "worker". When a worker has ended, the main process is sent SIGTERM."""
    to: str
    """Where SIGTERM or SIGINT for the main process is sent: "program", "record", which passes it on, or "group": all of
    the process group, as by Ctrl-C."""
    lingers: bool
    """Whether workers outlive a main process that does not end them, until they are killed."""
    threads: int
    """Of each process, beside its loop."""
    at: int
    """Requests after which a process ends itself, from when all are busy."""
    moments: tuple[float, float, float]
    """Seconds until a signal is sent; until the main process is sent one; until orphans are killed."""

    @property
    def status(self) -> int:
        """What `record` is to end with."""
        end = self.end if self.victim == "main" else "SIGTERM"
        if self.how not in ("alone", *OWN_SERVERS) and end in ("SIGTERM", "SIGINT"):
            return 0  # they handle these
        return _STATUS[end]


def draw(generator: random.Random, end: str, how: str, most_workers: int = 8, scale: float = 1.0) -> Case:
    """A random case.

    Args:
        scale: Of how long it is busy.
    """
    longest = LONGEST * scale
    # What is above the workers of uvicorn and gunicorn is their own code: it does not end by itself.
    can_be_main = end in SIGNALS or how in OWN_SERVERS
    is_main = how == "alone" or (can_be_main and generator.random() < 0.5)
    return Case(
        end,
        how,
        workers=0 if how == "alone" else generator.randint(2, most_workers),
        victim="main" if is_main else "worker",
        to=generator.choice(("program", "record", "group")),
        lingers=generator.random() < 0.5,
        threads=generator.randint(0, 2),
        at=generator.randint(1, max(1, round(MOST * scale))),
        moments=(generator.uniform(0, longest), generator.uniform(0, longest), generator.uniform(0, longest)),
    )


@dataclass
class Verdict:
    """What the oracle found, of one run or of several."""

    runs: int = 0
    files: int = 0
    committed: int = 0
    """Events whose calls had returned."""
    found: int = 0
    extra: int = 0
    """Threads whose last event is in the trace, and whose process ended before it was counted."""
    refused: int = 0
    """Events that the trace counts as lost: the buffer was full, or a signal handler interrupted an event call."""
    missing: int = 0
    """Events that are neither in the trace nor counted there as lost."""
    wrong: int = 0
    """Events out of order, twice, or never written; damaged pages."""
    unfinished: int = 0
    """Files with a journal: when `record` returned, or, of orphans, when its recorder had ended."""
    unread: int = 0
    """Files of which trace-cmd does not print all events."""
    left: int = 0
    """Arenas that are still there."""
    statuses: int = 0
    """Runs in which `record` did not end as the program did."""
    orphaned: int = 0
    """Runs in which workers outlived `record`, and were recorded on."""
    faults: list[str] = field(default_factory=list)

    @property
    def is_good(self) -> bool:
        return not self.faults

    def add(self, other: Verdict) -> None:
        for each in fields(self):
            setattr(self, each.name, getattr(self, each.name) + getattr(other, each.name))


# --- one run --------------------------------------------------------------------------------------


class Run:
    """`record` and the processes of its program.

    Raises:
        TimeoutError: From any method: something did not happen.
    """

    def __init__(self, folder: Path, case: Case) -> None:
        self.folder = folder
        self.case = case
        self.main = 0
        self.workers: dict[int, int] = {}
        """A pidfd of each."""
        self._arenas = ""
        os.mkfifo(folder / "busy")
        self._busy = os.open(folder / "busy", os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
        command = [sys.executable, "-m", "aiotrace", "record", "-o", str(folder / "t.dat"), str(SERVER)]
        variable = json.dumps({**asdict(case), "folder": str(folder)})
        with open(folder / "stderr", "wb") as errors:
            self.record = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=errors,
                env=environment(ENDING_SERVER=variable),
                start_new_session=True,
            )
        self._watch = os.pidfd_open(self.record.pid)

    def wait_until_busy(self) -> None:
        """All processes have called their first event, or the program has ended before that."""
        while not self.main or len(self.workers) < self.case.workers:
            if not self._listen():
                return

    def end(self) -> None:
        """What the case says, and the end of the main process."""
        (self.folder / "go").touch()
        number = SIGNALS.get(self.case.end)
        if number is not None:
            self._pause(self.case.moments[0])
        if self.case.victim == "main":
            if number is not None:
                self._end_main(number)
        else:
            self._end_worker(number)
            self._pause(self.case.moments[1])
            self._end_main(signal.SIGTERM)

    def _end_main(self, number: signal.Signals) -> None:
        if self.case.to == "program" or number == signal.SIGKILL:
            self._send(self.main, number)
        elif self.case.to == "record":
            self._send(self.record.pid, number)
        else:
            self._send(-self.record.pid, number)

    def _end_worker(self, number: signal.Signals | None) -> None:
        watched = list(self.workers.values())
        if number is not None:
            pid = random.Random(self.case.at).choice(sorted(self.workers))
            self._send(pid, number)
            watched = [self.workers[pid]]
        ended, _, _ = select.select([*watched, self._watch], [], [], PATIENCE)
        if not ended:
            raise TimeoutError("no worker ended")

    def wait(self) -> int:
        """The status that `record` ends with."""
        while self._listen():
            pass
        return self.record.wait()

    def end_orphans(self, recorder: int) -> None:
        """Wait for workers that outlive the program, and for the recorder that stayed; kill those that linger."""
        self._pause(self.case.moments[2], ended=True)
        recorder_watch = _open_pidfd(recorder)
        watched = {fd for fd in (recorder_watch, *self.workers.values()) if fd >= 0}
        begun = time.monotonic()
        while watched:
            if self.case.lingers:
                for pid in self.workers:
                    self._send(pid, signal.SIGKILL)
            known = len(self.workers)
            ready, _, _ = select.select([*watched, self._busy], [], [], PATIENCE)
            self._take_busy()
            watched |= set(list(self.workers.values())[known:])
            watched -= set(ready)
            if not ready or time.monotonic() > begun + PATIENCE:
                raise TimeoutError("orphans, or their recorder, do not end")
        if recorder_watch >= 0:
            os.close(recorder_watch)

    def close(self) -> None:
        """Leave no process behind, whatever happened."""
        for pid in (self.record.pid, self.main, *self.workers):
            if pid and (pid != self.record.pid or self.record.poll() is None):
                self._send(pid, signal.SIGKILL)
        self.record.wait()
        for fd in (self._busy, self._watch, *self.workers.values()):
            if fd >= 0:
                os.close(fd)

    @property
    def errors(self) -> str:
        return (self.folder / "stderr").read_text(errors="replace")

    def arenas_left(self) -> list[str]:
        """Arenas that were not removed, in the run's folder on tmpfs or beside the trace."""
        names = [str(path) for path in self.folder.iterdir() if path.suffix == ".arena" or path.name[0] == "."]
        return [*names, self._arenas] if self._arenas and os.path.exists(self._arenas) else names

    def _listen(self) -> bool:
        """Note a process that is busy. Returns False once `record` has ended."""
        ready, _, _ = select.select([self._busy, self._watch], [], [], PATIENCE)
        if not ready:
            raise TimeoutError("nothing happened")
        self._take_busy()
        return self._watch not in ready

    def _take_busy(self) -> None:
        try:
            lines = os.read(self._busy, 4096).decode().splitlines()
        except BlockingIOError:
            return
        for line in lines:
            role, _, number = line.partition(" ")
            pid = int(number)
            if role == "main":
                self.main = pid
                self._arenas = _folder_of_arena(pid)
            elif pid not in self.workers:
                self.workers[pid] = _open_pidfd(pid)

    def _pause(self, seconds: float, *, ended: bool = False) -> None:
        """Until a moment of the case, or the end of `record`."""
        select.select([] if ended else [self._watch], [], [], seconds)

    def _send(self, pid: int, number: int) -> None:
        if pid == self.record.pid:
            self.record.send_signal(number)
            return
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)


def _open_pidfd(pid: int) -> int:
    """-1: it has ended, or there is none."""
    try:
        return os.pidfd_open(pid) if pid else -1
    except ProcessLookupError:
        return -1


def _folder_of_arena(pid: int) -> str:
    """The folder of the run's arenas; empty if the process has ended."""
    try:
        with open(f"/proc/{pid}/maps") as lines:
            paths = [line.split()[-1] for line in lines if line.rstrip().endswith(".arena")]
    except OSError:
        return ""
    return os.path.dirname(paths[0]) if paths else ""


def run_once(folder: Path, case: Case, trace_cmd: str) -> Verdict:
    """Record a server in an empty folder, end it, and compare."""
    verdict = Verdict(runs=1)
    run = Run(folder, case)
    try:
        run.wait_until_busy()
        run.end()
        status = run.wait()
        errors = run.errors
        journals = sorted(path.name for path in folder.glob("*.journal"))
        stayed = re.search(r"the recorder, process (\d+), records on in the background", errors)
        run.end_orphans(int(stayed[1]) if stayed else 0)
    except TimeoutError as error:
        verdict.faults.append(f"{case}: {error}: {run.errors}")
        return verdict
    finally:
        run.close()

    # When `record` returned: all is finished but what it said goes on.
    if stayed:
        verdict.orphaned = 1
        journals = [name for name in journals if name == "t.dat.journal"]
    after = {path.name for path in folder.glob("*.journal")}
    for name in sorted({*journals, *after}):
        verdict.unfinished += 1
        verdict.faults.append(f"{name} is there when {'the recorder ended' if name in after else 'record returned'}")
    if status != case.status:
        verdict.statuses += 1
        verdict.faults.append(f"status {status} where the program's is {case.status}")
    for path in run.arenas_left():
        verdict.left += 1
        verdict.faults.append(f"{path} is left")
    _check_traces(folder, run.main, trace_cmd, verdict)
    said = sum(map(int, re.findall(r"events lost: (\d+)", run.errors)))
    if said != verdict.refused:
        verdict.faults.append(f"the traces count {verdict.refused} lost events, record said {said}: {run.errors}")
    verdict.faults += re.findall(f"aiotrace record: .*(?:{_COMPLAINTS}).*", run.errors)
    verdict.faults = [f"{case}: {fault}" for fault in verdict.faults]
    return verdict


# --- the oracle -----------------------------------------------------------------------------------


def _check_traces(folder: Path, main: int, trace_cmd: str, verdict: Verdict) -> None:
    counts = _counts(folder)
    for pid in sorted({main, *counts}):
        path = folder / ("t.dat" if pid == main else f"t.{pid}.dat")
        if path.exists():
            _check_trace(path, counts.get(pid, {}), trace_cmd, verdict)
        elif committed := sum(counts.get(pid, {}).values()):
            verdict.missing += committed
            verdict.committed += committed
            verdict.faults.append(f"{path.name} is not there, with {committed} events")
    known = {f"t.{pid}.dat" for pid in counts} | {"t.dat"}
    for path in folder.glob("t.*.dat"):
        if path.name not in known:  # a worker that had not begun, or what is above workers
            _check_trace(path, {}, trace_cmd, verdict)


def _counts(folder: Path) -> dict[int, dict[int, int]]:
    """By process and thread: the event calls that returned."""
    counts: dict[int, dict[int, int]] = defaultdict(dict)
    for path in folder.glob("*.count"):
        pid, writer, _ = path.name.split(".")
        counts[int(pid)][int(writer)] = int.from_bytes(path.read_bytes(), sys.byteorder)
    return counts


def _check_trace(path: Path, counts: dict[int, int], trace_cmd: str, verdict: Verdict) -> None:
    numbers: dict[int, list[int]] = {writer: [] for writer in counts}
    verdict.files += 1
    events = refused = 0
    with aiotrace.open_trace(path) as trace:
        for event in trace.events():
            if event.is_loss:
                refused += int(event.fields["count"] or 1)
                continue
            events += 1
            if event.name == "ends:number":
                numbers.setdefault(event.fields["writer"], []).append(event.fields["n"])
        if trace.damage_count:
            verdict.wrong += trace.damage_count
            verdict.faults.append(f"{path.name}: {trace.damage_count} places are damaged")
    verdict.refused += refused
    absent = 0
    for writer, found in numbers.items():
        absent += counts.get(writer, 0) - len({*found} & {*range(counts.get(writer, 0))})
        for fault in _check_writer(found, counts.get(writer, 0), verdict):
            verdict.faults.append(f"{path.name}, thread {writer}: {fault}")
    if absent > refused:
        verdict.missing += absent - refused
        verdict.faults.append(f"{path.name}: {absent} events are not there, {refused} are counted as lost")
    read = _read_by_trace_cmd(trace_cmd, path)
    if read != events:
        verdict.unread += 1
        verdict.faults.append(f"{path.name}: trace-cmd prints {read} of {events} events")


def _check_writer(found: list[int], committed: int, verdict: Verdict) -> Iterator[str]:
    """One thread's numbers: none but 0 to its count, or one more."""
    verdict.committed += committed
    verdict.found += len(found)
    there = set(found)
    verdict.extra += committed in there
    unknown = [n for n in there if n > committed]
    if unknown or found != sorted(there):
        verdict.wrong += 1
        yield f"numbers are out of order, twice, or never written ({len(unknown)}): it wrote {committed}"


def _read_by_trace_cmd(trace_cmd: str, path: Path) -> int | str:
    """How many events trace-cmd prints, or how it failed."""
    try:
        report = kernel.raw_report(trace_cmd, str(path))
    except subprocess.CalledProcessError as error:
        return f"exit status {error.returncode}"
    return sum("EVENTS DROPPED]" not in record for record in kernel.records(report))
