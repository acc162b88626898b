"""Signals that reach the process in front of a program: which are passed on, and which the program has already had.

    kill -TERM of this process alone          passed on
    Ctrl-C, Ctrl-\\, a hang-up of the terminal the kernel sent it to the whole foreground: not passed on
    kill of the process group, systemd's      another process here, the recorder, has it too: not passed on
      stop of the whole control group
    sent by the program to its parent         passed on to the parent of this process

The recorder is in the same process group and control group, and notes what it is sent (`Witness`). A sender who goes
from one process to the next has `WAIT` seconds for that.

This module starts no process and waits for none.
"""

from __future__ import annotations

import mmap
import os
import signal
import struct
import time
from collections import Counter
from typing import Final

WAIT: Final = 0.25
"""Seconds until a signal that the recorder did not get counts as sent to this process alone."""

_OWN: Final = {
    signal.SIGKILL, signal.SIGSTOP, signal.SIGCONT, signal.SIGCHLD, signal.SIGIO, signal.SIGPIPE,
    signal.SIGXFSZ,
    signal.SIGSEGV, signal.SIGBUS, signal.SIGFPE, signal.SIGILL, signal.SIGABRT, signal.SIGTRAP, signal.SIGSYS,
}  # fmt: skip
"""Signals that are never passed on: each process handles its own."""
PASSED_ON: Final = frozenset(signal.valid_signals()) - _OWN
_TIME: Final = struct.Struct("=d")
STOPPING: Final = frozenset({signal.SIGTSTP, signal.SIGTTIN, signal.SIGTTOU})
"""Signals by which a terminal stops a job; a program may use them for something else."""
ENDING: Final = frozenset({signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT})


class Witness:
    """When the recorder was last sent each signal, in memory that it shares with the process that started it.

    Made before the fork; `poll` is for the recorder, the rest for its parent.
    """

    def __init__(self) -> None:
        self._times = mmap.mmap(-1, _TIME.size * (max(signal.valid_signals()) + 1))
        self.pid = 0
        """The recorder's; 0 when it has ended."""
        self.taken: Counter[int] = Counter()
        """In the recorder: how many of each signal."""

    def poll(self) -> None:
        """Take what is pending: all signals are blocked in this process."""
        for number in signal.sigpending():
            _TIME.pack_into(self._times, _TIME.size * number, time.monotonic())  # before it is not pending any more
            signal.sigtimedwait({number}, 0)
            self.taken[number] += 1

    def was_sent(self, number: int, since: float) -> bool:
        """Whether the recorder was sent a signal, too, after a time of time.monotonic()."""
        return number in _pending(self.pid) or bool(_TIME.unpack_from(self._times, _TIME.size * number)[0] >= since)


class Forwarder:
    """Passes signals on to the program, once each.

    Args:
        program: Its pid.
        witness: Has what was sent to all.
    """

    def __init__(self, program: int, witness: Witness) -> None:
        self._program = program
        self._witness = witness
        self._waiting: dict[int, tuple[float, int]] = {}

    def received(self, sent: signal.struct_siginfo) -> None:
        """A signal came here."""
        by_a_process = sent.si_code <= 0  # otherwise by the kernel, to the whole foreground
        if by_a_process and sent.si_signo in PASSED_ON:
            self._waiting.setdefault(sent.si_signo, (time.monotonic() + WAIT, sent.si_pid))

    def pass_on(self) -> bool:
        """Pass on what is due. Returns whether there is more to come."""
        for number, (due, sender) in list(self._waiting.items()):
            if self._witness.was_sent(number, due - 2 * WAIT):
                del self._waiting[number]
            elif time.monotonic() >= due:
                del self._waiting[number]
                send(os.getppid() if sender == self._program else self._program, number)
        return bool(self._waiting)


def send(pid: int, number: int) -> None:
    try:
        os.kill(pid, number)
    except (ProcessLookupError, PermissionError):
        pass  # it has ended, or runs as another user now: a shell could not send it either


def state_of(pid: int) -> bytes:
    """The state of a process as /proc has it: T stopped, Z ended and not reaped; empty: there is no such process."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            return file.read().rpartition(b")")[2].split()[0]
    except OSError:
        return b""


def _pending(pid: int) -> frozenset[int]:
    """The signals that are pending for a process as a whole."""
    if not pid:
        return frozenset()
    try:
        with open(f"/proc/{pid}/status", "rb") as lines:
            mask = next(int(line.split()[1], 16) for line in lines if line.startswith(b"ShdPnd:"))
    except (OSError, StopIteration):
        return frozenset()
    return frozenset(number for number in signal.valid_signals() if mask >> (number - 1) & 1)
