"""The scheme "in-order": groups of neighbours in the order in which the job names its tasks, each from new weights."""

from __future__ import annotations

from typing import Annotated

import msgspec

from aggregator.schemes.base import Results, SplitPlan, Stage
from aggregator.schemes.options import options_of
from models.tasks import letters
from models.wire.job import JobSpec


class InOrderOptions(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`group_size`: tasks in a group; the last may have fewer."""

    group_size: Annotated[int, msgspec.Meta(ge=1)] = 2


class InOrder:
    """Everything in one stage; nothing is measured and nothing decided."""

    name = "in-order"
    options: type[msgspec.Struct] = InOrderOptions

    def faults(self, spec: JobSpec) -> list[str]:
        """Settings that can have no effect are refused, rather than ignored."""
        return ["lr_restarts: this scheme has no split to restart at"] if spec.lr_restarts else []

    def first(self, spec: JobSpec, agents: tuple[str, ...]) -> Stage:
        """Splits are named by their tasks' letters, so that a group has the same seeds in every scheme."""
        size = options_of(spec, InOrderOptions).group_size
        groups = [spec.tasks[start : start + size] for start in range(0, len(spec.tasks), size)]
        return Stage("training", tuple(SplitPlan(letters(group), group, 0, spec.rounds - 1) for group in groups))

    def following(self, spec: JobSpec, agents: tuple[str, ...], stage: int, results: Results) -> Stage | None:
        """After the first stage the job is trained."""
        return None


IN_ORDER = InOrder()
