"""`restore`: a trace.dat from the files that a killed program left. Blocking file I/O.

It is the same as finishing (`finish`), from the journal alone, after checking each page's crc32.
"""

from __future__ import annotations

import os
from collections.abc import Callable

from .._formats import tracedat as T
from .finish import make_trace
from .page_slots import RestoreReport
from .trace_files import TraceFiles, sync_folder

__all__ = ["RestoreReport", "restore"]


def restore(path: str, *, progress: Callable[[int], None] | None = None) -> RestoreReport:
    """Make a trace.dat of what a killed program left. Blocks; killed itself, it can be begun again.

    Args:
        progress: Called now and then with the bytes that were checked or copied since.

    Raises:
        FileNotFoundError: There is no journal, so nothing to restore.
        BlockingIOError: A running program is still writing this trace.
        TraceFormatError: The journal is no journal, or lost its beginning.
        OSError: A file cannot be read or written.
    """
    report = RestoreReport()
    files = TraceFiles(path)
    files.open_existing()
    try:
        if T.unpack_options_offset(os.pread(files.data, T.INITIAL_HEADER_SIZE, 0)):
            report.was_complete = True
            files.unlink_litter()
            return report
        for done in make_trace(files, fsync=True, verify=True, report=report):
            if progress is not None:
                progress(done)
        files.unlink_litter()
        sync_folder(path)
    finally:
        files.close()
    return report
