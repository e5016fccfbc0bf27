"""Merge and Split (Zhuang et al., ICCV 2023): train all tasks as one, measure their affinity, then go on in groups.

The groups start from the merged weights and train the rounds that remain.
"""

from __future__ import annotations

import msgspec

from aggregator.affinity import mean_affinity
from aggregator.schemes.base import Decision, NoOptions, Results, SplitPlan, Stage
from aggregator.splitting import MAX_TASKS, ranked, split_tasks
from models.wire.job import JobSpec

#: How many other partitions a decision lists.
ALTERNATIVES = 10


class MergeAndSplit:
    """A split "merged", then "split-0" and so on."""

    name = "mas"
    options: type[msgspec.Struct] = NoOptions

    def faults(self, spec: JobSpec) -> list[str]:
        """The merge phase must leave rounds for the splits, and the tasks must be few enough to split exactly."""
        faults = []
        if spec.merge_rounds >= spec.rounds:
            faults.append(f"merge_rounds is {spec.merge_rounds}, but must be below rounds, {spec.rounds}")
        if len(spec.tasks) > MAX_TASKS:
            faults.append(f"{len(spec.tasks)} tasks are given; at most {MAX_TASKS} can be split exactly")
        return faults

    def first(self, spec: JobSpec, agents: tuple[str, ...]) -> Stage:
        """The merge phase; only rounds whose affinity decides are probed."""
        probed = min(spec.affinity_rounds, spec.merge_rounds)
        merged = SplitPlan("merged", spec.tasks, 0, spec.merge_rounds - 1, probe_rounds=probed)
        return Stage("merging", (merged,))

    def following(self, spec: JobSpec, agents: tuple[str, ...], stage: int, results: Results) -> Stage | None:
        """After the merge phase the best split by measured affinity; then nothing."""
        if stage > 0:
            return None
        affinity = results.affinity
        if affinity is None:
            raise ValueError("no affinity was measured")
        matrix = mean_affinity(affinity)
        best = split_tasks(affinity.tasks, matrix, spec.max_splits)
        others = ranked(affinity.tasks, matrix, spec.max_splits, ALTERNATIVES + 1)
        decision = Decision(
            splits=best.splits,
            score=best.score,
            max_splits=spec.max_splits,
            alternatives=tuple(other for other in others if other.splits != best.splits)[:ALTERNATIVES],
        )
        splits = tuple(
            SplitPlan(f"split-{index}", tasks, spec.merge_rounds, spec.rounds - 1, parent="merged")
            for index, tasks in enumerate(best.splits)
        )
        return Stage("continuing", splits, decision)


SCHEME = MergeAndSplit()
