"""Which events a started program records: the options -e, -v, -f, -R, -l and -n, in their order, as data."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from .._events.event import Event
from .._events.selection import matches, parse_trigger
from .._page.derived_fields import DERIVED
from .._page.filter import compile_filter
from .._recording.event_control import EventControl

Action = Literal["enable", "disable", "filter", "trigger", "limit", "notrace"]


@dataclass(frozen=True, slots=True)
class Rule:
    """One call of a method of `EventControl`."""

    action: Action
    glob: str
    text: str = ""
    """Of a filter or a trigger."""

    def check(self) -> None:
        """
        Raises:
            ConfigurationError: The text does not parse.
        """
        _ = self.fields

    @property
    def fields(self) -> set[str]:
        """The fields that the text names."""
        if self.action == "filter":
            return set(compile_filter(self.text).fields)
        filter = parse_trigger(self.text).filter if self.action == "trigger" else None
        return set(filter.fields) if filter is not None else set()

    def apply(self, recording: EventControl) -> None:
        """
        Raises:
            ConfigurationError: As that method.
        """
        match self.action:
            case "enable":
                recording.enable(self.glob)
            case "disable":
                recording.disable(self.glob)
            case "filter":
                recording.filter(self.glob, self.text)
            case "trigger":
                recording.trigger(self.glob, self.text)
            case "limit":
                recording.limit(self.glob)
            case "notrace":
                recording.notrace(self.glob)


def unmatched(rules: Iterable[Rule], events: Mapping[str, Event]) -> Iterator[str]:
    """Lines on rules that match none of a program's events, or name fields that these do not have: most often these are
    spelling mistakes."""
    names = list(events)
    for rule in rules:
        found = [name for name in names if matches(rule.glob, name)]
        if rule.action == "enable" and not found:
            known = f"it has {', '.join(names[:10])}{', …' if len(names) > 10 else ''}" if names else "it has none"
            yield f"-e {rule.glob!r} matches no event of this process: {known}"

        missing = rule.fields
        for name in found:
            missing -= {*events[name].fields, *DERIVED.get(name, ())}
        if found and missing:
            has = f"{found[0]} has {', '.join(events[found[0]].fields) or 'none'}"
            yield f"{rule.text!r}: no event of {rule.glob!r} has a field {', '.join(sorted(missing))}; {has}"


def rules_from(values: Iterable[Any]) -> tuple[Rule, ...]:
    """Rules as JSON has them, which `dataclasses.asdict` made."""
    return tuple(Rule(**value) for value in values)
