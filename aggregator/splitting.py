"""The best split of tasks into groups, exactly (step 3 of MAS; Zhuang et al., ICCV 2023).

score(i) is the mean of affinity[j, i] over the other members j of i's group; a task alone scores the mean of its
2(n-1) affinities, those it gives and those it receives. A partition's score is the mean of score(i) over all n tasks.
The best partition into at most k groups is found by dynamic programming over subsets in O(k 3^n) steps, all subsets
of one size at a time in numpy.

Ties (scores closer than `TIE` times the largest affinity) go to the fewest groups, then to the partition that is
lexicographically smallest when groups are written as ascending task positions and ordered by their first task.
Sums are elementwise and in a fixed order, so a matrix has the same split on every machine.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import numpy as np
import numpy.typing as npt

from aggregator.schemes.base import Grouping

Floats = npt.NDArray[np.float64]
Masks = npt.NDArray[np.int64]
Groups = tuple[tuple[int, ...], ...]

#: Work triples with each task; at 20 a split still takes well under a minute.
MAX_TASKS = 20
#: Larger values are a mistake somewhere, and their sums would not be finite.
LARGEST = 1e100
#: Listing every partition is left to small cases: 9 tasks have 21147.
MAX_RANKED_TASKS = 9
TIE = 1e-12
#: Entries of one block of the dynamic programme: 8 MiB of float64.
_BLOCK = 2**20


def validate_affinity(tasks: object, affinity: object) -> list[str]:
    """Everything that is wrong with a list of task names and its matrix `[source][target]`; empty when nothing is.

    The diagonal must be numbers too, though nothing reads it.
    """
    faults = _task_faults(tasks)
    if not isinstance(affinity, (list, tuple)):
        return [*faults, "affinity is not a list of rows"]
    size = len(tasks) if isinstance(tasks, (list, tuple)) else len(affinity)
    if len(affinity) != size:
        faults.append(f"affinity has {len(affinity)} rows, expected {size}")
    for source, row in enumerate(affinity):
        if not isinstance(row, (list, tuple)):
            faults.append(f"affinity[{source}] is not a list")
            continue
        if len(row) != size:
            faults.append(f"affinity[{source}] has {len(row)} columns, expected {size}")
        for target, value in enumerate(row):
            if isinstance(value, bool) or not isinstance(value, (int, float)):
                faults.append(f"affinity[{source}][{target}] is {value!r}, not a number")
            elif not abs(value) <= LARGEST:
                faults.append(f"affinity[{source}][{target}] is {value!s:.40}, not a number up to {LARGEST:g}")
    return faults


def _task_faults(tasks: object) -> list[str]:
    if not isinstance(tasks, (list, tuple)):
        return ["tasks is not a list of names"]
    faults = [f"tasks[{index}] is {name!r}, not a name" for index, name in enumerate(tasks) if not _is_name(name)]
    names = [name for name in tasks if _is_name(name)]
    repeated = [name for name in dict.fromkeys(names) if names.count(name) > 1]
    faults += [f"task {name!r} is given {names.count(name)} times" for name in repeated]
    if not tasks:
        faults.append("no task is given")
    if len(tasks) > MAX_TASKS:
        faults.append(f"{len(tasks)} tasks are given; at most {MAX_TASKS} can be split exactly")
    return faults


def _is_name(value: object) -> bool:
    return isinstance(value, str) and bool(value.strip())


def split_tasks(
    tasks: Sequence[str], affinity: Sequence[Sequence[float]], max_splits: int, *, exactly: bool = False
) -> Grouping:
    """The best partition of `tasks` into at most (or `exactly`) `max_splits` groups, and its score.

    `affinity[source][target]`; raises ValueError naming every fault at once.
    """
    faults = validate_affinity(list(tasks), affinity)
    if max_splits < 1:
        faults.append(f"max_splits is {max_splits}, must be at least 1")
    if exactly and max_splits > len(tasks):
        faults.append(f"{len(tasks)} tasks do not make {max_splits} groups")
    if faults:
        raise ValueError("; ".join(faults))
    matrix = np.asarray(affinity, np.float64)
    groups = best_groups(matrix, max_splits, exactly=exactly)
    return _named(tasks, groups, partition_score(matrix, groups))


def ranked(
    tasks: Sequence[str],
    affinity: Sequence[Sequence[float]],
    max_splits: int,
    limit: int,
    *,
    exactly: bool = False,
) -> tuple[Grouping, ...]:
    """The `limit` best partitions, best first, ties as in `split_tasks`; empty for more than `MAX_RANKED_TASKS`."""
    count = len(tasks)
    if count > MAX_RANKED_TASKS:
        return ()
    matrix = np.asarray(affinity, np.float64)
    values = group_values(matrix)
    tie = _tie(matrix)
    fewest = max_splits if exactly else 1
    allowed = (groups for groups in partitions(count, max_splits) if len(groups) >= fewest)
    scored = sorted(((_total(values, groups), groups) for groups in allowed), reverse=True)
    places: list[tuple[int, int, Groups]] = []
    place, before = 0, math.inf
    for total, groups in scored:
        # Neighbours within a tie share a place, so that the rule and not the rounding orders them.
        place += total < before - tie
        before = total
        places.append((place, len(groups), groups))
    return tuple(_named(tasks, groups, partition_score(matrix, groups)) for _, _, groups in sorted(places)[:limit])


def _named(tasks: Sequence[str], groups: Groups, score: float) -> Grouping:
    return Grouping(tuple(tuple(tasks[index] for index in group) for group in groups), score)


def _total(values: Floats, groups: Groups) -> float:
    return math.fsum(float(values[sum(1 << index for index in group)]) for group in groups)


def task_scores(affinity: Floats, groups: Groups) -> list[float]:
    """score(i) of every task under a partition, by the definition; `affinity` is `[source, target]`."""
    count = len(affinity)
    scores = [0.0] * count
    for group in groups:
        for task in group:
            if len(group) > 1:
                scores[task] = math.fsum(affinity[other, task] for other in group if other != task) / (len(group) - 1)
            elif count > 1:
                others = [other for other in range(count) if other != task]
                both = [affinity[other, task] for other in others] + [affinity[task, other] for other in others]
                scores[task] = math.fsum(both) / (2 * (count - 1))
    return scores


def partition_score(affinity: Floats, groups: Groups) -> float:
    """Mean over tasks of score(i), by the definition."""
    return math.fsum(task_scores(affinity, groups)) / len(affinity)


def partitions(count: int, most: int) -> Iterator[Groups]:
    """Every partition of `0 .. count-1` into at most `most` groups, groups ordered by their first member."""
    labels = [0] * count
    while True:
        groups: list[list[int]] = [[] for _ in range(max(labels) + 1)]
        for index, label in enumerate(labels):
            groups[label].append(index)
        yield tuple(tuple(group) for group in groups)
        index = count - 1
        while index > 0 and labels[index] > min(max(labels[:index]), most - 2):
            index -= 1
        if index == 0:
            return
        labels[index] += 1
        labels[index + 1 :] = [0] * (count - index - 1)


def group_values(affinity: Floats) -> Floats:
    """Sum over its members of score(i) for every group, as `[mask]` over bit sets of tasks; 0 for the empty set."""
    count = len(affinity)
    clean = affinity.copy()
    np.fill_diagonal(clean, 0.0)
    received = np.zeros((1, count))
    for source in range(count):
        received = np.concatenate([received, received + clean[source]])
    members = (np.arange(2**count)[:, None] >> np.arange(count)) & 1
    values = np.zeros(2**count)
    for target in range(count):
        values += received[:, target] * members[:, target]
    sizes = np.zeros(2**count, np.int64)
    for task in range(count):
        sizes += members[:, task]
    values /= np.maximum(sizes - 1, 1)
    for task in range(count):
        both = math.fsum(clean[:, task]) + math.fsum(clean[task])
        values[1 << task] = both / (2 * (count - 1)) if count > 1 else 0.0
    return values


def _tie(affinity: Floats) -> float:
    off = affinity[~np.eye(len(affinity), dtype=bool)]
    return TIE * len(affinity) * float(np.max(np.abs(off), initial=0.0))


def best_groups(affinity: Floats, max_splits: int, *, exactly: bool = False) -> Groups:
    """Task positions of the best partition; `affinity` is `[source, target]`, finite."""
    return best_partition(group_values(affinity), max_splits, _tie(affinity), exactly=exactly)


def best_partition(values: Floats, max_groups: int, tie: float, *, exactly: bool = False) -> Groups:
    """The partition of all tasks into at most (or `exactly`) `max_groups` groups with the largest sum of `values`.

    `values[mask]` is a group's, over bit sets of tasks.

    Sums closer than `tie` are ties: the fewest groups, then the lexicographically smallest.
    """
    count = len(values).bit_length() - 1
    layers = min(max_groups, count)
    best = _best_by_layers(values, count, layers)
    fewest = layers if exactly else 1
    totals = {layer: _best_whole(values, best, layer) for layer in range(fewest, layers + 1)}
    target = max(totals.values()) - tie
    groups_wanted = next(layer for layer, total in totals.items() if total >= target)
    return _trace(values, best, count, groups_wanted, target)


def _best_by_layers(values: Floats, count: int, layers: int) -> list[Floats]:
    """`best[j][mask]`: the largest sum of values over partitions of `mask` into exactly j+1 groups.

    For masks without task 0 only, shifted by one bit: task 0 is always in the group taken first.
    """
    rest = values[::2]
    best = [rest.copy()]
    best[0][0] = -np.inf
    masks_by_size = _masks_by_size(count - 1)
    for layer in range(1, layers - 1):
        before, now = best[-1], np.full(2 ** (count - 1), -np.inf)
        for size in range(layer + 1, count):
            masks = masks_by_size[size]
            step = max(1, _BLOCK >> (size - 1))
            for start in range(0, len(masks), step):
                block = masks[start : start + step]
                first = _subsets_with_lowest(block, size)
                now[block] = (rest[first] + before[block[:, None] ^ first]).max(axis=1)
        best.append(now)
    return best


def _masks_by_size(bits: int) -> list[Masks]:
    masks = np.arange(2**bits)
    sizes = np.zeros(2**bits, np.int64)
    for bit in range(bits):
        sizes += (masks >> bit) & 1
    return [masks[sizes == size] for size in range(bits + 1)]


def _subsets_with_lowest(masks: Masks, size: int) -> Masks:
    """All proper and improper subsets that hold the lowest bit, as `[mask, 2**(size-1)]`; `size` bits in each mask."""
    left = masks.copy()
    subsets: Masks = (left & -left)[:, None]
    left &= left - 1
    for _ in range(size - 1):
        subsets = np.concatenate([subsets, subsets + (left & -left)[:, None]], axis=1)
        left &= left - 1
    return subsets


def _best_whole(values: Floats, best: list[Floats], groups: int) -> float:
    """The largest sum over partitions of all tasks into exactly `groups` groups."""
    if groups == 1:
        return float(values[-1])
    others = np.arange(len(values) // 2)
    return float((values[1::2] + best[groups - 2][len(others) - 1 - others]).max())


def _trace(values: Floats, best: list[Floats], count: int, groups: int, target: float) -> Groups:
    """The lexicographically smallest partition into `groups` groups whose sum reaches `target`."""
    left, taken, found = (1 << count) - 1, 0.0, []
    for remaining in range(groups - 1, -1, -1):
        if remaining == 0:
            found.append(_members(left))
            break
        lowest = left & -left
        first = _subsets_with_lowest(np.asarray([left]), left.bit_count())[0]
        after = left ^ first
        reached = taken + values[first] + best[remaining - 1][after >> 1]
        good = [int(mask) for mask in first[reached >= target]]
        group = min(good, key=_members)
        assert group & lowest
        found.append(_members(group))
        taken += float(values[group])
        left ^= group
    return tuple(found)


def _members(mask: int) -> tuple[int, ...]:
    return tuple(index for index in range(mask.bit_length()) if mask >> index & 1)
