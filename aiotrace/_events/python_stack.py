"""The Python stack of this moment, as a record: what a trigger "stacktrace" writes after its event.

Our own frames are left out, wherever they stand: an event that a page's allocation sets off has the stack of the call
that needed the page.
"""

from __future__ import annotations

import sys
import threading
from types import CodeType, FrameType
from typing import Final

from .._base.package import PACKAGE_FOLDER
from .._page.definitions import DEFINITIONS
from .._page.kernel_events import STACK_MAX, pack_stack


class _Walking(threading.local):
    active = False
    """Whether this thread reads its frames just now, which raises audit events: they are not the program's, and would
    stand between an event and its stack."""


walking: Final = _Walking()


def is_ours(code: CodeType) -> bool:
    """Whether a function is aiotrace's own."""
    return code.co_filename.startswith(PACKAGE_FOLDER)


def pack_current_stack(pid: int) -> bytes:
    """The payload of a `kernel_stack` of the calling thread; without a caller where no frame is the program's.

    Args:
        pid: common_pid.
    """
    walking.active = True
    try:
        return pack_stack(pid, _walk(sys._getframe(1)))
    finally:
        walking.active = False


def _walk(frame: FrameType | None) -> list[int]:
    callers: list[int] = []
    while frame is not None and len(callers) < STACK_MAX:
        code = frame.f_code
        if not is_ours(code):
            callers.append(DEFINITIONS.locate(code, frame.f_lineno))
        frame = frame.f_back
    return callers
