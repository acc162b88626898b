"""CPython's own tests of asyncio, without tracing and with it: the set of results must be the same.

    python tests/long/asyncio_suite.py [MODULE ...]

Takes a minute or two, so it is no test of pytest's: `./dev asyncio-suite` runs it on each Python that is found. Needs
CPython's package `test`, which some distributions leave out.
"""

from __future__ import annotations

import json
import subprocess
import sys
import unittest
from collections import Counter
from typing import Any

MODULES = ["test_base_events", "test_events", "test_tasks"]
if sys.version_info >= (3, 12):
    MODULES.append("test_eager_task_factory")


class _Outcomes(unittest.TestResult):
    """What became of each test, by its name."""

    def __init__(self) -> None:
        super().__init__()
        self.outcomes: dict[str, str] = {}

    def addSuccess(self, test: Any) -> None:
        self.outcomes.setdefault(str(test), "passed")

    def addError(self, test: Any, error: Any) -> None:
        super().addError(test, error)
        self.outcomes[str(test)] = "error"

    def addFailure(self, test: Any, error: Any) -> None:
        super().addFailure(test, error)
        self.outcomes[str(test)] = "failed"

    def addSkip(self, test: Any, reason: str) -> None:
        self.outcomes[str(test)] = "skipped"

    def addExpectedFailure(self, test: Any, error: Any) -> None:
        self.outcomes[str(test)] = "failed as expected"

    def addSubTest(self, test: Any, subtest: Any, error: Any) -> None:
        if error is not None:
            self.outcomes[f"{test} {subtest}"] = "failed"


def _run(modules: list[str]) -> dict[str, str]:
    result = _Outcomes()
    unittest.defaultTestLoader.loadTestsFromNames([f"test.test_asyncio.{name}" for name in modules]).run(result)
    return result.outcomes


def _run_traced(modules: list[str]) -> dict[str, str]:
    import asyncio

    import aiotrace

    with aiotrace.recording(overrun="drop_oldest") as recording:
        recording.enable("task:*")
        recording.enable("loop:*")
        assert asyncio.events.Handle is not asyncio.Handle
        outcomes = _run(modules)
    assert recording.statistics().events_written > 10_000
    return outcomes


def _outcomes(kind: str, modules: list[str]) -> dict[str, str]:
    """In a process of its own: what tests leave behind is not handed on."""
    command = [sys.executable, __file__, f"--{kind}", *modules]
    output = subprocess.run(command, check=True, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True).stdout
    outcomes: dict[str, str] = json.loads(output.splitlines()[-1])
    return outcomes


def main() -> int:
    arguments = sys.argv[1:]
    if arguments[:1] in (["--plain"], ["--traced"]):
        run = _run_traced if arguments[0] == "--traced" else _run
        print(json.dumps(run(arguments[1:])))
        return 0
    modules = arguments or MODULES
    plain, traced = _outcomes("plain", modules), _outcomes("traced", modules)
    different = sorted(name for name in plain.keys() | traced.keys() if plain.get(name) != traced.get(name))
    for name in different:
        print(f"{name}: {plain.get(name, 'not run')} without tracing, {traced.get(name, 'not run')} with it")
    counts = ", ".join(f"{count} {outcome}" for outcome, count in sorted(Counter(traced.values()).items()))
    print(f"Python {sys.version.split()[0]}: {len(traced)} tests, {counts}; {len(different)} differ from untraced")
    return 1 if different or not traced else 0


if __name__ == "__main__":
    sys.exit(main())
