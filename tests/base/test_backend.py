"""Which implementation runs, and what is said where it is not the C module."""

from __future__ import annotations

import subprocess
import sys

import pytest

from aiotrace._base import backend
from support.programs import environment

pytestmark = pytest.mark.pure_too

REFUSED = """
import sys
import aiotrace
try:
    import _interpreters as interpreters
except ImportError:
    import _xxsubinterpreters as interpreters
program = "from aiotrace._base import backend; print(backend.BACKEND, backend.WHY_PYTHON, flush=True)"
interpreters.run_string(interpreters.create(), f"import sys; sys.path[:] = {sys.path!r}; {program}")
"""


@pytest.fixture(autouse=True)
def _nothing_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AIOTRACE_PURE", raising=False)
    monkeypatch.delenv("AIOTRACE_REQUIRE_C", raising=False)


def test_pure_python_runs_uncompiled_and_the_folder_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "aiotrace._c", None)  # its import raises ModuleNotFoundError
    module, why = backend._load()
    assert module is None
    assert "not compiled in /" in why and "C compiler" in why
    monkeypatch.setenv("AIOTRACE_REQUIRE_C", "1")
    with pytest.raises(ImportError, match=r"AIOTRACE_REQUIRE_C=1, but .* not compiled"):
        backend._load()


def test_free_threaded_python_uses_pure_python(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "abiflags", "t")
    module, why = backend._load()
    assert module is None
    assert "needs the GIL" in why
    monkeypatch.setenv("AIOTRACE_REQUIRE_C", "1")
    with pytest.raises(ImportError, match="free-threaded"):
        backend._load()


def test_pure_python_is_used_on_request_despite_other_requirements(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AIOTRACE_REQUIRE_C", "1")
    monkeypatch.setenv("AIOTRACE_PURE", "1")
    assert backend._load() == (None, "AIOTRACE_PURE=1")


@pytest.mark.skipif(backend.c_module is None, reason="NOT RUN: the C module refuses sub-interpreters")
def test_sub_interpreter_uses_pure_python() -> None:
    command = [sys.executable, "-W", "ignore", "-c", REFUSED]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, env=environment())
    assert done.stdout.startswith("python no C module: "), done
    assert "interpreter" in done.stdout
