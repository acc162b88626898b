"""thread: threads of the threading module; the events are recorded in the thread itself.

    thread:start  name, daemon          thread:exit  name, duration_ns

Threads that C code starts are not seen (events that they record are, under their native ids).
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from functools import wraps
from typing import Any, Final

from .._events.event import define
from ._patch import Patch

_start: Final = define("thread:start", {"name": "str", "daemon": "bool"}, by_default=False)
_exit: Final = define("thread:exit", {"name": "str", "duration_ns": "u64"}, by_default=False)


def _wrap(run: Callable[..., Any]) -> Callable[..., Any]:
    @wraps(run)
    def bootstrap(self: threading.Thread) -> None:
        if not _patch.active:
            run(self)
            return
        began = time.monotonic_ns()
        _start(self.name, self.daemon)
        try:
            run(self)
        finally:
            _exit(self.name, time.monotonic_ns() - began)

    return bootstrap


# The innermost method of Thread that runs in the thread and that programs do not override, as they do `run`.
_patch: Final = Patch(threading.Thread, "_bootstrap_inner", _wrap)
start: Final = _patch.start
stop: Final = _patch.stop
