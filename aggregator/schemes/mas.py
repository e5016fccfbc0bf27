"""Merge and Split (Zhuang et al., ICCV 2023): train all tasks as one, measure their affinity, then go on in groups.

The groups start from the merged weights and train the rounds that remain.
"""

from __future__ import annotations

import msgspec

from aggregator.schemes.base import Results, Stage
from aggregator.schemes.plans import SplitOptions, continuing, mas_decision, merge_faults, merging, split_faults
from models.wire.job import JobSpec


class MergeAndSplit:
    """A split "merged", then one for each of `max_splits` groups or, unless told to make exactly so many, fewer."""

    name = "mas"
    options: type[msgspec.Struct] = SplitOptions

    def faults(self, spec: JobSpec) -> list[str]:
        """The merge phase must leave rounds for the splits, and the tasks must be few enough to split exactly."""
        return merge_faults(spec) + split_faults(spec)

    def first(self, spec: JobSpec, agents: tuple[str, ...]) -> Stage:
        """The merge phase; only rounds whose affinity decides are probed."""
        return merging(spec, spec.affinity_rounds)

    def following(self, spec: JobSpec, agents: tuple[str, ...], stage: int, results: Results) -> Stage | None:
        """After the merge phase the best split by measured affinity; then nothing."""
        if stage > 0:
            return None
        decision = mas_decision(spec, results.affinity)
        return continuing(spec, decision.splits, decision)


SCHEME = MergeAndSplit()
