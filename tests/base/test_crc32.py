"""The crc32 is zlib's, whatever is asked."""

from __future__ import annotations

import random
import zlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aiotrace._base.crc32 import crc32

pytestmark = pytest.mark.pure_too


@given(st.binary(max_size=400), st.integers(0, (1 << 32) - 1), st.integers(0, 20))
def test_checksum_equals_that_of_zlib(data: bytes, before: int, skipped: int) -> None:
    part = memoryview(data)[skipped:]  # at any alignment
    assert crc32(part) == zlib.crc32(part)
    assert crc32(part, before) == zlib.crc32(part, before)


@pytest.mark.parametrize(
    "size",
    [0, 1, 15, 16, 17, 63, 64, 65, 79, 80, 127, 128, 129, 1023, 1024, 1025, 1279, 1280, 1343, 65520, (1 << 20) + 77],
)
def test_every_code_path_equals_zlib(size: int) -> None:
    data = random.Random(size).randbytes(size)
    assert crc32(data) == zlib.crc32(data)
    assert crc32(data[size // 3 :], crc32(data[: size // 3])) == zlib.crc32(data)


@pytest.mark.parametrize("arguments", [(), (5,), ("text",), (b"", "x"), (b"", 1, 2)])
def test_anything_else_is_refused(arguments: tuple[object, ...]) -> None:
    with pytest.raises(TypeError):
        crc32(*arguments)
