"""Affinity sums: weighted by batches, negatives kept, faults named."""

from __future__ import annotations

import math

import pytest

from aggregator.affinity import add_affinity, affinity_faults, empty_affinity, mean_affinity
from models.wire.messages import AffinitySums


def test_batches_weigh_and_negatives_stay() -> None:
    total = empty_affinity(("a", "b"))
    total = add_affinity(total, AffinitySums(1, ((0.0, -0.5), (0.3, 0.0))), 0)
    total = add_affinity(total, AffinitySums(3, ((0.0, -0.3), (-0.9, 0.0))), 0)
    total = add_affinity(total, AffinitySums(4, ((0.8, 0.0), (0.2, 0.0))), 1)
    # By hand: (-0.5 - 0.3 + 0) / 8 and (0.3 - 0.9 + 0.2) / 8; not the mean of the clients' means.
    assert mean_affinity(total)[0] == pytest.approx((0.1, -0.1))
    assert mean_affinity(total)[1] == pytest.approx((-0.05, 0.0))
    assert (total.batches, total.rounds) == (8, (0, 1))


def test_a_client_without_batches_adds_nothing() -> None:
    total = empty_affinity(("a", "b"))
    assert add_affinity(total, AffinitySums(0, ((0.0, 0.0), (0.0, 0.0))), 3) == total


def test_no_batches_are_no_zeros() -> None:
    with pytest.raises(ValueError, match="no batch was probed"):
        mean_affinity(empty_affinity(("a",)))


@pytest.mark.parametrize(
    "sums, part",
    [
        (((1.0,),), "expected 2 rows of 2"),
        (((1.0, 2.0), (1.0,)), r"\[2, 1\] columns"),
        (((1.0, math.nan), (1.0, 1.0)), "NaN"),
        (((1.0, math.inf), (1.0, 1.0)), "infinite"),
    ],
)
def test_faults(sums: tuple[tuple[float, ...], ...], part: str) -> None:
    assert len(affinity_faults(AffinitySums(1, sums), 2)) == 1
    with pytest.raises(ValueError, match=part):
        add_affinity(empty_affinity(("a", "b")), AffinitySums(1, sums), 0)
