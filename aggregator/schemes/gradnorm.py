"""All in one with GradNorm's loss weights (Chen et al., ICML 2018), averaged over the clients after every round.

The weights are learned on the devices; a round's next orders start from their mean over samples, and from the first
round's mean losses as the reference of how far each task has come.
"""

from __future__ import annotations

import msgspec

from aggregator.schemes.base import Stage
from aggregator.schemes.options import options_of
from aggregator.schemes.plans import SingleStage, all_rounds, overridden_faults
from models.wire.job import JobSpec, NonNegative


class GradNormOptions(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`alpha` pulls slow tasks up (0: equal gradients); `lr` is the step of the weights."""

    alpha: NonNegative = 1.5
    lr: NonNegative = 0.025


class GradNorm(SingleStage):
    """A single split, "merged", whose tasks' losses are weighted."""

    name = "gradnorm"
    options: type[msgspec.Struct] = GradNormOptions

    def faults(self, spec: JobSpec) -> list[str]:
        """Weights are of one task against the others, and there is one place for their settings."""
        instead = {"gradnorm_alpha": "takes its option 'alpha'", "gradnorm_lr": "takes its option 'lr'"}
        few = ["one task has nothing to be weighted against; give gradnorm at least two"]
        return super().faults(spec) + overridden_faults(spec, instead) + (few if len(spec.tasks) == 1 else [])

    def first(self, spec: JobSpec, agents: tuple[str, ...]) -> Stage:
        """All rounds for all tasks together."""
        asked = options_of(spec, GradNormOptions)
        train = msgspec.structs.replace(
            spec.train, loss_weighting="gradnorm", gradnorm_alpha=asked.alpha, gradnorm_lr=asked.lr
        )
        return all_rounds(spec, train)


SCHEME = GradNorm()
