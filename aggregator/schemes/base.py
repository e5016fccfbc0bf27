"""What a training scheme is: the splits to train first, and what follows once they are trained.

A scheme is pure and keeps nothing. Rounds are numbered over the whole job, 0 .. rounds-1; `last_round` is included.
"""

from __future__ import annotations

from typing import Literal, Protocol

import msgspec

from aggregator.affinity import AffinityTotal
from models.wire.job import JobSpec

StageState = Literal["merging", "training", "continuing"]


class SplitPlan(msgspec.Struct, frozen=True):
    """One federated run over `tasks`, starting from the model of split `parent` or, without one, from new weights.

    Rounds `first_round .. last_round`, of which those below `probe_rounds` measure affinity.
    """

    split: str
    tasks: tuple[str, ...]
    first_round: int
    last_round: int
    parent: str | None = None
    probe_rounds: int = 0


class Grouping(msgspec.Struct, frozen=True):
    """One way to split the tasks, and its published score."""

    splits: tuple[tuple[str, ...], ...]
    score: float


class Decision(msgspec.Struct, frozen=True):
    """The split that was taken, and the best others beside it (empty where there are too many to list)."""

    splits: tuple[tuple[str, ...], ...]
    score: float
    max_splits: int
    alternatives: tuple[Grouping, ...] = ()


class Stage(msgspec.Struct, frozen=True):
    """Splits that train side by side, what the job is called meanwhile, and the decision that led here, if any."""

    state: StageState
    splits: tuple[SplitPlan, ...]
    decision: Decision | None = None


class Scheme(Protocol):
    """One way to spend a job's rounds. A module of this package offers one as its attribute `SCHEME`."""

    @property
    def name(self) -> str:
        """The name in `JobSpec.scheme`."""
        ...

    def faults(self, spec: JobSpec) -> list[str]:
        """What in `spec` this scheme cannot work with; empty when nothing is."""
        ...

    def first(self, spec: JobSpec) -> Stage:
        """The stage to start with."""
        ...

    def following(self, spec: JobSpec, stage: int, affinity: AffinityTotal | None) -> Stage | None:
        """The stage after stage number `stage` (from 0), or None when the job is trained.

        Raises ValueError with the reason when it cannot be decided.
        """
        ...
