"""Draw docs/images/report.svg: what `aiotrace report` says of examples/planted.py.

    python docs/images/make_report.py

It records the example for real and draws what the commands print. Only the folders in it are shortened: the standard
library's to …, the example's to nothing. Needs the C module and the extra `docs` (rich).
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import sysconfig
import tempfile
from pathlib import Path

from rich.console import Console
from rich.text import Text

HERE = Path(__file__).resolve().parent
EXAMPLE = HERE.parent.parent / "examples" / "planted.py"
COLUMNS = 96
STYLES = {
    r"^\$ .*": "bold bright_white",
    r"^(?:\d[\d.]* m?s at|destroyed:|never retrieved:).*": "bold bright_yellow",
    r"^    (?:seen at|cause|ran|spawned at|waited at|exception|lived) ": "cyan",
    r"^    => .*": "bright_black",
}
"""What is printed is plain text; these patterns colour it."""


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        # 1. Record: the program's own messages are not in the picture.
        aiotrace(folder, "record", "-e", "task", "-e", "stall:*", "-e", "log", str(EXAMPLE))
        lines = ["$ aiotrace record -e task -e 'stall:*' -e log planted.py"]

        # 2. Two reports, with short folders.
        for report in ("--stalls", "--lost-tasks"):
            lines += ["", f"$ aiotrace report {report}", *shorten(aiotrace(folder, "report", report)).splitlines()]

    # 3. Draw.
    console = Console(record=True, width=COLUMNS, file=open(os.devnull, "w"), force_terminal=True)  # noqa: SIM115
    text = Text("\n".join(lines))
    for pattern, style in STYLES.items():
        text.highlight_regex(re.compile(pattern, re.MULTILINE), style)
    console.print(text, overflow="crop", no_wrap=True)
    svg = console.export_svg(title="aiotrace")
    svg = re.sub(r"@font-face\s*{.*?}\s*", "", svg, flags=re.DOTALL)  # no font is loaded from the network
    svg = svg.replace("Fira Code, monospace", "monospace")
    svg = re.sub(r"terminal-\d+-", "terminal-", svg)  # an id that changes with each run
    (HERE / "report.svg").write_text(svg, encoding="utf-8")


def aiotrace(folder: str, *arguments: str) -> str:
    command = [sys.executable, "-m", "aiotrace", *arguments]
    return subprocess.run(command, cwd=folder, check=True, text=True, stdout=subprocess.PIPE).stdout


def shorten(text: str) -> str:
    text = text.replace(sysconfig.get_path("stdlib") + os.sep, "…/")
    return text.replace(f"{EXAMPLE.parent}{os.sep}", "")


if __name__ == "__main__":
    main()
