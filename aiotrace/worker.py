"""A dedicated thread for blocking calls that is always joined in the end: for sinks that block."""

from ._threads.worker import Job, Worker, block_signals, worker_thread

__all__ = ["Job", "Worker", "block_signals", "worker_thread"]
