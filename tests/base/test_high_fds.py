"""aiotrace's own descriptors have high numbers."""

from __future__ import annotations

import contextlib
import os
import resource
from collections.abc import Iterator
from pathlib import Path

import pytest

from aiotrace._base.high_fds import FIRST, out_of_the_way


@pytest.fixture
def fd(tmp_path: Path) -> Iterator[int]:
    found = os.open(tmp_path / "file", os.O_RDWR | os.O_CREAT)
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    yield found
    resource.setrlimit(resource.RLIMIT_NOFILE, before)


def is_open(fd: int) -> bool:
    return os.path.lexists(f"/proc/self/fd/{fd}")


def limit(soft: int) -> None:
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))


@pytest.mark.parametrize(("allowed", "first"), [(1300, FIRST), (1024, 768), (400, 300)])
def test_a_descriptor_goes_up_and_is_the_same_file(fd: int, allowed: int, first: int) -> None:
    limit(allowed)
    os.write(fd, b"before")
    moved = out_of_the_way(fd)
    assert first <= moved < allowed
    assert not is_open(fd)
    assert not os.get_inheritable(moved)
    assert os.lseek(moved, 0, os.SEEK_CUR) == 6
    os.close(moved)


def test_descriptor_stays_when_no_high_one_is_left(fd: int) -> None:
    limit(fd + 1)
    taken = []
    with contextlib.suppress(OSError):
        while True:
            taken.append(os.dup(fd))
    try:
        assert out_of_the_way(fd) == fd
        assert is_open(fd)
    finally:
        for each in (*taken, fd):
            os.close(each)
