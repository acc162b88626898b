"""The options of a recording, checked once, for `aiotrace.record`, `aiotrace.recording` and `aiotrace record`."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Final, Literal, get_args

from .._base.errors import ConfigurationError
from .._budget.policy import check_share
from .._page import layout as L

Overrun = Literal["drop_newest", "drop_oldest"]

SNAPSHOTS: Final = "trace.dat"


@dataclass(frozen=True, slots=True)
class RecordingOptions:
    """Everything about a recording but its sinks and where they run; `aiotrace.record` documents the fields.

    Raises:
        ConfigurationError: A value that cannot work; the message says what would.
    """

    page_size: int = L.PAGE_SIZE_DEFAULT
    pages: int = 64
    overrun: Overrun = "drop_newest"
    flush_interval: float = 0.2
    drain_timeout: float = 5.0
    clock: str = "mono"
    arena: str | os.PathLike[str] | None = None
    snapshots: str | os.PathLike[str] = SNAPSHOTS
    budget: float | None = None

    def __post_init__(self) -> None:
        if self.budget is not None:
            check_share(self.budget)

        size = self.page_size
        if not is_positive_int(size) or size & (size - 1) or not L.PAGE_SIZE_MIN <= size <= L.PAGE_SIZE_MAX:
            raise ConfigurationError(
                f"page_size={size!r}: must be a power of two from {L.PAGE_SIZE_MIN} to {L.PAGE_SIZE_MAX} bytes"
            )
        if not is_positive_int(self.pages):
            raise ConfigurationError(f"pages={self.pages!r}: must be a number of pages, at least 1")
        if self.overrun not in get_args(Overrun):
            raise ConfigurationError(f"overrun={self.overrun!r}: must be {' or '.join(map(repr, get_args(Overrun)))}")

        if not is_seconds(self.flush_interval) or not self.flush_interval > 0:
            raise ConfigurationError(f"flush_interval={self.flush_interval!r}: must be in seconds, more than 0")
        if not is_seconds(self.drain_timeout) or not self.drain_timeout >= 0:
            raise ConfigurationError(f"drain_timeout={self.drain_timeout!r}: must be in seconds, at least 0")


def is_positive_int(value: object) -> bool:
    return isinstance(value, int) and value >= 1


def is_seconds(value: object) -> bool:
    return isinstance(value, (int, float))
