"""function: each call of a Python function, and who called it, as the kernel's event `function`: what, and from where.

function:call  ip, parent_ip

Too dear to be part of "all". How the calls are seen stands in `_calls.py`.
"""

from __future__ import annotations

from collections.abc import Iterable

from .._selection import Selection
from . import _calls


def start() -> None:
    """
    Raises:
        ConfigurationError: It cannot here; the message says why.
    """
    _calls.start("function")


def stop() -> None:
    _calls.stop("function")


def follow(selections: Iterable[Selection]) -> None:
    """The limits of the open recordings may have changed."""
    _calls.follow(selections)
