"""`record --external`: starts the program as a child, reads its arena from here, and ends as the program does.

    fork --> the child: execve, as `record` alone does
        \\-> the parent: recorder, with every signal blocked and looked for in its loop

The laws. **A signal that was sent to us is the program's**: it is sent on. One that the terminal sends to all in the
foreground has the program already, and stopping is the shell's affair: neither is sent twice. **We end as the program
ends**: with its status, or by its signal.
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

SHM: Final = "/dev/shm"  # noqa: S108  # a folder of ours is made in it
_ROOM: Final = 32 << 20
"""Bytes for definitions, and to spare."""
_OURS: Final = {
    signal.SIGKILL, signal.SIGSTOP, signal.SIGTSTP, signal.SIGTTIN, signal.SIGTTOU, signal.SIGCONT, signal.SIGCHLD,
    signal.SIGWINCH, signal.SIGPIPE, signal.SIGXFSZ,
    signal.SIGSEGV, signal.SIGBUS, signal.SIGFPE, signal.SIGILL, signal.SIGABRT, signal.SIGTRAP, signal.SIGSYS,
}  # fmt: skip
"""Signals that are not sent on: they are ours, as they are any process's."""
_ENDING: Final = {signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT}


def run(command: Sequence[str], plan: Plan, environment: dict[str, str], variable: str) -> int:
    """Start the program and record it.

    Args:
        command: The path and all arguments from argv[0] on.
        plan: Whose `sinks` are for us.
        variable: Of the environment, for the program's plan.

    Returns:
        The program's exit status. Does not return if a signal ended it.

    Raises:
        ConfigurationError: There is no C module.
        OSError: There is no room for an arena.
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
    """In the child: be the program. Does not return."""
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
            _tell(f"in {left} are arenas that are not finished: `aiotrace restore ARENA -o FILE` makes traces of them")


def _tell(line: str) -> None:
    print(f"aiotrace record: {line}", file=sys.stderr, flush=True)


class _Program:
    """The child, and the signals that are meant for it."""

    def __init__(self, pid: int, forwarded: set[signal.Signals]) -> None:
        self._pid = pid
        self._forwarded = forwarded
        self._status: int | None = None
        self._enough = False

    def has_ended(self) -> bool:
        """Sends on what was sent to us, first."""
        while (sent := signal.sigtimedwait(self._forwarded, 0)) is not None:
            self._enough |= self._status is not None and sent.si_signo in _ENDING
            # From a process, not from the kernel, which asked all of the foreground.
            if sent.si_code <= 0 and self._status is None:
                os.kill(self._pid, sent.si_signo)
        if self._status is None:
            pid, status = os.waitpid(self._pid, os.WNOHANG)
            if pid:
                self._status = status
        return self._status is not None

    def is_enough(self) -> bool:
        """Whether somebody does not want to wait for the children that outlive the program."""
        return self._enough

    def end_alike(self) -> int:
        """The program's exit status. If a signal ended it, the same one ends us here."""
        assert self._status is not None
        code = os.waitstatus_to_exitcode(self._status)
        if code >= 0:
            return code
        sys.stdout.flush()
        resource.setrlimit(resource.RLIMIT_CORE, (0, resource.getrlimit(resource.RLIMIT_CORE)[1]))  # it has dumped its
        if -code not in (signal.SIGKILL, signal.SIGSTOP):
            signal.signal(-code, signal.SIG_DFL)
            signal.pthread_sigmask(signal.SIG_UNBLOCK, {-code})
        os.kill(os.getpid(), -code)
        return 128 - code  # a signal that does not end us


def _make_folder(plan: Plan) -> str:
    """A folder for arenas: on tmpfs if there is room, else beside the trace.

    Raises:
        ConfigurationError: There is no room.
    """
    from .._launcher.plan import FILE, file_of

    needed = plan.options.pages * plan.options.page_size + _ROOM
    files = [file_of(url) for url in plan.sinks if url.startswith(FILE)]
    beside = os.path.dirname(files[0] if files else plan.options.snapshots)
    for place in (SHM, beside):
        if os.access(place, os.W_OK | os.X_OK) and shutil.disk_usage(place).free > needed:
            return tempfile.mkdtemp(prefix="aiotrace-", dir=place)
    raise ConfigurationError(f"neither in {SHM} nor in {beside} is room for {needed >> 20} MiB: -b takes less")
