"""models/handover.pml, which spin checks: no error in it, one in each mutant. Small here; `./dev model` is larger."""

from __future__ import annotations

import shutil
import subprocess

import pytest

from support import ROOT

MODELS = ROOT / "models"


@pytest.fixture(autouse=True)
def tools() -> None:
    for name in ("spin", "gcc"):
        if shutil.which(name) is None:
            pytest.skip(f"NOT RUN: {name} is missing: apt-get install {name}")


def check(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([MODELS / "check", *arguments], capture_output=True, text=True, timeout=600)


def test_the_model_has_no_error_and_its_take_must_be_one_step() -> None:
    done = check("MUTANT_SWAP", "-DPAGES=2", "-DROUNDS=3")
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.splitlines() == ["handover.pml: 0 errors", "handover.pml, MUTANT_SWAP: 1 errors"]


def test_a_mutant_without_an_error_is_a_fault() -> None:
    done = check("MUTANT_OF_NOTHING", "-DPAGES=2", "-DROUNDS=2")
    assert done.returncode == 1
    assert "should have an error" in done.stderr


@pytest.mark.long
def test_each_mutant_has_an_error() -> None:
    done = check()
    assert done.returncode == 0, done.stdout + done.stderr
    assert len(done.stdout.splitlines()) == 8
