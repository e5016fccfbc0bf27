"""One by one: every task is a federated run of its own, with nothing shared. The baseline in joules."""

from __future__ import annotations

import msgspec

from aggregator.schemes.base import NoOptions, Results, SplitPlan, Stage
from models.tasks import letters
from models.wire.job import JobSpec


class OneByOne:
    """A split per task, named by the task's letter."""

    name = "one-by-one"
    options: type[msgspec.Struct] = NoOptions

    def faults(self, spec: JobSpec) -> list[str]:
        """Nothing is asked of the spec."""
        return []

    def first(self, spec: JobSpec, agents: tuple[str, ...]) -> Stage:
        """All rounds for each task alone."""
        splits = tuple(SplitPlan(letters([task]), (task,), 0, spec.rounds - 1) for task in spec.tasks)
        return Stage("training", splits)

    def following(self, spec: JobSpec, agents: tuple[str, ...], stage: int, results: Results) -> Stage | None:
        """Nothing follows."""
        return None


SCHEME = OneByOne()
