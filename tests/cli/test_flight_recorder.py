"""The flight recorder from the command line: arenas that are restored and looked at, and snapshots of what mattered.

Programs run in processes of their own and say when they are ready; nothing here waits for a time to pass.
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

import pytest

import aiotrace
from aiotrace._base.backend import c_module
from aiotrace._cli import main
from aiotrace.decode import open_trace
from support.programs import environment

needs_c = pytest.mark.skipif(c_module is None, reason="pure Python refuses: it has no compare-and-swap")

WAITING = """
import sys, aiotrace
step = aiotrace.event("app:step", n="u32", what="symbol")
for n in range(1000):
    step(n, f"what {n % 5}")
print("ready", flush=True)
for line in sys.stdin:
    exec(line)
    print("done", flush=True)
"""

STALLING = """
import asyncio, time, aiotrace
request = aiotrace.event("app:request", n="u64")

def stall():
    end = time.perf_counter() + 0.8
    while time.perf_counter() < end:  # the planted line
        pass

async def serve():
    for n in range(100_000_000):
        request(n)
        await asyncio.sleep(0)

async def main():
    servers = [asyncio.create_task(serve(), name=f"server {n}") for n in range(3)]
    await asyncio.sleep(LOOK_BACK)
    asyncio.get_running_loop().call_soon(stall)
    await asyncio.sleep(60)
    for server in servers:
        server.cancel()

asyncio.run(main())
"""


@contextmanager
def recorded(folder: Path, *options: str) -> Iterator[subprocess.Popen[str]]:
    """The program WAITING, under `aiotrace record`, ready for its lines."""
    command = [sys.executable, "-m", "aiotrace", "record", *options, "-c", WAITING]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with subprocess.Popen(command, cwd=folder, env=environment(), text=True, **pipes) as program:
        assert program.stdout is not None
        assert program.stdout.readline() == "ready\n"
        try:
            yield program
        finally:
            program.kill()


EXTERNAL = pytest.param(["--external"], marks=pytest.mark.skipif(c_module is None, reason="pure Python refuses"))
both = pytest.mark.parametrize("external", [["--exec"], EXTERNAL], ids=["in the program", "in the recorder"])
"""Who takes the snapshots."""


def send(program: subprocess.Popen[str], line: str) -> None:
    """Have the program execute a line."""
    assert program.stdin is not None
    assert program.stdout is not None
    print(line, file=program.stdin, flush=True)
    assert program.stdout.readline() == "done\n"


def end(program: subprocess.Popen[str]) -> str:
    """Let the program end well. Returns what was told."""
    assert program.stdin is not None
    assert program.stderr is not None
    program.stdin.close()
    assert program.wait() == 0
    return program.stderr.read()


def steps(path: Path) -> list[int]:
    with open_trace(path) as trace:
        events = list(trace.events(["app:step"]))
    assert not [event for event in events if event.is_loss]
    assert all(event.fields["what"] == f"what {event.fields['n'] % 5}" for event in events)
    return [event.fields["n"] for event in events]


def snapshots_in(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.suffix == ".dat")


# --- arenas ---------------------------------------------------------------------------------------


def test_a_killed_program_is_restored_from_its_arena(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arena, trace = tmp_path / "app.arena", tmp_path / "trace.dat"
    with recorded(tmp_path, "--exec", "--arena", "app.arena") as program:
        assert sorted(os.listdir(tmp_path)) == ["app.arena"], "a flight recorder writes no trace"
        program.send_signal(signal.SIGKILL)
    assert main(["restore", str(arena)]) == 2
    assert f"{arena} is an arena: give the file for its trace with -o" in capsys.readouterr().err
    assert main(["report", str(arena)]) == 0
    assert capsys.readouterr().out.count(" step: ") == 1000
    assert main(["restore", str(arena), "-o", str(trace)]) == 0
    assert re.search(r"trace\.dat: \d+ events on \d+ pages$", capsys.readouterr().out.strip())
    assert steps(trace) == list(range(1000))
    assert os.listdir(tmp_path) == ["trace.dat"]
    assert main(["restore", str(trace), "-o", "other.dat"]) == 2
    assert "is not an arena" in capsys.readouterr().err


@pytest.mark.parametrize("by", ["pid", "arena"])
def test_snapshot_of_a_living_program_leaves_it_running(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], by: str
) -> None:
    with recorded(tmp_path, "--exec", "--arena", "app.arena") as program:
        arena = str(tmp_path / "app.arena")
        named = str(program.pid) if by == "pid" else arena
        for name in ("one.dat", "two.dat"):
            assert main(["snapshot", named, "-o", str(tmp_path / name)]) == 0
            assert steps(tmp_path / name) == list(range(1000))
        assert main(["restore", arena, "-o", str(tmp_path / "three.dat")]) == 1
        assert f"process {program.pid} records into it" in capsys.readouterr().err
        assert program.stdin is not None
        program.stdin.close()
        assert program.wait() == 0
        assert program.stderr is not None
        assert "no snapshot was taken, and what the buffer held is gone" in program.stderr.read()
    assert snapshots_in(tmp_path) == [tmp_path / "one.dat", tmp_path / "two.dat"]
    assert not (tmp_path / "app.arena").exists(), "the program has ended as it should"


def test_process_without_an_arena_is_reported(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert main(["snapshot", str(os.getpid())]) == 2
    assert f"process {os.getpid()} has no arena: record it with `aiotrace record`" in capsys.readouterr().err
    (tmp_path / "other").write_text("no arena")
    assert main(["snapshot", str(tmp_path / "other"), "-o", str(tmp_path / "x.dat")]) == 1
    assert "no arena begins here" in capsys.readouterr().err
    assert main(["snapshot", str(tmp_path / "missing")]) == 1


def test_an_arena_beside_a_file_has_what_the_file_has_not(tmp_path: Path) -> None:
    with recorded(tmp_path, "--exec", "--arena", "app.arena", "-o", "trace.dat") as program:
        assert (tmp_path / "trace.dat").exists()
        program.send_signal(signal.SIGKILL)
    main(["restore", str(tmp_path / "app.arena"), "-o", str(tmp_path / "rest.dat")])
    main(["restore", str(tmp_path / "trace.dat")])
    found = {event.fields["n"] for name in ("trace.dat", "rest.dat") for event in events_of(tmp_path / name)}
    assert found == set(range(1000))


def events_of(path: Path) -> list[object]:
    with open_trace(path) as trace:
        return [event for event in trace.events(["app:step"]) if not event.is_loss]


# --- snapshots ------------------------------------------------------------------------------------


@both
def test_signal_takes_a_snapshot_when_requested(tmp_path: Path, external: list[str]) -> None:
    with recorded(tmp_path, "--snapshot-signal", "usr2", "--snapshots", "flight.dat", *external) as program:
        send(program, "import os, signal; os.kill(os.getpid(), signal.SIGUSR2)")
        while not [path for path in snapshots_in(tmp_path) if is_finished(path)]:
            assert program.poll() is None
        told = end(program)
    (path,) = snapshots_in(tmp_path)
    assert re.fullmatch(r"flight-\d{8}-\d{6}-SIGUSR2\.dat", path.name)
    assert steps(path) == list(range(1000))
    last = told.splitlines()[-1]
    assert re.fullmatch(rf"aiotrace record: {path}: a snapshot(; process \d+ exited with status 0)?", last)


def test_without_asking_the_signal_is_the_programs_own(tmp_path: Path) -> None:
    with recorded(tmp_path, "--arena", "app.arena") as program:
        program.send_signal(signal.SIGUSR2)
        assert program.wait() == -signal.SIGUSR2


@both
def test_a_trigger_takes_a_snapshot_of_what_was_before_and_after(tmp_path: Path, external: list[str]) -> None:
    trigger = ["-e", "app:*", "-R", "snapshot:1:after=3600 if n == 5000"]
    with recorded(tmp_path, *trigger, *external) as program:
        send(program, '[step(n, f"what {n % 5}") for n in range(4990, 5010)]')
        end(program)
    (path,) = snapshots_in(tmp_path)
    assert path.name.endswith("-app-step.dat")
    assert steps(path) == [*range(1000), *range(4990, 5010)]


@both
def test_one_snapshot_is_taken_at_a_time_and_skipped_ones_are_reported(tmp_path: Path, external: list[str]) -> None:
    with recorded(tmp_path, "-e", "app:*", "-R", "snapshot:1:after=3600 if n >= 5000", *external) as program:
        send(program, '[step(n, f"what {n % 5}") for n in range(5000, 5003)]')
        told = end(program)
    (path,) = snapshots_in(tmp_path)
    assert steps(path) == [*range(1000), 5000, 5001, 5002]
    assert "snapshots were not taken" not in told, "the trigger's count is of those that were"
    with recorded(tmp_path, "-e", "app:*", "-R", "snapshot if n >= 5000", *external) as program:
        send(program, '[step(n, f"what {n % 5}") for n in range(5000, 5003)]')
        told = end(program)
    assert "2 snapshots were not taken" in told


@both
def test_snapshot_looking_forward_holds_later_events_without_losses(tmp_path: Path, external: list[str]) -> None:
    with recorded(tmp_path, "-e", "app:*", "-R", "snapshot:after=3600 if n >= 5000", *external) as program:
        send(program, '[step(n, f"what {n % 5}") for n in range(5000, 5003)]')
        told = end(program)
    (path,) = snapshots_in(tmp_path)
    assert steps(path) == [*range(1000), 5000, 5001, 5002]
    assert "snapshots were not taken" not in told


@needs_c
def test_killed_program_leaves_a_snapshot_if_a_recorder_follows_it(tmp_path: Path) -> None:
    options = ["--external", "--snapshot-signal", "USR2", "-b", "64"]
    with recorded(tmp_path, *options) as program:
        send(program, "import os, signal, aiotrace._launcher.process")
        send(program, "arena = aiotrace._launcher.process.current._recording._core.arena_file.path")
        send(program, '[step(n, f"what {n % 5}") for n in range(1000, 20_000)]')
        send(program, f"open({str(tmp_path / 'arena')!r}, 'w').write(arena)")
        assert program.stdin is not None
        assert program.stderr is not None
        print("os.kill(os.getpid(), signal.SIGKILL)", file=program.stdin, flush=True)
        assert program.wait() == -signal.SIGKILL
        told = program.stderr.read()
    (path,) = snapshots_in(tmp_path)
    assert re.fullmatch(r"trace-\d{8}-\d{6}-killed\.dat", path.name)
    assert re.fullmatch(rf"aiotrace record: {path}: a snapshot; process \d+ was killed by SIGKILL\n", told)
    found = steps(path)
    assert found == list(range(20_000))[-len(found) :]
    assert len(found) > 500
    assert not Path((tmp_path / "arena").read_text()).parent.exists()


@needs_c
def test_killed_child_gets_a_snapshot_only_if_it_recorded_something(tmp_path: Path) -> None:
    with recorded(tmp_path, "--external", "--snapshot-signal", "USR2") as program:
        send(program, "import os, signal")
        for body in ("os._exit(0)", "step(7, 'what 2'); os.kill(os.getpid(), signal.SIGKILL)"):
            send(program, f"child = os.fork() or [{body!r}, exec({body!r})]")
            send(program, "os.waitpid(child, 0)")
        end(program)
    (path,) = snapshots_in(tmp_path)
    assert re.fullmatch(r"trace\.\d+-\d{8}-\d{6}-killed\.dat", path.name)
    assert steps(path) == [7]


@needs_c
def test_snapshot_of_a_program_with_a_recorder_leaves_it_running(tmp_path: Path) -> None:
    with recorded(tmp_path, "--external", "--snapshot-signal", "USR2") as program:
        assert main(["snapshot", str(program.pid), "-o", str(tmp_path / "now.dat")]) == 0
        assert steps(tmp_path / "now.dat") == list(range(1000))
        assert "no snapshot was taken, and what the buffer held is gone" in end(program)
    assert snapshots_in(tmp_path) == [tmp_path / "now.dat"]


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (["--snapshot-signal", "KILL"], "'KILL' should be a signal that a program can handle"),
        (["--snapshot-signal", "nothing"], "'nothing' should be a signal"),
        (["-e", "all", "-R", "snapshot:after=9999"], "after= is at most 3600 s"),
    ],
)
def test_invalid_options_are_refused(options: list[str], reason: str, capsys: pytest.CaptureFixture[str]) -> None:
    try:
        status = main(["record", *options, "-c", "pass"])
    except SystemExit as error:
        status = int(str(error.code))
    assert status == 2
    assert reason in capsys.readouterr().err


def check_stall(folder: Path, look_back: float, look_forward: float) -> None:
    """A planted stall of a busy loop: what its snapshot holds."""
    program = folder / "stalling.py"
    text = STALLING.replace("LOOK_BACK", str(look_back))
    program.write_text(text)
    # A machine that is busy with others may stall the loop too, but not for so long.
    trigger = ["-e", "stall:end", "-R", f"snapshot:1:after={look_forward} if duration_ns > 700000000"]
    options = ["-e", "app", "-e", "stall:*", *trigger, "-b", "256M"]
    command = [sys.executable, "-m", "aiotrace", "record", *options, program]
    with subprocess.Popen(command, cwd=folder, env=environment(), stderr=subprocess.DEVNULL) as running:
        while running.poll() is None and not [path for path in snapshots_in(folder) if is_finished(path)]:
            try:
                running.wait(0.1)
            except subprocess.TimeoutExpired:
                pass
        running.terminate()
    # The first: a machine with enough else to do may have stalled the program once more while it was being ended.
    path = next(path for path in snapshots_in(folder) if path.name.endswith("-stall-end.dat"))
    done = subprocess.run(
        [sys.executable, "-m", "aiotrace", "report", "--stalls", path],
        capture_output=True, text=True, env=environment(), check=False,
    )  # fmt: skip
    line = 1 + text[: text.index("# the planted line")].count("\n")
    assert re.search(rf"stalling\.py:({line}|{line + 1})\b", done.stdout), done.stdout
    with open_trace(path) as trace:
        events = list(trace)
    (end,) = [event for event in events if event.name == "stall:end" and event.fields["duration_ns"] > 700_000_000]
    requests = [event.timestamp_ns for event in events if event.name == "app:request"]
    assert requests[0] < end.fields["began_ns"] - (look_back - 0.1) * 1e9, "the seconds before"
    assert requests[-1] > end.timestamp_ns + (look_forward - 0.9) * 1e9, "the seconds after"


def is_finished(path: Path) -> bool:
    return not path.with_name(path.name + ".journal").exists() and path.stat().st_size > 0


@pytest.mark.skipif(c_module is None, reason="NOT RUN: the watch over stalls needs the C module")
def test_snapshot_of_a_stall_under_load_covers_both_sides_and_the_line(tmp_path: Path) -> None:
    check_stall(tmp_path, 0.5, 1)


@pytest.mark.long
@pytest.mark.skipif(c_module is None, reason="NOT RUN: the watch over stalls needs the C module")
def test_the_snapshot_of_a_stall_has_five_seconds_before_it_and_two_after(tmp_path: Path) -> None:
    check_stall(tmp_path, 5, 2)


# --- for long -------------------------------------------------------------------------------------


def resources() -> tuple[int, int]:
    """Resident KiB, and open descriptors."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") >> 10, len(os.listdir("/proc/self/fd"))


@pytest.mark.long
def test_memory_and_descriptors_are_flat_over_many_events_and_snapshots(tmp_path: Path) -> None:
    step = aiotrace.event("flight:step", n="u64", text="str")
    seen: list[tuple[int, int]] = []
    with aiotrace.recording(overrun="drop_oldest", arena=tmp_path / "arena") as recording:
        for round in range(40):
            for n in range(500_000):
                step(n, "some text")
            recording.snapshot(tmp_path / "trace.dat")
            (tmp_path / "trace.dat").unlink()
            seen.append(resources())
            assert recording.statistics().snapshots == round + 1
    memory, descriptors = zip(*seen[4:], strict=True)
    assert max(memory) - min(memory) < 8 << 10, seen
    assert max(descriptors) == min(descriptors), seen
