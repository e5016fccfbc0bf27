"""All in one: one encoder with a head per task, trained as one federated run to the end."""

from __future__ import annotations

import msgspec

from aggregator.schemes.base import NoOptions, Results, SplitPlan, Stage
from models.wire.job import JobSpec


class AllInOne:
    """A single split, "merged"."""

    name = "all-in-one"
    options: type[msgspec.Struct] = NoOptions

    def faults(self, spec: JobSpec) -> list[str]:
        """Nothing is asked of the spec."""
        return []

    def first(self, spec: JobSpec, agents: tuple[str, ...]) -> Stage:
        """All rounds for all tasks together."""
        return Stage("training", (SplitPlan("merged", spec.tasks, 0, spec.rounds - 1),))

    def following(self, spec: JobSpec, agents: tuple[str, ...], stage: int, results: Results) -> Stage | None:
        """Nothing follows."""
        return None


SCHEME = AllInOne()
