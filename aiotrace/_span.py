"""Spans: a stretch of work with a begin and an end, nested per task.

    span:begin  name, id, parent, fields          span:end  name, id, duration_ns

The parent is the span that was open where this one began: it is kept in a context variable, so each task has its own.
"""

from __future__ import annotations

import itertools
import time
from contextvars import ContextVar
from types import TracebackType
from typing import Final, Self

from ._event import event, is_recording

_begin: Final = event("span:begin", name="symbol", id="u64", parent="u64", fields="str")
_end: Final = event("span:end", name="symbol", id="u64", duration_ns="u64")
_current: Final[ContextVar[int]] = ContextVar("aiotrace_span", default=0)
_ids: Final = itertools.count(1)


class span:
    """A context manager that records where it begins and ends.

    Args:
        name: Any text, by custom "system:name" or dotted; it is interned, so let there be few of them.
        fields: Shown as name=value; their `repr` is taken only while a recording is open.
    """

    __slots__ = ("_began", "_fields", "_id", "_name", "_parent")

    def __init__(self, name: str, /, **fields: object) -> None:
        self._name = name
        self._fields = fields
        self._id = 0

    def __enter__(self) -> Self:
        if is_recording():
            self._id = next(_ids)
            self._parent = _current.get()
            _current.set(self._id)
            _begin(self._name, self._id, self._parent, _show(self._fields))
            self._began = time.monotonic_ns()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._id:
            _current.set(self._parent)
            _end(self._name, self._id, time.monotonic_ns() - self._began)
            self._id = 0


def _show(fields: dict[str, object]) -> str:
    try:
        return " ".join(f"{name}={value!r}" for name, value in fields.items())
    except Exception as error:  # a repr of the program's failed: that is not the program's fault
        return f"<{type(error).__name__} in repr>"
