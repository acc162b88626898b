r"""How an event is printed: by its print fmt if that can be interpreted, else as name=value.

    print fmt: "dev %d,%d op %s", ((unsigned int) ((REC->dev) >> 20)), ..., __print_symbolic(REC->op, {0, "READ"})
                |                 `- expressions in C over the record's fields, those common in C: c_expression
                `- a printf format: printf

Nothing is guessed: an event whose print fmt is not supported is printed as name=value, and so is a record whose values
do not fit its print fmt; one that asks for what no kernel's does is followed by the reason. Control characters are
escaped wherever they come from.

Stacks and `trace_printk` are printed by what the kernel has for them, not by their print fmt.
"""

from __future__ import annotations

import dataclasses
import re
from typing import Final

from .._base.errors import TraceFormatError
from .._base.terminal_text import escape, format_pairs
from .._page import layout as L
from .binary_printf import decode_arguments
from .c_expression import PrintFormat, Values, parse_print_format
from .c_operators import MASK
from .c_tokens import ExcessiveFormatError
from .event_format import EventFormat, FieldKind
from .printf import CONVERSION, Names, Printer, compile_printf, symbol

__all__ = ["compile_print", "with_byte_fields"]

_BYTES: Final = re.compile(r"%[-+ #0]*(?:\*|\d+)?p[IiMmUhb]|__print_(?:hex|array|dynamic_array)")
"""Of a print fmt that may print characters as bytes."""


def compile_print(
    format: EventFormat, names: Names | None = None, *, long_size: int = 8, byte_order: str = L.BYTE_ORDER
) -> Printer:
    """A function from an event's own fields to the text that is printed for it.

    Args:
        names: Gives `%ps` its names; without it addresses are printed.
        long_size: Bytes of a C `long`.
        byte_order: "<" or ">".
    """
    if format.system == "ftrace" and format.name in ("kernel_stack", "user_stack"):
        return lambda values: _stack(values, names)
    if format.system == "ftrace" and format.name in ("bprint", "bputs"):
        return lambda values: _trace_printk(values, names, long_size, byte_order)
    try:
        parsed = parse_print_format(format, long_size, byte_order)
        interpreted = compile_printf(parsed, names, long_size, byte_order)
    except ExcessiveFormatError as error:
        message = error.message
        return lambda values: _without_text(values, message)
    except RecursionError:
        return lambda values: _without_text(values, "print fmt: nested too deeply")
    except TraceFormatError:
        return format_pairs

    is_marker = format.full_name == "ftrace:print"  # whose text ends a line, or does not

    def print_event(values: Values) -> str:
        if is_marker and isinstance(text := values.get("buf"), str):
            values = {**values, "buf": text.rstrip("\n")}
        try:
            return interpreted(values)
        except ExcessiveFormatError as error:
            return _without_text(values, error.message)
        except (ArithmeticError, LookupError, RecursionError, TypeError, ValueError):
            return format_pairs(values)  # the format asks for what these values do not give

    return print_event


def _without_text(values: Values, why: str) -> str:
    return f"{format_pairs(values)} [{escape(why)}]"


def with_byte_fields(format: EventFormat, long_size: int) -> EventFormat:
    """The same format, in which arrays of characters that are printed as bytes, as `%pM` does, are bytes."""
    if not _BYTES.search(format.print_format):
        return format
    try:
        found = _byte_fields(parse_print_format(format, long_size))
    except (TraceFormatError, RecursionError):
        return format
    fields = tuple(
        dataclasses.replace(field, kind=FieldKind.INT, signed=False) if field.name in found and field.is_text else field
        for field in format.fields
    )
    return dataclasses.replace(format, fields=fields)


def _byte_fields(parsed: PrintFormat) -> set[str]:
    """The fields whose bytes a print fmt prints."""
    found = set(parsed.byte_fields)
    arguments = iter(parsed.arguments)
    for match in CONVERSION.finditer(parsed.text):
        if match["conversion"] == "%":
            continue
        for _ in range((match["width"], match["precision"]).count("*")):
            next(arguments, None)
        node = next(arguments, None)
        is_memory = match["conversion"] == "p" and parsed.text[match.end() : match.end() + 1] in tuple("IiMmUhb")
        if is_memory and node is not None and node.field is not None:
            found.add(node.field.name)
    return found


def _stack(values: Values, names: Names | None) -> str:
    """A stack trace as trace-cmd shows it; Python functions have their file and line instead of the address."""
    lines = ["<stack trace >"]
    callers = values.get("caller", ())
    for address in callers if isinstance(callers, tuple) else ():
        if not isinstance(address, int) or address & MASK == MASK:
            break
        place = names.locate(address) if names is not None else None
        lines.append(f"=> {symbol(address, names, False)} ({f'{address:x}' if place is None else escape(place)})")
    return "\n".join(lines)


def _trace_printk(values: Values, names: Names | None, long_size: int, byte_order: str) -> str:
    """What `trace_printk` printed: its format is known by its address, and its arguments stand in the record."""
    text, address = values.get("fmt"), values.get("ip", values.get("__probe_ip", 0))
    if not isinstance(text, str) or not isinstance(address, int):
        return format_pairs(values)  # the file does not have the format
    place = symbol(address, names, False)
    if "buf" not in values:
        return f"{place}: {escape(text.rstrip(chr(10)))}"
    try:
        text, arguments = decode_arguments(text, values["buf"], long_size, byte_order)
        parsed = PrintFormat(text, arguments, frozenset())
        return f"{place}: {compile_printf(parsed, names, long_size, byte_order)({})}"
    except (TraceFormatError, ArithmeticError, LookupError, TypeError, ValueError):
        return format_pairs(values)
