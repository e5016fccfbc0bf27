"""Affinity sums: weighted by batches, negatives kept, faults named."""

from __future__ import annotations

import math

import pytest

from aggregator.affinity import add_affinity, affinity_faults, by_self_affinity, empty_affinity, mean_affinity
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


def test_self_affinity_takes_the_size_of_a_step_out_of_its_row() -> None:
    matrix = ((0.2, -0.1), (0.03, 0.1))
    assert by_self_affinity(matrix) == ((1.0, -0.5), (pytest.approx(0.3), 1.0))
    # Counted in units a hundred times smaller, the first task's steps are a hundred times as large: nothing changes.
    scaled = ((20.0, -10.0), (0.03, 0.1))
    assert by_self_affinity(scaled) == by_self_affinity(matrix)
    # A step too large to help its own task still says by its size how far it went.
    assert by_self_affinity(((-0.2, -0.1), (0.0, 0.5))) == ((-1.0, -0.5), (0.0, 1.0))
    with pytest.raises(ValueError, match=r"task 1 .* do nothing"):
        by_self_affinity(((0.2, 0.1), (0.3, 0.0)))


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
