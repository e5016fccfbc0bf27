"""Small-sample statistics: intervals of means by Student's t, paired differences, rank correlation, Rand indices.

Everything is exact for the few seeds that a grid has; nothing here is resampled or random.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

#: Two-sided confidence of every interval of the report.
CONFIDENCE = 0.95


@dataclass(frozen=True, slots=True)
class Interval:
    """Mean of `n` values with its confidence limits; `low` and `high` are None for fewer than two values."""

    n: int
    mean: float
    low: float | None
    high: float | None

    @property
    def half(self) -> float | None:
        """Half of the interval's width."""
        return None if self.high is None else self.high - self.mean


def t_probability(t: float, degrees: int) -> float:
    """P(|T| <= t) of Student's t with a whole number of degrees of freedom (Abramowitz & Stegun 26.7.3, 26.7.4)."""
    theta = math.atan(t / math.sqrt(degrees))
    cosine, square = math.cos(theta), math.cos(theta) ** 2
    if degrees == 1:
        return 2 * theta / math.pi
    term = 1.0 if degrees % 2 == 0 else cosine
    total = term
    for step in range(2 if degrees % 2 else 1, degrees - 2, 2):
        term *= square * step / (step + 1)
        total += term
    if degrees % 2 == 0:
        return math.sin(theta) * total
    return 2 / math.pi * (theta + math.sin(theta) * total)


def t_quantile(degrees: int, confidence: float = CONFIDENCE) -> float:
    """The t whose P(|T| <= t) is `confidence`: 4.303 for two degrees of freedom at 95 %."""
    if degrees < 1 or not 0 < confidence < 1:
        raise ValueError(f"a t quantile needs a degree of freedom and a share below 1, not {degrees}, {confidence}")
    low, high = 0.0, 1.0
    while t_probability(high, degrees) < confidence:
        high *= 2
    for _ in range(80):
        middle = (low + high) / 2
        low, high = (middle, high) if t_probability(middle, degrees) < confidence else (low, middle)
    return (low + high) / 2


def interval(values: Sequence[float]) -> Interval | None:
    """Mean and 95 % interval of values taken as independent; None for no values."""
    count = len(values)
    if not count:
        return None
    mean = math.fsum(values) / count
    if count == 1:
        return Interval(1, mean, None, None)
    spread = math.sqrt(math.fsum((value - mean) ** 2 for value in values) / (count - 1))
    half = t_quantile(count - 1) * spread / math.sqrt(count)
    return Interval(count, mean, mean - half, mean + half)


def paired(first: Mapping[int, float], second: Mapping[int, float]) -> Interval | None:
    """Interval of `first - second` over the seeds that both have; None if they share none."""
    return interval([first[seed] - second[seed] for seed in sorted(first.keys() & second.keys())])


def paired_ratio(first: Mapping[int, float], second: Mapping[int, float]) -> Interval | None:
    """Interval of `first / second` over the seeds that both have; None if they share none or a divisor is zero."""
    shared = sorted(first.keys() & second.keys())
    if any(second[seed] == 0 for seed in shared):
        return None
    return interval([first[seed] / second[seed] for seed in shared])


def ranks(values: Sequence[float]) -> list[float]:
    """Ranks from 1; equal values share the mean of their places."""
    order = sorted(range(len(values)), key=lambda index: values[index])
    found = [0.0] * len(values)
    start = 0
    while start < len(order):
        end = start
        while end + 1 < len(order) and values[order[end + 1]] == values[order[start]]:
            end += 1
        for place in range(start, end + 1):
            found[order[place]] = (start + end) / 2 + 1
        start = end + 1
    return found


def spearman(first: Sequence[float], second: Sequence[float]) -> float | None:
    """Correlation of ranks; None for fewer than three pairs or where one side is all equal."""
    if len(first) != len(second):
        raise ValueError(f"a rank correlation needs pairs, not {len(first)} and {len(second)} values")
    if len(first) < 3:
        return None
    a, b = ranks(first), ranks(second)
    mean = (len(a) + 1) / 2
    across = math.fsum((x - mean) * (y - mean) for x, y in zip(a, b, strict=True))
    scale = math.fsum((x - mean) ** 2 for x in a) * math.fsum((y - mean) ** 2 for y in b)
    return across / math.sqrt(scale) if scale else None


Partition = Sequence[Sequence[Hashable]]


def rand_index(first: Partition, second: Partition) -> float:
    """Share of the pairs of items that both partitions treat alike (together in both, or apart in both)."""
    one, two = _labels(first), _labels(second)
    _same_items(one, two)
    pairs = list(combinations(sorted(one, key=repr), 2))
    if not pairs:
        return 1.0
    return sum((one[a] == one[b]) == (two[a] == two[b]) for a, b in pairs) / len(pairs)


def adjusted_rand(first: Partition, second: Partition) -> float:
    """Rand index corrected for chance (Hubert & Arabie, 1985): 1 for the same partition, 0 on average by chance.

    Where chance alone cannot differ (both one group, or both all alone) equal partitions have 1.
    """
    one, two = _labels(first), _labels(second)
    _same_items(one, two)
    both = Counter((one[item], two[item]) for item in one)
    together = sum(math.comb(count, 2) for count in both.values())
    in_one = sum(math.comb(count, 2) for count in Counter(one.values()).values())
    in_two = sum(math.comb(count, 2) for count in Counter(two.values()).values())
    pairs = math.comb(len(one), 2)
    expected = in_one * in_two / pairs if pairs else 0.0
    largest = (in_one + in_two) / 2
    return 1.0 if largest == expected else (together - expected) / (largest - expected)


def same_partition(first: Partition, second: Partition) -> bool:
    """Whether the groups are the same, in whatever order."""
    return {frozenset(group) for group in first} == {frozenset(group) for group in second}


def _labels(groups: Partition) -> dict[Hashable, int]:
    labels = {item: index for index, group in enumerate(groups) for item in group}
    if sum(len(group) for group in groups) != len(labels):
        raise ValueError("an item is in two groups: overlapping groups have no Rand index")
    return labels


def _same_items(one: Mapping[Hashable, int], two: Mapping[Hashable, int]) -> None:
    if one.keys() != two.keys():
        raise ValueError("the two partitions are not of the same items")
