"""The tracers `function` and `function_graph`: calls of Python functions, as the kernel's events of these names.

    function:call         ip, parent_ip                                what was called, and from where
    function_graph:entry  func, depth                                  as it is called
    function_graph:exit   func, depth, overrun, calltime, rettime      as it returns

They are too expensive to be part of "all". Both use one pair of hooks into every call:

    3.12 and newer   sys.monitoring, with a tool id of its own
    3.11             a C profile function in every thread that has none; threads of `threading` that start later get
                     it too

All Python functions are seen, except aiotrace's own and what those call (sinks, for example); calls into C are not. A
coroutine or generator exits when it is suspended and enters again when it continues. The code that runs per call is
`_csrc/calls/call.h`.

`limit` and `notrace` of a recording select functions. There is one set of hooks for the process: with several
recordings, a function is seen if one of them takes it. With sys.monitoring other functions cost nothing after their
first call.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Iterable
from types import CodeType, FrameType, ModuleType
from typing import Final

from .._base.backend import c_module
from .._base.errors import ConfigurationError
from .._base.package import PACKAGE_FOLDER
from .._events.event import define_kernel
from .._events.python_stack import is_ours
from .._events.selection import Functions, Selection
from .._page import kernel_events
from .._page.definitions import DEFINITIONS

TOOL_NAME: Final = "aiotrace functions"
TOOLS: Final = (4, 3, 2, 1, 0, 5)
"""Tool ids of sys.monitoring, first those that are not meant for a kind of tool."""
IGNORED: Final = 1
"""The address of functions that are not traced while their callees are: aiotrace's that call the program."""
SILENT: Final = 2
"""The address of what is not traced, nor is what it calls: in the middle of a writer no event can be written."""
_CALLERS: Final = ("_tracers", "_events/span.py", "_launcher/process.py", "_launcher/children.py", "testing.py")
_TRANSPARENT: Final = tuple(PACKAGE_FOLDER + name for name in _CALLERS)
"""The files of aiotrace that call the program."""

CALL: Final = define_kernel("function:call", {"ip": "u64", "parent_ip": "u64"}, kernel_events.FUNCTION)
ENTRY: Final = define_kernel("function_graph:entry", {"func": "u64", "depth": "s32"}, kernel_events.FUNCGRAPH_ENTRY)
EXIT: Final = define_kernel(
    "function_graph:exit",
    {"func": "u64", "depth": "s32", "overrun": "u32", "calltime": "u64", "rettime": "u64"},
    kernel_events.FUNCGRAPH_EXIT,
)

_wanted: Final[set[str]] = set()
_choices: list[tuple[Functions, tuple[tuple[str, ...], tuple[str, ...]]]] = []
"""What `_locate` goes by, and the globs that stood in it."""


def _make_locate(choices: tuple[Functions, ...]) -> Callable[[CodeType], int]:
    """What gives a code object its address, or IGNORED, or SILENT. C asks it from within the function's call.

    Args:
        choices: A function is wanted that one of them takes.
    """
    if not any(any(functions.globs) for functions in choices):
        choices = ()

    def locate(code: CodeType) -> int:
        if is_ours(code):
            return IGNORED if code.co_filename.startswith(_TRANSPARENT) else SILENT
        if choices and not _is_wanted(choices, code, sys._getframe(1)):
            return IGNORED
        return DEFINITIONS.locate(code, None) or IGNORED

    return locate


def _is_wanted(choices: tuple[Functions, ...], code: CodeType, frame: FrameType) -> bool:
    module = frame.f_globals.get("__name__", "?") if frame.f_code is code else "?"
    name = f"{module}.{code.co_qualname}"
    takes = [functions.takes(name) for functions in choices]  # each notes which globs were of something
    return any(takes)


_locate = _make_locate(())


class FunctionTracer:
    """One of the two, as `_events/tracer_switch` wants it."""

    def __init__(self, system: str) -> None:
        self.system: Final = system

    def start(self) -> None:
        """
        Raises:
            ConfigurationError: There is no C module, or another profiler is installed.
        """
        native = c_module
        if native is None:
            raise ConfigurationError(
                f"tracing functions ({self.system}:*) needs the C module: `pip install .` with a C compiler builds it"
            )
        if not _wanted:
            _hook(native)
        _wanted.add(self.system)
        _choose(native)

    def stop(self) -> None:
        native = c_module
        assert native is not None
        _wanted.discard(self.system)
        if _wanted:
            _choose(native)
        else:
            _unhook(native)
            native.function_stop()

    def follow(self, selections: Iterable[Selection]) -> None:
        """The limits of the open recordings may have changed; they are those of both."""
        _follow(selections)


FUNCTION: Final = FunctionTracer("function")
FUNCTION_GRAPH: Final = FunctionTracer("function_graph")
SYSTEMS: Final = (FUNCTION.system, FUNCTION_GRAPH.system)


def _follow(selections: Iterable[Selection]) -> None:
    """Go by the limits of those of these recordings that trace functions. Without effect if nothing changed."""
    global _choices, _locate
    choices = [
        (selection.functions, selection.functions.globs)
        for selection in selections
        if any(selection.wants_system(system, explicit=True) for system in SYSTEMS)
    ]
    if choices == _choices:
        return
    _choices = choices
    _locate = _make_locate(tuple(functions for functions, _ in choices))
    if _wanted:
        assert c_module is not None
        _choose(c_module)
        _ask_again()


def _choose(native: ModuleType) -> None:
    call = CALL if FUNCTION.system in _wanted else None
    entry, exit = (ENTRY, EXIT) if FUNCTION_GRAPH.system in _wanted else (None, None)
    native.function_start(_locate, call, entry, exit, _kernel_reads_tsc())


def _kernel_reads_tsc() -> bool:
    """Whether the kernel makes CLOCK_MONOTONIC from the time stamp counter, which then is constant and everywhere the
    same."""
    try:
        with open("/sys/devices/system/clocksource/clocksource0/current_clocksource", encoding="ascii") as file:
            return file.read().strip() == "tsc"
    except OSError:
        return False


if sys.version_info >= (3, 12):
    _EVENTS = sys.monitoring.events
    _HOOKS = {
        "function_enter": (_EVENTS.PY_START, _EVENTS.PY_RESUME),
        "function_throw": (_EVENTS.PY_THROW,),
        "function_leave": (_EVENTS.PY_RETURN, _EVENTS.PY_YIELD),
        "function_unwind": (_EVENTS.PY_UNWIND,),
    }
    _KINDS = [kind for kinds in _HOOKS.values() for kind in kinds]
    _tool = -1

    def _hook(native: ModuleType) -> None:
        global _tool
        monitoring = sys.monitoring
        _tool = next((tool for tool in TOOLS if monitoring.get_tool(tool) is None), -1)
        if _tool < 0:
            raise ConfigurationError("functions cannot be traced: all tool ids of sys.monitoring are taken")
        monitoring.use_tool_id(_tool, TOOL_NAME)
        for name, kinds in _HOOKS.items():
            for kind in kinds:
                monitoring.register_callback(_tool, kind, getattr(native, name))
        monitoring.set_events(_tool, sum(_KINDS))
        _ask_again()

    def _ask_again() -> None:
        """Undo all DISABLE, which outlasts a tool's end: for every tool, there is no other way."""
        sys.monitoring.restart_events()

    def _unhook(native: ModuleType) -> None:
        sys.monitoring.set_events(_tool, 0)
        for kind in _KINDS:
            sys.monitoring.register_callback(_tool, kind, None)
        sys.monitoring.free_tool_id(_tool)

else:
    _previous: object = None

    def _ask_again() -> None:
        """A profile function is called always."""

    def _hook(native: ModuleType) -> None:
        global _previous
        if not native.function_profile_all(True):
            raise ConfigurationError("functions cannot be traced: another profiler is running (sys.setprofile)")
        _previous = threading.getprofile()
        threading.setprofile(native.function_profile_thread)

    def _unhook(native: ModuleType) -> None:
        native.function_profile_all(False)
        if threading.getprofile() is native.function_profile_thread:
            threading.setprofile(_previous)  # type: ignore[arg-type]  # None, too, is what it was
