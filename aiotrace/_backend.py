"""Which implementation runs: the C module, or the Python twin that says the same.

    AIOTRACE_PURE=1        the twin, even where the C module is
    AIOTRACE_REQUIRE_C=1   no twin by accident: without the C module the import fails

Both together are the twin: whoever asks for it by name did not get it by accident. Read once, at the first import.
"""

from __future__ import annotations

import os
from types import ModuleType
from typing import Final

__all__ = ["BACKEND", "c_module"]


def _load() -> ModuleType | None:
    if os.environ.get("AIOTRACE_PURE") == "1":
        return None
    try:
        from . import _c

        # The folder of the sources has the same name: where nothing was compiled, it is imported, as an empty package.
        if _c.__file__ is None:
            raise ImportError("aiotrace._c was not compiled")
    except ImportError as error:
        if os.environ.get("AIOTRACE_REQUIRE_C") == "1":
            raise ImportError(
                f"AIOTRACE_REQUIRE_C=1, but the C module cannot be loaded ({error}); "
                "`pip install .` with a C compiler builds it"
            ) from error
        return None
    return _c


c_module: Final[ModuleType | None] = _load()
"""aiotrace._c, or None."""
BACKEND: Final = "python" if c_module is None else "c"
