"""What every test file shares: backends, hypothesis profiles, workers, and the list of tests that could not run.

A test that needs something that this machine lacks skips with a reason that begins with "NOT RUN"; all of them are
listed at the end, with what would make them run: they did not pass.
"""

from __future__ import annotations

import asyncio
import gc
import os
import shutil
import signal
import sys
from typing import Any

import pytest
from hypothesis import HealthCheck, settings

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    # Started in the background of a script: programs that tests start would ignore an interrupt, too.
    signal.signal(signal.SIGINT, signal.default_int_handler)

# The quick tests are the same in each run of one tree: a run that fails says something of the change before it. What
# chance may find is looked for by `./dev test --long`. No health check asks the clock: a machine may be slow.
_PATIENT: Any = {"deadline": None, "print_blob": True, "suppress_health_check": [HealthCheck.too_slow]}
settings.register_profile("quick", max_examples=100, derandomize=True, **_PATIENT)
settings.register_profile("long", max_examples=5000, **_PATIENT)
settings.load_profile("quick")  # `./dev test --long` passes --hypothesis-profile=long, which is loaded after this

SYSTEM_TOOLS = {"trace-cmd": "trace-cmd", "fiu-run": "fiu-utils"}
"""Programs that tests start, and the Debian package of each."""


def _eager_loop() -> asyncio.AbstractEventLoop:
    loop = asyncio.new_event_loop()
    loop.set_task_factory(asyncio.eager_task_factory)  # type: ignore[attr-defined,unused-ignore]  # 3.12 and newer
    return loop


BACKENDS = [
    pytest.param(("asyncio", {"use_uvloop": False}), id="asyncio"),
    pytest.param(("asyncio", {"use_uvloop": True}), id="uvloop"),
    pytest.param("trio", id="trio"),
]
if sys.version_info >= (3, 12):
    BACKENDS.append(pytest.param(("asyncio", {"loop_factory": _eager_loop}), id="eager"))


@pytest.fixture(scope="module", params=BACKENDS)
def anyio_backend(request: pytest.FixtureRequest) -> Any:
    """Each `@pytest.mark.anyio` test runs once on each of these."""
    return request.param


def _need_tool(name: str) -> str:
    path = shutil.which(name)
    if path is None:
        pytest.skip(f"NOT RUN: {name} is missing: apt-get install {SYSTEM_TOOLS[name]}")
    return path


@pytest.fixture(scope="session")
def trace_cmd() -> str:
    """The path of the real trace-cmd."""
    return _need_tool("trace-cmd")


@pytest.fixture(scope="session")
def fiu_run() -> str:
    """The path of fiu-run, which makes system calls fail."""
    return _need_tool("fiu-run")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--pure-python", action="store_true", help="only tests marked pure_too, on the pure-Python implementation"
    )


@pytest.hookimpl(optionalhook=True)  # -p no:xdist
def pytest_xdist_auto_num_workers(config: pytest.Config) -> int:
    """For `-n auto`, which `./dev test` passes: no workers for a few tests, as each worker first collects all.

    Tests often wait for a program, so a worker more than there are processors keeps all of them busy.
    """
    selects = config.option.file_or_dir or config.option.keyword or config.option.markexpr != "not long"
    if selects or config.getoption("lf", False) or config.option.trace or config.option.capture == "no":
        return 0
    return min(8, len(os.sched_getaffinity(0)) + 1)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if config.getoption("pure_python"):
        deselected = [item for item in items if not item.get_closest_marker("pure_too")]
        config.hook.pytest_deselected(items=deselected)
        items[:] = [item for item in items if item.get_closest_marker("pure_too")]


def pytest_collection_finish() -> None:
    """What is there before the first test stays: each of the many collections that tests ask for would look at it."""
    gc.collect()
    gc.freeze()


def pytest_runtest_setup(item: pytest.Item) -> None:
    if item.get_closest_marker("root") and os.geteuid() != 0:
        pytest.skip("NOT RUN: needs to be root: sudo ./dev test -m root")


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    not_run: dict[str, list[str]] = {}
    for report in terminalreporter.stats.get("skipped", []):
        reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
        reason = reason.removeprefix("Skipped: ")
        if reason.startswith("NOT RUN"):
            not_run.setdefault(reason, []).append(report.nodeid)
    if not_run:
        terminalreporter.section("NOT RUN", yellow=True)
    for reason, tests in sorted(not_run.items()):
        terminalreporter.write_line(f"{reason} ({len(tests)} tests)")
        for test in tests:
            terminalreporter.write_line(f"    {test}")
