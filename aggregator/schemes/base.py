"""What a training scheme is: the splits to train first, and what follows once they are trained.

A scheme is pure and keeps nothing. Rounds are numbered over the whole job, 0 .. rounds-1; `last_round` is included.
"""

from __future__ import annotations

from typing import Literal, Protocol

import msgspec

from aggregator.affinity import AffinityTotal
from models.wire.job import JobSpec, TrainSettings

StageState = Literal["merging", "training", "continuing"]

#: The split of all tasks that a job begins with. No letters spell it, since no group holds a task twice.
MERGED = "merged"


class SplitPlan(msgspec.Struct, frozen=True):
    """One federated run over `tasks`, starting from the model of split `parent` or, without one, from new weights.

    Rounds `first_round .. last_round`, of which those below `probe_rounds` measure affinity.
    `split` seeds the choice of clients and their training, so one name means one draw in every scheme: a split of some
    of the job's tasks is named by their letters.
    `serves`: the tasks whose deployed head comes from this split (None: all of its own; empty: none, so that it is
    neither exported nor part of the job's final losses). A task that several splits serve has the mean of their losses.
    `agents`: only these train it and are given it (None: everyone); so many at most make up a round.
    `lr_from`: the round the learning rate's schedule begins at. `train`: in place of the job's own settings.
    `validate`: its last model is evaluated on validation points too, and `following` waits for that.
    """

    split: str
    tasks: tuple[str, ...]
    first_round: int
    last_round: int
    parent: str | None = None
    probe_rounds: int = 0
    serves: tuple[str, ...] | None = None
    agents: tuple[str, ...] | None = None
    lr_from: int = 0
    train: TrainSettings | None = None
    validate: bool = False


class Grouping(msgspec.Struct, frozen=True):
    """One way to split the tasks, and its published score."""

    splits: tuple[tuple[str, ...], ...]
    score: float


class Decision(msgspec.Struct, frozen=True):
    """The groups that were taken, and the best others beside them (empty where there are too many to list).

    Groups may overlap where the scheme lets them (TAG, HOA). `score` is the scheme's own; higher is better.
    """

    splits: tuple[tuple[str, ...], ...]
    score: float
    max_splits: int
    alternatives: tuple[Grouping, ...] = ()


class Stage(msgspec.Struct, frozen=True):
    """Splits that train side by side, what the job is called meanwhile, and the decision that led here, if any.

    Once it begins, no split of an earlier stage serves a task any more, but for those named in `also_serve` with the
    tasks they serve: they are deployed as they are.
    """

    state: StageState
    splits: tuple[SplitPlan, ...]
    decision: Decision | None = None
    also_serve: dict[str, tuple[str, ...]] = {}


class Results(msgspec.Struct, frozen=True):
    """What the stages so far have measured: affinity, and mean validation losses `[split][task]` where asked for."""

    affinity: AffinityTotal | None = None
    val_losses: dict[str, dict[str, float]] = {}


class NoOptions(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The options of a scheme that has none."""


class Scheme(Protocol):
    """One way to spend a job's rounds.

    A module of this package offers one as its attribute `SCHEME`; another package by an entry point of group
    `mas_edge.schemes` that loads to one. `agents` are the sorted names of those able to train all tasks at that time.
    """

    @property
    def name(self) -> str:
        """The name in `JobSpec.scheme`."""
        ...

    @property
    def options(self) -> type[msgspec.Struct]:
        """What may stand in `JobSpec.options`: a frozen struct that forbids unknown fields; defaults as published."""
        ...

    def faults(self, spec: JobSpec) -> list[str]:
        """What in `spec` this scheme cannot work with; empty when nothing is. Called with valid options only."""
        ...

    def first(self, spec: JobSpec, agents: tuple[str, ...]) -> Stage:
        """The stage to start with; one without splits waits until agents come or go."""
        ...

    def following(self, spec: JobSpec, agents: tuple[str, ...], stage: int, results: Results) -> Stage | None:
        """The stage after stage number `stage` (from 0), or None when the job is trained.

        Raises ValueError with the reason when it cannot be decided.
        """
        ...
