"""Every partition of the tasks ranked by what it really reached, and where the one that MAS would choose stands (Q4).

The scheme every-group trains each proper subset of the tasks on from the same merged weights. A partition's loss is
then the sum of its groups' own losses: for five tasks 15 + 25 + 10 partitions into 2, 3 and 4 groups from 30 trained
groups. Its score is MAS's, from the affinities that the same run measured while merged.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from aggregator.splitting import MAX_RANKED_TASKS, partition_score, partitions, split_tasks
from aggregator.splitting import ranked as by_score
from tools.experiment.report.rows import Bench, Groups
from tools.experiment.report.stats import Interval, interval, spearman
from tools.experiment.run_record import Run

#: More partitions than any ranking has (21147 of nine tasks).
_ALL = 1_000_000


@dataclass(frozen=True, slots=True)
class Standing:
    """Where the chosen partition stands among those of as many groups (None: among all), in one seed.

    `percentile`: share of the others that are worse. `regret`: its loss above the best one's, and `share` that regret
    over worst - best. `margin`: how far below it stays of the partition that the other seeds call the worst (None with
    one seed): a worst picked from the same figures would lie above it by construction.
    """

    seed: int
    groups: int | None
    chosen: int
    best: int
    worst: int
    percentile: float
    regret: float
    share: float
    margin: float | None


@dataclass(frozen=True, slots=True)
class Ranking:
    """Losses and scores by seed, as `[partition]`, of `partitions` in the order of their mean loss, best first.

    `preferred` by seed: positions of the partitions by score, best first; equal scores by MAS's own rule, which knows
    no loss.
    """

    partitions: tuple[Groups, ...]
    losses: Mapping[int, tuple[float, ...]]
    scores: Mapping[int, tuple[float, ...]]
    preferred: Mapping[int, tuple[int, ...]]
    lacking: tuple[str, ...]

    @property
    def seeds(self) -> tuple[int, ...]:
        """Seeds with a loss for every partition."""
        return tuple(sorted(self.losses))

    def mean(self, index: int) -> float:
        """Mean loss of a partition over seeds."""
        return math.fsum(found[index] for found in self.losses.values()) / len(self.losses)

    def of_size(self, groups: int | None) -> list[int]:
        """Positions of the partitions into exactly so many groups (None: into any number), best mean first."""
        return [index for index, entry in enumerate(self.partitions) if groups in (None, len(entry))]

    @property
    def sizes(self) -> list[int]:
        """The numbers of groups that have something to choose from."""
        counts = sorted({len(entry) for entry in self.partitions})
        return [size for size in counts if len(self.of_size(size)) > 1]


def ranking(bench: Bench) -> Ranking | None:
    """The ranking of a bench's every-group row; None without one that is complete in at least one seed."""
    row = bench.row("every-group")
    count = len(bench.tasks)
    if row is None or not 3 <= count <= MAX_RANKED_TASKS:
        return None
    every = [groups for groups in partitions(count, count) if 1 < len(groups) < count]
    named = [tuple(tuple(bench.tasks[at] for at in group) for group in groups) for groups in every]
    losses: dict[int, list[float]] = {}
    scores: dict[int, list[float]] = {}
    matrices: dict[int, list[list[float]]] = {}
    lacking = []
    for seed, run in row.done.items():
        found, matrix = group_losses(run), _matrix(run, bench.tasks)
        absent = sorted({len(g) for groups in named for g in groups if frozenset(g) not in found})
        if absent or matrix is None:
            what = f"groups of {absent} tasks" if absent else "affinities"
            lacking.append(f"seed {seed} lacks {what}")
            continue
        losses[seed] = [math.fsum(found[frozenset(group)] for group in groups) for groups in named]
        scores[seed] = [partition_score(matrix, groups) for groups in every]
        matrices[seed] = matrix.tolist()
    if not losses:
        return None
    order = sorted(range(len(named)), key=lambda at: math.fsum(values[at] for values in losses.values()))
    places = {named[at]: place for place, at in enumerate(order)}
    return Ranking(
        partitions=tuple(named[at] for at in order),
        losses={seed: tuple(values[at] for at in order) for seed, values in losses.items()},
        scores={seed: tuple(values[at] for at in order) for seed, values in scores.items()},
        preferred={seed: _preferred(bench.tasks, matrix, places) for seed, matrix in matrices.items()},
        lacking=tuple(lacking),
    )


def _preferred(
    tasks: Sequence[str], matrix: Sequence[Sequence[float]], places: Mapping[Groups, int]
) -> tuple[int, ...]:
    best_first = by_score(tasks, matrix, len(tasks), limit=_ALL)
    return tuple(places[found.splits] for found in best_first if found.splits in places)


def group_losses(run: Run) -> dict[frozenset[str], float]:
    """Sum of the held-out losses of its own tasks for every group that was trained on from the merged weights."""
    found = {}
    for split in run.record.splits if run.record else ():
        tested = split.rounds[-1].test_losses if split.rounds else {}
        if split.parent is not None and all(task in tested for task in split.tasks):
            found[frozenset(split.tasks)] = math.fsum(tested[task] for task in split.tasks)
    return found


def _matrix(run: Run, tasks: Sequence[str]) -> np.ndarray[tuple[int, int], np.dtype[np.float64]] | None:
    measured = run.record.affinity if run.record else None
    if measured is None or set(measured.tasks) != set(tasks):
        return None
    order = [measured.tasks.index(task) for task in tasks]
    matrix: np.ndarray[tuple[int, int], np.dtype[np.float64]] = np.asarray(measured.matrix, np.float64)
    return matrix[np.ix_(order, order)]


def standing(ranked: Ranking, groups: int | None, seed: int) -> Standing:
    """Where the best-scored partition into exactly `groups` groups (None: into any number) stands in one seed."""
    places, losses = ranked.of_size(groups), ranked.losses[seed]
    allowed = set(places)
    chosen = next(at for at in ranked.preferred[seed] if at in allowed)
    best, worst = min(places, key=lambda at: losses[at]), max(places, key=lambda at: losses[at])
    spread = losses[worst] - losses[best]
    others = [found for other, found in ranked.losses.items() if other != seed]
    feared = max(places, key=lambda at: math.fsum(found[at] for found in others)) if others else None
    return Standing(
        seed=seed,
        groups=groups,
        chosen=chosen,
        best=best,
        worst=worst,
        percentile=sum(losses[at] > losses[chosen] for at in places if at != chosen) / (len(places) - 1),
        regret=losses[chosen] - losses[best],
        share=(losses[chosen] - losses[best]) / spread if spread else 0.0,
        margin=None if feared is None else losses[feared] - losses[chosen],
    )


def seed_noise(ranked: Ranking) -> float | None:
    """Standard deviation of a partition's loss between seeds, once each seed's own mean is taken out."""
    seeds, count = ranked.seeds, len(ranked.partitions)
    if len(seeds) < 2:
        return None
    table = np.asarray([ranked.losses[seed] for seed in seeds])
    rest = table - table.mean(axis=1, keepdims=True) - table.mean(axis=0, keepdims=True) + table.mean()
    return float(np.sqrt((rest**2).sum() / ((len(seeds) - 1) * (count - 1))))


def score_correlation(ranked: Ranking, groups: int | None = None) -> tuple[dict[int, float], Interval | None]:
    """Spearman of score with falling loss over the partitions (of one size), by seed, and its interval over seeds."""
    places = ranked.of_size(groups)
    found = {}
    for seed in ranked.seeds:
        value = spearman([ranked.scores[seed][at] for at in places], [-ranked.losses[seed][at] for at in places])
        if value is not None:
            found[seed] = value
    return found, interval(list(found.values()))


def choice(run: Run, tasks: Sequence[str], most: int) -> Groups | None:
    """What MAS chooses with at most `most` groups from the affinities that a run measured."""
    matrix = _matrix(run, tasks)
    return None if matrix is None else split_tasks(tasks, matrix.tolist(), most).splits
