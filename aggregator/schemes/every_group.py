"""Every proper group of the tasks continued from the merged weights, so that all partitions can be ranked afterwards.

A partition's loss is the sum of its groups' losses, and each group is trained once. Nothing is served. The decision is
the one that MAS would take, for its place among the others.
"""

from __future__ import annotations

from itertools import combinations

import msgspec

from aggregator.schemes.base import Results, Stage
from aggregator.schemes.plans import (
    SplitOptions,
    continuing,
    mas_decision,
    merge_faults,
    merging,
    serving,
    split_faults,
)
from models.wire.job import JobSpec

#: 254 groups; each further task doubles them.
MOST_TASKS = 8


class EveryGroup:
    """A split "merged", then one for each of the 2**n - 2 proper groups."""

    name = "every-group"
    options: type[msgspec.Struct] = SplitOptions

    def faults(self, spec: JobSpec) -> list[str]:
        """As for MAS, with fewer tasks."""
        return merge_faults(spec) + split_faults(spec, MOST_TASKS)

    def first(self, spec: JobSpec, agents: tuple[str, ...]) -> Stage:
        """The merge phase."""
        return merging(spec, spec.affinity_rounds)

    def following(self, spec: JobSpec, agents: tuple[str, ...], stage: int, results: Results) -> Stage | None:
        """After the merge phase all groups; then nothing."""
        if stage > 0:
            return None
        groups = [group for size in range(1, len(spec.tasks)) for group in combinations(spec.tasks, size)]
        found = continuing(spec, groups, mas_decision(spec, results.affinity))
        return serving(found, [()] * len(groups))


SCHEME = EveryGroup()
