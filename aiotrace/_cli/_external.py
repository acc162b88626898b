"""`record --external`: starts the program as a child, reads its arena in this process, and ends as the program does.

    fork --> the child: execve, as `record` alone does
        \\-> the parent: recorder, with signals blocked and polled in its loop

A signal sent to this process is meant for the program and is forwarded. One that the terminal sends to the whole
foreground has reached the program already and is not sent twice; stopping is left to the shell. This process ends with
the program's exit status, or by the same signal.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import os
import resource
import shutil
import signal
import sys
import tempfile
from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

import anyio

from .._base.errors import ConfigurationError

if TYPE_CHECKING:
    from .._launcher.plan import Plan

SHM: Final = "/dev/shm"  # noqa: S108  # a private folder is made in it
_ROOM: Final = 32 << 20
"""Bytes of an arena besides its pages: definitions, and a reserve."""
_OURS: Final = {
    signal.SIGKILL, signal.SIGSTOP, signal.SIGTSTP, signal.SIGTTIN, signal.SIGTTOU, signal.SIGCONT, signal.SIGCHLD,
    signal.SIGWINCH, signal.SIGPIPE, signal.SIGXFSZ,
    signal.SIGSEGV, signal.SIGBUS, signal.SIGFPE, signal.SIGILL, signal.SIGABRT, signal.SIGTRAP, signal.SIGSYS,
}  # fmt: skip
"""Signals that are not forwarded: each process handles its own."""
_ENDING: Final = {signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT}


def run(command: Sequence[str], plan: Plan, environment: dict[str, str], variable: str) -> int:
    """Start the program and record it.

    Args:
        command: The path and all arguments from argv[0] on.
        plan: Its `sinks` are used by this process.
        variable: The environment variable that carries the program's plan.

    Returns:
        The program's exit status. Does not return if a signal ended it.

    Raises:
        ConfigurationError: The C extension is missing, or there is no space for an arena.
        OSError: The program cannot be started.
    """
    from .._arena.handover import check_atomic

    check_atomic()
    folder = _make_folder(plan)
    forwarded = signal.valid_signals() - _OURS
    before = signal.pthread_sigmask(signal.SIG_BLOCK, forwarded)
    try:
        pid = os.fork()
    except OSError:
        os.rmdir(folder)
        raise
    arena = os.path.join(folder, "trace.arena")
    if not pid:
        options = dataclasses.replace(plan.options, arena=arena)
        theirs = dataclasses.replace(plan, pid=os.getpid(), sinks=(), options=options, external=True)
        _become(command, {**environment, variable: json.dumps(theirs.to_dict())}, before)
    program = _Program(pid, forwarded)
    anyio.run(functools.partial(_record, folder, dataclasses.replace(plan, pid=pid), program))
    return program.end_alike()


def _become(command: Sequence[str], environment: dict[str, str], mask: set[int | signal.Signals]) -> None:
    """In the child: become the program. Does not return."""
    try:
        path, *argv = command
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        os.execve(path, argv, environment)  # noqa: S606  # this is what the command is for
    except BaseException as error:
        print(f"aiotrace record: {command[0]}: {error}", file=sys.stderr, flush=True)
    os._exit(126)


async def _record(folder: str, plan: Plan, program: _Program) -> None:
    from .._launcher.recorder import Recorder

    recorder = Recorder(folder, plan, _tell)
    try:
        await recorder.run(program.has_ended, program.is_enough)
    finally:
        left = recorder.close()
        if left is not None:
            _tell(f"{left} contains unfinished arenas: make traces of them with `aiotrace restore ARENA -o FILE`")


def _tell(line: str) -> None:
    print(f"aiotrace record: {line}", file=sys.stderr, flush=True)


class _Program:
    """The child process, and the signals that are forwarded to it."""

    def __init__(self, pid: int, forwarded: set[signal.Signals]) -> None:
        self._pid = pid
        self._forwarded = forwarded
        self._status: int | None = None
        self._enough = False

    def has_ended(self) -> bool:
        """Forwards pending signals first."""
        while (sent := signal.sigtimedwait(self._forwarded, 0)) is not None:
            self._enough |= self._status is not None and sent.si_signo in _ENDING
            # si_code <= 0: sent by a process. The kernel's own signals went to the whole foreground.
            if sent.si_code <= 0 and self._status is None:
                os.kill(self._pid, sent.si_signo)
        if self._status is None:
            pid, status = os.waitpid(self._pid, os.WNOHANG)
            if pid:
                self._status = status
        return self._status is not None

    def is_enough(self) -> bool:
        """Whether a signal asked not to wait for children that outlive the program."""
        return self._enough

    def end_alike(self) -> int:
        """The program's exit status. If a signal ended it, the same signal ends this process here."""
        assert self._status is not None
        code = os.waitstatus_to_exitcode(self._status)
        if code >= 0:
            return code
        sys.stdout.flush()

        # The program has dumped core where it should: this process would only dump its own.
        resource.setrlimit(resource.RLIMIT_CORE, (0, resource.getrlimit(resource.RLIMIT_CORE)[1]))
        if -code not in (signal.SIGKILL, signal.SIGSTOP):
            signal.signal(-code, signal.SIG_DFL)
            signal.pthread_sigmask(signal.SIG_UNBLOCK, {-code})
        os.kill(os.getpid(), -code)
        return 128 - code  # a signal that does not end this process


def _make_folder(plan: Plan) -> str:
    """A new folder for arenas: on tmpfs if there is space, else beside the trace.

    Raises:
        ConfigurationError: There is no space in either.
    """
    from .._launcher.plan import FILE, file_of

    needed = plan.options.pages * plan.options.page_size + _ROOM
    files = [file_of(url) for url in plan.sinks if url.startswith(FILE)]
    beside = os.path.dirname(files[0] if files else plan.options.snapshots)
    for place in (SHM, beside):
        if os.access(place, os.W_OK | os.X_OK) and shutil.disk_usage(place).free > needed:
            return tempfile.mkdtemp(prefix="aiotrace-", dir=place)
    raise ConfigurationError(
        f"neither {SHM} nor {beside} has {needed >> 20} MiB of free space: free some, or reduce -b"
    )
