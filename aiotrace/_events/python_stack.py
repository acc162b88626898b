"""The current Python stack as a record: what a "stacktrace" trigger writes after its event.

aiotrace's own frames are left out wherever they are: an event that is recorded because a page was allocated has the
stack of the call that needed the page.
"""

from __future__ import annotations

import sys
from _thread import _local

from .._base.package import PACKAGE_FOLDER
from .._page.definitions import DEFINITIONS
from .._page.kernel_events import STACK_MAX, pack_stack

TYPE_CHECKING = False  # importing it from `typing` would double the time of `import aiotrace`
if TYPE_CHECKING:
    from types import CodeType, FrameType
    from typing import Final


class _Walking(_local):
    active = False
    """Whether this thread is reading its frames. That raises audit events, which are not the program's and would come
    between an event and its stack."""


walking: Final = _Walking()


def is_ours(code: CodeType) -> bool:
    """Whether a function is aiotrace's own."""
    return code.co_filename.startswith(PACKAGE_FOLDER)


def pack_current_stack(pid: int) -> bytes:
    """The payload of a `kernel_stack` event of the calling thread; it has no caller if no frame is the program's.

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
