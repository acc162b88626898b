"""A worker's jobs run in order in one thread, and what they raise is raised in the caller."""

from __future__ import annotations

import threading

import anyio
import pytest

from aiotrace.worker import Worker, worker_thread

pytestmark = pytest.mark.anyio


async def test_jobs_run_one_at_a_time_in_order_in_one_thread() -> None:
    ran: list[tuple[int, int]] = []
    async with worker_thread("test") as worker, anyio.create_task_group() as group:
        for n in range(10):
            group.start_soon(worker.run, lambda n=n: ran.append((n, threading.get_ident())))
    assert sorted(n for n, _ in ran) == list(range(10))
    assert len({ident for _, ident in ran}) == 1
    assert threading.get_ident() not in {ident for _, ident in ran}


async def test_result_and_error_are_returned() -> None:
    async with worker_thread("test") as worker:
        assert await worker.run(divmod, 7, 2) == (3, 1)
        with pytest.raises(ZeroDivisionError):
            await worker.run(divmod, 7, 0)


async def test_end_of_a_job_is_reported_once_and_its_outcome_is_kept() -> None:
    go_on, told = threading.Event(), list[int]()
    async with worker_thread("test") as worker:
        jobs = [worker.start(go_on.wait, 30), worker.start(divmod, 7, 2), worker.start(divmod, 7, 0)]
        for job in jobs:
            job.on_end = lambda: told.append(threading.get_ident())
        assert [job.has_ended for job in jobs] == [False] * 3
        go_on.set()
        await jobs[2].end()
        assert [job.has_ended for job in jobs] == [True] * 3
        assert told == [threading.get_ident()] * 3
        assert await jobs[1].wait() == (3, 1)
        with pytest.raises(ZeroDivisionError):
            await jobs[2].wait()


@pytest.mark.parametrize("reason", ["can't create new thread at interpreter shutdown", "can't start new thread"])
async def test_worker_created_at_interpreter_exit_runs_without_a_thread(
    monkeypatch: pytest.MonkeyPatch, reason: str
) -> None:
    """As CPython 3.12 has it; a system that has no thread left is an error."""

    def start(thread: threading.Thread) -> None:
        raise RuntimeError(reason)

    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", start)
        if "shutdown" not in reason:
            with pytest.raises(RuntimeError, match="can't start new thread"):
                Worker("test")
            return
        worker = Worker("test")
    assert await worker.run(threading.get_ident) == threading.get_ident()
    with pytest.raises(ZeroDivisionError):
        await worker.run(divmod, 7, 0)
    worker.stop()


async def test_a_job_that_has_begun_ends_before_its_cancelled_caller_does() -> None:
    began, go_on, ended = threading.Event(), threading.Event(), threading.Event()

    def job() -> None:
        began.set()
        go_on.wait(5)
        ended.set()

    async with worker_thread("test") as worker:
        with anyio.CancelScope() as scope:
            async with anyio.create_task_group() as group:
                group.start_soon(worker.run, job)
                await anyio.lowlevel.checkpoint()
                while not began.is_set():  # noqa: ASYNC110  # a thread's event
                    await anyio.sleep(0.001)
                scope.cancel()
                threading.Timer(0.05, go_on.set).start()
        assert ended.is_set()
