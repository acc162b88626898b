"""Programs that tests start: what they import is what the tests import."""

from __future__ import annotations

import os
import sys


def environment(**extra: str) -> dict[str, str]:
    """For a Python that is to find the modules that this one finds."""
    return {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path), **extra}
