"""R2 with the large count; AIOTRACE_SEED chooses the run, and the seed is printed."""

from __future__ import annotations

import os

import pytest

from support.cancellation import random_cancellation

pytestmark = [pytest.mark.anyio, pytest.mark.long]


async def test_a_million_cancellations_lose_and_double_nothing() -> None:
    await random_cancellation(int(os.environ.get("AIOTRACE_SEED", "1")), 1_000_000)


async def test_twenty_thousand_cancellations_of_many_seeds() -> None:
    for seed in range(10):
        await random_cancellation(seed, 2000)
