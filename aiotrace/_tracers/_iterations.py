"""task:loop: the iterations of asyncio's loops, seen where a loop asks its selector.

    callbacks of the last iteration | select: poll_ns | record | callbacks of this iteration ...

`ready` is how many callbacks wait as the iteration begins, with those of the files that are ready; timers that are due
come on top. `late_ns` is how long ago the first of these was due. uvloop does not let anybody look there.
"""

from __future__ import annotations

import asyncio
import selectors
import time
from collections.abc import Callable
from types import ModuleType
from typing import Any

from ._runtimes import Method


class Iterations:
    def __init__(self, native: ModuleType, event: Any) -> None:
        self._event = event
        self._is_wanted = native.task_wants
        self._is_active = False

    def put(self) -> None:
        self._is_active = True
        self._method = Method(selectors.DefaultSelector, "select", self._make)

    def take_back(self) -> None:
        self._is_active = False
        self._method.take_back()

    def _make(self, original: Callable[..., Any]) -> Callable[..., Any]:
        event, is_wanted = self._event, self._is_wanted

        def select(selector: Any, timeout: float | None = None) -> Any:
            loop: Any = asyncio._get_running_loop()
            if not self._is_active or not is_wanted(event) or getattr(loop, "_selector", None) is not selector:
                return original(selector, timeout)
            began = time.monotonic_ns()
            found = original(selector, timeout)
            now = time.monotonic_ns()
            timers = loop._scheduled
            late = loop.time() - timers[0]._when if timers else 0
            event(len(loop._ready) + len(found), now - began, max(int(late * 1e9), 0))
            return found

        return select
