"""warning: warnings that are shown (not those that a filter ignores or turns into errors).

warning:shown  category, message, site (file:line)
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable
from functools import wraps
from typing import Any, Final

from .._event import define
from ._patch import Patch

_shown: Final = define("warning:shown", {"category": "symbol", "message": "str", "site": "symbol"}, by_default=False)


def _wrap(show: Callable[..., Any]) -> Callable[..., Any]:
    @wraps(show)
    def traced(message: Any, category: type[Warning], filename: str, lineno: int, *rest: Any, **keywords: Any) -> None:
        if _patch.active:
            _shown(category.__name__, str(message), f"{os.path.basename(filename)}:{lineno}")
        show(message, category, filename, lineno, *rest, **keywords)

    return traced


_patch: Final = Patch(warnings, "showwarning", _wrap)
start: Final = _patch.start
stop: Final = _patch.stop
