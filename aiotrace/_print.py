r"""What is printed for an event: its print fmt, interpreted; or else name=value.

    print fmt: "dev %d,%d op %s", ((unsigned int) ((REC->dev) >> 20)), ..., __print_symbolic(REC->op, {0, "READ"})
                `- a printf format   `- expressions in C over the record's fields, of which the usual ones are known

The law: **the text is hostile**. It is compiled once into closures over a dict of values; there is no loop in the
language, nesting and length are limited, and every number is cut to 64 bits, so that a record costs time in
proportion to the text. What is beyond us (a function that we do not know, a statement) is never guessed: the event
is printed as name=value. Control characters are escaped wherever they come from.

This module knows no page, no file and no terminal.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Callable, Mapping
from typing import Any, Final, Protocol

from ._errors import TraceFormatError
from ._format import EventFormat, Field, Kind, Value

__all__ = [
    "CONVERSION",
    "INTEGER_BITS",
    "WIDTH_MAX",
    "compile_print",
    "escape",
    "escape_literal",
    "format_pairs",
    "format_value",
    "unquoted",
]

TEXT_MAX: Final = 1 << 16
"""Characters of a print fmt that is interpreted; the longest of Linux 6.18 has 14,000."""
DEPTH_MAX: Final = 60
"""Nesting of an expression."""
WIDTH_MAX: Final = 1000
"""Characters to which a format may pad."""

Values = Mapping[str, Value]


class Names(Protocol):
    """Where addresses get their names."""

    def find(self, address: int) -> tuple[str, int] | None:
        """The function that an address is in, and how far from its beginning."""

    def locate(self, address: int) -> str | None:
        """The place of an address in a source file, `app.py:17`, where that is known."""


Printer = Callable[[Values], str]


def escape(text: str) -> str:
    r"""The same text with everything that could act on a terminal as an escape: \n, \x1b, \u202e."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else _ESCAPES.get(c) or _escaped(ord(c)) for c in text)


_ESCAPES: Final = {"\n": "\\n", "\t": "\\t", "\r": "\\r"}


def _escaped(code: int) -> str:
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"


def format_value(value: object) -> str:
    """A field's value for people: text as it is, bytes in hex, the rest as Python shows it."""
    if isinstance(value, str):
        return escape(value)
    if isinstance(value, bytes):
        return value.hex()
    if isinstance(value, tuple):
        return "[" + ", ".join(format_value(item) for item in value) + "]"
    return str(value)


def format_pairs(values: Values) -> str:
    """`name=value` for each field."""
    return " ".join(f"{escape(name)}={format_value(value)}" for name, value in values.items())


def compile_print(format: EventFormat, names: Names | None = None, *, long_size: int = 8) -> Printer:
    """A function from an event's own fields to what is printed for it.

    Args:
        names: Gives `%ps` its names; without it addresses are printed.
        long_size: Bytes of a C `long`.
    """
    if format.system == "ftrace" and format.name in ("kernel_stack", "user_stack"):
        return lambda values: _stack(values, names)
    try:
        interpreted = _Compiler(format, names, long_size).compile()
    except (TraceFormatError, RecursionError):
        return format_pairs

    def print_event(values: Values) -> str:
        try:
            return interpreted(values)
        except (ArithmeticError, LookupError, TypeError, ValueError):
            return format_pairs(values)  # the format asks for what these values do not give

    return print_event


def _stack(values: Values, names: Names | None) -> str:
    """As trace-cmd shows a stack trace; functions of ours with their file and line instead of the address."""
    lines = ["<stack trace >"]
    callers = values.get("caller", ())
    for address in callers if isinstance(callers, tuple) else ():
        if not isinstance(address, int) or address & _MASK == _MASK:
            break
        place = names.locate(address) if names is not None else None
        lines.append(f"=> {_symbol(address, names, False)} ({f'{address:x}' if place is None else escape(place)})")
    return "\n".join(lines)


_MASK: Final = (1 << 64) - 1


def _symbol(address: int, names: Names | None, with_offset: bool) -> str:
    found = names.find(address) if names is not None else None
    if found is None:
        return f"0x{address & _MASK:x}"
    return f"{escape(found[0])}+0x{found[1]:x}" if with_offset else escape(found[0])


# --- tokens -------------------------------------------------------------------------------------

_TOKEN: Final = re.compile(
    r"""\s*(?:
        (?P<string>"(?:[^"\\]|\\.)*")
      | (?P<char>'(?:[^'\\]|\\.[0-7x]{0,3})')
      | (?P<number>0[xX][0-9a-fA-F]+|\d+)[uUlL]*
      | (?P<name>[A-Za-z_]\w*)
      | (?P<op><<|>>|<=|>=|==|!=|&&|\|\||->|[-+*/%&|^~!<>?:(){}\[\],.=;])
    )""",
    re.VERBOSE | re.ASCII | re.DOTALL,
)


def _tokens(text: str) -> list[tuple[str, str]]:
    if len(text) > TEXT_MAX:
        raise TraceFormatError(f"a print fmt of {len(text)} characters")
    tokens, position, text = [], 0, text.rstrip()
    while position < len(text):
        match = _TOKEN.match(text, position)
        if match is None:
            raise TraceFormatError(f"print fmt: {text[position : position + 20]!r}", offset=position)
        kind = match.lastgroup or ""
        tokens.append((kind, match.group(kind)))
        position = match.end()
    return tokens


_C_ESCAPE: Final = re.compile(r"\\(x[0-9a-fA-F]{1,2}|[0-7]{1,3}|.)", re.DOTALL)
_C_ESCAPES: Final = {"n": "\n", "t": "\t", "r": "\r", "a": "\a", "b": "\b", "f": "\f", "v": "\v", "e": "\x1b"}


def unquoted(literal: str) -> str:
    def replace(match: re.Match[str]) -> str:
        found = match.group(1)
        if found[0] == "x" and len(found) > 1:
            return chr(int(found[1:], 16))
        if found[0] in "01234567":
            return chr(int(found, 8) & 0xFF)
        return _C_ESCAPES.get(found, found)

    return _C_ESCAPE.sub(replace, literal[1:-1])


# --- expressions --------------------------------------------------------------------------------

Expression = Callable[[Values], Any]

_TYPE_WORDS: Final = frozenset(
    {"unsigned", "signed", "int", "long", "short", "char", "void", "struct", "enum", "union", "const", "volatile"}
    | {"bool", "_Bool", "float", "double"}
)
_SIZES: Final = {"char": 1, "u8": 1, "s8": 1, "bool": 1, "short": 2, "u16": 2, "s16": 2, "int": 4, "u32": 4, "s32": 4}
_SIZES_OF: Final = {**_SIZES, "unsigned": 4, "signed": 4, "u64": 8, "s64": 8, "dev_t": 4, "pid_t": 4, "umode_t": 2}

_BINARY: Final[tuple[dict[str, Callable[[Any, Any], Any]], ...]] = (
    {"|": lambda a, b: a | b},
    {"^": lambda a, b: a ^ b},
    {"&": lambda a, b: a & b},
    {"==": lambda a, b: int(a == b), "!=": lambda a, b: int(a != b)},
    {
        "<": lambda a, b: int(a < b),
        ">": lambda a, b: int(a > b),
        "<=": lambda a, b: int(a <= b),
        ">=": lambda a, b: int(a >= b),
    },
    {"<<": lambda a, b: _cut(a << (b & 63)), ">>": lambda a, b: a >> (b & 63)},
    {"+": lambda a, b: _cut(a + b), "-": lambda a, b: _cut(a - b)},
    {"*": lambda a, b: _cut(a * b), "/": lambda a, b: _divide(a, b), "%": lambda a, b: a - b * _divide(a, b)},
)


def _cut(value: int) -> int:
    """To 64 bits; negative numbers stay what they are while they fit."""
    if -(1 << 63) <= value < 1 << 64:
        return value
    return value & _MASK


def _divide(a: int, b: int) -> int:
    quotient = abs(a) // abs(b)
    return quotient if (a < 0) == (b < 0) else -quotient


class _Compiler:
    """From the text to closures. What it does not know, it refuses with TraceFormatError."""

    def __init__(self, format: EventFormat, names: Names | None, long_size: int) -> None:
        self._fields = {field.name: field for field in format.fields}
        self._names = names
        self._long_size = long_size
        self._tokens = _tokens(format.print_format)
        self._position = 0
        self._depth = 0
        self._floats: list[Expression] = []

    def compile(self) -> Printer:
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
        return _compile_printf(text, arguments, self._floats, self._names, self._long_size)

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
        if level == len(_BINARY):
            return self._unary()
        left = self._binary(level + 1)
        operators = _BINARY[level]
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
            return lambda values: _cut(-operand(values))
        if self._accept("~"):
            operand = self._unary()
            return lambda values: ~operand(values)
        if self._accept("!"):
            operand = self._unary()
            return lambda values: int(not operand(values))
        if self._accept("+") or self._accept("&") or self._accept("*"):
            return self._unary()  # a pointer to an array stands for the array
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
                number = int(text, 8 if re.fullmatch(r"0\d+", text) else 0) & _MASK
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
            base = (lambda a, i: lambda values: _item(a(values), i(values)))(base, index)
        return base

    def _record(self) -> Expression:
        self._expect("->")
        field = self._field()
        name = field.name
        expression = self._indexed(lambda values: values[name])
        if field.kind is Kind.FLOAT:
            self._floats.append(expression)
        return expression

    def _field(self) -> Field:
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
        name, size, extra = field.name, field.element_size, int(field.kind is Kind.CHAR)

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
        return lambda values: _cpu_list(values[name], bits)

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
            return [(int(key({})) & _MASK, text) for key, text in self._pairs()]
        except (LookupError, TypeError, ValueError, ArithmeticError):
            raise self._refuse("the numbers of a table should be constant") from None

    def _call_print_symbolic(self) -> Expression:
        value = self._ternary()
        table: dict[int, str] = {}
        for key, text in self._constants():
            table.setdefault(key, text)

        def symbolic(values: Values) -> str:
            number = value(values)
            return table.get(number & _MASK) or f"0x{number & _MASK:x}"

        return symbolic

    _call_print_symbolic_u64 = _call_print_symbolic

    def _call_print_flags(self) -> Expression:
        value = self._ternary()
        self._expect(",")
        delimiter = str(self._ternary()({}))
        table = self._constants()

        def flags(values: Values) -> str:
            left = value(values) & _MASK
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
        return lambda values: separator.join(f"{byte:02x}" for byte in _bytes(data(values))[: max(count(values), 0)])

    def _call_print_hex(self) -> Expression:
        return self._hex(" ")

    def _call_print_hex_str(self) -> Expression:
        return self._hex("")

    def _call_print_array(self) -> Expression:
        data = self._ternary()
        self._expect(",")
        count = self._ternary()
        self._expect(",")
        self._ternary()  # the size of an element, which the field says too

        def array(values: Values) -> str:
            items = data(values)
            return "{" + ",".join(f"0x{item & _MASK:x}" for item in items[: max(count(values), 0)]) + "}"

        return array


def _item(value: Any, index: int) -> Any:
    if isinstance(value, str):
        return _bytes(value)[index] if index < len(_bytes(value)) else 0
    if index < 0:
        raise LookupError(index)
    return value[index]


def _bytes(value: Any) -> bytes:
    if isinstance(value, str):
        return value.encode("utf-8", "surrogatepass")
    if isinstance(value, bytes):
        return value
    return b"".join(struct.pack("<Q", item & _MASK) for item in value)


def _cpu_list(words: Any, bits: int) -> str:
    """A bitmask as the kernel prints it: `0-3,7`."""
    total = 0
    for index, word in enumerate(words if isinstance(words, tuple) else ()):
        total |= (word & _MASK) << (index * bits)
    ranges, cpu = [], 0
    while total >> cpu:
        if total >> cpu & 1:
            first = cpu
            while total >> cpu & 1:
                cpu += 1
            ranges.append(f"{first}-{cpu - 1}" if cpu - 1 > first else str(first))
        else:
            cpu += 1
    return ",".join(ranges)


# --- printf -------------------------------------------------------------------------------------

CONVERSION: Final = re.compile(
    r"%(?P<flags>[-+ #0]*)(?P<width>\*|\d+)?(?:\.(?P<precision>\*|\d*))?"
    r"(?P<length>hh|h|ll|l|L|q|z|t|j)?(?P<conversion>[diouxXcsp%])",
    re.ASCII,
)
_POINTER: Final = re.compile(r"I[46]c?|i[46]|IS[pfsc]*|U[bBlL]?|MF?|mF?|[SsFfB]|x|b?l|K|h|e", re.ASCII)
INTEGER_BITS: Final = {"hh": 8, "h": 16, "": 32, "ll": 64, "L": 64, "q": 64, "j": 64}

Part = str | Callable[[Values], str]


def _compile_printf(
    text: str, arguments: list[Expression], floats: list[Expression], names: Names | None, long_size: int
) -> Printer:
    """Pair a printf format's conversions with their arguments.

    Args:
        floats: Which arguments are floats. trace-cmd can only show their bits, after a 0x; here they are numbers.
    """
    text = text.rstrip("\n")
    parts: list[Part] = []
    queue = iter(arguments)
    position = 0
    while position < len(text):
        mark = text.find("%", position)
        if mark < 0:
            break
        literal = escape_literal(text[position:mark])
        parts.append(literal)
        match = CONVERSION.match(text, mark)
        if match is None:
            raise TraceFormatError(f"print fmt: {text[mark : mark + 10]!r} is not known")
        position = match.end()
        if match["conversion"] == "%":
            parts.append("%")
            continue
        extension = ""
        if match["conversion"] == "p" and (found := _POINTER.match(text, position)):
            extension, position = found.group(), found.end()
        try:
            width = next(queue) if match["width"] == "*" else _constant(match["width"])
            precision = next(queue) if match["precision"] == "*" else _constant(match["precision"])
            value = next(queue)
            if value in floats:
                parts[-1] = literal.removesuffix("0x")
        except StopIteration:
            raise TraceFormatError("print fmt: more conversions than arguments") from None
        bits = INTEGER_BITS.get(match["length"] or "", long_size * 8)
        convert = _conversion(match["conversion"], extension, match["flags"], bits, names)
        parts.append(
            (lambda c, w, p, v: lambda values: c(v(values), w(values), p(values)))(convert, width, precision, value)
        )
    parts.append(escape_literal(text[position:]))
    return _joined(parts)


def escape_literal(text: str) -> str:
    """Only the tabs and newlines that the format itself asks for stay what they are."""
    return "\n".join("\t".join(escape(part) for part in line.split("\t")) for line in text.split("\n"))


def _constant(text: str | None) -> Expression:
    number = -1 if text is None else int(text[:6] or "0")
    return lambda values: number


def _joined(parts: list[Part]) -> Printer:
    template = "".join(part.replace("%", "%%") if isinstance(part, str) else "%s" for part in parts)
    functions = [part for part in parts if not isinstance(part, str)]
    return lambda values: template % tuple([function(values) for function in functions])


Conversion = Callable[[Any, int, int], str]
"""(value, width, precision) -> text; -1 where there is none."""


def _conversion(kind: str, extension: str, flags: str, bits: int, names: Names | None) -> Conversion:
    if kind == "s":
        return lambda value, width, precision: _padded(_as_text(value, precision, names), flags, width)
    if kind == "c":
        return lambda value, width, precision: _padded(escape(chr(value & 0xFF)), flags, width)
    if kind == "p":
        return lambda value, width, precision: _padded(_pointer(value, extension, names), flags, width)
    return lambda value, width, precision: _integer(value, kind, flags, bits, width, precision)


def _padded(text: str, flags: str, width: int) -> str:
    if width <= len(text):
        return text
    width = min(width, WIDTH_MAX)
    return text.ljust(width) if "-" in flags else text.rjust(width)


def _as_text(value: Any, precision: int, names: Names | None) -> str:
    if isinstance(value, bytes):
        value = value.partition(b"\0")[0].decode("utf-8", "surrogateescape")
    if isinstance(value, int):
        return _symbol(value, None, False) if value else "(null)"
    if not isinstance(value, str):
        raise TypeError("not a string")
    return escape(value[:precision] if precision >= 0 else value)


def _integer(value: Any, kind: str, flags: str, bits: int, width: int, precision: int) -> str:
    if isinstance(value, float):
        return _padded(repr(value), flags, width)
    if not isinstance(value, int):
        raise TypeError("not a number")
    value &= (1 << bits) - 1
    if kind in "di" and value >> (bits - 1):
        value -= 1 << bits
    digits = format(abs(value), {"d": "d", "i": "d", "u": "d"}.get(kind, kind))
    if precision >= 0:
        digits = digits.rjust(min(precision, WIDTH_MAX), "0")
    sign = "-" if value < 0 else "+" if "+" in flags and kind in "di" else " " if " " in flags and kind in "di" else ""
    if "#" in flags and value:
        sign += {"x": "0x", "X": "0X", "o": "0"}.get(kind, "")
    if "0" in flags and "-" not in flags and precision < 0:
        digits = digits.rjust(min(width, WIDTH_MAX) - len(sign), "0")
    return _padded(sign + digits, flags, width)


def _pointer(value: Any, extension: str, names: Names | None) -> str:
    if extension[:1] in ("S", "s", "F", "f", "B") and isinstance(value, int):
        return _symbol(value, names, extension[0] in "SFB")
    if isinstance(value, (bytes, tuple)) and extension:
        data = _bytes(value)
        if extension[0] in "Ii" and extension[1:2] == "4":
            return ".".join(str(byte) for byte in data[:4])
        if extension[0] in "Ii" and extension[1:2] == "6":
            return _ip6(data[:16])
        if extension.startswith("IS"):
            return _socket_address(data, "p" in extension)
        if extension[0] == "U":
            return _uuid(data[:16], extension)
        if extension[0] in "Mm":
            return ("" if extension[0] == "m" else ":").join(f"{byte:02x}" for byte in data[:6])
        raise TypeError(extension)
    if not isinstance(value, int):
        raise TypeError("not an address")
    return f"0x{value & _MASK:x}"


def _ip6(data: bytes) -> str:
    import ipaddress

    return str(ipaddress.IPv6Address(data))


def _socket_address(data: bytes, with_port: bool) -> str:
    family = int.from_bytes(data[:2], "little")
    port = int.from_bytes(data[2:4], "big")
    if family == 2:
        address = ".".join(str(byte) for byte in data[4:8])
        return f"{address}:{port}" if with_port else address
    if family == 10:
        return f"[{_ip6(data[8:24])}]:{port}" if with_port else _ip6(data[8:24])
    raise TypeError(f"address family {family}")


def _uuid(data: bytes, extension: str) -> str:
    if len(data) != 16:
        raise ValueError("a UUID of another size")
    if extension[1:2] in ("l", "L"):
        data = data[3::-1] + data[5:3:-1] + data[7:5:-1] + data[8:]
    text = "-".join((data[:4].hex(), data[4:6].hex(), data[6:8].hex(), data[8:10].hex(), data[10:].hex()))
    return text.upper() if extension[1:2] in ("B", "L") else text
