"""Selection: which events one recording takes, with which filters, and which actions they trigger. Sans-IO.

    rules               on or off by glob; the last that matches decides; if none does, the event's default does
    filters             all that match an event must accept it
    triggers            what a recorded event does: switch recording off or on, record its stack, take a snapshot
    disabled_by_budget  what the budget has switched off
    functions           which functions the call tracers see: the kernel's set_ftrace_filter and set_ftrace_notrace

A glob matches "system:event"; one without a colon matches either part, as in `trace-cmd -e sched`; "all" matches every
event. An event calls `decide` once after each change, never per call.
"""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, Literal

from .._base.errors import ConfigurationError
from .._page.filter import Filter, compile_filter

Action = Literal["traceon", "traceoff", "stacktrace", "snapshot"]
ACTIONS: Final = ("traceon", "traceoff", "stacktrace", "snapshot")
AFTER_MAX: Final = 3600.0
"""Seconds that a snapshot may record after its trigger: for longer use a sink."""
_TRIGGER: Final = re.compile(
    r"\s*(?P<action>\w+)(:(?P<count>\d+))?(:after=(?P<after>\d+(\.\d+)?))?(\s+if\s+(?P<filter>.+))?\s*", re.DOTALL
)


EXPLICIT: Final = frozenset({"aiotrace", "function", "function_graph", "sched"})
"""Systems that "all" leaves out, because they are expensive, about aiotrace itself, or redundant: each is enabled by
its name."""
STALL_NS: Final = 100_000_000
"""How long a step lasts before it is a stall, by default: asyncio's `slow_callback_duration`."""
STALL_MIN: Final = 0.001
"""Seconds: the watcher cannot notice a shorter stall in time."""
CANCEL_NS: Final = 1_000_000_000
"""How long a task has to react to a cancellation, by default."""


class Trigger:
    """An action that an event triggers, `remaining` times at most (None: always), if its filter accepts the event."""

    def __init__(self, action: Action, remaining: int | None, filter: Filter | None, after: float = 0.0) -> None:
        self.action = action
        self.remaining = remaining
        self.filter = filter
        self.after = after
        """Seconds that a snapshot records after the event."""

    def fires(self, fields: Mapping[str, Any]) -> bool:
        """Whether it acts on an event with these fields; if so, counts down."""
        if self.remaining == 0 or (self.filter is not None and not self.filter(fields)):
            return False
        if self.remaining is not None:
            self.remaining -= 1
        return True


def parse_trigger(text: str) -> Trigger:
    """ "ACTION[:COUNT] [if FILTER]", as in the kernel's trigger files; a snapshot's ":after=SECONDS" follows its count.

    Raises:
        ConfigurationError: The text does not have that form, the action is unknown, or the filter does not parse.
    """
    match = _TRIGGER.fullmatch(text)
    if match is None:
        raise ConfigurationError(
            f"trigger {text!r}: write ACTION[:COUNT] [if FILTER], or snapshot[:COUNT][:after=SECONDS] [if FILTER]"
        )
    action, count, after = match["action"], match["count"], float(match["after"] or 0)
    if action not in ACTIONS:
        raise ConfigurationError(f"trigger {text!r}: unknown action {action!r}; known: {', '.join(ACTIONS)}")
    if match["after"] and action != "snapshot":
        raise ConfigurationError(f"trigger {text!r}: only snapshot takes after=, not {action!r}")
    if after > AFTER_MAX:
        raise ConfigurationError(f"trigger {text!r}: after= is at most {AFTER_MAX:.0f} s")
    filter = compile_filter(match["filter"]) if match["filter"] else None
    remaining = None if count is None else int(count)
    return Trigger(action, remaining, filter, after)  # type: ignore[arg-type]  # checked above


def matches(glob: str, name: str) -> bool:
    """Whether a glob matches this event ("system:event"). Names have underscores for dots: "audit:socket_connect"."""
    glob = glob.replace(".", "_")
    if glob == "all" or fnmatch.fnmatchcase(name, glob):
        return True
    return ":" not in glob and any(fnmatch.fnmatchcase(part, glob) for part in name.split(":"))


def check_glob(glob: str) -> str:
    """
    Raises:
        ConfigurationError: It cannot match any event.
    """
    if not glob.strip():
        raise ConfigurationError(f"{glob!r} matches no event: write 'system:event', a glob like 'http:*', or 'all'")
    return glob


def _is_everything(glob: str) -> bool:
    """Whether a glob names no system."""
    return glob == "all" or not glob.partition(":")[0].strip("*")


@dataclass(frozen=True, slots=True)
class Decision:
    """How one recording takes one event; None where there could be one: not at all."""

    filters: tuple[Filter, ...] = ()
    triggers: tuple[Trigger, ...] = ()
    records: bool = True
    """False while the recording is off: then only triggers that switch it on are evaluated."""

    @property
    def is_plain(self) -> bool:
        """Whether every call is taken, and triggers nothing."""
        return self is PLAIN

    def accepts(self, fields: Mapping[str, Any]) -> bool:
        for filter in self.filters:  # noqa: SIM110  # all() of a generator costs three times as much
            if not filter(fields):
                return False
        return True


PLAIN: Final = Decision()
"""Every call is taken, and triggers nothing."""


class Functions:
    """Which functions are traced, by globs of "module.qualified_name": those that a limit matches, or all if there is
    no limit, without those that a notrace matches.

    A tracer asks once for each function, not per call.
    """

    def __init__(self) -> None:
        self.limits: list[str] = []
        self.notraces: list[str] = []
        self.unmatched: set[str] = set()
        """Limits that have matched no function yet. (A notrace that matches nothing is no mistake.)"""

    @property
    def globs(self) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """The limits and notraces now."""
        return tuple(self.limits), tuple(self.notraces)

    def takes(self, name: str) -> bool:
        wanted = self._is_of(self.limits, name) or not self.limits
        return not self._is_of(self.notraces, name) and wanted

    def _is_of(self, globs: list[str], name: str) -> bool:
        found = [glob for glob in globs if fnmatch.fnmatchcase(name, glob)]
        self.unmatched.difference_update(found)
        return bool(found)


class Selection:
    def __init__(self) -> None:
        self.functions = Functions()
        self._rules: list[tuple[str, bool]] = []
        self._filters: list[tuple[str, Filter]] = []
        self._triggers: list[tuple[str, Trigger]] = []
        self.is_on = True
        """Whether anything is recorded; switched by traceoff and traceon."""
        self.stall_ns = STALL_NS
        """How long a step lasts before it is reported as a stall."""
        self.cancel_ns = CANCEL_NS
        """How long a task has to react to a cancellation."""
        self.disabled_by_budget: tuple[str, ...] = ()
        """Globs of what the budget has switched off, whatever the rules say."""

    def enable(self, glob: str) -> None:
        self._rules.append((check_glob(glob), True))

    def undo_enable(self) -> None:
        """Undo the last `enable`, because the tracer that it needs cannot run."""
        self._rules.pop()

    def disable(self, glob: str) -> None:
        self._rules.append((check_glob(glob), False))

    def filter(self, glob: str, text: str) -> Filter:
        """
        Raises:
            ConfigurationError: The text does not parse, or the glob cannot match any event.
        """
        filter = compile_filter(text)
        self._filters.append((check_glob(glob), filter))
        return filter

    def trigger(self, glob: str, text: str) -> Trigger:
        """
        Raises:
            ConfigurationError: The text does not parse, or the glob cannot match any event.
        """
        trigger = parse_trigger(text)
        self._triggers.append((check_glob(glob), trigger))
        return trigger

    def limit(self, glob: str) -> None:
        self.functions.unmatched.add(glob)
        self.functions.limits.append(glob)

    def notrace(self, glob: str) -> None:
        self.functions.notraces.append(glob)

    @property
    def has_triggers(self) -> bool:
        """Whether an event may trigger something, like switching the recording off."""
        return bool(self._triggers)

    @property
    def looks_at_fields(self) -> bool:
        """Whether there is a filter or a trigger, so that some events need Python."""
        return bool(self._filters or self._triggers)

    def is_enabled(self, name: str, *, by_default: bool) -> bool:
        """Whether the rules and the budget take an event; filters and traceoff are not considered."""
        is_disabled = any(matches(glob, name) for glob in self.disabled_by_budget)
        return not is_disabled and self.asks_for(name, by_default=by_default)

    def asks_for(self, name: str, *, by_default: bool) -> bool:
        """Whether the rules take an event."""
        system = name.partition(":")[0]
        for glob, on in reversed(self._rules):
            if matches(glob, name) and not (on and system in EXPLICIT and _is_everything(glob)):
                return on
        return by_default

    def wants_system(self, system: str, *, explicit: bool) -> bool:
        """Whether some event of a tracer's system may be taken.

        Args:
            explicit: Only a rule that names the system counts, not one for everything.
        """
        if f"{system}:*" in self.disabled_by_budget:
            return False

        # A later rule for single events of the system does not switch off what an earlier one switched on.
        wanted = False
        for glob, on in self._rules:
            part, _, rest = glob.partition(":")
            everything = _is_everything(glob)
            if everything and explicit and on:
                continue
            if everything or fnmatch.fnmatchcase(system, part):
                wanted = on or (wanted and rest not in ("", "*"))
        return wanted

    def decide(self, name: str, *, by_default: bool) -> Decision | None:
        """How an event is taken now; None: not at all."""
        if not self.is_enabled(name, by_default=by_default):
            return None

        # While the recording is off, only what can switch it on matters.
        triggers = tuple(trigger for glob, trigger in self._triggers if matches(glob, name))
        if not self.is_on:
            triggers = tuple(trigger for trigger in triggers if trigger.action == "traceon")
            if not triggers:
                return None

        filters = tuple(filter for glob, filter in self._filters if matches(glob, name))
        return Decision(filters, triggers, self.is_on) if filters or triggers else PLAIN
