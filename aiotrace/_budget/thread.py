"""The thread that keeps a recording within its budget: it reads the meter, and does what the budget decides.

    each quarter of a second:  meter --reading--> budget --switch--> the recording's selection, the tracers
                                                                 --> aiotrace:budget in the trace

    aiotrace:budget  group, on, cost_permille, group_permille, budget_permille

Every kind of recording has this thread, because the loop may be blocked, or events may be read by another process. Its
own time counts; if that is more than a tenth of the budget it measures less often.

It never harms the program: if it crashes there is one warning, and the budget is not kept from then on. When the
recording closes, it has ended or does nothing more.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Final

from .._base.backend import c_module
from .._base.warn import warn
from .._events.event import Event, define, defined_events
from .._events.open_recordings import open_selections, selection_changed
from .._events.selection import Selection
from .._events.tracer_switch import follow_open
from .._page.definitions import DEFINITIONS
from .._ring.writer import Writers
from .._threads.own_threads import block_signals
from .cost_meter import Meter, Reading
from .policy import IDLE, Budget, group_of, title
from .statistics import BudgetStatistics, BudgetSwitch

PERIOD: Final = 0.25
"""Seconds from one reading to the next, at least."""
PERIOD_MAX: Final = 1.0
MEASURING: Final = 0.1
"""Share of the budget: if measuring takes more, it is done less often."""
JOIN: Final = 1.0
"""Seconds that the close of the recording waits for the thread: it may be starting or stopping a tracer."""
NAME: Final = "aiotrace budget"

_BUDGET: Final[Event] = define(
    "aiotrace:budget",
    {"group": "str", "on": "bool", "cost_permille": "u32", "group_permille": "u32", "budget_permille": "u32"},
    by_default=False,
)

Soon = Callable[[Callable[[], object]], object]


class BudgetThread:
    """
    Args:
        share: The budget, as a share of the program's own time.
        meter: The meter of the recording; `writers` and `selection` are the recording's too.
        pace: Called with the factor by which to lengthen the flush interval.
        soon: Calls a function where task tracers can be started: in the program's loop, if it is known.
    """

    def __init__(
        self,
        share: float,
        meter: Meter,
        writers: Writers,
        selection: Selection,
        pace: Callable[[float], object],
        soon: Soon,
    ) -> None:
        self._budget = Budget(share, self._is_wanted)
        self.meter = meter
        self._writers = writers
        self._selection = selection
        self._pace = pace
        self._soon = soon
        self._ended = threading.Event()
        self._opened = time.monotonic()
        self._spent = [0, 0, 0]
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        self._opened = time.monotonic()
        self._thread = threading.Thread(target=self._run, name=NAME, daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Switch nothing any more. Waits for a switch that is under way."""
        self._ended.set()
        if self._thread is not None:
            self._thread.join(JOIN)

    def statistics(self) -> BudgetStatistics:
        return self._budget.statistics(time.monotonic() - self._opened, *self._spent)

    # --- in the thread ----------------------------------------------------------------------------

    def _run(self) -> None:
        block_signals()
        if c_module is not None:
            c_module.stall_ignore()
        try:
            DEFINITIONS.name_command(threading.get_native_id(), NAME)
            self.meter.start()
            wait = PERIOD
            while not self._ended.wait(wait):
                reading = self.meter.read()
                switch = self._budget.step(time.monotonic() - self._opened, reading.period)
                self._spent = [
                    before + now
                    for before, now in zip(
                        self._spent, (reading.events_ns, reading.sinks_ns, reading.measuring_ns), strict=True
                    )
                ]
                self._pace(self._budget.stretch)
                if switch is not None:
                    self._switch(switch)
                wait = self._pause(reading)
        except Exception as error:
            if not self._ended.is_set():
                warn(f"aiotrace: the budget is no longer kept: {error!r}")

    def _pause(self, reading: Reading) -> float:
        """Seconds until the next reading."""
        period = reading.period
        busy = max(period.busy_ns / (1e9 * period.seconds), IDLE)
        return min(max(reading.measuring_ns / 1e9 / (MEASURING * self._budget.share * busy), PERIOD), PERIOD_MAX)

    def _switch(self, switch: BudgetSwitch) -> None:
        if switch.is_on:
            self._soon(self._apply)
        else:
            self._apply()
        self._record(switch)

    def _apply(self) -> None:
        if self._ended.is_set():
            return
        self._selection.disabled_by_budget = self._budget.disabled
        selection_changed()
        try:
            follow_open(open_selections)
        except Exception as error:  # a tracer cannot start again, because another tool has its place now
            warn(f"aiotrace: the budget: {error}")

    def _record(self, switch: BudgetSwitch) -> None:
        """Write the event into this recording only, whatever its rules say."""
        shares = (1000 * share for share in (switch.cost, switch.group_cost, self._budget.share))
        values = (title(switch.group), switch.is_on, *(min(round(share), (1 << 32) - 1) for share in shares))
        payload = _BUDGET._encode(_BUDGET.id, threading.get_native_id(), values, DEFINITIONS.intern)
        self._writers.all[0].write(payload)

    def _is_wanted(self, group: str) -> bool:
        return any(
            group_of(name) == group and self._selection.asks_for(name, by_default=event.by_default)
            for name, event in defined_events().items()
        )
