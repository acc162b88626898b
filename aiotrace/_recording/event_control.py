"""What may be asked of an open recording about which events it takes: every kind of recording is a `EventControl`.

enable, disable, filter, trigger, ... --> the recording's selection --> a new epoch: every event asks again
                                                                    --> the tracers that are wanted run
"""

from __future__ import annotations

from .._base.errors import ConfigurationError
from .._base.warn import warn
from .._events.event import defined_events
from .._events.open_recordings import open_selections, selection_changed
from .._events.selection import STALL_MIN, Selection, matches, parse_trigger
from .._events.tracer_switch import follow
from .._page.derived_fields import DERIVED
from .._page.filter import Filter, compile_filter


def _check_fields(glob: str, filter: Filter | None) -> None:
    """
    Raises:
        ConfigurationError: The glob is the name of an event that is defined, and has not what the filter asks for.
    """
    events = {name: event for name, event in defined_events().items() if matches(glob, name)}
    found = {name: (*event.fields, *DERIVED.get(name, ())) for name, event in events.items()}
    missing = set(filter.fields if filter is not None else ()).difference(*found.values())
    if not missing or not found or filter is None:
        return
    name, fields = next(iter(found.items()))
    what = f"no field {', '.join(sorted(missing))}; {name} has {', '.join(fields) or 'none'}"
    if glob == name:
        raise ConfigurationError(f"filter {filter.text!r}: {name} has {what}")
    warn(f"aiotrace: filter {filter.text!r}: the events that {glob!r} is of so far have {what}", stacklevel=3)


class EventControl:
    """What may be asked of a recording, synchronous or not, about which events it takes."""

    selection: Selection

    def _reconsider(self) -> None:
        selection_changed()
        follow(open_selections())

    def enable(self, glob: str) -> None:
        """Take the events that a glob is of ("http:*", "task", "all"), also those that are defined later.

        Rules go in order: the last one that is of an event decides. Tracers, whose events are off by themselves,
        start and stop with it.

        Raises:
            ConfigurationError: A tracer that this names cannot run here, or no event can be of the glob; the message
                says why. Nothing has changed.
        """
        self.selection.enable(glob)
        try:
            self._reconsider()
        except BaseException:
            self.selection.undo_enable()
            self._reconsider()
            raise

    def watch_stalls(self, threshold: float = 0.1) -> None:
        """Take "stall:*": a step of a loop that lasts too long is reported while it lasts, with its stack, and at its
        end, with its length and cause.

        Args:
            threshold: Seconds, at least 0.001. The least that any open recording asks for goes for all of them.

        Raises:
            ConfigurationError: It is no such time, or steps cannot be watched here.
        """
        self.selection.stall_ns = _nanoseconds("threshold", threshold)
        self.enable("stall:*")

    def watch_cancellations(self, timeout: float = 1.0) -> None:
        """Take "cancellation:*": a task that is still there so long after its cancellation was asked for, while the
        request stands, is reported, with who asked for it and the line where it is.

        Args:
            timeout: Seconds, at least 0.001. The least that any open recording asks for goes for all of them.

        Raises:
            ConfigurationError: It is no such time, or tasks cannot be traced here.
        """
        self.selection.cancel_ns = _nanoseconds("timeout", timeout)
        self.enable("cancellation:*")

    def disable(self, glob: str) -> None:
        """Take the events that a glob is of no more.

        Raises:
            ConfigurationError: No event can be of the glob.
        """
        self.selection.disable(glob)
        self._reconsider()

    def filter(self, glob: str, text: str) -> None:
        """Take the events that a glob is of only where their fields agree, for example "status >= 500".

        It is compiled once and applied before a record is written; what it turns away is not counted as lost. Several
        filters of an event must all agree.

        Where it asks for a field that none of the events has, it takes none of them: that is warned of, because others
        may be defined later.

        Raises:
            ConfigurationError: It does not parse, no event can be of the glob, or the one event that it names has no
                such field. Nothing has changed.
        """
        _check_fields(glob, compile_filter(text))
        self.selection.filter(glob, text)
        self._reconsider()

    def trigger(self, glob: str, text: str) -> None:
        """Let events set something off: "traceoff", "traceon", "stacktrace" or "snapshot", each with ":COUNT" and
        "if FILTER".

        A stack trace is the Python stack of the event before it, innermost call first, aiotrace's own left out.

        Raises:
            ConfigurationError: It does not parse, there is no such action, no event can be of the glob, or its filter
                is one that `filter` refuses. Nothing has changed.
        """
        _check_fields(glob, parse_trigger(text).filter)
        self.selection.trigger(glob, text)
        self._reconsider()

    def limit(self, glob: str) -> None:
        """Let the tracers of functions see only functions like this one, and those of the other limits.

        Args:
            glob: Of "module.qualified_name": "json.decoder.*", "__main__.Server.handle".
        """
        self.selection.limit(glob)
        self._reconsider()

    def notrace(self, glob: str) -> None:
        """Let the tracers of functions not see functions like this one, whatever the limits are.

        Args:
            glob: Of "module.qualified_name".
        """
        self.selection.notrace(glob)
        self._reconsider()


def _nanoseconds(name: str, seconds: float) -> int:
    if not STALL_MIN <= seconds < float("inf"):
        raise ConfigurationError(f"{name}={seconds!r}: a time in seconds, at least {STALL_MIN}")
    return int(seconds * 1e9)
