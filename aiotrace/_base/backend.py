"""Which implementation runs: the C module, or the Python twin that says the same.

    AIOTRACE_PURE=1        the twin, even where the C module is
    AIOTRACE_REQUIRE_C=1   no twin by accident: without the C module the import fails

Both together are the twin: whoever asks for it by name did not get it by accident. With neither, a module that cannot
be loaded (not compiled, a sub-interpreter, a free-threaded Python) is passed over, and `aiotrace list --versions` says
why. Read once, at the first import.
"""

from __future__ import annotations

import importlib
import os
import sys
from types import ModuleType
from typing import Final

from .package import PACKAGE_FOLDER

__all__ = ["BACKEND", "WHY_PYTHON", "c_module"]


def _load() -> tuple[ModuleType | None, str]:
    """The C module, or why the twin runs."""
    if os.environ.get("AIOTRACE_PURE") == "1":
        return None, "AIOTRACE_PURE=1"
    try:
        if "t" in sys.abiflags:
            raise ImportError("it needs the GIL, which this free-threaded Python does without")
        module = _import()
    except ImportError as error:
        if os.environ.get("AIOTRACE_REQUIRE_C") == "1":
            raise ImportError(f"AIOTRACE_REQUIRE_C=1, but the C module cannot be loaded: {error}") from error
        return None, f"no C module: {error}"
    return module, ""


def _import() -> ModuleType:
    try:
        return importlib.import_module("aiotrace._c")
    except ModuleNotFoundError:
        folder = os.path.dirname(PACKAGE_FOLDER)
        message = f"not compiled in {folder}; `pip install .` does it where a C compiler is"
        raise ImportError(message) from None


_loaded: Final = _load()
c_module: Final[ModuleType | None] = _loaded[0]
"""aiotrace._c, or None."""
WHY_PYTHON: Final[str] = _loaded[1]
"""Why the twin runs; "" if the C module does."""
BACKEND: Final = "python" if c_module is None else "c"
