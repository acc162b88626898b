"""sched: when each task ran, in the kernel's own scheduler events, so that KernelShark and trace-cmd show it.

    sched:sched_switch  prev_comm prev_pid prev_prio prev_state next_comm next_pid next_prio
    sched:sched_waking  comm pid prio

    the loop's thread ==> the task          a step begins
    the task, S       ==> the thread        it ends: S it waits, R it continues at once, Z it is done

`sched_switch` has all fields of the kernel's event: with fewer KernelShark 2.2 crashes. A comm is the name in the saved
command lines, "<...>" while it is unknown. If steps nest, the outer task takes the place of the thread. `sched_waking`
has no target_cpu: it is unknown in which thread the task will run.

The code that runs per step is `_csrc/tasks/sched_switch.c`, so this tracer needs the C module. It shares the hooks of
the `task` tracer, whose events need not be on.
"""

from __future__ import annotations

import threading
from types import ModuleType
from typing import Final

from .._base.backend import c_module
from .._base.errors import ConfigurationError
from .._events.event import define
from .._events.open_recordings import thread_name
from .._page.event_schema import COMM
from . import task as tasks

_STATES: Final = '{ 0, "R" }, { 1, "S" }, { 16, "Z" }'
SWITCH: Final = define(
    "sched:sched_switch",
    {
        "prev_comm": COMM,
        "prev_pid": "s32",
        "prev_prio": "s32",
        "prev_state": "s64",
        "next_comm": COMM,
        "next_pid": "s32",
        "next_prio": "s32",
    },
    by_default=False,
    # What trace-cmd's plugin prints for a sched_switch in any case, for readers without that plugin.
    print_format='"%s:%d [%d] %s ==> %s:%d [%d]", REC->prev_comm, REC->prev_pid, REC->prev_prio, '
    f"__print_symbolic(REC->prev_state, {_STATES}), REC->next_comm, REC->next_pid, REC->next_prio",
)
WAKING: Final = define("sched:sched_waking", {"comm": COMM, "pid": "s32", "prio": "s32"}, by_default=False)


def start() -> None:
    """
    Raises:
        ConfigurationError: There is no C module, or tasks cannot be traced on this Python.
    """
    native = _need_c()
    tasks.hold("sched")
    native.switch_start(SWITCH, WAKING, _name_thread)


def stop() -> None:
    _need_c().switch_stop()
    tasks.release("sched")


def _name_thread() -> tuple[int, str]:
    """The calling thread, as its other records name it."""
    return threading.get_native_id(), thread_name()


def _need_c() -> ModuleType:
    if c_module is None:
        raise ConfigurationError(
            "task switches (sched:*) need the C module: `pip install .` with a C compiler builds it"
        )
    return c_module
