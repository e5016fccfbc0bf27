"""Fault 10 of the research code released for MAS: a search through every partition, seven times longer by each task."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import numpy as np
import pytest

from aggregator import splitting
from aggregator.splitting import Floats, Groups, partition_score, partitions, split_tasks

Search = Callable[[Floats, int], tuple[Groups, int]]


def planted(count: int, most: int) -> tuple[Floats, Groups]:
    """Tasks that help those of their own group alone, and one pair apart that would be the best of all pairs."""
    order = np.random.default_rng(count).permutation(count)
    groups = [sorted(order[place::most].tolist()) for place in range(most)]
    matrix = np.full((count, count), -0.5)
    for group in groups:
        matrix[np.ix_(group, group)] = 1.0
    here, there = groups[0][0], groups[1][0]
    matrix[here, there] = matrix[there, here] = 1.2
    return matrix, tuple(sorted(map(tuple, groups)))


def check_exact_in_few_steps(search: Search, count: int, most: int) -> None:
    """The planted groups, with no more additions than the subset programme needs, k 3^n."""
    matrix, groups = planted(count, most)
    found, additions = search(matrix, most)
    assert found == groups
    assert 2**count < additions <= most * 3**count


def counted_search(monkeypatch: pytest.MonkeyPatch) -> Search:
    """Ours, with every candidate that it weighs counted, and every whole partition that it would look at."""
    additions = 0
    subsets, listed = splitting._subsets_with_lowest, splitting.partitions

    def counting_subsets(masks: splitting.Masks, size: int) -> splitting.Masks:
        nonlocal additions
        found = subsets(masks, size)
        additions += found.size
        return found

    def counting_partitions(count: int, most: int) -> Iterable[Groups]:
        nonlocal additions
        for groups in listed(count, most):
            additions += count
            assert additions <= most * 3**count
            yield groups

    def search(matrix: Floats, most: int) -> tuple[Groups, int]:
        nonlocal additions
        count = len(matrix)
        additions = count * 2**count  # each group's own value
        names = [str(index) for index in range(count)]
        best = split_tasks(names, matrix.tolist(), most)
        return tuple(sorted(tuple(map(int, group)) for group in best.splits)), additions

    monkeypatch.setattr(splitting, "_subsets_with_lowest", counting_subsets)
    monkeypatch.setattr(splitting, "partitions", counting_partitions)
    return search


def every_partition(matrix: Floats, most: int) -> tuple[Groups, int]:
    looked_at = list(partitions(len(matrix), most))
    best = max(looked_at, key=lambda groups: partition_score(matrix, groups))
    return tuple(sorted(best)), len(looked_at) * len(matrix)


def best_pairs_first(matrix: Floats, most: int) -> tuple[Groups, int]:
    groups: list[tuple[int, ...]] = [(task,) for task in range(len(matrix))]
    while len(groups) > most:
        pairs = [(a, b) for a in groups for b in groups if a < b]
        a, b = max(pairs, key=lambda pair: np.mean(matrix[np.ix_(*pair)]))
        groups = [each for each in groups if each not in (a, b)] + [tuple(sorted(a + b))]
    return tuple(sorted(groups)), 2 ** len(matrix) + 1


def test_fault_10_the_split_is_exact_at_sixteen_tasks_in_few_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    search = counted_search(monkeypatch)
    check_exact_in_few_steps(search, 9, 4)  # a search that is too long ends here
    check_exact_in_few_steps(search, 16, 4)
    for twin in (every_partition, best_pairs_first):
        with pytest.raises(AssertionError):
            check_exact_in_few_steps(twin, 9, 4)
    assert every_partition(planted(9, 4)[0], 4)[0] == planted(9, 4)[1], "exact, but in too many steps"
