"""However a recorded program ends, its traces are finished: at small counts, of one process and of forked workers.

`./dev ends` has the large counts, and the other servers: docs/measurements/reliability.md, R22 and R4.
"""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from aiotrace._base.backend import c_module
from support import ends

pytestmark = pytest.mark.skipif(
    c_module is None, reason="pure Python records with --exec: the program finishes its trace itself"
)
RUNS = 2


@pytest.mark.parametrize("end", ends.KINDS)
@pytest.mark.parametrize("how", ["alone", "fork"])
def test_every_committed_event_is_in_a_finished_trace(tmp_path: Path, trace_cmd: str, how: str, end: str) -> None:
    generator = random.Random(f"{end} {how}")
    for number in range(RUNS):
        case = ends.draw(generator, end, how, most_workers=2, scale=0.2)
        folder = tmp_path / str(number)
        folder.mkdir()
        verdict = ends.run_once(folder, case, trace_cmd)
        assert verdict.is_good, "\n".join(verdict.faults)
        assert verdict.found + verdict.refused >= verdict.committed > 0
        assert verdict.files == 1 + case.workers
