"""The recorder's own process: what it hears from the process that started it, and when it goes on without that.

    parent (`parent`)  --"pid 4614", "ended 9"--> this process: reader and sinks of all arenas
                       <-------- "finished" --------------

It ends with the program and its children. When the program has ended and children have not, it says so, tells the
parent that it may return, and reads on in the background, in a session of its own.

It blocks all signals and notes them: one that was sent to the whole process group or control group is not for it, but
tells the parent that the program has it, too (`signals`).
"""

from __future__ import annotations

import os
import signal
import stat
import sys
import warnings
from typing import Final, TextIO

from ..._base.errors import AiotraceError
from ..notes import tell
from ..plan import Plan
from .signals import ENDING, Witness, state_of

_GRACE: Final = 0.1
"""Seconds that children have to end with the program before they count as outliving it."""
_LEAVE: Final = 5.0
"""Seconds that children have to end after a signal that ends the recorder in the background."""


def run(plan: Plan, orders: int, answers: int, witness: Witness, *, waits: bool) -> None:
    """Record; called in a fork of the process that starts the program, with all signals blocked. Ends the process.

    Args:
        plan: Its pid is not known yet.
        orders: A pipe: lines from the parent.
        answers: A pipe to the parent.
        witness: Notes the signals that are sent here.
        waits: The parent waits for the program's children, too.
    """
    status = 1
    try:
        _Process(plan, orders, answers, witness, waits=waits).run()
        status = 0
    except Exception as error:
        text = str(error) if isinstance(error, (AiotraceError, OSError)) else repr(error)
        tell(f"the recorder failed: {text}")
    finally:
        for stream in (sys.stdout, sys.stderr):
            try:
                stream.flush()
            except OSError:
                pass
        os._exit(status)


class _Process:
    def __init__(self, plan: Plan, orders: int, answers: int, witness: Witness, *, waits: bool) -> None:
        self._plan = plan
        self._orders = orders
        self._answers = answers
        self._witness = witness
        self._waits = waits
        self._parent = os.getppid()
        self._text = b""
        self._status: int | None = None
        self._parent_gone = False
        self._over_since: float | None = None
        self._in_background = False
        self._leaves_at = 0.0
        self._endings_before = 0
        os.set_blocking(orders, False)

    def run(self) -> None:
        import anyio

        warnings.showwarning = _show_warning
        warnings.simplefilter("always")
        anyio.run(self._main)

    async def _main(self) -> None:
        import anyio

        from ..recorder import Recorder

        while not self._plan.pid:
            if self._listen():
                return  # there is no program
            await anyio.sleep(0.001)

        self._recorder = Recorder(self._plan, tell)
        try:
            await self._recorder.run(self._is_over, self._goes_on)
        finally:
            left = self._recorder.close()
            if left is not None and self._recorder.open_pids:
                tell(
                    f"{left} has arenas of processes that go on: the next `aiotrace record` beside them finishes these"
                )
            self._answer()

    def _listen(self) -> bool:
        """Take what the parent said, and signals. Returns whether the parent is gone."""
        self._witness.poll()
        try:
            while data := os.read(self._orders, 4096):
                self._text += data
            self._parent_gone = True
        except BlockingIOError:
            pass

        *lines, self._text = self._text.split(b"\n")
        for line in lines:
            word, _, number = line.partition(b" ")
            if word == b"pid":
                self._take_pid(int(number))
            elif word == b"ended":
                self._status = int(number)
        return self._parent_gone

    def _take_pid(self, pid: int) -> None:
        import dataclasses

        from .. import run_folder

        self._plan = dataclasses.replace(self._plan, pid=pid)
        run_folder.write_plan(self._plan)

    def _is_over(self) -> bool:
        """Whether the program has ended."""
        self._listen()
        self._recorder.status = self._status
        return self._status is not None or (self._parent_gone and state_of(self._plan.pid) in (b"", b"Z"))

    def _goes_on(self) -> bool:
        """Whether to read on, now that the program's trace is finished."""
        import time

        now = time.monotonic()
        if self._over_since is None:
            self._over_since = now
        if not self._recorder.open_pids:
            return False
        if not self._in_background:
            if now >= self._over_since + _GRACE and (self._parent_gone or not self._waits):
                self._go_to_background()
            return True

        # In the background a signal is for the recorder: it leaves when its children do, or soon.
        if self._endings() > self._endings_before and not self._leaves_at:
            self._leaves_at = now + _LEAVE
        return not self._leaves_at or now < self._leaves_at

    def _go_to_background(self) -> None:
        pids = self._recorder.open_pids
        what = f"process {pids[0]} goes on" if len(pids) == 1 else f"{len(pids)} processes go on ({_some(pids)})"
        if not self._plan.quiet:
            tell(f"{what}: the recorder, process {os.getpid()}, records on in the background until they end")
        self._in_background = True
        self._endings_before = self._endings()
        self._answer()
        try:
            os.setsid()
        except OSError:
            pass

        # A reader of a pipe waits for the program's end of it, not for this process's.
        null = os.open(os.devnull, os.O_RDWR)
        for fd in (0, 1, 2):
            if fd < 2 or _is_pipe(fd):
                os.dup2(null, fd)

    def _endings(self) -> int:
        """How often this process was sent a signal that ends one."""
        return sum(self._witness.taken[number] for number in ENDING)

    def _answer(self) -> None:
        """The parent may return."""
        if self._answers < 0:
            return
        try:
            os.write(self._answers, b"finished\n")
            os.close(self._answers)
            os.kill(self._parent, signal.SIGCHLD)
        except OSError:
            pass
        self._answers = -1


def _is_pipe(fd: int) -> bool:
    try:
        return stat.S_ISFIFO(os.fstat(fd).st_mode)
    except OSError:  # it was closed from the beginning
        return True


def _some(pids: list[int]) -> str:
    shown = ", ".join(map(str, pids[:5]))
    return f"{shown}, …" if len(pids) > 5 else shown


def _show_warning(
    message: Warning | str, category: type[Warning], filename: str, lineno: int, file: TextIO | None = None,
    line: str | None = None,
) -> None:  # fmt: skip
    """As the command's other lines: people read this, not the program."""
    tell(str(message).removeprefix("aiotrace: "))
