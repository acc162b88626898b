"""The exceptions of aiotrace: one small tree; what anyio already has a name for keeps anyio's.

    AiotraceError
    ├── DefinitionError      (ValueError)    an event's name, field or type is not possible
    ├── ConfigurationError   (ValueError)    record() or a sink was asked for something that cannot work
    ├── TraceFormatError     (ValueError)    bytes that are read are not what their format says
    └── AcknowledgeError     (RuntimeError)  a sink acknowledged a page that it does not hold

None of these is ever raised into a traced program by an event call: see law 6 in docs/internals/architecture.md.
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
    """An event cannot be defined so; the message names the value."""


class ConfigurationError(AiotraceError, ValueError):
    """A recording or a sink cannot work so; the message names the value and what would do."""


class AcknowledgeError(AiotraceError, RuntimeError):
    """A page was acknowledged twice, or by a stream that does not hold it."""


class TraceFormatError(AiotraceError, ValueError):
    """What was read is not in the format that it should be in.

    Args:
        message: What was expected and what was found.
        path: The file, where there is one.
        offset: The place in bytes, from the beginning of the file (or of the buffer).
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
        """The same error with the place filled in where it was not known (`offset` is added to)."""
        if offset is not None and self.offset is not None:
            offset += self.offset
        return TraceFormatError(self.message, path=self.path or path, offset=self.offset if offset is None else offset)
