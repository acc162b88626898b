"""What aiotrace computes from the place of its own files: a move of a file must not make any of it point elsewhere."""

from __future__ import annotations

import asyncio
import os
import sys
from pathlib import Path

import pytest

import aiotrace
from aiotrace._base import backend
from aiotrace._base.package import PACKAGE_FOLDER
from aiotrace._cli import _recording_plan
from aiotrace._events import python_stack
from aiotrace._launcher import children
from aiotrace._launcher.plan import Plan
from aiotrace._recording.recording import Recording
from aiotrace._recording.sync_recording import recording
from aiotrace._tracers import function, task
from aiotrace.decode import Decoder
from aiotrace_sinks import FileSink, MemorySink


def test_the_package_folder_is_that_of_the_package() -> None:
    assert aiotrace.__file__ is not None
    assert os.path.join(os.path.dirname(os.path.abspath(aiotrace.__file__)), "") == PACKAGE_FOLDER


def test_stack_omits_only_the_frames_of_our_rooms() -> None:
    assert python_stack.is_ours(Recording.__init__.__code__)
    assert python_stack.is_ours(_recording_plan.environment_of.__code__)
    assert not python_stack.is_ours(test_the_package_folder_is_that_of_the_package.__code__)


def test_the_task_tracer_knows_the_code_of_all_rooms() -> None:
    assert task.is_runtime(Recording.__init__.__code__)
    assert task.is_runtime(asyncio.sleep.__code__)
    assert not task.is_runtime(test_the_package_folder_is_that_of_the_package.__code__)


def test_files_that_call_the_program_are_there() -> None:
    missing = [path for path in function._TRANSPARENT if not os.path.exists(path)]
    assert not missing


def test_a_spawned_child_begins_with_the_shim() -> None:
    assert Path(children._SHIM).name == "sitecustomize.py"
    assert os.path.isfile(children._SHIM)


def test_a_recorded_program_finds_the_shim(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Plan, "to_dict", lambda self: {})
    path = _recording_plan.environment_of(object.__new__(Plan))["PYTHONPATH"].split(os.pathsep)[0]
    assert os.path.isfile(os.path.join(path, "sitecustomize.py"))


def test_audit_events_of_all_rooms_are_left_out(tmp_path: Path) -> None:
    sink = MemorySink()
    with recording(sink, FileSink(tmp_path / "trace.dat")) as recorded:
        recorded.enable("audit:open")
        open(os.devnull).close()
        with recording(FileSink(tmp_path / "other.dat")):
            pass
    decoder = Decoder(sink.definitions)
    opened = [event.fields["arguments"] for page in sink.pages for event in decoder.events(page)]
    assert [text for text in opened if os.devnull in text or "other.dat" in text] == [f"{os.devnull!r}, 'r', 524288"]


def test_the_folder_that_was_not_compiled_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "aiotrace._c", None)
    with pytest.raises(ImportError, match=f"not compiled in {PACKAGE_FOLDER.rstrip(os.sep)};"):
        backend._import()
