"""loop: the iterations of asyncio's loops, seen where a loop calls its selector. uvloop and trio have no such place.

    callbacks of the last iteration | select: poll_ns | loop:iteration | callbacks of this iteration ...

`ready` is the number of callbacks that wait when the iteration begins, with those of ready files; timers that are due
are not included. `late_ns` is how long ago the first of those timers was due.
"""

from __future__ import annotations

import asyncio
import selectors
from typing import Final

from .._base.backend import c_module
from .._base.errors import ConfigurationError
from .._events.event import define
from ._runtimes import Method

_EVENT: Final = define("loop:iteration", {"ready": "u32", "poll_ns": "u64", "late_ns": "u64"}, by_default=False)
_methods: Final[list[Method]] = []


def start() -> None:
    """
    Raises:
        ConfigurationError: There is no C module.
    """
    native = c_module
    if native is None:
        raise ConfigurationError(
            "tracing loops (loop:*) needs the C module: `pip install .` with a C compiler builds it"
        )
    owner = selectors.DefaultSelector
    running: object = asyncio._get_running_loop
    _methods.append(Method(owner, "select", lambda original: native.task_select(owner, original, running, _EVENT)))


def stop() -> None:
    while _methods:
        _methods.pop().remove()
