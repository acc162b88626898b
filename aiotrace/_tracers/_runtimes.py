"""The hooks of the `task` tracer: how they are installed in each runtime, and removed.

    Asyncio   `asyncio.events.Handle` becomes a C subclass of itself, with which every callback of every loop is made
    Uvloop    `uvloop.Loop.call_soon` checks its argument
    Trio      `Task._create` is replaced by C that checks its result

There a task is seen first; from then on a C object takes the place of its coroutine, and sees each of its steps.

What a program can see of its tasks does not change: `get_coro()`, names, `all_tasks()`, tracebacks. A runtime is hooked
at the end of its import, so a program without one does not pay for it; one that is imported already, at once.
"""

from __future__ import annotations

import functools
import sys
import warnings
import weakref
from collections.abc import Callable
from types import ModuleType
from typing import TYPE_CHECKING, Any, Final, Protocol

from ._on_import import Import

if TYPE_CHECKING:
    import asyncio

CANCELLED_MAX: Final = 1000
"""Tasks that are reported for one cancellation of a scope."""


class Hook(Protocol):
    def install(self) -> None:
        """Install it.

        Raises:
            ValueError: This version of the runtime is not supported.
        """

    def remove(self) -> None:
        """Remove it. If other code has replaced it again, it stays and only passes calls on."""


class Method:
    """Replaces a method of a class by `make(original)`; an inherited one is removed again at the end."""

    def __init__(self, owner: type, name: str, make: Callable[[Any], Any]) -> None:
        self._owner = owner
        self._name = name
        self._had = name in vars(owner)
        self._original = getattr(owner, name)
        self._ours = make(self._original)
        setattr(owner, name, self._ours)

    def remove(self) -> None:
        if vars(self._owner).get(self._name) is not self._ours:
            return
        if self._had:
            setattr(self._owner, self._name, self._original)
        else:
            delattr(self._owner, self._name)


# --- asyncio --------------------------------------------------------------------------------------


class Asyncio:
    """
    Args:
        parts: What C was started with; asyncio's are filled in when it is imported.
    """

    def __init__(self, native: ModuleType, parts: dict[str, Any]) -> None:
        self._native = native
        self._parts = parts
        self._import = Import("asyncio", self._hook)
        self._is_late = False
        self._methods: list[Method] = []
        self._factories: Factories | None = None

    def install(self) -> None:
        self._import.install()
        self._is_late = True

    def _hook(self, asyncio: Any) -> None:
        try:
            if self._parts["python_step"] is None:  # once: the samples in them live on
                self._parts.update(_asyncio_parts())
            self._native.task_start(self._parts)
            self._hook_classes(asyncio)
        except ValueError as error:
            if not self._is_late:
                raise
            # This runs in the program's import of asyncio, which must not fail.
            warnings.warn(f"the tasks of this asyncio are not traced: {error}", RuntimeWarning, stacklevel=2)
            return
        self._know_tasks(asyncio)

    def _hook_classes(self, asyncio: Any) -> None:
        base: type = asyncio.Handle
        hooked = self._native.task_handle(base, asyncio.BaseEventLoop.get_debug, report)
        if asyncio.events.Handle is base:
            asyncio.events.Handle = hooked

        # What a program sees of a task: its own coroutine; and who cancels it.
        python_task: type = asyncio.tasks._PyTask
        self._methods = [
            Method(python_task, "get_coro", self._make_get_coro),
            Method(python_task, "cancel", self._make_cancel),
        ]
        self._factories = Factories(self._native, asyncio.BaseEventLoop)
        self._factories.install()

    def _know_tasks(self, asyncio: Any) -> None:
        """Tasks that exist already, and the one that runs now."""
        for task in _all_tasks():
            self._native.task_know(task)
        loop = asyncio._get_running_loop()
        if loop is None:
            return
        current = asyncio.current_task(loop)
        if type(loop).__module__ != "uvloop" and current is not None:
            self._native.task_running(current)
        if not is_hooked(loop):
            warnings.warn(
                f"the tasks of {loop!r} are not traced: it does not schedule them as asyncio's and uvloop's loops do",
                RuntimeWarning,
                stacklevel=8,
            )

    def remove(self) -> None:
        self._import.remove()
        if self._factories is None:
            return  # asyncio was not imported
        import asyncio

        hooked = self._native.task_handle(asyncio.Handle, asyncio.BaseEventLoop.get_debug, report)
        if asyncio.events.Handle is hooked:
            asyncio.events.Handle = asyncio.Handle  # type: ignore[misc]
        while self._methods:
            self._methods.pop().remove()
        self._factories.remove()

    def _make_get_coro(self, original: Callable[..., Any]) -> Callable[..., Any]:
        def get_coro(task: Any) -> Any:
            return self._native.task_unwrap(original(task))

        return functools.wraps(original)(get_coro)

    def _make_cancel(self, original: Callable[..., bool]) -> Callable[..., bool]:
        def cancel(task: Any, msg: Any = None) -> bool:
            self._native.task_asked(task, msg)
            asked = original(task, msg)
            if asked:
                self._native.task_was_asked(task)
            return asked

        return functools.wraps(original)(cancel)


def is_hooked(loop: asyncio.AbstractEventLoop) -> bool:
    """Whether the steps of a loop's tasks can be traced."""
    import asyncio

    kind = type(loop)
    if kind.__module__.partition(".")[0] == "uvloop":
        return True
    plain: Any = asyncio.BaseEventLoop
    loop_type: Any = kind
    return (
        isinstance(loop, plain) and loop_type.call_soon is plain.call_soon and loop_type._call_soon is plain._call_soon
    )


def report(handle: Any, error: BaseException) -> None:
    """Report an exception as `Handle._run` does, in the same words."""
    import asyncio

    format = asyncio.format_helpers._format_callback_source  # type: ignore[attr-defined]
    options = {"debug": handle._loop.get_debug()} if sys.version_info >= (3, 13) else {}
    context = {
        "message": f"Exception in callback {format(handle._callback, handle._args, **options)}",
        "exception": error,
        "handle": handle,
    }
    if handle._source_traceback:
        context["source_traceback"] = handle._source_traceback
    handle._loop.call_exception_handler(context)


def _all_tasks() -> list[Any]:
    """The tasks of all loops."""
    import asyncio

    tasks: Any = asyncio.tasks
    found: list[Any] = []
    for name in ("_all_tasks", "_scheduled_tasks", "_eager_tasks"):
        for _ in range(10):  # another thread may add one at the same time
            try:
                found += list(getattr(tasks, name, ()))
                break
            except RuntimeError:
                continue
    return [task for task in found if not task.done()]


def _asyncio_parts() -> dict[str, Any]:
    """Of what C is started with, what asyncio has."""
    import asyncio

    task_type, sample = _probe()
    python_task: Any = asyncio.tasks._PyTask  # type: ignore[attr-defined]  # CPython's own, where C tasks are too
    return {
        "task_type": task_type,
        "sample": sample,
        "python_step": python_task._Task__step,
        "python_wakeup": python_task._Task__wakeup,
        "current_tasks": asyncio.tasks._current_tasks,  # type: ignore[attr-defined]
        "cancelled_error": asyncio.CancelledError,
    }


def _probe() -> tuple[type | None, tuple[Any, Any, Any, Any]]:
    """The type of C tasks, if there are any, and samples: what a task gives to its loop and to the future that it waits
    for, a new task, and its coroutine."""
    import asyncio

    try:
        import _asyncio
    except ImportError:
        return None, (None, None, None, None)
    scheduled: list[Callable[..., Any]] = []

    class Loop:
        def call_soon(self, callback: Callable[..., Any], *args: object, context: object = None) -> None:
            scheduled.append(callback)

        def get_debug(self) -> bool:
            return False

    async def wait() -> None:
        await future

    loop: Any = Loop()
    future: asyncio.Future[None] = _asyncio.Future(loop=loop)
    _asyncio.Task(wait(), loop=loop, name="")
    scheduled[0]()
    future.set_result(None)
    wakeup = scheduled[1]
    wakeup(future)
    coroutine = wait()
    task: Any = _asyncio.Task(coroutine, loop=loop, name="")
    task._log_destroy_pending = False
    asyncio.tasks._unregister_task(task)  # it is not the program's
    return _asyncio.Task, (scheduled[2], wakeup, task, coroutine)


# --- task factories -------------------------------------------------------------------------------


class _Factory:
    """Wraps a task factory, so that a task that it runs at once is traced."""

    def __init__(self, native: ModuleType, factory: Callable[..., Any]) -> None:
        self._make = native.task_make
        self.factory = factory

    def __call__(self, loop: Any, coroutine: Any, **keywords: Any) -> Any:
        return self._make(self.factory, loop, coroutine, **keywords)


class Factories:
    """The task factories of a class of loops, from 3.12 on, where a task may run before it is scheduled."""

    def __init__(self, native: ModuleType, owner: Any) -> None:
        self._native = native
        self._owner = owner
        self._loops: weakref.WeakSet[Any] = weakref.WeakSet()
        self._methods: list[Method] = []
        self._set: Callable[..., None] = owner.set_task_factory
        self._get: Callable[..., Any] = owner.get_task_factory

    def install(self) -> None:
        if sys.version_info < (3, 12):
            return
        self._methods = [
            Method(self._owner, "set_task_factory", self._make_setter),
            Method(self._owner, "get_task_factory", self._make_getter),
        ]
        import asyncio

        loop = asyncio._get_running_loop()
        if isinstance(loop, self._owner):
            factory = self._get(loop)
            if factory is not None:
                self._owner.set_task_factory(loop, factory)

    def remove(self) -> None:
        for loop in list(self._loops):
            factory = self._get(loop)
            if isinstance(factory, _Factory):
                self._set(loop, factory.factory)
        for method in self._methods:
            method.remove()
        self._methods = []

    def _make_setter(self, original: Callable[..., Any]) -> Callable[..., Any]:
        def set_task_factory(loop: Any, factory: Any) -> Any:
            if factory is None or not callable(factory):
                return original(loop, factory)
            self._loops.add(loop)
            return original(loop, _Factory(self._native, factory))

        return set_task_factory

    def _make_getter(self, original: Callable[..., Any]) -> Callable[..., Any]:
        def get_task_factory(loop: Any) -> Any:
            factory = original(loop)
            return factory.factory if isinstance(factory, _Factory) else factory

        return get_task_factory


# --- uvloop ---------------------------------------------------------------------------------------


class Uvloop:
    def __init__(self, native: ModuleType) -> None:
        self._native = native
        self._import = Import("uvloop", self._hook)
        self._factories: Factories | None = None

    def install(self) -> None:
        self._import.install()

    def _hook(self, uvloop: Any) -> None:
        try:
            self._native.task_call_soon(uvloop.Loop.call_soon)
        except ValueError as error:  # this runs in the program's import of uvloop, which must not fail
            warnings.warn(f"the tasks of this uvloop are not traced: {error}", RuntimeWarning, stacklevel=2)
            return
        self._factories = Factories(self._native, uvloop.Loop)
        self._factories.install()

    def remove(self) -> None:
        self._import.remove()
        if self._factories is not None:
            self._native.task_call_soon(None)
            self._factories.remove()


# --- trio -----------------------------------------------------------------------------------------


class Trio:
    def __init__(self, native: ModuleType, parts: dict[str, Any]) -> None:
        self._native = native
        self._parts = parts
        self._import = Import("trio", self._hook)
        self._methods: list[Method] = []
        self._run: Any = None
        self._is_active = False

    def install(self) -> None:
        self._is_active = True
        self._import.install()

    def _hook(self, trio: Any) -> None:
        try:
            import outcome

            self._run = sys.modules["trio._core._run"]
            self._parts.update(trio_cancelled=trio.Cancelled, trio_error=outcome.Error)
            self._methods.append(Method(self._run.Task, "_create", self._native.task_create))
            self._methods.append(Method(trio.CancelScope, "_cancel", self._make_cancel))
        except AttributeError as error:  # this runs in the program's import of trio, which must not fail
            warnings.warn(f"the tasks of this trio are not traced: {error}", RuntimeWarning, stacklevel=2)
            return
        self._native.task_start(self._parts)
        runner = getattr(self._run.GLOBAL_RUN_CONTEXT, "runner", None)
        for task in list(runner.tasks) if runner is not None else ():
            self._swap(task, self._native.task_wrap(task))

    def _make_cancel(self, original: Callable[..., None]) -> Callable[..., None]:
        def _cancel(scope: Any, reason: Any = None, *args: Any, **keywords: Any) -> None:
            is_first = not scope._cancel_called
            original(scope, reason, *args, **keywords)
            # What trio cancels by itself when it ends is not a request of the program.
            if is_first and self._is_active and getattr(reason, "source", "") != "shutdown":
                message = str(getattr(reason, "reason", None) or "")
                for task in _tasks_in(scope):
                    self._native.task_cancelled(task, message, scope)

        return functools.wraps(original)(_cancel)

    @staticmethod
    def _swap(task: Any, coroutine: Any) -> None:
        """Give a task another coroutine object, also for a step that is already scheduled."""
        next_call = task._next_send_fn
        if next_call is not None and getattr(next_call, "__self__", None) is task.coro:
            task._next_send_fn = getattr(coroutine, next_call.__name__)
        task.coro = coroutine

    def remove(self) -> None:
        self._is_active = False
        self._import.remove()
        while self._methods:
            self._methods.pop().remove()
        # Only the tasks of this thread: in others they may be running. What stays there passes calls on.
        runner = getattr(self._run.GLOBAL_RUN_CONTEXT, "runner", None) if self._run is not None else None
        for task in list(runner.tasks) if runner is not None else ():
            self._swap(task, self._native.task_unwrap(task.coro))


def _tasks_in(scope: Any) -> list[Any]:
    """The tasks that a scope cancels: its own and those of nested scopes."""
    statuses = [scope._cancel_status] if getattr(scope, "_cancel_status", None) is not None else []
    found: list[Any] = []
    while statuses and len(found) < CANCELLED_MAX:
        status = statuses.pop()
        if status.effectively_cancelled:
            found += status._tasks
            statuses += status._children
    return found[:CANCELLED_MAX]
