"""The clock that extrapolates CLOCK_MONOTONIC from the processor's time stamp counter."""

from __future__ import annotations

import time

import pytest

from aiotrace._base import clock
from aiotrace._base.backend import c_module

pytestmark = [
    pytest.mark.skipif(
        c_module is None or not c_module.tsc_calibrate(clock.TSC_CALIBRATION), reason="NOT RUN: no C or no TSC"
    ),
]

STRAYED = 2000
"""Nanoseconds: the error of a reading is some 50, and a processor may be lent to others between two of them."""


def test_the_counter_follows_the_monotonic_clock_over_several_anchors() -> None:
    assert c_module is not None
    cursor = c_module.Cursor(clock.TscClock())
    page = memoryview(bytearray(1 << 16))
    cursor.enter(page)
    end, last, readings = time.monotonic_ns() + 60_000_000, 0, 0
    while (before := time.monotonic_ns()) < end:
        if not cursor.put(b"12345678"):
            cursor.enter(page)
            continue
        _, now, _ = cursor.state()
        assert last <= now, "it never goes back"
        assert before - STRAYED <= now <= time.monotonic_ns() + STRAYED
        last, readings = now, readings + 1
    assert readings > 100
