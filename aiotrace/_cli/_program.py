"""The program that `record` starts: the words of a command line, turned into arguments for execve.

    -m MODULE, -c CODE, FILE, -  this Python, with the options that it was itself started with
    python ...                   unchanged, if it is this Python
    NAME, found on PATH          unchanged, if its first line names this Python

Invariant (tests/cli/test_record.py): a program that could not be recorded is refused here. That is: another Python,
which has no aiotrace or another version of it; options that keep Python from importing sitecustomize; what is not a
Python program. Exit statuses are the shell's.
"""

from __future__ import annotations

import os
import re
import shutil
import sys
from collections.abc import Sequence
from typing import Final

NOT_EXECUTABLE: Final = 126
NOT_FOUND: Final = 127

_PYTHON: Final = re.compile(r"python(3(\.\d+)?)?")
_WITH_VALUE: Final = frozenset("WX")
_NO_FILE: Final = frozenset({"-m", "-c", "-"})
_ENDS_OPTIONS: Final = frozenset("cm")
_BLIND: Final = {
    "I": "which ignores the environment",
    "E": "which ignores the environment",
    "S": "which imports no sitecustomize",
}
_LONG_SHEBANG: Final = re.compile(rb"""#!/bin/sh\n'''exec' (?:"([^"\n]+)"|(\S+)) """)
"""pip writes this where the path of the Python has a space in it or is too long for a shebang."""


class RefusedError(Exception):
    """A program cannot be recorded.

    Args:
        status: The shell's: 127 if the program does not exist, 126 if it cannot be started.
    """

    def __init__(self, message: str, status: int = NOT_EXECUTABLE) -> None:
        super().__init__(message)
        self.status = status


def command_of(words: Sequence[str]) -> list[str]:
    """The command to execute: the path, then all arguments from argv[0] on.

    Args:
        words: "-m MODULE ARGS", "-c CODE ARGS", "PROGRAM ARGS", or "- ARGS" for a program on stdin.

    Raises:
        RefusedError: The program does not exist, or cannot be recorded.
    """
    program = words[0]
    if program in _NO_FILE:
        return _this_python(words)
    if os.path.exists(program):
        return _this_python(words) if not _is_this_python(program) else _python(program, words)
    path = None if os.path.dirname(program) else shutil.which(program)
    if path is None:
        raise RefusedError(f"{program}: no such file, and no such command on PATH", NOT_FOUND)
    if _PYTHON.fullmatch(program):
        return _python(path, words)
    _check_script(path)
    return [path, *words]


def _this_python(words: Sequence[str]) -> list[str]:
    """This interpreter on a program, with its own options: in `python -X dev -m aiotrace record app.py`, -X dev is for
    both."""
    options, _ = split_options(sys.orig_argv[1:])
    _check_options(options)
    if words[0] not in _NO_FILE:
        _check_file(words[0])
    return [sys.executable, sys.executable, *options, *words]


def _check_file(path: str) -> None:
    """
    Raises:
        RefusedError: The file cannot be read, or is not a Python program.
    """
    if os.path.isdir(path):
        if not os.path.exists(os.path.join(path, "__main__.py")):
            raise RefusedError(f"{path}: a folder without a __main__.py, which Python cannot run")
        return
    head = _head(path)
    first = head.partition(b"\n")[0].decode(errors="replace")
    if head.startswith(b"\x7fELF") or (first.startswith("#!") and not (_is_python(_interpreter(head)))):
        raise RefusedError(f"{path}: not a Python program")


def _python(path: str, words: Sequence[str]) -> list[str]:
    """A command line that begins with a Python."""
    if not _is_this_python(path):
        raise RefusedError(_other(path, path, words[1:]))
    options, _ = split_options(words[1:])
    _check_options(options)
    return [path, *words]


def _check_script(path: str) -> None:
    """
    Raises:
        RefusedError: Its first line names another program than this Python, or options that prevent recording.
    """
    interpreter = _interpreter(_head(path))
    if not _is_python(interpreter):
        raise RefusedError(f"{path}: not a Python program")
    name = interpreter[0]
    found = name if os.path.dirname(name) else shutil.which(name) or name
    if not _is_this_python(found):
        raise RefusedError(_other(path, found, [path]))
    _check_options(interpreter[1:])


def _other(what: str, python: str, words: Sequence[str]) -> str:
    return (
        f"{what}: runs with {python}, but this is the aiotrace of {sys.executable}; "
        f"if aiotrace is installed there, run: {python} -m aiotrace record {' '.join(words)}".rstrip()
    )


def _head(path: str) -> bytes:
    try:
        with open(path, "rb") as file:
            return file.read(4096)
    except OSError as error:
        raise RefusedError(f"{path}: {error.strerror}") from None


def _interpreter(head: bytes) -> list[str]:
    """The words of a script's first line after "#!", without env; empty if it has no such line."""
    if long := _LONG_SHEBANG.match(head):
        return [os.fsdecode(long[1] or long[2])]
    if not head.startswith(b"#!"):
        return []
    words = os.fsdecode(head[2:].partition(b"\n")[0]).split()
    if words and os.path.basename(words[0]) == "env":
        words = [word for word in words[1:] if word != "-S"]
    return words


def _is_python(interpreter: Sequence[str]) -> bool:
    return bool(interpreter) and _PYTHON.fullmatch(os.path.basename(interpreter[0])) is not None


def _is_this_python(path: str) -> bool:
    """Whether it is the interpreter of this environment. Venvs link to the same file, so the folder must match too."""
    ours = sys.executable
    same_folder = os.path.realpath(os.path.dirname(os.path.abspath(path))) == os.path.realpath(os.path.dirname(ours))
    return same_folder and os.path.realpath(path) == os.path.realpath(ours)


def _check_options(options: Sequence[str]) -> None:
    """
    Raises:
        RefusedError: With these options Python would not import aiotrace's sitecustomize.
    """
    for letter in letters_of(options):
        if letter in _BLIND:
            raise RefusedError(
                f"Python with -{letter}, {_BLIND[letter]}, cannot be recorded from outside: remove the option"
            )


def split_options(words: Sequence[str]) -> tuple[list[str], list[str]]:
    """Python's own options, and what follows them: "-m MODULE ...", "-c CODE ...", "FILE ..." or nothing."""
    number = 0
    while number < len(words) and words[number].startswith("-") and words[number] != "-":
        word = words[number]
        if word.startswith("--"):
            number += 2 if word == "--check-hash-based-pycs" else 1
            continue
        letters, ending = _cluster(word)
        if ending in _ENDS_OPTIONS:
            flags = [f"-{letters}"] if letters else []  # -Im is -I -m
            return [*words[:number], *flags], [f"-{word[len(letters) + 1 :]}", *words[number + 1 :]]
        takes_next = ending in _WITH_VALUE and len(word) == len(letters) + 2
        number += 2 if takes_next else 1
    return list(words[:number]), list(words[number:])


def _cluster(word: str) -> tuple[str, str]:
    """The flags of "-abW...", and the letter that takes a value, or ""."""
    for place, letter in enumerate(word[1:]):
        if letter in _WITH_VALUE | _ENDS_OPTIONS:
            return word[1 : 1 + place], letter
    return word[1:], ""


def letters_of(options: Sequence[str]) -> str:
    """The flags among Python's options."""
    found = ""
    skip = False
    for word in options:
        if skip or word.startswith("--"):
            skip = False
            continue
        letters, ending = _cluster(word)
        found += letters
        skip = bool(ending) and len(word) == len(letters) + 2
    return found
