"""Definitions: what a reader needs to decode a page, in the order in which they were made.

    definitions[0] definitions[1] ... definitions[n-1]          append-only, one table for the process
                                      ^ a page says how many of them it needs

**A page decodes alone, given the definitions that precede it.** So a stream sends definitions before the page that
needs them, and a sink that reconnects sends all of them again. The table is bounded: what no longer fits is refused
and counted, and never raises into the program.
"""

from __future__ import annotations

from _collections_abc import Sequence  # `collections.abc` would import all of `collections`
from _thread import RLock

from .._base.frozen import frozen

TYPE_CHECKING = False  # importing it from `typing` would double the time of `import aiotrace`
if TYPE_CHECKING:
    from collections.abc import Callable
    from types import CodeType
    from typing import Final, overload

SYMBOL_BASE: Final = 0xFFFF_8000_0000_1000
"""Key of the first interned string. It looks like a kernel address, because trace-cmd looks up a `const char *`
by address in its printk formats. Keys are 16 apart."""
SYMBOL_STEP: Final = 16
SYMBOLS_MAX: Final = 65536
COMMANDS_MAX: Final = 65536
"""Names of threads and tasks that are kept, per process."""
FUNCTION_BASE: Final = 0x5000_0000_0000
"""Address of the first function: far from the keys of symbols, and from any real address that a trace may hold."""
FUNCTIONS_MAX: Final = 65536


@frozen
class EventDefinition:
    """An event's format."""

    id: int
    """common_type of its records: 1 to 65,535."""
    system: str
    name: str
    format: str
    """The text that /sys/kernel/tracing/events/SYSTEM/NAME/format would hold."""


@frozen
class SymbolDefinition:
    """An interned string."""

    key: int
    """What a `const char *` field holds: u64."""
    text: str


@frozen
class CommandDefinition:
    """The name of a thread or task; a later one for the same pid replaces it."""

    pid: int
    name: str


@frozen
class FunctionDefinition:
    """A function's place in stack traces: `address` is its first line, `address + n` the nth line after that."""

    address: int
    lines: int
    """How many addresses it has."""
    name: str
    """Qualified, as in `Class.method`."""
    file: str
    line: int
    """The first line of it in the file."""


Definition = EventDefinition | SymbolDefinition | CommandDefinition | FunctionDefinition


class Definitions(Sequence[Definition]):
    """The append-only table. Reading needs no lock; `append` and `intern` may be called from any thread."""

    def __init__(self) -> None:
        self._items: list[Definition] = []
        self.symbols: dict[str, int] = {}
        """Keys by text. Read by C too; only `intern` writes it."""
        self._commands: dict[int, str] = {}
        self._functions: dict[tuple[CodeType, str, str], int] = {}
        """Addresses by code, file and qualified name: code alone equals the same lines of another file or class."""
        self._next_address = FUNCTION_BASE
        self._followers: tuple[Callable[[], object], ...] = ()
        self._lock = RLock()
        self.refused = 0
        """Symbols and command names that found the table full."""
        self.unknown_symbol = self.intern("?")

    def append(self, definition: Definition) -> None:
        self._items.append(definition)
        for tell in self._followers:
            tell()

    def follow(self, tell: Callable[[], object]) -> None:
        """Call `tell` now and after every added definition, before anything can use that: for arenas that outlive the
        program. It is called from any thread, and must not raise."""
        with self._lock:
            self._followers = (*self._followers, tell)
        tell()

    def unfollow(self, tell: Callable[[], object]) -> None:
        """Stop calling `tell`."""
        with self._lock:
            self._followers = tuple(other for other in self._followers if other != tell)

    def intern(self, text: str) -> int:
        """The key of a string; the key of "?" when the table is full (counted in `refused`)."""
        key = self.symbols.get(text)
        if key is not None:
            return key
        with self._lock:
            key = self.symbols.get(text)
            if key is None:
                if len(self.symbols) >= SYMBOLS_MAX:
                    self.refused += 1
                    return self.unknown_symbol
                key = SYMBOL_BASE + len(self.symbols) * SYMBOL_STEP
                self.append(SymbolDefinition(key, text))
                self.symbols[text] = key
        return key

    def name_command(self, pid: int, name: str) -> None:
        """Define the name of a pid; does nothing if it has that name already."""
        if self._commands.get(pid) == name:
            return
        with self._lock:
            if pid not in self._commands and len(self._commands) >= COMMANDS_MAX:
                self.refused += 1
                return
            self._commands[pid] = name
            self.append(CommandDefinition(pid, name))

    def locate(self, code: CodeType, line: int | None) -> int:
        """The address of a line of a function; 0 when the table is full (counted in `refused`).

        The table keeps the code objects alive, so that no two of them get the same address.
        """
        key = (code, code.co_filename, code.co_qualname)
        base = self._functions.get(key)
        if base is None:
            with self._lock:
                base = self._functions.get(key)
                if base is None:
                    if len(self._functions) >= FUNCTIONS_MAX:
                        self.refused += 1
                        return 0
                    base = self._functions[key] = self._add_function(code)
        return base + max(0, (line or 0) - code.co_firstlineno)

    def _add_function(self, code: CodeType) -> int:
        last = max((line for _, _, line in code.co_lines() if line is not None), default=code.co_firstlineno)
        lines = max(1, last - code.co_firstlineno + 1)
        base = self._next_address
        self._next_address += -(-(lines + 1) // 16) * 16
        self.append(FunctionDefinition(base, lines, code.co_qualname, code.co_filename, code.co_firstlineno))
        return base

    def forget_lock(self) -> None:
        """In a forked child: the lock may be held by a thread that is not there, and the followers are the parent's."""
        self._lock = RLock()
        self._followers = ()

    def __len__(self) -> int:
        return len(self._items)

    if TYPE_CHECKING:

        @overload
        def __getitem__(self, index: int) -> Definition: ...
        @overload
        def __getitem__(self, index: slice) -> list[Definition]: ...

    def __getitem__(self, index: int | slice) -> Definition | list[Definition]:
        return self._items[index]


DEFINITIONS: Final = Definitions()
"""The process's own table."""
