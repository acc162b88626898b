"""What the functions of a print fmt print: `__print_flags` and the like, as include/trace/stages/stage3_trace_output.h.

    __print_symbolic(REC->op, { 0, "READ" })   -->   a `Node` whose value is "READ" or "0x7"

All take time in proportion to their value and table.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from .c_operators import as_bytes
from .c_types import INT, Node, Run
from .event_format import FieldKind, FormatField, Value

__all__ = ["array_text", "flags_text", "length_of", "symbolic_text"]

Table = Sequence[tuple[int, str]]


def symbolic_text(node: Node, pairs: Table, mask: int) -> Node:
    """The text of the first pair with this number."""
    value = node.run
    table: dict[int, str] = {}
    for key, text in pairs:
        table.setdefault(key, text)

    def symbolic(values: Mapping[str, Value]) -> str:
        number = value(values) & mask
        return table.get(number) or f"0x{number:x}"

    return Node(symbolic, depth=node.depth + 1, is_text=True)


def flags_text(node: Node, delimiter: str, pairs: Table, mask: int) -> Node:
    """As the kernel's `trace_print_flags_seq`: of 0 it prints nothing, whatever the table has."""
    value = node.run

    def flags(values: Mapping[str, Value]) -> str:
        left = value(values) & mask
        found: list[str] = []
        for bits, text in pairs:
            if not left:
                break
            if left & bits == bits:
                found.append(text)
                left &= ~bits
        if left:
            found.append(f"0x{left:x}")
        return delimiter.join(found)

    return Node(flags, depth=node.depth + 1, is_text=True)


def array_text(node: Node, count: Run) -> Node:
    """`{0x1,0x2}`: at most `count` elements."""
    data = node.run
    mask = (1 << 8 * (node.field.element_size if node.field is not None else 8)) - 1

    def array(values: Mapping[str, Value]) -> str:
        items: Any = data(values)
        if isinstance(items, str):
            items = as_bytes(items)
        return "{" + ",".join([f"0x{number & mask:x}" for number in items[: max(count(values), 0)]]) + "}"

    return Node(array, depth=node.depth + 1, is_text=True)


def length_of(field: FormatField) -> Node:
    """The bytes of a dynamic array; of a string, with its NUL."""
    name, size, extra = field.name, field.element_size, int(field.kind is FieldKind.CHAR)

    def length(values: Mapping[str, Value]) -> int:
        value: Any = values[name]
        return len(as_bytes(value)) + extra if isinstance(value, str) else len(value) * size

    return Node(length, INT)
