"""Warnings that never raise, even if the program turns warnings into errors.

What is warned about is in `statistics()` too, and an exception from the reader, a sink's task or an event call could
harm the program.
"""

from __future__ import annotations


def warn(message: str, *, stacklevel: int = 1) -> None:
    """Warn about something that went wrong.

    Args:
        stacklevel: Whose line the warning names: 1 is the caller's, 2 that of its caller.
    """
    try:
        import warnings  # here: most programs are never warned; it fails when Python shuts down

        warnings.warn(message, RuntimeWarning, stacklevel=stacklevel + 1)
    except (Warning, ImportError):
        pass
