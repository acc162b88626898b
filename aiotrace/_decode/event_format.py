"""Event formats: from the text in /sys/kernel/tracing/events/*/*/format to fields, and from a payload to values.

    field:unsigned long caller[8];	offset:16;	size:64;	signed:0;
          `-- type -'   `-- name, array

    kind    what one element is: an integer, a float, a truth value, a character, a pointer to a known string
    place   where the elements are:

        SCALAR     payload[offset : offset + size]
        ARRAY      the same, several elements
        DATA_LOC   payload[offset : offset + 4] is a u32: offset in the payload | bytes << 16;
                   of 2 bytes, as the oldest kernels have it, it is the offset alone: up to the payload's end
        REL_LOC    the same, its offset counted from the end of that u32
        TAIL       payload[offset :], to its end

The text is untrusted: parsing takes time in proportion to its length, and a field that reaches outside of its record
raises a `TraceFormatError` and never reads other memory.

Printing is in print_fmt.py; this module knows nothing of pages and files.
"""

from __future__ import annotations

import enum
import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Final

from .._base.errors import TraceFormatError
from .._page import layout as L

__all__ = [
    "EventFormat",
    "FieldKind",
    "FormatField",
    "Place",
    "Value",
    "compile_convert",
    "compile_reader",
    "parse_format",
    "text_of",
]

Value = int | float | bool | str | bytes | tuple[int | float | bool | str, ...]
Reader = Callable[[bytes, int, int], dict[str, Value]]
"""(buffer, start of the payload, its length) -> the fields."""

FORMAT_SIZE_MAX: Final = 1 << 20
"""Bytes of one format text; the longest of Linux 6.18 has 15,000."""
FIELDS_MAX: Final = 256
"""Linux 6.18 has at most 24. Together with the next one, this bounds what a record's values can cost."""
FIELDS_SIZE_MAX: Final = L.PAGE_SIZE_MAX
"""Bytes of all fields of an event together."""


class FieldKind(enum.IntEnum):
    """What one element of a field is."""

    INT = 0
    FLOAT = 1
    BOOL = 2
    CHAR = 3
    """An array of them is a string, which ends at its NUL."""
    SYMBOL = 4
    """A `char *`: the key of a known string, or else an address."""


class Place(enum.IntEnum):
    """The location of a field's elements: see the module's docstring."""

    SCALAR = 0
    ARRAY = 1
    DATA_LOC = 2
    REL_LOC = 3
    TAIL = 4


@dataclass(frozen=True, slots=True)
class FormatField:
    """One field of an event."""

    name: str
    type: str
    """As in the text: "unsigned long", "__data_loc char[]"."""
    offset: int
    """Bytes from the beginning of the payload."""
    size: int
    """Bytes at `offset`: 0 for a TAIL, 4 for DATA_LOC and REL_LOC."""
    signed: bool
    kind: FieldKind
    place: Place
    element_size: int
    """Bytes of one element: 1, 2, 4 or 8."""
    declared: str = ""
    """The name in the text, if a field before it has the same: then this one's is `NAME_2`."""

    @property
    def is_text(self) -> bool:
        """Whether its value is a string that is stored in the record."""
        return self.kind is FieldKind.CHAR and self.place is not Place.SCALAR

    @property
    def is_bytes(self) -> bool:
        """Whether its value is `bytes`: an array of unsigned 8 bit integers."""
        return (
            self.kind is FieldKind.INT and self.element_size == 1 and not self.signed and self.place is not Place.SCALAR
        )


@dataclass(frozen=True, slots=True)
class EventFormat:
    """The layout of an event's records, and how they are printed."""

    id: int
    """common_type of its records."""
    system: str
    name: str
    fields: tuple[FormatField, ...]
    """In the order of the text, the common fields first."""
    print_format: str
    """The text after `print fmt:`; "" if there is none."""

    @property
    def full_name(self) -> str:
        """`system:name`."""
        return f"{self.system}:{self.name}"

    @property
    def own_fields(self) -> tuple[FormatField, ...]:
        """The fields without those that every event has."""
        return tuple(field for field in self.fields if not field.name.startswith("common_"))

    @property
    def size(self) -> int:
        """Bytes that a payload has at least."""
        return max((field.offset + field.size for field in self.fields), default=0)


def parse_format(text: str, system: str, *, long_size: int = 8) -> EventFormat:
    """Read one event's format.

    Args:
        text: What /sys/kernel/tracing/events/SYSTEM/NAME/format holds.
        system: The event's system, which is not in the text.
        long_size: Bytes of a C `long` where it was recorded: 4 or 8.

    Raises:
        TraceFormatError: A line is not what it should be; `offset` counts characters of `text`.
    """
    if len(text) > FORMAT_SIZE_MAX:
        raise TraceFormatError(f"an event format of {len(text)} characters; at most {FORMAT_SIZE_MAX} are read")
    name, event_id, print_format = "", -1, ""
    fields: list[FormatField] = []
    position = 0
    for line in text.splitlines(keepends=True):
        stripped = line.strip()
        try:
            if stripped.startswith("name:"):
                name = stripped[5:].strip()
            elif stripped.startswith("ID:"):
                event_id = _number(stripped[3:], "ID", 65535)
            elif stripped.startswith("field"):
                fields.append(_parse_field(stripped, long_size))
            elif stripped.startswith("print fmt:"):
                print_format = text[text.index("print fmt:", position) + 10 :].strip()
                break
        except TraceFormatError as error:
            raise error.at(offset=position) from None
        position += len(line)
        if len(fields) > FIELDS_MAX:
            raise TraceFormatError(f"event {name!r} has more than {FIELDS_MAX} fields", offset=position)
    if sum(field.size for field in fields) > FIELDS_SIZE_MAX:
        raise TraceFormatError(f"the fields of event {name!r} are together larger than {FIELDS_SIZE_MAX} bytes")
    if not name or event_id < 0:
        raise TraceFormatError(f"an event format needs name: and ID:, found name {name!r}, ID {event_id}")
    fields = _with_own_names(fields)
    return EventFormat(event_id, system, name, _with_counted_tail(system, name, fields), print_format)


def _with_own_names(fields: list[FormatField]) -> list[FormatField]:
    """Fields of one name, like a `type` and a `__data_loc char[] type`, are told apart: the second is `type_2`."""
    taken = {field.name for field in fields}
    seen: set[str] = set()
    named = []
    for field in fields:
        if field.name in seen:
            number = 2
            while f"{field.name}_{number}" in taken:
                number += 1
            field = replace(field, name=f"{field.name}_{number}", declared=field.name)
            taken.add(field.name)
        seen.add(field.name)
        named.append(field)
    return named


def _number(text: str, what: str, most: int) -> int:
    text = text.strip()
    if not text.isascii() or not text.isdigit() or len(text) > 10 or int(text) > most:
        raise TraceFormatError(f"{what} should be a number up to {most}, found {text[:40]!r}")
    return int(text)


def _with_counted_tail(system: str, name: str, fields: list[FormatField]) -> tuple[FormatField, ...]:
    """The kernel declares `caller[8]` in its stack traces, but writes `size` of them."""
    if system == "ftrace" and name == "kernel_stack" and fields and fields[-1].place is Place.ARRAY:
        last = fields[-1]
        fields[-1] = FormatField(
            last.name, last.type, last.offset, 0, last.signed, last.kind, Place.TAIL, last.element_size
        )
    return tuple(fields)


_ELEMENT_SIZES: Final = {
    **dict.fromkeys(("char", "u8", "s8", "__u8", "__s8", "uint8_t", "int8_t", "bool", "_Bool", "unsigned char"), 1),
    **dict.fromkeys(("short", "unsigned short", "u16", "s16", "__u16", "__s16", "__le16", "__be16", "uint16_t"), 2),
    **dict.fromkeys(("int16_t", "signed short", "short int"), 2),
    **dict.fromkeys(("int", "unsigned int", "unsigned", "signed", "signed int", "uint", "u32", "s32", "__u32"), 4),
    **dict.fromkeys(
        ("__s32", "__le32", "__be32", "uint32_t", "int32_t", "pid_t", "uid_t", "gid_t", "dev_t", "float"), 4
    ),
    **dict.fromkeys(("long long", "unsigned long long", "u64", "s64", "__u64", "__s64", "__le64", "__be64"), 8),
    **dict.fromkeys(("uint64_t", "int64_t", "double", "dma_addr_t", "loff_t", "sector_t"), 8),
}
_LONG_TYPES: Final = frozenset({"long", "unsigned long", "signed long", "long int", "size_t", "ssize_t", "cpumask_t"})


def _parse_field(line: str, long_size: int) -> FormatField:
    """`field:DECLARATION; offset:N; size:N; signed:N;`"""
    head, colon, rest = line.partition(":")
    declaration, semicolon, numbers = rest.partition(";")
    if not colon or not semicolon or head not in ("field", "field special"):
        raise TraceFormatError(f"a field should be `field:TYPE NAME; offset:N; size:N;`, found {line[:80]!r}")
    values = {}
    for part in numbers.split(";"):
        key, _, number = part.partition(":")
        if key := key.strip():
            values[key] = _number(number, f"{key[:20]} of field {declaration[-40:]!r}", L.PAGE_SIZE_MAX)
    if "offset" not in values or "size" not in values:
        raise TraceFormatError(f"field {declaration[:80]!r} needs offset: and size:")
    return _declared(declaration.strip(), values["offset"], values["size"], bool(values.get("signed")), long_size)


def _declared(declaration: str, offset: int, size: int, signed: bool, long_size: int) -> FormatField:
    open_bracket = declaration.find("[")
    place = Place.SCALAR
    for prefix, loc in (("__data_loc ", Place.DATA_LOC), ("__rel_loc ", Place.REL_LOC)):
        if declaration.startswith(prefix):
            place = loc
            element, _, name = declaration[len(prefix) :].rpartition(" ")
            element = element.partition("[")[0]
            kind_text = declaration[: -len(name)].rstrip() if name else declaration
            break
    else:
        before = declaration if open_bracket < 0 else declaration[:open_bracket]
        cut = max(before.rstrip().rfind(" "), before.rstrip().rfind("*")) + 1
        element, name = before[:cut].strip(), before[cut:].strip()
        kind_text = element + declaration[open_bracket:] if open_bracket >= 0 else element
        if open_bracket >= 0:
            place = Place.ARRAY if size else Place.TAIL
    if not name:
        raise TraceFormatError(f"a field should be `TYPE NAME`, found {declaration[:80]!r}")
    if (place, size) != (Place.DATA_LOC, 2) and place in (Place.DATA_LOC, Place.REL_LOC) and size != 4:
        raise TraceFormatError(f"field {name[:40]!r} is a {kind_text[:20]} of {size} bytes, not of 4")
    if place is Place.SCALAR and size == 0:
        place = Place.TAIL  # kernels before 4.20 declare the text of trace_marker as `char buf`
    if place is Place.DATA_LOC and not element:
        element = "char"  # `__data_loc name`, as the oldest kernels have it
    element = " ".join(word for word in element.split() if word not in ("const", "volatile"))
    element_size = _element_size(
        element, declaration[open_bracket:] if open_bracket >= 0 else "", place, size, long_size
    )
    if place is Place.SCALAR and size not in (1, 2, 4, 8):
        place, element_size = Place.ARRAY, 1  # a struct: shown as its bytes
    return FormatField(name, kind_text, offset, size, signed, _kind(element, element_size, place), place, element_size)


def _element_size(element: str, brackets: str, place: Place, size: int, long_size: int) -> int:
    if place is Place.SCALAR:
        return size
    if element.endswith("*") or element in _LONG_TYPES:
        known = long_size
    else:
        known = _ELEMENT_SIZES.get(element, 0)
    count = brackets[1:].partition("]")[0].strip()
    if not known and place is Place.ARRAY and count.isascii() and count.isdigit() and 0 < int(count[:8]) <= size:
        known = size // int(count[:8])
    if known not in (1, 2, 4, 8) or (place is Place.ARRAY and size % known):
        return 1
    return known


def _kind(element: str, element_size: int, place: Place) -> FieldKind:
    if element == "char" and element_size == 1:
        return FieldKind.CHAR if place is not Place.SCALAR else FieldKind.INT
    if element in ("bool", "_Bool") and element_size == 1:
        return FieldKind.BOOL
    if (element, element_size) in (("float", 4), ("double", 8)):
        return FieldKind.FLOAT
    if element.replace(" ", "") == "char*" and place is Place.SCALAR and element_size in (4, 8):
        return FieldKind.SYMBOL
    return FieldKind.INT


# --- values -------------------------------------------------------------------------------------


def text_of(data: bytes) -> str:
    """Characters as they were written: utf-8, with lone surrogates, and what is neither as surrogate escapes."""
    try:
        return data.decode()
    except UnicodeDecodeError:
        pass
    try:
        return data.decode("utf-8", "surrogatepass")
    except UnicodeDecodeError:
        return data.decode("utf-8", "surrogateescape")


_CODES: Final = {1: "b", 2: "h", 4: "i", 8: "q"}


def _code(field: FormatField) -> str:
    """The `struct` code of what stands at its offset."""
    if field.place in (Place.DATA_LOC, Place.REL_LOC):
        return "I" if field.size == 4 else "H"
    return f"{field.size}s" if field.place is not Place.SCALAR else _element_code(field)


def _element_code(field: FormatField) -> str:
    if field.kind is FieldKind.FLOAT:
        return "f" if field.element_size == 4 else "d"
    if field.kind is FieldKind.BOOL:
        return "?"
    code = _CODES[field.element_size]
    return code if field.signed else code.upper()


def compile_reader(
    fields: tuple[FormatField, ...],
    *,
    byte_order: str = L.BYTE_ORDER,
    symbols: Mapping[int, str] | None = None,
    c_strings: bool = False,
) -> Reader:
    """A function that reads these fields from a payload.

    Args:
        byte_order: "<" or ">".
        symbols: What `char *` fields point to: strings by key. It may still grow.
        c_strings: Whether a string in DATA_LOC ends at its first NUL, as the kernel's do. Ours may hold one, and
            only the NUL that ends them is dropped.

    The reader raises TraceFormatError if the payload is too short for a field.
    """
    names = tuple(field.name for field in fields)
    row, size = _compile_row(fields, byte_order)
    fixes = [
        (index, _compile_fix(field, fields, byte_order, {} if symbols is None else symbols, c_strings))
        for index, field in enumerate(fields)
        if field.place is not Place.SCALAR or field.kind is FieldKind.SYMBOL
    ]

    def read_plain(data: bytes, start: int, length: int) -> dict[str, Value]:
        if length < size:
            raise TraceFormatError(f"a record of {length} bytes, where its event needs {size}", offset=start)
        return dict(zip(names, row(data, start), strict=True))

    if not fixes:
        return read_plain

    def read(data: bytes, start: int, length: int) -> dict[str, Value]:
        if length < size:
            raise TraceFormatError(f"a record of {length} bytes, where its event needs {size}", offset=start)
        values = list(row(data, start))
        for index, fix in fixes:
            values[index] = fix(data, start, length, values)
        return dict(zip(names, values, strict=True))

    return read


Fix = Callable[[bytes, int, int, list[Any]], Any]
"""(buffer, start, length, the row's raw values) -> the value."""


def _compile_row(
    fields: tuple[FormatField, ...], byte_order: str
) -> tuple[Callable[[bytes, int], tuple[Any, ...]], int]:
    """Read every SCALAR, and the u32 of every DATA_LOC and REL_LOC, with one `struct`; others read as None.

    Returns:
        The function, and the bytes that it needs.
    """
    size = max((field.offset + field.size for field in fields), default=0)
    codes, end, in_order = byte_order, 0, True
    for field in fields:
        in_order = in_order and field.offset >= end
        if not in_order:
            break
        codes += f"{field.offset - end}x{_code(field)}"
        end = field.offset + field.size
    if in_order:
        return struct.Struct(codes).unpack_from, size
    # Overlapping fields, or fields not in the order of their offsets: no kernel has them, but a file may.
    singles = [(struct.Struct(byte_order + _code(field)), field.offset) for field in fields]
    return lambda data, start: tuple(single.unpack_from(data, start + at)[0] for single, at in singles), size


def _is_counter(field: FormatField) -> bool:
    return field.name == "size" and field.kind is FieldKind.INT and field.place is Place.SCALAR


def _compile_fix(
    field: FormatField, fields: tuple[FormatField, ...], byte_order: str, symbols: Mapping[int, str], c_strings: bool
) -> Fix:
    index = fields.index(field)
    if field.kind is FieldKind.SYMBOL and field.place is Place.SCALAR:
        return lambda data, start, length, values: symbols.get(values[index], values[index])
    convert = compile_convert(field, byte_order, c_strings)
    if field.place is Place.ARRAY:
        return lambda data, start, length, values: convert(values[index])
    offset, size = field.offset, field.element_size
    if field.place is Place.TAIL:
        counter = next((i for i, other in enumerate(fields) if field.name == "caller" and _is_counter(other)), None)

        def tail(data: bytes, start: int, length: int, values: list[Any]) -> Any:
            most = max(length - offset, 0)
            if counter is not None:
                most = min(most, max(values[counter], 0) * size)
            return convert(bytes(data[start + offset : start + offset + most]))

        return tail
    base = offset + 4 if field.place is Place.REL_LOC else 0
    is_short = field.size == 2

    def dynamic(data: bytes, start: int, length: int, values: list[Any]) -> Any:
        location = values[index]
        at, count = (location & 0xFFFF) + base, location >> 16
        if is_short:
            count = max(length - at, 0)
        if at + count > length:
            raise TraceFormatError(
                f"field {field.name!r} lies at {at}..{at + count} of a record of {length} bytes", offset=start
            )
        return convert(bytes(data[start + at : start + at + count]))

    return dynamic


def compile_convert(field: FormatField, byte_order: str, c_strings: bool) -> Callable[[bytes], Any]:
    """A function from the bytes of an array to its value."""
    if field.kind is FieldKind.CHAR:
        if field.place in (Place.DATA_LOC, Place.REL_LOC) and field.size == 4 and not c_strings:
            return lambda raw: text_of(raw[:-1] if raw.endswith(b"\0") else raw)
        return lambda raw: text_of(raw.partition(b"\0")[0])
    if field.is_bytes:
        return lambda raw: raw
    size, code = field.element_size, _element_code(field)

    def elements(raw: bytes) -> tuple[Any, ...]:
        count = len(raw) // size
        return struct.unpack_from(f"{byte_order}{count}{code}", raw)

    return elements
