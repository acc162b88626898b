"""Where aiotrace itself is on disk: which code objects are its own, and which of its files other processes start.

Kept in one place because it depends on how deep this file is in the package.
"""

from __future__ import annotations

import os

TYPE_CHECKING = False  # importing it from `typing` would double the time of `import aiotrace`
if TYPE_CHECKING:
    from typing import Final

__all__ = ["PACKAGE_FOLDER"]

PACKAGE_FOLDER: Final = os.path.join(os.path.dirname(os.path.dirname(os.path.abspath(__file__))), "")
"""The folder of the package `aiotrace`, with a separator at its end: a prefix of the path of each of its files."""
