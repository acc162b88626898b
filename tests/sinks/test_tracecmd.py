"""TraceCmdSink: what a real `trace-cmd listen` makes a file of is what a FileSink beside it has; and what goes wrong.

The real listener listens on every interface, so it and the program that sends to it are alone in a network namespace.
"""
# ruff: noqa: PT031

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import anyio
import pytest

import aiotrace
from aiotrace import ConfigurationError
from aiotrace.abc import PageStream
from aiotrace.decode import open_trace
from aiotrace.testing import check_sink
from aiotrace_sinks import TraceCmdSink, _tracecmd
from aiotrace_sinks._socket_channel import Address, Channel
from support.laws import PAGE, Collect, check_closed, number
from support.listeners import FakeListener, faking, rinit


async def send(count: int, first: int = 0) -> None:
    for n in range(first, first + count):
        await number.send(n, "x" * (n % 20))


# --- the real listener ------------------------------------------------------------------------------

PROGRAM = """
import json, os, signal, subprocess, sys, threading
from pathlib import Path
import anyio
import aiotrace
from aiotrace._formats import tracedat_stream
from aiotrace_sinks import FileSink, TraceCmdSink, _tracecmd

PORT, NAME = 7777, ":1E61 "
number = aiotrace.event("listened:number", n="u64", text="str", what="symbol")
folder = Path(sys.argv[1])

def listen(name):
    # In a session of its own: its readers are processes, and are killed with it.
    target = folder / name
    target.mkdir()
    while True:
        log = open(folder / f"{name}.log", "wb")
        listener = subprocess.Popen(["trace-cmd", "listen", "-p", str(PORT), "-d", target],
                                    stdout=log, stderr=log, start_new_session=True)
        while listener.poll() is None:
            if any(NAME in line and " 0A " in line for line in open("/proc/net/tcp")):
                return listener
            threading.Event().wait(0.005)

async def until(condition):
    while not condition():
        await anyio.sleep(0.005)

def children(pid):
    return Path(f"/proc/{pid}/task/{pid}/children").read_text().split()

async def finish(listener):
    # A client's process ends when it has made its file.
    await until(lambda: not children(listener.pid))
    listener.terminate()
    listener.wait()

async def send(first, count):
    for n in range(first, first + count):
        await number.send(n, "x" * (n % 20), f"symbol {n % 7}")

def write_in_threads(first, count):
    threads = 3
    barrier = threading.Barrier(threads)
    def write(thread):
        for n in range(first + thread, first + count, threads):
            number(n, "", f"thread {thread}")
        barrier.wait()  # or the next thread would take the writer of one that has ended
    started = [threading.Thread(target=write, args=(each,), name=f"writer {each}") for each in range(threads)]
    for each in started:
        each.start()
    for each in started:
        each.join()

def show(recording, **more):
    s = recording.statistics()
    first = s.sinks[0]
    print(json.dumps({
        "calls": s.calls, "written": s.events_written, "delivered": s.events_delivered, "in_flight": s.events_in_flight,
        "settled": s.events_delivered + s.events_overrun + s.events_abandoned,
        "home": s.pages_free == s.pages_total, "offered": first.events_offered, "state": first.state,
        "sink": first.events_delivered, "sink_lost": first.events_missed + first.events_abandoned, **more}))
"""

WHOLE = """
async def main():
    listener = listen("theirs")
    sink = TraceCmdSink(f"tcp://127.0.0.1:{PORT}")
    async with aiotrace.record(sink, FileSink(folder / "own.dat"), page_size=int(sys.argv[3])) as recording:
        write_in_threads(0, 1500)
        await send(1500, 18_500)
        late = aiotrace.event("listened:late", n="u64")  # no listener heard of it when it was connected to
        await late.send(1)
    await finish(listener)
    show(recording)
"""

SLOW = """
tracedat_stream.FILLER_SIZE, _tracecmd.FILLER_INTERVAL = 16, 0.002  # many fillers, as in days
"""

STALLED = """
main_before = main
async def main():
    write_in_threads_before = write_in_threads
    def stalled(first, count):
        import time
        time.sleep(12)  # longer than a listener waits for headers
        write_in_threads_before(first, count)
    globals()["write_in_threads"] = stalled
    await main_before()
"""

KILLED = """
async def main():
    listener = listen("first")
    sink = TraceCmdSink(f"tcp://127.0.0.1:{PORT}")
    here = aiotrace.sink(sink, on_full="skip")
    async with aiotrace.record(here, FileSink(folder / "own.dat"), page_size=4096) as recording:
        await send(0, 5000)
        await until(lambda: recording.statistics().sinks[0].events_delivered > 2000)
        os.killpg(listener.pid, signal.SIGKILL)
        listener.wait()
        await until(lambda: recording.statistics().sinks[0].state == "failed")
        await send(5000, 5000)  # the program does not wait for it
        before = recording.statistics().sinks[0].events_delivered
        listener = listen("second")
        await until(lambda: sink.connections == 2)
        await send(10_000, 5000)
    await finish(listener)
    show(recording, before=before, connections=sink.connections)
"""

RUN = """
anyio.run(main, backend=sys.argv[2])
"""


def run(program: str, folder: Path, backend: str, page_size: int = 4096) -> dict[str, Any]:
    """Run it in a network namespace. Returns what it printed last."""
    if shutil.which("ip") is None or subprocess.run(["unshare", "-n", "true"], check=False).returncode:
        pytest.skip("NOT RUN: no network namespace: needs unshare, and ip: apt-get install iproute2")
    command = [sys.executable, "-W", "ignore", "-c", PROGRAM + program + RUN, str(folder), backend, str(page_size)]
    done = subprocess.run(
        ["unshare", "-n", "sh", "-c", 'ip link set lo up && exec "$@"', "sh", *command],
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert done.returncode == 0, done.stderr + "".join(path.read_text() for path in folder.glob("*.log"))
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return result


def report(trace_cmd: str, path: Path) -> list[str]:
    done = subprocess.run([trace_cmd, "report", "-t", "-i", path], capture_output=True, check=True, text=True)
    return done.stdout.splitlines()


def check_agrees(trace_cmd: str, folder: Path, result: dict[str, Any]) -> None:
    (theirs,) = (folder / "theirs").glob("*.dat")
    lines = report(trace_cmd, theirs)
    assert lines == report(trace_cmd, folder / "own.dat")
    assert sum(": number: " in line or ": late: " in line for line in lines) == 20_001
    assert len({line.split("[")[1][:3] for line in lines if "[" in line}) >= 3, "several writers"
    assert result["calls"] == result["written"] == result["delivered"] == result["sink"] == 20_001
    assert result["state"] == "finished"
    with open_trace(theirs) as trace, open_trace(folder / "own.dat") as own:
        assert [(e.name, e.timestamp_ns, e.pid, e.cpu, e.fields) for e in trace] == [
            (e.name, e.timestamp_ns, e.pid, e.cpu, e.fields) for e in own
        ]
        assert not trace.damage


@pytest.mark.root
@pytest.mark.parametrize(("backend", "page_size", "program"), [("asyncio", 65536, WHOLE), ("trio", 4096, SLOW + WHOLE)])
def test_an_unmodified_listener_makes_a_file_of_all_events(
    trace_cmd: str, tmp_path: Path, backend: str, page_size: int, program: str
) -> None:
    check_agrees(trace_cmd, tmp_path, run(program, tmp_path, backend, page_size))


@pytest.mark.long
@pytest.mark.root
@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_loop_stalled_beyond_the_listener_timeout_loses_nothing(trace_cmd: str, tmp_path: Path, backend: str) -> None:
    check_agrees(trace_cmd, tmp_path, run(WHOLE + STALLED, tmp_path, backend))


@pytest.mark.root
@pytest.mark.parametrize("backend", ["asyncio", pytest.param("trio", marks=pytest.mark.long)])
def test_program_continues_without_a_listener_and_the_next_gets_the_rest(
    trace_cmd: str, tmp_path: Path, backend: str
) -> None:
    result = run(KILLED, tmp_path, backend)
    assert result["calls"] == result["written"] == 15_000
    assert result["written"] == result["settled"]
    assert result["delivered"] == 15_000, "FileSink has them all"
    assert result["in_flight"] == 0
    assert result["home"]
    assert result["offered"] == result["sink"] + result["sink_lost"]
    assert result["connections"] == 2
    assert not [line for path in (tmp_path / "first").glob("*.dat") for line in report(trace_cmd, path) if "n=" in line]
    (theirs,) = (tmp_path / "second").glob("*.dat")
    lines = [line for line in report(trace_cmd, theirs) if ": number: " in line]
    assert len(lines) == result["sink"] - result["before"] > 0
    assert len(set(lines)) == len(lines)
    assert set(lines) <= set(report(trace_cmd, tmp_path / "own.dat"))


# --- a listener of the test's own -------------------------------------------------------------------


@pytest.mark.anyio
async def test_the_sink_keeps_the_contract() -> None:
    async with faking() as listener:
        await check_sink(lambda: TraceCmdSink(listener.url))


@pytest.mark.anyio
async def test_a_listener_has_each_event_once() -> None:
    async with faking() as listener:
        async with aiotrace.record(TraceCmdSink(listener.url), page_size=PAGE, pages=16) as recording:
            await send(2000)
        (trace,) = listener.traces
    check_closed(recording.statistics(), 2000)
    assert trace.ended
    assert sorted(trace.numbers) == list(range(2000))
    assert (trace.cpus, trace.page_size) == (recording.info.writers, PAGE)


@pytest.mark.anyio
async def test_no_connection_ends_before_the_listener_has_the_headers(monkeypatch: pytest.MonkeyPatch) -> None:
    """A listener that still waits for headers is interrupted by that, and ends."""
    unreceived = [300, 20, 20, 0]
    left: list[int] = []
    end_sending = Channel.end_sending

    def end(channel: Channel) -> None:
        left.append(len(unreceived))
        end_sending(channel)

    monkeypatch.setattr(Channel, "count_unreceived", lambda channel: unreceived.pop(0))
    monkeypatch.setattr(Channel, "end_sending", end)
    async with faking() as listener, aiotrace.record(TraceCmdSink(listener.url), page_size=PAGE, pages=16):
        await send(100)
    assert left == [0]


@pytest.mark.anyio
async def test_a_trace_is_not_ended_before_it_is_read() -> None:
    """A listener gives its readers a second after the end, and then interrupts them."""
    async with faking() as listener, anyio.create_task_group() as group:
        listener.reads = anyio.Event()

        async def read_at_the_end() -> None:
            await _until(lambda: bool(listener.traces) and listener.traces[0].has_headers)
            listener.reads.set()

        async with aiotrace.record(TraceCmdSink(listener.url), page_size=PAGE, pages=16, drain_timeout=60):
            group.start_soon(read_at_the_end)
            await send(50)
        (trace,) = listener.traces
    assert trace.ended
    assert trace.unread == 0
    assert trace.numbers == list(range(50))


@pytest.mark.anyio
async def test_sockets_that_take_a_few_bytes_at_a_time_get_everything(monkeypatch: pytest.MonkeyPatch) -> None:
    send_all = Channel.send
    monkeypatch.setattr(Channel, "send", lambda channel, buffers: send_all(channel, [bytes(buffers[0])[:7]]))
    async with faking() as listener:
        async with aiotrace.record(TraceCmdSink(listener.url), page_size=PAGE, pages=16, drain_timeout=60):
            await send(300)
        (trace,) = listener.traces
    assert trace.ended
    assert trace.numbers == list(range(300))


class FailingStream:
    """A stream whose second request fails."""

    def __init__(self, stream: PageStream, error: BaseException) -> None:
        self._stream = stream
        self._error: BaseException | None = error

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    async def next_batch(self, pages: int) -> Any:
        batch = await self._stream.next_batch(1)
        if self._error is not None and len(batch) and batch[0].sequence > 0:
            raise self._error
        return batch


@pytest.mark.anyio
@pytest.mark.parametrize("error", [ValueError("of the stream"), ConnectionError("of the stream")])
async def test_a_stream_that_fails_leaves_a_whole_trace_and_a_second_one(error: Exception) -> None:
    async with faking() as listener:
        sink = TraceCmdSink(listener.url)
        errors = [error]

        async def failing(stream: PageStream) -> None:
            await sink(FailingStream(stream, errors.pop()) if errors else stream)

        with pytest.warns(RuntimeWarning, match="of the stream"):
            async with aiotrace.record(failing, page_size=PAGE, pages=16) as recording:
                await send(500)
        first, second = listener.traces
    check_closed(recording.statistics(), 500)
    assert first.ended
    assert second.ended
    assert first.numbers
    assert first.numbers + second.numbers == list(range(500))


@pytest.mark.anyio
async def test_port_without_a_listener_is_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """A listener names the ports before the processes behind them listen."""
    refusals = [ConnectionRefusedError(), ConnectionRefusedError()]
    connect = _tracecmd.connect

    async def connect_later(address: Address, context: None) -> Channel:
        if refusals and str(address) != listener.url:
            raise refusals.pop()
        return await connect(address, context)

    monkeypatch.setattr(_tracecmd, "connect", connect_later)
    async with faking() as listener:
        async with aiotrace.record(TraceCmdSink(listener.url), page_size=PAGE, pages=16):
            await send(10)
        (trace,) = listener.traces
    assert trace.numbers == list(range(10))
    assert not refusals


@pytest.mark.anyio
async def test_a_quiet_program_leaves_an_empty_trace() -> None:
    async with faking() as listener:
        async with aiotrace.record(TraceCmdSink(listener.url), page_size=PAGE, pages=16):
            pass
        (trace,) = listener.traces
    assert trace.ended
    assert trace.raw == []


@pytest.mark.anyio
async def test_a_sink_that_is_detached_ends_its_trace(monkeypatch: pytest.MonkeyPatch) -> None:
    async with faking() as listener:
        sink = TraceCmdSink(listener.url)
        collect = Collect()
        async with aiotrace.record(sink, collect, page_size=PAGE, pages=16) as recording:
            await send(1000)
            await recording.detach(sink)
            await send(100, 1000)
        (trace,) = listener.traces
        assert trace.ended
        delivered = recording.statistics().sinks[0].events_delivered
    assert len(trace.numbers) == len(set(trace.numbers)) == delivered > 0


@pytest.mark.anyio
async def test_incompletely_sent_page_is_in_no_trace(monkeypatch: pytest.MonkeyPatch) -> None:
    """A trace that is cancelled in the middle of a page is not ended: half a page must not count as one."""
    monkeypatch.setattr(_tracecmd, "LAST_WORDS", 0.01)
    send_all = Channel.send
    control: list[Channel] = []
    left = [PAGE + PAGE // 2]
    stuck, over = anyio.Event(), anyio.Event()
    scope = anyio.CancelScope()

    def send_some(channel: Channel, buffers: Any) -> int:
        control.append(channel)
        if channel is control[0]:
            return send_all(channel, buffers)
        sent = send_all(channel, [b"".join(buffers)[: left[0]]])
        left[0] -= sent
        return sent

    async def wait_for_ever(channel: Channel) -> None:
        stuck.set()
        await anyio.sleep_forever()

    monkeypatch.setattr(Channel, "send", send_some)
    monkeypatch.setattr(Channel, "wait_writable", wait_for_ever)
    async with faking() as listener:

        async def cancelled(stream: PageStream) -> None:
            with scope:
                await TraceCmdSink(listener.url)(stream)
            over.set()

        async with aiotrace.record(cancelled, page_size=PAGE, pages=16) as recording:
            for n in range(1000):
                number(n, "")
            await stuck.wait()
            scope.cancel()
            await over.wait()
        await _until(lambda: not listener.open)
        (trace,) = listener.traces
    assert not trace.ended
    statistics = recording.statistics()
    check_closed(statistics, 1000)
    assert 0 < statistics.events_delivered < 1000, "the first page"


async def _until(condition: Any) -> None:
    with anyio.fail_after(60):
        while not condition():  # noqa: ASYNC110  # there is no event to wait for
            await anyio.sleep(0.001)


@pytest.mark.anyio
async def test_a_listener_that_hangs_up_is_connected_to_again_and_has_the_rest() -> None:
    async with faking() as listener:
        sink = TraceCmdSink(listener.url)
        with pytest.warns(RuntimeWarning, match=r"tcp://127\.0\.0\.1"):
            async with aiotrace.record(sink, page_size=PAGE, pages=16) as recording:
                await send(500)
                await listener.controls[0].aclose()
                await _until(lambda: sink.connections == 2)
                await send(500, 500)
        first, second = listener.traces
    check_closed(recording.statistics(), 1000)
    assert not first.ended
    assert second.ended
    assert len(second.numbers) == len(set(second.numbers))
    assert set(second.numbers) >= set(range(500, 1000)), "what was not on its way when it hung up"


@pytest.mark.anyio
async def test_a_listener_that_speaks_out_of_turn_takes_no_more() -> None:
    """A listener that heard nothing for five seconds answers whatever comes with NOT_SUPP, and its file is lost."""
    async with faking() as listener:
        sink = TraceCmdSink(listener.url)
        with pytest.warns(RuntimeWarning, match="takes no more"):
            async with aiotrace.record(sink, page_size=PAGE, pages=16):
                await send(100)
                await listener.controls[0].send(bytes([0, 0, 0, 12, 0, 0, 0, 5, 0, 0, 0, 0]))
                await _until(lambda: sink.connections == 2)
        assert [trace.ended for trace in listener.traces] == [False, True]


@pytest.mark.anyio
async def test_a_listener_that_has_heard_nothing_for_too_long_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_tracecmd, "SILENCE_MAX", -1.0)
    async with faking() as listener:
        with pytest.warns(RuntimeWarning, match="heard nothing"):
            async with aiotrace.record(
                aiotrace.sink(TraceCmdSink(listener.url), on_error="detach"), page_size=PAGE, pages=16
            ) as recording:
                await send(200)
        assert not listener.traces[0].ended
    check_closed(recording.statistics(), 200)


@pytest.mark.anyio
async def test_a_listener_hears_something_while_the_loop_stalls(monkeypatch: pytest.MonkeyPatch) -> None:
    spoken = threading.Semaphore(0)
    say = _tracecmd._FillerSender._send_filler

    def heard(speaker: _tracecmd._FillerSender) -> None:
        say(speaker)
        spoken.release()

    monkeypatch.setattr(_tracecmd._FillerSender, "_send_filler", heard)
    monkeypatch.setattr(_tracecmd, "FILLER_INTERVAL", 0.001)
    async with faking() as listener:
        async with aiotrace.record(TraceCmdSink(listener.url), page_size=PAGE, pages=16):
            assert all(spoken.acquire(timeout=60) for _ in range(20))
        assert listener.traces[0].ended
        assert len(listener.traces[0].headers) > 4096
    assert not [each for each in threading.enumerate() if each.name == "aiotrace trace-cmd"]


# --- what is no listener ----------------------------------------------------------------------------


async def refusal(listener: FakeListener) -> str:
    with pytest.raises(ConnectionError) as caught:
        async with aiotrace.record(TraceCmdSink(listener.url), page_size=PAGE, pages=16):
            pytest.fail("it began")
    assert listener.url in str(caught.value)
    return str(caught.value)


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("answers", "message"),
    [
        ((b"SSH-2.0-OpenSSH_9.2\r\n",), "b'SSH-2.0-', where b'tracecmd' was expected"),
        ((b"tracecmd", b"1500,1501\0"), "b'150', where b'V3"),
        ((b"tracecmd", b"V3\0", b"NO"), "b'NO', where b'OK' was expected"),
    ],
)
async def test_peer_of_another_protocol_is_named_with_its_address(answers: tuple[bytes, ...], message: str) -> None:
    async with faking() as listener:
        listener.answers = answers
        assert message in await refusal(listener)


@pytest.mark.anyio
@pytest.mark.parametrize(
    "answer", [rinit([1500]), bytes(12), b"\xff" * 12, (2**31).to_bytes(4, "big") + bytes(8), rinit([0] * 7)]
)
async def test_a_listener_that_speaks_nonsense_is_named_with_its_address(answer: bytes) -> None:
    async with faking() as listener:
        listener.ports = answer
        assert "no trace-cmd of protocol 3" in await refusal(listener)


@pytest.mark.anyio
async def test_listener_that_hangs_up_or_is_silent_leads_to_a_hint(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_tracecmd, "ANSWER_TIMEOUT", 0.01)
    async with faking() as listener:
        listener.answers = (b"trace",)
        assert "in 0.01 s: is it trace-cmd?" in await refusal(listener)
    assert "refused" in (await refusal(listener)).lower()


@pytest.mark.parametrize("url", ["trace-cmd://localhost", "trace-cmd:localhost:7", "trace-cmd://x@localhost:7"])
def test_invalid_url_is_refused(url: str) -> None:
    with pytest.raises(ConfigurationError):
        TraceCmdSink.from_url(url)


def test_a_url_names_the_address() -> None:
    assert repr(TraceCmdSink.from_url("trace-cmd://[::1]:7007")) == "TraceCmdSink('tcp://[::1]:7007')"
    with pytest.raises(ConfigurationError, match="listens on TCP"):
        TraceCmdSink("unix:/run/x")


@pytest.mark.anyio
@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_the_trace_of_a_forked_child_is_the_parents() -> None:
    async with faking() as listener:
        async with aiotrace.record(TraceCmdSink(listener.url), page_size=PAGE, pages=16) as recording:
            await send(100)
            pid = os.fork()
            if pid == 0:
                os._exit(0)
            await anyio.to_thread.run_sync(os.waitpid, pid, 0)
            await send(100, 100)
        (trace,) = listener.traces
    check_closed(recording.statistics(), 200)
    assert trace.ended
    assert sorted(trace.numbers) == list(range(200))
