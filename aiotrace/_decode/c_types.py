"""The types of C's integers, and expressions that have one.

    REC->root >= -9ULL   -->   u64 and u64: both are compared without a sign

    Node   a function of a record's values, with the type of what it gives; None for text, arrays and floats

Numbers are Python's, within their type's range: `wrap` puts them there. Each node knows how many functions call each
other for its value, for the parser to limit. What C leaves undefined raises an ArithmeticError.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping
from typing import Any, Final, NamedTuple

from .c_operators import as_bytes, cut, divide
from .event_format import FormatField, Value

__all__ = [
    "INT",
    "CType",
    "Node",
    "Run",
    "binary",
    "both",
    "cast",
    "choose",
    "either",
    "literal_type",
    "memory_of",
    "unary",
    "wrap",
]


BY_PRECEDENCE: Final = (
    ("|",), ("^",), ("&",), ("==", "!="), ("<", ">", "<=", ">="), ("<<", ">>"), ("+", "-"), ("*", "/", "%"),
)  # fmt: skip
"""The binary operators, the weakest first; `||` and `&&` are weaker."""


class CType(NamedTuple):
    """An integer of C."""

    bits: int
    signed: bool


INT: Final = CType(32, True)
Run = Callable[[Mapping[str, Value]], Any]


class Node(NamedTuple):
    """An expression."""

    run: Run
    type: CType | None = None
    """None: not an integer of C, or not known to be one."""
    depth: int = 1
    """Functions that call each other when it runs."""
    field: FormatField | None = None
    """The field that it is, if it is just one."""
    pointee: int | None = None
    """Of a pointer: bytes of what it points to, 0 if not known."""
    is_float: bool = False
    is_text: bool = False
    """Whether it is a literal, or what a function prints: not an operand."""


def wrap(value: int, type: CType) -> int:
    """The number as this type has it."""
    value &= (1 << type.bits) - 1
    return value - (1 << type.bits) if type.signed and value >> (type.bits - 1) else value


def literal_type(number: int, digits: str, suffix: str, long: CType) -> CType:
    """The first type of C's list that has room for a literal."""
    is_unsigned, is_decimal = "u" in suffix, not digits.startswith("0") or digits == "0"
    widths = [32, long.bits, 64][min(suffix.count("l"), 2) :]
    for bits in widths:
        if not is_unsigned and number < 1 << (bits - 1):
            return CType(bits, True)
        if (is_unsigned or not is_decimal) and number < 1 << bits:
            return CType(bits, False)
    return CType(64, False)


def _promoted(type: CType) -> CType:
    return INT if type.bits < INT.bits else type


def _common(a: CType, b: CType) -> CType:
    """The type in which both are computed: C's usual arithmetic conversions."""
    a, b = _promoted(a), _promoted(b)
    if a.bits == b.bits:
        return CType(a.bits, a.signed and b.signed)
    return max(a, b)


_ARITHMETIC: Final[dict[str, Callable[[Any, Any], Any]]] = {
    "|": operator.or_,
    "^": operator.xor,
    "&": operator.and_,
    "+": operator.add,
    "-": operator.sub,
    "*": operator.mul,
    "/": divide,
    "%": lambda a, b: a - b * divide(a, b),
}
_COMPARISONS: Final[dict[str, Callable[[Any, Any], bool]]] = {
    "==": operator.eq,
    "!=": operator.ne,
    "<": operator.lt,
    ">": operator.gt,
    "<=": operator.le,
    ">=": operator.ge,
}


def binary(name: str, a: Node, b: Node, long: CType) -> Node | None:
    """`a name b`; None if it needs the size of what a pointer points to, and that is not known."""
    depth = max(a.depth, b.depth) + 1
    pointers = [node for node in (a, b) if node.pointee is not None]
    if pointers and name in ("+", "-"):
        return _with_pointer(name, a, b, long, depth)
    if name in _COMPARISONS:
        return Node(_compared(_COMPARISONS[name], a, b), INT, depth)
    if name in ("<<", ">>"):
        return Node(_shifted(name, a, b), None if a.type is None else _promoted(a.type), depth)
    if a.type is None or b.type is None:
        return Node(_untyped(_ARITHMETIC[name], a.run, b.run), None, depth)
    common = _common(a.type, b.type)
    return Node(_typed(_ARITHMETIC[name], a.run, b.run, common), common, depth)


def _with_pointer(name: str, a: Node, b: Node, long: CType, depth: int) -> Node | None:
    """Pointers count in what they point to."""
    sizes = {node.pointee for node in (a, b) if node.pointee is not None}
    if 0 in sizes or len(sizes) > 1:
        return None
    (size,) = sizes
    f, x, y = _ARITHMETIC[name], _number(a.run), _number(b.run)
    if a.pointee is not None and b.pointee is not None:
        return Node(lambda values: divide(cut(f(x(values), y(values))), size), long, depth)
    left, right = (1, size) if a.pointee is not None else (size, 1)
    unsigned = CType(long.bits, False)
    return Node(lambda values: wrap(f(x(values) * left, y(values) * right), unsigned), unsigned, depth, pointee=size)


def _number(run: Run) -> Run:
    def number(values: Mapping[str, Value]) -> Any:
        value = run(values)
        if not isinstance(value, (int, float)):
            raise TypeError("not a number")
        return value

    return number


def _typed(f: Callable[[Any, Any], Any], x: Run, y: Run, type: CType) -> Run:
    return lambda values: wrap(f(wrap(x(values), type), wrap(y(values), type)), type)


def _untyped(f: Callable[[Any, Any], Any], x: Run, y: Run) -> Run:
    """Where a value is a float, or an address that may have a name."""
    x, y = _number(x), _number(y)

    def compute(values: Mapping[str, Value]) -> Any:
        result = f(x(values), y(values))
        return cut(result) if isinstance(result, int) else result

    return compute


def _compared(f: Callable[[Any, Any], bool], a: Node, b: Node) -> Run:
    x, y = a.run, b.run
    if a.type is None or b.type is None:
        x, y = _number(x), _number(y)
        return lambda values: int(f(x(values), y(values)))
    common = _common(a.type, b.type)
    return lambda values: int(f(wrap(x(values), common), wrap(y(values), common)))


def _shifted(name: str, a: Node, b: Node) -> Run:
    x, y = _number(a.run), _number(b.run)
    type = CType(64, False) if a.type is None else _promoted(a.type)
    most = type.bits - 1
    if name == "<<":
        return lambda values: wrap(x(values) << (y(values) & most), type)
    return lambda values: wrap(x(values), type) >> (y(values) & most)


def unary(name: str, a: Node) -> Node:
    """`-a`, `~a` or `!a`."""
    run = a.run
    if name == "!":
        return Node(lambda values: int(not run(values)), INT, a.depth + 1)
    if a.type is None:
        f = operator.neg if name == "-" else operator.invert
        return Node((lambda f, x: lambda values: f(x(values)))(f, _number(run)), None, a.depth + 1)
    type = _promoted(a.type)
    if name == "-":
        return Node(lambda values: wrap(-run(values), type), type, a.depth + 1)
    return Node(lambda values: wrap(~run(values), type), type, a.depth + 1)


def cast(a: Node, type: CType) -> Node:
    """`(type) a`. What is no number stays what it is: an array, whose address this would be."""
    run = a.run

    def convert(values: Mapping[str, Value]) -> Any:
        value = run(values)
        return wrap(value, type) if isinstance(value, int) else value

    made = type if a.type is not None or a.field is None else None
    return a._replace(run=convert, type=made, depth=a.depth + 1, pointee=None)


def choose(condition: Node, then: Node | None, other: Node) -> Node:
    """`condition ? then : other`; without `then`, the condition's value."""
    first = condition if then is None else then
    type = _common(first.type, other.type) if first.type is not None and other.type is not None else None
    depth = max(condition.depth, first.depth, other.depth) + 1
    is_text = first.is_text or other.is_text
    test, yes, no = condition.run, None if then is None else then.run, other.run

    def run(values: Mapping[str, Value]) -> Any:
        found = test(values)
        value = (found if yes is None else yes(values)) if found else no(values)
        return wrap(value, type) if type is not None and isinstance(value, int) else value

    return Node(run, type, depth, is_text=is_text)


def either(a: Node, b: Node) -> Node:
    """`a || b`."""
    x, y = a.run, b.run
    return Node(lambda values: int(bool(x(values) or y(values))), INT, max(a.depth, b.depth) + 1)


def both(a: Node, b: Node) -> Node:
    """`a && b`."""
    x, y = a.run, b.run
    return Node(lambda values: int(bool(x(values) and y(values))), INT, max(a.depth, b.depth) + 1)


def memory_of(node: Node, byte_order: str) -> Run:
    """The bytes that an array, a text or an integer field has in memory."""
    run = node.run
    size = 8 if node.field is None else node.field.element_size
    order: Any = "little" if byte_order == "<" else "big"
    mask = (1 << 8 * size) - 1

    def memory(values: Mapping[str, Value]) -> bytes:
        value = run(values)
        if isinstance(value, int):
            if node.field is None or node.type is None:
                raise TypeError("an address, not what is there")
            return (value & mask).to_bytes(size, order)
        if isinstance(value, tuple):
            return b"".join([(int(number) & mask).to_bytes(size, order) for number in value])
        return as_bytes(value)

    return memory
