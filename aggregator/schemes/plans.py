"""Stages that several schemes have in common: all tasks as one, groups that go on from it, groups from new weights."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal

import msgspec

from aggregator.affinity import AffinityTotal, Matrix, by_self_affinity, mean_affinity
from aggregator.schemes.base import MERGED, Decision, NoOptions, Results, SplitPlan, Stage
from aggregator.splitting import MAX_TASKS, ranked, split_tasks
from models.tasks import letters
from models.wire.job import JobSpec, TrainSettings

Groups = Iterable[tuple[str, ...]]

#: How many other partitions a decision lists.
ALTERNATIVES = 10


class SplitOptions(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How MAS splits. `exactly`: into `max_splits` groups, not into fewer even where that scores better.

    `affinity`: "raw" as published, or "self", each source's row divided by what its step does to the source itself.
    """

    exactly: bool = False
    affinity: Literal["raw", "self"] = "raw"


class SingleStage:
    """What schemes have in common that train everything at once and decide nothing."""

    options: type[msgspec.Struct] = NoOptions

    def faults(self, spec: JobSpec) -> list[str]:
        """There is no split at which the learning rate could begin anew."""
        return restart_faults(spec)

    def following(self, spec: JobSpec, agents: tuple[str, ...], stage: int, results: Results) -> Stage | None:
        """Nothing follows."""
        return None


def all_rounds(spec: JobSpec, train: TrainSettings | None = None) -> Stage:
    """All tasks together in every round, under the settings `train` or the job's own."""
    return Stage("training", (SplitPlan(MERGED, spec.tasks, 0, spec.rounds - 1, train=train),))


def merging(spec: JobSpec, probe_rounds: int = 0) -> Stage:
    """All tasks together in the first `merge_rounds` rounds, of which the first `probe_rounds` measure affinity."""
    probed = min(probe_rounds, spec.merge_rounds)
    return Stage("merging", (SplitPlan(MERGED, spec.tasks, 0, spec.merge_rounds - 1, probe_rounds=probed),))


def continuing(spec: JobSpec, groups: Groups, decision: Decision | None = None) -> Stage:
    """Each group from its part of the merged weights, in the rounds that remain."""
    start = spec.merge_rounds
    plans = (
        SplitPlan(
            letters(group), group, start, spec.rounds - 1, parent=MERGED, lr_from=start if spec.lr_restarts else 0
        )
        for group in groups
    )
    return Stage("continuing", tuple(plans), decision)


def anew(spec: JobSpec, groups: Groups, first_round: int = 0) -> tuple[SplitPlan, ...]:
    """Each group from new weights, from `first_round` to the end."""
    return tuple(SplitPlan(letters(group), group, first_round, spec.rounds - 1) for group in groups)


def serving(stage: Stage, serves: Iterable[tuple[str, ...]]) -> Stage:
    """The stage with what each of its splits serves."""
    plans = (msgspec.structs.replace(plan, serves=each) for plan, each in zip(stage.splits, serves, strict=True))
    return msgspec.structs.replace(stage, splits=tuple(plans))


def mas_decision(spec: JobSpec, affinity: AffinityTotal | None) -> Decision:
    """The best partition into `max_splits` groups (MAS, step 3), or at most so many, as the options say.

    The options of `spec` are `SplitOptions` or more. Raises ValueError where nothing was measured.
    """
    chosen = split_options(spec)
    matrix = measured(affinity)
    if chosen.affinity == "self":
        matrix = by_self_affinity(matrix)
    best = split_tasks(spec.tasks, matrix, spec.max_splits, exactly=chosen.exactly)
    others = ranked(spec.tasks, matrix, spec.max_splits, ALTERNATIVES + 1, exactly=chosen.exactly)
    return Decision(
        splits=best.splits,
        score=best.score,
        max_splits=spec.max_splits,
        alternatives=tuple(other for other in others if other.splits != best.splits)[:ALTERNATIVES],
    )


def split_options(spec: JobSpec) -> SplitOptions:
    """Those of the scheme's options that say how to split."""
    known = {field.name for field in msgspec.structs.fields(SplitOptions)}
    return msgspec.convert({name: value for name, value in spec.options.items() if name in known}, SplitOptions)


def measured(affinity: AffinityTotal | None) -> Matrix:
    """Mean affinity `[source, target]`; ValueError where nothing was measured."""
    if affinity is None:
        raise ValueError("no affinity was measured")
    return mean_affinity(affinity)


def merge_faults(spec: JobSpec) -> list[str]:
    """The merge phase must leave rounds for what follows it."""
    if spec.merge_rounds < spec.rounds:
        return []
    return [f"merge_rounds is {spec.merge_rounds}, but must be below rounds, {spec.rounds}"]


def split_faults(spec: JobSpec, most_tasks: int = MAX_TASKS) -> list[str]:
    """There must be tasks to split, few enough to do it exactly, and no more groups than tasks."""
    count = len(spec.tasks)
    faults = []
    if count == 1:
        faults.append(f"one task cannot be split; give scheme {spec.scheme} more, or take all-in-one")
    elif spec.max_splits > count > 0:
        faults.append(f"max_splits is {spec.max_splits}, but there are only {count} tasks to split")
    if count > most_tasks:
        faults.append(f"{count} tasks are given; at most {most_tasks} can be split exactly by scheme {spec.scheme}")
    return faults


def overridden_faults(spec: JobSpec, settings: dict[str, str]) -> list[str]:
    """Settings of `[train]` that the scheme would replace by an option of its own, by name, are not to be given too."""
    published = TrainSettings()
    return [
        f"train.{name} is set, but scheme {spec.scheme} {instead}"
        for name, instead in settings.items()
        if getattr(spec.train, name) != getattr(published, name)
    ]


def restart_faults(spec: JobSpec) -> list[str]:
    """A restart of the learning rate that would never come is refused rather than ignored."""
    if not spec.lr_restarts:
        return []
    return [f"lr_restarts is set, but scheme {spec.scheme} has no split from merged weights to restart at"]
