"""The state word of a page: who owns the page, and how that may change.

              take               seal              swap
    FREE -------------> FILLING -------> FULL ------------> IN_FLIGHT
     ^  ^                |   ^            | |                   |
     |  +- nothing on it +   +- overrun --+ |                   |
     |                                      |                   |
     +--------------------------------------+- close -----------+- give back

`transition` is the only Python code that changes a state word. It calls the C implementation if that is there; other C
code changes state words by the same function (`_csrc/ring/page_state.h`, whose table is compared with this one by
tests/arena/test_handover.py).
"""

from __future__ import annotations

from typing import Final

from .._base.backend import c_module
from .._page import layout as L

TRANSITIONS: Final = frozenset(
    {
        (L.FREE, L.FILLING),  # take: a writer gets an empty page
        (L.FILLING, L.FULL),  # seal: into the ring
        (L.FILLING, L.FREE),  # an empty page goes home at close, or when its thread ends
        (L.FULL, L.IN_FLIGHT),  # swap: the reader offers it to the sinks
        (L.FULL, L.FILLING),  # overrun: the oldest full page is overwritten
        (L.FULL, L.FREE),  # close: what no sink will have any more
        (L.IN_FLIGHT, L.FREE),  # give back: the last holder acknowledged or gave up
    }
)


def transition(descriptors: memoryview, page: int, old: int, new: int) -> bool:
    """Change the state of a page from `old` to `new`.

    With the C module this is one atomic step, also for another process that has mapped the arena (see
    `_arena/handover.py`).

    Args:
        descriptors: The arena's descriptors as u64 words (`memoryview.cast("Q")`).
        page: Index of the page.

    Returns:
        False, without effect, if the page is not in state `old`.
    """
    if c_module is not None:
        return c_module.page_transition(descriptors, page, old, new)  # type: ignore[no-any-return]  # C has no types
    assert (old, new) in TRANSITIONS, f"{L.STATE_NAMES[old]} -> {L.STATE_NAMES[new]}"
    word = page * L.DESCRIPTOR_WORDS + L.STATE
    if descriptors[word] != old:
        return False
    descriptors[word] = new
    return True
