"""Signals that reach the process in front of a program: which are passed on, and which the program has already had.

    kill -TERM of this process alone          passed on
    Ctrl-C, Ctrl-\\, a hang-up of the terminal the kernel sent it to the whole foreground: not passed on
    kill of the process group, systemd's      another process here, the recorder, has it too: not passed on
      stop of the whole control group
    sent by the program to its parent         passed on to the parent of this process

The recorder is in the same process group and control group, and counts what it is sent (`Witness`). A sender who goes
from one process to the next has `WAIT` seconds for that.

This module starts no process and waits for none.
"""

from __future__ import annotations

import mmap
import os
import signal
import struct
import threading
import time
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
_TAKEN: Final = struct.Struct("=Qd")
"""How many of a signal were taken, and when the last one was."""
STOPPING: Final = frozenset({signal.SIGTSTP, signal.SIGTTIN, signal.SIGTTOU})
"""Signals by which a terminal stops a job; a program may use them for something else."""
ENDING: Final = frozenset({signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT})


class Witness:
    """How often the recorder was sent each signal, in memory that it shares with the process that started it.

    Made before the fork; `watch` is for the recorder, the rest for its parent.
    """

    def __init__(self) -> None:
        self._taken = mmap.mmap(-1, _TAKEN.size * (max(signal.valid_signals()) + 1))
        self.pid = 0
        """The recorder's; 0 when it has ended."""

    def watch(self) -> None:
        """Count signals from now on, in a thread: all are blocked in this process."""
        threading.Thread(target=self._watch, name="aiotrace signals", daemon=True).start()

    def _watch(self) -> None:
        while True:
            number = signal.sigwait(signal.valid_signals())
            _TAKEN.pack_into(self._taken, _TAKEN.size * number, self.count(number) + 1, time.monotonic())

    def count(self, number: int) -> int:
        """How many of a signal the recorder has taken."""
        return int(_TAKEN.unpack_from(self._taken, _TAKEN.size * number)[0])

    def last(self, number: int) -> tuple[int, float]:
        """How many of a signal the recorder was sent, and when the last one came, by time.monotonic()."""
        while True:
            count, when = _TAKEN.unpack_from(self._taken, _TAKEN.size * number)
            is_pending = number in _pending(self.pid)
            if self.count(number) == count:
                return count + is_pending, time.monotonic() if is_pending else when


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
        self._known: dict[int, int] = {}
        """By signal, how many that the recorder was sent are accounted for."""

    def received(self, sent: signal.struct_siginfo) -> None:
        """A signal came here."""
        by_a_process = sent.si_code <= 0  # otherwise by the kernel, to the whole foreground
        if by_a_process and sent.si_signo in PASSED_ON:
            self._waiting.setdefault(sent.si_signo, (time.monotonic() + WAIT, sent.si_pid))

    def pass_on(self) -> bool:
        """Pass on what is due. Returns whether there is more to come."""
        for number, (due, sender) in list(self._waiting.items()):
            total, when = self._witness.last(number)
            is_new = total > self._known.get(number, 0)
            self._known[number] = total
            if is_new and when >= due - 2 * WAIT:  # one from long before is another one
                del self._waiting[number]
            elif time.monotonic() >= due:
                del self._waiting[number]
                _send(os.getppid() if sender == self._program else self._program, number)
        return bool(self._waiting)


def _send(pid: int, number: int) -> None:
    try:
        os.kill(pid, number)
    except (ProcessLookupError, PermissionError):
        pass  # it has ended, or runs as another user now: a shell could not send it either


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
