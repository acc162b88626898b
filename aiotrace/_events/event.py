"""Events: what a program calls, and how a call finds the writers of the open recordings.

    event(200, "/index")
      no recording open  ->  done
      this thread's lease is of the present epoch  ->  payload  ->  write, once for each recording
      else  ->  renew the lease first

Which recordings are open, and this thread's writers, is `_active`'s to know.

Law 6: a call never blocks and never harms the program. A wrong value raises TypeError in development (`-X dev`, under
pytest, after `strict()`), and then also with no recording open; otherwise it is counted, warned of once, and dropped.
"""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Final

from anyio.lowlevel import checkpoint

from .._base.backend import c_module
from .._base.errors import DefinitionError
from .._base.warn import warn
from .._page.definitions import DEFINITIONS, EventDefinition
from .._page.derived_fields import DERIVED, with_derived
from .._page.event_schema import COMM, FieldType, Schema, WrongValueError
from .._ring.writer import Writer
from .._threads.loop import Loop, Waker
from .open_recordings import Target, active, get_pid, get_task, inside_sink, is_strict, local, renew
from .python_stack import pack_current_stack
from .selection import PLAIN, Decision

FIRST_ID: Final = 2048
"""common_type of the first event: above the ids that a kernel's own static events have in the formats we write."""
LAST_ID: Final = 65535
NATIVE_CODES: Final = {"str": "S", "bytes": "Y", "symbol": "K", COMM.name: "C"}
"""What the C twin calls the types that are more than a number in `struct`."""
MODE_ALL, _MODE_SOME, _MODE_OFF = range(3)
"""What the C twin does with a call: it writes for all recordings, asks us, or nothing."""

# --- events ---------------------------------------------------------------------------------------


class PythonEvent:
    """An event of one kind; calling it records one. Made by `event`.

    This is the reference, and the slow way of its C twin (`_csrc/events/event.c`), which asks it for everything but
    the call.

    A call takes the values of the fields, positional or by keyword. It never blocks, and does nothing with no
    recording open. What cannot be written is dropped and counted.
    """

    def __init__(self, schema: Schema, id: int, *, by_default: bool = True) -> None:
        self.native: Any = None
        """Its C twin."""
        self._by_default = by_default
        self._plan: dict[Target, Decision] | None = None
        self._plan_epoch: object = None
        self._schema = schema
        self._encode = schema.encode
        self._pack = schema.pack
        self._warned = False
        self.asked = 0
        """Calls that a filter or a trigger had to look at."""
        self.id = id
        """common_type of its records."""

    @property
    def emit(self) -> Callable[..., None]:
        """The same call as a function; in C a bound function, the cheapest of all."""
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
        if not active.targets:
            if is_strict():
                self._payload(arguments, keywords)
            return
        epoch = active.epoch
        plan = self._plan if self._plan_epoch is epoch else self._make_plan()
        if plan is not None and not plan:
            return  # nobody takes it: this thread needs no writer for it
        own = local.own
        writers = own.writers if own.epoch is epoch else renew()
        fields = None
        if plan is not None:
            self.asked += 1
            fields = self._name_values(arguments, keywords)
            writers = self._choose(plan, fields)
            if not writers:
                self._fire(plan, fields)
                return
        pack = self._pack
        pid = own.pid if get_task is None else get_task() or own.pid
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
        """Write texts that are too long for this recording's pages. What converted once may fail the second time."""
        try:
            payload = self._encode(self.id, get_pid(), arguments, DEFINITIONS.intern, writer.payload_max)
        except Exception as error:
            self._refuse(error, arguments, (writer,))
        else:
            writer.write(payload)

    def _make_plan(self) -> dict[Target, Decision] | None:
        """What the open recordings make of this event; None if all take it always. Kept for the epoch."""
        epoch = active.epoch
        native_epoch = c_module.get_epoch() if c_module is not None else 0
        decisions = {
            target: target.selection.decide(self.name, by_default=self._by_default) for target in active.targets
        }
        plan = {target: decision for target, decision in decisions.items() if decision is not None}
        is_plain = all(decision is PLAIN for decision in decisions.values())
        self._plan = None if is_plain else plan
        self._plan_epoch = epoch
        if self.native is not None:
            self.native.set_mode(native_epoch, MODE_ALL if is_plain else _MODE_SOME if plan else _MODE_OFF)
        return self._plan

    @staticmethod
    def _choose(plan: Mapping[Target, Decision], fields: Mapping[str, Any]) -> tuple[Writer, ...]:
        """The writers of the recordings that take this call. Those that do not have nothing to count."""
        chosen: tuple[Writer, ...] = ()
        for lease, writer in zip(local.leases, local.own.writers, strict=False):
            decision = plan.get(lease.target)
            if decision is not None and decision.records and decision.accepts(fields):
                chosen += (writer,)
        return chosen

    def _fire(self, plan: Mapping[Target, Decision], fields: Mapping[str, Any]) -> None:
        for target, decision in plan.items():
            for trigger in decision.triggers:
                if not (decision.accepts(fields) and trigger.fires(fields)):
                    continue
                if trigger.action == "stacktrace":
                    _write_stack(target)
                else:
                    target.fire(trigger, self.name)

    def _name_values(self, arguments: tuple[Any, ...], keywords: Mapping[str, Any]) -> Mapping[str, Any]:
        """What a filter may ask for."""
        fields = dict(zip(self._schema.types, arguments, strict=False))
        fields.update(keywords)
        return with_derived(self.name, fields, time.monotonic_ns()) if self.name in DERIVED else fields

    @property
    def by_default(self) -> bool:
        """Whether recordings take it that were not asked to."""
        return self._by_default

    def is_taken(self, target: Target) -> bool:
        """Whether a recording may take this event (its filters aside)."""
        plan = self._plan if self._plan_epoch is active.epoch else self._make_plan()
        return plan is None or target in plan

    async def send(self, /, *arguments: Any, **keywords: Any) -> None:
        """Record one event, and wait for a free page instead of dropping.

        Waits until every open recording with a "wait" sink has room, then writes to all in one statement. It is a
        checkpoint when it waits and when a page turns, and else returns at once. In a reader or a sink it does not
        wait. Cancelled: nothing was written.
        """
        if not active.targets:
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
            own = local.own
            writers = own.writers if own.epoch is active.epoch else renew()
            if not turned and not waited and any(writer.would_turn(size) for writer in writers):
                await checkpoint()
                turned = True
                continue
            full = [
                (lease.target, lease.writer)
                for lease in local.leases
                if lease.target.makes_wait
                and self.is_taken(lease.target)
                and not lease.writer.make_room(min(size, lease.writer.payload_max))
            ]
            if not full:
                break
            await _wait_for_room(*full[0], size)
            waited = True
        self(*arguments, **keywords)
        if waited:
            for lease in local.leases:
                if lease.writer.waiters and lease.writer.has_room(size):
                    lease.writer.wake_one()

    def _payload(self, arguments: tuple[Any, ...], keywords: Mapping[str, Any]) -> bytes:
        """Encode without writing.

        Raises:
            TypeError: A value does not fit, and we are strict.
            WrongValueError: The same, and we are not.
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
            warn(f"{error} (dropped and counted; told once)", stacklevel=3)


def _write_stack(target: Target) -> None:
    """Record this thread's Python stack, after the event that set it off."""
    payload = pack_current_stack(get_pid())
    for lease, writer in zip(local.leases, local.own.writers, strict=False):
        if lease.target is target:
            writer.write(payload)


async def _wait_for_room(target: Target, writer: Writer, size: int) -> None:
    """Wait until this writer may have room. Cancelled: a wake that was meant for us goes to the next."""
    waker = Waker(Loop())

    def wake() -> None:
        if not waker.wake():
            writer.wake_one()

    began = target.clock()
    writer.waiters.append(wake)
    try:
        if writer.has_room(min(size, writer.payload_max)) or not target.makes_wait:
            _withdraw(writer, wake)
            return  # it came home between the look and the wait
        await target.wait_for_page(waker)
        _withdraw(writer, wake)
    except BaseException:
        if not _withdraw(writer, wake):
            writer.wake_one()
        raise
    finally:
        target.count_wait(target.clock() - began)


def _withdraw(writer: Writer, wake: Callable[[], object]) -> bool:
    """Wait no more. False if another thread has taken this wake from the line: then it is meant for us."""
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
_events_lock = threading.RLock()


def event(name: str, /, **fields: FieldType) -> Event:
    """Define an event, or get it if it is defined just so already.

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
    """`event`, for tracers too: their events are off in a recording until it enables them (`by_default=False`), and may
    be printed in a way of their own, which is what follows "print fmt: " in the format."""
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
    """An event whose records are those of one of the kernel's own, which readers know: it is chosen by our `name`, off
    until then, and read by theirs."""
    with _events_lock:
        if name not in _events:
            _events[name] = _make(Schema(name, fields), known.id, by_default=False)
        return _events[name]


def defined_events() -> dict[str, Event]:
    """All events of this process by name, in the order in which they were defined."""
    return dict(_events)


def _make(schema: Schema, id: int, by_default: bool) -> Event:
    made = make_twin(schema, id, by_default=by_default)
    native: Event | None = made.native
    return made if native is None else native


def make_twin(schema: Schema, id: int, *, by_default: bool) -> PythonEvent:
    """An event that is in no table, and in `native` its C twin, if it has one."""
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
    _events_lock = threading.RLock()


os.register_at_fork(after_in_child=_after_fork_in_child)
