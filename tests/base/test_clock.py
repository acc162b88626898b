"""Clocks: nanoseconds of CLOCK_MONOTONIC by either name, and an anchor that ties them to the time of day."""

from __future__ import annotations

import builtins
import shutil
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from aiotrace import ConfigurationError
from aiotrace._base import clock as _clock
from aiotrace._base.backend import c_module
from aiotrace._base.clock import get_clock, take_anchor
from support.programs import environment

has_tsc = c_module is not None and c_module.tsc_calibrate(_clock.TSC_CALIBRATION)


@pytest.mark.pure_too
@pytest.mark.parametrize(
    "name", ["mono", pytest.param("tsc", marks=pytest.mark.skipif(not has_tsc, reason="NOT RUN: no C or no TSC"))]
)
def test_a_clock_gives_nanoseconds_of_the_monotonic_clock(name: str) -> None:
    clock = get_clock(name)
    before, now, after = time.monotonic_ns(), clock(), time.monotonic_ns()
    assert before <= now <= after
    assert getattr(clock, "aiotrace_tsc", False) is (name == "tsc")


@pytest.mark.pure_too
@pytest.mark.parametrize("name", ["", "MONO", "wall"])
def test_a_clock_that_is_not_known_is_named_with_those_that_are(name: str) -> None:
    with pytest.raises(ConfigurationError, match=f"clock='{name}' is unknown; known: 'mono', 'tsc'"):
        get_clock(name)


@pytest.mark.pure_too
@pytest.mark.parametrize(
    ("module", "reason"),
    [(None, "needs the C module"), (SimpleNamespace(tsc_calibrate=lambda _: False), "no counter of constant rate")],
)
def test_unusable_counter_is_an_error_that_suggests_mono(
    module: Any, reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_clock, "c_module", module)
    with pytest.raises(ConfigurationError, match=f"clock='tsc'.*{reason}.*clock='mono'"):
        get_clock("tsc")
    assert get_clock("mono") is time.monotonic_ns


@pytest.mark.pure_too
def test_an_anchor_is_the_closest_of_its_tries(monkeypatch: pytest.MonkeyPatch) -> None:
    """The middle of the two readings around the wall clock's: the narrowest pair is the surest."""
    readings = iter([1000, 9000, 20_000, 20_100, 30_000, 30_500])
    walls = iter([1, 2, 3])
    monkeypatch.setattr(time, "time_ns", lambda: next(walls))
    anchor = take_anchor(lambda: next(readings))
    assert (anchor.monotonic_ns, anchor.realtime_ns) == (20_050, 2)
    assert next(readings, None) is None, "three tries"


@pytest.mark.pure_too
def test_an_anchor_ties_the_clock_to_the_time_of_day_and_the_boot() -> None:
    before = time.time_ns() - time.monotonic_ns()
    anchor = take_anchor(time.monotonic_ns)
    # Between the two readings of either difference the machine may pause or step its clock: an hour is no accident.
    assert abs(anchor.realtime_ns - anchor.monotonic_ns - before) < 3600 * 10**9
    with open("/proc/sys/kernel/random/boot_id", encoding="ascii") as file:
        assert anchor.boot_id == file.read().strip()


@pytest.mark.pure_too
def test_boot_id_is_empty_on_a_system_without_one(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise FileNotFoundError

    monkeypatch.setattr(builtins, "open", refuse)
    assert take_anchor(time.monotonic_ns).boot_id == ""


OTHER_CLOCK = """
#define _GNU_SOURCE
#include <dlfcn.h>
#include <time.h>
int clock_gettime(clockid_t id, struct timespec *now) {
    int (*asked)(clockid_t, struct timespec *) = dlsym(RTLD_NEXT, "clock_gettime");
    int failed = asked(id, now);
    now->tv_sec += 1000000000;
    return failed;
}
"""
ASKS_BOTH = """
import sys, time
from aiotrace import _c
page = memoryview(bytearray(4096))
_c.Cursor(time.monotonic_ns).enter(page)
print(int.from_bytes(page[:8], sys.byteorder), time.monotonic_ns())
"""


@pytest.mark.skipif(c_module is None or shutil.which("cc") is None, reason="NOT RUN: no C")
def test_a_clock_in_the_place_of_libc_s_is_that_of_the_events_too(tmp_path: Path) -> None:
    (tmp_path / "other.c").write_text(OTHER_CLOCK)
    subprocess.run(["cc", "-shared", "-fPIC", "-o", "other.so", "other.c", "-ldl"], cwd=tmp_path, check=True)
    preloaded = environment(LD_PRELOAD=str(tmp_path / "other.so"))
    done = subprocess.run([sys.executable, "-c", ASKS_BOTH], env=preloaded, capture_output=True, text=True, check=True)
    event, python = map(int, done.stdout.split())
    assert 0 <= python - event < 10**18, "a second differs from a thousand million seconds"
    assert python > 10**18
