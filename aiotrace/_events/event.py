"""Events: what a program calls, and how a call finds the writers of the open recordings.

    event(200, "/index")
      no recording open                          ->  done
      this thread's lease is of this epoch       ->  payload  ->  write, once for each recording
      else                                       ->  refresh the lease first

`open_recordings.py` has the open recordings and each thread's writers.

A call never blocks and never harms the program. In development (`-X dev`, under pytest, after `strict()`) a wrong value
raises TypeError, whether a recording is open or not; otherwise the event is dropped and counted, and the first one of
each kind is warned about.
"""

from __future__ import annotations

import os
import sys
import time
from _thread import RLock

from .._base.backend import c_module
from .._base.errors import DefinitionError
from .._base.warn import warn
from .._page.definitions import DEFINITIONS, EventDefinition
from .._page.derived_fields import DERIVED, with_derived
from .._page.event_schema import COMM, Schema, WrongValueError
from .open_recordings import (
    active,
    get_pid,
    get_task,
    inside_sink,
    is_strict,
    refresh_lease,
    this_thread,
)
from .python_stack import pack_current_stack

TYPE_CHECKING = False  # importing it from `typing` would double the time of `import aiotrace`
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from typing import Any, Final

    from .._page.event_schema import FieldType
    from .._ring.writer import Writer
    from .open_recordings import OpenRecording
    from .selection import Decision

FIRST_ID: Final = 2048
"""common_type of the first event: above the ids of the kernel's static events, whose formats traces have too."""
LAST_ID: Final = 65535
NATIVE_CODES: Final = {"str": "S", "bytes": "Y", "symbol": "K", COMM.name: "C"}
"""Codes of the C implementation for the types that are more than a number of `struct`."""
MODE_ALL, _MODE_SOME, _MODE_OFF = range(3)
"""What the C implementation does with a call: write for all recordings, call Python, or nothing."""

# --- events ---------------------------------------------------------------------------------------


class PythonEvent:
    """An event of one kind; calling it records one. Made by `event`.

    A call takes the values of the fields, positional or by keyword. It never blocks, and does nothing while no
    recording is open. What cannot be written is dropped and counted.

    This is the pure-Python implementation. The one in C (`_csrc/events/event.c`) does the common case of a call, and
    falls back to this one for all else.
    """

    def __init__(self, schema: Schema, id: int, *, by_default: bool = True) -> None:
        self.native: Any = None
        """The same event in C."""
        self._by_default = by_default
        self._plan: dict[OpenRecording, Decision] | None = None
        self._plan_epoch: object = None
        self._schema = schema
        self._encode = schema.encode
        self._pack = schema.pack
        self._warned = False
        self.filter_evaluations = 0
        """Calls for which a filter or a trigger was evaluated."""
        self.id = id
        """common_type of its records."""

    @property
    def emit(self) -> Callable[..., None]:
        """The same call as a function; in C it is a bound function, the fastest way to record an event."""
        return self.__call__

    @property
    def name(self) -> str:
        """ "system:event"."""
        return self._schema.name

    @property
    def fields(self) -> Mapping[str, str]:
        """Names and types, in order."""
        return {field: type.name for field, type in self._schema.types.items()}

    def __repr__(self) -> str:
        fields = "".join(f", {field}={type!r}" for field, type in self.fields.items())
        return f"aiotrace.event({self.name!r}{fields})"

    def __call__(self, /, *arguments: Any, **keywords: Any) -> None:
        # Does any recording take it?
        if not active.recordings:
            if is_strict():
                self._payload(arguments, keywords)
            return
        epoch = active.epoch
        plan = self._plan if self._plan_epoch is epoch else self._make_plan()
        if plan is not None and not plan:
            return  # no recording takes it: this thread needs no writer for it

        # Where does it go? Only a filter or a trigger needs the values by name.
        state = this_thread.state
        writers = state.writers if state.epoch is epoch else refresh_lease()
        fields = None
        if plan is not None:
            self.filter_evaluations += 1
            fields = self._name_values(arguments, keywords)
            writers = self._choose(plan, fields)
            if not writers:
                self._fire(plan, fields)
                return

        # The whole payload is made before anything is written.
        pack = self._pack
        pid = state.pid if get_task is None else get_task() or state.pid
        try:
            if keywords:
                arguments = self._schema.bind(arguments, keywords)
            if pack is not None:
                payload = pack(*((self.id, 0, 0, pid) + arguments))  # cheaper than (a, b, *arguments)
            else:
                payload = self._encode(self.id, pid, arguments, DEFINITIONS.intern)
        except Exception as error:
            self._refuse(error, arguments, writers)
            return

        for writer in writers:
            if pack is not None or len(payload) <= writer.payload_max:  # numbers alone fit on any page: FIXED_MAX
                writer.write(payload)
            else:
                self._write_cut(writer, arguments)
        if plan is not None and fields is not None:
            self._fire(plan, fields)

    def _write_cut(self, writer: Writer, arguments: tuple[Any, ...]) -> None:
        """Write an event whose texts must be cut for this recording's pages. A value may fail to convert this time."""
        try:
            payload = self._encode(self.id, get_pid(), arguments, DEFINITIONS.intern, writer.payload_max)
        except Exception as error:
            self._refuse(error, arguments, (writer,))
        else:
            writer.write(payload)

    def _make_plan(self) -> dict[OpenRecording, Decision] | None:
        """How each open recording takes this event; None if all take every call. Kept for the epoch."""
        epoch = active.epoch
        native_epoch = c_module.get_epoch() if c_module is not None else 0
        decisions = {
            recording: recording.selection.decide(self.name, by_default=self._by_default)
            for recording in active.recordings
        }
        plan = {recording: decision for recording, decision in decisions.items() if decision is not None}
        is_plain = all(decision is not None and decision.is_plain for decision in decisions.values())
        self._plan = None if is_plain else plan
        self._plan_epoch = epoch
        if self.native is not None:
            self.native.set_mode(native_epoch, MODE_ALL if is_plain else _MODE_SOME if plan else _MODE_OFF)
        return self._plan

    @staticmethod
    def _choose(plan: Mapping[OpenRecording, Decision], fields: Mapping[str, Any]) -> tuple[Writer, ...]:
        """The writers of the recordings that take this call."""
        chosen: tuple[Writer, ...] = ()
        for lease, writer in zip(this_thread.leases, this_thread.state.writers, strict=False):
            decision = plan.get(lease.recording)
            if decision is not None and decision.records and decision.accepts(fields):
                chosen += (writer,)
        return chosen

    def _fire(self, plan: Mapping[OpenRecording, Decision], fields: Mapping[str, Any]) -> None:
        for recording, decision in plan.items():
            for trigger in decision.triggers:
                if not (decision.accepts(fields) and trigger.fires(fields)):
                    continue
                if trigger.action == "stacktrace":
                    _write_stack(recording)
                else:
                    recording.fire(trigger, self.name)

    def _name_values(self, arguments: tuple[Any, ...], keywords: Mapping[str, Any]) -> Mapping[str, Any]:
        """The values that a filter may use, by name."""
        fields = dict(zip(self._schema.types, arguments, strict=False))
        fields.update(keywords)
        return with_derived(self.name, fields, time.monotonic_ns()) if self.name in DERIVED else fields

    @property
    def by_default(self) -> bool:
        """Whether a recording takes it without a rule for it."""
        return self._by_default

    def is_taken(self, recording: OpenRecording) -> bool:
        """Whether a recording may take this event (its filters aside)."""
        plan = self._plan if self._plan_epoch is active.epoch else self._make_plan()
        return plan is None or recording in plan

    async def send(self, /, *arguments: Any, **keywords: Any) -> None:
        """Record one event, and wait for a free page instead of dropping.

        Waits until every open recording with a "wait" sink has room, then writes to all of them in one step. It is a
        checkpoint when it waits and when a page turns; otherwise it returns at once. Inside a sink it does not wait,
        as it would wait for itself. If it is cancelled, nothing was written.
        """
        if not active.recordings:
            if is_strict():
                self._payload(arguments, keywords)
            return
        turned = waited = False
        try:
            size = len(self._payload(arguments, keywords))
        except TypeError:
            raise
        except Exception:
            self(*arguments, **keywords)  # counts it
            return
        while not inside_sink.get():
            state = this_thread.state
            writers = state.writers if state.epoch is active.epoch else refresh_lease()
            if not turned and not waited and any(writer.would_turn(size) for writer in writers):
                from anyio.lowlevel import checkpoint

                await checkpoint()
                turned = True
                continue
            full = [
                (lease.recording, lease.writer)
                for lease in this_thread.leases
                if lease.recording.makes_wait
                and self.is_taken(lease.recording)
                and not lease.writer.make_room(min(size, lease.writer.payload_max))
            ]
            if not full:
                break
            await _wait_for_room(*full[0], size)
            waited = True
        self(*arguments, **keywords)
        if waited:
            for lease in this_thread.leases:
                if lease.writer.waiters and lease.writer.has_room(size):
                    lease.writer.wake_one()

    def _payload(self, arguments: tuple[Any, ...], keywords: Mapping[str, Any]) -> bytes:
        """Encode without writing.

        Raises:
            TypeError: A value does not fit, in strict mode.
            WrongValueError: The same, otherwise.
        """
        try:
            if keywords:
                arguments = self._schema.bind(arguments, keywords)
            return self._encode(self.id, 0, arguments, DEFINITIONS.intern)
        except WrongValueError as error:
            if is_strict():
                raise TypeError(str(error)) from None
            raise

    def _refuse(self, error: Exception, arguments: tuple[Any, ...], writers: tuple[Writer, ...]) -> None:
        for writer in writers:
            writer.refuse("wrong_type")
        try:
            self._schema.explain(arguments)
        except WrongValueError as explained:
            error = explained
        if is_strict():
            raise TypeError(str(error)) from None
        if not self._warned:
            self._warned = True
            warn(f"{error} (event dropped; further warnings suppressed)", stacklevel=3)


def _write_stack(recording: OpenRecording) -> None:
    """Record this thread's Python stack, after the event that triggered it."""
    payload = pack_current_stack(get_pid())
    for lease, writer in zip(this_thread.leases, this_thread.state.writers, strict=False):
        if lease.recording is recording:
            writer.write(payload)


async def _wait_for_room(recording: OpenRecording, writer: Writer, size: int) -> None:
    """Wait until this writer may have room. If this is cancelled, a wake that it got is passed on to the next."""
    from .._threads.loop import Loop, Waker

    waker = Waker(Loop())

    def wake() -> None:
        if not waker.wake():
            writer.wake_one()

    began = recording.clock()
    writer.waiters.append(wake)
    try:
        if writer.has_room(min(size, writer.payload_max)) or not recording.makes_wait:
            _withdraw(writer, wake)
            return  # a page was freed since the caller checked
        await recording.wait_for_page(waker)
        _withdraw(writer, wake)
    except BaseException:
        if not _withdraw(writer, wake):
            writer.wake_one()
        raise
    finally:
        recording.count_wait(recording.clock() - began)


def _withdraw(writer: Writer, wake: Callable[[], object]) -> bool:
    """Stop waiting. Returns False if another thread has taken this wake from the queue: then the wake was used."""
    try:
        writer.waiters.remove(wake)
    except ValueError:
        return False
    return True


# --- the registry ---------------------------------------------------------------------------------

if TYPE_CHECKING or c_module is None:
    Event = PythonEvent
else:
    Event = c_module.Event

_events: Final[dict[str, Event]] = {}
_events_lock = RLock()


def event(name: str, /, **fields: FieldType) -> Event:
    """Define an event, or get it if it is already defined with the same fields.

    Args:
        name: "system:event", two identifiers.
        fields: Names and types, in order: u8 u16 u32 u64 s8 s16 s32 s64 f32 f64 bool str bytes symbol, or int (s64),
            float (f64), bool, str, bytes. A `symbol` is an interned string: eight bytes in a record, its text once
            in the trace.

    Returns:
        The event: call it to record one.

    Raises:
        DefinitionError: The name has no system or is no identifier, a type is unknown, a field's name is reserved, or
            the name is defined already with other fields.
    """
    return define(name, fields)


def define(
    name: str, fields: Mapping[str, FieldType], *, by_default: bool = True, print_format: str | None = None
) -> Event:
    """`event` with more options, for tracers.

    Args:
        by_default: False: a recording takes the event only if a rule enables it.
        print_format: What follows "print fmt: " in the event's format; None: all fields as name=value.
    """
    schema = Schema(name, fields, print_format)
    with _events_lock:
        known = _events.get(name)
        if known is not None:
            if list(known.fields.items()) != [(field.name, field.type.name) for field in schema.fields]:
                raise DefinitionError(f"{known!r} is defined already; other fields need another name")
            return known
        id = FIRST_ID + len(_events)
        if id > LAST_ID:
            raise DefinitionError(f"{name!r}: {len(_events)} events are defined, and no more are possible")
        DEFINITIONS.append(EventDefinition(id, schema.system, schema.event, schema.format_text(id)))
        made = _events[name] = _make(schema, id, by_default)
        return made


def define_kernel(name: str, fields: Mapping[str, FieldType], known: EventDefinition) -> Event:
    """An event with the format and id of one of the kernel's events, by which readers know it. It is enabled by
    `name`, aiotrace's own name for it, and off until then."""
    with _events_lock:
        if name not in _events:
            _events[name] = _make(Schema(name, fields), known.id, by_default=False)
        return _events[name]


def defined_events() -> dict[str, Event]:
    """All events of this process by name, in the order of their definition."""
    return dict(_events)


def _make(schema: Schema, id: int, by_default: bool) -> Event:
    made = make_event(schema, id, by_default=by_default)
    native: Event | None = made.native
    return made if native is None else native


def make_event(schema: Schema, id: int, *, by_default: bool) -> PythonEvent:
    """An event that is not registered; `native` is the same in C, if there is a C module that can do it."""
    made = PythonEvent(schema, id, by_default=by_default)
    if c_module is None or len(schema.fields) > c_module.FIELDS_MAX:
        return made
    layout = tuple(
        (field.offset, NATIVE_CODES.get(field.type.name, field.type.code), field.type.size) for field in schema.fields
    )
    names = tuple(map(sys.intern, schema.types))
    made.native = c_module.Event(made, id, schema.fixed_size, layout, names, DEFINITIONS.symbols)
    return made


def _after_fork_in_child() -> None:
    global _events_lock
    _events_lock = RLock()


os.register_at_fork(after_in_child=_after_fork_in_child)
