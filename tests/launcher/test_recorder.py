"""The recorder and what it follows: programs that end well, are killed, fork, or lose their recorder.

Real processes: what is tested is what each of them leaves behind.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import anyio
import pytest

import aiotrace
import aiotrace.abc
from aiotrace._arena.file_reader import ArenaReader
from aiotrace._base.backend import c_module
from aiotrace._launcher import recorded_process
from aiotrace._launcher.plan import Plan
from aiotrace._launcher.recorded_process import RecordedProcess
from aiotrace._launcher.recorder import Recorder
from aiotrace._recording.options import RecordingOptions
from support.arenas import Filled

atomic = pytest.mark.skipif(c_module is None, reason="pure Python refuses: there is no compare-and-swap")

STEPS = """
import os, resource, signal, sys, threading
import aiotrace
step = aiotrace.event("app:step", n="u32")
"""


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    """A folder for programs and traces; nothing of a recorder may be left on tmpfs."""
    before = set(os.listdir("/dev/shm"))
    yield tmp_path
    left = {name for name in os.listdir("/dev/shm") if name.startswith("aiotrace-")} - before
    mine = [name for name in left if _is_mine(f"/dev/shm/{name}", tmp_path)]
    assert mine == []


def _is_mine(path: str, tmp_path: Path) -> bool:
    """Other runs of the tests may go on beside this one."""
    try:
        return (tmp_path / "folder").read_text() == path
    except OSError:
        return False


def command(folder: Path, program: str, *options: str) -> list[str]:
    """Record a program, which notes where its arena is."""
    note = f"""
found = [line.split()[-1] for line in open("/proc/self/maps") if line.rstrip().endswith(".arena")]
open({str(folder / "folder")!r}, "w").write(os.path.dirname(found[0]))
"""
    (folder / "app.py").write_text(STEPS + note + program)
    words = ["-o", str(folder / "t.dat"), "-e", "app:*", *options, str(folder / "app.py")]
    return [sys.executable, "-m", "aiotrace", "record", *words]


def record(folder: Path, program: str, *options: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command(folder, program, *options), capture_output=True, text=True, timeout=60)


def steps(path: Path) -> list[int]:
    with aiotrace.open_trace(path) as trace:
        assert trace.damage_count == 0
        return [event.fields["n"] for event in trace.events() if event.name == "app:step"]


@atomic
def test_recorded_program_keeps_its_exit_status(folder: Path) -> None:
    done = record(folder, "for n in range(20000): step(n)\nprint(len(threading.enumerate()))\nsys.exit(7)")
    assert (done.returncode, done.stdout) == (7, "1\n"), "no thread of ours is in it"
    assert re.fullmatch(
        rf"aiotrace record: {folder}/t.dat: 20000 events; process \d+ exited with status 7\n", done.stderr
    )
    assert steps(folder / "t.dat") == list(range(20000))


@atomic
@pytest.mark.parametrize("death", ["SIGKILL", "SIGSEGV", "SIGTERM"])
def test_recorder_ends_with_its_program_and_loses_nothing(folder: Path, death: str) -> None:
    done = record(
        folder,
        f"""
for n in range(5000): step(n)
resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
os.kill(os.getpid(), signal.{death})
""",
    )
    assert done.returncode == -getattr(signal, death)
    assert re.search(rf"/t.dat: 5000 events; process \d+ was killed by {death}\n", done.stderr)
    assert steps(folder / "t.dat") == list(range(5000))


@atomic
def test_the_pages_of_each_thread_are_there_after_a_kill(folder: Path) -> None:
    done = record(
        folder,
        """
def work(first):
    for n in range(first, first + 3000): step(n)
threads = [threading.Thread(target=work, args=(n * 10000,)) for n in range(4)]
[thread.start() for thread in threads]
[thread.join() for thread in threads]
os._exit(3)
""",
    )
    assert done.returncode == 3
    assert sorted(steps(folder / "t.dat")) == [n * 10000 + i for n in range(4) for i in range(3000)]


@atomic
def test_forked_child_has_its_own_trace_even_if_killed(folder: Path) -> None:
    done = record(
        folder,
        """
step(1)
child = os.fork()
if not child:
    for n in range(100, 3000): step(n)
    os.kill(os.getpid(), signal.SIGKILL)
os.waitpid(child, 0)
if not os.fork():
    os._exit(0)  # records nothing
os.wait()
print(child)
step(2)
""",
    )
    assert done.returncode == 0, done.stderr
    assert steps(folder / "t.dat") == [1, 2]
    assert steps(folder / f"t.{int(done.stdout)}.dat") == list(range(100, 3000))
    assert sorted(path.name for path in folder.glob("*.dat*")) == [f"t.{int(done.stdout)}.dat", "t.dat"]


@atomic
@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
def test_child_of_multiprocessing_has_its_own_trace(folder: Path, method: str) -> None:
    done = record(
        folder,
        f"""
import multiprocessing
def work(n):
    step(n)
if __name__ == "__main__":
    child = multiprocessing.get_context({method!r}).Process(target=work, args=(5,))
    child.start()
    child.join()
    print(child.pid)
    step(6)
""",
    )
    assert done.returncode == 0, done.stderr
    assert steps(folder / "t.dat") == [6]
    assert steps(folder / f"t.{int(done.stdout)}.dat") == [5]


@atomic
def test_with_wait_a_child_that_outlives_the_program_is_waited_for(folder: Path) -> None:
    done = record(
        folder,
        """
read, write = os.pipe()
if not os.fork():
    os.close(write)
    step(1)
    os.read(read, 1)  # until the program is gone
    step(2)
    print(os.getpid(), flush=True)
    sys.exit()
step(0)
""",
        "--wait",
    )
    assert done.returncode == 0, done.stderr
    assert steps(folder / f"t.{int(done.stdout)}.dat") == [1, 2]


@atomic
@pytest.mark.parametrize("program", ["", "if os.fork(): os.wait(), os._exit(0)\n"], ids=["program", "child"])
def test_a_program_that_closes_what_it_did_not_open_is_recorded_on(folder: Path, program: str) -> None:
    done = record(folder, f"{program}step(0), os.closerange(3, 2000)\nfor n in range(1, 50000): step(n)\nprint('done')")
    assert (done.returncode, done.stdout) == (0, "done\n")
    assert "Traceback" not in done.stderr
    path = min(folder.glob("t.*.dat"), default=folder / "t.dat") if program else folder / "t.dat"
    refused = re.search(r": (\d+) refused", done.stderr)
    found = steps(path)
    assert found == sorted(set(found))
    assert found[0] == 0
    assert len(found) + int(refused[1] if refused else 0) == 50000


@atomic
def test_a_child_that_becomes_another_program_is_not_waited_for(folder: Path) -> None:
    program = "if not os.fork(): step(1), os.execv('/bin/cat', ['cat'])\n"
    words = command(folder, program)
    with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True) as running:
        assert running.wait(timeout=60) == 0  # cat reads until the end of this block


@atomic
def test_a_signal_that_is_sent_to_us_is_the_program_s(folder: Path) -> None:
    program = """
import time
def handle(number, frame):
    step(number)
    sys.exit(9)
signal.signal(signal.SIGUSR1, handle)
print("ready", flush=True)
signal.pause()
"""
    with subprocess.Popen(command(folder, program), stdout=subprocess.PIPE, text=True) as recorder:
        assert recorder.stdout is not None
        assert recorder.stdout.readline() == "ready\n"
        recorder.send_signal(signal.SIGUSR1)
        assert recorder.wait(60) == 9
    assert steps(folder / "t.dat") == [signal.SIGUSR1]


WITHOUT_RECORDER = """
import anyio
print(os.getpid(), flush=True)
sys.stdin.readline()
for n in range(100_000): step(n)
async def send():
    await step.send(100_000)  # does not wait for ever
anyio.run(send)
print("done", flush=True)
"""


def children_of(pid: int) -> set[int]:
    return set(map(int, Path(f"/proc/{pid}/task/{pid}/children").read_text().split()))


@contextmanager
def without_recorder(folder: Path, *options: str, all: bool = False) -> Iterator[subprocess.Popen[str]]:
    """A program that has written its events after its recorder was killed, and perhaps `record` itself, too."""
    words = command(folder, WITHOUT_RECORDER, "-b", "256", *options)
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with subprocess.Popen(words, text=True, cwd=folder, **pipes) as parent:
        assert parent.stdout is not None
        assert parent.stdin is not None
        program = int(parent.stdout.readline())
        (recorder,) = children_of(parent.pid) - {program}
        if all:
            parent.kill()
            parent.wait()
        os.kill(recorder, signal.SIGKILL)
        print("go on", file=parent.stdin, flush=True)
        assert parent.stdout.readline() == "done\n"
        yield parent


@atomic
@pytest.mark.parametrize("overrun", [False, True])
def test_program_without_its_recorder_continues_and_its_trace_is_finished(folder: Path, overrun: bool) -> None:
    with without_recorder(folder, *(["--overrun"] if overrun else [])) as parent:
        _, stderr = parent.communicate()
    assert parent.returncode == 0
    assert re.search(r"the recorder, process \d+, ended before the program: this goes on", stderr)
    assert f"aiotrace record: {folder}/t.dat: finished, with " in stderr
    found = steps(folder / "t.dat")
    assert found == (list(range(100_001))[-len(found) :] if overrun else list(range(len(found))))
    assert 1000 < len(found) < 100_000


@atomic
@pytest.mark.parametrize("by", ["record", "restore"])
def test_next_command_in_the_folder_finishes_what_a_killed_record_left(folder: Path, by: str) -> None:
    with without_recorder(folder, all=True) as parent:
        assert parent.stdout is not None
        assert parent.stdout.read() == "", "it has ended"
    words = ["restore", "t.dat"] if by == "restore" else ["record", "-o", "next.dat", "-c", "pass"]
    done = subprocess.run(
        [sys.executable, "-m", "aiotrace", *words], cwd=folder, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    assert f"{folder}/t.dat: finished, with " in done.stderr + done.stdout
    found = steps(folder / "t.dat")
    assert found == list(range(len(found)))
    assert 1000 < len(found) < 100_000
    assert not (folder / "t.dat.journal").exists()


def steps_so_far(path: Path) -> list[int]:
    """Of a file that may just be begun."""
    try:
        return steps(path)
    except (OSError, aiotrace.TraceFormatError):
        return []


@atomic
def test_events_of_a_quiet_program_are_in_the_file_while_it_runs(folder: Path) -> None:
    program = """
for line in sys.stdin:
    for n in range(int(line)): step(n)
"""
    with subprocess.Popen(command(folder, program, "--overrun"), stdin=subprocess.PIPE, text=True) as recorder:
        assert recorder.stdin is not None
        expected: list[int] = []
        for count in (1, 3, 2):
            expected += range(count)
            print(count, file=recorder.stdin, flush=True)
            while steps_so_far(folder / "t.dat") != expected:
                assert recorder.poll() is None
    assert recorder.returncode == 0
    assert steps(folder / "t.dat") == expected


@atomic
def test_send_waits_for_the_recorder_so_that_nothing_is_lost(folder: Path) -> None:
    program = """
import anyio
async def send():
    for n in range(20_000): await step.send(n)
anyio.run(send)
"""
    done = record(folder, program, "-b", "16")
    assert "events lost" not in done.stderr
    assert steps(folder / "t.dat") == list(range(20_000))


@atomic
def test_a_sink_that_is_stuck_when_the_program_has_ended_is_given_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def stuck(stream: aiotrace.abc.PageStream) -> None:
        await stream.next_batch(2)
        await anyio.sleep_forever()

    filled = Filled(tmp_path / "arena")
    for _ in range(300):
        filled.write()
    filled.release()
    monkeypatch.setattr(recorded_process, "DRAIN", 0.01)
    monkeypatch.setattr(recorded_process, "sink", lambda url: aiotrace.sink(stuck, quota=2))
    reader = ArenaReader(str(tmp_path / "arena"))
    options = RecordingOptions(snapshots=str(tmp_path / "trace.dat"))
    plan = Plan(reader.header.pid, (), ("stuck:",), (), options, None, None, quiet=False)
    process = RecordedProcess(reader, plan)

    async def main() -> None:
        with anyio.fail_after(60):
            await process.start()
            await process.finish()

    anyio.run(main)
    assert process.pages.abandoned > 0
    assert not process.is_done, "what was never taken is still in the arena, which stays"


FULL = """
parent = os.getppid()
siblings = map(int, open(f"/proc/{parent}/task/{parent}/children").read().split())
(recorder,) = [pid for pid in siblings if pid != os.getpid()]
os.kill(recorder, signal.SIGSTOP)
for n in range(50000): step(n)
"""
"""A program whose buffer is full: its recorder stands still."""


@atomic
def test_kill_of_a_program_with_a_full_buffer_counts_what_it_was_refused(folder: Path) -> None:
    program = """
import subprocess
after = f"while kill -0 {os.getpid()}; do :; done; kill -CONT {recorder}"
subprocess.Popen(["sh", "-c", after], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
os.kill(os.getpid(), signal.SIGKILL)
"""
    done = record(folder, FULL + program, "-b", "64")
    assert done.returncode == -signal.SIGKILL

    written = len(steps(folder / "t.dat"))
    refused = 50000 - written
    assert 0 < written < 50000
    assert f"events lost: {refused}: {refused} refused ({refused} no_page)\n" in done.stderr
    with aiotrace.open_trace(folder / "t.dat") as trace:
        assert trace.statistics().lost == refused
    found = steps(folder / "t.dat")
    assert found == list(range(len(found)))


@atomic
def test_events_refused_by_a_full_buffer_are_reported(folder: Path) -> None:
    done = record(folder, FULL + "os.kill(recorder, signal.SIGCONT)", "-b", "64")
    found = steps(folder / "t.dat")
    assert sorted(set(found)) == found
    assert f"events lost: {50000 - len(found)}: {50000 - len(found)} refused" in done.stderr


@atomic
def test_a_sink_that_cannot_be_opened_keeps_the_program_from_beginning(folder: Path) -> None:
    done = record(folder, "print('begun')", "--sink", "nobody:knows")
    assert (done.returncode, done.stdout) == (2, "")
    assert "no sink is known for 'nobody'" in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert not (folder / "t.dat").exists()


def test_pure_python_is_refused(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "aiotrace", "record", "--external", "-o", str(tmp_path / "t.dat"), "-c", "pass"],
        env={**os.environ, "AIOTRACE_PURE": "1"}, capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert done.returncode == 2
    assert "C module" in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_folder_with_an_unfinished_arena_is_removed_at_the_close(tmp_path: Path) -> None:
    folder = tmp_path / "arenas"
    folder.mkdir()
    (folder / "begun.arena").write_bytes(b"")
    plan = Plan(1, (), (), (), RecordingOptions(), None, None, quiet=False, folder=str(folder))
    assert Recorder(plan, print).close() is None
    assert not folder.exists()
