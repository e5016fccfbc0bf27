"""Whether the split is the same whoever and whenever it is asked of (Q6).

Each client's affinity sums of each probed round are in the record. Added up over any choice of clients and rounds they
give a matrix, and the matrix a split, by the rule that MAS itself uses, into exactly as many groups as the run's
settings name: a split into one group would agree with everyone's. Splits are compared by the Rand index.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from aggregator.affinity import Matrix, by_self_affinity
from aggregator.schemes.plans import split_options
from aggregator.splitting import split_tasks
from tools.experiment.report.rows import Bench, Groups, Row
from tools.experiment.report.stats import adjusted_rand, rand_index, same_partition, spearman
from tools.experiment.run_record import Run


@dataclass(frozen=True, slots=True)
class Probe:
    """One client's sums `[source, target]` over `batches` batches of one round."""

    round: int
    agent: str
    batches: int
    sums: Matrix


@dataclass(frozen=True, slots=True)
class Choice:
    """The split that some clients and rounds would choose, and how like the pooled one it is."""

    splits: Groups
    same: bool
    rand: float
    adjusted: float


@dataclass(frozen=True, slots=True)
class Window:
    """Neighbouring probed rounds, `first` and `last` included."""

    name: str
    first: int
    last: int


@dataclass(frozen=True, slots=True)
class Agreement:
    """One run's splits: `cells[client, window]`, None where that client was not probed then.

    The client "" stands for all of them and the last window for all probed rounds, so `cells["", all]` is the pooled
    split. `early_late` compares the first window's split with the last third's; `correlation` is Spearman between
    those windows' affinities.
    """

    seed: int
    groups: int
    pooled: Groups
    clients: tuple[str, ...]
    windows: tuple[Window, ...]
    cells: dict[tuple[str, str], Choice | None]
    early_late: Choice | None
    correlation: float | None

    @property
    def by_client(self) -> list[Choice]:
        """What each client would choose from all its rounds."""
        found = [self.cells[client, self.windows[-1].name] for client in self.clients]
        return [choice for choice in found if choice is not None]

    @property
    def by_window(self) -> list[Choice]:
        """What each window of rounds would choose from all its clients."""
        found = [self.cells["", window.name] for window in self.windows[:-1]]
        return [choice for choice in found if choice is not None]


def probed_row(bench: Bench) -> Row | None:
    """The row to ask: that which probed most rounds, so that late is late; then one tagged Q6. None if none was probed.

    TAG's measuring run probes all rounds of a whole training, MAS's only those that its decision reads.
    """
    rows = [row for row in bench.rows if any(len({p.round for p in probes(run)}) > 1 for run in row.done.values())]
    return max(
        rows,
        key=lambda row: (
            max(len({p.round for p in probes(run)}) for run in row.done.values()),
            any("Q6" in run.question_tags for run in row.runs),
            len(row.done),
            row.scheme == "mas",
        ),
        default=None,
    )


def probes(run: Run) -> list[Probe]:
    """Every client's sums of every probed round of the merged phase."""
    merged = next((s for s in run.record.splits if s.tasks == run.spec.tasks), None) if run.record else None
    if merged is None:
        return []
    return [
        Probe(done.round, entry.agent, entry.batches, entry.sums)
        for done in merged.rounds
        for entry in done.affinities
        if entry.batches
    ]


def windows(rounds: Sequence[int]) -> tuple[Window, ...]:
    """Early, middle and late thirds of the probed rounds and all of them; halves for fewer than three rounds."""
    ordered = sorted(set(rounds))
    names = ("early", "middle", "late") if len(ordered) >= 3 else ("early", "late") if len(ordered) == 2 else ()
    cuts = [round(index * len(ordered) / len(names)) for index in range(len(names) + 1)] if names else []
    parts = [Window(name, ordered[cuts[i]], ordered[cuts[i + 1] - 1]) for i, name in enumerate(names)]
    return (*parts, Window("all", ordered[0], ordered[-1]))


def agreement(run: Run, groups: int) -> Agreement | None:
    """The comparison for one run, splitting into exactly `groups`; None where fewer than two rounds were probed.

    Into at least two, since all would agree on one group; affinities are scaled as the run's own options say.
    """
    groups = min(max(2, groups), len(run.spec.tasks))
    found = probes(run)
    rounds = sorted({probe.round for probe in found})
    whole = mean_of(found)
    if len(rounds) < 2 or whole is None:
        return None

    def split_of(matrix: Matrix) -> Groups:
        scaled = by_self_affinity(matrix) if split_options(run.spec).affinity == "self" else matrix
        return split_tasks(run.spec.tasks, scaled, groups, exactly=True).splits

    pooled = split_of(whole)
    clients, spans = tuple(sorted({probe.agent for probe in found})), windows(rounds)
    matrices = {(client, span.name): mean_of(_kept(found, client, span)) for client in ("", *clients) for span in spans}
    early, late = matrices["", spans[0].name], matrices["", spans[-2].name]
    return Agreement(
        seed=run.seed,
        groups=groups,
        pooled=pooled,
        clients=clients,
        windows=spans,
        cells={key: None if found is None else compare(split_of(found), pooled) for key, found in matrices.items()},
        early_late=compare(split_of(early), split_of(late)) if early and late else None,
        correlation=spearman(_off_diagonal(early), _off_diagonal(late)) if early and late else None,
    )


def _kept(found: Iterable[Probe], client: str, span: Window) -> list[Probe]:
    return [p for p in found if client in ("", p.agent) and span.first <= p.round <= span.last]


def compare(splits: Groups, other: Groups) -> Choice:
    """`splits` beside another split of the same tasks."""
    return Choice(splits, same_partition(splits, other), rand_index(splits, other), adjusted_rand(splits, other))


def mean_of(found: Iterable[Probe]) -> Matrix | None:
    """Mean over batches `[source, target]` of some probes; None for no batch."""
    kept = list(found)
    batches = sum(probe.batches for probe in kept)
    if not batches:
        return None
    size = range(len(kept[0].sums))
    return tuple(tuple(sum(probe.sums[i][j] for probe in kept) / batches for j in size) for i in size)


def _off_diagonal(matrix: Matrix) -> list[float]:
    return [value for i, row in enumerate(matrix) for j, value in enumerate(row) if i != j]
