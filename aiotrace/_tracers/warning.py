"""warning: warnings that are shown (not those that a filter ignores or turns into errors).

warning:shown  category, message, site (file:line)

The function that calls `warnings.showwarning` is wrapped: if `showwarning` itself were replaced, Python would not pass
it the object that the warning is about, and would not show where that was allocated.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable
from functools import wraps
from typing import Any, Final

from .._events.event import define
from ._patch import Patch

_shown: Final = define("warning:shown", {"category": "symbol", "message": "str", "site": "symbol"}, by_default=False)


def _wrap(show: Callable[..., Any]) -> Callable[..., Any]:
    @wraps(show)
    def traced(message: Any) -> None:
        if _patch.active:
            site = f"{os.path.basename(message.filename)}:{message.lineno}"
            _shown(message.category.__name__, str(message.message), site)
        show(message)

    return traced


_patch: Final = Patch(warnings, "_showwarnmsg", _wrap)
start: Final = _patch.start
stop: Final = _patch.stop
