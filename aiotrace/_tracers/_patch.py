"""Replaces a function, and restores it, unless other code has replaced it again in between."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any


class Patch:
    """`owner.name` is `make(original)` between `start` and `stop`.

    If other code has replaced the replacement, `stop` cannot remove it; then it only passes calls on while `active` is
    false.
    """

    def __init__(self, owner: Any, name: str, make: Callable[[Callable[..., Any]], Callable[..., Any]]) -> None:
        self._owner = owner
        self._name = name
        self._make = make
        self._original: Any = None
        self._ours: Any = None
        self.active = False

    def start(self) -> None:
        self.active = True
        if self._ours is None:
            self._original = getattr(self._owner, self._name)
            self._ours = self._make(self._original)
            setattr(self._owner, self._name, self._ours)

    def stop(self) -> None:
        self.active = False
        if getattr(self._owner, self._name) is self._ours:
            setattr(self._owner, self._name, self._original)
            self._ours = self._original = None
