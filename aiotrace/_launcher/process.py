"""The launcher's part inside the traced program: a recording from before its first line to after its last.

    aiotrace record --execve--> _shim/sitecustomize --record_main_process--> Run.open ... the program ... Run.close, at exit

The plan is what the command line asked for.

Two laws. **The program is not harmed**: our threads take no signal that is meant for it, its exit status is its own,
and in a child that cannot be recorded it just runs. **A recording that was asked for is there, or the program does not
begin**: if it cannot be opened in the first process, that says why and ends, with status 2 if what was asked for cannot
work, and else 1.

This module does not know how children are followed (`_children`), nor what a command line is.
"""

from __future__ import annotations

import atexit
import contextlib
import gc
import glob
import os
import signal
import sys
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any, Final, Literal

import anyio

from .._base.errors import AiotraceError, ConfigurationError
from .._events.event import defined_events
from .._events.selection import matches, parse_trigger
from .._page.derived_fields import DERIVED
from .._page.filter import compile_filter
from .._recording.recording import SNAPSHOTS, Overrun
from .._recording.statistics import Statistics
from .._recording.sync_recording import SyncRecording, recording
from .._store.trace_files import journal_path, remove
from .external_recording import ExternalRecording

Choice = tuple[Literal["enable", "disable", "filter", "trigger", "limit", "notrace"], str, str]
"""A method of the recording, a glob, and for the last two a text."""

FILE: Final = "file:"
"""URLs whose names a child changes."""
_FAULTS: Final = {signal.SIGSEGV, signal.SIGBUS, signal.SIGFPE, signal.SIGILL, signal.SIGABRT, signal.SIGTRAP}
"""Signals that a thread raises by its own doing: faulthandler wants them where they happen."""


@dataclass(frozen=True, slots=True)
class Plan:
    """What to record, and where to."""

    pid: int
    """The process that is meant: execve keeps it."""
    path: tuple[str, ...]
    """Where `record` found its modules."""
    sinks: tuple[str, ...]
    """URLs; a file's path is absolute, because the program may be anywhere when a child is made."""
    choices: tuple[Choice, ...]
    pages: int
    page_size: int
    """Bytes."""
    overrun: Overrun
    clock: str
    stall_ns: int | None
    """How long a step lasts before it is reported while it lasts; None: the choices say whether that is done."""
    cancel_ns: int | None
    """How long a task has to obey a cancellation; None: the choices say whether that is watched."""
    quiet: bool
    """Say nothing at the end, unless the trace is not what it should be."""
    arena: str = ""
    """An absolute path; "": memory."""
    snapshots: str = SNAPSHOTS
    """An absolute path, after which snapshots are named."""
    snapshot_signal: int = 0
    """Which signal asks for a snapshot; 0: none."""
    external: bool = False
    """The process that started the program reads the arena, and has the sinks."""
    budget: float | None = None
    """The share of the program's time that all this may cost."""

    def recording(self) -> SyncRecording | ExternalRecording:
        """The recording, not open yet.

        Raises:
            ConfigurationError: It cannot work.
        """
        if self.external:
            return ExternalRecording(
                self._own(self.arena),
                page_size=self.page_size,
                pages=self.pages,
                overrun=self.overrun,
                clock=self.clock,
                awaits=self.is_for_us,
                budget=self.budget,
            )
        return recording(
            *self.urls,
            page_size=self.page_size,
            pages=self.pages,
            overrun=self.overrun,
            clock=self.clock,
            arena=self._own(self.arena) if self.arena else None,
            snapshots=self._own(self.snapshots),
            budget=self.budget,
        )

    def _own(self, path: str) -> str:
        """A path of this process's own."""
        return path if self.is_for_us else child_path(path, os.getpid())

    @property
    def is_for_us(self) -> bool:
        """Whether this is the process that was asked for, and not a child."""
        return os.getpid() == self.pid

    @property
    def urls(self) -> tuple[str, ...]:
        """The sinks of this process: in a child, files have its pid in their names."""
        return self.sinks if self.is_for_us else tuple(child_url(url, os.getpid()) for url in self.sinks)

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Plan:
        choices = tuple((action, glob, text) for action, glob, text in values["choices"])
        return cls(**{**values, "path": tuple(values["path"]), "sinks": tuple(values["sinks"]), "choices": choices})


def child_url(url: str, pid: int) -> str:
    """A file's URL with a pid in the name: file:/tmp/trace.dat is file:/tmp/trace.4615.dat. Other URLs as they are."""
    if not url.startswith(FILE):
        return url
    path, mark, query = url.partition("?")
    return f"{child_path(path, pid)}{mark}{query}"


def child_path(path: str, pid: int) -> str:
    """A path with a pid in the name."""
    stem, suffix = os.path.splitext(path)
    return f"{stem}.{pid}{suffix}"


def children_of(path: str) -> list[str]:
    """The files that have a pid in the place where `child_path` puts it."""
    stem, suffix = os.path.splitext(path)
    found = glob.glob(f"{glob.escape(stem)}.[0-9]*{glob.escape(suffix)}")
    return [child for child in found if child[len(stem) + 1 : len(child) - len(suffix)].isdecimal()]


def file_of(url: str) -> str:
    """The path in a file's URL."""
    return url.removeprefix(FILE).partition("?")[0]


# --- from the first line to the last ----------------------------------------------------------------


class Run:
    """The recording of this process."""

    def __init__(self, plan: Plan) -> None:
        """
        Raises:
            ConfigurationError: The plan cannot work.
        """
        self.plan = plan
        self._recording = plan.recording()
        self._untraced = ""
        """Why tasks and stalls, for which nobody asked by name, are not in the trace."""
        self.pid = os.getpid()
        for action, _, text in plan.choices:
            if action == "filter":
                compile_filter(text)
            elif action == "trigger":
                parse_trigger(text)

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
        try:
            self._choose()
        except BaseException:
            atexit.unregister(self.close)
            self._recording.close()
            self._remove_files()
            raise
        if self.plan.snapshot_signal:
            signal.signal(self.plan.snapshot_signal, _take_snapshot)

    def snapshot(self, cause: str) -> None:
        """Ask for a snapshot."""
        self._recording.request_snapshot(cause)

    def _choose(self) -> None:
        if not any(action == "enable" for action, *_ in self.plan.choices):
            try:
                self._recording.enable("task:*")
                self._recording.enable("stall:*")
            except ConfigurationError as error:  # the program's own events are there all the same
                self._untraced = str(error)
        for action, events, text in self.plan.choices:
            if action in ("filter", "trigger"):
                with warnings.catch_warnings():  # of a field that no event has so far: the end tells, if none ever had
                    warnings.filterwarnings("ignore", "aiotrace: filter ", RuntimeWarning)
                    getattr(self._recording, action)(events, text)
            else:
                getattr(self._recording, action)(events)
        if self.plan.stall_ns is not None:
            self._recording.watch_stalls(self.plan.stall_ns / 1e9)
        if self.plan.cancel_ns is not None:
            self._recording.watch_cancellations(self.plan.cancel_ns / 1e9)

    def close(self) -> None:
        """Finish the trace, and say what became of it. A second call, or one in a forked child, does nothing."""
        global current
        if current is not self or os.getpid() != self.pid:
            return
        current = None
        self._recording.close()
        statistics = self._recording.statistics()
        tell(*self._report(statistics))
        if self.plan.is_for_us:
            self._remove_empty()
        elif not statistics.events_written:
            self._remove_files()  # programs fork for many reasons

    def _report(self, statistics: Statistics) -> Iterator[str]:
        told = not self.plan.quiet and self.plan.is_for_us
        if told and self._untraced:
            yield f"no tasks: {self._untraced}"
        if told and statistics.budget is not None:
            yield f"budget: {statistics.budget}"
        if self.plan.external:  # the recorder tells the rest
            yield from _skipped(statistics)
            yield from self._unmatched() if told else ()
            return
        for url, sink in zip(self.plan.urls, statistics.sinks, strict=False):
            name = file_of(url) if url.startswith(FILE) else url
            if sink.state == "finished":
                if told:
                    yield f"{name}: {sink.events_delivered} events"
                continue
            why = f" ({sink.last_error})" if sink.last_error is not None else ""
            complete = f"; `aiotrace restore {name}` completes it" if url.startswith(FILE) else ""
            yield f"{name}: unfinished after {sink.events_delivered} events{why}{complete}"
        if statistics.events_lost if self.plan.sinks else statistics.events_dropped:
            yield lost(statistics)
        if told:
            yield from (f"{path}: a snapshot" for path in self._recording.snapshot_paths)
            if not self.plan.sinks and not statistics.snapshots:
                yield "no snapshot was taken, and what the buffer held is gone with the program"
        yield from _skipped(statistics)
        if told:
            yield from self._unmatched()

    def _remove_files(self) -> None:
        for url in self.plan.urls:
            if url.startswith(FILE):
                with contextlib.suppress(OSError):
                    remove(file_of(url))

    def _remove_empty(self) -> None:
        """Children that were killed before they recorded anything left a file with no page, and its journal."""
        for url in self.plan.urls:
            for child in children_of(file_of(url)) if url.startswith(FILE) else []:
                with contextlib.suppress(OSError):  # also of one that lives
                    if os.path.getsize(child) < self.plan.page_size and os.path.exists(journal_path(child)):
                        remove(child)

    def _unmatched(self) -> Iterator[str]:
        """What was asked for and never was: most often a spelling mistake."""
        events = defined_events()
        names = list(events)
        for unseen in sorted(self._recording.selection.functions.unmatched):
            yield f"{unseen!r} is of no function that was called: their names are module.qualified_name"
        for action, wanted, text in self.plan.choices:
            found = [name for name in names if matches(wanted, name)]
            if action == "enable" and not found:
                known = f"it has {', '.join(names[:10])}{', …' if len(names) > 10 else ''}" if names else "it has none"
                yield f"-e {wanted!r} matches no event of this process: {known}"
            missing = asked_fields(action, text)
            for name in found:
                missing -= {*events[name].fields, *DERIVED.get(name, ())}
            if found and missing:
                has = f"{found[0]} has {', '.join(events[found[0]].fields) or 'none'}"
                yield f"{text!r}: no event of {wanted!r} has a field {', '.join(sorted(missing))}; {has}"


def asked_fields(action: str, text: str) -> set[str]:
    """The fields that the text of a choice names."""
    if action == "filter":
        return set(compile_filter(text).fields)
    filter = parse_trigger(text).filter if action == "trigger" else None
    return set(filter.fields) if filter is not None else set()


def _skipped(statistics: Statistics) -> Iterator[str]:
    if statistics.snapshots_skipped:
        yield f"{statistics.snapshots_skipped} snapshots were not taken: one was, or had been less than 10 s before"


def lost(statistics: Statistics) -> str:
    """How many events are missing, and why."""
    dropped = ", ".join(f"{count} {cause}" for cause, count in statistics.dropped.items() if count)
    parts = [f"{statistics.events_dropped} refused ({dropped})"] if statistics.events_dropped else []
    parts += [f"{statistics.events_overrun} overwritten by newer ones"] if statistics.events_overrun else []
    parts += [f"{statistics.events_abandoned} given up with a sink"] if statistics.events_abandoned else []
    return f"events lost: {statistics.events_lost}: {', '.join(parts)}"


def tell(*lines: str) -> None:
    """Print to the stderr that the program began with, if it is still there."""
    with contextlib.suppress(OSError, ValueError, AttributeError):
        for line in lines:
            print(f"aiotrace record: {line}", file=sys.__stderr__)
        sys.__stderr__.flush()  # type: ignore[union-attr]  # None is an AttributeError


@contextlib.contextmanager
def no_signals() -> Iterator[None]:
    """Threads that are started here take no signals: a program that blocks a signal, to wait for it with sigwait, must
    not have it delivered to a thread that it does not know of."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals() - _FAULTS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _take_snapshot(number: int, frame: object) -> None:
    """The handler of a signal, in the main thread."""
    if current is not None:
        current.snapshot(signal.Signals(number).name)


current: Run | None = None
"""What is being recorded in this process."""


def record_main_process(plan: Plan) -> None:
    """Record the process that was asked for. If that cannot be, it ends here."""
    try:
        atexit.register(gc.unfreeze)  # comes after the end of the recording, before Python takes its modules apart
        start(plan)
        # A program that looks for event loops among all objects, to close them, does not find ours. The namespace of
        # __main__ is frozen with them: left so, what is in it would not be finalized, nor its files flushed.
        gc.freeze()
    except Exception as error:
        tell(str(error) if isinstance(error, (AiotraceError, OSError)) else repr(error))
        # An exception would be lost in site, and the program would run without us.
        os._exit(2 if isinstance(error, ConfigurationError) else 1)


def start(plan: Plan) -> None:
    """
    Raises:
        Exception: As `Run.open`.
    """
    global current
    # pytest warns of packages with a plugin that were imported before it could rewrite their asserts, unless their
    # docstring says this. anyio has a plugin, and we import it.
    anyio.__doc__ = f"{anyio.__doc__ or ''}PYTEST_DONT_REWRITE"
    run = Run(plan)
    run.open()
    current = run


def record_child_process(plan: Plan) -> None:
    """Record a child. If that cannot be, it is told, and the child just runs."""
    try:
        start(plan)
    except Exception as error:
        tell(f"process {os.getpid()} is not recorded: {error}")
