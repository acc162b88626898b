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


def test_where_nothing_was_compiled_the_twin_runs_and_the_folder_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "aiotrace._c", None)  # its import raises ModuleNotFoundError
    module, why = backend._load()
    assert module is None
    assert "not compiled in /" in why and "C compiler" in why
    monkeypatch.setenv("AIOTRACE_REQUIRE_C", "1")
    with pytest.raises(ImportError, match=r"AIOTRACE_REQUIRE_C=1, but .* not compiled"):
        backend._load()


def test_a_free_threaded_python_has_the_twin(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "abiflags", "t")
    module, why = backend._load()
    assert module is None
    assert "needs the GIL" in why
    monkeypatch.setenv("AIOTRACE_REQUIRE_C", "1")
    with pytest.raises(ImportError, match="free-threaded"):
        backend._load()


def test_who_asks_for_the_twin_gets_it_whatever_else_was_required(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AIOTRACE_REQUIRE_C", "1")
    monkeypatch.setenv("AIOTRACE_PURE", "1")
    assert backend._load() == (None, "AIOTRACE_PURE=1")


@pytest.mark.skipif(backend.c_module is None, reason="NOT RUN: the C module refuses sub-interpreters")
def test_a_sub_interpreter_has_the_twin() -> None:
    command = [sys.executable, "-W", "ignore", "-c", REFUSED]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, env=environment())
    assert done.stdout.startswith("python no C module: "), done
    assert "interpreter" in done.stdout
