"""The meter: what one recording costs this program, in nanoseconds of processor time.

    events    = records of each kind x price of one, and hook calls x theirs           counted, not timed
    sinks     = processor time of aiotrace's threads, or of its tasks' steps in the program's loop
    measuring = processor time of the thread that reads the meter
    busy      = processor time of the threads that record events, less their share of the above

No event is timed or counted for this: writers number their events anyway, and the mix of event kinds is sampled from
the pages being filled. Prices are measured again in each period, by calls on a page of the meter's own, because the
speed of a processor changes. What a tracer's hook does before it calls its event is a multiple of these prices
(PRICES), which was measured once.

Not measured: program data that events push out of the caches, waiting for the GIL while aiotrace's threads have it, and
tasks that a sink starts in the program's loop.
"""

from __future__ import annotations

import statistics
import sys
import threading
import time
from collections import deque
from collections.abc import Awaitable, Callable, Generator, Iterable, Mapping
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any, Final

from .._base.backend import c_module
from .._base.clock import Clock
from .._events.event import MODE_ALL, defined_events, make_event
from .._events.open_recordings import active, this_thread
from .._events.selection import Decision, Selection
from .._page import layout as L
from .._page.event_schema import Schema
from .._page.filter import compile_filter
from .._page.walk import new_totals, tally, walk
from .._ring.arena import Arena
from .._ring.page_cycle import PageCycle
from .._ring.writer import Writer, Writers
from .._threads.own_threads import our_threads
from .policy import Period, group_of

ON_3_11: Final = sys.version_info < (3, 12)
PRICES: Final[Mapping[str, tuple[float, float]]] = {
    "audit": (1.0, 0.8),
    "exception": (1.0, 0.5),
    "function": (0.7 if ON_3_11 else 1.2, 0.0),
    "function_graph": (0.7 if ON_3_11 else 1.0, 0.0),
    "gc": (1.0, 0.2),
    "log": (1.0, 0.5),
    "loop": (2.0, 0.0),
    "task": (2.5, 0.0),
    "task:step": (1.5, 0.0),
    "thread": (1.0, 1.0),
    "warning": (1.0, 2.0),
}
"""What a record of a system or an event costs, with its tracer's work: in plain event calls, and in event calls for
which a filter is evaluated. A record of the program's own events costs one call."""
FUNCTION_HOOK: Final = 1.2
"""Event calls: the price of a call of CPython 3.11's profile function, also for calls of C, and of the interpreter
being slower between them. Measured: 0.6 (json) to 1.8 (tokenize). Later versions call no hook for what is not
traced."""
STEP_HOOKS: Final = (-3.0, 1.4, 4.5)
"""Event calls: the price of the hooks around one step of a task, without its record: on asyncio (negative, because its
own callbacks are slower than aiotrace's), on uvloop, on trio."""
SINKS_MAX: Final = 0.5
"""Event calls: the most that reader and sinks can have spent on one record (a page costs FileSink 22 µs). What is above
that, as for waking or opening a file, is not saved by switching events off."""
LOOK_MAX: Final = 65536 if c_module is not None else 4096
"""Bytes of a writer's page that are sampled in one period."""
UNKNOWN: Final = -1
"""The kind of events of which no page had one."""
TRIES: Final = 3
CALLS: Final = 64 if c_module is not None else 8
SELDOM: Final = 8
"""Periods between two trials of the slow calls."""
KEPT: Final = 16
"""Trials that are kept; the price is their median."""


def cpu_ns(thread: int) -> int | None:
    """Processor time of a thread of this process, by its native id; None if it has ended.

    Linux's clock of a thread, as glibc's pthread_getcpuclockid makes it, which is undefined for one that has ended.
    """
    try:
        return time.clock_gettime_ns((~thread << 3) | 6)
    except OSError:
        return None


class ThreadTimes:
    """Processor time of threads that come and go."""

    def __init__(self) -> None:
        self._last: dict[int, int] = {}

    def begin(self, thread: int) -> None:
        """Count the time of this thread from now on."""
        self._last.setdefault(thread, cpu_ns(thread) or 0)

    def spent(self, but: Iterable[int] = ()) -> int:
        """Nanoseconds since the last call, of all counted threads except `but`. The time of a thread between the last
        call and its end is unknown."""
        total = 0
        for thread in tuple(self._last):
            now = cpu_ns(thread)
            if now is None:
                del self._last[thread]
                continue
            if thread not in but:
                total += max(now - self._last[thread], 0)
            self._last[thread] = now
        return total


# --- prices -----------------------------------------------------------------------------------------


class Prices:
    """What calls cost here and now. Used by one thread, which records no events of its own."""

    def __init__(self, clock: Clock) -> None:
        pages = PageCycle(Arena(L.PAGE_SIZE_MIN, 2), overrun=True)
        self._writer = Writers(pages, 1, clock, ()).all[0]
        self._event = make_event(Schema("aiotrace:price", {"a": "u64", "b": "u64", "c": "f64"}), 1, by_default=False)
        self._lease = SimpleNamespace(recording=object())
        self._refused = {self._lease.recording: Decision(filters=(compile_filter("a == 0"),))}
        self._found: dict[str, deque[float]] = {}
        self._tries = 0

    def try_out(self) -> None:
        """Takes some ten microseconds; some hundred without the C module."""
        native = None if c_module is None else c_module.get_epoch()
        state = this_thread.state
        self._event._plan_epoch = state.epoch = active.epoch
        state.writers, this_thread.leases = (self._writer,), (self._lease,)  # type: ignore[assignment]
        if c_module is not None:
            this_thread.native = c_module.Lease(state.writers, threading.get_native_id(), native)
            self._event.native.set_mode(native, MODE_ALL)
        try:
            self._event._plan = None
            self._try("event", self._event.__call__ if self._event.native is None else self._event.native.emit, CALLS)
            if self._tries % SELDOM == 0:
                self._try("turn", self._turn, 1)
                self._event._plan = self._refused
                self._try("asked", self._event.__call__, 2)
            self._tries += 1
        finally:
            state.epoch = this_thread.native = None
            state.writers, this_thread.leases = (), ()

    def _turn(self, *values: float) -> None:
        self._event(*values)
        self._writer.make_room(self._writer.payload_max)

    def _try(self, what: str, call: Callable[..., object], calls: int) -> None:
        best = float("inf")
        for _ in range(TRIES):
            began = time.perf_counter_ns()
            for _ in range(calls):
                call(7, 1_250_000, 0.5)
            best = min(best, (time.perf_counter_ns() - began) / calls)
        self._found.setdefault(what, deque(maxlen=KEPT)).append(best)

    def of(self, what: str) -> float:
        """Nanoseconds of an "event", of a "turn" of a page, or of an event whose filter is "asked"."""
        return statistics.median(self._found[what])


# --- the meter --------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Reading:
    """What was measured since the reading before."""

    period: Period
    events_ns: int
    sinks_ns: int
    measuring_ns: int


class Meter:
    """
    Args:
        arena: The arena of the recording; `writers`, `selection` and `clock` are the recording's too.
    """

    def __init__(self, arena: Arena, writers: Writers, selection: Selection, clock: Clock) -> None:
        self._arena = arena
        self._writers = writers
        self._selection = selection
        self._clock = clock
        self._program = ThreadTimes()
        self._aiotrace = ThreadTimes()
        self._loop_ns = self._loop_seen = 0
        self._numbers: dict[int, int] = {}
        self._turns: dict[int, int] = {}
        self._looked: dict[int, tuple[int, int]] = {}
        self._mix: dict[int, dict[int, float]] = {}
        self._filter_evaluations: dict[str, int] = {}
        self._names: dict[int, str] = {}
        self._hooked = (0, 0, 0)

    def begin_thread(self) -> None:
        """Count what the calling thread does from now on as the program's."""
        self._program.begin(threading.get_native_id())

    def start(self) -> None:
        """Called in the thread that will call `read`."""
        self._prices = Prices(self._clock)
        self._totals = new_totals()
        self._thread = threading.get_native_id()
        self._own = time.thread_time_ns()
        self._began = time.monotonic_ns()
        self._hooked = _hook_calls()
        self._filter_evaluations = {name: event.filter_evaluations for name, event in defined_events().items()}
        self.read()

    def read(self) -> Reading:
        """What was spent since the last call."""
        now = time.monotonic_ns()

        # Events by their prices; threads and the steps in the loop by their time.
        self._prices.try_out()
        groups, rest, records = self._events()
        events = sum(groups.values()) + rest
        program = self._program.spent(our_threads)
        for thread in our_threads - {self._thread}:
            self._aiotrace.begin(thread)
        in_loop = self._loop_ns - self._loop_seen
        self._loop_seen += in_loop
        sinks = self._aiotrace.spent() + in_loop
        own = time.thread_time_ns()
        measuring, self._own = own - self._own, own

        # What the sinks did for the records belongs to the groups of these, the rest to no group.
        price = min(sinks / max(sum(records.values()), 1), SINKS_MAX * self._prices.of("event"))
        for group, count in records.items():
            groups[group] += price * count
        fixed = measuring + rest + sinks - price * sum(records.values())

        seconds, self._began = max(now - self._began, 1) / 1e9, now
        period = Period(seconds, max(program - events - in_loop, 0), fixed, groups)
        return Reading(period, int(events), sinks, measuring)

    # --- events ---------------------------------------------------------------------------------

    def _events(self) -> tuple[dict[str, float], float, dict[str, float]]:
        """Nanoseconds of each group, nanoseconds that belong to no group, and records of each group."""
        names = self._name_events()
        event, asked = self._prices.of("event"), self._prices.of("asked")
        groups: dict[str, float] = {}
        records: dict[str, float] = {}
        rest = 0.0
        for id, count in self._records(names).items():
            name = names.get(id, "")
            plain, slow = PRICES.get(name) or PRICES.get(name.partition(":")[0], (1.0, 0.0))
            cost = count * (plain * event + slow * asked)
            group = group_of(name) if name else None
            if group is None:
                rest += cost
            else:
                groups[group] = groups.get(group, 0.0) + cost
                records[group] = records.get(group, 0.0) + count
        for group, cost in (*self._slow(asked), *self._hooks(event)):
            groups[group] = max(groups.get(group, 0.0) + cost, 0.0)
        turning = self._turned() * self._prices.of("turn")
        total = sum(records.values())
        for group, count in records.items():
            groups[group] += turning * count / total
        return groups, rest + (0 if total else turning), records

    def _name_events(self) -> dict[int, str]:
        events = defined_events()
        if len(events) != len(self._names):
            self._names = {event.id: name for name, event in events.items()}
        return self._names

    def _records(self, names: Mapping[int, str]) -> dict[int, float]:
        """Event calls of each kind since the last call. The total is exact; the mix of kinds is sampled from the pages
        that are being filled."""
        found: dict[int, float] = {}
        for writer in tuple(self._writers.all):
            count = writer.number - self._numbers.get(writer.slot, 0)
            if count <= 0:
                continue
            self._numbers[writer.slot] = writer.number
            self._look(writer, names)
            mix = {
                id: part
                for id, part in self._mix.get(writer.slot, {}).items()
                if group_of(names[id]) not in self._selection.disabled_by_budget
            }
            mix = mix or {UNKNOWN: 1.0}
            total = sum(mix.values())
            for id, part in mix.items():
                found[id] = found.get(id, 0.0) + count * part / total
        return found

    def _look(self, writer: Writer, names: Iterable[int]) -> None:
        """Update the mix of a writer's events by what is new on its page."""
        with writer.guard:
            prefix = writer.committed_prefix()
            if prefix is None or not prefix.events:
                return
            page, start = writer.sequence, 0
            if self._looked.get(writer.slot, (-1, 0))[0] == page:
                start = self._looked[writer.slot][1]
            begin = L.PAGE_HEADER_SIZE + start
            data = bytes(
                self._arena.page(prefix.page)[begin : min(L.PAGE_HEADER_SIZE + prefix.committed, begin + LOOK_MAX)]
            )
        self._looked[writer.slot] = page, prefix.committed
        before = {id: self._totals[2 * id] for id in names}
        tally(walk(data, 0), self._totals)
        new = {id: self._totals[2 * id] - count for id, count in before.items()}
        mix = self._mix.get(writer.slot, {})
        self._mix[writer.slot] = {
            id: mix.get(id, 0.0) / 2 + count for id, count in new.items() if count or mix.get(id, 0.0) > 1
        }

    def _turned(self) -> int:
        """Pages that were turned since the last call."""
        turns = {writer.slot: writer.sequence for writer in tuple(self._writers.all)}
        turned = sum(sequence - self._turns.get(slot, 0) for slot, sequence in turns.items())
        self._turns = turns
        return turned

    def _slow(self, price: float) -> Iterable[tuple[str, float]]:
        """What evaluating filters and triggers cost, by group."""
        if not self._selection.looks_at_fields:
            return
        for name, event in defined_events().items():
            count = event.filter_evaluations - self._filter_evaluations.get(name, 0)
            group = group_of(name)
            if count and group is not None:
                self._filter_evaluations[name] = event.filter_evaluations
                yield group, count * price

    def _hooks(self, price: float) -> Iterable[tuple[str, float]]:
        """What hooks cost, without their records."""
        hooked = _hook_calls()
        functions, asyncio, trio = (now - before for now, before in zip(hooked, self._hooked, strict=True))
        self._hooked = hooked
        if functions:
            graph, calls = (
                self._selection.wants_system(each, explicit=True) for each in ("function_graph", "function")
            )
            yield ("function:*" if calls and not graph else "function_graph:*"), functions * price * FUNCTION_HOOK
        if (asyncio or trio) and self._selection.wants_system("task", explicit=False):
            on_asyncio, on_uvloop, on_trio = STEP_HOOKS
            steps = asyncio * (on_uvloop if "uvloop" in sys.modules else on_asyncio) + trio * on_trio
            yield "task:*", steps * price

    # --- aiotrace's tasks in the program's loop ---------------------------------------------------

    def timed(self, function: Callable[[], Awaitable[None]]) -> Callable[[], Awaitable[None]]:
        """The same coroutine function, with its steps timed."""

        async def run() -> None:
            await _Steps(function(), self._add)

        return run

    def _add(self, nanoseconds: int) -> None:
        self._loop_ns += nanoseconds


def _hook_calls() -> tuple[int, int, int]:
    """Hook calls so far: for functions, for steps on asyncio and uvloop, for steps on trio."""
    if c_module is None:
        return 0, 0, 0
    return (c_module.function_hooked() if ON_3_11 else 0, *c_module.task_hooked())


class _Steps:
    """Awaits something, and reports how long each step took in this thread."""

    def __init__(self, inner: Awaitable[None], tell: Callable[[int], None]) -> None:
        self._inner = inner
        self._tell = tell

    def __await__(self) -> Generator[Any, Any, None]:
        steps = self._inner.__await__()
        step: Callable[[], Any] = lambda: next(steps)  # noqa: E731
        while True:
            began = time.thread_time_ns()
            try:
                yielded = step()
            except StopIteration:
                return
            finally:
                self._tell(time.thread_time_ns() - began)
            try:
                sent = yield yielded
                step = _sender(steps, sent)
            except BaseException as error:
                step = _thrower(steps, error)


def _sender(steps: Any, value: Any) -> Callable[[], Any]:
    return lambda: next(steps) if value is None else steps.send(value)


def _thrower(steps: Any, error: BaseException) -> Callable[[], Any]:
    return lambda: steps.throw(error)
