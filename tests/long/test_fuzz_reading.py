"""Coverage-guided fuzzing of everything that reads: at least a million executions."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

RUNS = 10_000
"""Of one process: a test that runs for longer than two minutes is taken for one that hangs."""
PARTS = 100


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Interesting inputs found so far: each part starts from them."""
    return tmp_path_factory.mktemp("corpus")


@pytest.mark.long
@pytest.mark.parametrize("part", range(PARTS))
def test_a_million_executions_find_nothing(corpus: Path, part: int) -> None:
    if importlib.util.find_spec("atheris") is None:
        pytest.skip("NOT RUN: atheris is not installed: pip install atheris")
    program = Path(__file__).with_name("fuzz_reading.py")
    limits = ["-max_len=400", "-timeout=30", "-rss_limit_mb=1024", f"-artifact_prefix={corpus.parent}/found-"]
    done = subprocess.run(
        [sys.executable, str(program), f"-runs={RUNS}", f"-seed={part + 1}", *limits, str(corpus)],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)},
        check=False,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    assert f"Done {RUNS} runs" in done.stderr
