"""The kernel's own events, stack traces and function calls, which trace-cmd and KernelShark know by id and name.

    kernel_stack      4    size, caller[]                              the stack of the event before it, innermost first
    function          1    ip, parent_ip                               a function is called
    funcgraph_entry  11    func, depth                                 the same, and
    funcgraph_exit   10    func, depth, overrun, calltime, rettime     it returns

Ids, fields and offsets are those of Linux 6 (kernel/trace/trace_entries.h), because trace-cmd's plugins expect them. A
caller or func is an address of a `FunctionDefinition`. Streams do not define these events: aiotrace's readers know
them, and a trace.dat has them in a section of its own. Sans-IO.
"""

from __future__ import annotations

import struct

from . import layout as L
from .definitions import EventDefinition

TYPE_CHECKING = False  # importing it from `typing` would double the time of `import aiotrace`
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Final

SYSTEM: Final = "ftrace"
STACK_MAX: Final = 64
"""The most callers in a stack trace, so that one fits on the smallest page; the outermost are left out."""

_COMMON_FIELDS: Final = (
    ("unsigned short common_type", 0, 2, 0),
    ("unsigned char common_flags", 2, 1, 0),
    ("unsigned char common_preempt_count", 3, 1, 0),
    ("int common_pid", 4, 4, 1),
)


def _event(id: int, name: str, fields: Sequence[tuple[str, int, int, int]], print_format: str) -> EventDefinition:
    """Fields are (declaration, offset, size, signed)."""
    lines = [f"name: {name}", f"ID: {id}", "format:"]
    for group in (_COMMON_FIELDS, fields):
        lines += [
            f"\tfield:{declaration};\toffset:{offset};\tsize:{size};\tsigned:{signed};"
            for declaration, offset, size, signed in group
        ]
        lines.append("")
    return EventDefinition(id, SYSTEM, name, "\n".join([*lines, f"print fmt: {print_format}", ""]))


KERNEL_STACK: Final = _event(
    4,
    "kernel_stack",
    [("int size", 8, 4, 1), ("unsigned long caller[8]", 16, 64, 0)],
    " ".join(['"\\t=> %ps\\n"'] * 8) + ", " + ", ".join(f"(void *)REC->caller[{n}]" for n in range(8)),
)
FUNCTION: Final = _event(
    1,
    "function",
    [("unsigned long ip", 8, 8, 0), ("unsigned long parent_ip", 16, 8, 0)],
    '" %ps <-- %ps", (void *)REC->ip, (void *)REC->parent_ip',
)
FUNCGRAPH_ENTRY: Final = _event(
    11,
    "funcgraph_entry",
    [("unsigned long func", 8, 8, 0), ("int depth", 16, 4, 1)],
    '"--> %ps (%d)", (void *)REC->func, REC->depth',
)
FUNCGRAPH_EXIT: Final = _event(
    10,
    "funcgraph_exit",
    [
        ("unsigned long func", 8, 8, 0),
        ("int depth", 16, 4, 1),
        ("unsigned int overrun", 20, 4, 0),
        ("unsigned long long calltime", 24, 8, 0),
        ("unsigned long long rettime", 32, 8, 0),
    ],
    '"<-- %ps (%d) (start: %llx  end: %llx) over: %d", '
    "(void *)REC->func, REC->depth, REC->calltime, REC->rettime, REC->depth",
)
EVENTS: Final = (KERNEL_STACK, FUNCTION, FUNCGRAPH_ENTRY, FUNCGRAPH_EXIT)

_STACK: Final = struct.Struct(L.BYTE_ORDER + "HBBii4x")


def pack_stack(pid: int, callers: Sequence[int]) -> bytes:
    """The payload of a `kernel_stack`: at most `STACK_MAX` callers, innermost first."""
    kept = callers[:STACK_MAX]
    return _STACK.pack(KERNEL_STACK.id, 0, 0, pid, len(kept)) + struct.pack(f"{L.BYTE_ORDER}{len(kept)}Q", *kept)
