"""Affinity between tasks, summed over clients and rounds (MAS, step 2: source row, target column).

Each report carries the sum over its probed batches and how many they were. Sums are added and divided once by all
batches, so a client that probed more batches weighs more and no expected count stands in for a counted one.
Negative values are conflict evidence and are kept.
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
