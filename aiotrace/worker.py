"""A thread of one's own for blocking calls, with an end that can be relied on: for sinks that block."""

from ._threads.worker import Job, Worker, block_signals, worker_thread

__all__ = ["Job", "Worker", "block_signals", "worker_thread"]
