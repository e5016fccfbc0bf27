"""TAG (Fifty et al., "Efficiently Identifying Task Groupings for Multi-Task Learning", NeurIPS 2021).

All tasks train as one for all rounds, measured throughout. Then at most `max_splits` groups, which may overlap, are
chosen to maximise the sum over tasks of the mean affinity onto each from the others of the group that serves it, and
trained from new weights for all rounds.
A task in a group of its own scores 0, as one that nobody helps or harms: it stays alone only if all company harms it.
"""

from __future__ import annotations

import msgspec
import numpy as np

from aggregator.covering import MAX_COVERED_TASKS, best_cover, cover_score, mean_scores
from aggregator.schemes.base import Decision, NoOptions, Results, Stage
from aggregator.schemes.plans import anew, measured, merging, restart_faults, serving, split_faults
from models.wire.job import JobSpec


class Tag:
    """A split "merged", which serves nothing, then one for each group."""

    name = "tag"
    options: type[msgspec.Struct] = NoOptions

    def faults(self, spec: JobSpec) -> list[str]:
        """The tasks must be few enough to choose exactly."""
        return split_faults(spec, MAX_COVERED_TASKS) + restart_faults(spec)

    def first(self, spec: JobSpec, agents: tuple[str, ...]) -> Stage:
        """All tasks in all rounds, every one of them probed."""
        return serving(merging(msgspec.structs.replace(spec, merge_rounds=spec.rounds), spec.rounds), [()])

    def following(self, spec: JobSpec, agents: tuple[str, ...], stage: int, results: Results) -> Stage | None:
        """After the measuring run the groups from new weights; then nothing."""
        if stage > 0:
            return None
        scores = mean_scores(np.asarray(measured(results.affinity)), np.zeros(len(spec.tasks)))
        chosen = best_cover(scores, spec.max_splits)
        groups = [tuple(spec.tasks[index] for index in group) for group, _ in chosen]
        serves = [tuple(spec.tasks[index] for index in served) for _, served in chosen]
        decision = Decision(tuple(groups), cover_score(scores, chosen), spec.max_splits)
        return serving(Stage("training", anew(spec, groups), decision), serves)


SCHEME = Tag()
