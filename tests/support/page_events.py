"""A listener of a page cycle that does what a test sets."""

from __future__ import annotations

from collections.abc import Callable

from aiotrace._ring.page_cycle import PageListener


def _nothing() -> object:
    return None


class PageEvents(PageListener):
    """Each call calls the function of its name, which a test replaces; `events` has what happened."""

    def __init__(self) -> None:
        self.on_full: Callable[[], object] = _nothing
        self.on_freed: Callable[[], object] = _nothing
        self.on_scarce: Callable[[], object] = _nothing
        self.leases = 0
        self.events: list[tuple[str, *tuple[int | str, ...]]] = []

    def page_full(self) -> None:
        self.on_full()

    def pages_freed(self) -> None:
        self.on_freed()

    def pages_scarce(self) -> None:
        self.on_scarce()

    def writer_leased(self) -> None:
        self.leases += 1

    def happened(self, kind: str, *values: int | str) -> None:
        self.events.append((kind, *values))
