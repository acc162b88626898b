"""The crc32 that stands beside every page: zlib's, several times as fast where the C module and the processor are.

`crc32(data)`, or `crc32(data, crc_of_what_comes_before)`, as `zlib.crc32`. Other than that one it keeps the GIL for a
page: a thread that hands it over while another runs Python gets it back up to 5 ms later, and a page takes some µs.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable
from typing import Final

from .backend import c_module

__all__ = ["crc32"]

crc32: Final[Callable[..., int]] = getattr(c_module, "crc32", zlib.crc32)
