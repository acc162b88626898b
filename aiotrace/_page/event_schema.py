"""What an event is: its fields' types, its record's layout and its format text. Sans-IO.

    payload   u16 common_type | u8 common_flags | u8 common_preempt_count | s32 common_pid | fixed fields | bytes
                                                                               |                        ^
                                                                               +-- __data_loc ----------+

Fields are naturally aligned, in the order in which they were given. A `str` or `bytes` field is a `__data_loc`
(u32: offset from the beginning of the payload | length << 16); its bytes are at the end, those of a str with the NUL
that trace-cmd needs. The text has the syntax of /sys/kernel/tracing/events/*/*/format.

**A payload is complete before anything is reserved on a page.** Every conversion that can run the program's code
(`__index__`, `__float__`) or fail is done by then, so a record is never partial.
"""

from __future__ import annotations

import struct

from .._base.errors import DefinitionError
from .._base.frozen import frozen
from . import layout as L

TYPE_CHECKING = False  # importing it from `typing` would double the time of `import aiotrace`
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from typing import Any, Final

FIXED_MAX: Final = 3072
"""The most bytes of fixed fields of an event, so that every event fits on the smallest page."""

ELLIPSIS: Final = "…".encode()


@frozen
class Type:
    """A field type: how it is packed and what it is called."""

    name: str
    code: str
    """As in `struct`."""
    size: int
    c_name: str
    signed: bool
    print_format: str
    """As in printf. libtraceevent garbles every field after a `%f`, so floats show their bits."""
    print_argument: str = "REC->{0}"
    alignment: int = 0
    """Bytes; 0: its size."""
    suffix: str = ""
    """What follows the name in a C declaration."""


FieldType = str | type | Type
"""A name of `TYPES`; int, float, bool, str, bytes; or, for aiotrace's own events, a type that is not in `TYPES`."""

TYPES: Final[dict[str, Type]] = {
    type.name: type
    for type in (
        Type("u8", "B", 1, "u8", False, "%u"),
        Type("u16", "H", 2, "u16", False, "%u"),
        Type("u32", "I", 4, "u32", False, "%u"),
        Type("u64", "Q", 8, "u64", False, "%llu"),
        Type("s8", "b", 1, "s8", True, "%hhd"),
        Type("s16", "h", 2, "s16", True, "%hd"),
        Type("s32", "i", 4, "s32", True, "%d"),
        Type("s64", "q", 8, "s64", True, "%lld"),
        Type("f32", "f", 4, "float", True, "0x%x"),
        Type("f64", "d", 8, "double", True, "0x%llx"),
        Type("bool", "?", 1, "bool", False, "%u"),
        Type("str", "I", 4, "__data_loc char[]", False, "%s", "__get_str({0})"),
        Type(
            "bytes", "I", 4, "__data_loc u8[]", False, "%s",
            "__print_hex(__get_dynamic_array({0}), __get_dynamic_array_len({0}))",
        ),
        Type("symbol", "Q", 8, "const char *", False, "%s"),
    )
}  # fmt: skip

COMM: Final = Type("comm", "16s", 16, "char", False, "%s", alignment=1, suffix="[16]")
"""The kernel's type of a task name: a str, cut to 15 bytes. For events whose fields the kernel's tools expect."""

_PYTHON_TYPES: Final[dict[type, str]] = {int: "s64", float: "f64", bool: "bool", str: "str", bytes: "bytes"}

_SPECIAL: Final = ("str", "bytes", "symbol", "bool", COMM.name)
"""Types that need more than `struct`."""

_COMMON: Final = """\
\tfield:unsigned short common_type;\toffset:0;\tsize:2;\tsigned:0;
\tfield:unsigned char common_flags;\toffset:2;\tsize:1;\tsigned:0;
\tfield:unsigned char common_preempt_count;\toffset:3;\tsize:1;\tsigned:0;
\tfield:int common_pid;\toffset:4;\tsize:4;\tsigned:1;
"""


@frozen
class Field:
    """A field and its offset."""

    name: str
    type: Type
    offset: int


class WrongValueError(Exception):
    """An argument does not fit its field; the message says which and why."""


class Schema:
    """An event's fields, laid out.

    Args:
        name: "system:event".
        fields: Names and types, in order.
        print_format: What follows "print fmt: " in the format; None: all fields as name=value.

    Raises:
        DefinitionError: A name is not an identifier or is reserved, a type is unknown, or there are too many fields.
    """

    def __init__(self, name: str, fields: Mapping[str, FieldType], print_format: str | None = None) -> None:
        self.name = name
        self._print_format = print_format
        self.system, self.event = _split_name(name)
        self.types = {field: _get_type(name, field, type) for field, type in fields.items()}
        self.fields = _lay_out(name, self.types)
        # "=" and "<" do not align: there is an `x` for each skipped byte.
        self._struct = struct.Struct(L.BYTE_ORDER + "HBBi" + _with_padding(self.fields))
        self.fixed_size = self._struct.size
        self.pack: Callable[..., bytes] | None = self._struct.pack if _is_plain(self.fields) else None
        """For events with numbers only: pack(id, 0, 0, pid, *arguments). May raise any exception."""
        self._special = [
            (index, field.type.name) for index, field in enumerate(self.fields) if field.type.name in _SPECIAL
        ]
        self._names = tuple(fields)

    # --- arguments ------------------------------------------------------------------------------

    def bind(self, arguments: tuple[object, ...], keywords: Mapping[str, object]) -> tuple[object, ...]:
        """Positional and keyword arguments as one tuple, in the order of the fields.

        Raises:
            WrongValueError: A field has no value or two, or a keyword is unknown.
        """
        rest = self._names[len(arguments) :]
        try:
            bound = (*arguments, *[keywords[name] for name in rest])
        except KeyError as error:
            raise WrongValueError(f"{self.name}: no value for {error.args[0]!r}") from None
        if len(bound) != len(self._names) or len(keywords) != len(rest):
            raise WrongValueError(
                f"{self.name} takes {', '.join(self._names) or 'no values'}; "
                f"got {len(arguments)} values" + (f" and {', '.join(keywords)}" if keywords else "")
            )
        return bound

    def encode(
        self,
        id: int,
        pid: int,
        arguments: Sequence[Any],
        intern: Callable[[str], int],
        limit: int = L.RECORD_DYNAMIC_MAX,
    ) -> bytes:
        """The payload, a multiple of 4 bytes long.

        Args:
            id: common_type.
            pid: common_pid.
            arguments: One for each field, in order.
            intern: Returns the key of a symbol.
            limit: Bytes; strings are cut so that the payload is no longer (and `FLAG_CUT` is set).

        Raises:
            WrongValueError: An argument does not fit its field.
        """
        try:
            if self.pack is not None:
                return self.pack(id, 0, 0, pid, *arguments)
            return self._encode_all(id, pid, arguments, intern, limit)
        except Exception:
            self.explain(arguments)
            raise

    def _encode_all(
        self, id: int, pid: int, arguments: Sequence[Any], intern: Callable[[str], int], limit: int
    ) -> bytes:
        if len(arguments) != len(self.fields):
            raise TypeError
        values = list(arguments)
        texts: list[bytes] = []
        for index, kind in self._special:
            value = values[index]
            if kind == "str":
                texts.append(value[: L.RECORD_DYNAMIC_MAX].encode("utf-8", "surrogatepass") + b"\0")
            elif kind == "bytes":
                texts.append(bytes(memoryview(value).cast("B")[: L.RECORD_DYNAMIC_MAX]))
            elif kind == "symbol" and isinstance(value, str):
                values[index] = intern(value)
            elif kind == "bool" and isinstance(value, int):
                values[index] = bool(value)
            elif kind == COMM.name and isinstance(value, str):
                values[index] = value.encode("utf-8", "replace")[: COMM.size - 1].decode("utf-8", "ignore").encode()
            else:
                raise TypeError
        flags = 0
        if texts:
            room = min(limit - self.fixed_size, L.RECORD_DYNAMIC_MAX - 8) & ~3
            if sum(map(len, texts)) > room:
                flags = L.FLAG_CUT
                _cut(texts, [kind for _, kind in self._special if kind in ("str", "bytes")], room)
            self._locate(values, texts)
        payload = self._struct.pack(id, flags, 0, pid, *values) + b"".join(texts)
        return payload + bytes(-len(payload) & 3)

    def _locate(self, values: list[Any], texts: Sequence[bytes]) -> None:
        """Set the `__data_loc` of each text."""
        offset = self.fixed_size
        lengths = iter(texts)
        for index, kind in self._special:
            if kind in ("str", "bytes"):
                length = len(next(lengths))
                values[index] = offset | length << 16
                offset += length

    def explain(self, arguments: Sequence[object]) -> None:
        """Find the argument that does not fit.

        Raises:
            WrongValueError: It says which and why.
        """
        if len(arguments) != len(self.fields):
            self.bind(tuple(arguments), {})
        for field, value in zip(self.fields, arguments, strict=True):
            kind = field.type
            if kind.name in ("str", "symbol", COMM.name):
                fits = isinstance(value, str)
            elif kind.name == "bytes":
                fits = isinstance(value, (bytes, bytearray, memoryview))
            elif kind.name == "bool":
                fits = isinstance(value, int)
            else:
                try:
                    struct.pack(L.BYTE_ORDER + kind.code, value)
                    fits = True
                except Exception:
                    fits = False
            if not fits:
                raise WrongValueError(f"{self.name}: {field.name}={_show(value)} does not fit {kind.name}") from None

    # --- text -----------------------------------------------------------------------------------

    def format_text(self, id: int) -> str:
        """The event's format, as /sys/kernel/tracing/events/SYSTEM/NAME/format has it."""
        lines = "".join(
            f"\tfield:{field.type.c_name} {field.name}{field.type.suffix};"
            f"\toffset:{field.offset};\tsize:{field.type.size};\tsigned:{int(field.type.signed)};\n"
            for field in self.fields
        )
        shown = self._print_format or self._name_all()
        return f"name: {self.event}\nID: {id}\nformat:\n{_COMMON}\n{lines}\nprint fmt: {shown}\n"

    def _name_all(self) -> str:
        template = " ".join(f"{field.name}={field.type.print_format}" for field in self.fields)
        arguments = "".join(f", {field.type.print_argument.format(field.name)}" for field in self.fields)
        return f'"{template}"{arguments}'


def _split_name(name: str) -> tuple[str, str]:
    if not isinstance(name, str):
        raise DefinitionError(f"an event's name is a str, not {_show(name)}")
    system, colon, event = name.partition(":")
    if not colon:
        raise DefinitionError(f"{name!r} has no system: name it 'system:{name}', for example 'app:{name}'")
    for part in (system, event):
        if not _is_identifier(part):
            raise DefinitionError(f"{name!r}: {part!r} is not an identifier ([A-Za-z_][A-Za-z0-9_]*)")
    if len(name) > 200:
        raise DefinitionError(f"{name[:40] + '…'!r}: a name has at most 200 characters, this one {len(name)}")
    return system, event


def _is_identifier(name: str) -> bool:
    return name.isascii() and name.isidentifier()


def _get_type(event: str, field: str, type: FieldType) -> Type:
    if not _is_identifier(field) or len(field) > 100:
        raise DefinitionError(f"{event}: field {field!r} is not an identifier ([A-Za-z_][A-Za-z0-9_]*, at most 100)")
    if field.startswith("common_"):
        raise DefinitionError(f"{event}: field {field!r}: names that begin with common_ are reserved")
    if isinstance(type, Type):
        return type
    # By identity: a wrong value need not be hashable.
    name = type if isinstance(type, str) else next((n for python, n in _PYTHON_TYPES.items() if type is python), None)
    if name not in TYPES:
        known = " ".join((*TYPES, *(python.__name__ for python in (int, float))))
        raise DefinitionError(f"{event}: field {field!r} has unknown type {type!r}; known: {known}")
    return TYPES[name]


def _lay_out(event: str, types: Mapping[str, Type]) -> tuple[Field, ...]:
    offset = L.RECORD_COMMON_SIZE
    fields = []
    for name, type in types.items():
        alignment = type.alignment or type.size
        offset = -(-offset // alignment) * alignment
        fields.append(Field(name, type, offset))
        offset += type.size
    if offset > FIXED_MAX:
        raise DefinitionError(f"{event}: its {len(fields)} fields need {offset} bytes; at most {FIXED_MAX} are allowed")
    return tuple(fields)


def _with_padding(fields: Sequence[Field]) -> str:
    codes = ""
    end = L.RECORD_COMMON_SIZE
    for field in fields:
        codes += f"{field.offset - end}x" if field.offset > end else ""
        codes += field.type.code
        end = field.offset + field.type.size
    return codes + f"{-end & 3}x"


def _is_plain(fields: Sequence[Field]) -> bool:
    return not any(field.type.name in _SPECIAL for field in fields)


def _cut(texts: list[bytes], kinds: Sequence[str], room: int) -> None:
    """Shorten the longest texts to one length, so that all fit into `room` bytes; short ones stay whole."""
    level = room
    for count, length in zip(range(len(texts), 0, -1), sorted(map(len, texts)), strict=True):
        level = room // count
        if length > level:
            break
        room -= length
    for index, text in enumerate(texts):
        if len(text) > level:
            texts[index] = _cut_one(text, kinds[index], level)


def _cut_one(text: bytes, kind: str, keep: int) -> bytes:
    if kind == "bytes":
        return text[:keep]
    end = keep - len(ELLIPSIS) - 1
    if end < 0:
        return b"\0"[:keep]
    while end and text[end] & 0xC0 == 0x80:  # not within a character
        end -= 1
    return text[:end] + ELLIPSIS + b"\0"


def _show(value: object) -> str:
    """A value for a message: short, even if its repr fails."""
    try:
        text = repr(value)
    except Exception:
        text = f"<{type(value).__name__}>"
    return text if len(text) <= 60 else text[:57] + "..."
