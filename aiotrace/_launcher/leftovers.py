"""Traces whose recorder is gone: killed, or ended with a service manager's patience. Blocking file I/O.

    a run's folder: plan, arenas  --+
    FILE, FILE.journal            --+--> FILE, a trace.dat: what the recorder had written, and what the arena still has

An arena whose process lives is left alone: that process writes on. Everything that was done is said, in lines for
people.
"""

from __future__ import annotations

import dataclasses
import fcntl
import os
import time
from collections.abc import Iterator, Sequence

from .._arena.file import is_abandoned
from .._arena.file_reader import ArenaReader
from .._arena.restore import complete, restore_arena, save
from .._base.errors import TraceFormatError
from .._recording.snapshot import name_for
from .._store.trace_files import remove
from .._store.unfinished import UnfinishedTrace, is_unfinished
from . import run_folder
from .names import free_name
from .plan import FILE, Plan, file_of
from .recorded_process import KILLED


def finish_abandoned(place: str) -> Iterator[str]:
    """Finish the traces of runs that write into a folder, and whose recorder is gone. Yields lines for people."""
    for folder, plan, lock in run_folder.abandoned(place):
        try:
            yield from _finish(folder, plan)
        finally:
            os.close(lock)


def finish_run(folder: str) -> Iterator[str]:
    """The same for one run.

    Raises:
        BlockingIOError: A recorder reads it.
    """
    lock = run_folder.lock(folder)
    try:
        plan = run_folder.read_plan(folder)
        if plan is not None:
            yield from _finish(folder, plan)
    finally:
        os.close(lock)


def restore_named(arena: str, plan: Plan) -> Iterator[str]:
    """Make a trace of the arena of a process that was killed, which is where the next one is to be."""
    if is_abandoned(arena):
        with ArenaReader(arena) as reader:
            header = reader.header
        # As of a child, because its name must not be that of the new run; in a container both may be process 1.
        other = dataclasses.replace(plan, pid=0)
        output = _new_name(other.urls_of(header.pid, header.realtime_ns), other, header.pid)
        report = restore_arena(arena, output)
        yield f"{output}: {report.events} events of process {header.pid}, whose arena was {arena}"


def _finish(folder: str, plan: Plan) -> Iterator[str]:
    for link in run_folder.arena_links(folder):
        path = run_folder.arena_of(link)
        if not os.path.lexists(path):
            run_folder.remove_arena(link)
            continue
        try:
            with ArenaReader(path) as reader:
                try:
                    fcntl.flock(reader.fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError:
                    yield f"process {reader.header.pid} of an earlier run goes on without a recorder; it writes {path}"
                    continue
                yield from _finish_arena(link, path, reader, plan)
        except (OSError, TraceFormatError) as error:
            yield f"{path} is kept: {error}; `aiotrace restore {path} -o FILE` makes a trace of it"
    run_folder.remove(folder)


def _finish_arena(link: str, path: str, reader: ArenaReader, plan: Plan) -> Iterator[str]:
    """
    Raises:
        TraceFormatError: The arena cannot be read.
        OSError: A file cannot be read or written.
    """
    if reader.is_delivered:
        run_folder.remove_arena(link)
        return
    header = reader.header
    urls = run_folder.read_urls(link) or plan.urls_of(header.pid, header.realtime_ns)
    begun = [file_of(url) for url in urls if url.startswith(FILE) and _is_begun(file_of(url), header.stream_id)]
    if begun:
        output, report = begun[0], complete(reader, begun[0], fsync=True)
    else:
        output = _new_name(urls, plan, header.pid)
        report = save(reader, output, fsync=True)
        if not report.events and header.pid != plan.pid:  # programs fork for many reasons
            remove(output)
            run_folder.remove_arena(link)
            return

    whole = not report.damaged and not report.definitions_damage
    if whole:
        run_folder.remove_arena(link)
    lost = f", {report.lost} lost" if report.lost else ""
    kept = "" if whole else f"; {len(report.damaged)} pages are damaged: {path} is kept"
    yield f"{output}: finished, with {report.events} events from the buffer of process {header.pid}{lost}{kept}"


def _is_begun(path: str, stream_id: bytes) -> bool:
    """Whether an unfinished trace is of this recording."""
    if not is_unfinished(path):
        return False
    with UnfinishedTrace(path) as begun:
        return begun.info.stream_id == stream_id


def _new_name(urls: Sequence[str], plan: Plan, pid: int) -> str:
    files = [file_of(url) for url in urls if url.startswith(FILE)]
    if files:
        return free_name(files[0])
    return free_name(name_for(os.fspath(plan.options_of(pid).snapshots), KILLED, time.time()))
