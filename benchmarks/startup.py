"""What a process pays before its first line: importing aiotrace, the command line, and a program that is recorded.

    event                import aiotrace, define an event and call it once, with no recording open
    --version, --help    the installed command
    record               aiotrace record of an empty program, beside the same program alone

Each is a process of its own, interleaved with `python -c pass` in a virtual environment made for this, into which the
aiotrace that is measured is copied: an editable one would pay for its finder. "more" is the time beyond that of
`python -c pass`; for `record`, beyond that of the program alone, which is `python empty.py`.
"""

from __future__ import annotations

import compileall
import os
import shutil
import statistics
import subprocess
import sysconfig
import tempfile
import time
import venv
from importlib.metadata import distribution
from pathlib import Path
from typing import Final

import aiotrace
import aiotrace_sinks

from .table import Table

ROUNDS: Final = 20
EVENT: Final = "import aiotrace; aiotrace.event('a:b', n='u32')(1)"
PASS, EMPTY = "python -c pass", "python empty.py"
_SCRIPT: Final = "#!{python}\nimport sys\nfrom aiotrace.__main__ import main\nsys.exit(main())\n"


def _install(folder: Path) -> Path:
    """Copy aiotrace into a new virtual environment; what it depends on is found where it is. Returns its Python."""
    venv.create(folder, symlinks=True)
    python = folder / "bin" / "python"
    site = next(folder.glob("lib/python*/site-packages"))

    # The packages, compiled as pip does
    for package in (aiotrace, aiotrace_sinks):
        source = Path(str(package.__file__)).parent
        shutil.copytree(source, site / source.name, ignore=shutil.ignore_patterns("_csrc", "__pycache__"))
    (site / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n", encoding="utf-8")
    compileall.compile_dir(site, quiet=1)

    # What says which sinks there are, and the command
    described = site / f"aiotrace-{aiotrace.__version__}.dist-info"
    described.mkdir()
    for name in ("METADATA", "entry_points.txt"):
        (described / name).write_text(distribution("aiotrace").read_text(name) or "", encoding="utf-8")
    command = folder / "bin" / "aiotrace"
    command.write_text(_SCRIPT.format(python=python), encoding="utf-8")
    command.chmod(0o755)
    return python


def _time(command: list[str], folder: Path) -> float:
    """Milliseconds from start to end."""
    began = time.perf_counter()
    subprocess.run(command, cwd=folder, stdout=subprocess.DEVNULL, check=True, env=_environment())
    return (time.perf_counter() - began) * 1e3


def _environment() -> dict[str, str]:
    """Ours, without what would let Python find another aiotrace or start otherwise."""
    return {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}


def run(rounds: int = ROUNDS) -> Table:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        python = str(_install(folder / "venv"))
        aiotrace_command = str(folder / "venv" / "bin" / "aiotrace")
        (folder / "empty.py").touch()
        commands = {
            PASS: [python, "-c", "pass"],
            EMPTY: [python, "empty.py"],
            "event": [python, "-c", EVENT],
            "--version": [aiotrace_command, "--version"],
            "--help": [aiotrace_command, "--help"],
            "record": [aiotrace_command, "record", "-q", "--force", "empty.py"],
        }

        # The first round fills the caches of files
        times: dict[str, list[float]] = {each: [] for each in commands}
        for _ in range(rounds + 1):
            for each, command in commands.items():
                times[each].append(_time(command, folder))

    rows: list[tuple[str | int | float, ...]] = []
    for each, measured in times.items():
        beside = times[EMPTY if each == "record" else PASS]
        least, median = min(measured[1:]), statistics.median(measured[1:])
        more = least - min(beside[1:]), median - statistics.median(beside[1:])
        rows.append((each, least, median, *more, rounds))
    return Table(
        "Milliseconds from the start of a process to its end",
        ("process", "min", "median", "more, min", "more, median", "processes"),
        rows,
        ("Interleaved; `more` is beyond `python -c pass`, and for `record` beyond `python empty.py`.",),
    )
