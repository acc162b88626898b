"""Names of traces that tell runs and processes apart: `-o 'trace-%p-%t.dat'`.

    pattern --name_of--> a name for each process --free_name--> a name that no trace has in use
       +------name_filter------> which names in the folder are the pattern's

    %p  pid of the process                      %n  program, without its folder and .py
    %t  start of the process, UTC               %h  host
        20261201-031502.123456                  %%  a percent sign

**Only the last component of a path is a pattern.** The folder is taken as it is: it may have a % in its name, and the
current folder is put before a relative path. A path whose last component has no % means exactly itself.

Invariant (tests/launcher/test_names.py): `name_filter` accepts each name that `name_of` and `free_name` make.
"""

from __future__ import annotations

import os
import re
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Final

from .._base.errors import ConfigurationError
from .._store.trace_files import journal_path, spool_paths

_PLACEHOLDER: Final = re.compile(r"%(.?)", re.DOTALL)
_KNOWN: Final = "known are %p (pid), %t (start time), %h (host), %n (program) and %% (a percent sign)"
_FOREIGN: Final = re.compile(r"^\.|[^A-Za-z0-9._+-]")
"""Characters of hosts and programs that do not belong in a file name, nor in a URL. With a dot at its beginning a file
would be hidden, or even a folder."""
_LENGTH_MAX: Final = 64
"""Of a host, and of a program: with both, a pid, a time and .journal a name is within the 255 bytes of file systems."""
_NUMBER: Final = re.compile(r"\.([1-9][0-9]*)(?=\.|\Z)")
"""Where `free_name` may have put a number."""
_PYTHON: Final = re.compile(r"python[0-9.]*t?d?")
_OPTIONS: Final = re.compile(r"-[^-cmWX]*(?P<letter>[cmWX])(?P<value>.*)", re.DOTALL)
"""A cluster of Python's options, up to the one that takes a value: `-Im`, `-bWerror`."""


# --- patterns -----------------------------------------------------------------------------------


def is_pattern(path: str) -> bool:
    """Whether the last component of a path has a % in it."""
    return "%" in os.path.basename(path)


def check_pattern(pattern: str) -> None:
    """
    Raises:
        ConfigurationError: An unknown character, or nothing, follows a % in the name; or the folder does not exist and
            looks like a pattern.
    """
    folder, name = os.path.split(pattern)
    for found in _PLACEHOLDER.finditer(name):
        if not found[1]:
            raise ConfigurationError(f"{pattern!r} ends with a single %: write %% for a percent sign")
        if found[1] not in "pthn%":
            raise ConfigurationError(f"{pattern!r}: unknown {found[0]!r} in the name of a trace; {_KNOWN}")

    # Without the % the folder would only be missing, which does not tell why.
    if re.search("%[pthn%]", folder) and not os.path.isdir(folder or "."):
        text = "only the file's name is a pattern, not its folder"
        raise ConfigurationError(f"{pattern!r}: there is no folder {folder!r}; {text}")


def with_pid(pattern: str) -> bool:
    """Whether %p is in the name: children then add nothing to it."""
    return any(found[1] == "p" for found in _PLACEHOLDER.finditer(os.path.basename(pattern)))


def expand(pattern: str, *, pid: int, realtime_ns: int, host: str, program: str) -> str:
    """The path of a checked pattern in one process.

    Args:
        realtime_ns: When the process started, in nanoseconds since 1970.
    """
    folder, name = os.path.split(pattern)
    seconds, nanoseconds = divmod(realtime_ns, 10**9)
    start = f"{time.strftime('%Y%m%d-%H%M%S', time.gmtime(seconds))}.{nanoseconds // 1000:06}"
    return os.path.join(folder, _fill(name, _values(str(pid), start, host, program)))


def name_of(pattern: str, *, pid: int, is_main: bool, realtime_ns: int, host: str, program: str) -> str:
    """The path of a process's trace.

    A child's name gets its pid if there is no %p: trace-%t.dat becomes trace-%t.4615.dat. That is done before %t and
    %h are replaced, because the dots in them begin no suffix.

    Args:
        is_main: Whether it is the process that `record` started, not a child of it.
        realtime_ns: When the process started, in nanoseconds since 1970.
    """
    used = pattern if is_main or with_pid(pattern) else _child_pattern(pattern)
    return expand(used, pid=pid, realtime_ns=realtime_ns, host=host, program=program)


def name_filter(pattern: str, *, host: str, program: str) -> Callable[[str], bool]:
    """A function that says whether a file's name, without its folder, is one that `name_of` and `free_name` make for
    this host and program: of any pid, time and number."""
    name = os.path.basename(pattern)
    names = [name] if with_pid(name) else [name, _child_pattern(name)]

    # What is not a placeholder means itself: it is escaped, and % is no special character of an expression.
    values = _values("[0-9]+", r"[0-9]{8}-[0-9]{6}\.[0-9]{6}", host, program)
    values |= {letter: re.escape(values[letter]) for letter in "hn"}
    expression = re.compile("|".join(_fill(re.escape(each), values) for each in names))

    def accepts(candidate: str) -> bool:
        return any(expression.fullmatch(each) for each in (candidate, *_without_number(candidate)))

    return accepts


def _child_pattern(pattern: str) -> str:
    """The pattern with a pid where `plan.child_path` puts it."""
    stem, suffix = os.path.splitext(pattern)
    return f"{stem}.%p{suffix}"


def _values(pid: str, start: str, host: str, program: str) -> dict[str, str]:
    return {"p": pid, "t": start, "h": _clean(host) or "localhost", "n": _clean(program) or "python", "%": "%"}


def _fill(name: str, values: Mapping[str, str]) -> str:
    return _PLACEHOLDER.sub(lambda found: values[found[1]], name)


def _clean(text: str) -> str:
    return _FOREIGN.sub("_", text)[:_LENGTH_MAX]


# --- numbers ------------------------------------------------------------------------------------


def free_name(path: str) -> str:
    """The path itself, or with .2, .3, ... before its suffix if a trace has that name in use: trace-1.2.dat. In use is
    also a name of which only the journal or a spool is there.

    Nothing is created, so another process may take the name meanwhile: a trace is made with O_EXCL.
    """
    number, free = 1, path
    while _is_in_use(free):
        number += 1
        free = _with_number(path, number)
    return free


def _is_in_use(path: str) -> bool:
    if os.path.lexists(path) or os.path.lexists(journal_path(path)):
        return True
    try:
        return bool(spool_paths(path))
    except OSError:  # no such folder, or not to be listed: creating the file says so
        return False


def _with_number(path: str, number: int) -> str:
    stem, suffix = os.path.splitext(path)
    if suffix[1:].isdecimal():  # the microseconds of a name that ends with %t
        stem, suffix = path, ""
    return f"{stem}.{number}{suffix}"


def _without_number(name: str) -> list[str]:
    """The names that `free_name` may have put a number into to make this one."""
    found = [(name[: place.start()] + name[place.end() :], int(place[1])) for place in _NUMBER.finditer(name)]
    return [base for base, number in found if number > 1 and _with_number(base, number) == name]


# --- programs -----------------------------------------------------------------------------------


def program_name(argv: Sequence[str]) -> str:
    """The name of a program for %n: the file without its folder and .py, the module after -m, or "python" for -c and
    for a program on stdin.

    Args:
        argv: All arguments from argv[0] on: of a Python with a program, or of a script.
    """
    program = argv[0]
    if program != sys.executable and not _PYTHON.fullmatch(os.path.basename(program)):
        return _file_name(program)

    # Python's own options come first; a few of them take a value.
    words = iter(argv[1:])
    for word in words:
        if not word.startswith("-"):
            return _file_name(word)
        if word == "--check-hash-based-pycs":
            next(words, None)
        if option := _OPTIONS.fullmatch(word):
            value = option["value"] or next(words, "")
            if option["letter"] == "m":
                return value or "python"
            if option["letter"] == "c":
                break
        elif word == "-":
            break
    return "python"


def _file_name(path: str) -> str:
    name = os.path.basename(os.path.abspath(path))  # the program may be a folder, like "."
    return name.removesuffix(".py") or "python"
