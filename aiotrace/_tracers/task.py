"""task: every task of asyncio, uvloop and trio, step by step. One schema; what a runtime does not know is 0 or "?".

    task:spawn      task, parent, name, coro, site         a task was created, in the task `parent`, at `site`
    task:name       task, name                             it was renamed before its first step
    task:ready      task                                   it may run again; common_pid is the task that woke it
    task:step       ready_ns, duration_ns, awaited, waker  it ran; written at the end, so it began duration_ns before
    task:done       task, result, exception                "returned", "raised", "cancelled"; "lost": destroyed pending
    task:cancel     task, by, site, message                its cancellation was requested
    task:delivered  task                                   the cancellation is raised in it
    task:caught     task, at                               it did not end by that: it cleans up, or continues
    task:swallowed  task, at                               it continues or ended otherwise, with the request pending
    task:alive      task, parent, name, coro               a keyframe: all live tasks, about once a second

While a task runs, all records of its thread have its id as their common_pid; the names of pids are the tasks' names.
Ids begin at `(1 + pid % 511) << 22`, above those of the kernel, and are reused after 2**22 tasks.

aiotrace's own tasks are not traced. `_runtimes.py` hooks each runtime; the code that runs per step is `_csrc/tasks/`,
so this tracer needs the C module.
"""

from __future__ import annotations

import gc
import os
from types import CodeType, ModuleType
from typing import Any, Final

from .._base.backend import c_module
from .._base.errors import ConfigurationError
from .._base.package import PACKAGE_FOLDER
from .._events.event import define
from .._page import event_schema
from .._page.definitions import DEFINITIONS
from ._runtimes import Asyncio, Hook, Trio, Uvloop

FIELDS: Final[dict[str, dict[str, event_schema.FieldType]]] = {
    "spawn": {"task": "s32", "parent": "s32", "name": "str", "coro": "symbol", "site": "symbol"},
    "name": {"task": "s32", "name": "str"},
    "ready": {"task": "s32"},
    "step": {"ready_ns": "u64", "duration_ns": "u64", "awaited": "symbol", "waker": "s32"},
    "done": {"task": "s32", "result": "symbol", "exception": "symbol"},
    "cancel": {"task": "s32", "by": "s32", "site": "symbol", "message": "str"},
    "delivered": {"task": "s32"},
    "caught": {"task": "s32", "at": "symbol"},
    "swallowed": {"task": "s32", "at": "symbol"},
    "alive": {"task": "s32", "parent": "s32", "name": "str", "coro": "symbol"},
}
EVENTS: Final = {name: define(f"task:{name}", fields, by_default=False) for name, fields in FIELDS.items()}

_LIBRARY, _TRAP, _OURS = 1, 2, 4
"""Kinds of code, for C: of a runtime, where trio waits for everything, of aiotrace."""
_LIBRARIES: Final = ("asyncio", "anyio", "trio", "uvloop")


def _folder(module: str) -> str:
    return os.sep + module + os.sep


_TRAPS: Final = os.path.join("trio", "_core", "_traps.py")
_FOLDERS: Final = tuple(map(_folder, _LIBRARIES))


def describe(subject: CodeType | type | str, line: int) -> tuple[str, int, int]:
    """The text of code, of a line of it, or of a type; its symbol key; and the kind of code."""
    if isinstance(subject, CodeType):
        text = f"{subject.co_qualname} ({subject.co_filename}:{line or subject.co_firstlineno})"
        return text, DEFINITIONS.intern(text), _kind(subject.co_filename)
    text = subject if isinstance(subject, str) else _type_name(subject)
    return text, DEFINITIONS.intern(text), 0


def _kind(path: str) -> int:
    if path.startswith(PACKAGE_FOLDER):
        return _LIBRARY | _OURS
    if path.endswith(_TRAPS):
        return _LIBRARY | _TRAP
    return _LIBRARY if any(folder in path for folder in _FOLDERS) else 0


def is_runtime(code: CodeType) -> bool:
    """Whether a function belongs to a runtime or to aiotrace."""
    return bool(_kind(code.co_filename))


def _type_name(kind: type) -> str:
    if kind.__module__ in ("builtins", "_asyncio", "asyncio.futures", "asyncio.tasks", "asyncio.exceptions"):
        return kind.__qualname__
    return f"{kind.__module__}.{kind.__qualname__}"


def find_line(coroutine: Any) -> str:
    """Where a coroutine is suspended: the innermost line that is not a runtime's, or the innermost of all."""
    found = "?"
    is_program = False
    while (frame := getattr(coroutine, "cr_frame", None)) is not None:
        outside = not _kind(frame.f_code.co_filename)
        if outside or not is_program:
            found = describe(frame.f_code, frame.f_lineno)[0]
            is_program |= outside
        coroutine = coroutine.cr_await
    return found


def find_inner(coroutine: Any) -> Any:
    """The program's coroutine inside a coroutine of a runtime, as anyio wraps it; None if there is none."""
    # Not frame.f_locals: up to 3.12 the frame keeps that dict, and with it the locals, while the task lives.
    values = gc.get_referents(coroutine)
    for value in [*values, *[getattr(value, "_coro", None) for value in values]]:  # anyio.TaskHandle has it there
        code = getattr(value, "cr_code", None)
        if code is not None and not _kind(code.co_filename):
            return value
    return None


class _NeverRaisedError(BaseException):
    """Stands where asyncio's CancelledError will be, once asyncio is imported."""


def _parts() -> dict[str, Any]:
    return {
        **EVENTS,
        "describe": describe,
        "name_command": DEFINITIONS.name_command,
        "find_line": find_line,
        "find_inner": find_inner,
        # Of asyncio and trio, until they are imported: `_runtimes` fills them in.
        "task_type": None,
        "sample": (None, None, None, None),
        "python_step": None,
        "python_wakeup": None,
        "current_tasks": {},
        "cancelled_error": _NeverRaisedError,
        "trio_cancelled": None,
        "trio_error": None,
    }


_hooks: list[Hook] = []
_started: dict[str, Any] = {}
_users: Final[set[str]] = set()
"""The tracers that need the hooks: `task`, `stall`, `cancellation`, `sched`."""


def start() -> None:
    """
    Raises:
        ConfigurationError: There is no C module, or this version of asyncio is not supported.
    """
    hold("task")


def stop() -> None:
    release("task")


def hold(user: str) -> None:
    """Install the hooks for a tracer, unless they are installed already.

    Raises:
        ConfigurationError: As `start`.
    """
    if not _users:
        _hook()
    elif user == "task":
        _need_c().task_round()  # report the tasks that exist already
    _users.add(user)


def release(user: str) -> None:
    """Remove the hooks when no tracer needs them any more."""
    if user in _users:
        _users.discard(user)
        if not _users:
            _unhook()


def _hook() -> None:
    native = _need_c()
    if not _started:
        _started.update(_parts())
    native.task_start(_started)
    hooks: list[Hook] = [Asyncio(native, _started), Uvloop(native), Trio(native, _started)]
    try:
        for hook in hooks:
            hook.install()
            _hooks.append(hook)
    except ValueError as error:
        _unhook()
        raise ConfigurationError(f"tasks cannot be traced on this Python: {error}") from error


def _unhook() -> None:
    _need_c().task_sweep()
    while _hooks:
        _hooks.pop().remove()
    _need_c().task_stop()


def _after_fork_in_child() -> None:
    if _hooks:
        _need_c().task_forked()


os.register_at_fork(after_in_child=_after_fork_in_child)


def _need_c() -> ModuleType:
    if c_module is None:
        raise ConfigurationError(
            "tracing tasks (task:*) needs the C module: `pip install .` with a C compiler builds it"
        )
    return c_module
