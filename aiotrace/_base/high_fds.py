"""Descriptors of ours have high numbers, out of the program's way.

    0 1 2 | 3 4 5 ... the program's ... | FIRST ... ours

A program may close descriptors that it did not open: a daemon does when it begins. Then it opens files of its own, and
they get the lowest numbers that are free. Were those ours before, we would write pages of a trace into the files,
and close them at the end. High numbers stay free: what we do with them then is an error (EBADF), and harms nobody.

This module knows no file and no loop.
"""

from __future__ import annotations

import fcntl
import os
import resource
from typing import Final

FIRST: Final = 960
"""Below what most systems allow a process by default, 1024; the kernel's table of descriptors is as long as the highest
number, so it is not as high as can be."""


def out_of_the_way(fd: int) -> int:
    """The same open file under a high number; the one given is closed.

    Where the process may have only few descriptors it is the upper quarter of them, or `fd` itself if those are taken.
    """
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    first = FIRST if limit == resource.RLIM_INFINITY else min(FIRST, limit * 3 // 4)
    try:
        moved = fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, first)
    except OSError:
        return fd
    os.close(fd)
    return moved
