"""The best groups that may overlap: every task is served by one of at most k groups, which may hold others beside.

`scores[group, task]` says how well a group serves each of its members (TAG, HOA). A set T of tasks is served best by
the superset S of T with the largest sum of T's scores; the best partition of all tasks into such sets T is found as for
disjoint groups. Exact, in O(3^n) for the supersets and O(k 3^n) for the partition.

Ties go to the fewest groups, then to the smallest groups.
"""

from __future__ import annotations

import numpy as np

from aggregator.splitting import TIE, Floats, Groups, best_partition

#: Supersets of every set are looked at: three times as many with each task.
MAX_COVERED_TASKS = 12
#: Groups and the tasks each serves, as task positions.
Cover = list[tuple[tuple[int, ...], tuple[int, ...]]]


def best_cover(scores: Floats, max_groups: int) -> Cover:
    """At most `max_groups` groups and what they serve; the served sets are a partition of all tasks.

    `scores` is `[2**n, n]` over bit sets of tasks, finite for members of a group; others are not read.
    """
    count = scores.shape[1]
    members = (np.arange(2**count)[:, None] >> np.arange(count)) & 1 == 1
    own = np.where(members, scores, 0.0)
    tie = TIE * count * float(np.max(np.abs(own), initial=0.0))
    # Groups by size, then by number, so that the first of the best is the smallest.
    by_size = np.lexsort((np.arange(2**count), members.sum(axis=1)))
    values, groups = np.zeros(2**count), np.zeros(2**count, np.int64)
    for served in range(1, 2**count):
        supersets = by_size[by_size & served == served]
        sums = own[supersets][:, members[served]].sum(axis=1)
        values[served] = sums.max()
        groups[served] = supersets[int(np.argmax(sums >= values[served] - tie))]
    found: Groups = best_partition(values, max_groups, tie)
    masks = [sum(1 << task for task in served) for served in found]
    return [
        (tuple(int(task) for task in np.flatnonzero(members[groups[mask]])), served)
        for mask, served in zip(masks, found, strict=True)
    ]


def mean_scores(pairs: Floats, alone: Floats) -> Floats:
    """`[2**n, n]`: a member's score in a group is the mean of `pairs[other, member]` over the others.

    `pairs` is `[source, target]`; a task in a group of its own scores `alone[task]`.
    """
    count = len(alone)
    clean = np.where(np.eye(count, dtype=bool), 0.0, pairs)
    members = ((np.arange(2**count)[:, None] >> np.arange(count)) & 1).astype(np.float64)
    scores: Floats = (members @ clean) / np.maximum(members.sum(axis=1) - 1, 1)[:, None]
    for task in range(count):
        scores[1 << task, task] = alone[task]
    return scores


def cover_score(scores: Floats, cover: Cover) -> float:
    """Mean over all tasks of the score that each has in the group that serves it."""
    masks = [(sum(1 << task for task in group), served) for group, served in cover]
    return float(np.mean([scores[mask, task] for mask, served in masks for task in served]))
