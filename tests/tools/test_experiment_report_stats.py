"""Intervals, rank correlation and Rand indices against tables and cases worked by hand."""

from __future__ import annotations

import math

import pytest

from tools.experiment.report.stats import (
    adjusted_rand,
    interval,
    paired,
    paired_ratio,
    rand_index,
    ranks,
    same_partition,
    spearman,
    t_probability,
    t_quantile,
)


@pytest.mark.parametrize(
    "degrees, expected", [(1, 12.706), (2, 4.303), (3, 3.182), (4, 2.776), (5, 2.571), (9, 2.262), (30, 2.042)]
)
def test_quantiles_are_those_of_the_printed_tables(degrees: int, expected: float) -> None:
    assert t_quantile(degrees) == pytest.approx(expected, abs=5e-4)


def test_two_degrees_of_freedom_have_a_closed_form() -> None:
    # P(|T| <= t) = t / sqrt(2 + t^2) for two degrees of freedom.
    assert t_probability(1.5, 2) == pytest.approx(1.5 / math.sqrt(2 + 1.5**2), abs=1e-12)
    assert t_probability(1.0, 1) == pytest.approx(0.5, abs=1e-12)


def test_a_quantile_needs_a_degree_of_freedom() -> None:
    with pytest.raises(ValueError, match="degree of freedom"):
        t_quantile(0)


def test_the_interval_of_three_values_by_hand() -> None:
    # Mean 2, s = 1, half width 4.3027 * 1 / sqrt(3) = 2.4841.
    found = interval([1.0, 2.0, 3.0])
    assert found is not None
    assert found.n == 3
    assert found.mean == 2.0
    assert found.half == pytest.approx(2.4841, abs=1e-4)
    assert found.low == pytest.approx(-0.4841, abs=1e-4)


def test_one_value_has_no_interval_and_none_has_no_mean() -> None:
    found = interval([3.0])
    assert found is not None
    assert (found.mean, found.low, found.high, found.half) == (3.0, None, None, None)
    assert interval([]) is None


def test_pairs_are_made_within_seeds() -> None:
    first, second = {0: 5.0, 1: 7.0, 9: 100.0}, {0: 4.0, 1: 5.0, 2: -50.0}
    found = paired(first, second)
    assert found is not None
    assert (found.n, found.mean) == (2, 1.5)
    ratio = paired_ratio(first, second)
    assert ratio is not None
    assert ratio.mean == pytest.approx((5 / 4 + 7 / 5) / 2)
    assert paired(first, {3: 1.0}) is None
    assert paired_ratio(first, {0: 0.0}) is None


def test_ranks_share_ties() -> None:
    assert ranks([10.0, 30.0, 20.0, 20.0]) == [1.0, 4.0, 2.5, 2.5]


def test_spearman_by_hand() -> None:
    # Differences of ranks 1, -1, 0, 0: 1 - 6 * 2 / (4 * 15) = 0.8.
    assert spearman([1, 2, 3, 4], [2, 1, 3, 4]) == pytest.approx(0.8)
    assert spearman([1, 2, 3], [9, 4, 1]) == pytest.approx(-1.0)
    assert spearman([1, 2], [1, 2]) is None
    assert spearman([1, 2, 3], [5, 5, 5]) is None
    with pytest.raises(ValueError, match="pairs"):
        spearman([1, 2, 3], [1, 2])


def test_rand_indices_by_hand() -> None:
    # abc|de against ab|cde: of ten pairs ab, de are together in both and ad, ae, bd, be apart in both: 6 of 10.
    one, two = [["a", "b", "c"], ["d", "e"]], [["a", "b"], ["c", "d", "e"]]
    assert rand_index(one, two) == pytest.approx(0.6)
    # Together in both 2; in each 4 of 10; expected 1.6; (2 - 1.6) / (4 - 1.6) = 1/6.
    assert adjusted_rand(one, two) == pytest.approx(1 / 6)


def test_rand_indices_of_like_and_unlike_partitions() -> None:
    pairs = [["a", "b"], ["c", "d"]]
    assert adjusted_rand(pairs, [["d", "c"], ["b", "a"]]) == 1.0
    # ac|bd shares no pair with ab|cd: (0 - 4/6) / (2 - 4/6) = -0.5.
    assert adjusted_rand(pairs, [["a", "c"], ["b", "d"]]) == pytest.approx(-0.5)
    assert adjusted_rand([["a"], ["b"]], [["a"], ["b"]]) == 1.0
    assert rand_index([["a"]], [["a"]]) == 1.0
    assert same_partition(pairs, [["d", "c"], ["b", "a"]])
    assert not same_partition(pairs, [["a", "c"], ["b", "d"]])


def test_partitions_of_other_items_or_with_overlaps_are_refused() -> None:
    with pytest.raises(ValueError, match="same items"):
        rand_index([["a"]], [["b"]])
    with pytest.raises(ValueError, match="two groups"):
        adjusted_rand([["a", "b"], ["b"]], [["a", "b"]])
