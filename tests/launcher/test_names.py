"""Names of traces from a pattern: what each process's is, which one is free, and which ones a pattern can have made."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aiotrace import ConfigurationError
from aiotrace._launcher import names
from aiotrace._launcher.plan import child_path
from support.traces import page, store

STARTED = 1796094902_123456_789
"""2026-12-01 03:15:02.123456789 UTC."""

literals = st.text(st.characters(exclude_characters="/\0%", exclude_categories=["Cs"]), min_size=1, max_size=4)
placeholders = st.sampled_from(["%p", "%t", "%h", "%n", "%%"])
patterns = st.lists(placeholders | literals | st.sampled_from([".", ".dat"]), min_size=1, max_size=7).map("".join)
words = st.text(max_size=80) | st.sampled_from(["", "..", "web-1.example.com", "app", "a/b", "10", ".2"])
processes = st.fixed_dictionaries(
    {
        "pid": st.integers(1, 1 << 22),
        "is_main": st.booleans(),
        "realtime_ns": st.integers(0, 4102444800_000000000),
        "host": words,
        "program": words,
    }
)


def expand(pattern: str, host: str = "web-1", program: str = "app") -> str:
    return names.expand(pattern, pid=4615, realtime_ns=STARTED, host=host, program=program)


def name_of(pattern: str, *, is_main: bool) -> str:
    return names.name_of(pattern, pid=4615, is_main=is_main, realtime_ns=STARTED, host="web.net", program="app")


# --- patterns -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("pattern", "path"),
    [
        ("trace-%p.dat", "trace-4615.dat"),
        ("trace-%t.dat", "trace-20261201-031502.123456.dat"),
        ("%h.%n", "web-1.app"),
        ("/var/log/%n-%p-%t.dat", "/var/log/app-4615-20261201-031502.123456.dat"),
        ("100%%p.dat", "100%p.dat"),
        ("/data/50%/%%.dat", "/data/50%/%.dat"),
        ("/data/%p/%p", "/data/%p/4615"),
        ("plain.dat", "plain.dat"),
    ],
)
def test_placeholders_of_the_name_are_replaced(pattern: str, path: str) -> None:
    names.check_pattern(os.path.basename(pattern))
    assert expand(pattern) == path


def test_microseconds_have_six_digits() -> None:
    made = names.expand("%t", pid=1, realtime_ns=7_000_001_999, host="", program="")
    assert made == "19700101-000007.000001"


def test_a_start_time_is_in_utc_wherever_the_process_is(monkeypatch: pytest.MonkeyPatch) -> None:
    try:
        with monkeypatch.context() as patch:
            patch.setenv("TZ", "XYZ-5")
            time.tzset()
            assert expand("%t") == "20261201-031502.123456"
    finally:
        time.tzset()


@pytest.mark.parametrize(
    ("text", "cleaned"),
    [
        ("a/b:c d?e%p", "a_b_c_d_e_p"),
        ("größe\n", "gr__e_"),
        ("..", "_."),
        (".hidden", "_hidden"),
        ("x" * 65, "x" * 64),
        ("c++_1.0-rc", "c++_1.0-rc"),
    ],
)
def test_foreign_characters_of_hosts_and_programs_become_underscores(text: str, cleaned: str) -> None:
    assert expand("%n", program=text) == cleaned
    assert expand("%h", host=text) == cleaned


def test_a_host_and_a_program_without_a_name_have_one() -> None:
    assert expand("%h-%n", host="", program="") == "localhost-python"


@pytest.mark.parametrize(
    ("pattern", "text"),
    [
        ("trace-%q.dat", r"'trace-%q\.dat': unknown '%q' in the name of a trace; known are %p"),
        ("50%.dat", r"unknown '%\.'"),
        ("%P", "unknown '%P'"),
        ("%\n", r"unknown '%\\n'"),
        ("a%%%", "ends with a single %: write %% for a percent sign"),
        ("%", "ends with a single %"),
        ("nowhere-%h/a%p", "there is no folder 'nowhere-%h'; only the file's name is a pattern"),
    ],
)
def test_a_wrong_pattern_is_refused_by_name(pattern: str, text: str) -> None:
    with pytest.raises(ConfigurationError, match=text):
        names.check_pattern(pattern)


def test_a_folder_means_itself(tmp_path: Path) -> None:
    folder = tmp_path / "50%h"
    folder.mkdir()
    names.check_pattern(str(folder / "%p.dat"))
    assert expand(str(folder / "%p.dat")) == str(folder / "4615.dat")


def test_a_percent_sign_in_the_name_makes_a_pattern() -> None:
    assert names.is_pattern("/data/trace-%p.dat")
    assert names.is_pattern("50%")
    assert not names.is_pattern("/data/50%/trace.dat")
    assert not names.is_pattern("trace.dat")


@pytest.mark.parametrize(
    ("pattern", "is_in"), [("%p", True), ("%%%p", True), ("%%p", False), ("%t%n", False), ("%p/a", False)]
)
def test_a_pid_is_in_a_name_by_its_placeholder_alone(pattern: str, is_in: bool) -> None:
    assert names.with_pid(pattern) is is_in


# --- processes ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("pattern", "child"),
    [
        ("/d/%p-%n.dat", "/d/4615-app.dat"),
        ("/d/%t.dat", "/d/20261201-031502.123456.4615.dat"),
        ("/d/trace-%t", "/d/trace-20261201-031502.123456.4615"),
        ("/d/%h", "/d/web.net.4615"),
        ("/d.x/%n.tar.dat", "/d.x/app.tar.4615.dat"),
    ],
)
def test_the_name_of_a_child_has_its_pid_once(pattern: str, child: str) -> None:
    assert name_of(pattern, is_main=False) == child
    assert "4615" not in name_of(pattern.replace("%p", "%%"), is_main=True)


@pytest.mark.parametrize("path", ["trace.dat", "/a.b/trace", "/a/.trace", "x.tar.dat"])
def test_a_pid_is_added_where_plans_add_it(path: str) -> None:
    assert name_of(path, is_main=False) == child_path(path, 4615)


@given(pattern=patterns, process=processes, number=st.integers(1, 1 << 40))
def test_a_pattern_accepts_all_names_that_it_makes(pattern: str, process: dict[str, object], number: int) -> None:
    made = names.name_of(pattern, **process)  # type: ignore[arg-type]
    assert "/" not in made
    assert made not in (".", "..") or pattern in (".", "..")
    accepts = names.name_filter(pattern, host=str(process["host"]), program=str(process["program"]))
    assert accepts(made)
    assert accepts(names._with_number(made, number) if number > 1 else made)


@pytest.mark.parametrize(
    ("pattern", "name"),
    [
        ("trace-%p.dat", "trace-.dat"),
        ("trace-%p.dat", "trace-4615.dat.journal"),
        ("trace-%p.dat", "trace-4615.dat.2"),
        ("trace-%p.dat", "trace-4615.1.dat"),
        ("trace-%p.dat", "trace-4615.02.dat"),
        ("trace-%p.dat", "trace-4615.2.3.dat"),
        ("trace-%p.dat", "trace-4615-20261201-031502-stall.dat"),
        ("trace-%p.dat", "trace-4615xdat"),
        ("trace-%p.dat", "trace-٣.dat"),
        ("trace-%p.dat", "trace-4615.dat\n"),
        ("%t.dat", "20261201-031502.dat"),
        ("%t.dat", "20261201-031502.123456.2.3.4.dat"),
        ("%n.dat", "other.dat"),
        ("%h.dat", "webxnet.dat"),
        ("a+%%.dat", "aa%.dat"),
    ],
)
def test_a_pattern_refuses_what_it_cannot_have_made(pattern: str, name: str) -> None:
    assert not names.name_filter(pattern, host="web.net", program="app")(name)


# --- numbers ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "second", "third"),
    [
        ("trace-1.dat", "trace-1.2.dat", "trace-1.3.dat"),
        ("trace", "trace.2", "trace.3"),
        ("20261201-031502.123456", "20261201-031502.123456.2", "20261201-031502.123456.3"),
        (".dat", ".dat.2", ".dat.3"),
    ],
)
def test_a_name_in_use_gets_a_number(tmp_path: Path, name: str, second: str, third: str) -> None:
    path = str(tmp_path / name)
    assert names.free_name(path) == path
    store(Path(path), [page([1])])
    assert names.free_name(path) == str(tmp_path / second)
    store(tmp_path / second, [page([1])], finish=False)
    assert names.free_name(path) == str(tmp_path / third)


@pytest.mark.parametrize("end", ["", ".journal", ".cpu7"])
def test_a_name_is_in_use_by_any_of_its_files(tmp_path: Path, end: str) -> None:
    path = str(tmp_path / "t.dat")
    os.symlink("nowhere", path + end)
    assert names.free_name(path) == str(tmp_path / "t.2.dat")


def test_a_name_without_a_folder_is_free(tmp_path: Path) -> None:
    path = str(tmp_path / "missing" / "t.dat")
    assert names.free_name(path) == path


@given(st.lists(st.tuples(st.integers(1, 6), st.sampled_from(["", ".journal", ".cpu0", ".cpu12"])), max_size=9))
def test_a_free_name_is_never_in_use(used: list[tuple[int, str]]) -> None:
    with TemporaryDirectory() as folder:
        path = os.path.join(folder, "t.dat")
        there = {(f"{folder}/t.{number}.dat" if number > 1 else path) + end for number, end in used}
        for each in there:
            Path(each).touch()
        free = names.free_name(path)
        assert not [each for each in there if each == free or each.startswith(free + ".")]
        assert names.name_filter("%n.dat", host="", program="t")(os.path.basename(free))


# --- programs -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "name"),
    [
        (["/srv/app.py", "-m", "x"], "app"),
        (["/srv/app/"], "app"),
        (["-m", "uvicorn", "app:app"], "uvicorn"),
        (["-m", "package.module"], "package.module"),
        (["-Im", "package"], "package"),
        (["-mpackage", "x.py"], "package"),
        (["-X", "dev", "-Werror", "-bW", "error", "app.py"], "app"),
        (["--check-hash-based-pycs", "always", "app.py"], "app"),
        (["--some-option", "app.py"], "app"),
        (["-u", "-c", "print()", "x.py"], "python"),
        (["-cprint()", "x.py"], "python"),
        (["-", "x.py"], "python"),
        ([], "python"),
        (["-m"], "python"),
        (["run.sh"], "run.sh"),
    ],
)
def test_a_program_is_named_by_its_file_or_module(arguments: list[str], name: str) -> None:
    assert names.program_name([sys.executable, *arguments]) == name
    assert names.program_name(["/usr/bin/python3.13t", *arguments]) == name


def test_a_script_is_named_by_itself(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert names.program_name(["/venv/bin/uvicorn", "-m", "app.py"]) == "uvicorn"
    monkeypatch.chdir(tmp_path)
    assert names.program_name([sys.executable, "."]) == tmp_path.name
