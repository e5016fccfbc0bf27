"""All in one, with a learning rate that begins anew at `merge_rounds`: what MAS owes to a second cycle, if it has one.

Like MAS whose best split is no split: the same rounds, names and seeds, and one group of all tasks.
"""

from __future__ import annotations

import msgspec

from aggregator.schemes.base import NoOptions, Results, Stage
from aggregator.schemes.plans import continuing, merge_faults, merging
from models.wire.job import JobSpec


class AllInOneRestart:
    """A split "merged", then one of all its tasks."""

    name = "all-in-one-restart"
    options: type[msgspec.Struct] = NoOptions

    def faults(self, spec: JobSpec) -> list[str]:
        """There must be rounds after the restart."""
        return merge_faults(spec)

    def first(self, spec: JobSpec, agents: tuple[str, ...]) -> Stage:
        """The rounds before the restart."""
        return merging(spec)

    def following(self, spec: JobSpec, agents: tuple[str, ...], stage: int, results: Results) -> Stage | None:
        """The rounds after it, from the same weights; then nothing."""
        if stage > 0:
            return None
        return continuing(msgspec.structs.replace(spec, lr_restarts=True), (spec.tasks,))


SCHEME = AllInOneRestart()
