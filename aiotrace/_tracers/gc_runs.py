"""gc: each run of the garbage collector, and how long it stopped the program.

gc:start  generation          gc:stop  generation, duration_ns, collected, uncollectable
"""

from __future__ import annotations

import gc
import time
from typing import Any, Final

from .._events.event import define

_start: Final = define("gc:start", {"generation": "u8"}, by_default=False)
_stop: Final = define(
    "gc:stop", {"generation": "u8", "duration_ns": "u64", "collected": "u64", "uncollectable": "u64"}, by_default=False
)
_began = 0  # global: the collector runs in one thread at a time


def _callback(phase: str, info: dict[str, Any]) -> None:
    global _began
    if phase == "start":
        _start(info["generation"])
        _began = time.monotonic_ns()
    elif _began:
        _stop(info["generation"], time.monotonic_ns() - _began, info["collected"], info["uncollectable"])
        _began = 0


def start() -> None:
    gc.callbacks.append(_callback)


def stop() -> None:
    global _began
    gc.callbacks.remove(_callback)
    _began = 0
