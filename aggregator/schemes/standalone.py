"""Standalone: every device trains all tasks on its own data alone and keeps the model. What federation is worth.

All start from the same new weights. The models are evaluated wherever there are held-out pictures, as all others are,
and a task's loss is the mean over the devices' models.
"""

from __future__ import annotations

from aggregator.schemes.base import SplitPlan, Stage
from aggregator.schemes.plans import SingleStage
from models.wire.job import JobSpec


class Standalone(SingleStage):
    """A split per device, named like it."""

    name = "standalone"

    def first(self, spec: JobSpec, agents: tuple[str, ...]) -> Stage:
        """All rounds for each device there is; it waits until there are `clients_per_round` of them."""
        if len(agents) < spec.clients_per_round:
            return Stage("training", ())
        splits = tuple(SplitPlan(agent, spec.tasks, 0, spec.rounds - 1, agents=(agent,)) for agent in agents)
        return Stage("training", splits)


SCHEME = Standalone()
