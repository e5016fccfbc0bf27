"""MAS's own split, but from new weights: what the merged weights are worth.

With `rounds` "remaining" the groups train as many rounds as MAS's, at its learning rates; with "all" as many as every
other scheme's.
"""

from __future__ import annotations

from typing import Literal

import msgspec

from aggregator.schemes.base import Results, Stage
from aggregator.schemes.options import options_of
from aggregator.schemes.plans import (
    SplitOptions,
    anew,
    mas_decision,
    merge_faults,
    merging,
    restart_faults,
    split_faults,
)
from models.wire.job import JobSpec


class SplitFromScratchOptions(SplitOptions, frozen=True, forbid_unknown_fields=True):
    """How MAS splits, and how long the groups are trained."""

    rounds: Literal["remaining", "all"] = "remaining"


class SplitFromScratch:
    """A split "merged", then one for each group that MAS would take."""

    name = "split-from-scratch"
    options: type[msgspec.Struct] = SplitFromScratchOptions

    def faults(self, spec: JobSpec) -> list[str]:
        """As for MAS; new weights have no schedule to restart."""
        return merge_faults(spec) + split_faults(spec) + restart_faults(spec)

    def first(self, spec: JobSpec, agents: tuple[str, ...]) -> Stage:
        """The merge phase, which decides and is then thrown away."""
        return merging(spec, spec.affinity_rounds)

    def following(self, spec: JobSpec, agents: tuple[str, ...], stage: int, results: Results) -> Stage | None:
        """After the merge phase MAS's groups from new weights; then nothing."""
        if stage > 0:
            return None
        decision = mas_decision(spec, results.affinity)
        whole = options_of(spec, SplitFromScratchOptions).rounds == "all"
        return Stage("training", anew(spec, decision.splits, 0 if whole else spec.merge_rounds), decision)


SCHEME = SplitFromScratch()
