"""log: records of the logging module, as they reach their logger, whatever its handlers do with them.

    log:record  level, logger, message, site (file:line)

No handler is added: `logging.basicConfig` does nothing once the root logger has one.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from functools import wraps
from typing import Any, Final

from .._events.event import define
from ._patch import Patch

_record: Final = define(
    "log:record", {"level": "u8", "logger": "symbol", "message": "str", "site": "symbol"}, by_default=False
)


def _wrap(handle: Callable[..., Any]) -> Callable[..., Any]:
    @wraps(handle)
    def traced(self: logging.Logger, record: logging.LogRecord) -> None:
        if _patch.active:
            _emit(record)
        handle(self, record)

    return traced


def _emit(record: logging.LogRecord) -> None:
    try:
        message = record.getMessage()
    except Exception as error:  # the arguments do not fit the message: logging reports that itself
        message = f"{record.msg!s:.200} ({error!r})"
    _record(
        min(max(record.levelno, 0), 255), record.name, message, f"{os.path.basename(record.pathname)}:{record.lineno}"
    )


_patch: Final = Patch(logging.Logger, "handle", _wrap)
start: Final = _patch.start
stop: Final = _patch.stop
