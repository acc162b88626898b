r"""Filters over an event's fields: `status >= 500 && (path ~ "/api/*" || !cached)`. Compiled once, then called.

    or      and ("||" and)*
    and     not ("&&" not)*
    not     "!" not | "(" or ")" | test
    test    NAME [ OPERATOR value ]              a name alone: not 0 and not empty
    value   number (10, -1, 0x1f, 1.5, true, false) or string ("..." with \" \\ \n \t) or a bare word

    ==  !=  <  <=  >  >=      numbers with numbers, strings with strings
    ~   !~                    a string and a glob
    &                         a number has one of these bits

As in the kernel's filter files. If an event does not have the field of a test, or has it with another kind of value (a
string for a number), the test is false, and so is its opposite; `!` before a group negates the result of the group.

This module knows no event: values come as a dict. `pid`, `cpu`, `comm` and `common_pid` come from the event, if the
caller passes one and no field has that name.
"""

from __future__ import annotations

import fnmatch
import operator
import re
from collections.abc import Callable, Mapping
from typing import Any, Final, Protocol

from .._base.errors import ConfigurationError

__all__ = ["Filter", "compile_filter"]

LENGTH_MAX: Final = 10_000
"""Characters of a filter."""
NUMBER_MAX: Final = 100
"""Characters of a number: Python itself refuses more than 4300 digits."""
DEPTH_MAX: Final = 50


class HasTask(Protocol):
    """What a filter may read of the event itself."""

    @property
    def pid(self) -> int: ...
    @property
    def cpu(self) -> int: ...
    @property
    def comm(self) -> str: ...


Test = Callable[[Mapping[str, Any], "HasTask | None"], bool]


class Filter:
    """A compiled filter. Call it with an event's fields, and with the event if there is one."""

    __slots__ = ("_test", "fields", "text")

    def __init__(self, text: str, test: Test, fields: frozenset[str]) -> None:
        self.text = text
        self.fields = fields
        """The names that it uses."""
        self._test = test

    def __call__(self, fields: Mapping[str, Any], event: HasTask | None = None) -> bool:
        return self._test(fields, event)

    def __repr__(self) -> str:
        return f"Filter({self.text!r})"


def compile_filter(text: str) -> Filter:
    """
    Raises:
        ConfigurationError: The text is not a filter; the message says where, and what was expected.
    """
    if len(text) > LENGTH_MAX:
        raise ConfigurationError(f"a filter of {len(text)} characters; at most {LENGTH_MAX} are allowed")
    parser = _Parser(text)
    test = parser.alternatives()
    if parser.kind:
        raise parser.refuse("&&, || or the end")
    return Filter(text, test, frozenset(parser.names))


_TOKEN: Final = re.compile(
    r"""\s*(?:
        (?P<string>"(?:[^"\\]|\\.)*"|'(?:[^'\\]|\\.)*')
      | (?P<number>[-+]?(?:0[xX][0-9a-fA-F]+|\d+(?:\.\d+)?(?:[eE][-+]?\d+)?)(?![\w.]))
      | (?P<name>[A-Za-z_][\w.]*)
      | (?P<op>&&|\|\||==|!=|<=|>=|!~|[<>~&!()])
      | (?P<end>$)
    )""",
    re.VERBOSE | re.ASCII | re.DOTALL,
)

_COMPARE: Final[dict[str, Callable[[Any, Any], bool]]] = {
    "==": operator.eq,
    "!=": operator.ne,
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
}
_OPERATORS: Final = frozenset({*_COMPARE, "~", "!~", "&"})
_ESCAPES: Final = {"n": "\n", "t": "\t", "r": "\r", "0": "\0"}
_OF_EVENT: Final[dict[str, Callable[[HasTask], Any]]] = {
    "pid": lambda event: event.pid,
    "cpu": lambda event: event.cpu,
    "comm": lambda event: event.comm,
    "common_pid": lambda event: event.pid,
}
OF_EVENT: Final = frozenset(_OF_EVENT)
"""Names that can be used with every event."""


class _Parser:
    """A parser with one token of look-ahead; each method parses what its name says and returns a test."""

    def __init__(self, text: str) -> None:
        self._text = text
        self._end = 0
        self._depth = 0
        self.names: set[str] = set()
        self._advance()

    def _advance(self) -> None:
        self._start = self._end
        match = _TOKEN.match(self._text, self._end)
        if match is None:
            self.kind, self.word = "?", self._text[self._end :].strip()[:20]
            raise self.refuse("a name, a value or an operator")
        kind = match.lastgroup or ""
        self._start = match.start(kind)
        self._end = match.end()
        self.kind, self.word = ("" if kind == "end" else kind), match.group(kind)

    def refuse(self, expected: str) -> ConfigurationError:
        found = repr(self.word) if self.word else "the end"
        return ConfigurationError(f"filter {self._text!r}: {expected} should be at {self._start}, found {found}")

    def _is(self, *ops: str) -> bool:
        return self.kind == "op" and self.word in ops

    def alternatives(self) -> Test:
        tests = [self._conjunction()]
        while self._is("||"):
            self._advance()
            tests.append(self._conjunction())
        return tests[0] if len(tests) == 1 else lambda fields, event: any(test(fields, event) for test in tests)

    def _conjunction(self) -> Test:
        tests = [self._negation()]
        while self._is("&&"):
            self._advance()
            tests.append(self._negation())
        return tests[0] if len(tests) == 1 else lambda fields, event: all(test(fields, event) for test in tests)

    def _negation(self) -> Test:
        self._depth += 1
        if self._depth > DEPTH_MAX:
            raise self.refuse(f"no more than {DEPTH_MAX} levels")
        if self._is("!"):
            self._advance()
            inner = self._negation()
            self._depth -= 1
            return lambda fields, event: not inner(fields, event)
        if self._is("("):
            self._advance()
            inner = self.alternatives()
            if not self._is(")"):
                raise self.refuse("')'")
            self._advance()
            self._depth -= 1
            return inner
        self._depth -= 1
        return self._test()

    def _test(self) -> Test:
        if self.kind != "name":
            raise self.refuse("a field's name")
        name = self.word
        self.names.add(name)
        self._advance()
        get = _getter(name)
        if self.kind != "op" or self.word not in _OPERATORS:
            return lambda fields, event: bool(get(fields, event))
        op = self.word
        self._advance()
        value = self._value(op)
        if op in ("~", "!~"):
            return _glob(get, value, wanted=op == "~")
        if op == "&":
            return lambda fields, event: isinstance(found := get(fields, event), int) and bool(found & value)
        return _comparison(get, _COMPARE[op], value)

    def _value(self, op: str) -> Any:
        kind, word = self.kind, self.word
        if kind not in ("string", "number", "name") or (kind == "number" and len(word) > NUMBER_MAX):
            raise self.refuse("a number, a string or a word")
        if op == "&" and (kind != "number" or not isinstance(_number(word), int)):
            raise self.refuse("a whole number")
        self._advance()
        if kind == "number" and op not in ("~", "!~"):
            return _number(word)
        if kind == "string":
            return re.sub(r"\\(.)", lambda m: _ESCAPES.get(m[1], m[1]), word[1:-1], flags=re.DOTALL)
        if kind == "name" and op not in ("~", "!~") and word in ("true", "false"):
            return word == "true"
        return word


def _number(word: str) -> int | float:
    digits = word.lstrip("+-")
    if digits[:2] in ("0x", "0X"):
        return int(word, 16)
    return int(word) if digits.isdigit() else float(word)


def _getter(name: str) -> Callable[[Mapping[str, Any], HasTask | None], Any]:
    """Reads a field, or an attribute of the event if there is no such field."""
    of_event = _OF_EVENT.get(name)
    if of_event is None:
        return lambda fields, event: fields.get(name)

    def get(fields: Mapping[str, Any], event: HasTask | None) -> Any:
        found = fields.get(name)
        return of_event(event) if found is None and event is not None else found

    return get


def _glob(get: Callable[[Mapping[str, Any], HasTask | None], Any], pattern: str, *, wanted: bool) -> Test:
    match = re.compile(fnmatch.translate(pattern)).match
    return lambda fields, event: isinstance(found := get(fields, event), str) and (match(found) is not None) is wanted


def _comparison(
    get: Callable[[Mapping[str, Any], HasTask | None], Any], compare: Callable[[Any, Any], bool], value: Any
) -> Test:
    kinds: Any = str if isinstance(value, str) else (int, float)
    return lambda fields, event: isinstance(found := get(fields, event), kinds) and compare(found, value)
