"""The loop of aiotrace's own threads: woken from anywhere, and polls its descriptors only as often as it must."""

from __future__ import annotations

import asyncio
import os
import socket
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from aiotrace._base.backend import c_module
from aiotrace._base.high_fds import FIRST
from aiotrace._threads import own_loop
from aiotrace._threads.own_loop import STEPS_MAX, STEPS_TIME, ThreadLoop


class CountingPoll:
    """An epoll that counts how often it is asked."""

    def __init__(self, epoll: Any) -> None:
        self._epoll = epoll
        self.polls = 0

    def poll(self, *arguments: Any) -> Any:
        self.polls += 1
        return self._epoll.poll(*arguments)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._epoll, name)


@pytest.fixture
def loop() -> Iterator[ThreadLoop]:
    loop = ThreadLoop()
    yield loop
    loop.close()


def counting(loop: ThreadLoop) -> CountingPoll:
    epoll: Any = loop._epoll
    epoll._selector = poll = CountingPoll(epoll._selector)
    return poll


@pytest.mark.pure_too
def test_task_steps_do_not_each_poll_the_descriptors(loop: ThreadLoop, monkeypatch: pytest.MonkeyPatch) -> None:
    """A look gives the interpreter up: a busy thread has it for 5 ms then."""
    monkeypatch.setattr(own_loop, "monotonic", lambda: 1000.0)  # whatever other programs take

    async def steps() -> None:
        for _ in range(4 * STEPS_MAX):
            await asyncio.sleep(0)

    poll = counting(loop)
    loop.run_until_complete(steps())
    assert poll.polls in (3, 4)


@pytest.mark.pure_too
def test_ready_descriptor_is_served_while_steps_follow_steps(loop: ThreadLoop) -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        heard = loop.create_future()
        loop.add_reader(ours, heard.set_result, None)
        theirs.send(b"x")

        async def steps() -> int:
            count = 0
            while not heard.done():
                count += 1
                await asyncio.sleep(0)
            return count

        assert loop.run_until_complete(steps()) <= STEPS_MAX + 2
        loop.remove_reader(ours)


@pytest.mark.pure_too
def test_descriptors_are_polled_after_each_long_step(loop: ThreadLoop, monkeypatch: pytest.MonkeyPatch) -> None:
    now = 1000.0
    monkeypatch.setattr(own_loop, "monotonic", lambda: now)

    async def steps() -> None:
        nonlocal now
        for _ in range(8):
            now += STEPS_TIME
            await asyncio.sleep(0)

    poll = counting(loop)
    loop.run_until_complete(steps())
    assert poll.polls in (9, 10)


@pytest.mark.pure_too
def test_loop_is_woken_by_every_thread_and_each_time(loop: ThreadLoop) -> None:
    count, threads = 2000, 3
    told = 0
    done = loop.create_future()

    def tell() -> None:
        nonlocal told
        told += 1
        if told == count * threads:
            done.set_result(None)

    def wake() -> None:
        for _ in range(count):
            loop.call_soon_threadsafe(tell)

    wakers = [threading.Thread(target=wake) for _ in range(threads)]

    async def wait() -> None:
        for waker in wakers:
            waker.start()
        await asyncio.wait_for(done, 60)

    loop.run_until_complete(wait())
    for waker in wakers:
        waker.join()
    assert told == count * threads


@pytest.mark.pure_too
def test_wake_before_the_wait_is_not_lost(loop: ThreadLoop) -> None:
    done = loop.create_future()
    thread = threading.Thread(target=loop.call_soon_threadsafe, args=(done.set_result, None))
    thread.start()
    thread.join()
    loop.run_until_complete(asyncio.wait_for(done, 60))


@pytest.mark.pure_too
def test_descriptors_are_high_and_closed_with_the_loop() -> None:
    before = set(os.listdir("/proc/self/fd"))
    loop = ThreadLoop()
    ours = set(map(int, set(os.listdir("/proc/self/fd")) - before))
    assert loop.fileno() in ours
    assert min(ours) >= FIRST
    loop.close()
    assert loop.fileno() == -1
    assert set(os.listdir("/proc/self/fd")) == before
    loop._write_to_self()  # by a thread that was just about to wake it
    with pytest.raises(RuntimeError, match="closed"):
        loop.call_soon_threadsafe(print)


@pytest.mark.pure_too
def test_alarm_is_not_closed_while_a_thread_is_about_to_ring_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """A trace that is opened just then would have its number, and get the 8 bytes."""
    loop = ThreadLoop()
    is_open = []

    def ring(fd: int) -> None:
        loop.close()
        is_open.append(os.readlink(f"/proc/self/fd/{fd}"))

    monkeypatch.setattr(own_loop, "_ring", ring)
    alarm = loop.fileno()
    loop._write_to_self()
    assert is_open == ["anon_inode:[eventfd]"]
    assert not os.path.lexists(f"/proc/self/fd/{alarm}")


@pytest.mark.pure_too
def test_loop_with_descriptors_closed_by_the_program_does_not_raise() -> None:
    loop = ThreadLoop()
    os.close(loop.fileno())
    loop._write_to_self()
    loop.close()


@pytest.mark.skipif(c_module is None, reason="of the C module alone")
def test_ringing_the_alarm_adds_one_or_raises() -> None:
    assert c_module is not None
    alarm = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
    try:
        for _ in range(3):
            c_module.ring_alarm(alarm)
        assert os.eventfd_read(alarm) == 3
    finally:
        os.close(alarm)
    with pytest.raises(OSError, match="Bad file descriptor"):
        c_module.ring_alarm(alarm)
    with pytest.raises(ValueError, match="negative"):
        c_module.ring_alarm(-1)
    with pytest.raises(OverflowError):
        c_module.ring_alarm(alarm + 2**32)
    with pytest.raises(TypeError):
        c_module.ring_alarm("3")
