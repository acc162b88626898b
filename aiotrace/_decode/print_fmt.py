r"""How an event is printed: by its print fmt if that can be interpreted, else as name=value.

    print fmt: "dev %d,%d op %s", ((unsigned int) ((REC->dev) >> 20)), ..., __print_symbolic(REC->op, {0, "READ"})
                |                 `- expressions in C over the record's fields, those common in C: c_expression
                `- a printf format: printf

Nothing is guessed: an event whose print fmt is not supported is printed as name=value, and so is a record whose values
do not fit its print fmt. Control characters are escaped wherever they come from.
"""

from __future__ import annotations

from .._base.errors import TraceFormatError
from .._base.terminal_text import escape, format_pairs
from .c_expression import Values, parse_print_format
from .c_operators import MASK
from .event_format import EventFormat
from .printf import Names, Printer, compile_printf, symbol

__all__ = ["compile_print"]


def compile_print(format: EventFormat, names: Names | None = None, *, long_size: int = 8) -> Printer:
    """A function from an event's own fields to the text that is printed for it.

    Args:
        names: Gives `%ps` its names; without it addresses are printed.
        long_size: Bytes of a C `long`.
    """
    if format.system == "ftrace" and format.name in ("kernel_stack", "user_stack"):
        return lambda values: _stack(values, names)
    try:
        interpreted = compile_printf(parse_print_format(format, long_size), names, long_size)
    except (TraceFormatError, RecursionError):
        return format_pairs

    def print_event(values: Values) -> str:
        try:
            return interpreted(values)
        except (ArithmeticError, LookupError, TypeError, ValueError):
            return format_pairs(values)  # the format asks for what these values do not give

    return print_event


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
