"""A program under `aiotrace record` behaves as without: same stdout, stderr and status, on pipes and on a terminal.

Each program runs twice. What `record` says of itself is left out, and numbers that differ between any two runs.
"""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from aiotrace._base.backend import c_module
from support import ROOT
from support.programs import environment
from support.terminal import Terminal, shell

pytestmark = pytest.mark.skipif(
    c_module is None, reason="pure Python records with --exec: there is no process in front"
)

RECORD = [sys.executable, "-m", "aiotrace", "record", "--force", "-o", "t.dat"]
PROGRAMS = {
    "becomes a shell script": """
import os
print("before", flush=True)
os.execvp("sh", ["sh", "-c", "echo out; echo err >&2; cat; kill -USR1 $$; exit 3"])
""",
    "runs a shell script": """
import subprocess, sys
sys.exit(subprocess.run(["sh", "-c", "read line; echo $line; cat; exit 4"]).returncode)
""",
    "changes its process group": """
import os, sys
os.setpgid(0, 0)
print(os.getpgrp() == os.getpid(), sys.stdin.read())
sys.exit(5)
""",
    "writes to a closed pipe": """
import os, sys
reading, writing = os.pipe()
os.close(reading)
os.dup2(writing, 1)
print("nobody reads this", flush=True)
""",
    "fails with a traceback": "import sys\nsys.stdout.write('no line end')\nraise SystemError('why')",
    "exits with a text": "import sys\nsys.exit('a text')",
}
EXAMPLES = ["planted.py", "load.py"]
"""They say the same each time, but for numbers; the latter needs an argument."""


def run(folder: Path, words: list[str]) -> tuple[int, str, str]:
    """Status, stdout and stderr."""
    done = subprocess.run(
        words, cwd=folder, input="one line\nand more\n", capture_output=True, text=True, timeout=60, env=environment()
    )
    return done.returncode, _without_numbers(done.stdout), _without_numbers(done.stderr)


def _without_numbers(text: str) -> str:
    """Without what `record` says, too."""
    return re.sub(r"[0-9][0-9.,]*", "N", re.sub(r"aiotrace record: .*\n", "", text))


@pytest.mark.parametrize("name", PROGRAMS)
def test_program_on_pipes_is_as_without(tmp_path: Path, name: str) -> None:
    (tmp_path / "app.py").write_text(PROGRAMS[name])
    without = run(tmp_path, [sys.executable, "app.py"])
    assert run(tmp_path, [*RECORD, "app.py"]) == without
    assert any(without)


@pytest.mark.parametrize("name", EXAMPLES)
def test_example_is_as_without(tmp_path: Path, name: str) -> None:
    path = str(ROOT / "examples" / name)
    without = run(tmp_path, [sys.executable, path])
    assert run(tmp_path, [*RECORD, path]) == without
    assert any(without[1:])


def test_reader_that_ends_early_ends_the_program_as_without(tmp_path: Path) -> None:
    (tmp_path / "app.py").write_text("while True: print('line')")
    line = 'trap "" INT; {} app.py 2>errors | head -n 2; echo ${{PIPESTATUS[0]}}; grep -c BrokenPipeError errors'
    results = [run(tmp_path, ["bash", "-c", line.format(shell(words))]) for words in ([sys.executable], RECORD)]
    assert results[0] == results[1]
    assert results[0][1].startswith("line\nline\n")


# --- on a terminal --------------------------------------------------------------------------------


@pytest.fixture
def terminal(tmp_path: Path) -> Iterator[Terminal]:
    terminal = Terminal(tmp_path)
    yield terminal
    terminal.close()


INTERACTIVE = "import code\ncode.interact(banner='', exitmsg='bye')"
PAGER = """
import os
with open("text", "w") as file:
    file.writelines(f"line {n}\\n" for n in range(200))
os.execvpe("less", ["less", "text"], {**os.environ, "TERM": "xterm", "LESS": ""})
"""
SESSIONS = {
    "interactive": (
        INTERACTIVE,
        [(">>> ", "1 + 1\n"), ("2\r\n>>> ", "import sys; sys.stdin.isatty()\n"), ("True\r\n>>> ", "\x04")],
    ),
    "less": (PAGER, [("line 9", "G"), ("line 199", "q")]),
}
"""The program, and what is waited for and then typed."""


@pytest.mark.parametrize("name", SESSIONS)
def test_program_on_a_terminal_is_as_without(tmp_path: Path, terminal: Terminal, name: str) -> None:
    program, typed = SESSIONS[name]
    (tmp_path / "app.py").write_text(program)
    terminal.until(r"\$ ")
    shown = [talk(terminal, [*words, "app.py"], typed) for words in ([sys.executable], RECORD)]
    assert shown[0] == shown[1]


def talk(terminal: Terminal, words: list[str], typed: list[tuple[str, str]]) -> str:
    """What the terminal shows of a command, up to the status that it ends with."""
    begun = len(terminal.shown)
    terminal.write(f"{shell(words)}; echo status=$?\n")
    for awaited, text in typed:
        terminal.until(awaited)
        terminal.write(text)
    terminal.until(r"status=0\r\n\$ ")
    return _without_numbers(terminal.shown[begun:].replace("\r\n", "\n"))
