"""The exact split against hand-worked cases and brute force."""

from __future__ import annotations

import numpy as np
import pytest

from aggregator.splitting import (
    MAX_TASKS,
    best_groups,
    group_values,
    partition_score,
    partitions,
    ranked,
    split_tasks,
    task_scores,
    validate_affinity,
)


def slow_score(affinity: list[list[float]], groups: tuple[tuple[int, ...], ...]) -> float:
    """MAS step 3, word by word."""
    count, total = len(affinity), 0.0
    for group in groups:
        for task in group:
            if group == (task,):
                near = [affinity[task][o] for o in range(count) if o != task]
                near += [affinity[o][task] for o in range(count) if o != task]
            else:
                near = [affinity[o][task] for o in group if o != task]
            total += sum(near) / len(near) if near else 0.0
    return total / count


def every_partition(items: list[int]) -> list[tuple[tuple[int, ...], ...]]:
    """All partitions, by putting the first item alone or into each group of the rest."""
    if not items:
        return [()]
    first, found = items[0], []
    for rest in every_partition(items[1:]):
        found.append(((first,), *rest))
        for place in range(len(rest)):
            found.append(((first, *rest[place]), *rest[:place], *rest[place + 1 :]))
    return found


def brute_force(affinity: list[list[float]], most: int) -> tuple[tuple[int, ...], ...]:
    options = [groups for groups in every_partition(list(range(len(affinity)))) if len(groups) <= most]
    best = max(slow_score(affinity, groups) for groups in options)
    tied = [tuple(sorted(groups)) for groups in options if slow_score(affinity, groups) >= best - 1e-9]
    return min(tied, key=lambda groups: (len(groups), groups))


def test_two_tasks_by_hand() -> None:
    # Together: task 0 gets 0.2 (from 1), task 1 gets 0.6 (from 0): mean 0.4.
    # Apart: each scores the mean of both affinities, 0.4. A tie, so the fewest groups win.
    matrix = [[9.0, 0.6], [0.2, 9.0]]
    assert split_tasks(("a", "b"), matrix, 2).splits == (("a", "b"),)
    assert split_tasks(("a", "b"), matrix, 2).score == pytest.approx(0.4)
    assert task_scores(np.asarray(matrix), ((0, 1),)) == pytest.approx([0.2, 0.6])


def test_three_tasks_by_hand() -> None:
    # Sources in rows. 0 and 1 help each other; 2 harms both and is harmed.
    matrix = [[0.0, 0.8, -0.2], [0.4, 0.0, -0.4], [-0.6, -0.2, 0.0]]
    # {0,1}{2}: 0 gets 0.4, 1 gets 0.8, 2 alone (-0.2 - 0.4 - 0.6 - 0.2) / 4 = -0.35: (0.4 + 0.8 - 0.35) / 3.
    best = split_tasks(("a", "b", "c"), matrix, 2)
    assert best.splits == (("a", "b"), ("c",))
    assert best.score == pytest.approx(0.85 / 3)
    # All together: 0 gets (0.4 - 0.6) / 2, 1 gets (0.8 - 0.2) / 2, 2 gets (-0.2 - 0.4) / 2.
    assert split_tasks(("a", "b", "c"), matrix, 1).score == pytest.approx((-0.1 + 0.3 - 0.3) / 3)


def test_the_matrix_is_read_source_by_target() -> None:
    # 0 helps 1 and 1 helps 2, but nothing comes back: what counts is the column of each task.
    matrix = [[0.0, 1.0, 0.0], [0.0, 0.0, 1.0], [0.0, 0.0, 0.0]]
    scores = task_scores(np.asarray(matrix), ((0, 1, 2),))
    assert scores == pytest.approx([0.0, 0.5, 0.5])
    assert task_scores(np.asarray(matrix).T, ((0, 1, 2),)) == pytest.approx([0.5, 0.5, 0.0])


@pytest.mark.parametrize("count", range(1, 8))
def test_brute_force_agrees_on_random_matrices(count: int) -> None:
    generator = np.random.default_rng(count)
    for _ in range(6 if count < 7 else 2):
        matrix = generator.normal(size=(count, count))
        for most in range(1, count + 2):
            groups = best_groups(matrix, most)
            assert groups == brute_force(matrix.tolist(), most)
            assert partition_score(matrix, groups) == pytest.approx(slow_score(matrix.tolist(), groups))


@pytest.mark.parametrize("count", [3, 4, 5, 6])
def test_ties_go_to_the_fewest_groups_then_to_the_smallest(count: int) -> None:
    generator = np.random.default_rng(count)
    for _ in range(12):
        # Few distinct values: many partitions score the same, up to rounding.
        matrix = generator.integers(-1, 2, size=(count, count)) / 10
        for most in range(1, count + 1):
            assert best_groups(matrix, most) == brute_force(matrix.tolist(), most)


def test_a_matrix_of_equal_values_keeps_all_tasks_together() -> None:
    for value in (0.0, 0.1, -3.0):
        assert best_groups(np.full((12, 12), value), 4) == (tuple(range(12)),)


def test_equal_pairs_are_split_in_the_smallest_order() -> None:
    # Every pair is as good as any other, and worse in threes: 0 goes with 1, 2 with 3.
    matrix = np.asarray([[0.0 if i == j else 1.0 for j in range(4)] for i in range(4)])
    matrix[0, 1] = matrix[1, 0] = matrix[2, 3] = matrix[3, 2] = 2.0
    matrix[0, 2] = matrix[2, 0] = matrix[1, 3] = matrix[3, 1] = 2.0
    assert best_groups(matrix, 2) == ((0, 1), (2, 3))


def test_the_diagonal_counts_for_nothing() -> None:
    matrix = np.random.default_rng(3).normal(size=(6, 6))
    loud = matrix + np.diag(np.full(6, 1e6))
    assert best_groups(matrix, 3) == best_groups(loud, 3)
    assert np.array_equal(group_values(matrix), group_values(loud))


def test_scaling_a_matrix_does_not_change_its_split() -> None:
    matrix = np.random.default_rng(4).normal(size=(7, 7))
    assert best_groups(matrix * 1e-9, 3) == best_groups(matrix, 3) == best_groups(matrix * 1e9, 3)


def test_sixteen_tasks_beat_every_neighbouring_partition() -> None:
    matrix = np.random.default_rng(16).normal(size=(16, 16))
    groups = best_groups(matrix, 4)
    best = partition_score(matrix, groups)
    assert sorted(task for group in groups for task in group) == list(range(16))
    for task in range(16):
        for place in range(4):
            moved = [[t for t in group if t != task] for group in groups] + [[]] * (4 - len(groups))
            moved[place] = sorted([*moved[place], task])
            neighbour = tuple(tuple(group) for group in moved if group)
            assert partition_score(matrix, neighbour) <= best + 1e-12


@pytest.mark.parametrize("groups", [1, 2, 3, 5])
def test_exactly_so_many_groups_also_where_fewer_score_better(groups: int) -> None:
    tasks = tuple("abcde")
    matrix = (np.random.default_rng(3).normal(size=(5, 5)) + 1).tolist()
    taken = split_tasks(tasks, matrix, groups, exactly=True)
    tried = [
        partition_score(np.asarray(matrix), each) for each in partitions(len(tasks), len(tasks)) if len(each) == groups
    ]
    assert len(taken.splits) == groups
    assert taken.score == pytest.approx(max(tried), abs=1e-12)
    listed = ranked(tasks, matrix, groups, 100, exactly=True)
    assert listed[0] == taken
    assert len(listed) == len(tried)
    with pytest.raises(ValueError, match="2 tasks do not make 3 groups"):
        split_tasks("ab", [[0.0, 1.0], [1.0, 0.0]], 3, exactly=True)


@pytest.mark.parametrize("count, bell", [(1, 1), (4, 15), (6, 203), (9, 21147)])
def test_all_partitions_are_listed_once(count: int, bell: int) -> None:
    listed = list(partitions(count, count))
    assert len(set(listed)) == len(listed) == bell
    assert all(groups == tuple(sorted(groups)) for groups in listed)


def test_the_ranking_begins_with_the_best_and_falls() -> None:
    tasks = tuple("abcdef")
    matrix = np.random.default_rng(5).normal(size=(6, 6)).tolist()
    listed = ranked(tasks, matrix, 3, 20)
    assert listed[0] == split_tasks(tasks, matrix, 3)
    assert len(listed) == 20
    scores = [entry.score for entry in listed]
    assert scores == sorted(scores, reverse=True)
    assert all(len(entry.splits) <= 3 for entry in listed)
    assert ranked(tuple("abcdefghij"), np.zeros((10, 10)).tolist(), 2, 5) == ()


def test_the_ranking_breaks_ties_as_the_split_does() -> None:
    matrix = (np.random.default_rng(6).integers(-1, 2, size=(5, 5)) / 10).tolist()
    assert ranked(tuple("abcde"), matrix, 3, 1)[0] == split_tasks(tuple("abcde"), matrix, 3)


def test_every_fault_of_a_matrix_is_named_at_once() -> None:
    faults = validate_affinity(["a", "a", 3], [[0.0, float("nan"), 1.0], [0.0, True], "row"])
    said = "\n".join(faults)
    for part in (
        "tasks[2] is 3",
        "'a' is given 2 times",
        "affinity[0][1] is nan",
        "affinity[1] has 2 columns",
        "affinity[1][1] is True",
        "affinity[2] is not a list",
    ):
        assert part in said
    assert validate_affinity("ab", None) == ["tasks is not a list of names", "affinity is not a list of rows"]
    assert validate_affinity(["a", "b"], [[0, 1]]) == ["affinity has 1 rows, expected 2"]
    assert validate_affinity([], []) == ["no task is given"]
    assert "at most" in validate_affinity([f"t{i}" for i in range(MAX_TASKS + 1)], [])[0]
    for huge in (10**400, -1e300):
        assert "not a number up to 1e+100" in validate_affinity(["a"], [[huge]])[0]
    assert validate_affinity(["a", "b"], [[0, 1], [2.5, 0]]) == []


def test_split_tasks_refuses_what_cannot_be_split() -> None:
    with pytest.raises(ValueError, match=r"affinity has 1 rows, expected 2; max_splits is 0"):
        split_tasks(("a", "b"), [[0.0, 1.0]], 0)
