"""The command line as a user runs it: output, exit status, and what stderr says."""

from __future__ import annotations

import json
import os
import pty
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

import aiotrace
from aiotrace._base.backend import WHY_PYTHON
from aiotrace._base.clock import Anchor
from aiotrace._cli import main
from aiotrace._cli._lines_out import to_json
from aiotrace._store.store import TraceStore
from aiotrace.abc import Ledger, WriterLedger
from aiotrace.decode import open_trace
from support import DATA
from support.programs import environment
from support.traces import INFO, definitions, numbers, page, store

Capture = pytest.CaptureFixture[str]


@pytest.fixture
def trace(tmp_path: Path) -> str:
    path = tmp_path / "t.dat"
    store(path, [page([1, 2, 3]), page([4], writer=2, start=1005)])
    return str(path)


@pytest.fixture
def lossy(tmp_path: Path) -> str:
    path = tmp_path / "lossy.dat"
    store(path, [page([1]), page([2], sequence=1, start=2000, lost=5)], Ledger((WriterLedger(0, 9, 7, 0, 0, 2),)))
    return str(path)


def lines(capture: Capture) -> list[str]:
    return capture.readouterr().out.splitlines()


def test_report_prints_a_line_for_each_event(trace: str, capsys: Capture) -> None:
    assert main(["report", trace]) == 0
    out = capsys.readouterr()
    assert [line.split("n=")[1].split()[0] for line in out.out.splitlines()] == ["1", "4", "2", "3"]
    assert out.err == ""


@pytest.mark.parametrize("command", ["report", "stat"])
def test_default_file_is_trace_dat(command: str, trace: str, monkeypatch: pytest.MonkeyPatch, capsys: Capture) -> None:
    os.rename(trace, os.path.join(os.path.dirname(trace), "trace.dat"))
    monkeypatch.chdir(os.path.dirname(trace))
    assert main([command]) == 0
    assert main([command, "trace.dat"]) == 0
    out = lines(capsys)
    assert out[: len(out) // 2] == out[len(out) // 2 :] != []


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (["-e", "test:*", "-F", "n > 1 && pid > 0 && comm != 'x' && common_pid && delay_ns == 0"], []),
        (["-e", "all"], []),
        (["-e", "tset:*", "-e", "test:*"], ["-e 'tset:*' matches no event; there are {all}"]),
        (["-e", "ftrace:kernel.stack", "-e", "all"], []),
        (["-F", "nn > 1 || n"], ["-F 'nn > 1 || n': no event has a field nn"]),
    ],
)
def test_report_names_requested_events_that_are_missing(
    trace: str, options: list[str], told: list[str], capsys: Capture
) -> None:
    assert main(["report", trace, *options]) == 0
    err = capsys.readouterr().err.splitlines()
    main(["list", trace])
    names = ", ".join(line.split()[0] for line in lines(capsys))
    assert err == [f"aiotrace report: {line.format(all=names)}" for line in told]


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (["-e", "test:*"], [1, 4, 2, 3]),
        (["-e", "nothing"], []),
        (["-e", "nothing", "-e", "all"], [1, 4, 2, 3]),
        (["-F", "n > 1 && n < 4"], [2, 3]),
        (["--cpu", "2"], [4]),
        (["--cpu", "0-1"], [1, 2, 3]),
        (["--pid", "77"], [1, 4, 2, 3]),
        (["--pid", "1,2"], []),
        (["--from", "0.000001005"], [4, 2, 3]),
        (["--to", "0.000001005"], [1, 4]),
        (["--raw"], [1, 4, 2, 3]),
        (["--follow"], [1, 4, 2, 3]),
    ],
)
def test_report_chooses(trace: str, options: list[str], expected: list[int], capsys: Capture) -> None:
    assert main(["report", trace, *options]) == 0
    assert [int(line.split("n=")[1].split()[0]) for line in lines(capsys)] == expected


def test_report_as_json_is_a_line_with_everything(trace: str, capsys: Capture) -> None:
    assert main(["report", "--json", trace]) == 0
    first = json.loads(lines(capsys)[0])
    assert first == {
        "timestamp_ns": 1000,
        "name": "test:all",
        "cpu": 0,
        "pid": 77,
        "comm": "a thread whose name is long",
        "fields": {"n": 1, "f": 1 / 3, "s": "x", "y": "", "sym": 'a "symbol"\n', "b": True, "k": 1},
    }


def test_json_has_no_number_that_json_does_not_have(tmp_path: Path) -> None:
    store(tmp_path / "t", [page([1])])
    with open_trace(tmp_path / "t") as trace:
        (event,) = trace
    event.fields.update(f=float("nan"), s="\udc80", v=(float("inf"), b"\x01"))
    fields = json.loads(to_json(event))["fields"]
    assert (fields["f"], fields["v"], fields["s"]) == ("nan", ["inf", "01"], "\udc80")


def test_report_merges_files_by_time_and_names_them(trace: str, lossy: str, capsys: Capture) -> None:
    assert main(["report", trace, lossy]) == 3
    out = lines(capsys)
    assert [line.split(":")[0] for line in out if "n=" in line] == [
        "t.dat", "lossy.dat", "t.dat", "t.dat", "t.dat", "lossy.dat",
    ]  # fmt: skip


def test_files_of_different_clocks_are_not_merged(trace: str, capsys: Capture) -> None:
    assert main(["report", trace, str(DATA / "sched-v6.dat")]) in (0, 2)
    with open_trace(DATA / "sched-v6.dat") as kernels:
        clock = kernels.clock
    if clock != "mono":
        assert "different clocks" in capsys.readouterr().err


@pytest.mark.parametrize(("boots", "status"), [(("a", "b"), 2), (("a", "a"), 0), (("a", ""), 0)])
def test_times_of_different_boots_are_not_merged(
    tmp_path: Path, boots: tuple[str, str], status: int, capsys: Capture
) -> None:
    paths = [str(tmp_path / f"{number}.dat") for number in range(2)]
    for path, boot in zip(paths, boots, strict=True):
        made = TraceStore(path, replace(INFO, anchor=Anchor(5, 6, boot)))
        made.write([page([1])], definitions())
        made.end(definitions(), Ledger(()))
        list(made.finish())
    assert main(["report", *paths]) == status
    out = capsys.readouterr()
    assert len(out.out.splitlines()) == (2 if status == 0 else 0)
    if status:
        assert f"times since different boots cannot be merged: {paths[0]}: boot a, {paths[1]}: boot b" in out.err


def test_losses_appear_in_their_place_and_give_exit_status_3(lossy: str, capsys: Capture) -> None:
    assert main(["report", lossy]) == 3
    out = capsys.readouterr()
    kinds = ["loss" if "EVENTS DROPPED" in line else "event" for line in out.out.splitlines()]
    assert kinds == ["event", "loss", "event", "loss"]
    assert "CPU:0 [5 EVENTS DROPPED]" in out.out
    assert out.err == f"aiotrace report: {lossy}: events lost: 7 (CPU 0: 7)\n"


def test_damage_is_reported_with_exit_status_3(trace: str, capsys: Capture) -> None:
    raw = bytearray(Path(trace).read_bytes())
    raw[4096 + 40] ^= 1
    Path(trace).write_bytes(raw)
    assert main(["report", trace]) == 3
    assert "damaged in 1 places, the first at offset 4096" in capsys.readouterr().err


def test_stat_counts_events_and_losses(lossy: str, capsys: Capture) -> None:
    assert main(["stat", lossy]) == 3
    out = capsys.readouterr()
    assert "events   2" in out.out
    writer = next(line.split() for line in out.out.splitlines() if line.startswith("0 "))
    assert [writer[1], writer[2], writer[5]] == ["2", "2", "7"]
    assert any(line.startswith("test:all") and line.split()[1] == "2" for line in out.out.splitlines())
    assert "events lost: 7" in out.err


def test_stat_of_a_whole_trace_is_status_0(trace: str, capsys: Capture) -> None:
    assert main(["stat", trace]) == 0
    assert "clock    mono" in capsys.readouterr().out


def test_version_is_printed(capsys: Capture) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["--version"])
    assert ended.value.code == 0
    assert capsys.readouterr().out == f"aiotrace {aiotrace.__version__}\n"


@pytest.mark.parametrize("command", ["report", "stat"])
def test_unfinished_trace_is_reported_as_such(tmp_path: Path, command: str, capsys: Capture) -> None:
    path = str(tmp_path / "t.dat")
    growing = TraceStore(path, INFO)
    growing.write([page([1])], definitions())
    growing.close()
    assert main([command, path]) == 0
    assert capsys.readouterr().err == (
        f"aiotrace {command}: {path}: not finished, read as far as it goes; if its program has ended, complete it "
        f"with: aiotrace restore {path}\n"
    )


def test_list_shows_the_events_of_a_file(trace: str, capsys: Capture) -> None:
    assert main(["list", trace]) == 0
    assert any(line.startswith("test:all  [2000]  s64 n, double f") for line in lines(capsys))


@pytest.mark.parametrize("command", ["report", "stat", "list"])
def test_closed_stdout_is_not_an_error(trace: str, command: str) -> None:
    words = [sys.executable, "-c", "import os, sys; os.close(1); os.execv(sys.executable, sys.argv[1:])"]
    done = subprocess.run(
        [*words, sys.executable, "-m", "aiotrace", command, trace], capture_output=True, text=True, timeout=60
    )
    assert (done.returncode, done.stderr) == (0, "")


def test_list_shows_what_is_installed_and_versions(capsys: Capture) -> None:
    assert main(["list"]) == 0
    installed = lines(capsys)
    assert installed[0] == "sinks:"
    assert any(line.split() == ["task", "aiotrace._tracers.task"] for line in installed)
    assert main(["list", "--versions"]) == 0
    first = lines(capsys)[0]
    assert first.startswith(f"aiotrace {aiotrace.__version__} ({aiotrace.__backend__}"), first
    assert WHY_PYTHON in first, "pure Python gives its reason"


def test_restore_makes_a_complete_trace(tmp_path: Path, capsys: Capture) -> None:
    path = tmp_path / "t.dat"
    store(path, [page([1]), page([2], writer=1)], finish=False)
    assert main(["restore", str(path)]) == 0
    assert lines(capsys) == [f"{path}: 2 events on 2 pages"]
    with open_trace(path) as trace:
        assert trace.complete
        assert numbers(list(trace)) == [1, 2]


def test_restore_reports_damaged_pages(tmp_path: Path, capsys: Capture) -> None:
    path = tmp_path / "t.dat"
    store(path, [page([1, 2]), page([3], sequence=1)], finish=False)
    raw = bytearray(path.read_bytes())
    raw[4096 + 40] ^= 1
    path.write_bytes(raw)
    assert main(["restore", str(path)]) == 3
    assert "page 0 of writer 0 is damaged: 2 events lost" in capsys.readouterr().err


def test_a_trace_that_grows_is_not_restored(tmp_path: Path, capsys: Capture) -> None:
    growing = TraceStore(str(tmp_path / "t"), INFO)
    growing.write([page([1])], definitions())
    assert main(["restore", str(tmp_path / "t")]) == 1
    assert "aiotrace restore:" in capsys.readouterr().err
    growing.close()


@pytest.mark.parametrize(
    ("arguments", "status", "message"),
    [
        (["report", "/nonexistent"], 1, "No such file"),
        (["report", __file__], 1, f'{__file__}, offset 0: not a trace.dat: it begins with b\'"""The com\''),
        (
            ["report", os.devnull],
            1,
            f"{os.devnull}: not a regular file, and a trace is not read front to back: copy it into a file",
        ),
        (["list", os.path.dirname(__file__)], 1, f"{os.path.dirname(__file__)}: Is a directory"),
        (["stat", "/nonexistent"], 1, "aiotrace stat: /nonexistent: No such file"),
        (["restore", "/nonexistent"], 1, "No such file"),
        (["snapshot", "4194305"], 1, "aiotrace snapshot: there is no process 4194305"),  # above any that the kernel has
        (["restore", __file__], 1, f"{__file__}: there is no journal beside it, so there is nothing to restore"),
    ],
)
def test_unreadable_file_gives_exit_status_1(arguments: list[str], status: int, message: str, capsys: Capture) -> None:
    assert main(arguments) == status
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["report", "x", "-F", "n >"], "should be at 3"),
        (["report", "x", "--from", "soon"], "'soon' should be seconds"),
        (["report", "x", "--cpu", "1-"], "'1-' should be numbers"),
        (["report", "x", "--pid", "0-99999999"], "too many numbers"),
        (["report", "x", "--json", "--raw"], "not allowed with"),
        ([], "required: COMMAND"),
    ],
)
def test_wrong_arguments_are_status_2(arguments: list[str], message: str, capsys: Capture) -> None:
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    assert caught.value.code == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize("command", ["report", "stat", "list", "restore"])
def test_help_has_examples(command: str, capsys: Capture) -> None:
    with pytest.raises(SystemExit) as caught:
        main([command, "--help"])
    assert caught.value.code == 0
    assert f"aiotrace {command} " in capsys.readouterr().out.split("examples:")[1]


def run(*arguments: str, **options: object) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, "-W", "error", "-m", "aiotrace", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=environment(),
        **options,  # type: ignore[call-overload]
    )


def test_closed_pipe_is_not_an_error(tmp_path: Path) -> None:
    path = tmp_path / "t.dat"
    store(path, [page(range(30), sequence=n, start=n * 1000) for n in range(100)])
    with run("report", str(path)) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.readline()
        process.stdout.close()
        assert process.stderr.read() == b""
        assert process.wait() == 0


def test_empty_file_is_reported_as_empty(tmp_path: Path, capsys: Capture) -> None:
    (tmp_path / "t").touch()
    assert main(["report", str(tmp_path / "t")]) == 1
    assert f"{tmp_path}/t, offset 0: not a trace.dat: it is empty" in capsys.readouterr().err


def read_all(terminal: int) -> str:
    """What was written to the other end, which may come here in parts: the kernel passes it on by and by."""
    os.set_blocking(terminal, False)
    shown = b""
    try:
        while True:
            shown += os.read(terminal, 1 << 16)
    except BlockingIOError:  # the kernel looks for what is under way before it says so
        return shown.decode()


def test_a_terminal_shows_how_far_a_long_report_is_and_then_nothing_of_it(tmp_path: Path) -> None:
    path = tmp_path / "t.dat"
    store(path, [page(range(30), sequence=n, start=n * 1000) for n in range(100)])
    program = """
import sys
from aiotrace._cli import _progress, main
_progress.SIZE, _progress.INTERVAL = 1, 0
sys.exit(main(["report", sys.argv[1]]))
"""
    terminal, end = pty.openpty()
    with open(tmp_path / "out", "wb") as out:
        subprocess.run([sys.executable, "-c", program, path], stdout=out, stderr=end, check=True, env=environment())
    shown = read_all(terminal)  # before the last end is closed: what it held would be gone
    os.close(end)
    os.close(terminal)
    assert re.fullmatch(r"(\r *\d+ % of 0 MiB)+\r\x1b\[K", shown), shown
    assert (tmp_path / "out").read_bytes().count(b"\n") == 3000


def test_follow_shows_events_as_they_come(tmp_path: Path) -> None:
    growing = TraceStore(str(tmp_path / "t"), INFO)
    growing.write([page([1])], definitions())
    with run("report", "--follow", str(tmp_path / "t")) as process:
        assert process.stdout is not None
        assert b"n=1 " in process.stdout.readline()
        growing.write([page([2], sequence=1, start=2000)], definitions())
        assert b"n=2 " in process.stdout.readline()
        growing.end(definitions(), Ledger(()))
        assert process.stdout.readline() == b""
        assert process.wait() == 0
    growing.close()
