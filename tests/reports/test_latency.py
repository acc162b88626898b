"""`report --latency`: the buckets hold what they say."""

from __future__ import annotations

import itertools

from hypothesis import given
from hypothesis import strategies as st

from aiotrace._reports.latency import BAR, Histogram, LatencyReport
from support.reports import FIRST, feed, spawn, step, text


@given(st.lists(st.integers(0, 2**63), min_size=1, max_size=50))
def test_each_length_is_in_its_bucket_and_buckets_follow_each_other(lengths: list[int]) -> None:
    histogram = Histogram()
    for length in lengths:
        histogram.add(length)
    buckets = histogram.buckets()
    for start, end, count in buckets:
        assert count == sum(start <= length < end for length in lengths)
    assert sum(count for *_, count in buckets) == len(lengths)
    assert all(before[1] == after[0] for before, after in itertools.pairwise(buckets))
    assert buckets[0][2] and buckets[-1][2]


@given(st.lists(st.integers(0, 2**40), min_size=1, max_size=50), st.sampled_from([0.5, 0.99]))
def test_that_share_is_below_the_bound_and_less_below_its_half(lengths: list[int], share: float) -> None:
    histogram = Histogram()
    for length in lengths:
        histogram.add(length)
    bound = histogram.below(share)
    assert sum(length < bound for length in lengths) >= share * len(lengths)
    assert sum(length < bound // 2 for length in lengths) < share * len(lengths)


def test_delays_and_steps_are_counted_apart_and_the_longest_is_named() -> None:
    delay, length = feed(
        LatencyReport(),
        spawn(0, FIRST, "quick"),
        spawn(0, FIRST + 1, "slow"),
        step(100, 103, FIRST, ready=90),
        step(200, 900, FIRST + 1, ready=0, to="x (a.py:5)"),
        step(990, 1000, FIRST, ready=950, to="y (a.py:6)"),
    )
    assert (delay["histogram"], delay["count"], delay["sum_ns"], delay["longest_ns"]) == ("delay", 2, 50, 40)
    assert (delay["name"], delay["at_ns"], delay["from"], delay["to"]) == ("quick", 950, "g (a.py:2)", "y (a.py:6)")
    assert delay["buckets"][0] == {"from_ns": 8, "to_ns": 16, "count": 1}
    assert delay["buckets"][-1] == {"from_ns": 32, "to_ns": 64, "count": 1}
    assert (length["histogram"], length["count"], length["sum_ns"]) == ("step", 3, 713)
    assert (length["task"], length["at_ns"], length["from"], length["to"]) == (FIRST + 1, 200, "", "x (a.py:5)")


def test_the_picture_has_a_full_bar_for_the_fullest_bucket() -> None:
    report = LatencyReport()
    lengths = [10, 12, 15, 9, 100]
    steps = [step(n * 1000, n * 1000 + length, FIRST, ready=n * 1000) for n, length in enumerate(lengths)]
    feed(report, spawn(0, FIRST), *steps)
    lines = text(report).splitlines()
    assert f"       [8 ns, 16 ns)          4 |{'@' * BAR}|" in lines
    assert f"     [64 ns, 128 ns)          1 |{'@' * (BAR // 4):<{BAR}}|" in lines


def test_unknown_values_are_reported_as_unknown() -> None:
    report = LatencyReport()
    feed(report, spawn(0, FIRST), step(1, 2, FIRST))
    assert "not known of 1 step:" in text(report)
    assert "    none" in text(report).splitlines()
