"""The exceptions of aiotrace, one small tree. Where anyio has an exception for a case, that one is raised.

    AiotraceError
    ├── DefinitionError      (ValueError)    an event's name, field or type is not possible
    ├── ConfigurationError   (ValueError)    an argument of record() or a sink cannot work
    ├── TraceFormatError     (ValueError)    bytes that are read are not what their format says
    └── AcknowledgeError     (RuntimeError)  a sink acknowledged a page that it does not hold

Outside of the tree, because no caller of the library meets them or because they are something else first:

    aiotrace.testing.SinkRuleError  (AssertionError)  a sink broke a rule of its contract
    BudgetError, RefusedByRecorderError  (OSError)    the collector's disk budget is spent; the recorder refused
    FullError, RefusedError, WrongValueError, NonsenseError      caught where they are raised, never seen outside
    ExcessiveFormatError, UnknownNameError                       the same, where print formats are interpreted

An event call raises none of these into a traced program: see law 6 in docs/internals/architecture.md.
"""

from __future__ import annotations

__all__ = [
    "AcknowledgeError",
    "AiotraceError",
    "ConfigurationError",
    "DefinitionError",
    "TraceFormatError",
]


class AiotraceError(Exception):
    """The base of all exceptions that aiotrace defines."""


class DefinitionError(AiotraceError, ValueError):
    """An event cannot be defined like this; the message names the value."""


class ConfigurationError(AiotraceError, ValueError):
    """A recording or a sink cannot work like this; the message names the value and what is valid."""


class AcknowledgeError(AiotraceError, RuntimeError):
    """A page was acknowledged twice, or by a stream that does not hold it."""


class TraceFormatError(AiotraceError, ValueError):
    """What was read is not in the expected format.

    Args:
        message: What was expected and what was found.
        path: The file, if there is one.
        offset: The position in bytes, from the beginning of the file (or of the buffer).
    """

    def __init__(self, message: str, *, path: str | None = None, offset: int | None = None) -> None:
        self.message = message
        self.path = path
        self.offset = offset
        super().__init__(message)

    def __str__(self) -> str:
        place = [part for part in (self.path, self.offset is not None and f"offset {self.offset}") if part]
        return f"{', '.join(place)}: {self.message}" if place else self.message

    def at(self, path: str | None = None, offset: int | None = None) -> TraceFormatError:
        """The same error with path and offset filled in if unknown; a known offset is increased by `offset`."""
        if offset is not None and self.offset is not None:
            offset += self.offset
        return TraceFormatError(self.message, path=self.path or path, offset=self.offset if offset is None else offset)
