"""What the demo runs: who holds which buildings, and one job per scheme with the same settings."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from edge_agent.datasets.layout import read_manifest
from models.wire.job import JobSpec, TrainSettings

#: In the order they run; MAS last, so that its report can say how it compares.
SCHEMES = ("one-by-one", "all-in-one", "mas")
DEFAULT_ROUNDS = 36
#: MAS trains the tasks together for this share of the rounds, and measures their affinity in all of them.
_MERGED_SHARE = 0.25
#: The rendered rooms that come with the package.
PACK = Path(__file__).parent / "pack"


class PlanError(ValueError):
    """A demo that cannot be run as asked; the message says what to change."""


@dataclass(frozen=True, slots=True)
class AgentPlan:
    """One agent and the buildings it holds."""

    agent: str
    train: tuple[str, ...]
    test: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class DemoSettings:
    """What a user may change from the command line."""

    tasks: tuple[str, ...]
    agents: int
    rounds: int
    max_splits: int
    seed: int
    size: int


def deal(train: Sequence[str], test: Sequence[str], agents: int) -> list[AgentPlan]:
    """Buildings to agents, round robin; the test buildings go to the last agents, which hold the fewest others.

    Raises PlanError when there are more agents than training buildings, or nothing to test on.
    """
    if not 1 <= agents <= len(train):
        raise PlanError(f"{agents} agents cannot share {len(train)} training buildings; use --agents 1 to {len(train)}")
    if not test:
        raise PlanError("the dataset names no test buildings, so no loss could be measured on unseen ones")
    plans = []
    for index in range(agents):
        held_out = tuple(test[agents - 1 - index :: agents])
        plans.append(AgentPlan(f"agent-{index + 1}", tuple(train[index::agents]), held_out))
    return plans


def arrange(root: Path, settings: DemoSettings) -> list[AgentPlan]:
    """Who holds what of the dataset at `root`. Raises PlanError, DatasetError when the demo cannot be run on it."""
    manifest = read_manifest(root)
    if manifest is None:
        raise PlanError(f"{root} has no mas-dataset.json that says which buildings are for testing")
    check_labels([domain for domain in manifest.domains if (root / domain).is_dir()], settings.tasks)
    return deal(manifest.buildings.train, manifest.buildings.test, settings.agents)


def check_labels(domains: Sequence[str], tasks: Sequence[str]) -> None:
    """Raises PlanError when the dataset has no labels for some of the tasks."""
    missing = [task for task in tasks if task not in domains]
    if missing:
        raise PlanError(
            f"the dataset has no labels for {', '.join(missing)}; it has {', '.join(domains)}. Choose with --tasks"
        )


def job_spec(scheme: str, settings: DemoSettings) -> JobSpec:
    """The job of one scheme; all schemes share every setting.

    Devices hold a few dozen pictures, so only small batches and a high learning rate make enough steps of a round,
    and more weight decay than usual lowered the loss on held-out buildings. A probe costs about four steps, so every
    eighth batch of the merged rounds keeps probing to a tenth of MAS's energy.
    """
    clients = max(1, settings.agents // 2)
    merge_rounds = max(1, round(settings.rounds * _MERGED_SHARE))
    return JobSpec(
        name=scheme,
        tasks=settings.tasks,
        scheme=scheme,
        size=settings.size,
        seed=settings.seed,
        rounds=settings.rounds,
        merge_rounds=merge_rounds,
        affinity_rounds=merge_rounds,
        clients_per_round=clients,
        max_splits=settings.max_splits,
        probe_every=8,
        eval_every=max(1, settings.rounds // 5),
        deadline_s=120.0,
        train=TrainSettings(epochs=1, batch_size=4, lr=0.2, weight_decay=1e-3),
    )
