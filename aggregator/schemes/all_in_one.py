"""All in one: one encoder with a head per task, trained as one federated run to the end (FedAvg)."""

from __future__ import annotations

from aggregator.schemes.base import Stage
from aggregator.schemes.plans import SingleStage, all_rounds
from models.wire.job import JobSpec


class AllInOne(SingleStage):
    """A single split, "merged"."""

    name = "all-in-one"

    def first(self, spec: JobSpec, agents: tuple[str, ...]) -> Stage:
        """All rounds for all tasks together."""
        return all_rounds(spec)


SCHEME = AllInOne()
