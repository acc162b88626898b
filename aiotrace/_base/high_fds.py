"""aiotrace's file descriptors have high numbers, where a program does not get them by chance.

    0 1 2 | 3 4 5 ... the program's ... | FIRST ... aiotrace's

A program may close descriptors that it did not open: a daemon does when it starts. Files that it opens next get the
lowest free numbers. If aiotrace's had been low, it would then write trace pages into those files, and close them at the
end. High numbers stay free: using a closed one is an error (EBADF), which does no harm.

This module knows no file and no loop.
"""

from __future__ import annotations

import fcntl
import os
import resource
from typing import Final

FIRST: Final = 960
"""Below the default limit of most systems, 1024. Not higher than needed, because the kernel's table of descriptors is
as long as the highest number."""


def out_of_the_way(fd: int) -> int:
    """The same open file under a high number; `fd` is closed.

    With a low limit of descriptors the upper quarter of them is used, or `fd` itself if those are taken.
    """
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    first = FIRST if limit == resource.RLIM_INFINITY else min(FIRST, limit * 3 // 4)
    try:
        moved = fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, first)
    except OSError:
        return fd
    os.close(fd)
    return moved
