"""`record` in front of a program: signals, the terminal, descriptors, service managers, and the end.

Real processes; each says when it is ready. The same programs run without aiotrace where that is the measure.
"""

from __future__ import annotations

import array
import os
import re
import select
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

import aiotrace
from aiotrace._base.backend import c_module
from support.terminal import Terminal, shell

pytestmark = pytest.mark.skipif(
    c_module is None, reason="pure Python records with --exec: there is no process in front"
)

COUNTING = """
import os, signal, sys
import aiotrace
got = aiotrace.event("app:got", n="u32")
count = 0
def handle(number, frame):
    global count
    count += 1
    got(number)
for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1):
    signal.signal(number, handle)
print(os.getpid(), flush=True)
for line in sys.stdin:
    print(count, flush=True)
"""
"""Counts signals; a line on stdin asks how many there were."""


def words(folder: Path, program: str, *options: str) -> list[str]:
    (folder / "app.py").write_text(program)
    return [sys.executable, "-m", "aiotrace", "record", "-o", str(folder / "t.dat"), *options, str(folder / "app.py")]


@contextmanager
def running(
    folder: Path, program: str, *options: str, **arguments: object
) -> Iterator[tuple[subprocess.Popen[str], int]]:
    """`record` and its program, which has printed its pid."""
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with subprocess.Popen(words(folder, program, *options), text=True, **pipes, **arguments) as parent:  # type: ignore[call-overload]
        assert parent.stdout is not None
        yield parent, int(parent.stdout.readline())


def ask(parent: subprocess.Popen[str]) -> str:
    assert parent.stdin is not None
    assert parent.stdout is not None
    print(file=parent.stdin, flush=True)
    return parent.stdout.readline().strip()


def events(path: Path) -> list[object]:
    with aiotrace.open_trace(path) as trace:
        return [event for event in trace.events() if event.name.startswith("app:")]


def group_of(pid: int) -> list[int]:
    """All processes of a process group, as a service manager finds those of a control group."""
    found = []
    for name in os.listdir("/proc"):
        if name.isdecimal():
            try:
                if os.getpgid(int(name)) == pid:
                    found.append(int(name))
            except ProcessLookupError:
                pass
    return found


# --- signals --------------------------------------------------------------------------------------


def to_parent(parent: int, program: int, number: int) -> None:
    """KillMode=mixed, docker stop, kill."""
    os.kill(parent, number)


def to_group(parent: int, program: int, number: int) -> None:
    """timeout(1), a shell."""
    os.killpg(parent, number)


def to_each(parent: int, program: int, number: int) -> None:
    """KillMode=control-group: one process after the other, the main one first."""
    for pid in sorted(group_of(parent), key=lambda pid: pid != parent):
        os.kill(pid, number)


def to_program(parent: int, program: int, number: int) -> None:
    os.kill(program, number)


@pytest.mark.parametrize("send", [to_parent, to_group, to_each, to_program])
def test_each_signal_is_handled_once_whoever_it_was_sent_to(tmp_path: Path, send: object) -> None:
    with running(tmp_path, COUNTING, start_new_session=True) as (parent, program):
        for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGTERM):
            send(parent.pid, program, number)  # type: ignore[operator]
            before = ask(parent)
            while before == "0":
                before = ask(parent)
        select.select([], [], [], 0.6)  # longer than a signal waits to be passed on
        assert ask(parent) == "3"
        assert parent.stdin is not None
        parent.stdin.close()
        assert parent.wait(60) == 0
    assert len(events(tmp_path / "t.dat")) == 3


def test_signal_of_the_program_to_its_parent_reaches_our_parent_not_itself(tmp_path: Path) -> None:
    program = COUNTING.replace(
        "for line in sys.stdin:", "os.kill(os.getppid(), signal.SIGUSR1)\nfor line in sys.stdin:"
    )
    received: list[int] = []
    before = signal.signal(signal.SIGUSR1, lambda number, frame: received.append(number))
    try:
        with running(tmp_path, program) as (parent, _):
            while not received:
                signal.sigtimedwait([], 0)
                assert ask(parent) == "0"
            parent.communicate()
    finally:
        signal.signal(signal.SIGUSR1, before)
    assert received == [signal.SIGUSR1]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL, signal.SIGSEGV, signal.SIGINT])
def test_death_by_a_signal_is_passed_on_and_named(tmp_path: Path, number: signal.Signals) -> None:
    program = (
        "import os, resource, aiotrace\nstep = aiotrace.event('app:step')\n"
        f"step()\nresource.setrlimit(resource.RLIMIT_CORE, (0, 0))\nos.kill(os.getpid(), {int(number)})\n"
    )
    if number == signal.SIGINT:
        program = "import signal\nsignal.signal(signal.SIGINT, signal.SIG_DFL)\n" + program
    done = subprocess.run(words(tmp_path, program), capture_output=True, text=True, timeout=60)
    assert done.returncode == -number
    assert re.fullmatch(
        rf"aiotrace record: {tmp_path}/t.dat: 1 events; process \d+ was killed by {number.name}\n", done.stderr
    )
    assert len(events(tmp_path / "t.dat")) == 1


def test_program_that_ignores_sigterm_goes_on(tmp_path: Path) -> None:
    program = COUNTING.replace("count = 0", "signal.signal(signal.SIGTERM, signal.SIG_IGN)\ncount = 0", 1)
    program = program.replace("signal.SIGTERM, signal.SIGUSR1)", "signal.SIGUSR1)")
    with running(tmp_path, program) as (parent, _):
        parent.terminate()
        os.kill(parent.pid, signal.SIGUSR1)
        while ask(parent) != "1":
            pass
        parent.communicate()
    assert parent.returncode == 0


# --- the terminal ---------------------------------------------------------------------------------


@pytest.fixture
def terminal(tmp_path: Path) -> Iterator[Terminal]:
    terminal = Terminal(tmp_path)
    yield terminal
    terminal.close()


INTERACTIVE = """
import os, signal, sys, aiotrace
got = aiotrace.event("app:got", n="u32")
def interrupted(number, frame):
    got(number)
    print("interrupted", flush=True)
signal.signal(signal.SIGINT, interrupted)
print("ready", sys.stdin.isatty(), os.getpgrp() == os.tcgetpgrp(0), flush=True)
while (line := sys.stdin.readline().strip()) != "end":
    print(f"got<{line}>", flush=True)
sys.exit(5)
"""


def test_terminal_works_as_without_us(tmp_path: Path, terminal: Terminal) -> None:
    terminal.write(shell(words(tmp_path, INTERACTIVE)) + "\n")
    terminal.until("ready True True")
    terminal.write("one\n")
    terminal.until("got<one>")
    terminal.write("\x03")
    terminal.until("interrupted")

    # Ctrl-Z stops the job; in the background it may not read; fg continues it.
    terminal.write("\x1a")
    terminal.until("Stopped")
    terminal.write("bg\n")
    terminal.until(r"\[1\]\+")
    terminal.until("Stopped", nudge="\n")
    terminal.write("fg\n")
    terminal.until(r"app\.py")
    terminal.write("two\nend\n")
    terminal.until("got<two>")
    terminal.until(r"t\.dat: 1 events; process \d+ exited with status 5")
    terminal.write("echo status=$?\n")
    terminal.until("status=5")
    assert len(events(tmp_path / "t.dat")) == 1


def test_ctrl_c_that_ends_the_program_ends_record_the_same_way(tmp_path: Path, terminal: Terminal) -> None:
    program = (
        "import signal\nsignal.signal(signal.SIGINT, signal.SIG_DFL)\nprint('ready', flush=True)\nsignal.pause()\n"
    )
    terminal.write(shell(words(tmp_path, program)) + "\n")
    terminal.until("ready")
    terminal.write("\x03")
    terminal.until("was killed by SIGINT")
    terminal.write("echo after=$?\n")
    terminal.until("after=130")


# --- descriptors and variables --------------------------------------------------------------------


def test_program_has_its_descriptors_for_itself(tmp_path: Path) -> None:
    """The other end of a pipe sees the program close it, though `record` and the recorder go on."""
    read, write = os.pipe()
    program = f"import os, sys\nos.close({write})\nos.close(1)\nsys.stdin.read()\n"
    parent = subprocess.Popen(
        words(tmp_path, program, "-q"),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        pass_fds=[write],
    )
    with parent:
        os.close(write)
        assert parent.stdout is not None
        assert os.read(read, 1) == b""
        assert parent.stdout.read() == b""
        assert parent.poll() is None
        parent.communicate()
    os.close(read)
    assert parent.returncode == 0


def test_socket_activation_is_the_programs(tmp_path: Path) -> None:
    program = """
import os, socket
assert os.environ["LISTEN_PID"] == os.environ["WATCHDOG_PID"] == str(os.getpid())
print(socket.socket(fileno=3).getsockname()[1])
"""
    with socket.create_server(("127.0.0.1", 0)) as server:
        start = (
            "import os, sys\n"
            f"os.dup2({server.fileno()}, 3, inheritable=True)\n"
            "os.environ.update(LISTEN_PID=str(os.getpid()), LISTEN_FDS='1', WATCHDOG_PID=str(os.getpid()))\n"
            "os.execv(sys.argv[1], sys.argv[1:])\n"
        )
        command = [sys.executable, "-c", start, *words(tmp_path, program, "-q")]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, pass_fds=[server.fileno()])
        assert (done.returncode, done.stderr) == (0, "")
        assert int(done.stdout) == server.getsockname()[1]


@pytest.mark.parametrize("abstract", [False, True])
def test_what_the_program_notifies_comes_from_the_main_process(tmp_path: Path, abstract: bool) -> None:
    program = """
import array, os, socket
address = os.environ["NOTIFY_SOCKET"]
with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as out:
    address = "\\0" + address[1:] if address.startswith("@") else address
    out.sendto(b"READY=1", address)
    read, write = os.pipe()
    out.sendmsg([b"FDSTORE=1"], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [write]))], 0, address)
os.close(write)
print(os.read(read, 5))
"""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
        name = f"\0aiotrace-test-{os.getpid()}" if abstract else str(tmp_path / "notify")
        manager.bind(name)
        variable = "@" + name[1:] if abstract else name
        parent = subprocess.Popen(
            words(tmp_path, program, "-q"),
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "NOTIFY_SOCKET": variable},
        )
        with parent:
            manager.settimeout(60)
            found = []
            for _ in range(2):
                data, ancillary, _, _ = manager.recvmsg(100, 1000)
                sent = {kind: array.array("i", bytes) for _, kind, bytes in ancillary}
                assert sent[socket.SCM_CREDENTIALS][0] == parent.pid
                found.append(data)
            with open(sent[socket.SCM_RIGHTS][0], "wb") as stored:
                stored.write(b"hello")
            assert parent.stdout is not None
            assert parent.stdout.read() == "b'hello'\n"
    assert found == [b"READY=1", b"FDSTORE=1"]
    assert parent.returncode == 0


# --- children, and other ends ---------------------------------------------------------------------


def test_daemon_is_recorded_on_in_the_background(tmp_path: Path) -> None:
    program = """
import os, sys, aiotrace
step = aiotrace.event("app:step", n="u32")
read, write = os.pipe()
step(0)
if not os.fork():
    os.setsid()
    os.close(write)
    step(1)
    os.dup2(os.open("/dev/null", os.O_RDWR), 1)
    os.dup2(1, 2)
    os.mkfifo("go")
    os.read(os.open("go", os.O_RDONLY), 1)
    step(2)
    sys.exit()
while not os.path.exists("go"):
    pass
sys.exit(3)
"""
    done = subprocess.run(words(tmp_path, program), capture_output=True, text=True, timeout=60, cwd=tmp_path)
    assert done.returncode == 3
    found = re.search(
        r"process (\d+) goes on: the recorder, process (\d+), records on in the background until they end", done.stderr
    )
    assert found, done.stderr
    daemon, recorder = map(int, found.groups())
    watch = os.pidfd_open(recorder)
    (tmp_path / "go").write_text("x")
    assert select.select([watch], [], [], 60)[0]
    os.close(watch)
    assert len(events(tmp_path / "t.dat")) == 1
    assert len(events(tmp_path / f"t.{daemon}.dat")) == 2


def test_kill_of_record_itself_leaves_program_and_recorder(tmp_path: Path) -> None:
    with running(tmp_path, COUNTING) as (parent, program):
        watch = os.pidfd_open(recorder_of(parent.pid, program))
        os.kill(program, signal.SIGUSR1)
        parent.kill()
        assert ask(parent) == "1"
    assert select.select([watch], [], [], 60)[0]
    os.close(watch)
    assert len(events(tmp_path / "t.dat")) == 1
    assert not (tmp_path / "t.dat.journal").exists()


def recorder_of(parent: int, program: int) -> int:
    children = set(map(int, Path(f"/proc/{parent}/task/{parent}/children").read_text().split()))
    (recorder,) = children - {program}
    return recorder


def test_file_that_is_removed_meanwhile_is_reported_and_the_arena_kept(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    program = COUNTING
    with running(tmp_path, program, "-o", str(tmp_path / "out" / "t.dat")) as (parent, pid):
        os.kill(pid, signal.SIGUSR1)
        while ask(parent) != "1":
            pass
        for path in (tmp_path / "out").iterdir():
            path.unlink()
        (tmp_path / "out").rmdir()
        assert parent.stderr is not None
        line = parent.stderr.readline()
        found = re.search(r"/out/t\.dat was removed while it was written: from now on events are kept in (\S+)", line)
        assert found, line
        os.kill(pid, signal.SIGUSR1)
        while ask(parent) != "2":
            pass
        assert parent.stdin is not None
        parent.stdin.close()
        rest = parent.stderr.read()
        assert parent.wait(60) == 0
    assert f"the others are in {found[1]}: `aiotrace restore {found[1]} -o FILE` makes a trace of them" in rest
    assert "lost" not in rest
    nowhere = [sys.executable, "-m", "aiotrace", "restore", str(tmp_path / "out" / "t.dat")]
    assert subprocess.run(nowhere, capture_output=True, timeout=60).returncode == 1
    assert Path(found[1]).exists()
    command = [sys.executable, "-m", "aiotrace", "restore", found[1], "-o", str(tmp_path / "rest.dat")]
    subprocess.run(command, check=True, capture_output=True, timeout=60)
    assert len(events(tmp_path / "rest.dat")) == 2, "the first was on the same page"
    assert not Path(found[1]).parent.exists()


def test_arena_with_a_name_is_removed_when_the_trace_is_finished(tmp_path: Path) -> None:
    arena = tmp_path / "app.arena"
    with running(tmp_path, COUNTING, "--arena", str(arena)) as (parent, program):
        assert arena.exists()
        os.kill(program, signal.SIGKILL)
        assert parent.wait(60) == -signal.SIGKILL
    assert not arena.exists()
    assert events(tmp_path / "t.dat") == []


def test_arena_of_a_process_that_was_killed_is_restored_first(tmp_path: Path) -> None:
    arena = tmp_path / "app.arena"
    with running(tmp_path, COUNTING, "--exec", "-q", "--arena", str(arena)) as (parent, program):
        os.kill(program, signal.SIGUSR1)
        assert ask(parent) == "1"
        parent.kill()
    done = subprocess.run(
        words(tmp_path, "print('ran')", "--arena", str(arena), "--force"), capture_output=True, text=True, timeout=60
    )
    assert (done.returncode, done.stdout) == (0, "ran\n")
    restored = tmp_path / f"t.{program}.dat"
    assert f"{restored}: 1 events of process {program}, whose arena was {arena}" in done.stderr
    assert len(events(restored)) == 1


@pytest.mark.root
@pytest.mark.skipif(os.geteuid() != 0, reason="NOT RUN: needs root")
def test_program_that_becomes_another_user_is_recorded_to_its_end(tmp_path: Path) -> None:
    program = """
import os, aiotrace
step = aiotrace.event("app:step", n="u32")
step(0)
os.mkdir("jail")
os.chroot("jail")
os.chdir("/")
os.setgid(65534)
os.setuid(65534)
for n in range(1, 20_000): step(n)
os._exit(4)
"""
    done = subprocess.run(words(tmp_path, program), capture_output=True, text=True, timeout=60, cwd=tmp_path)
    assert done.returncode == 4
    assert len(events(tmp_path / "t.dat")) == 20_000


@pytest.mark.root
@pytest.mark.skipif(os.geteuid() != 0, reason="NOT RUN: needs root")
def test_as_pid_1_it_reaps_orphans_and_finishes_all_traces(tmp_path: Path) -> None:
    program = """
import os, signal, sys, time, aiotrace
step = aiotrace.event("app:step", n="u32")
step(0)
if not os.fork():
    if not os.fork():
        os._exit(0)  # an orphan, which PID 1 reaps
    os._exit(0)
os.wait()
read, write = os.pipe()
if not os.fork():
    step(1)
    print("child", flush=True)
    os.write(write, b"x")
    signal.pause()
os.read(read, 1)
print(os.getppid(), flush=True)
while len([name for name in os.listdir("/proc") if name.isdecimal()]) > 4:
    time.sleep(0.01)
os.kill(os.getpid(), signal.SIGKILL)
"""
    command = ["unshare", "--pid", "--fork", "--mount-proc", *words(tmp_path, program)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert sorted(done.stdout.split()) == ["1", "child"]
    assert done.returncode == 128 + signal.SIGKILL
    assert len(events(tmp_path / "t.dat")) == 1
    (child,) = tmp_path.glob("t.*.dat")
    assert len(events(child)) == 1
    assert not list(tmp_path.glob("*.journal"))
