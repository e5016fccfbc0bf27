"""One by one: every task is a federated run of its own, with nothing shared. The baseline in joules."""

from __future__ import annotations

from aggregator.schemes.base import SplitPlan, Stage
from aggregator.schemes.plans import SingleStage
from models.tasks import letters
from models.wire.job import JobSpec


class OneByOne(SingleStage):
    """A split per task, named by the task's letter."""

    name = "one-by-one"

    def first(self, spec: JobSpec, agents: tuple[str, ...]) -> Stage:
        """All rounds for each task alone."""
        splits = tuple(SplitPlan(letters([task]), (task,), 0, spec.rounds - 1) for task in spec.tasks)
        return Stage("training", splits)


SCHEME = OneByOne()
