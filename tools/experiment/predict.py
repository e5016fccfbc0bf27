"""What a run will cost, predicted from a + b*n and the clients' sizes before anything is trained.

The plan comes from the scheme itself. Where groups are decided by what will be measured, the scheme is asked under
random affinities and validation losses, and the mean over those draws is taken; the figure is never corrected later.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from aggregator.affinity import AffinityTotal
from aggregator.schemes import find_scheme
from aggregator.schemes.base import Results, SplitPlan
from models.wire.job import JobSpec
from tools.experiment.run_record import ClientData, Flops, Predicted

if TYPE_CHECKING:
    from models.networks.flops import FlopTable

#: Draws of what will be measured; their spread is a few percent, so their mean is known well enough.
DRAWS = 24
#: Schemes end; this many stages are more than any has.
_MOST_STAGES = 32


@dataclass(frozen=True, slots=True)
class SampleCost:
    """Floating-point operations per picture: a step of training, a forward pass, a probe, GradNorm's gradients."""

    train: float
    evaluate: float
    probe: float
    gradnorm: float = 0.0


@dataclass(frozen=True, slots=True)
class Work:
    """Pictures that go through a network of one split, by kind (`weighted`: under GradNorm); `rounds` of training."""

    tasks: tuple[str, ...]
    train: float
    probe: float
    evaluate: float
    weighted: float
    rounds: int


def predict(spec: JobSpec, clients: Sequence[ClientData], cost: Callable[[tuple[str, ...]], SampleCost]) -> Predicted:
    """The cost of a run in which every client answers; `cost` is of a network with those heads.

    Raises ValueError when the scheme cannot plan the job at all.
    """
    draws = [[work_of(spec, clients, split) for split in plan_once(spec, clients, draw)] for draw in range(DRAWS)]
    if all([work.tasks for work in works] == [work.tasks for work in draws[0]] for works in draws):
        draws, assumed = draws[:1], "the plan is the same whatever is measured"
    else:
        assumed = f"groups depend on the data: the mean over {DRAWS} draws of random affinities and validation losses"
    costs = {work.tasks: cost(work.tasks) for works in draws for work in works}
    return Predicted(
        flops=Flops(
            train=_mean(draws, lambda work: work.train * costs[work.tasks].train),
            affinity=_mean(draws, lambda work: work.probe * costs[work.tasks].probe),
            evaluate=_mean(draws, lambda work: work.evaluate * costs[work.tasks].evaluate),
            weighting=_mean(draws, lambda work: work.weighted * costs[work.tasks].gradnorm),
        ),
        assumed=f"{assumed}; every client that is asked answers",
        work={
            "train_images": _mean(draws, lambda work: work.train),
            "probe_images": _mean(draws, lambda work: work.probe),
            "evaluate_images": _mean(draws, lambda work: work.evaluate),
            "rounds": _mean(draws, lambda work: work.rounds),
        },
    )


def plan_once(spec: JobSpec, clients: Sequence[ClientData], draw: int) -> list[SplitPlan]:
    """All splits of all stages when random number `draw` stands for what is measured. Raises ValueError."""
    scheme = find_scheme(spec.scheme)
    agents = tuple(sorted(client.agent for client in clients if client.train_images))
    source = random.Random(draw)
    stage = scheme.first(spec, agents)
    planned = list(stage.splits)
    losses: dict[str, dict[str, float]] = {}
    for number in range(_MOST_STAGES):
        losses |= {split.split: {t: source.uniform(0.5, 1.5) for t in split.tasks} for split in stage.splits}
        following = scheme.following(spec, agents, number, Results(_affinity(spec, source), losses))
        if following is None:
            return planned
        stage = following
        planned += stage.splits
    raise ValueError(f"scheme {spec.scheme} has no end: {_MOST_STAGES} stages were planned")


def work_of(spec: JobSpec, clients: Sequence[ClientData], split: SplitPlan) -> Work:
    """Pictures of one split: each round the mean of those able to train it, since who is drawn is chance."""
    able = [c.train_images for c in clients if c.train_images and (split.agents is None or c.agent in split.agents)]
    per_round = min(spec.clients_per_round, len(able)) * sum(able) / max(1, len(able))
    settings = split.train or spec.train
    rounds = split.last_round - split.first_round + 1
    probed = max(0, min(split.probe_rounds, split.last_round + 1) - split.first_round)
    tests = sum(r == split.last_round or (r + 1) % spec.eval_every == 0 for r in _rounds(split))
    validated = sum(client.val_images for client in clients) if split.validate else 0
    trained = rounds * per_round * settings.epochs
    return Work(
        tasks=split.tasks,
        train=trained,
        probe=probed * per_round * settings.epochs / spec.probe_every,
        evaluate=tests * sum(client.test_images for client in clients) + validated,
        weighted=trained if settings.loss_weighting == "gradnorm" else 0.0,
        rounds=rounds,
    )


def _rounds(split: SplitPlan) -> range:
    return range(split.first_round, split.last_round + 1)


def _affinity(spec: JobSpec, source: random.Random) -> AffinityTotal:
    rows = tuple(tuple(source.gauss(0.0, 1.0) for _ in spec.tasks) for _ in spec.tasks)
    return AffinityTotal(spec.tasks, rows, batches=1, rounds=(0,))


def _mean(draws: Sequence[Sequence[Work]], of: Callable[[Work], float]) -> float:
    return sum(of(work) for works in draws for work in works) / len(draws)


def network_cost(spec: JobSpec, table: FlopTable) -> Callable[[tuple[str, ...]], SampleCost]:
    """The cost per picture of the job's network by the a + b*n formula; `table` keeps what was worked out."""

    def cost(tasks: tuple[str, ...]) -> SampleCost:
        found = table.predict(spec.network, tasks, spec.size)
        return SampleCost(found.train, found.evaluate, found.probe, found.gradnorm)

    return cost


def predict_all(specs: Mapping[str, JobSpec], clients: Sequence[ClientData]) -> dict[str, Predicted]:
    """The cost of each job. Raises ValueError naming those that cannot be planned."""
    from models.networks.flops import FlopTable  # brings torch, which is not needed to read a plan

    table = FlopTable()
    found: dict[str, Predicted] = {}
    faults: list[str] = []
    for name, spec in specs.items():
        try:
            found[name] = predict(spec, clients, network_cost(spec, table))
        except ValueError as error:
            faults.append(f"row {name!r}: {error}")
    if faults:
        raise ValueError("\n".join(faults))
    return found
