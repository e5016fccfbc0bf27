"""HOA, the higher-order approximation (Standley et al., "Which Tasks Should Be Learned Together", ICML 2020).

Every task and every pair trains from new weights for all rounds and is validated. A task's loss in a larger group is
foreseen as the mean of its losses in the pairs with the others. At most `max_splits` groups, which may overlap, are
chosen to minimise the foreseen total; those of one or two tasks are served as they are, larger ones are trained from
new weights for all rounds.
"""

from __future__ import annotations

from itertools import combinations

import msgspec
import numpy as np

from aggregator.covering import MAX_COVERED_TASKS, best_cover, cover_score, mean_scores
from aggregator.schemes.base import Decision, NoOptions, Results, Stage
from aggregator.schemes.plans import anew, restart_faults, serving, split_faults
from aggregator.splitting import Floats
from models.tasks import letters
from models.wire.job import JobSpec


class HigherOrder:
    """A split for each task and pair, then one for each larger group that was chosen."""

    name = "hoa"
    options: type[msgspec.Struct] = NoOptions

    def faults(self, spec: JobSpec) -> list[str]:
        """The tasks must be few enough to choose exactly."""
        return split_faults(spec, MAX_COVERED_TASKS) + restart_faults(spec)

    def first(self, spec: JobSpec, agents: tuple[str, ...]) -> Stage:
        """All singles and pairs; whether one serves is not known yet."""
        groups = [group for size in (1, 2) for group in combinations(spec.tasks, size)]
        plans = (msgspec.structs.replace(plan, serves=(), validate=True) for plan in anew(spec, groups))
        return Stage("training", tuple(plans))

    def following(self, spec: JobSpec, agents: tuple[str, ...], stage: int, results: Results) -> Stage | None:
        """The larger groups among the chosen, beside those that are trained already; then nothing."""
        if stage > 0:
            return None
        alone, pairs = _measured(spec, results)
        scores = mean_scores(-pairs, -alone)
        chosen = best_cover(scores, spec.max_splits)
        named = [tuple(tuple(spec.tasks[index] for index in part) for part in each) for each in chosen]
        larger = [(group, served) for group, served in named if len(group) > 2]
        decision = Decision(tuple(group for group, _ in named), cover_score(scores, chosen), spec.max_splits)
        stages = serving(
            Stage("training", anew(spec, [group for group, _ in larger]), decision), [served for _, served in larger]
        )
        ready = {letters(group): served for group, served in named if len(group) <= 2}
        return msgspec.structs.replace(stages, also_serve=ready)


def _measured(spec: JobSpec, results: Results) -> tuple[Floats, Floats]:
    """Validation losses of the tasks alone `[task]`, and in pairs `[other, task]`. ValueError naming what lacks."""
    count = len(spec.tasks)
    alone, pairs, lacking = np.zeros(count), np.zeros((count, count)), []
    for group in [group for size in (1, 2) for group in combinations(range(count), size)]:
        split = letters([spec.tasks[index] for index in group])
        losses = results.val_losses.get(split, {})
        for task in group:
            loss = losses.get(spec.tasks[task])
            if loss is None:
                lacking.append(f"{spec.tasks[task]} in split {split}")
            elif len(group) == 1:
                alone[task] = loss
            else:
                pairs[sum(group) - task, task] = loss
    if lacking:
        raise ValueError(f"there is no validation loss of {', '.join(lacking)}")
    return alone, pairs


SCHEME = HigherOrder()
