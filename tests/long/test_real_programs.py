"""Other people's programs under `aiotrace record`: what they print and how they end is what it is without.

    anyio's own test suite        each test has the same outcome
    uvicorn with Starlette        each request of a load client has the same answer, and the server the same end

They are installed into an environment of their own, from the package index. Without it: NOT RUN.
"""

from __future__ import annotations

import concurrent.futures
import faulthandler
import hashlib
import http.client
import os
import re
import signal
import socket
import subprocess
import tarfile
import time
import venv
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

import aiotrace
import aiotrace_sinks

pytestmark = pytest.mark.long

ANYIO = "4.16.0"
PACKAGES = [
    f"anyio[trio]=={ANYIO}", "blockbuster>=1.5.29", "coverage>=7", "hypothesis>=6", "psutil>=5.9", "pytest>=9.0",
    "pytest-mock>=3.14", "pytest-timeout>=2.4", "trustme>=1.0", "truststore>=0.9.1", "uvloop>=0.22.1",
    "starlette", "uvicorn",
]  # fmt: skip
ANYIO_TESTS = [
    "streams", "test_concurrency_utils.py", "test_contextmanagers.py", "test_debugging.py", "test_eventloop.py",
    "test_fileio.py", "test_from_thread.py", "test_functools.py", "test_futures.py", "test_itertools.py",
    "test_lowlevel.py", "test_pytest_plugin.py", "test_signals.py", "test_sockets.py", "test_subprocesses.py",
    "test_synchronization.py", "test_taskgroups.py", "test_tempfile.py", "test_to_process.py", "test_to_thread.py",
    "test_typedattr.py",
]  # fmt: skip
REQUESTS = 4000
CLIENTS = 16
APP = """
from starlette.applications import Starlette
from starlette.responses import JSONResponse, StreamingResponse
from starlette.routing import Route

async def item(request):
    return JSONResponse({"item": request.path_params["n"], "query": request.query_params.get("q")})

async def stream(request):
    async def parts():
        for number in range(request.path_params["n"] % 20):
            yield f"{number}\\n"
    return StreamingResponse(parts())

app = Starlette(routes=[Route("/item/{n:int}", item), Route("/stream/{n:int}", stream)])
"""


@pytest.fixture(scope="session")
def python(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A Python that has the programs; aiotrace is found where this Python finds it."""
    faulthandler.cancel_dump_traceback_later()  # what hangs is ended after two minutes; this takes what it takes
    folder = tmp_path_factory.mktemp("real") / "venv"
    venv.create(folder, with_pip=True)
    path = str(folder / "bin" / "python")
    done = subprocess.run([path, "-m", "pip", "install", "--quiet", *PACKAGES], capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"NOT RUN: the package index does not answer: {done.stderr.splitlines()[-1]}")
    return path


def environment() -> dict[str, str]:
    roots = [Path(module.__file__).parent.parent for module in (aiotrace, aiotrace_sinks)]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, dict.fromkeys(roots)))}


def words(python: str, trace: Path | None) -> list[str]:
    """The words before "-m MODULE": the same Python, recording or not."""
    return [python] if trace is None else [python, "-m", "aiotrace", "record", "-b", "64M", "-o", str(trace)]


def trace_events(trace: Path) -> int:
    with aiotrace.open_trace(trace) as opened:
        return sum(1 for _ in opened.events())


# --- anyio's tests ----------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def anyio_tests(python: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    faulthandler.cancel_dump_traceback_later()
    folder = tmp_path_factory.mktemp("anyio")
    pip = [python, "-m", "pip", "download", "--quiet", "--no-deps", "--no-binary", ":all:", "-d", folder]
    done = subprocess.run([*pip, f"anyio=={ANYIO}"], capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"NOT RUN: the package index does not answer: {done.stderr.splitlines()[-1]}")
    (archive,) = folder.glob("*.tar.gz")
    with tarfile.open(archive) as opened:
        opened.extractall(folder, filter="data")
    return folder / f"anyio-{ANYIO}"


def outcomes(python: str, folder: Path, name: str, report: Path, trace: Path | None) -> tuple[int, dict[str, str]]:
    """The exit status, and what became of each test of a file."""
    options = ["-q", "-p", "no:cacheprovider", f"--junitxml={report}"]
    command = [*words(python, trace), "-m", "pytest", *options, f"tests/{name}"]
    done = subprocess.run(command, cwd=folder, env=environment(), capture_output=True, text=True)
    assert report.exists(), done.stdout + done.stderr
    found = {}
    for case in ElementTree.parse(report).iter("testcase"):
        kinds = [child.tag for child in case if child.tag in ("failure", "error", "skipped")]
        found[f"{case.get('classname')}::{case.get('name')}"] = kinds[0] if kinds else "passed"
    return done.returncode, found


@pytest.mark.parametrize("name", ANYIO_TESTS)
def test_the_tests_of_anyio_have_the_same_outcomes(python: str, anyio_tests: Path, tmp_path: Path, name: str) -> None:
    """File by file: a test here that takes more than two minutes counts as hanging."""
    status, alone = outcomes(python, anyio_tests, name, tmp_path / "alone.xml", None)
    traced_status, traced = outcomes(python, anyio_tests, name, tmp_path / "traced.xml", tmp_path / "trace.dat")
    differences = {
        test: (alone.get(test), traced.get(test)) for test in alone | traced if alone.get(test) != traced.get(test)
    }
    counts = {kind: list(traced.values()).count(kind) for kind in sorted(set(traced.values()))}
    print(f"anyio {ANYIO} {name}: {len(alone)} tests, {counts}; {trace_events(tmp_path / 'trace.dat')} events")
    assert alone
    assert differences == {}
    assert traced_status == status


# --- a server under load ----------------------------------------------------------------------------


@contextmanager
def server(python: str, folder: Path, trace: Path | None, *options: str) -> Iterator[tuple[int, subprocess.Popen[str]]]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [*words(python, trace), "-m", "uvicorn", "app:app", "--port", str(port), *options]
    with subprocess.Popen(command, cwd=folder, env=environment(), stderr=subprocess.PIPE, text=True) as process:
        try:
            _wait_for(port)
            yield port, process
        finally:
            process.kill()


def _wait_for(port: int) -> None:
    for _ in range(600):
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
            return
        except ConnectionRefusedError:
            time.sleep(0.1)
    raise AssertionError(f"no server listens on port {port}")


def load(port: int) -> str:
    """A hash of all answers to REQUESTS requests of CLIENTS clients."""

    def client(first: int) -> list[tuple[int, int, bytes]]:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
        answers = []
        for number in range(first, REQUESTS, CLIENTS):
            connection.request("GET", f"/item/{number}?q=x" if number % 4 else f"/stream/{number}")
            response = connection.getresponse()
            answers.append((number, response.status, response.read()))
        connection.close()
        return answers

    with concurrent.futures.ThreadPoolExecutor(CLIENTS) as pool:
        answers = sorted(answer for found in pool.map(client, range(CLIENTS)) for answer in found)
    assert len(answers) == REQUESTS
    assert {status for _, status, _ in answers} == {200}
    return hashlib.sha256(repr(answers).encode()).hexdigest()


@pytest.mark.parametrize("loop", ["asyncio", "uvloop"])
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_server_under_load_answers_and_ends_as_without(
    python: str, tmp_path: Path, loop: str, number: signal.Signals
) -> None:
    (tmp_path / "app.py").write_text(APP)
    trace = tmp_path / "trace.dat"
    found = []
    for path in (None, trace):
        with server(python, tmp_path, path, "--loop", loop, "--no-access-log") as (port, process):
            answers = load(port)
            process.send_signal(number)
            _, log = process.communicate(timeout=60)
        log = re.sub(r"\d{2,}", "NUMBER", log)
        ours = [line for line in log.splitlines() if line.startswith("aiotrace record:")]
        found.append((answers, process.returncode, log.splitlines()[: -len(ours) or None]))
    alone, traced = found
    assert traced == alone
    events = trace_events(trace)
    print(f"uvicorn on {loop}: {REQUESTS} requests, {events} events, status {process.returncode}")
    assert events > REQUESTS
