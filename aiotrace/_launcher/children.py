"""Children of a recorded program: each gets a trace of its own, named after its pid.

    os.fork, multiprocessing "fork"          begins in a hook after the fork
    multiprocessing "spawn", "forkserver"    begins when the child unpickles what it is sent: a stowaway is in it
    subprocess, exec                         not followed: another program

They end as the first process does, at exit, and before that by multiprocessing's finalizers, where they are its own.

The law: **a child that is about to exec is left alone**, and one that records nothing leaves no file when it exits.
"""

from __future__ import annotations

import json
import os
import runpy
import sys
import threading
import warnings
from importlib.machinery import ModuleSpec
from typing import Any, Final

from .._base.package import PACKAGE_FOLDER
from . import process

_SHIM: Final = os.path.join(PACKAGE_FOLDER, "_launcher", "shim", "sitecustomize.py")
_SPAWNERS: Final = frozenset({"multiprocessing.popen_spawn_posix", "multiprocessing.popen_forkserver"})
_watching = False


def watch() -> None:
    """From now on the children of this process are followed, and theirs."""
    global _watching
    finish_with_multiprocessing()
    if _watching:
        return
    _watching = True
    os.register_at_fork(before=_before_fork, after_in_child=_after_fork)
    if "multiprocessing.spawn" in sys.modules:
        install_spawn_bootstrap()
    else:
        sys.meta_path.insert(0, _SpawnFinder())


# --- fork -------------------------------------------------------------------------------------------


class _Silence:
    """From 3.12 on, a fork of a process with several threads is warned of. With no threads but ours that would be a
    warning that the program does not have without us.

    It is the filter's pattern itself, so that it goes when it has been used: 3.12 warns before the hooks that follow a
    fork, 3.13 after them.
    """

    def __init__(self) -> None:
        self._filter: Any = ("ignore", self, DeprecationWarning, None, 0)

    def match(self, text: str) -> bool:
        """As of a compiled regular expression."""
        if "use of fork() may lead to deadlocks" not in text:
            return False
        self.stop()
        return True

    def start(self) -> None:
        names = [thread.name for thread in threading.enumerate() if thread.name.startswith("aiotrace")]
        ours = len(names) + names.count("aiotrace stalls")  # which has a thread of C beside it
        if len(os.listdir("/proc/self/task")) - ours <= 1:
            self.stop()
            # Not by warnings.filterwarnings: that would show once more what was shown once already.
            warnings.filters.insert(0, self._filter)  # type: ignore[attr-defined]

    def stop(self) -> None:
        if self._filter in warnings.filters:
            warnings.filters.remove(self._filter)  # type: ignore[attr-defined]


_silence: Final = _Silence()


def _before_fork() -> None:
    if sys.version_info >= (3, 12) and process.current is not None:
        _silence.start()


def _after_fork() -> None:
    _silence.stop()
    run = process.current
    process.current = None
    if run is None or _is_about_to_exec():
        return
    process.record_child_process(run.plan)
    finish_with_multiprocessing()


def _is_about_to_exec() -> bool:
    """Whether subprocess made this child, to run its `preexec_fn` in."""
    frame = sys._getframe(1)
    while frame.f_back is not None and frame.f_globals.get("__name__") == __name__:
        frame = frame.f_back
    return frame.f_globals.get("__name__") == "subprocess"


# --- multiprocessing --------------------------------------------------------------------------------


def finish_with_multiprocessing() -> None:
    """multiprocessing's children leave by os._exit: finish with its finalizers. Some it clears of them when they begin,
    and then calls what was registered for after that."""
    util = sys.modules.get("multiprocessing.util")
    if util is not None:
        _register_finalizer()
        util.register_after_fork(_register_finalizer, _call)


def _call(function: Any) -> None:
    function()


def _register_finalizer() -> None:
    if process.current is not None and not process.current.is_main:
        sys.modules["multiprocessing.util"].Finalize(None, process.current.close, exitpriority=-1000)


class SpawnBootstrap:
    """Unpickled in a child, before its main module is imported: starts the recording there. It names nothing of ours,
    because the child may not find aiotrace where it looks."""

    def __init__(self, plan: dict[str, Any]) -> None:
        self._plan = plan

    def __reduce__(self) -> tuple[Any, ...]:
        return runpy.run_path, (_SHIM, {"SPAWNED": json.dumps(self._plan)})


def install_spawn_bootstrap() -> None:
    """Put a stowaway into what multiprocessing sends to the children that it spawns."""
    from multiprocessing import spawn

    original = spawn.get_preparation_data

    def get_preparation_data(name: str) -> dict[str, Any]:
        data: dict[str, Any] = original(name)
        if process.current is not None:
            data["aiotrace"] = SpawnBootstrap(process.current.plan.to_dict())
        return data

    spawn.get_preparation_data = get_preparation_data


class _SpawnFinder:
    """Waits for multiprocessing's spawning to be imported, so that programs without it do not pay for it."""

    def find_spec(self, name: str, path: object = None, target: object = None) -> ModuleSpec | None:
        if name in _SPAWNERS and self in sys.meta_path:
            sys.meta_path.remove(self)
            install_spawn_bootstrap()
        return None
