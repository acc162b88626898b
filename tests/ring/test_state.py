"""The state word of a page: what may follow what. (tests/arena/test_handover.py tries every pair in C.)"""

from __future__ import annotations

import pytest

from aiotrace._page import layout as L
from aiotrace._ring.state import transition

pytestmark = pytest.mark.pure_too


def test_a_state_changes_only_from_the_state_that_is_named() -> None:
    descriptors = memoryview(bytearray(L.DESCRIPTOR_SIZE)).cast("Q")
    assert not transition(descriptors, 0, L.FILLING, L.FULL)
    assert descriptors[L.STATE] == L.FREE
    assert transition(descriptors, 0, L.FREE, L.FILLING)
    assert descriptors[L.STATE] == L.FILLING


def test_a_change_that_no_page_makes_is_a_bug() -> None:
    with pytest.raises(AssertionError, match="free -> in flight"):
        transition(memoryview(bytearray(L.DESCRIPTOR_SIZE)).cast("Q"), 0, L.FREE, L.IN_FLIGHT)
