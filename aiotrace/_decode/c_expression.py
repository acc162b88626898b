"""The expressions of a print fmt: C over a record's fields, compiled once into closures over a dict of values.

    "dev %d op %s", REC->dev >> 20, __print_symbolic(REC->op, {0, "READ"})
     `- text        `- arguments: values -> number, text, tuple, ...

The text is untrusted: the language has no loops and nesting is limited, so that a record costs time
in proportion to the text. What is not supported (an unknown function, a statement) is refused,
never guessed.

This module knows nothing of printf conversions, names of functions, or pages.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any, Final, NamedTuple

from .._base.errors import TraceFormatError
from .c_operators import BINARY, MASK, as_bytes, cpu_list, cut, item
from .c_tokens import split_tokens, unquoted
from .event_format import EventFormat, FieldKind, FormatField, Value

__all__ = ["Expression", "PrintFormat", "Values", "parse_print_format"]

DEPTH_MAX: Final = 60
"""Levels of nesting in an expression."""

Values = Mapping[str, Value]
Expression = Callable[[Values], Any]


class PrintFormat(NamedTuple):
    """A print fmt that was understood."""

    text: str
    """For printf."""
    arguments: list[Expression]
    floats: list[Expression]
    """Those of the arguments that are a field with a float in it."""


def parse_print_format(format: EventFormat, long_size: int) -> PrintFormat:
    """
    Args:
        long_size: Bytes of a C `long`.

    Raises:
        TraceFormatError: The print fmt is not valid, or uses something that is not supported.
        RecursionError: It is nested too deeply for the stack that is left.
    """
    return _Parser(format, long_size).parse()


_TYPE_WORDS: Final = frozenset(
    {"unsigned", "signed", "int", "long", "short", "char", "void", "struct", "enum", "union", "const", "volatile"}
    | {"bool", "_Bool", "float", "double"}
)
_SIZES: Final = {"char": 1, "u8": 1, "s8": 1, "bool": 1, "short": 2, "u16": 2, "s16": 2, "int": 4, "u32": 4, "s32": 4}
_SIZES_OF: Final = {**_SIZES, "unsigned": 4, "signed": 4, "u64": 8, "s64": 8, "dev_t": 4, "pid_t": 4, "umode_t": 2}


class _Parser:
    """From the text to closures. What it does not know, it refuses with TraceFormatError."""

    def __init__(self, format: EventFormat, long_size: int) -> None:
        self._fields = {field.name: field for field in format.fields}
        self._long_size = long_size
        self._tokens = split_tokens(format.print_format)
        self._position = 0
        self._depth = 0
        self._floats: list[Expression] = []

    def parse(self) -> PrintFormat:
        kind, literal = self._next()
        if kind != "string":
            raise self._refuse("a string should come first")
        text = unquoted(literal)
        while self._peek()[0] == "string":
            text += unquoted(self._next()[1])
        arguments = []
        while self._accept(","):
            arguments.append(self._ternary())
        if self._peek()[0]:
            raise self._refuse("the end should be here")
        return PrintFormat(text, arguments, self._floats)

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

    def _ternary(self) -> Expression:
        self._depth += 1
        if self._depth > DEPTH_MAX:
            raise self._refuse("nested too deeply")
        condition = self._or()
        if self._accept("?"):
            # `a ?: b` is GNU C for `a ? a : b`
            then = condition if self._peek() == ("op", ":") else self._ternary()
            self._expect(":")
            other = self._ternary()
            self._depth -= 1
            return lambda values: then(values) if condition(values) else other(values)
        self._depth -= 1
        return condition

    def _or(self) -> Expression:
        left = self._and()
        while self._accept("||"):
            left = (lambda a, b: lambda values: int(bool(a(values) or b(values))))(left, self._and())
        return left

    def _and(self) -> Expression:
        left = self._binary(0)
        while self._accept("&&"):
            left = (lambda a, b: lambda values: int(bool(a(values) and b(values))))(left, self._binary(0))
        return left

    def _binary(self, level: int) -> Expression:
        if level == len(BINARY):
            return self._unary()
        left = self._binary(level + 1)
        operators = BINARY[level]
        while self._peek()[0] == "op" and self._peek()[1] in operators:
            operator = operators[self._next()[1]]
            right = self._binary(level + 1)
            left = (lambda f, a, b: lambda values: f(a(values), b(values)))(operator, left, right)
        return left

    def _unary(self) -> Expression:
        self._depth += 1
        if self._depth > DEPTH_MAX:
            raise self._refuse("nested too deeply")
        result = self._unary_inside()
        self._depth -= 1
        return result

    def _unary_inside(self) -> Expression:
        if self._accept("-"):
            operand = self._unary()
            return lambda values: cut(-operand(values))
        if self._accept("~"):
            operand = self._unary()
            return lambda values: ~operand(values)
        if self._accept("!"):
            operand = self._unary()
            return lambda values: int(not operand(values))
        if self._accept("+") or self._accept("&") or self._accept("*"):
            return self._unary()  # a pointer to an array is treated as the array
        if self._peek() == ("op", "(") and (cast := self._cast()) is not None:
            operand = self._unary()
            return lambda values: cast(operand(values))
        return self._postfix()

    def _cast(self) -> Callable[[Any], Any] | None:
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
        return self._cast_to(words)

    def _cast_to(self, words: list[str]) -> Callable[[Any], Any]:
        if "*" in words:
            return lambda value: value
        size = self._size_of(words)
        unsigned = "unsigned" in words or words[-1].lstrip("_").startswith("u") or "size_t" in words
        bits = size * 8

        def cast(value: Any) -> Any:
            if not isinstance(value, int):
                return value
            value &= (1 << bits) - 1
            return value if unsigned or value < 1 << (bits - 1) else value - (1 << bits)

        return cast

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

    def _postfix(self) -> Expression:
        kind, text = self._next()
        if kind == "number":
            try:
                number = int(text, 8 if re.fullmatch(r"0\d+", text) else 0) & MASK
            except ValueError:  # 09, or more digits than Python reads
                raise self._refuse(f"{text[:20]!r} is no number") from None
            return lambda values: number
        if kind == "string":
            literal = unquoted(text)
            while self._peek()[0] == "string":
                literal += unquoted(self._next()[1])
            return lambda values: literal
        if kind == "char":
            code = ord(unquoted(text)[:1] or "\0")
            return lambda values: code
        if kind == "name":
            return self._named(text)
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

    def _indexed(self, base: Expression) -> Expression:
        while self._accept("["):
            index = self._ternary()
            self._expect("]")
            base = (lambda a, i: lambda values: item(a(values), i(values)))(base, index)
        return base

    def _record(self) -> Expression:
        self._expect("->")
        field = self._field()
        name = field.name
        expression = self._indexed(lambda values: values[name])
        if field.kind is FieldKind.FLOAT:
            self._floats.append(expression)
        return expression

    def _field(self) -> FormatField:
        kind, name = self._next()
        if kind != "name" or name not in self._fields:
            raise self._refuse(f"{name!r} should be a field")
        return self._fields[name]

    def _named(self, name: str) -> Expression:
        if name == "REC":
            return self._record()
        if name == "sizeof":
            return self._sizeof()
        function = getattr(self, "_call_" + name.strip("_"), None) if name.startswith("__") else None
        if function is None or not self._accept("("):
            raise self._refuse(f"{name!r} is not known")
        expression: Expression = function()
        self._expect(")")
        return expression

    def _sizeof(self) -> Expression:
        self._expect("(")
        words = []
        while self._peek()[0] == "name" or self._peek() == ("op", "*"):
            words.append(self._next()[1])
        self._expect(")")
        if not words:
            raise self._refuse("a type should be here")
        size = self._size_of(words)
        return lambda values: size

    # the functions of a print fmt

    def _call_get_str(self) -> Expression:
        name = self._field().name
        return lambda values: values[name]

    _call_get_rel_str = _call_get_str
    _call_get_dynamic_array = _call_get_str
    _call_get_rel_dynamic_array = _call_get_str

    def _call_get_dynamic_array_len(self) -> Expression:
        field = self._field()
        name, size, extra = field.name, field.element_size, int(field.kind is FieldKind.CHAR)

        def length(values: Values) -> int:
            value = values[name]
            if isinstance(value, str):
                return len(value.encode("utf-8", "surrogatepass")) + extra
            return len(value) * size  # type: ignore[arg-type]  # a dynamic array is bytes or a tuple

        return length

    _call_get_rel_dynamic_array_len = _call_get_dynamic_array_len

    def _call_get_bitmask(self) -> Expression:
        field = self._field()
        name, bits = field.name, field.element_size * 8
        return lambda values: cpu_list(values[name], bits)

    _call_get_cpumask = _call_get_bitmask
    _call_get_rel_bitmask = _call_get_bitmask
    _call_get_rel_cpumask = _call_get_bitmask

    def _call_builtin_expect(self) -> Expression:
        value = self._ternary()
        self._expect(",")
        self._ternary()
        return value

    def _pairs(self) -> list[tuple[Expression, str]]:
        """`, { number, "text" }, ...` up to the closing parenthesis."""
        pairs = []
        while self._accept(","):
            self._expect("{")
            key = self._ternary()
            self._expect(",")
            text = self._ternary()
            self._expect("}")
            pairs.append((key, str(text({}))))
        return pairs

    def _constants(self) -> list[tuple[int, str]]:
        try:
            return [(int(key({})) & MASK, text) for key, text in self._pairs()]
        except (LookupError, TypeError, ValueError, ArithmeticError):
            raise self._refuse("the numbers of a table should be constant") from None

    def _call_print_symbolic(self) -> Expression:
        value = self._ternary()
        table: dict[int, str] = {}
        for key, text in self._constants():
            table.setdefault(key, text)

        def symbolic(values: Values) -> str:
            number = value(values)
            return table.get(number & MASK) or f"0x{number & MASK:x}"

        return symbolic

    _call_print_symbolic_u64 = _call_print_symbolic

    def _call_print_flags(self) -> Expression:
        value = self._ternary()
        self._expect(",")
        delimiter = str(self._ternary()({}))
        table = self._constants()

        def flags(values: Values) -> str:
            left = value(values) & MASK
            found: list[str] = []
            for mask, text in table:
                if left & mask == mask and (mask or not left) and (mask or not found):
                    found.append(text)
                    left &= ~mask
            if left:
                found.append(f"0x{left:x}")
            return delimiter.join(found)

        return flags

    _call_print_flags_u64 = _call_print_flags

    def _hex(self, separator: str) -> Expression:
        data = self._ternary()
        self._expect(",")
        count = self._ternary()
        return lambda values: separator.join(f"{byte:02x}" for byte in as_bytes(data(values))[: max(count(values), 0)])

    def _call_print_hex(self) -> Expression:
        return self._hex(" ")

    def _call_print_hex_str(self) -> Expression:
        return self._hex("")

    def _call_print_array(self) -> Expression:
        data = self._ternary()
        self._expect(",")
        count = self._ternary()
        self._expect(",")
        self._ternary()  # the size of an element, which the field has too

        def array(values: Values) -> str:
            items = data(values)
            return "{" + ",".join(f"0x{number & MASK:x}" for number in items[: max(count(values), 0)]) + "}"

        return array
