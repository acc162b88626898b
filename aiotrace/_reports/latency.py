"""--latency: two histograms, of how long ready tasks wait for the loop, and of how long their steps take.

ready            begins           ends
  |--- delay ----|---- step -----|        a bucket for each power of two of nanoseconds, as in bpftrace
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any, Final

from .._base.terminal_text import escape
from .._decode.event import Event
from .._decode.report_lines import format_time
from ._tasks import EVENTS, Task, Tasks, between
from ._text import INDENT, duration, times

BAR: Final = 40
"""Characters of the longest bar."""


class Histogram:
    """Counts by powers of two: bucket n counts values from 2**(n-1) to 2**n - 1."""

    def __init__(self) -> None:
        self.counts = [0] * 65
        self.count = 0
        self.sum_ns = 0
        self.longest_ns = -1
        self.longest: dict[str, Any] = {}
        """Of whom it is, and where."""

    def add(self, ns: int) -> bool:
        """Returns whether it is the longest so far."""
        self.counts[ns.bit_length()] += 1
        self.count += 1
        self.sum_ns += ns
        if ns <= self.longest_ns:
            return False
        self.longest_ns = ns
        return True

    def below(self, share: float) -> int:
        """The end of the bucket in which that share of all is reached: ns."""
        sums = itertools.accumulate(self.counts)
        return next((1 << bucket for bucket, sum_ in enumerate(sums) if sum_ >= share * self.count), 0)

    def buckets(self) -> list[tuple[int, int, int]]:
        """(from, to, count) of each bucket, without the empty ones at both ends."""
        used = [bucket for bucket, count in enumerate(self.counts) if count]
        if not used:
            return []
        return [
            (1 << bucket >> 1 if bucket else 0, 1 << bucket, self.counts[bucket])
            for bucket in range(used[0], used[-1] + 1)
        ]


class LatencyReport:
    wanted = EVENTS
    evidence = frozenset({"task:step"})

    def __init__(self) -> None:
        self._tasks = Tasks(lambda task, result, exception: None)
        self._delays = Histogram()
        self._steps = Histogram()
        self._unknown = 0

    def add(self, event: Event) -> None:
        task = self._tasks.add(event)
        if task is None or event.name != "task:step":
            return
        length = event.fields["duration_ns"]
        began = event.timestamp_ns - length
        if self._steps.add(length):
            self._steps.longest = _who(task, began)
        if task.waited_ns < 0:
            self._unknown += 1
        elif self._delays.add(task.waited_ns):
            self._delays.longest = _who(task, began - task.waited_ns)

    def end_part(self) -> None:
        self._tasks.end_part()

    def finish(self) -> None:
        self._tasks.finish()

    def _all(self) -> tuple[tuple[str, str, Histogram], ...]:
        return (
            ("delay", "from ready to running: how long tasks waited for their turn", self._delays),
            ("step", "steps: how long tasks ran until they waited again", self._steps),
        )

    def rows(self) -> Iterator[dict[str, Any]]:
        for name, _, histogram in self._all():
            yield {
                "histogram": name,
                "count": histogram.count,
                "sum_ns": histogram.sum_ns,
                "longest_ns": max(histogram.longest_ns, 0),
                **histogram.longest,
                "buckets": [
                    {"from_ns": start, "to_ns": end, "count": count} for start, end, count in histogram.buckets()
                ],
            }

    def lines(self) -> Iterator[str]:
        for name, title, histogram in self._all():
            yield title
            if name == "delay" and self._unknown:
                yield f"{INDENT}not known of {times(self._unknown, 'step')}: trio does not tell, nor does a first step"
            yield from _picture(histogram)
            yield ""


def _who(task: Task, at_ns: int) -> dict[str, Any]:
    return {
        "task": task.id,
        "name": task.name,
        "coro": task.coro,
        "at_ns": at_ns,
        "from": task.came_from,
        "to": task.place,
    }


def _picture(histogram: Histogram) -> Iterator[str]:
    if not histogram.count:
        yield f"{INDENT}none"
        return
    longest = histogram.longest
    yield (
        f"{INDENT}{times(histogram.count, 'step')}, mean {duration(histogram.sum_ns // histogram.count)}; half below "
        f"{duration(histogram.below(0.5))}, 99 % below {duration(histogram.below(0.99))}"
    )
    yield (
        f"{INDENT}the longest {duration(histogram.longest_ns)} at {format_time(longest['at_ns']).strip()}: "
        + escape(f"{longest['name']} ({longest['task']}), {longest['coro']}")
    )
    yield f"{INDENT}{INDENT}{escape(between(longest['from'], longest['to']))}"
    top = max(histogram.counts)
    for start, end, count in histogram.buckets():
        bar = "@" * (BAR * count // top)
        yield f"{f'[{duration(start)}, {duration(end)})':>20} {count:>10,} |{bar:<{BAR}}|"
