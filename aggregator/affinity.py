"""Affinity between tasks, summed over clients and rounds (MAS, step 2: source row, target column).

Each report carries the sum over its probed batches and how many they were. Sums are added and divided once by all
batches, so a client that probed more batches weighs more and no expected count stands in for a counted one.
Negative values are conflict evidence and are kept.

A row's size follows its source's: a step for a loss with a large gradient is a large step, which moves every task far.
`by_self_affinity` takes that out.
"""

from __future__ import annotations

import math

import msgspec

from models.wire.messages import AffinitySums

Matrix = tuple[tuple[float, ...], ...]


class AffinityTotal(msgspec.Struct, frozen=True):
    """Sums `[source, target]` over `batches` probed batches of the rounds `rounds`."""

    tasks: tuple[str, ...]
    sums: Matrix
    batches: int = 0
    rounds: tuple[int, ...] = ()


def empty_affinity(tasks: tuple[str, ...]) -> AffinityTotal:
    """A total of no batches over `tasks`."""
    return AffinityTotal(tasks, tuple((0.0,) * len(tasks) for _ in tasks))


def add_affinity(total: AffinityTotal, sums: AffinitySums, round_index: int) -> AffinityTotal:
    """`total` with one client's sums of one round; raises ValueError naming every fault of `sums`."""
    faults = affinity_faults(sums, len(total.tasks))
    if faults:
        raise ValueError("; ".join(faults))
    if sums.batches == 0:
        return total
    added = tuple(
        tuple(old + new for old, new in zip(row, more, strict=True))
        for row, more in zip(total.sums, sums.sums, strict=True)
    )
    rounds = total.rounds if round_index in total.rounds else (*total.rounds, round_index)
    return AffinityTotal(total.tasks, added, total.batches + sums.batches, rounds)


def affinity_faults(sums: AffinitySums, tasks: int) -> list[str]:
    """What is wrong with a client's sums for `tasks` tasks; empty when nothing is."""
    shape = [len(row) for row in sums.sums]
    if shape != [tasks] * tasks:
        return [f"affinity rows have {shape} columns, expected {tasks} rows of {tasks}"]
    if not all(math.isfinite(value) for row in sums.sums for value in row):
        return ["affinity holds NaN or infinite values"]
    return []


def mean_affinity(total: AffinityTotal) -> Matrix:
    """Mean over batches `[source, target]`; ValueError if no batch was probed."""
    if total.batches == 0:
        raise ValueError("no batch was probed: lower probe_every or give the agents more training data")
    return tuple(tuple(value / total.batches for value in row) for row in total.sums)


def by_self_affinity(matrix: Matrix) -> Matrix:
    """Each row divided by the size of what its source's step does to the source itself; the diagonal becomes 1 or -1.

    To first order affinity[j, i] grows with the unit of loss j, and so does affinity[j, j]: their quotient does not, so
    that no task's row weighs more because its loss is counted in smaller units. ValueError where a task's step does
    nothing to its own loss.
    """
    idle = [str(source) for source, row in enumerate(matrix) if row[source] == 0]
    if idle:
        raise ValueError(
            f"the steps for task {', '.join(idle)} (from 0) do nothing to their own losses: nothing to divide by"
        )
    return tuple(tuple(value / abs(row[source]) for value in row) for source, row in enumerate(matrix))
