"""function_graph: each Python function as it is called and as it returns, as the kernel's events of that name.

function_graph:entry  func, depth          function_graph:exit  func, depth, overrun, calltime, rettime

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
    _calls.start("function_graph")


def stop() -> None:
    _calls.stop("function_graph")


def follow(selections: Iterable[Selection]) -> None:
    """The limits of the open recordings may have changed."""
    _calls.follow(selections)
