"""A warning that harms nobody: where the program turns warnings into errors, nothing is raised.

What is warned of is in `statistics()` too: the program is told by that, and an exception out of a reader, a sink's task
or an event call would be ours to answer for (law 6).
"""

from __future__ import annotations

import warnings


def warn(message: str, *, stacklevel: int = 1) -> None:
    """Warn of something that went wrong.

    Args:
        stacklevel: Whose line is told: 1 is the caller's, 2 that of its caller.
    """
    try:
        warnings.warn(message, RuntimeWarning, stacklevel=stacklevel + 1)
    except Warning:
        pass
