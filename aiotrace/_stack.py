"""The Python stack of this moment, as a record: what a trigger "stacktrace" writes after its event.

Our own frames are left out, wherever they stand: an event that a page's allocation sets off has the stack of the call
that needed the page.
"""

from __future__ import annotations

import os
import sys
from types import CodeType, FrameType
from typing import Final

from ._definitions import DEFINITIONS
from ._ftrace import STACK_MAX, pack_stack

_FOLDER: Final = os.path.join(os.path.dirname(os.path.abspath(__file__)), "")


def is_ours(code: CodeType) -> bool:
    """Whether a function is aiotrace's own."""
    return code.co_filename.startswith(_FOLDER)


def pack_current_stack(pid: int) -> bytes:
    """The payload of a `kernel_stack` of the calling thread; without a caller where no frame is the program's.

    Args:
        pid: common_pid.
    """
    callers: list[int] = []
    frame: FrameType | None = sys._getframe(1)
    while frame is not None and len(callers) < STACK_MAX:
        code = frame.f_code
        if not is_ours(code):
            callers.append(DEFINITIONS.locate(code, frame.f_lineno))
        frame = frame.f_back
    return pack_stack(pid, callers)
