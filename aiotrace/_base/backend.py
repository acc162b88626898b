"""Which implementation runs: the C module, or the pure-Python one.

    AIOTRACE_PURE=1        pure Python, even if there is a C module
    AIOTRACE_REQUIRE_C=1   the import fails if there is no C module, instead of falling back to pure Python

With both, pure Python runs: it was asked for. With neither, a C module that cannot be loaded (not compiled, a
sub-interpreter, a free-threaded Python) is skipped, and `aiotrace list --versions` says why. Both variables are read
once, at the first import.
"""

from __future__ import annotations

import os
import sys

from .package import PACKAGE_FOLDER

TYPE_CHECKING = False  # importing it from `typing` would double the time of `import aiotrace`
if TYPE_CHECKING:
    from types import ModuleType
    from typing import Final

__all__ = ["BACKEND", "WHY_PYTHON", "c_module"]


def _load() -> tuple[ModuleType | None, str]:
    """The C module, or why there is none."""
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
        __import__("aiotrace._c")
        return sys.modules["aiotrace._c"]
    except ModuleNotFoundError:
        folder = os.path.dirname(PACKAGE_FOLDER)
        message = f"not compiled in {folder}; `pip install .` does it where a C compiler is"
        raise ImportError(message) from None


_loaded: Final = _load()
c_module: Final[ModuleType | None] = _loaded[0]
"""aiotrace._c, or None."""
WHY_PYTHON: Final[str] = _loaded[1]
"""Why pure Python runs; "" if the C module does."""
BACKEND: Final = "python" if c_module is None else "c"
