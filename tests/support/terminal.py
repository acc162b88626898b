"""A shell on a terminal of its own, which a test types into and reads."""

from __future__ import annotations

import os
import pty
import re
import select
import termios
from collections.abc import Sequence
from pathlib import Path


class Terminal:
    """A session with a terminal of its own, in which a shell runs commands."""

    def __init__(self, folder: Path) -> None:
        self.text = ""
        """What was read and not yet waited for."""
        self.shown = ""
        """All that was read."""
        self.pid, self.fd = pty.fork()
        if not self.pid:
            os.chdir(folder)
            os.execvpe("bash", ["bash", "--norc", "--noprofile", "-i"], {**os.environ, "PS1": "$ ", "TERM": "dumb"})
        attributes = termios.tcgetattr(self.fd)
        attributes[3] &= ~termios.ECHO
        termios.tcsetattr(self.fd, termios.TCSANOW, attributes)

    def write(self, text: str) -> None:
        os.write(self.fd, text.encode())

    def until(self, pattern: str, nudge: str = "") -> re.Match[str]:
        """Read on until the text has this. A shell tells about its jobs when it prompts: it is nudged to."""
        patience = 60
        while not (found := re.search(pattern, self.text)):
            ready, _, _ = select.select([self.fd], [], [], 1)
            patience -= not ready
            assert patience, f"{pattern!r} did not come: {self.text!r}"
            if not ready:
                self.write(nudge)
                continue
            more = os.read(self.fd, 65536).decode(errors="replace")
            self.text += more
            self.shown += more
        self.text = self.text[found.end() :]
        return found

    def close(self) -> None:
        self.write("exit\n")
        os.waitpid(self.pid, 0)
        os.close(self.fd)


def shell(command: Sequence[str]) -> str:
    """Words as a shell reads them."""
    return " ".join(f"'{word}'" for word in command)
