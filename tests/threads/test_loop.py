"""Waking a loop from anywhere, and tasks without a parent."""

from __future__ import annotations

import asyncio
import threading
from typing import Any

import anyio
import pytest

from aiotrace._threads.loop import Loop, Waker

pytestmark = pytest.mark.anyio


async def test_a_wake_from_another_thread_wakes() -> None:
    waker = Waker(Loop())
    threading.Thread(target=waker.wake).start()
    with anyio.fail_after(60):
        await waker.wait()


async def test_wakes_without_a_waiter_are_kept_as_one() -> None:
    waker = Waker(Loop())
    waker.wake()
    waker.wake()
    await waker.wait()
    with anyio.move_on_after(0.01) as waiting:
        await waker.wait()
    assert waiting.cancelled_caught


async def test_a_wake_that_was_interrupted_does_not_take_the_next_one_with_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ctrl-C, in a program's call of an event that fills a page."""
    loop = Loop()
    waker = Waker(loop)

    def interrupted(_: object) -> bool:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(loop, "run_soon", interrupted)
        with pytest.raises(KeyboardInterrupt):
            waker.wake()
    waker.wake()
    with anyio.fail_after(60):
        await waker.wait()


async def test_task_has_an_empty_context_and_ends_when_cancelled() -> None:
    began = anyio.Event()

    async def work() -> None:
        began.set()
        await anyio.sleep_forever()

    task = Loop().spawn(work, "test")
    with anyio.fail_after(60):
        await began.wait()
        assert not task.done
        task.cancel()
        await task.wait()
    assert task.done


def test_cancelling_all_tasks_does_not_end_the_loop_of_a_running_program() -> None:
    asyncio.run(_sweep())  # not in the plugin's loop, whose own tasks would be swept too


async def _sweep() -> None:
    began: list[int] = []

    async def work() -> None:
        began.append(1)
        await anyio.sleep_forever()

    task = Loop().spawn(work, "test")
    await asyncio.sleep(0)
    for other in asyncio.all_tasks():
        if other is not asyncio.current_task():
            other.cancel()
    for _ in range(3):
        await asyncio.sleep(0)
    assert began == [1, 1]
    assert not task.done
    assert task.sweeps == 1
    task.cancel()
    await task.wait()


def test_ended_loop_refuses_callbacks() -> None:
    async def main() -> Any:
        return Loop()

    assert anyio.run(main).run_soon(print) is False
    assert anyio.run(main, backend="trio").run_soon(print) is False
