"""Local epochs and evaluation of one order, as functions of (network, samples, settings, seed)."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
import numpy.typing as npt
import torch

from edge_agent.trainer.probe import AffinityMeter, lookahead
from edge_agent.trainer.protocol import WorkPhase
from edge_agent.trainer.spans import SpanRecorder
from models.losses import Batch, SampleLosses, batch_losses, flip_batch, total_loss
from models.networks import MultiTaskNet
from models.wire.job import TrainSettings
from models.wire.messages import TaskLoss

#: BatchNorm cannot normalise over one sample at the coarsest level without throwing away what it shows.
MIN_BATCH = 2


class TrainingError(RuntimeError):
    """Local training that cannot go on; `final` when repeating it would end the same way."""

    def __init__(self, reason: str, *, final: bool) -> None:
        super().__init__(reason)
        self.final = final


class Samples(Protocol):
    """Samples of one order, by index."""

    def __len__(self) -> int:
        """How many samples can be asked for."""

    def load(self, indices: Sequence[int]) -> Batch:
        """These samples; broken ones are left out of the batch and remembered as faults."""


@dataclass(slots=True)
class LossMeter:
    """Sums of per-sample losses by task."""

    sums: dict[str, float] = field(default_factory=dict)
    counts: dict[str, int] = field(default_factory=dict)

    def add(self, losses: dict[str, SampleLosses]) -> None:
        """Add one batch."""
        for name, loss in losses.items():
            self.sums[name] = self.sums.get(name, 0.0) + loss.loss_sum
            self.counts[name] = self.counts.get(name, 0) + loss.samples

    def result(self, tasks: Sequence[str]) -> tuple[TaskLoss, ...]:
        """One entry per task, in the order of `tasks`."""
        return tuple(TaskLoss(name, self.sums.get(name, 0.0), self.counts.get(name, 0)) for name in tasks)


def batch_indices(order: npt.NDArray[np.int64], batch_size: int) -> list[list[int]]:
    """Indices in batches of `batch_size`; a last batch of a single sample joins the batch before it."""
    batches = [order[start : start + batch_size].tolist() for start in range(0, len(order), batch_size)]
    if len(batches) > 1 and len(batches[-1]) < MIN_BATCH:
        batches[-2:] = [batches[-2] + batches[-1]]
    return batches


@dataclass(frozen=True, slots=True)
class Trained:
    """What one run of local training measured; the weights are in the network."""

    losses: tuple[TaskLoss, ...]
    affinity: AffinityMeter


def train(
    network: MultiTaskNet,
    samples: Samples,
    settings: TrainSettings,
    seed: int,
    meter: AffinityMeter,
    spans: SpanRecorder,
    step: Callable[[WorkPhase, int, int], None],
) -> Trained:
    """Train `network` in place with SGD for `settings.epochs`; everything random comes from `seed`.

    Raises TrainingError when there are fewer than two samples or a loss is not finite.
    """
    if len(samples) < MIN_BATCH:
        raise TrainingError(f"{len(samples)} usable samples are not enough to train on; add data", final=True)
    network.train()
    optimizer = torch.optim.SGD(
        network.parameters(), lr=settings.lr, momentum=settings.momentum, weight_decay=settings.weight_decay
    )
    losses = LossMeter()
    plan = list(_plan(len(samples), settings, np.random.default_rng(seed)))
    for done, (indices, mirrored) in enumerate(plan):
        with spans.phase("train"):
            batch = samples.load(indices)
            if len(batch) < MIN_BATCH:
                continue
            batch = flip_batch(batch, torch.from_numpy(mirrored[: len(batch)]))
        if meter.due(done):
            with spans.phase("affinity"):
                meter.add(lookahead(network, optimizer, batch, meter.tasks))
        with spans.phase("train"):
            losses.add(_update(network, optimizer, batch, done, settings.lr))
        step("train", done + 1, len(plan))
    return Trained(losses.result(network.tasks), meter)


def evaluate(
    network: MultiTaskNet,
    samples: Samples,
    batch_size: int,
    spans: SpanRecorder,
    step: Callable[[WorkPhase, int, int], None],
) -> tuple[TaskLoss, ...]:
    """Losses of `network` in evaluation mode over all samples. Raises TrainingError when there is none."""
    if not len(samples):
        raise TrainingError("there is no sample to evaluate on; name test buildings in the configuration", final=True)
    network.eval()
    losses = LossMeter()
    batches = batch_indices(np.arange(len(samples)), batch_size)
    for done, indices in enumerate(batches):
        with spans.phase("evaluate"), torch.no_grad():
            batch = samples.load(indices)
            if len(batch):
                losses.add(batch_losses(network.tasks, network(batch.rgb), batch))
        step("evaluate", done + 1, len(batches))
    return losses.result(network.tasks)


def _plan(
    samples: int, settings: TrainSettings, random: np.random.Generator
) -> Iterator[tuple[list[int], npt.NDArray[np.bool_]]]:
    """Batches of all epochs: indices, and which samples are mirrored."""
    for _ in range(settings.epochs):
        for indices in batch_indices(random.permutation(samples), settings.batch_size):
            mirrored = random.random(len(indices)) < 0.5
            yield indices, mirrored if settings.flips else np.zeros(len(indices), dtype=np.bool_)


def _update(
    network: MultiTaskNet, optimizer: torch.optim.SGD, batch: Batch, done: int, lr: float
) -> dict[str, SampleLosses]:
    optimizer.zero_grad()
    losses = batch_losses(network.tasks, network(batch.rgb), batch)
    total = total_loss(losses)
    if not math.isfinite(float(total.detach())):
        worst = ", ".join(name for name, loss in losses.items() if not math.isfinite(loss.loss_sum))
        raise TrainingError(
            f"training diverged: the loss of {worst} is not finite at batch {done}; try less than lr {lr:g}", final=True
        )
    total.backward()  # type: ignore[no-untyped-call]
    optimizer.step()
    return losses
