"""The expressions of a print fmt: C over a record's fields, compiled once into closures over a dict of values.

    "dev %d op %s", REC->dev >> 20, __print_symbolic(REC->op, {0, "READ"})
     `- text        `- arguments: values -> number, text, tuple, ...

The text is untrusted: the language has no loops, nesting is limited, and each part is evaluated at most once a record,
so that a record costs time in proportion to the text. What is not supported (an unknown function, a statement, pointers
to what has an unknown size) is refused, never guessed. A name that is not known, as enumerators are of which the file
does not tell the number, costs the value that it is in: `UnknownNameError`.

Numbers are those of C: each expression has a type of so many bits, with or without a sign (`c_types`).

This module knows nothing of printf conversions, names of functions, or pages.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any, Final, NamedTuple

from .._base.errors import TraceFormatError
from .._page import layout as L
from .c_operators import MASK, cpu_list, hex_mask, item
from .c_tokens import ExcessiveFormatError, split_tokens, unquoted
from .c_types import BY_PRECEDENCE, INT, CType, Node, binary, both, cast, choose, either, literal_type, memory_of, unary
from .event_format import EventFormat, FieldKind, FormatField, Place, Value
from .print_helpers import array_text, flags_text, length_of, symbolic_text

__all__ = ["Expression", "PrintFormat", "UnknownNameError", "Values", "parse_print_format"]

DEPTH_MAX: Final = 60
"""Levels of nesting in the text of an expression."""
CHAIN_MAX: Final = 200
"""Operators that wait for each other's values, as in `a + b + c`: each is a call in Python."""

Values = Mapping[str, Value]
Expression = Callable[[Values], Any]


class UnknownNameError(LookupError):
    """The value cannot be told: it needs the number of a name, and the file does not have it."""


class PrintFormat(NamedTuple):
    """A print fmt that was understood."""

    text: str
    """For printf."""
    arguments: list[Node]
    byte_fields: frozenset[str]
    """Fields of characters that it prints as the bytes that they are."""


def parse_print_format(format: EventFormat, long_size: int, byte_order: str = L.BYTE_ORDER) -> PrintFormat:
    """
    Args:
        long_size: Bytes of a C `long`.
        byte_order: "<" or ">".

    Raises:
        TraceFormatError: The print fmt is not valid, or uses something that is not supported.
        RecursionError: It is nested too deeply for the stack that is left.
    """
    return _Parser(format, long_size, byte_order).parse()


_TYPE_WORDS: Final = frozenset(
    {"unsigned", "signed", "int", "long", "short", "char", "void", "struct", "enum", "union", "const", "volatile"}
    | {"bool", "_Bool", "float", "double"}
)
_SIZES: Final = {"char": 1, "u8": 1, "s8": 1, "bool": 1, "short": 2, "u16": 2, "s16": 2, "int": 4, "u32": 4, "s32": 4}
_SIZES_OF: Final = {**_SIZES, "unsigned": 4, "signed": 4, "u64": 8, "s64": 8, "dev_t": 4, "pid_t": 4, "umode_t": 2}


class _Parser:
    """From the text to closures. What it does not know, it refuses with TraceFormatError."""

    def __init__(self, format: EventFormat, long_size: int, byte_order: str) -> None:
        # `REC->type` and `__get_str(type)` may be two fields
        self._fields: dict[str, FormatField] = {}
        self._dynamic: dict[str, FormatField] = {}
        for field in format.fields:
            is_dynamic = field.place in (Place.DATA_LOC, Place.REL_LOC)
            (self._dynamic if is_dynamic else self._fields).setdefault(field.declared or field.name, field)

        self._long_size = long_size
        self._byte_order = byte_order
        self._long = CType(long_size * 8, True)
        self._ulong = CType(long_size * 8, False)
        self._tokens = split_tokens(format.print_format)
        self._position = 0
        self._depth = 0
        self._byte_fields: set[str] = set()

    def parse(self) -> PrintFormat:
        # The format, in one or more literals
        kind, literal = self._next()
        if kind != "string":
            raise self._refuse("a string should come first")
        text = unquoted(literal)
        while self._peek()[0] == "string":
            text += unquoted(self._next()[1])

        # Its arguments
        arguments = []
        while self._accept(","):
            arguments.append(self._ternary())
        if self._peek()[0]:
            raise self._refuse("the end should be here")
        return PrintFormat(text, arguments, frozenset(self._byte_fields))

    # tokens

    def _peek(self, ahead: int = 0) -> tuple[str, str]:
        at = self._position + ahead
        return self._tokens[at] if at < len(self._tokens) else ("", "")

    def _next(self) -> tuple[str, str]:
        token = self._peek()
        self._position += 1
        return token

    def _accept(self, op: str) -> bool:
        if self._peek() == ("op", op):
            self._position += 1
            return True
        return False

    def _expect(self, op: str) -> None:
        if not self._accept(op):
            raise self._refuse(f"{op!r} should be here")

    def _refuse(self, message: str) -> TraceFormatError:
        return TraceFormatError(f"print fmt, token {self._position}: {message}, found {self._peek()[1]!r}")

    # grammar

    def _ternary(self) -> Node:
        self._depth += 1
        if self._depth > DEPTH_MAX:
            raise ExcessiveFormatError("print fmt: nested too deeply")
        condition = self._or()
        if self._accept("?"):
            # `a ?: b` is GNU C for `a ? a : b`, where a is evaluated once
            then = None if self._peek() == ("op", ":") else self._ternary()
            self._expect(":")
            condition = self._bounded(choose(self._no_text(condition), then, self._ternary()))
        self._depth -= 1
        return condition

    def _or(self) -> Node:
        left = self._and()
        while self._accept("||"):
            a, b = self._no_text(left), self._no_text(self._and())
            left = self._bounded(either(a, b))
        return left

    def _and(self) -> Node:
        left = self._binary(0)
        while self._accept("&&"):
            a, b = self._no_text(left), self._no_text(self._binary(0))
            left = self._bounded(both(a, b))
        return left

    def _binary(self, level: int) -> Node:
        if level == len(BY_PRECEDENCE):
            return self._unary()
        left = self._binary(level + 1)
        while self._peek()[0] == "op" and self._peek()[1] in BY_PRECEDENCE[level]:
            operator = self._next()[1]
            right = self._binary(level + 1)
            made = binary(operator, self._no_text(left), self._no_text(right), self._long)
            if made is None:
                raise self._refuse("the size of what a pointer points to is not known")
            left = self._bounded(made)
        return left

    def _bounded(self, node: Node) -> Node:
        if node.depth > CHAIN_MAX:
            raise ExcessiveFormatError("print fmt: nested too deeply")
        return node

    def _no_text(self, node: Node) -> Node:
        """An operand: what a function prints is none, and takes time to make."""
        if node.is_text:
            raise ExcessiveFormatError("print fmt: text as the operand of an operator")
        return node

    def _unary(self) -> Node:
        self._depth += 1
        if self._depth > DEPTH_MAX:
            raise ExcessiveFormatError("print fmt: nested too deeply")
        result = self._unary_inside()
        self._depth -= 1
        return result

    def _unary_inside(self) -> Node:
        for operator in ("-", "~", "!"):
            if self._accept(operator):
                return self._bounded(unary(operator, self._no_text(self._unary())))
        if self._accept("&"):
            node = self._unary()
            if node.field is not None and node.type is not None and not node.pointee:
                return node._replace(run=memory_of(node, self._byte_order), type=None)
            return node  # a pointer to an array is treated as the array
        if self._accept("+") or self._accept("*"):
            return self._unary()
        if self._peek() == ("op", "(") and (words := self._cast()) is not None:
            operand = self._unary()
            return self._bounded(self._cast_to(words, operand))
        return self._postfix()

    def _cast(self) -> list[str] | None:
        """A cast, if one stands here: `(` names and stars `)` before an operand."""
        words, ahead = [], 1
        while self._peek(ahead)[0] == "name" or self._peek(ahead) == ("op", "*"):
            words.append(self._peek(ahead)[1])
            ahead += 1
        if not words or self._peek(ahead) != ("op", ")") or "REC" in words:
            return None
        kind, following = self._peek(ahead + 1)
        if not kind or (kind == "op" and following not in ("(", "~", "!", "&", "-", "*")):
            return None
        if len(words) == 1 and words[0] not in _TYPE_WORDS and following in ("-", "*", "&") and kind == "op":
            return None  # a name in parentheses, then an operator
        self._position += ahead + 1
        return words

    def _cast_to(self, words: list[str], operand: Node) -> Node:
        if "*" in words:
            return operand._replace(pointee=self._pointee(words))
        unsigned = "unsigned" in words or words[-1].lstrip("_").startswith("u") or "size_t" in words
        unsigned |= bool({"bool", "_Bool", "dev_t"} & set(words))
        return cast(operand, CType(self._size_of(words) * 8, not unsigned))

    def _pointee(self, words: list[str]) -> int:
        """Bytes of what a pointer points to; 0 if that is not known."""
        plain = [word for word in words if word not in ("*", "const", "volatile")]
        if words.count("*") > 1:
            return self._long_size
        if plain[:1] == ["void"]:
            return 1
        if not plain or not (set(plain) <= _TYPE_WORDS or plain[-1].lstrip("_") in _SIZES_OF):
            return 0
        return 0 if plain[0] in ("struct", "union", "enum") else self._size_of(plain)

    def _size_of(self, words: list[str]) -> int:
        if "*" in words or "long" in words:
            return 8 if words.count("long") == 2 else self._long_size
        if words[0] in ("struct", "union"):
            raise self._refuse(f"the size of {' '.join(words)} is not known")
        known = [word for word in words if word.lstrip("_").removesuffix("_t") in _SIZES]
        if known:
            return _SIZES[known[0].lstrip("_").removesuffix("_t")]
        match = re.fullmatch(r"_*u?int(8|16|32|64)_t", words[-1])
        if match:
            return int(match.group(1)) // 8
        return _SIZES_OF.get(words[-1].lstrip("_"), 4 if words[0] == "enum" else 8)

    def _postfix(self) -> Node:
        kind, text = self._next()
        if kind == "number":
            return self._number(text)
        if kind == "string":
            literal = unquoted(text)
            while self._peek()[0] == "string":
                literal += unquoted(self._next()[1])
            return Node(lambda values: literal, is_text=True)
        if kind == "char":
            code = ord(unquoted(text)[:1] or "\0")
            return Node(lambda values: code, INT)
        if kind == "name":
            return self._named(text)

        # Parentheses: around REC, or around an expression
        if (kind, text) == ("op", "("):
            if self._peek() == ("name", "REC") and self._peek(1) == ("op", ")"):
                self._position += 2
                return self._record()
            if self._peek() == ("op", "{"):
                raise self._refuse("a statement cannot be interpreted")
            inner = self._ternary()
            self._expect(")")
            return self._indexed(inner)
        raise self._refuse(f"an operand should be here, found {text!r} before")

    def _number(self, text: str) -> Node:
        digits = text.rstrip("uUlL")
        try:
            number = int(digits, 8 if re.fullmatch(r"0\d+", digits) else 0) & MASK
        except ValueError:  # 09, or more digits than Python reads
            raise self._refuse(f"{text[:20]!r} is no number") from None
        return Node(lambda values: number, literal_type(number, digits, text[len(digits) :].lower(), self._long))

    def _indexed(self, base: Node) -> Node:
        while self._accept("["):
            index = self._ternary()
            self._expect("]")
            field = base.field
            type = None
            if field is not None and field.kind in (FieldKind.INT, FieldKind.CHAR):
                type = CType(field.element_size * 8, field.signed)
            run = (lambda a, i: lambda values: item(a(values), i(values)))(base.run, self._no_text(index).run)
            depth = max(base.depth, index.depth) + 1
            base = self._bounded(Node(run, type, depth, is_float=base.is_float))
        return base

    def _record(self) -> Node:
        self._expect("->")
        field = self._field(self._fields, self._dynamic)
        return self._indexed(self._of_field(field))

    def _of_field(self, field: FormatField) -> Node:
        name = field.name
        is_number = field.place is Place.SCALAR and field.kind in (FieldKind.INT, FieldKind.BOOL)
        type = CType(field.size * 8, field.signed) if is_number else None
        words = field.type.replace("*", " * ").split()
        pointee = self._pointee(words) if "*" in words and field.place is Place.SCALAR else None
        is_float = field.kind is FieldKind.FLOAT
        return Node(lambda values: values[name], type, field=field, pointee=pointee, is_float=is_float)

    def _field(self, *tables: Mapping[str, FormatField]) -> FormatField:
        kind, name = self._next()
        for table in tables:
            if kind == "name" and name in table:
                return table[name]
        raise self._refuse(f"{name!r} should be a field")

    def _dynamic_field(self) -> FormatField:
        return self._field(self._dynamic, self._fields)

    def _named(self, name: str) -> Node:
        if name == "REC":
            return self._record()
        if name == "sizeof":
            return self._sizeof()
        if self._peek() != ("op", "(") and not name.startswith("__"):
            return Node(_unknown(name), self._long)
        function = getattr(self, "_call_" + name.strip("_"), None) if name.startswith("__") else None
        if function is None or not self._accept("("):
            raise self._refuse(f"{name!r} is not known")
        node: Node = function()
        self._expect(")")
        return node

    def _sizeof(self) -> Node:
        self._expect("(")
        words = []
        while self._peek()[0] == "name" or self._peek() == ("op", "*"):
            words.append(self._next()[1])
        self._expect(")")
        if not words:
            raise self._refuse("a type should be here")
        size = self._size_of(words)
        return Node(lambda values: size, self._ulong)

    # the functions of a print fmt

    def _call_get_str(self) -> Node:
        return self._of_field(self._dynamic_field())

    _call_get_rel_str = _call_get_str
    _call_get_dynamic_array = _call_get_str
    _call_get_rel_dynamic_array = _call_get_str
    _call_get_sockaddr = _call_get_str
    _call_get_rel_sockaddr = _call_get_str

    def _call_get_dynamic_array_len(self) -> Node:
        field = self._dynamic_field()
        return length_of(field)

    _call_get_rel_dynamic_array_len = _call_get_dynamic_array_len

    def _call_get_bitmask(self) -> Node:
        return self._mask(hex_mask)

    _call_get_rel_bitmask = _call_get_bitmask

    def _call_get_cpumask(self) -> Node:
        return self._mask(cpu_list)

    _call_get_rel_cpumask = _call_get_cpumask

    def _mask(self, show: Callable[[Any, int], str]) -> Node:
        field = self._dynamic_field()
        name, bits = field.name, field.element_size * 8
        return Node(lambda values: show(values[name], bits), is_text=True)

    def _call_builtin_expect(self) -> Node:
        value = self._ternary()
        self._expect(",")
        self._ternary()
        return value

    def _call_print_ns_to_secs(self) -> Node:
        value = self._no_text(self._ternary()).run
        return Node(lambda values: (value(values) & MASK) // 10**9, CType(64, False))

    def _call_print_ns_without_secs(self) -> Node:
        value = self._no_text(self._ternary()).run
        return Node(lambda values: (value(values) & MASK) % 10**9, CType(32, False))

    # tables of constants

    def _constant(self, node: Node) -> Any:
        """Its value; None if it needs a name that is not known."""
        try:
            return node.run({})
        except UnknownNameError:
            return None
        except (LookupError, TypeError, ValueError, ArithmeticError):
            raise ExcessiveFormatError("print fmt: a constant that cannot be computed") from None

    def _pairs(self, mask: int) -> list[tuple[int, str]]:
        """`, { number, "text" }, ...` up to the closing parenthesis, without those whose number is not known."""
        pairs = []
        while self._accept(","):
            self._expect("{")
            if self._accept("}"):
                continue
            key = self._constant(self._ternary())
            self._expect(",")
            text = self._constant(self._ternary())
            self._expect("}")
            if isinstance(key, int) and isinstance(text, str):  # else it is the end mark: `{ -1, NULL }`
                pairs.append((key & mask, text))
        return pairs

    def _symbolic(self, mask: int) -> Node:
        node = self._no_text(self._ternary())
        return symbolic_text(node, self._pairs(mask), mask)

    def _flags(self, mask: int) -> Node:
        node = self._no_text(self._ternary())
        self._expect(",")
        delimiter = self._constant(self._ternary())
        if not isinstance(delimiter, str):
            raise self._refuse("a delimiter should be text")
        return flags_text(node, delimiter, self._pairs(mask), mask)

    def _call_print_symbolic(self) -> Node:
        return self._symbolic((1 << self._long.bits) - 1)

    def _call_print_symbolic_u64(self) -> Node:
        return self._symbolic(MASK)

    def _call_print_flags(self) -> Node:
        return self._flags((1 << self._long.bits) - 1)

    def _call_print_flags_u64(self) -> Node:
        return self._flags(MASK)

    # arrays

    def _memory(self) -> Expression:
        node = self._no_text(self._ternary())
        if node.field is not None and node.field.kind is FieldKind.CHAR:
            self._byte_fields.add(node.field.name)
        return memory_of(node, self._byte_order)

    def _hex(self, *separator: str) -> Node:
        data = self._memory()
        self._expect(",")
        count = self._no_text(self._ternary()).run
        return Node(lambda values: data(values)[: max(count(values), 0)].hex(*separator), is_text=True)

    def _call_print_hex(self) -> Node:
        return self._hex(" ")

    def _call_print_hex_str(self) -> Node:
        return self._hex()

    def _call_print_array(self) -> Node:
        data = self._no_text(self._ternary())
        self._expect(",")
        count = self._no_text(self._ternary()).run
        self._expect(",")
        self._ternary()  # the size of an element, which the field has too
        return self._array(data, count)

    def _call_print_dynamic_array(self) -> Node:
        data = self._of_field(self._dynamic_field())
        self._expect(",")
        self._ternary()
        return self._array(data, lambda values: MASK)

    def _array(self, node: Node, count: Expression) -> Node:
        if node.field is not None and node.field.kind is FieldKind.CHAR:
            self._byte_fields.add(node.field.name)
        return array_text(node, count)


def _unknown(name: str) -> Expression:
    def raise_it(values: Values) -> Any:
        raise UnknownNameError(name)

    return raise_it
