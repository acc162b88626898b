"""The meter: what one recording costs this program, in nanoseconds of processor time.

    events    = records of each kind x price of one, and calls of hooks x theirs       counted, not timed
    sinks     = processor time of our threads, or of our tasks' steps in the program's loop
    measuring = processor time of the thread that reads the meter
    busy      = processor time of the threads that record events, less what of the above they did

No event is timed and none is counted for this: writers number their events anyway, and of which kinds they are is seen
by a look at the pages that they are filling. The prices are those of calls on a page of our own, tried anew in each
period, because the speed of a processor changes; what a tracer's hook does before it calls its event is a multiple of
these (PRICES), which was measured once.

What it does not see: what events cost the program by pushing its own data out of the caches, waiting for the
interpreter that our threads have, and what a sink does in further tasks of its own in the program's loop.
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
from .._threads.loop import our_threads
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
"""What a record of a system, or of an event, costs, with what its tracer does for it: so many events, and so many that
a filter looks at. Of the program's own events it is one."""
FUNCTION_HOOK: Final = 1.2
"""Events: a call of the profile function of CPython 3.11, for a call of C too, with what makes the interpreter slower
between two of them. It came to 0.6 (json) to 1.8 (tokenize); later versions call no hook for what is not traced."""
STEP_HOOKS: Final = (-3.0, 1.4, 4.5)
"""Events: a step of a task under the hooks that is more than sent and recorded: on asyncio, whose own callbacks are
slower than ours; on uvloop; on trio."""
SINKS_MAX: Final = 0.5
"""Events: what the reader and a sink can have done for one more record (a page costs FileSink 22 µs). More than that is
for themselves, as when they wake or open a file, and switching events off does not save it."""
LOOK_MAX: Final = 65536 if c_module is not None else 4096
"""Bytes of a writer's page that are looked at, in one period."""
UNKNOWN: Final = -1
"""The kind of events none of which was seen on a page."""
TRIES: Final = 3
CALLS: Final = 64 if c_module is not None else 8
SELDOM: Final = 8
"""Periods after which the slow calls are tried again."""
KEPT: Final = 16
"""Trials whose prices count: the median."""


def cpu_ns(thread: int) -> int | None:
    """Processor time of a thread of this process, by its native id; None: it has ended.

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
        """Count what this thread does from now on."""
        self._last.setdefault(thread, cpu_ns(thread) or 0)

    def spent(self, but: Iterable[int] = ()) -> int:
        """Nanoseconds since the last call, of the threads that were begun, but these. What a thread did between the
        last call and its end is not known."""
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
    """What calls cost here and now. For one thread, which records nothing meanwhile."""

    def __init__(self, clock: Clock) -> None:
        pages = PageCycle(Arena(L.PAGE_SIZE_MIN, 2), overrun=True)
        self._writer = Writers(pages, 1, clock, ()).all[0]
        self._event = make_event(Schema("aiotrace:price", {"a": "u64", "b": "u64", "c": "f64"}), 1, by_default=False)
        self._lease = SimpleNamespace(recording=object())
        self._refused = {self._lease.recording: Decision(filters=(compile_filter("a == 0"),))}
        self._found: dict[str, deque[float]] = {}
        self._tries = 0

    def try_out(self) -> None:
        """Some ten microseconds of calls; on the Python twin, some hundred."""
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
        """Nanoseconds of an "event", a "turn" of a page, or of a filter that is "asked"."""
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
        arena: The recording's, with its writers and its selection.
        clock: Its clock.
    """

    def __init__(self, arena: Arena, writers: Writers, selection: Selection, clock: Clock) -> None:
        self._arena = arena
        self._writers = writers
        self._selection = selection
        self._clock = clock
        self._program = ThreadTimes()
        self._ours = ThreadTimes()
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
        """In the thread that reads it, and only then."""
        self._prices = Prices(self._clock)
        self._totals = new_totals()
        self._thread = threading.get_native_id()
        self._own = time.thread_time_ns()
        self._began = time.monotonic_ns()
        self._hooked = _hooked()
        self._filter_evaluations = {name: event.filter_evaluations for name, event in defined_events().items()}
        self.read()

    def read(self) -> Reading:
        """What was spent since the last time."""
        now = time.monotonic_ns()
        self._prices.try_out()
        groups, rest, records = self._events()
        events = sum(groups.values()) + rest
        program = self._program.spent(our_threads)
        for thread in our_threads - {self._thread}:
            self._ours.begin(thread)
        in_loop = self._loop_ns - self._loop_seen
        self._loop_seen += in_loop
        sinks = self._ours.spent() + in_loop
        own = time.thread_time_ns()
        measuring, self._own = own - self._own, own
        price = min(sinks / max(sum(records.values()), 1), SINKS_MAX * self._prices.of("event"))
        for group, count in records.items():
            groups[group] += price * count
        fixed = measuring + rest + sinks - price * sum(records.values())
        seconds, self._began = max(now - self._began, 1) / 1e9, now
        period = Period(seconds, max(program - events - in_loop, 0), fixed, groups)
        return Reading(period, int(events), sinks, measuring)

    # --- events ---------------------------------------------------------------------------------

    def _events(self) -> tuple[dict[str, float], float, dict[str, float]]:
        """Nanoseconds of each group, of what is in no group, and records of each group."""
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
        """How many events of each kind were called since the last time: how many, exactly; of which kinds, by what is
        on the pages that fill."""
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
        """Count what is new on the page that a writer fills."""
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
        """Pages that were turned."""
        turns = {writer.slot: writer.sequence for writer in tuple(self._writers.all)}
        turned = sum(sequence - self._turns.get(slot, 0) for slot, sequence in turns.items())
        self._turns = turns
        return turned

    def _slow(self, price: float) -> Iterable[tuple[str, float]]:
        """What filters and triggers took, by group."""
        if not self._selection.looks_at_fields:
            return
        for name, event in defined_events().items():
            count = event.filter_evaluations - self._filter_evaluations.get(name, 0)
            group = group_of(name)
            if count and group is not None:
                self._filter_evaluations[name] = event.filter_evaluations
                yield group, count * price

    def _hooks(self, price: float) -> Iterable[tuple[str, float]]:
        """What hooks took besides their records."""
        hooked = _hooked()
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

    # --- our tasks in the program's loop ----------------------------------------------------------

    def timed(self, function: Callable[[], Awaitable[None]]) -> Callable[[], Awaitable[None]]:
        """The same, its steps timed."""

        async def run() -> None:
            await _Steps(function(), self._add)

        return run

    def _add(self, nanoseconds: int) -> None:
        self._loop_ns += nanoseconds


def _hooked() -> tuple[int, int, int]:
    """Calls of hooks so far: of functions, of steps on asyncio and uvloop, of steps on trio."""
    if c_module is None:
        return 0, 0, 0
    return (c_module.function_hooked() if ON_3_11 else 0, *c_module.task_hooked())


class _Steps:
    """Awaits something, and tells how long each step took in this thread."""

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
