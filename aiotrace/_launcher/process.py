"""The launcher's part inside the traced program: a recording from before its first line to after its last.

    aiotrace record --execve--> shim/sitecustomize --> record_main_process
        --> Run.open ... the program ... Run.close, at exit

Two laws. **The program is not harmed**: aiotrace's threads take no signal that is meant for it, its exit status is its
own, and a child that cannot be recorded just runs. **A recording that was requested is there, or the program does not
start**: if it cannot be opened in the first process, that process says why and exits, with status 2 if the request
cannot work, and 1 otherwise.

This module does not know how children are found (`children`), nor what a command line is.
"""

from __future__ import annotations

import atexit
import contextlib
import dataclasses
import gc
import os
import signal
import time
import warnings
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Final

from .._base.errors import AiotraceError, ConfigurationError
from .._events.event import defined_events
from .._recording.statistics import Statistics
from .._store.trace_files import journal_path, remove
from . import run_folder
from .external_recording import ExternalRecording, RefusedByRecorderError
from .notes import EndNotes, tell
from .plan import FILE, Plan, children_of, file_of
from .retention import retain_for
from .rules import unmatched

if TYPE_CHECKING:
    from .._recording.sync_recording import SyncRecording

_FAULTS: Final = {signal.SIGSEGV, signal.SIGBUS, signal.SIGFPE, signal.SIGILL, signal.SIGABRT, signal.SIGTRAP}
"""Signals that a thread raises by its own doing: faulthandler wants them where they happen."""


class Run:
    """The recording of this process.

    Raises:
        ConfigurationError: The plan cannot work.
    """

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self.pid = os.getpid()
        self.is_main = self.pid == plan.pid
        """False in a child."""
        self._urls = () if plan.folder else plan.urls_of(self.pid, time.time_ns())
        self._recording = _make_recording(plan, self._urls)
        self._untraced = ""
        """Why tasks and stalls, which are recorded by default, are not in the trace."""
        for rule in plan.rules:
            rule.check()

    def open(self) -> None:
        """
        Raises:
            Exception: What a sink raised before it asked for its first page, or why a tracer cannot run.
        """
        atexit.register(self.close)
        try:
            with no_signals():
                self._recording.__enter__()
        except BaseException:
            atexit.unregister(self.close)
            raise

        # Rules that cannot be applied keep the program from beginning: nothing is left of it then.
        try:
            self._apply_rules()
        except BaseException:
            atexit.unregister(self.close)
            if isinstance(self._recording, ExternalRecording):
                self._recording.withdraw()
            else:
                self._recording.close()
                self._remove_files()
            raise
        if self.plan.snapshot_signal:
            signal.signal(self.plan.snapshot_signal, _take_snapshot)

    def snapshot(self, cause: str) -> None:
        """Request a snapshot."""
        self._recording.request_snapshot(cause)

    def _apply_rules(self) -> None:
        # Without a rule that says what to record: tasks and stalls.
        if not any(rule.action == "enable" for rule in self.plan.rules):
            try:
                self._recording.enable("task:*")
                self._recording.enable("stall:*")
            except ConfigurationError as error:  # the program's own events are recorded all the same
                self._untraced = str(error)

        for rule in self.plan.rules:
            if rule.action in ("filter", "trigger"):
                # Events with the field may be defined later; `unmatched` reports it at the end if none was. Not around
                # the other rules: a tracer of warnings would be removed with the filter.
                with warnings.catch_warnings():
                    warnings.filterwarnings("ignore", "aiotrace: filter ", RuntimeWarning)
                    rule.apply(self._recording)
            else:
                rule.apply(self._recording)

        if self.plan.stall_ns is not None:
            self._recording.watch_stalls(self.plan.stall_ns / 1e9)
        if self.plan.cancel_ns is not None:
            self._recording.watch_cancellations(self.plan.cancel_ns / 1e9)

    def close(self) -> None:
        """Finish the trace, and report what became of it. A second call, or one in a forked child, does nothing."""
        global current
        if current is not self or os.getpid() != self.pid:
            return
        current = None
        self._recording.close()
        statistics = self._recording.statistics()
        tell(*self._report(statistics))
        if self.is_main:
            self._remove_empty()
        elif not statistics.events_written:
            self._remove_files()  # programs fork for many reasons
        if self._urls:
            tell(*retain_for(self.plan, running=()))

    def _report(self, statistics: Statistics) -> Iterator[str]:
        all = not self.plan.quiet and self.is_main
        if all and self._untraced:
            yield f"no tasks: {self._untraced}"
        if all and statistics.budget is not None:
            yield f"budget: {statistics.budget}"

        if not isinstance(self._recording, ExternalRecording):  # of which the recorder reports this
            yield from EndNotes.of(statistics, self._urls, self._recording.snapshot_paths).lines(all=all)
        if statistics.snapshots_skipped:
            yield (
                f"{statistics.snapshots_skipped} snapshots were not taken: another one was being taken, or had been "
                "less than 10 s before"
            )

        if all:
            for unseen in sorted(self._recording.selection.functions.unmatched):
                yield f"{unseen!r} matches no function that was called: their names are module.qualified_name"
            yield from unmatched(self.plan.rules, defined_events())

    def _remove_files(self) -> None:
        for url in self._urls:
            if url.startswith(FILE):
                with contextlib.suppress(OSError):
                    remove(file_of(url))

    def _remove_empty(self) -> None:
        """Children that were killed before they recorded anything left a file with no page, and its journal."""
        for url in self._urls:
            for child in children_of(file_of(url)) if url.startswith(FILE) else []:
                with contextlib.suppress(OSError):  # also of one that lives
                    if os.path.getsize(child) < self.plan.options.page_size and os.path.exists(journal_path(child)):
                        remove(child)


def _make_recording(plan: Plan, urls: Sequence[str]) -> SyncRecording | ExternalRecording:
    """The recording, not open yet.

    Raises:
        ConfigurationError: It cannot work.
    """
    pid = os.getpid()
    options = plan.options_of(pid)
    if plan.folder:
        with run_folder.place_for_arena(plan, pid) as path:
            placed = dataclasses.replace(options, arena=path)
            return ExternalRecording(placed, plan.folder, awaits=pid == plan.pid)

    # Only where the reader and the sinks are in this process: it imports asyncio and anyio.
    import anyio

    from .._recording.core import RecordingCore
    from .._recording.sync_recording import SyncRecording

    # pytest warns of packages with a plugin that were imported before it could rewrite their asserts, unless their
    # docstring says this. anyio has a plugin.
    anyio.__doc__ = f"{anyio.__doc__ or ''}PYTEST_DONT_REWRITE"
    return SyncRecording(RecordingCore(urls, options, thread=True))


@contextlib.contextmanager
def no_signals() -> Iterator[None]:
    """Threads that start here take no signals: when a program blocks a signal, to wait for it with sigwait, a thread
    that it does not know of must not be given it."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals() - _FAULTS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _take_snapshot(number: int, frame: object) -> None:
    """The handler of a signal, in the main thread."""
    if current is not None:
        current.snapshot(signal.Signals(number).name)


# --- starting -------------------------------------------------------------------------------------

current: Run | None = None
"""What is being recorded in this process."""


def record_main_process(plan: Plan) -> None:
    """Record the process that `aiotrace record` started. If that fails, the process exits here."""
    try:
        atexit.register(gc.unfreeze)  # runs after the end of the recording, before Python takes its modules apart
        start(plan)
        # A program that looks for event loops among all objects, to close them, does not find aiotrace's. The namespace
        # of __main__ is frozen with them: left so, its contents would not be finalized, nor its files flushed.
        gc.freeze()
    except RefusedByRecorderError as error:  # it has said why
        os._exit(2 if error.is_wrong else 1)
    except Exception as error:
        tell(str(error) if isinstance(error, (AiotraceError, OSError)) else repr(error))
        # `site` would swallow an exception, and the program would run unrecorded.
        os._exit(2 if isinstance(error, ConfigurationError) else 1)


def start(plan: Plan) -> None:
    """
    Raises:
        Exception: As `Run.open`.
    """
    global current
    run = Run(plan)
    run.open()
    current = run


def record_child_process(plan: Plan) -> None:
    """Record a child. If that fails, a line says so, and the child just runs."""
    try:
        start(plan)
    except Exception as error:
        tell(f"process {os.getpid()} is not recorded: {error}")
        if plan.folder:
            run_folder.note_unrecorded(plan.folder, os.getpid())
