"""`aiotrace record`: real programs in real processes, recorded and not, side by side.

What a program sees of the world (MIRROR) must be the same in both; what it leaves must be a trace.
"""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

import aiotrace
from aiotrace._base.backend import c_module
from aiotrace._cli import main
from aiotrace._cli._recording_plan import _absolute, file_url

MIRROR = """
import json, os, signal, sys, warnings
print(json.dumps({
    "name": __name__, "is main": sys.modules["__main__"].__dict__ is globals(), "file": globals().get("__file__"),
    "argv": sys.argv, "orig_argv": sys.orig_argv, "path": sys.path, "flags": repr(sys.flags),
    "environment": sorted(item for item in os.environ.items() if item[0] not in ("_", "SHLVL")),
    "modules": [name for name in ("sitecustomize", "usercustomize") if name in sys.modules],
    "signals": {str(number): str(signal.getsignal(number)) for number in signal.valid_signals()},
    "mask": sorted(signal.pthread_sigmask(signal.SIG_BLOCK, [])), "cwd": os.getcwd(), "umask": os.umask(0o22),
    "warnings": repr(warnings.filters), "stdin": sys.stdin.read(), "spec": repr(globals().get("__spec__"))[:40],
}))
print("to stderr", file=sys.stderr)
sys.exit(7)
"""
HOW_IT_ENDED = r"; process \d+ (exited with status \d+|was killed by \w+|ended)$"
STEPS = """
import aiotrace
step = aiotrace.event("app:step", n="u32")
other = aiotrace.event("app:other", text="str")
for number in range(100):
    step(number)
other("once")
"""


def record(
    *arguments: str | Path, cwd: Path, stdin: str = "", environment: dict[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """Without what is said of the pure-Python implementation, and how processes ended: that has its own tests."""
    done = run("-m", "aiotrace", "record", *arguments, cwd=cwd, stdin=stdin, environment=environment)
    for pattern in ("^aiotrace record: (no tasks: |without aiotrace's C module).*\n", HOW_IT_ENDED):
        done.stderr = re.sub(pattern, "", done.stderr, flags=re.MULTILINE)
    return done


def in_order(done: subprocess.CompletedProcess[str]) -> list[str]:
    """The lines, the one about the trace last: without the C module the program writes it, and writes it first."""
    lines = done.stderr.splitlines()
    return lines if c_module is not None else [*lines[1:], lines[0]]


def main_line(done: subprocess.CompletedProcess[str]) -> str:
    """The line about the program's own trace."""
    (line,) = [line for line in done.stderr.splitlines() if "/trace.dat:" in line]
    return line


def run(
    *arguments: str | Path, cwd: Path, stdin: str = "", environment: dict[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *map(str, arguments)],
        cwd=cwd,
        input=stdin,
        capture_output=True,
        text=True,
        timeout=60,
        env={**os.environ, **(environment or {})},
    )


def events_of(path: Path) -> list[tuple[str, dict[str, object]]]:
    with aiotrace.open_trace(path) as trace:
        return [(event.name, dict(event.fields)) for event in trace.events()]


def steps_of(path: Path) -> list[int]:
    return [fields["n"] for name, fields in events_of(path) if name == "app:step"]  # type: ignore[misc]


@pytest.fixture
def app(tmp_path: Path) -> Path:
    (tmp_path / "app.py").write_text(STEPS)
    return tmp_path


# --- the program is itself --------------------------------------------------------------------------


@pytest.fixture(scope="module")
def mirrors(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the same program in every form that Python starts."""
    folder = tmp_path_factory.mktemp("mirrors")
    (folder / "app.py").write_text(MIRROR)
    (folder / "package").mkdir()
    (folder / "package" / "__init__.py").touch()
    (folder / "package" / "__main__.py").write_text(MIRROR)
    with zipfile.ZipFile(folder / "app.zip", "w") as archive:
        archive.writestr("__main__.py", MIRROR)
    return folder


@pytest.mark.parametrize(
    "words",
    [
        pytest.param(["app.py", "-x", "--", "--force"], id="a file"),
        pytest.param(["-m", "package", "-o", "x"], id="a module"),
        pytest.param(["-c", MIRROR, "-m"], id="code"),
        pytest.param(["package", "1"], id="a folder"),
        pytest.param(["app.zip"], id="a zip file"),
    ],
)
def test_the_program_sees_what_it_sees_without_us(mirrors: Path, tmp_path: Path, words: list[str]) -> None:
    environment = {"PYTHONPATH": os.pathsep.join([os.environ.get("PYTHONPATH", ""), "/nowhere"]).lstrip(os.pathsep)}
    alone = run(*words, cwd=mirrors, stdin="hello", environment=environment)
    traced = record("-o", tmp_path / "t.dat", *words, cwd=mirrors, stdin="hello", environment=environment)
    assert json.loads(traced.stdout) == json.loads(alone.stdout)
    assert json.loads(traced.stdout)["stdin"] == "hello"
    assert traced.returncode == alone.returncode == 7
    assert traced.stderr.splitlines() == [*alone.stderr.splitlines(), f"aiotrace record: {tmp_path}/t.dat: 0 events"]


def test_a_program_may_come_from_stdin(tmp_path: Path) -> None:
    program = "import sys; print(__name__, sys.argv, sys.path); sys.exit(7)"
    alone = run("-", "x", cwd=tmp_path, stdin=program)
    traced = record("-q", "-", "x", cwd=tmp_path, stdin=program)
    assert (traced.returncode, traced.stdout, traced.stderr) == (7, alone.stdout, alone.stderr)
    assert alone.stdout.startswith("__main__ ['-', 'x']")


def test_options_of_python_before_m_aiotrace_are_the_programs_too(mirrors: Path, tmp_path: Path) -> None:
    options = ["-X", "dev", "-bb", "-Werror::UserWarning"]
    alone = json.loads(run(*options, "app.py", "y", cwd=mirrors).stdout)
    words = ["-m", "aiotrace", "record", "-q", "-o", tmp_path / "t.dat", "--", "app.py", "y"]
    traced = run(*options, *words, cwd=mirrors)
    assert json.loads(traced.stdout) == alone


def test_command_on_path_is_run_unchanged(mirrors: Path, tmp_path: Path) -> None:
    command = tmp_path / "mirror"
    command.write_text(f"#!{sys.executable}\n{MIRROR}")
    command.chmod(0o755)
    environment = {"PATH": f"{tmp_path}{os.pathsep}{os.environ['PATH']}"}
    alone = subprocess.run(
        ["mirror", "a"], cwd=mirrors, capture_output=True, text=True, input="", env={**os.environ, **environment}
    )
    traced = record("-o", tmp_path / "t.dat", "mirror", "a", cwd=mirrors, environment=environment)
    assert json.loads(traced.stdout) == json.loads(alone.stdout)
    assert traced.returncode == 7


def test_python_may_precede_the_program(mirrors: Path, tmp_path: Path) -> None:
    traced = record("-o", tmp_path / "t.dat", sys.executable, "-X", "dev", "app.py", cwd=mirrors)
    assert json.loads(traced.stdout) == json.loads(run("-X", "dev", "app.py", cwd=mirrors).stdout)


def test_the_users_own_sitecustomize_is_imported(app: Path) -> None:
    (app / "site").mkdir()
    (app / "site" / "sitecustomize.py").write_text("import builtins\nbuiltins.chained = __file__\n")
    path = os.pathsep.join(filter(None, [str(app / "site"), os.environ.get("PYTHONPATH")]))
    (app / "app.py").write_text(STEPS + "import sys\nprint(chained, sys.modules['sitecustomize'].__file__)")
    traced = record("app.py", cwd=app, environment={"PYTHONPATH": path})
    expected = str(app / "site" / "sitecustomize.py")
    assert traced.stdout.split() == [expected, expected]
    assert len(steps_of(app / "trace.dat")) == 100


def test_a_python_that_the_program_starts_knows_nothing_of_it(app: Path) -> None:
    program = "import subprocess, sys; subprocess.run([sys.executable, 'app.py'], check=True)"
    traced = record("-c", program, cwd=app)
    assert traced.returncode == 0
    assert traced.stderr == f"aiotrace record: {app}/trace.dat: 0 events\n"
    assert sorted(path.name for path in app.iterdir()) == ["app.py", "trace.dat"]


def test_python_with_variables_for_another_process_silently_removes_them(app: Path) -> None:
    shim = Path(aiotrace.__file__).parent / "_launcher" / "shim"
    before = os.environ.get("PYTHONPATH")
    environment = {
        "PYTHONPATH": os.pathsep.join(filter(None, [str(shim), before])),
        "AIOTRACE_RECORD": '{"pid": 1, "path": []}',
    }
    program = "import os, sys; print([os.environ.get('PYTHONPATH'), 'AIOTRACE_RECORD' in os.environ, sys.path])"
    alone = run("-c", program, cwd=app)
    meant_for_another = run("-c", program, cwd=app, environment=environment)
    assert (meant_for_another.stdout, meant_for_another.stderr) == (alone.stdout, "")
    assert [path.name for path in app.iterdir()] == ["app.py"]


# --- how it ends ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("ending", "status"),
    [
        ("raise ValueError('unhandled')", 1),
        ("raise SystemExit('a text')", 1),
        ("import os, signal; os.kill(os.getpid(), signal.SIGINT)", -signal.SIGINT),
        ("import threading; threading.Thread(target=step, args=(100,)).start()", 0),
    ],
)
def test_program_that_exits_normally_has_a_finished_trace_and_its_status(app: Path, ending: str, status: int) -> None:
    (app / "app.py").write_text(STEPS + ending)
    alone, traced = run("app.py", cwd=app), record("app.py", cwd=app)
    assert traced.returncode == alone.returncode == status
    *others, last = traced.stderr.splitlines()
    assert others == alone.stderr.splitlines()
    assert re.fullmatch(rf"aiotrace record: {app}/trace.dat: 10[12] events", last)
    assert steps_of(app / "trace.dat")[:100] == list(range(100))
    assert not (app / "trace.dat.journal").exists()


def test_with_exec_a_killed_program_leaves_a_readable_restorable_trace(app: Path) -> None:
    many = "for number in range(20000):\n    step(number)\n"
    wait = (
        "import time, os, signal\n"
        "def stored():\n"
        "    with aiotrace.open_trace('trace.dat') as trace:\n"
        "        return sum(1 for _ in trace.events(['app:step']))\n"
        "while stored() < 2000: time.sleep(0.01)\n"
    )
    (app / "app.py").write_text(STEPS + many + wait + "os.kill(os.getpid(), signal.SIGTERM)\n")
    traced = record("--exec", "-q", "app.py", cwd=app)
    assert traced.returncode == -signal.SIGTERM
    assert traced.stderr == ""
    as_it_is = steps_of(app / "trace.dat")
    assert len(as_it_is) >= 2000
    assert run("-m", "aiotrace", "restore", "trace.dat", cwd=app).returncode == 0
    assert steps_of(app / "trace.dat") == as_it_is


def test_signal_awaited_by_the_program_is_not_taken_by_our_thread(app: Path) -> None:
    """Were it not blocked in our threads, the kernel would give it to one of them, and the program would die."""
    program = (
        "import os, signal\n"
        "signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])\n"
        "os.kill(os.getpid(), signal.SIGTERM)\n"
        "print(int(signal.sigwait([signal.SIGTERM])))\n"
    )
    traced = record("-q", "-c", program, cwd=app)
    assert (traced.returncode, traced.stderr) == (0, "")
    assert traced.stdout == "15\n"


def test_program_that_closes_every_event_loop_does_not_find_our_loop(app: Path) -> None:
    """As one of anyio's tests does."""
    look = "import asyncio, gc\nprint(sum(isinstance(each, asyncio.AbstractEventLoop) for each in gc.get_objects()))\n"
    assert record("-q", "-c", look, cwd=app).stdout == "0\n"


def test_objects_alive_at_interpreter_exit_are_finalized_and_files_written(app: Path) -> None:
    (app / "app.py").write_text(
        "class Left:\n    def __del__(self):\n        print('finalized')\n"
        "left = Left()\nfile = open('left.txt', 'w')\nfile.write('to the last')\n"
    )
    traced = record("app.py", cwd=app)
    assert traced.stdout == "finalized\n"
    assert (app / "left.txt").read_text() == "to the last"


@pytest.mark.parametrize("options", [[], ["--arena", "a.arena"]], ids=["file", "arena"])
def test_a_program_that_closes_what_it_did_not_open_keeps_its_own_files(app: Path, options: list[str]) -> None:
    (app / "app.py").write_text(
        "import asyncio, os\n"
        "os.closerange(3, 2000)\n"
        "files = [open(f'{number}.txt', 'w') for number in range(20)]\n"
        "async def main():\n"
        "    for _ in range(5000):\n"  # more than is on the pages that were allocated before
        "        await asyncio.sleep(0)\n"
        "asyncio.run(main())\n"
        "for file in files:\n"
        "    file.write('mine')\n"
        "    file.close()\n"
        "print('done')\n"
    )
    traced = record(*options, "-e", "all", "app.py", cwd=app)
    assert traced.stdout == "done\n"
    assert {(app / f"{number}.txt").read_text() for number in range(20)} == {"mine"}
    assert "Traceback" not in traced.stderr


def test_warning_without_the_c_module_says_that_tasks_are_missing(app: Path) -> None:
    def told(*options: str) -> str:
        command = ["-m", "aiotrace", "record", "--force", "-o", "t.dat", *options, "app.py"]
        return run(*command, cwd=app, environment={"AIOTRACE_PURE": "1"}).stderr

    how, why, events = told().splitlines()
    assert how.startswith("aiotrace record: without aiotrace's C module")
    assert why.startswith("aiotrace record: no tasks: tracing tasks (task:*) needs the C module")
    assert events.endswith("t.dat: 101 events")
    assert "no tasks" not in told("-e", "app:*"), "nobody asked for them"
    assert told("-q") == ""


def test_tasks_have_the_names_that_they_have_without_us(app: Path) -> None:
    (app / "app.py").write_text(
        "import asyncio\nasync def main():\n    print(asyncio.current_task().get_name())\n"
        "asyncio.run(main())\nasyncio.run(main())\n"
    )
    alone = run("app.py", cwd=app)
    assert alone.stdout.startswith("Task-1\n")
    assert record("app.py", cwd=app).stdout == alone.stdout


def test_trace_that_cannot_be_created_stops_program_before_its_first_line(app: Path) -> None:
    (app / "there.dat").touch()
    traced = record("--sink", "file:there.dat", "-c", "print('ran')", cwd=app)
    assert (traced.returncode, traced.stdout) == (1, "")
    assert "there.dat" in traced.stderr


def test_quiet_recording_still_reports_losses(app: Path) -> None:
    (app / "app.py").write_text(STEPS + "for _ in range(3):\n    step('no number')\n")
    alone, traced = run("app.py", cwd=app), record("-q", "app.py", cwd=app)
    assert (alone.stderr, traced.returncode) == ("", 0)
    whose = f"{app}/trace.dat: " if c_module is not None else ""
    assert traced.stderr.splitlines()[-1] == f"aiotrace record: {whose}events lost: 3: 3 refused (3 wrong_type)"
    assert len(steps_of(app / "trace.dat")) == 100


# --- which events -----------------------------------------------------------------------------------


def test_choices_go_in_the_order_in_which_they_stand(app: Path) -> None:
    (app / "app.py").write_text(STEPS + "aiotrace.event('web:hit')(), aiotrace.event('db:query')()\n")
    choices = ["-e", "app", "-f", "n < 10", "-v", "app:other", "-e", "web", "-e", "htp:*"]
    traced = record(*choices, "app.py", cwd=app)
    assert [name for name, _ in events_of(app / "trace.dat")] == ["app:step"] * 10 + ["web:hit"]
    unmatched, events = in_order(traced)
    assert events == f"aiotrace record: {app}/trace.dat: 11 events"
    assert re.fullmatch(r"aiotrace record: -e 'htp:\*' matches no event of this process: .*app:step, .*", unmatched)


def test_filter_by_an_unknown_field_is_reported(app: Path) -> None:
    choices = ["-e", "app", "-f", "m < 10 && text == 'x'", "-e", "app:other", "-R", "traceoff if size > 1"]
    *others, last = in_order(record(*choices, "app.py", cwd=app))
    assert last == f"aiotrace record: {app}/trace.dat: 0 events"
    assert others == [
        "aiotrace record: \"m < 10 && text == 'x'\": no event of 'app' has a field m; app:step has n",
        "aiotrace record: 'traceoff if size > 1': no event of 'app:other' has a field size; app:other has text",
    ]


def test_filter_by_an_unknown_field_of_a_tracer_is_reported_once(app: Path) -> None:
    other, last = in_order(record("-e", "log:*", "-f", "nn > 1", "app.py", cwd=app))
    assert last == f"aiotrace record: {app}/trace.dat: 0 events"
    assert other.startswith("aiotrace record: 'nn > 1': no event of 'log:*' has a field nn; log:record has ")


def test_a_trigger_is_of_the_event_before_it(app: Path) -> None:
    record("-q", "-e", "app", "-R", "traceoff:1 if n == 4", "app.py", cwd=app)
    assert steps_of(app / "trace.dat") == [0, 1, 2, 3, 4]


def test_option_v_alone_records_all_other_events(app: Path) -> None:
    record("-q", "-v", "app:step", "app.py", cwd=app)
    assert events_of(app / "trace.dat") == [("app:other", {"text": "once"})]


NESTED = """
class Thing:
    def method(self):
        return inner()
def inner():
    return [0]
def main():
    for _ in range(2):
        Thing().method()
main()
"""


@pytest.mark.skipif(aiotrace.__backend__ != "c", reason="functions are traced by the C module alone")
def test_only_functions_selected_by_limits_are_traced(app: Path) -> None:
    (app / "app.py").write_text(NESTED)
    choices = ["-p", "function_graph", "-n", "*.inner", "-l", "__main__.*", "-n", "*.<module>"]
    unmatched, last = in_order(record(*choices, "-n", "x", "-l", "jsn.*", "app.py", cwd=app))
    assert last == f"aiotrace record: {app}/trace.dat: 8 events"
    assert unmatched.startswith("aiotrace record: 'jsn.*' matches no function that was called: ")
    with aiotrace.open_trace(app / "trace.dat") as trace:
        texts = [re.sub(r"@app.py:\d+| \(start.*", "", event.text()) for event in trace.events()]
    method = ["--> Thing.method (1)", "<-- Thing.method (1)"]
    assert texts == ["--> Thing (0)", "<-- Thing (0)", "--> main (0)", *method, *method, "<-- main (0)"]


# --- children ---------------------------------------------------------------------------------------

FORKS = """
import os, subprocess, sys
def in_child(function):
    pid = os.fork()
    if not pid:
        function()
    os.waitpid(pid, 0)
def child():
    step(1000)
    in_child(grandchild)
    sys.exit()
def grandchild():
    step(2000)
    sys.exit()
in_child(child)
in_child(sys.exit)
subprocess.run(["true"], preexec_fn=lambda: step(3000))
"""
PROCESSES = """
import multiprocessing, sys, aiotrace
step = aiotrace.event("app:step", n="u32")
def child(context, depth):
    step(depth)
    if depth:
        process = context.Process(target=child, args=(context, depth - 1))
        process.start()
        process.join()
        sys.exit(process.exitcode)
if __name__ == "__main__":
    child(multiprocessing.get_context(sys.argv[1]), 2)
"""


def children_of(app: Path) -> list[list[int]]:
    """What each trace of a child has."""
    names = {path.name for path in app.iterdir() if path.name.startswith("trace.")}
    assert "trace.dat" in names
    assert all(re.fullmatch(r"trace\.(\d+\.)?dat", name) for name in names), names
    return sorted(steps_of(app / name) for name in names - {"trace.dat"})


def test_forked_child_has_a_trace_unless_it_execs_or_records_nothing(app: Path) -> None:
    (app / "app.py").write_text(STEPS + FORKS)
    traced = record("app.py", cwd=app)
    assert (traced.returncode, main_line(traced)) == (0, f"aiotrace record: {app}/trace.dat: 101 events")
    assert children_of(app) == [[1000], [2000]]
    assert len(steps_of(app / "trace.dat")) == 100


@pytest.mark.parametrize(
    "beside", ["", "import threading; threading.Thread(target=time.sleep, args=(9,), daemon=True).start()"]
)
def test_fork_warns_exactly_as_without_aiotrace(app: Path, beside: str) -> None:
    """From 3.12 on, where the program has threads of its own; not because of ours."""
    fork = "if not os.fork():\n    os._exit(0)\nos.wait()\n"
    program = (
        f"import os, time, warnings\nwarnings.simplefilter('always')\n{beside}\n{fork}{fork}print(warnings.filters)"
    )
    (app / "app.py").write_text(program)
    alone, traced = run("app.py", cwd=app), record("-q", "app.py", cwd=app)
    assert traced.stdout == alone.stdout
    assert alone.stderr.count("use of fork()") == (2 if beside and sys.version_info >= (3, 12) else 0)
    assert re.sub(r"pid=\d+", "pid", traced.stderr) == re.sub(r"pid=\d+", "pid", alone.stderr)


@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
def test_children_of_multiprocessing_have_a_trace_each(app: Path, method: str) -> None:
    (app / "app.py").write_text(PROCESSES)
    traced = record("app.py", method, cwd=app)
    assert (traced.returncode, main_line(traced)) == (0, f"aiotrace record: {app}/trace.dat: 1 events")
    assert children_of(app) == [[0], [1]]
    everything = run("-m", "aiotrace", "report", *app.glob("trace*.dat"), cwd=app)
    assert [line.rpartition("n=")[2] for line in everything.stdout.splitlines()] == ["2", "1", "0"]


def test_child_killed_before_its_first_event_leaves_no_file(app: Path) -> None:
    program = (
        "import os, signal\n"
        "if not os.fork():\n"
        "    print(os.path.exists(f'trace.{os.getpid()}.dat.journal'), flush=True)\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
        "os.wait()\n"
    )
    (app / "app.py").write_text(STEPS + program)
    traced = record("--exec", "app.py", cwd=app)
    assert (traced.returncode, traced.stdout) == (0, "True\n")
    assert children_of(app) == []


def test_a_child_that_cannot_be_recorded_just_runs(app: Path) -> None:
    """It may not open any more files."""
    program = (
        "import os, resource\n"
        "before = resource.getrlimit(resource.RLIMIT_NOFILE)\n"
        "resource.setrlimit(resource.RLIMIT_NOFILE, (3, before[1]))\n"
        "if os.fork():\n"
        "    resource.setrlimit(resource.RLIMIT_NOFILE, before)\n"
        "    os.wait()\n"
        "else:\n"
        "    step(1)\n"
        "    print('ran')\n"
    )
    (app / "app.py").write_text(STEPS + program)
    traced = record("app.py", cwd=app)
    assert (traced.returncode, traced.stdout) == (0, "ran\n")
    assert re.search(r"process \d+ is not recorded: .*Too many open files", traced.stderr)
    assert children_of(app) == []


# --- what is refused --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "status", "message"),
    [
        ([], 2, "no program"),
        (["--"], 2, "no program"),
        (["-m"], 2, "no program"),
        (["-f", "n > 1", "app.py"], 2, "-e GLOB before it"),
        (["-p", "flying", "app.py"], 2, "no such tracer"),
        (["-b", "0", "app.py"], 2, "'0' should be a size"),
        (["-b", "12X", "app.py"], 2, "'12X' should be a size"),
        (["-o", "nowhere/trace.dat", "app.py"], 1, "no folder"),
        (["--arena", "nowhere/a.arena", "app.py"], 1, "nowhere/a.arena: there is no folder"),
        (["--snapshots", "nowhere/s.dat", "app.py"], 1, "nowhere/s.dat: there is no folder"),
        (["-o", ".", "app.py"], 1, "is a folder"),
        (["-o", "app.py", "app.py"], 1, "--force"),
        (["absent.py"], 127, "absent.py"),
        (["./absent"], 127, "./absent"),
        (["true"], 126, "not a Python program"),
        (["/bin/true"], 126, "not a Python program"),
        (["script.sh"], 126, "not a Python program"),
        (["folder"], 126, "without a __main__.py"),
        ([sys.executable, "-Im", "app"], 126, "-I"),
        (["blind", "1"], 126, "-S"),
        (["stranger", "1"], 126, "/other/bin/python3 -m aiotrace record"),
    ],
)
def test_impossible_options_are_refused_before_the_program_begins(
    app: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    words: list[str],
    status: int,
    message: str,
) -> None:
    (app / "script.sh").write_text("#!/bin/sh\necho ran\n")
    (app / "folder").mkdir()
    (app / "bin").mkdir()
    for name, line in (("blind", f"#!{sys.executable} -S"), ("stranger", "#!/other/bin/python3")):
        (app / "bin" / name).write_text(f"{line}\nprint('ran')\n")
        (app / "bin" / name).chmod(0o755)
    before = sorted(app.rglob("*"))
    monkeypatch.chdir(app)
    monkeypatch.setenv("PATH", f"{app}/bin{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setattr(os, "execve", _must_not_be_called)
    try:
        found = main(["record", *words])
    except SystemExit as error:  # argparse
        found = error.code
    stderr = capsys.readouterr().err
    assert found == status
    assert message in stderr
    assert stderr.splitlines()[-1].startswith("aiotrace record: ")
    assert sorted(app.rglob("*")) == before


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["-e", "app", "-f", "n >"], "n >"),
        (["-e", "app", "-R", "explode"], "unknown action 'explode'"),
        (["-e", "app", "-R", "traceoff if n >"], "n >"),
        (["-b", "15"], "-b 15: at least 16 (KiB) are needed: 4 pages of 4 KiB"),
        (["-b", "16", "-o", "t", "--sink", "null:"], "-b 16: at least 24 (KiB) are needed: 6 pages of 4 KiB"),
        (["-l", "json.*"], "-l 'json.*' is for functions: add -p function_graph"),
        (["-n", "json.*", "-e", "app"], "-n 'json.*' is for functions: add -p function_graph"),
        (["--clock", "sundial"], "'sundial'"),
        (["--sink", "pigeon:post"], "'pigeon'"),
    ],
)
def test_invalid_recording_is_refused_before_the_first_line_of_the_program(
    app: Path, words: list[str], message: str
) -> None:
    done = record(*words, "-c", "print('ran')", cwd=app)
    assert (done.returncode, done.stdout) == (2, "")
    assert message in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert [path.name for path in app.iterdir()] == ["app.py"]


def test_traces_of_children_of_an_earlier_run_are_reported_and_kept(app: Path) -> None:
    names = ["trace.4615.dat", "trace.17.dat", "trace.1x.dat"]
    for name in names:
        (app / name).write_text("mine")
    first, second = record("app.py", cwd=app).stderr.splitlines()
    assert first.startswith(f"aiotrace record: {app}/trace.17.dat and 1 more: of children of an earlier run")
    assert second == f"aiotrace record: {app}/trace.dat: 101 events"
    assert [(app / name).read_text() for name in names] == ["mine"] * 3
    assert record("-q", "--force", "app.py", cwd=app).stderr == ""


def _must_not_be_called(*arguments: object) -> None:
    raise AssertionError(arguments)


def test_a_folder_that_cannot_be_written_is_refused(app: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """To root every folder is writable, so the answer of the system is put in its place."""
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    with pytest.raises(PermissionError, match="cannot be written"):
        file_url(str(app / "trace.dat"), force=False)


def test_force_overwrites_and_only_force(app: Path) -> None:
    first = record("-q", "app.py", cwd=app)
    again = record("-q", "app.py", cwd=app)
    forced = record("-q", "--force", "-e", "app:other", "app.py", cwd=app)
    assert (first.returncode, again.returncode, forced.returncode) == (0, 1, 0)
    assert "trace.dat exists" in again.stderr
    assert [name for name, _ in events_of(app / "trace.dat")] == ["app:other"]


def test_trace_cmd_reads_what_was_recorded(app: Path, trace_cmd: str) -> None:
    record("-q", "app.py", cwd=app)
    report = subprocess.run([trace_cmd, "report", "trace.dat"], cwd=app, capture_output=True, text=True, check=True)
    assert report.stdout.count("step:") == 100


STALL = """
import asyncio, os, time
async def main():
    await asyncio.sleep(0)
    time.sleep(0.3)
asyncio.run(main())
if os.fork():
    os.wait()
else:
    asyncio.run(main())
"""
needs_c = pytest.mark.skipif(c_module is None, reason="NOT RUN: the watch over stalls is in the C module")


@needs_c
@pytest.mark.parametrize("options", [["-e", "nothing:*", "--stall", "50"], ["-e", "stall"], []])
def test_stalls_are_watched_for_in_children_too(tmp_path: Path, options: list[str]) -> None:
    done = record(*options, "-o", "t.dat", "-c", STALL, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    traces = [events_of(path) for path in tmp_path.glob("*.dat")]
    assert len(traces) == 2
    for events in traces:
        told = {name for name, _ in events if name.startswith("stall:")}
        assert told == {"stall:noticed", "stall:stack", "stall:end"}, events


@needs_c
@pytest.mark.parametrize("options", [["-v", "stall"], ["-e", "task"], ["--stall", "60000"]])
def test_stalls_are_watched_only_on_request(tmp_path: Path, options: list[str]) -> None:
    assert record(*options, "-o", "t.dat", "-c", STALL, cwd=tmp_path).returncode == 0
    assert not [name for name, _ in events_of(tmp_path / "t.dat") if name.startswith("stall:")]


@pytest.mark.parametrize("text", ["0", "0.9", "-5", "soon", "nan"])
def test_a_stall_is_a_time_in_milliseconds(tmp_path: Path, text: str) -> None:
    done = record(f"--stall={text}", "-c", "print('ran')", cwd=tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    assert f"argument --stall: {text!r} should be milliseconds, at least 1" in done.stderr


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("file:a.dat?keep=1", "file:/somewhere/a.dat?keep=1"),
        ("unix:s?level=written", "unix:/somewhere/s?level=written"),
        ("unix:/run/s", "unix:/run/s"),
        ("tcp://localhost:7007", "tcp://localhost:7007"),
        ("null:", "null:"),
    ],
)
def test_a_path_in_a_sinks_url_does_not_depend_on_where_the_program_goes(
    url: str, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os.path, "abspath", lambda path: path if path.startswith("/") else f"/somewhere/{path}")
    assert _absolute(url) == expected


IMPORTED = "import sys; print(*sys.modules)"


@pytest.mark.skipif(c_module is None, reason="NOT RUN: the recorder process needs the C module")
def test_a_program_whose_reader_is_outside_imports_nothing_of_it(tmp_path: Path) -> None:
    """What a program has imported at its first line, when only its own events are recorded."""
    modules = record("--external", "-q", "-e", "app:*", "-c", IMPORTED, cwd=tmp_path).stdout.split()
    assert "aiotrace._recording.writing" in modules
    ours = {name.split(".")[1] for name in modules if name.startswith("aiotrace.")}
    assert ours & {"_collector", "_budget", "_decode", "_cli", "_reports", "_traces", "_threads", "_tracers"} == {
        "_budget"
    }
    assert not {"aiotrace._recording.core", "aiotrace._recording.service", "aiotrace._recording.snapshot"} & {*modules}
    others = {
        "anyio",
        "asyncio",
        "concurrent",
        "logging",
        "selectors",
        "socket",
        "ssl",
        "statistics",
        "subprocess",
        "uuid",
    }
    assert not (others | {"importlib.metadata"}) & {*modules}


LATE_ASYNCIO = """
import sys
assert not {"asyncio", "anyio", "ssl", "socket", "queue"} & {*sys.modules}
import asyncio
async def child(): await asyncio.sleep(0)
async def main(): await asyncio.create_task(child(), name="kid")
asyncio.run(main())
"""
LATE_TRIO = """
import sys
import trio
assert "asyncio" not in sys.modules
async def child(): await trio.sleep(0)
async def main():
    async with trio.open_nursery() as nursery:
        nursery.start_soon(child, name="kid")
trio.run(main)
"""
LATE_UVLOOP = LATE_ASYNCIO.replace("asyncio.run(", "import uvloop; uvloop.run(")


@pytest.mark.skipif(c_module is None, reason="NOT RUN: the recorder process needs the C module")
@pytest.mark.parametrize("program", [LATE_ASYNCIO, LATE_TRIO, LATE_UVLOOP], ids=["asyncio", "trio", "uvloop"])
def test_a_runtime_is_hooked_when_the_program_imports_it(tmp_path: Path, program: str) -> None:
    if "uvloop" in program:
        pytest.importorskip("uvloop")
    done = record("--external", "-q", "-c", program, cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    with aiotrace.open_trace(tmp_path / "trace.dat") as trace:
        events = list(trace)
    kids = {
        event.fields["task"]
        for event in events
        if event.name in ("task:spawn", "task:name") and "kid" in str(event.fields["name"])
    }
    done_kids = [event for event in events if event.name == "task:done" and event.fields["task"] in kids]
    assert len(kids) == 1 and [event.fields["result"] for event in done_kids] == ["returned"]
