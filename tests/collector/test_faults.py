"""The collector under faults, at small counts: docs/measurements/reliability.md has the large ones.

Each test ends with the oracle: what a producer was told is safe is there, once, and what is not there is counted.
"""

from __future__ import annotations

import random
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from support import faults
from support.faults import Cutter, Listener, Scene, Verdict


@pytest.fixture
def scene(tmp_path: Path) -> Iterator[Scene]:
    scene = Scene(tmp_path, Listener(f"unix:{tmp_path / 'socket'}", tmp_path / "traces"))
    try:
        yield scene
    finally:
        scene.close()


@pytest.fixture
def cutter(tmp_path: Path, scene: Scene) -> Iterator[Cutter]:
    cutter = Cutter(str(tmp_path / "cut"), scene.listener.address, random.Random(1), most=1 << 15)
    yield cutter
    cutter.close()


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """What the traces lie on: 8 MiB."""
    folder = tmp_path / "traces"
    folder.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", folder], check=True)
    yield folder
    subprocess.run(["umount", "-l", folder], check=True)


def assert_good(verdict: Verdict) -> None:
    assert verdict.is_good, verdict
    assert verdict.pages
    assert verdict.memory_kib < 8 << 10, "KiB beyond the pool"


def test_repeatedly_killed_collector_neither_loses_nor_duplicates_events(scene: Scene) -> None:
    """R5."""
    scene.listener.start()
    scene.produce(1)
    scene.produce(1, waits=False, backend="trio")
    faults.kill_collector(scene, random.Random(5), kills=2, pages=100)
    verdict = scene.finish()
    assert_good(verdict)
    assert verdict.pages >= 50
    assert verdict.lost, "the one that does not wait ran out of room"


@pytest.mark.root
def test_a_full_disk_under_the_collector_loses_nothing(small_disk: Path, scene: Scene) -> None:
    """R8."""
    scene.listener.start()
    scene.produce(2, pause=0.02)
    faults.fill_disk(scene, random.Random(8), times=2, pages=100)
    assert_good(scene.finish())


def test_a_disk_that_fails_under_the_collector_loses_nothing(fiu_run: str, scene: Scene) -> None:
    """R9."""
    faults.make_faulty(scene.listener, fiu_run)
    scene.listener.start()
    scene.produce(2)
    scene.wait_for_pages(100)
    for told in ("an fsync failed", "nothing is acknowledged until"):  # which call fails is chance: it comes
        faults.wait_for(lambda told=told: told in scene.listener.errors(), scene.listener.errors)  # type: ignore[misc]
    assert_good(scene.finish())


def test_connections_that_are_reset_at_any_byte_lose_and_double_nothing(scene: Scene, cutter: Cutter) -> None:
    """R10."""
    scene.listener.start()
    scene.produce(2, cutter.address)
    faults.cut_connections(scene, cutter, 12)
    verdict = scene.finish()
    assert_good(verdict)
    assert sum(producer.ledger["connections"] for producer in scene.producers) > 2


def test_a_stopped_collector_is_noticed_and_nothing_is_let_go(scene: Scene) -> None:
    """R11."""
    scene.listener.start()
    scene.produce(2, heartbeat=1.0)
    faults.stop_collector(scene, random.Random(11), 1, heartbeat=1.0)
    verdict = scene.finish()
    assert_good(verdict)
    assert all(producer.ledger["connections"] > 1 for producer in scene.producers), "after two heartbeats they left"


@pytest.mark.root
def test_a_cable_that_is_pulled_out_is_noticed_and_nothing_is_let_go(tmp_path: Path) -> None:
    """R11: no byte comes through, and no end of a connection either. With TLS and a token, as between two machines."""
    with faults.between_machines(tmp_path) as (scene, namespaces):
        scene.listener.start()
        scene.produce(1, heartbeat=1.0)
        faults.pull_cable(scene, namespaces, random.Random(11), 1, heartbeat=1.0)
        verdict = scene.finish()
    assert_good(verdict)
    assert scene.producers[0].ledger["connections"] > 1


def test_slow_collector_delays_only_itself(tmp_path: Path, scene: Scene, cutter: Cutter) -> None:
    """R12: beside it a file gets everything; what the collector missed is counted."""
    scene.listener.start()
    cutter.wanted, cutter.bytes_a_second = 0, 40_000.0
    scene.produce(1, cutter.address, on_full="skip", file=str(tmp_path / "file.dat"), waits=True)
    scene.wait_for_pages(10)
    cutter.bytes_a_second = None
    verdict = scene.finish()
    assert_good(verdict)
    ledger = scene.producers[0].ledger
    assert ledger["missed"], "the slow one"
    assert faults.numbers_in(tmp_path / "file.dat") == list(range(ledger["calls"])), "the fast one"


def test_all_faults_at_random(scene: Scene, cutter: Cutter) -> None:
    """R21, by seed."""
    scene.listener.start()
    cutter.wanted = 0
    scene.produce(1, cutter.address)
    scene.produce(1, cutter.address, waits=False, page_size=8192)
    faults.at_random(scene, cutter, random.Random(21), 3, disk=False)
    assert_good(scene.finish())
