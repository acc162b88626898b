"""What users can rely on, written down: public names, signatures, options, exit statuses, keys of JSON.

The tables are literal: a change to one of them is a change for users and belongs in CHANGELOG.md. Only public names
are imported, so that a change inside the package does not touch this file.
"""

from __future__ import annotations

import contextlib
import functools
import gzip
import importlib
import importlib.metadata
import inspect
import io
import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import aiotrace
import aiotrace_sinks
from aiotrace.__main__ import main
from aiotrace._launcher.front import parent

DATA = Path(__file__).resolve().parent.parent / "data" / "before"
API = json.loads(Path(__file__).with_suffix(".json").read_text(encoding="utf-8"))
"""By module and name: the "signature" of a function, or of a class that users instantiate; the public "members" of a
class, each with its signature, or None for an attribute; the "values" of an enumeration; the "bases" of an exception;
the "value" of a constant. Further members may be added freely."""


# --- Python ---------------------------------------------------------------------------------------


def signature_of(function: Callable[..., Any]) -> str:
    """Without annotations: type checkers look after those."""
    found = inspect.signature(function)
    parameters = [each.replace(annotation=each.empty) for each in found.parameters.values()]
    return str(found.replace(parameters=parameters, return_annotation=found.empty))


@pytest.mark.parametrize("door", API)
def test_a_module_exports_its_names(door: str) -> None:
    assert sorted(importlib.import_module(door).__all__) == sorted(API[door])


@pytest.mark.parametrize(("door", "name"), [(door, name) for door in API for name in API[door]])
def test_a_public_name_is_what_it_was(door: str, name: str) -> None:
    found, promised = getattr(importlib.import_module(door), name), API[door][name]
    if "signature" in promised:
        assert signature_of(found) == promised["signature"]
    for member, signature in promised.get("members", {}).items():
        value = inspect.getattr_static(found, member)
        value = value.__func__ if isinstance(value, (classmethod, staticmethod)) else value
        assert (signature_of(value) if inspect.isroutine(value) else None) == signature, member
    if "values" in promised:
        assert {each.name: each.value for each in found} == promised["values"]
    if "value" in promised:
        assert found == promised["value"]
    if "bases" in promised:
        assert [base.__name__ for base in found.__mro__[1:-1]] == promised["bases"]


def test_events_spans_and_recordings_have_their_public_attributes() -> None:
    """Some of these are made in C, where a class says nothing about them."""
    made = aiotrace.event("contract:made", n="u8", text="str")
    assert isinstance(made, aiotrace.Event)
    assert (made.name, list(made.fields), callable(made.send)) == ("contract:made", ["n", "text"], True)
    query = aiotrace.span_type("contract:query", table="str")
    with aiotrace.recording() as recording, aiotrace.span("a span", key=1), query(table="users"), query("users"):
        made(1, "x")
        made(n=1, text="x")
        assert isinstance(recording, aiotrace.SyncRecording)
        assert isinstance(recording.info, aiotrace.abc.StreamInfo)
        assert isinstance(recording.statistics(), aiotrace.Statistics)
        assert recording.statistics().events_written == 3 + 2
    assert aiotrace.__version__ == importlib.metadata.version("aiotrace")
    assert aiotrace.__backend__ in ("c", "python")


def test_sinks_are_found_by_their_entry_points() -> None:
    found = {entry.name: entry.value for entry in importlib.metadata.entry_points(group="aiotrace.sinks")}
    assert found == {
        "file": "aiotrace_sinks:FileSink.from_url",
        "null": "aiotrace_sinks:NullSink.from_url",
        "tcp": "aiotrace_sinks:SocketSink.from_url",
        "text": "aiotrace_sinks:TextSink.from_url",
        "tls": "aiotrace_sinks:SocketSink.from_url",
        "trace-cmd": "aiotrace_sinks:TraceCmdSink.from_url",
        "unix": "aiotrace_sinks:SocketSink.from_url",
    }
    assert found == {scheme: f"aiotrace_sinks:{name}.from_url" for scheme, name in aiotrace_sinks.SCHEMES.items()}


# --- options --------------------------------------------------------------------------------------

OPTIONS = {
    "": {"-h --help": (None, None), "--version": (None, None)},
    "record": {
        "-h --help": (None, None),
        "-e": ("GLOB", None),
        "-v": ("GLOB", None),
        "-f": ("FILTER", None),
        "-R": ("TRIGGER", None),
        "-p": ("TRACER", None),
        "-l": ("GLOB", None),
        "-n": ("GLOB", None),
        "--stall": ("MS", None),
        "--cancel-timeout": ("MS", None),
        "-o": ("FILE", "trace.dat"),
        "--force": (None, None),
        "--sink": ("URL", None),
        "-b": ("SIZE", "4M"),
        "--overrun": (None, None),
        "--arena": ("PATH", None),
        "--external": (None, None),
        "--exec": (None, None),
        "--wait": (None, None),
        "--service": (None, None),
        "--keep": ("N", None),
        "--max-size": ("SIZE", None),
        "--budget": ("PERCENT", None),
        "--snapshots": ("FILE", "trace.dat"),
        "--snapshot-signal": ("NAME", None),
        "--clock": ("CLOCK", None),
        "-q": (None, None),
        "-m": ("...", None),
        "-c": ("...", None),
    },
    "report": {
        "-h --help": (None, None),
        "-e --event": ("GLOB", None),
        "-F --filter": ("FILTER", None),
        "--from": ("SECONDS", None),
        "--to": ("SECONDS", None),
        "--cpu": ("LIST", None),
        "--pid": ("LIST", None),
        "--json": (None, None),
        "--raw": (None, None),
        "--follow": (None, None),
        "--tasks": (None, None),
        "--latency": (None, None),
        "--cancellations": (None, None),
        "--lost-tasks": (None, None),
        "--stalls": (None, None),
        "--threshold": ("MS", "100"),
    },
    "stat": {"-h --help": (None, None)},
    "list": {"-h --help": (None, None), "--versions": (None, None)},
    "restore": {"-h --help": (None, None), "-o": ("TRACE", None)},
    "listen": {
        "-h --help": (None, None),
        "-o": ("DIR", None),
        "--max-size": ("SIZE", None),
        "--max-age": ("AGE", None),
        "--budget": ("SIZE", None),
        "--delete-oldest": (None, None),
        "--text": (None, None),
        "--token-file": ("FILE", None),
        "--token-env": ("NAME", None),
        "--tls-cert": ("FILE", None),
        "--tls-key": ("FILE", None),
        "--tls-client-ca": ("FILE", None),
    },
    "snapshot": {"-h --help": (None, None), "-o": ("FILE", "trace-TIME-snapshot.dat")},
}
"""By command, "" for `aiotrace` itself, and names: the metavar, and the default that help names."""

USAGES = {
    "": "usage: aiotrace [-h] [--version] COMMAND ...",
    "record": "usage: aiotrace record [OPTIONS] [--] PROGRAM | -m MODULE | -c CODE [ARGUMENTS]",
    "report": "usage: aiotrace report [-h] [-e GLOB] [-F FILTER] [--from SECONDS] [--to SECONDS] [--cpu LIST] "
    "[--pid LIST] [--json | --raw] [--follow] "
    "[--tasks | --latency | --cancellations | --lost-tasks | --stalls] [--threshold MS] [FILE ...]",
    "stat": "usage: aiotrace stat [-h] [FILE]",
    "list": "usage: aiotrace list [-h] [--versions] [FILE]",
    "restore": "usage: aiotrace restore [-h] [-o TRACE] FILE",
    "listen": "usage: aiotrace listen [-h] -o DIR [--max-size SIZE] [--max-age AGE] [--budget SIZE] [--delete-oldest] "
    "[--text] [--token-file FILE] [--token-env NAME] [--tls-cert FILE] [--tls-key FILE] [--tls-client-ca FILE] "
    "ADDRESS [ADDRESS ...]",
    "snapshot": "usage: aiotrace snapshot [-h] [-o FILE] PID|ARENA",
}


def help_of(command: str, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("COLUMNS", "1000")
    status, out, _ = run([*filter(None, [command]), "--help"])
    assert status == 0
    return out


def run(arguments: list[str]) -> tuple[int, str, str]:
    """A command in this process: its exit status, and what it printed."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            status = main(arguments)
        except SystemExit as exit:
            status = int(exit.code or 0)
    return status, out.getvalue(), err.getvalue()


def options_in(text: str) -> dict[str, tuple[str | None, str | None]]:
    """As in OPTIONS. An option is "  -o FILE  what it does", or what it does is on the next line."""
    found: dict[str, tuple[str | None, str | None]] = {}
    lines = text.splitlines()
    for number, line in enumerate(lines):
        match = re.fullmatch(r"  (-\S.*?)(?:  +(\S.*))?", line)
        if match is None:
            continue
        forms = [form.split(" ", 1) for form in match[1].split(", ")]
        description = match[2] or lines[number + 1]
        default = re.search(r"\(default: ([^),]+)", description)
        metavar = forms[-1][1] if len(forms[-1]) > 1 else None
        found[" ".join(form[0] for form in forms)] = (metavar, default[1] if default else None)
    return found


@pytest.mark.parametrize("command", OPTIONS)
def test_a_command_has_its_options(command: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert options_in(help_of(command, monkeypatch)) == OPTIONS[command]


@pytest.mark.parametrize("command", USAGES)
def test_a_command_is_used_in_the_same_way(command: str, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = help_of(command, monkeypatch).splitlines()[0]
    assert usage == USAGES[command]


def test_help_names_the_commands(monkeypatch: pytest.MonkeyPatch) -> None:
    named = re.findall(r"^    (\S+) ", help_of("", monkeypatch), re.MULTILINE)
    assert named == ["record", "report", "stat", "list", "restore", "listen", "snapshot"]


def test_version_is_printed() -> None:
    assert run(["--version"]) == (0, f"aiotrace {aiotrace.__version__}\n", "")


def test_list_names_sinks_and_tracers() -> None:
    status, out, _ = run(["list"])
    names = [line.split()[0] for line in out.splitlines()]
    assert status == 0
    assert names == [
        "sinks:", "file", "null", "tcp", "text", "tls", "trace-cmd", "unix",
        "tracers:", "audit", "cancellation", "exception", "function", "function_graph", "gc", "log", "loop", "sched",
        "stall", "task", "thread", "warning",
    ]  # fmt: skip


# --- exit statuses --------------------------------------------------------------------------------

STARTED = 99
"""Starting the program is replaced by an exit with this status."""

STATUSES = [
    (0, "report"),
    (0, "report trace.dat"),
    (0, "report trace.dat -e nothing:*"),
    (0, "report trace.dat -F no_such_field>1"),
    (0, "report trace.dat --json --from 1 --to 2.5 --cpu 0,2-5 --pid 1"),
    (0, "report trace.dat --event task:* --filter task>1 --raw"),
    (0, "report --follow trace.dat"),
    (3, "report --follow lossy.dat"),
    (3, "report lossy.dat"),
    (3, "report lossy.dat trace.dat"),
    (0, "report killed.dat"),
    (3, "report damaged.dat"),
    (0, "report app.arena"),
    (1, "report no.dat"),
    (1, "report text.txt"),
    (1, "report empty.dat"),
    (1, "report folder"),
    (2, "report --json --raw trace.dat"),
    (2, "report --tasks --latency trace.dat"),
    (2, "report --follow trace.dat lossy.dat"),
    (2, "report -F n>> trace.dat"),
    (2, "report --from soon trace.dat"),
    (2, "report --to late trace.dat"),
    (2, "report --cpu x trace.dat"),
    (2, "report --pid 0-99999999 trace.dat"),
    (2, "report --no-such-option"),
    (0, "report --tasks trace.dat"),
    (0, "report --latency trace.dat"),
    (0, "report --cancellations trace.dat"),
    (0, "report --lost-tasks trace.dat"),
    (0, "report --stalls --threshold 2.5 trace.dat"),
    (2, "report --threshold 2.5 trace.dat"),
    (2, "report --stalls --threshold -1 trace.dat"),
    (2, "report --tasks -e task:* trace.dat"),
    (2, "report --tasks -F n trace.dat"),
    (2, "report --tasks --cpu 1 trace.dat"),
    (2, "report --tasks --pid 1 trace.dat"),
    (2, "report --tasks --raw trace.dat"),
    (2, "report --tasks --follow trace.dat"),
    (2, "report --tasks lossy.dat"),
    (3, "report --tasks trace.dat lossy.dat"),
    (0, "stat"),
    (0, "stat killed.dat"),
    (3, "stat lossy.dat"),
    (3, "stat damaged.dat"),
    (1, "stat no.dat"),
    (1, "stat text.txt"),
    (2, "stat trace.dat lossy.dat"),
    (0, "list"),
    (0, "list trace.dat"),
    (0, "list --versions"),
    (1, "list no.dat"),
    (1, "list text.txt"),
    (2, "list --versions trace.dat"),
    (0, "restore killed.dat"),
    (3, "restore damaged.dat"),
    (1, "restore trace.dat"),
    (1, "restore no.dat"),
    (0, "restore app.arena -o new.dat"),
    (2, "restore app.arena"),
    (1, "restore app.arena -o trace.dat"),
    (1, "restore app.arena -o no/new.dat"),
    (2, "restore killed.dat -o new.dat"),
    (2, "restore"),
    (0, "snapshot app.arena -o new.dat"),
    (1, "snapshot app.arena -o trace.dat"),
    (1, "snapshot no.arena"),
    (1, "snapshot trace.dat -o new.dat"),
    (1, "snapshot 999999999"),
    (2, "snapshot"),
    (STARTED, "record -o new.dat -c pass"),
    (STARTED, "record -o trace.dat --force -c pass"),
    (STARTED, "record --sink null: -c pass"),
    (2, "record"),
    (2, "record -q"),
    (2, "record -m"),
    (1, "record -c pass"),
    (1, "record -o lossy.dat -c pass"),
    (1, "record -o killed.dat -c pass"),
    (1, "record -o folder --force -c pass"),
    (1, "record -o no/new.dat -c pass"),
    (2, "record -o new?.dat -c pass"),
    (STARTED, "record -o new.dat --arena app.arena -c pass"),
    (1, "record -o new.dat --arena no/new.arena -c pass"),
    (2, "record --exec --external -c pass"),
    (2, "record --keep 3 -c pass"),
    (2, "record -o new-%x.dat -c pass"),
    (2, "record -o new.dat -b 4 -c pass"),
    (2, "record -o new.dat -b nothing -c pass"),
    (2, "record -o new.dat -f n>1 -c pass"),
    (2, "record -o new.dat -p nothing -c pass"),
    (2, "record -o new.dat -l json.* -c pass"),
    (2, "record -e a:* -R explode -c pass"),
    (2, "record -o new.dat --snapshot-signal KILL -c pass"),
    (2, "record -o new.dat --stall 0 -c pass"),
    (2, "record -o new.dat --cancel-timeout soon -c pass"),
    (2, "record -o new.dat --budget 0% -c pass"),
    (127, "record -o new.dat no-such-program"),
    (127, "record -o new.dat no-such-program.py"),
    (126, "record -o new.dat folder"),
    (126, "record -o new.dat /bin/true"),
    (2, "listen unix:socket"),
    (2, "listen -o new"),
    (2, "listen unix:socket -o new --max-size 0"),
    (2, "listen unix:socket -o new --max-age 1y"),
    (2, "listen unix:socket -o new --budget much"),
    (2, ""),
    (2, "no-such-command"),
]
"""trace.dat and lossy.dat are finished; killed.dat and damaged.dat are not, and bytes of the latter are wrong."""


@functools.cache
def stored_files() -> dict[str, bytes]:
    """What the commands are given, by name."""
    files = {}
    for path in DATA.glob("*.gz"):
        name, data = path.name, path.read_bytes()
        while name.endswith(".gz"):
            name, data = name.removesuffix(".gz"), gzip.decompress(data)
        files[name.replace("tasks.dat", "trace.dat")] = data
        if name.startswith("killed.dat"):
            files[name.replace("killed", "damaged")] = data.replace(b"kkkk", b"kkkl")
    return {**files, "text.txt": b"no trace\n" * 100, "empty.dat": b""}


def place(folder: Path, *names: str) -> None:
    """Put the files there, each with its journal and spools."""
    (folder / "folder").mkdir()
    for name, data in stored_files().items():
        if any(name == wanted or name.startswith(f"{wanted}.") for wanted in ("trace.dat", *names)):
            (folder / name).write_bytes(data)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory of the test."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(os, "execve", lambda *arguments: sys.exit(STARTED))
    monkeypatch.setattr(parent, "run", lambda *arguments, **options: STARTED)
    return tmp_path


@pytest.mark.parametrize(("status", "line"), STATUSES, ids=[line or "nothing" for _, line in STATUSES])
def test_a_command_ends_with_its_status(status: int, line: str, folder: Path) -> None:
    place(folder, *line.split())
    found, _, err = run(line.split())
    assert found == status, err
    assert bool(err) or status in (0, STARTED)  # a failure is explained


def command(*arguments: str) -> subprocess.Popen[str]:
    """Run in a process of its own: for commands that become the program, or handle signals."""
    paths = os.pathsep.join(path for path in sys.path if path)
    return subprocess.Popen(
        [sys.executable, "-m", "aiotrace", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": paths},
    )


@pytest.mark.usefixtures("folder")
def test_record_ends_as_its_program_does() -> None:
    ends = {7: "raise SystemExit(7)", -signal.SIGTERM: "import os; os.kill(os.getpid(), 15)"}
    runs = {status: command("record", "-o", f"new{status}.dat", "-c", text) for status, text in ends.items()}
    for status, each in runs.items():
        each.communicate(timeout=60)
        assert each.returncode == status
    assert run(["report", "new7.dat"])[0] == 0
    assert run(["report", f"new{-signal.SIGTERM}.dat"])[0] == 0


def test_listen_ends_with_its_status(folder: Path) -> None:
    """An earlier collector, which was killed, has left a trace in each of the folders."""
    name = "before-1-0123456789abcdef0123456789abcdef.dat"
    for status in (0, 3):
        (folder / f"{status}").mkdir()
        (folder / f"{status}" / name).write_bytes(stored_files()["collected-cut.dat"])
        journal = stored_files()["collected-cut.dat.journal"]
        (folder / f"{status}" / f"{name}.journal").write_bytes(b"no journal" if status else journal)
    refused = {"tcp://0.0.0.0:0": 2, "unix:no/such/folder/socket": 1}  # others could reach it; it cannot be made
    started = {address: command("listen", address, "-o", f"new {number}") for number, address in enumerate(refused)}
    collectors = {status: command("listen", f"unix:socket {status}", "-o", f"{status}") for status in (0, 3)}
    for status, each in collectors.items():
        assert each.stderr is not None
        assert each.stderr.readline().startswith("aiotrace listen: unix:")
        each.terminate()
        each.communicate(timeout=60)
        assert each.returncode == status
    for address, each in started.items():
        each.communicate(timeout=60)
        assert each.returncode == refused[address], address
    assert sorted(os.listdir("0")) == [".aiotrace-listen", name]
    assert run(["report", f"0/{name}"])[::2] == (0, "")


# --- JSON -----------------------------------------------------------------------------------------

EVENT = ["timestamp_ns", "name", "cpu", "pid", "comm", "fields"]
TIMES = ["steps", "busy_ns", "waiting_ns", "idle_ns", "longest_ns", "longest_at_ns", "longest_from", "longest_to"]
JSON = {
    "report --json trace.dat": [EVENT],
    "report --json trace.dat threads.dat": [[*EVENT, "file"]],
    "report --json lossy.dat": [EVENT],
    "report --json --tasks trace.dat": [
        ["coro", "site", "tasks", *TIMES],
        ["task", "name", "coro", "site", "parent", "began_ns", "result", *TIMES],
    ],
    "report --json --latency trace.dat": [
        ["histogram", "count", "sum_ns", "longest_ns", "task", "name", "coro", "at_ns", "from", "to", "buckets"],
        ["buckets:", "from_ns", "to_ns", "count"],
    ],
    "report --json --stalls --threshold 10 trace.dat": [
        ["began_ns", "duration_ns", "task", "name", "coro", "site", "from", "to", "collected_ns", "inside", "watched"],
        ["inside:", "event", "count", "last"],
        ["watched:", "thread", "cause", "at", "cpu_ns", "delay_ns", "stack"],
    ],
    "report --json --cancellations trace.dat": [
        [
            "outcome", "count", "coro", "spawned_at", "requested_at", "caught_at", "swallowed_at", "overdue_at",
            "delivered_after_ns", "ended_after_ns", "ended", "last",
        ],
        ["last:", "task", "by", "message", "at_ns", "waited_at"],
    ],
    "report --json --lost-tasks trace.dat": [
        ["kind", "count", "coro", "site", "exception", "waits_at", "last"],
        ["last:", "task", "name", "parent", "began_ns", "seen_ns", "steps", "error"],
    ],
}  # fmt: skip
"""By command: the keys of each kind of line, in their order; and those of what is inside a line."""

LOST = {"name": "aiotrace:lost", "pid": 0, "fields": {"count": 45, "reason": "overrun or dropped"}}


def keys_in(value: dict[str, Any], name: str = "") -> list[list[str]]:
    found = [[f"{name}:", *value] if name else list(value)]
    for key, inner in value.items():
        for each in inner if isinstance(inner, list) else [inner]:
            if isinstance(each, dict) and key != "fields":  # those are the event's own
                found += keys_in(each, key)
    return found


@pytest.mark.parametrize("line", JSON)
def test_json_has_its_keys(line: str, folder: Path) -> None:
    place(folder, *line.split())
    found: list[list[str]] = []
    for row in run(line.split())[1].splitlines():
        found += (keys for keys in keys_in(json.loads(row)) if keys not in found)
    assert found == JSON[line]


def test_json_reports_losses_as_an_event(folder: Path) -> None:
    place(folder, "lossy.dat")
    rows = [json.loads(row) for row in run(["report", "--json", "lossy.dat"])[1].splitlines()]
    (lost,) = (row for row in rows if row["name"] == "aiotrace:lost")
    assert {key: lost[key] for key in LOST} == LOST
