"""Coverage-guided fuzzing of everything that reads: at least a million executions."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

RUNS = 1_000_000


@pytest.mark.long
def test_a_million_executions_find_nothing(tmp_path: Path) -> None:
    if importlib.util.find_spec("atheris") is None:
        pytest.skip("NOT RUN: atheris is not installed: pip install atheris")
    program = Path(__file__).with_name("fuzz_reading.py")
    done = subprocess.run(
        [
            sys.executable,
            str(program),
            f"-runs={RUNS}",
            "-max_len=400",
            "-timeout=30",
            "-rss_limit_mb=1024",
            str(tmp_path),
        ],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)},
    )
    assert done.returncode == 0, done.stderr[-4000:]
    assert f"Done {RUNS} runs" in done.stderr
