"""exception: uncaught exceptions, and, on Python 3.12 and newer, each exception that is raised.

    exception:unhandled  where (main, thread, unraisable), type, message, site (file:line)
    exception:raised     type, site (file:line)                                              (3.12+)

`raised` uses sys.monitoring, so it costs nothing while nothing is raised.
"""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Callable
from functools import wraps
from types import CodeType, TracebackType
from typing import Any, Final

from .._base.errors import ConfigurationError
from .._events.event import define
from ._patch import Patch

_unhandled: Final = define(
    "exception:unhandled", {"where": "symbol", "type": "symbol", "message": "str", "site": "symbol"}, by_default=False
)
_raised: Final = define("exception:raised", {"type": "symbol", "site": "symbol"}, by_default=False)
TOOL_NAME: Final = "aiotrace exceptions"


def _record(where: str, kind: type[BaseException] | None, value: object, traceback: TracebackType | None) -> None:
    while traceback is not None and traceback.tb_next is not None:
        traceback = traceback.tb_next
    site = ""
    if traceback is not None:
        site = f"{os.path.basename(traceback.tb_frame.f_code.co_filename)}:{traceback.tb_lineno}"
    try:
        message = str(value)
    except Exception as error:  # the exception's own __str__ fails
        message = f"<{type(error).__name__} in str>"
    _unhandled(where, "" if kind is None else kind.__name__, message, site)


def _wrap_main(hook: Callable[..., Any]) -> Callable[..., Any]:
    @wraps(hook)
    def traced(kind: type[BaseException], value: BaseException, traceback: TracebackType | None) -> None:
        _record("main", kind, value, traceback)
        hook(kind, value, traceback)

    return traced


def _wrap_other(where: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    def wrap(hook: Callable[..., Any]) -> Callable[..., Any]:
        @wraps(hook)
        def traced(arguments: Any) -> None:
            _record(where, arguments.exc_type, arguments.exc_value, arguments.exc_traceback)
            hook(arguments)

        return traced

    return wrap


_patches: Final = (
    Patch(sys, "excepthook", _wrap_main),
    Patch(threading, "excepthook", _wrap_other("thread")),
    Patch(sys, "unraisablehook", _wrap_other("unraisable")),
)

if sys.version_info >= (3, 12):
    _tool = -1

    def _on_raise(code: CodeType, offset: int, error: BaseException) -> None:
        # The line is that of the caller's frame, which runs now.
        frame = sys._getframe(1)
        _raised(type(error).__name__, f"{os.path.basename(code.co_filename)}:{frame.f_lineno}")

    def _watch_raises() -> None:
        global _tool
        monitoring = sys.monitoring
        _tool = next((tool for tool in (3, 4, 2, 1, 0, 5) if monitoring.get_tool(tool) is None), -1)
        if _tool < 0:
            raise ConfigurationError("exception:raised: all tool ids of sys.monitoring are taken")
        monitoring.use_tool_id(_tool, TOOL_NAME)
        monitoring.register_callback(_tool, monitoring.events.RAISE, _on_raise)
        monitoring.set_events(_tool, monitoring.events.RAISE)

    def _unwatch_raises() -> None:
        global _tool
        if _tool >= 0:
            sys.monitoring.set_events(_tool, 0)
            sys.monitoring.free_tool_id(_tool)
            _tool = -1

else:

    def _watch_raises() -> None:
        pass

    def _unwatch_raises() -> None:
        pass


def start() -> None:
    for patch in _patches:
        patch.start()
    _watch_raises()


def stop() -> None:
    _unwatch_raises()
    for patch in _patches:
        patch.stop()
