"""What users pass as a sink (an async callable, one with options, or a URL), and how sinks share the pool.

    FileSink("trace.dat")   aiotrace.sink(FileSink(...), on_full="skip")   "file:trace.dat"   --> SinkOptions

Sinks never hold the whole pool: one page is left for a writer to fill, and one for the ring.
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib import import_module
from types import MethodType, ModuleType
from typing import Final, get_args

from .._base.errors import ConfigurationError
from .._ring.delivery import OnError, OnFull
from ..abc import Sink
from .options import is_positive_int


@dataclass(frozen=True, slots=True)
class SinkOptions:
    """A sink and how it is treated; made by `aiotrace.sink`."""

    sink: Sink
    quota: int | None = None
    on_full: OnFull = "wait"
    on_error: OnError = "retry"
    name: str = ""


AnySink = Sink | SinkOptions | str
"""What users pass as a sink: an async callable, one with options, or a URL ("file:trace.dat")."""

QUOTA_MIN: Final = 2
"""Pages: one that the sink works on, and the next one."""
PAGES_BESIDE: Final = 2
"""Pages that sinks never hold: one for a writer to fill, and one full in the ring."""


def sink(
    sink: AnySink, *, quota: int | None = None, on_full: OnFull = "wait", on_error: OnError = "retry"
) -> SinkOptions:
    """A sink with its quota and policies; a bare sink has the defaults.

    Args:
        sink: An async callable, or a URL whose scheme is an entry point of the group `aiotrace.sinks`.
        quota: Pages that it may hold at once; by default the sinks share half of the pool.
        on_full: When the sink holds its quota, "wait" holds back the reader and, in the end, producers that wait;
            "skip" lets the sink miss pages, which are counted and reported to it.
        on_error: When the sink raises, "retry" calls it again and offers its unacknowledged pages again; "detach"
            detaches it.

    Raises:
        ConfigurationError: An invalid value, or no sink is installed for the URL.
    """
    if isinstance(sink, SinkOptions):
        raise ConfigurationError(f"{sink!r} has its options already")
    made = open_url(sink) if isinstance(sink, str) else sink
    if not callable(made):
        raise ConfigurationError(f"{made!r} is no sink: a sink is an async callable over a page stream, or a URL")
    if quota is not None and not is_positive_int(quota):
        raise ConfigurationError(f"quota={quota!r}: a sink holds at least 1 page")
    for name, value, known in (("on_full", on_full, get_args(OnFull)), ("on_error", on_error, get_args(OnError))):
        if value not in known:
            raise ConfigurationError(f"{name}={value!r}: one of {', '.join(map(repr, known))}")
    return SinkOptions(made, quota, on_full, on_error, sink if isinstance(sink, str) else _name(made))


def _name(sink: Sink) -> str:
    """What messages and statistics call a sink: a function's name, an object's repr if it has one of its own."""
    if getattr(type(sink), "__repr__", None) is object.__repr__:
        return f"{type(sink).__name__}()"
    return getattr(sink, "__name__", None) or repr(sink)


def names_sink(options: SinkOptions, named: AnySink) -> bool:
    """Whether `named` is this sink. Bound methods are compared by `==`, because each access makes a new object; others
    by identity, because different sinks may compare equal."""
    if isinstance(named, str):
        return options.name == named
    one, other = options.sink, named.sink if isinstance(named, SinkOptions) else named
    return one is other or (isinstance(one, MethodType) and one == other)


def open_url(url: str) -> Sink:
    """The sink that a URL names, by the entry-point group `aiotrace.sinks`.

    Raises:
        ConfigurationError: No sink is installed for its scheme.
    """
    scheme, colon, _ = url.partition(":")
    own: ModuleType = import_module("aiotrace_sinks")
    if colon and scheme in own.SCHEMES:
        ours: Sink = getattr(own, own.SCHEMES[scheme]).from_url(url)
        return ours

    # Other packages' sinks. This import takes 35 ms: it is only done for them.
    from importlib.metadata import entry_points

    found = {point.name: point for point in entry_points(group="aiotrace.sinks")}
    if not colon or scheme not in found:
        known = ", ".join(sorted(f"{name}:" for name in found)) or "none are installed"
        raise ConfigurationError(f"{url!r}: no sink is known for {scheme!r}; known: {known}")
    made: Sink = found[scheme].load()(url)
    return made


def file_sink(path: str) -> Sink:
    """The sink that writes a trace.dat of this name, by its entry point.

    Raises:
        ConfigurationError: The path cannot be part of a URL, or no such sink is installed.
    """
    if "?" in path:
        raise ConfigurationError(f"{path!r}: choose a name without '?'")
    return open_url(f"file:{path}")


def pages_needed(sinks: int) -> int:
    """The least number of pages with which that many sinks can work."""
    return PAGES_BESIDE + QUOTA_MIN * sinks


def share_pages(pages: int, options: list[SinkOptions]) -> list[int]:
    """Each sink's quota.

    Raises:
        ConfigurationError: The pool is too small; the message derives how many pages are needed.
    """
    # By default all sinks together have half of the pool.
    shared = max(QUOTA_MIN, pages // 2 // max(len(options), 1))
    quotas = [each.quota if each.quota is not None else shared for each in options]

    # The smallest pool that would do, term by term for the message.
    least = [each.quota if each.quota is not None else QUOTA_MIN for each in options]
    terms = ["1 for a writer to fill", "1 full in the ring"]
    terms += [f"{pages} for {each.name}" for pages, each in zip(least, options, strict=True)]
    needed = PAGES_BESIDE + sum(least)
    if pages < needed:
        raise ConfigurationError(f"pages={pages} are too few: {' + '.join(terms)} = {needed} pages are needed")

    # Explicit quotas may leave less than half of the pool for the rest.
    given = sum(each.quota for each in options if each.quota is not None)
    if sum(quotas) > pages - 2:
        defaulted = sum(1 for each in options if each.quota is None)
        shared = max(QUOTA_MIN, (pages - 2 - given) // max(defaulted, 1))
        quotas = [each.quota if each.quota is not None else shared for each in options]
    return quotas
