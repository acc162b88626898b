"""`record`'s own process: starts the recorder and the program, stays in front of the program, and ends as it does.

    this process --fork--> the recorder (`recorder_process`): reader and sinks
                 --fork--> the program: execve

What a shell or a service manager does to this process happens to the program, and what becomes of the program they see
here: signals (`signals`), a stop by the terminal, the exit status or the signal that ended it. It keeps none of the
descriptors that the program was given, reaps orphans where it is PID 1, and tells systemd what the program wants to
(`notify_relay`). It imports neither an event loop nor a sink, so the program begins early.

The recorder does not end with this process: `kill -9` of it leaves both, and the trace is finished all the same. When
the recorder is killed, the program goes on, and this process finishes its traces (`leftovers`).
"""

from __future__ import annotations

import dataclasses
import json
import os
import resource
import signal
from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

from ..._base.errors import ConfigurationError
from ..._base.high_fds import out_of_the_way
from .. import run_folder
from ..notes import tell
from .notify_relay import VARIABLE as NOTIFY_SOCKET
from .notify_relay import NotifyRelay
from .signals import ENDING, PASSED_ON, STOPPING, Forwarder, Witness, send, state_of

if TYPE_CHECKING:
    from ..plan import Plan

_WATCHED: Final = PASSED_ON | {signal.SIGCHLD, signal.SIGIO}
_TICK: Final = 0.01
"""Seconds between two looks at whether a signal was sent to all."""
_PIDS: Final = ("LISTEN_PID", "WATCHDOG_PID")
"""Variables in which systemd names the process that is to use the others beside them."""
_KEPT: Final = 3
"""Descriptors below this one are the standard streams."""


def run(command: Sequence[str], plan: Plan, environment: dict[str, str], variable: str, *, wait: bool) -> int:
    """Start the program and record it.

    Args:
        command: The path and all arguments from argv[0] on.
        plan: Its `sinks` are used by the recorder.
        variable: The environment variable that carries the program's plan.
        wait: Return when the program's children have ended, too.

    Returns:
        The program's exit status. Does not return if a signal ended it.

    Raises:
        ConfigurationError: The C extension is missing, or there is no space for an arena.
        OSError: A process cannot be started.
    """
    from ..._base.backend import c_module

    if c_module is None:
        raise ConfigurationError("a recorder process needs aiotrace's C module (`pip install .` builds it): use --exec")
    folder = run_folder.create(plan)
    try:
        plan = dataclasses.replace(plan, pid=0, folder=folder)
        parent = _Parent(plan, wait)
        parent.start(command, environment, variable)
    except BaseException:
        run_folder.remove(folder)
        raise
    return parent.run()


class _Parent:
    def __init__(self, plan: Plan, wait: bool) -> None:
        self._plan = plan
        self._wait = wait or os.getpid() == 1  # everything ends with PID 1
        self._program = 0
        self._recorder = 0
        self._status: int | None = None
        self._recorder_ended = False
        self._is_finished = False
        self._is_enough = False
        self._witness = Witness()
        self._relay = _make_relay()

    # --- start ----------------------------------------------------------------------------------

    def start(self, command: Sequence[str], environment: dict[str, str], variable: str) -> None:
        """
        Raises:
            OSError: A process cannot be started.
        """
        sigchld = signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # or the status of the program could not be had
        before = signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())

        # High numbers, because the standard streams may be closed here.
        lock = out_of_the_way(run_folder.lock(self._plan.folder))
        read, self._orders = map(out_of_the_way, os.pipe())
        self._answers, write = map(out_of_the_way, os.pipe())

        # The recorder first: it imports what it needs while the program starts.
        self._recorder = self._witness.pid = self._fork_recorder(read, write, lock)
        for fd in (read, write, lock):
            os.close(fd)
        self._program = os.fork()
        if not self._program:
            signal.signal(signal.SIGCHLD, sigchld)
            self._become(command, environment, variable, before)
        self._order(f"pid {self._program}")
        os.set_blocking(self._answers, False)
        self._forwarder = Forwarder(self._program, self._witness)

        # What is for the terminal and for this process itself works as ever.
        signal.pthread_sigmask(signal.SIG_SETMASK, {*before, *_WATCHED})
        own = {self._orders, self._answers, *([self._relay.fileno()] if self._relay is not None else [])}
        _let_go(own, keep_output=False)

    def _fork_recorder(self, read: int, write: int, lock: int) -> int:
        pid = os.fork()
        if not pid:
            from . import recorder_process

            try:
                os.close(self._orders)
                os.close(self._answers)
                # TextSink prints.
                _let_go({read, write, lock}, keep_output=any(url.startswith("text:") for url in self._plan.sinks))
                recorder_process.run(self._plan, read, write, self._witness, waits=self._wait)
            finally:
                os._exit(1)
        return pid

    def _become(
        self, command: Sequence[str], environment: dict[str, str], variable: str, mask: set[int | signal.Signals]
    ) -> None:
        """In the child: become the program. Does not return."""
        status = 126
        try:
            path, *argv = command
            pid = os.getpid()
            theirs = dataclasses.replace(self._plan, pid=pid)
            environment = {**environment, variable: json.dumps(theirs.to_dict())}
            for name in _PIDS:
                if environment.get(name) == str(os.getppid()):
                    environment[name] = str(pid)
            if self._relay is not None:
                environment[NOTIFY_SOCKET] = self._relay.address
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)
            os.execve(path, argv, environment)  # noqa: S606  # this is what the command is for
        except FileNotFoundError:
            status = 127
            tell(f"{command[0]}: no such file")
        except BaseException as error:
            tell(f"{command[0]}: {error}")
        os._exit(status)

    # --- while it runs --------------------------------------------------------------------------

    def run(self) -> int:
        """Until the program and the recorder have ended, or the recorder goes on by itself."""
        hurry = False
        while not self._is_over():
            if hurry:
                sent = signal.sigtimedwait(_WATCHED, _TICK)
            else:
                sent = signal.sigwaitinfo(_WATCHED)
            if sent is not None:
                self._receive(sent)
            hurry = self._status is None and self._forwarder.pass_on()
        if self._recorder_ended and not self._is_finished:
            self._finish_leftovers()
        return self._end_alike()

    def _is_over(self) -> bool:
        self._reap()
        self._listen()
        if self._status is None:
            return False
        return self._recorder_ended or self._is_enough or (self._is_finished and not self._wait)

    def _receive(self, sent: signal.struct_siginfo) -> None:
        if self._relay is not None:
            self._relay.send_on(self._program)
        if self._status is None:
            self._forwarder.received(sent)
        elif sent.si_signo in ENDING:
            self._is_enough = True  # the recorder finishes by itself

    def _reap(self) -> None:
        """Note which processes have ended. As PID 1 that includes other processes' orphans."""
        pids = (-1,) if os.getpid() == 1 else (self._program, self._recorder)
        for each in pids:
            while True:
                try:
                    pid, status = os.waitpid(each, os.WNOHANG | os.WUNTRACED)
                except ChildProcessError:
                    break
                if not pid:
                    break
                if pid == self._program:
                    self._program_changed(status)
                elif pid == self._recorder:
                    self._recorder_changed(status)

    def _program_changed(self, status: int) -> None:
        if os.WIFSTOPPED(status):
            if os.WSTOPSIG(status) in STOPPING and _has_terminal():
                self._stop_alike(os.WSTOPSIG(status))
            return
        self._status = status
        self._order(f"ended {status}")
        if os.getpid() == 1:
            _kill_all_but({1, self._recorder})  # as the kernel does when PID 1 ends

    def _stop_alike(self, number: int) -> None:
        """The terminal stopped the program: stop too, so that the shell sees it, and continue together."""
        signal.sigtimedwait({number}, 0)  # what the terminal sent to the whole group
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {number})
        os.kill(os.getpid(), number)
        signal.pthread_sigmask(signal.SIG_BLOCK, {number})
        if state_of(self._program) == b"T":
            send(self._program, signal.SIGCONT)

    def _recorder_changed(self, status: int) -> None:
        if os.WIFSTOPPED(status):
            return
        self._recorder_ended = True
        self._witness.pid = 0
        if self._status is None and not self._is_finished:
            tell(
                f"the recorder, process {self._recorder}, ended before the program: this goes on, and is recorded "
                "until its buffer is full"
            )

    def _listen(self) -> None:
        try:
            self._is_finished |= bool(os.read(self._answers, 4096))
        except OSError:
            pass

    def _order(self, line: str) -> None:
        try:
            os.write(self._orders, f"{line}\n".encode())
        except OSError:
            pass  # it has ended

    # --- the end --------------------------------------------------------------------------------

    def _finish_leftovers(self) -> None:
        """The recorder did not finish all traces: it was killed, or could not."""
        if os.path.isdir(self._plan.folder) and run_folder.arena_links(self._plan.folder):
            from ..leftovers import finish_run

            for line in finish_run(self._plan.folder):
                tell(line)

    def _end_alike(self) -> int:
        """The program's exit status. If a signal ended it, the same signal ends this process here."""
        assert self._status is not None
        code = os.waitstatus_to_exitcode(self._status)
        if code >= 0:
            return code

        # The program has dumped core where it should: this process would only dump its own.
        resource.setrlimit(resource.RLIMIT_CORE, (0, resource.getrlimit(resource.RLIMIT_CORE)[1]))
        if -code not in (signal.SIGKILL, signal.SIGSTOP):
            signal.signal(-code, signal.SIG_DFL)
            signal.pthread_sigmask(signal.SIG_UNBLOCK, {-code})
        os.kill(os.getpid(), -code)
        return 128 - code  # a signal that does not end this process: it is PID 1


def _make_relay() -> NotifyRelay | None:
    target = os.environ.get(NOTIFY_SOCKET, "")
    return NotifyRelay(target) if target.startswith(("/", "@")) else None


def _has_terminal() -> bool:
    """Whether this process has a controlling terminal: then a shell with job control may be waiting for it."""
    try:
        os.close(os.open("/dev/tty", os.O_RDWR | os.O_CLOEXEC | os.O_NOCTTY))
    except OSError:
        return False
    return True


def _let_go(own: set[int], *, keep_output: bool) -> None:
    """Close what only the program is to have: a reader of a pipe waits until all copies of its other end are closed."""
    null = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
    os.dup2(null, 0)
    if not keep_output:
        os.dup2(null, 1)
    try:
        open_fds = [int(name) for name in os.listdir("/proc/self/fd")]
    except OSError:  # no /proc
        open_fds = []
    for fd in open_fds:
        if fd >= _KEPT and fd not in own:
            try:
                os.close(fd)
            except OSError:
                pass  # the one that listed them


def _kill_all_but(kept: set[int]) -> None:
    for name in os.listdir("/proc"):
        if name.isdecimal() and int(name) not in kept:
            try:
                os.kill(int(name), signal.SIGKILL)
            except OSError:
                pass
