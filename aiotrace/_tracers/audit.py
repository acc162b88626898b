"""audit: Python's own audit events (`open`, `socket.connect`, `subprocess.Popen`, ...), each as `audit:NAME`.

    audit:open  arguments          audit:socket_connect  arguments          audit:other  name, arguments

A dot in a name becomes an underscore; globs may be written either way. An audit hook cannot be removed, so it is
installed when the tracer first starts, and does nothing while the tracer is stopped. What aiotrace itself does is not
recorded. Values of the program's own types are shown by their type's name, because a repr runs the program's code.
"""

from __future__ import annotations

import sys
import threading
from typing import Any, Final

from .._base.errors import DefinitionError
from .._base.package import PACKAGE_FOLDER
from .._events.event import Event, define
from .._events.python_stack import walking

KINDS_MAX: Final = 512
"""Audit events that get an event of their own; a program can invent any number of names."""
_TEXT_MAX: Final = 200
_other: Final = define("audit:other", {"name": "str", "arguments": "str"}, by_default=False)
_events: Final[dict[str, Event]] = {}
_inside: Final = threading.local()
_active = False
_hooked = False


def _hook(name: str, arguments: tuple[Any, ...]) -> None:
    if not _active or walking.active or getattr(_inside, "it", False):
        return
    _inside.it = True  # what happens in here may raise audit events too
    try:
        if sys._getframe(1).f_code.co_filename.startswith(PACKAGE_FOLDER):
            return
        event = _events.get(name) or _define(name)
        text = ", ".join(map(_show, arguments))
        if event is _other:
            event(name, text)
        else:
            event(text)
    except Exception:  # noqa: S110  # an exception of an audit hook would stop the audited call
        pass
    finally:
        _inside.it = False


def _define(name: str) -> Event:
    if len(_events) >= KINDS_MAX:
        return _other
    try:
        event = define(f"audit:{name.replace('.', '_')}", {"arguments": "str"}, by_default=False)
    except DefinitionError:
        event = _other
    _events[name] = event
    return event


def _show(value: object) -> str:
    if value is None or type(value) in (str, bytes, int, float, bool):
        text = repr(value if not isinstance(value, (str, bytes)) else value[:_TEXT_MAX])
    elif type(value) in (tuple, list):
        text = f"({', '.join(map(_show, value[:8]))})"  # type: ignore[index]  # it is one of these two
    else:
        text = f"<{type(value).__name__}>"
    return text[: 2 * _TEXT_MAX]


def start() -> None:
    global _active, _hooked
    _active = True
    if not _hooked:
        sys.addaudithook(_hook)
        _hooked = True


def stop() -> None:
    global _active
    _active = False
