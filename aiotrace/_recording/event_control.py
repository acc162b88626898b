"""Which events a recording captures: `enable`, `disable`, `filter`, `trigger`. Mixed into every recording class.

    enable, disable, ... --> the recording's selection --> a new epoch: every event looks up its selection again
                                                       --> tracers start and stop as they are needed

Invariant (held by tests/events/test_selection.py): a call that raises has changed nothing.
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
        ConfigurationError: The glob names one defined event, which lacks a field of the filter.
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
    """Selects the events of a recording; all of it may be called while the recording is open."""

    selection: Selection

    def _reconsider(self) -> None:
        selection_changed()
        follow(open_selections())

    def enable(self, glob: str) -> None:
        """Record events that match a glob ("http:*", "task", "all"), including those that are defined later.

        The last call that matches an event decides. The events of tracers are off by default; enabling them starts
        their tracer.

        Raises:
            ConfigurationError: A tracer that the glob names cannot run here, or no event can match the glob; the
                message says why. Nothing has changed.
        """
        self.selection.enable(glob)
        try:
            self._reconsider()
        except BaseException:
            self.selection.undo_enable()
            self._reconsider()
            raise

    def watch_stalls(self, threshold: float = 0.1) -> None:
        """Record "stall:*": a step of a loop that lasts too long is reported while it lasts, with its stack, and at
        its end, with its length and cause.

        Args:
            threshold: Seconds, at least 0.001. The smallest threshold of all open recordings applies to all of them.

        Raises:
            ConfigurationError: `threshold` is out of range, or steps cannot be watched here.
        """
        self.selection.stall_ns = _nanoseconds("threshold", threshold)
        self.enable("stall:*")

    def watch_cancellations(self, timeout: float = 1.0) -> None:
        """Record "cancellation:*": a task that has not ended `timeout` seconds after a request to cancel it, while
        the request still stands, is reported with the requester and the line where the task is now.

        Args:
            timeout: Seconds, at least 0.001. The smallest timeout of all open recordings applies to all of them.

        Raises:
            ConfigurationError: `timeout` is out of range, or tasks cannot be traced here.
        """
        self.selection.cancel_ns = _nanoseconds("timeout", timeout)
        self.enable("cancellation:*")

    def disable(self, glob: str) -> None:
        """Stop recording events that match a glob.

        Raises:
            ConfigurationError: No event can match the glob.
        """
        self.selection.disable(glob)
        self._reconsider()

    def filter(self, glob: str, text: str) -> None:
        """Record events that match a glob only if their fields match a filter, for example "status >= 500".

        The filter is compiled once and evaluated before a record is written; rejected events do not count as lost. If
        several filters apply to an event, all of them must match.

        A filter over a field that none of the events has rejects them all, with a warning: an event that has the field
        may be defined later.

        Raises:
            ConfigurationError: The filter does not parse, no event can match the glob, or the glob names one event,
                which has no such field. Nothing has changed.
        """
        _check_fields(glob, compile_filter(text))
        self.selection.filter(glob, text)
        self._reconsider()

    def trigger(self, glob: str, text: str) -> None:
        """Let events trigger an action: "traceoff", "traceon", "stacktrace" or "snapshot", optionally with ":COUNT"
        and "if FILTER".

        A stack trace is the Python stack of the event recorded just before it, innermost call first, without
        aiotrace's own frames.

        Raises:
            ConfigurationError: The trigger does not parse, there is no such action, no event can match the glob, or
                `filter` would refuse its filter. Nothing has changed.
        """
        _check_fields(glob, parse_trigger(text).filter)
        self.selection.trigger(glob, text)
        self._reconsider()

    def limit(self, glob: str) -> None:
        """Let function tracers record only functions that match this glob or that of another `limit`.

        Args:
            glob: Matched against "module.qualified_name": "json.decoder.*", "__main__.Server.handle".
        """
        self.selection.limit(glob)
        self._reconsider()

    def notrace(self, glob: str) -> None:
        """Let function tracers ignore functions that match this glob, even if a `limit` selects them.

        Args:
            glob: Matched against "module.qualified_name".
        """
        self.selection.notrace(glob)
        self._reconsider()


def _nanoseconds(name: str, seconds: float) -> int:
    if not STALL_MIN <= seconds < float("inf"):
        raise ConfigurationError(f"{name}={seconds!r}: a time in seconds, at least {STALL_MIN}")
    return int(seconds * 1e9)
