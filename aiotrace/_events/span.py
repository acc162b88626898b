"""Spans: a stretch of work with a begin and an end, nested per task.

    span:begin  id, parent, name, fields              span:end  id, duration_ns, name
    X_begin     id, parent, the fields of the type    X_end     id, duration_ns             (span_type("db:query", ...))

The parent is the span that was open where this one began: it is kept in a context variable, so each task has its own,
and a task that is spawned in a span begins inside it. A span that is entered while no recording is open does nothing.

`_csrc/events/span.c` is the same in C, and is used if the C module is there.
"""

from __future__ import annotations

import itertools
import time
from contextvars import ContextVar

from .._base.backend import c_module
from .._base.errors import DefinitionError
from .event import Event, define, event
from .open_recordings import is_recording

TYPE_CHECKING = False  # importing it from `typing` would double the time of `import aiotrace`
if TYPE_CHECKING:
    from collections.abc import Mapping
    from types import TracebackType
    from typing import Any, Final, Self

    from .._page.event_schema import FieldType

_current: Final[ContextVar[int]] = ContextVar("aiotrace_span", default=0)
_ids: Final = itertools.count(1)


class PythonSpan:
    """One span, as a context manager. Entering it again while it is open does nothing; afterwards it is a new span."""

    __slots__ = ("_arguments", "_began", "_id", "_keywords", "_parent", "_type")

    def __init__(self, type: PythonSpanType, arguments: tuple[Any, ...], keywords: Mapping[str, Any]) -> None:
        self._type = type
        self._arguments = arguments
        self._keywords = keywords
        self._id = 0

    def __enter__(self) -> Self:
        if not self._id and is_recording():
            self._id = next(_ids)
            self._parent = _current.get()
            _current.set(self._id)
            try:
                self._type.begin(self._id, self._parent, *self._arguments, **self._keywords)
            except TypeError:  # a wrong value, and aiotrace is strict: the block is not entered
                _current.set(self._parent)
                self._id = 0
                raise
            self._began = time.monotonic_ns()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._id:
            _current.set(self._parent)
            duration = time.monotonic_ns() - self._began
            if self._type.is_plain:
                self._type.end(self._id, duration, self._arguments[0])
            else:
                self._type.end(self._id, duration)
            self._id = 0


class PythonSpanType:
    """Makes spans of one type; made by `span_type`. Called with the values of the fields."""

    def __init__(self, begin: Event, end: Event, is_plain: bool) -> None:
        self.begin = begin
        self.end = end
        self.is_plain = is_plain

    def __call__(self, /, *arguments: Any, **keywords: Any) -> PythonSpan:
        if self.is_plain:
            if len(arguments) != 1:
                raise TypeError(f"span() takes 1 positional argument, its name; got {len(arguments)}")
            return PythonSpan(self, (*arguments, show(keywords) if keywords and is_recording() else ""), {})
        return PythonSpan(self, arguments, keywords)


def show(fields: Mapping[str, object]) -> str:
    """The fields of a plain span as text: name=value, by their `repr`."""
    try:
        return " ".join(f"{name}={value!r}" for name, value in fields.items())
    except Exception as error:  # the program's repr failed: tracing must not raise it
        return f"<{type(error).__name__} in repr>"


if TYPE_CHECKING or c_module is None:
    SpanType = PythonSpanType
else:

    def SpanType(begin: Event, end: Event, is_plain: bool) -> Any:  # in place of the class
        return c_module.SpanType(begin, end, is_plain, _current, show)


_plain: Final = SpanType(
    event("span:begin", id="u64", parent="u64", name="symbol", fields="str"),
    event("span:end", id="u64", duration_ns="u64", name="symbol"),
    True,
)
if TYPE_CHECKING:

    def span(name: str, /, **fields: object) -> PythonSpan:
        """A context manager that records where it begins and ends.

        Args:
            name: Any text, by convention "system:name" or dotted. Names are interned, so use a limited set of them.
            fields: Recorded as text, name=value. Their `repr` is taken only while a recording is open.
        """

else:
    span = _plain


def span_type(name: str, /, **fields: FieldType) -> PythonSpanType:
    """Define spans with typed fields: faster than `span`, and filters can use the fields.

        query = aiotrace.span_type("db:query", table="symbol", rows="u32")
        with query("users", 7): ...

    Args:
        name: "system:name"; the events are `system:name_begin` and `system:name_end`.
        fields: As for `event`; the names `id` and `parent` are reserved.

    Raises:
        DefinitionError: As `event` does.
    """
    if taken := {"id", "parent"} & fields.keys():
        raise DefinitionError(f"{name}: the field name {min(taken)!r} is reserved for spans")
    begin = define(f"{name}_begin", {"id": "u64", "parent": "u64", **fields})
    end = define(f"{name}_end", {"id": "u64", "duration_ns": "u64"})
    return SpanType(begin, end, False)
